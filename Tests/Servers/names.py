"""Names that lead to forbidden addresses, for the tests. Usage, in a network and mount namespace of its own: names.py OUTBOXCTL ENDPOINT

Makes a second host with a public and two private addresses and an HTTP server that listens on all of them, a public address of
our own, and a name server here; then calls `outboxctl endpoint test` with each name, and prints one JSON object: per name the
exit code, the error, and the addresses that were connected to.
"""
import json, os, pathlib, socket, struct, subprocess, sys, tempfile, threading, time

PUBLIC, OWN, PRIVATE, METADATA = "93.184.216.34", "93.184.216.35", "10.0.0.5", "169.254.169.254"
run = lambda *words: subprocess.run(words, check=True)


def serve_http(tell):
    server = socket.create_server(("", 8080), family=socket.AF_INET6, dualstack_ipv6=True)
    while True:
        connection, _ = server.accept()
        tell(connection.getsockname()[0].removeprefix("::ffff:"))
        connection.recv(65536)
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok")
        connection.close()


if sys.argv[1] == "--peer":  # the second host
    while subprocess.run(["ip", "link", "show", "peer"], capture_output=True).returncode:
        time.sleep(0.01)
    run("ip", "link", "set", "lo", "up")
    run("ip", "addr", "add", "192.0.2.2/30", "dev", "peer")
    run("ip", "link", "set", "peer", "up")
    for address in (PUBLIC, PRIVATE, METADATA):
        run("ip", "addr", "add", f"{address}/32", "dev", "lo")
    serve_http(lambda address: print(address, flush=True))

outboxctl, endpoint = sys.argv[1:3]
run("ip", "link", "set", "lo", "up")
run("ip", "addr", "add", f"{OWN}/32", "dev", "lo")
peer = subprocess.Popen(["unshare", "--net", sys.executable, __file__, "--peer"], stdout=subprocess.PIPE, text=True)
while os.readlink(f"/proc/{peer.pid}/ns/net") == os.readlink("/proc/self/ns/net"):
    time.sleep(0.01)
run("ip", "link", "add", "host", "type", "veth", "peer", "name", "peer", "netns", str(peer.pid))
run("ip", "addr", "add", "192.0.2.1/30", "dev", "host")
run("ip", "link", "set", "host", "up")
run("ip", "route", "add", "default", "via", "192.0.2.2")
folder = pathlib.Path(tempfile.mkdtemp())
for path, text in [("/etc/resolv.conf", "nameserver 127.0.0.1\noptions timeout:1 attempts:1\n"), ("/etc/hosts", "127.0.0.1 localhost\n"),
                   ("/etc/nsswitch.conf", "hosts: files dns\n")]:
    own = folder / pathlib.Path(path).name
    own.write_text(text)
    if os.path.exists(path):
        run("mount", "--bind", str(own), os.path.realpath(path))

A, AAAA, CNAME = 1, 28, 5
records = {
    "public.test": [(A, PUBLIC)], "own.test": [(A, OWN)], "private.test": [(A, PRIVATE)], "metadata.test": [(A, METADATA)], "loop.test": [(A, "127.0.0.1")],
    "six.test": [(AAAA, "::1")], "mapped.test": [(AAAA, "::ffff:10.0.0.5")], "nat64.test": [(AAAA, "64:ff9b::a00:5")],
    "chain.test": [(CNAME, "middle.test")], "middle.test": [(CNAME, "private.test")],
    "mixed.test": [(A, PRIVATE), (A, PUBLIC)], "mixed6.test": [(A, PUBLIC), (AAAA, "fd00::1")], "zero.test": [(A, "0.0.0.0")],
}
flips = {"rebind.test": [[(A, PUBLIC)], [(A, PRIVATE)]]}
asked = {}


def encoded(name):
    return b"".join(bytes([len(p)]) + p.encode() for p in name.split(".")) + b"\0"


def answers(name, kind):
    if name in flips and kind == A:
        asked[name] = asked.get(name, -1) + 1
        return [(name, k, v) for k, v in flips[name][asked[name] % 2]]
    found = []
    for k, v in records.get(name, []):
        if k == CNAME:
            found += [(name, k, v)] + answers(v, kind)
        elif k == kind:
            found.append((name, k, v))
    return found


def serve_names():
    server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    server.bind(("127.0.0.1", 53))
    while True:
        data, peer = server.recvfrom(4096)
        labels, place = [], 12
        while data[place]:
            labels.append(data[place + 1:place + 1 + data[place]].decode())
            place += 1 + data[place]
        kind = struct.unpack(">H", data[place + 1:place + 3])[0]
        found = answers(".".join(labels).lower(), kind)
        body = b""
        for name, k, v in found:
            value = encoded(v) if k == CNAME else socket.inet_pton(socket.AF_INET if k == A else socket.AF_INET6, v)
            body += encoded(name) + struct.pack(">HHIH", k, 1, 0, len(value)) + value
        head = data[:2] + struct.pack(">HHHHH", 0x8580, 1, len(found), 0, 0)
        server.sendto(head + data[12:place + 5] + body, peer)


connected = []
for job in (serve_names, lambda: serve_http(connected.append), lambda: connected.extend(line.strip() for line in peer.stdout)):
    threading.Thread(target=job, daemon=True).start()
# The second host is there when it answers.
for _ in range(500):
    try:
        socket.create_connection((PUBLIC, 8080), timeout=1).close()
        break
    except OSError:
        time.sleep(0.02)
time.sleep(0.2)
result = {}
for name in [*records, *flips, *flips]:
    connected.clear()
    done = subprocess.run([outboxctl, "endpoint", "test", endpoint, "--url", f"http://{name}:8080/"], capture_output=True, text=True)
    deadline = time.monotonic() + 2
    while done.returncode == 0 and not connected and time.monotonic() < deadline:
        time.sleep(0.01)
    result.setdefault(name, []).append({"exit": done.returncode, "error": done.stderr, "connected": list(connected)})
print(json.dumps(result))
peer.kill()
