"""Names that lead to forbidden addresses, for the tests. Usage, in a network and mount namespace of its own: names.py OUTBOXCTL ENDPOINT

Makes a loopback that has a public and two private addresses, a name server and an HTTP server that listens on all of them;
then calls `outboxctl endpoint test` with each name, and prints one JSON object: per name the exit code, the error, and the
local addresses that were connected to.
"""
import json, os, pathlib, socket, struct, subprocess, sys, tempfile, threading

outboxctl, endpoint = sys.argv[1:3]
PUBLIC, PRIVATE, METADATA = "93.184.216.34", "10.0.0.5", "169.254.169.254"
run = lambda *words: subprocess.run(words, check=True)
run("ip", "link", "set", "lo", "up")
for address in (PUBLIC, PRIVATE, METADATA):
    run("ip", "addr", "add", f"{address}/32", "dev", "lo")
folder = pathlib.Path(tempfile.mkdtemp())
for path, text in [("/etc/resolv.conf", "nameserver 127.0.0.1\noptions timeout:1 attempts:1\n"), ("/etc/hosts", "127.0.0.1 localhost\n"),
                   ("/etc/nsswitch.conf", "hosts: files dns\n")]:
    own = folder / pathlib.Path(path).name
    own.write_text(text)
    if os.path.exists(path):
        run("mount", "--bind", str(own), os.path.realpath(path))

A, AAAA, CNAME = 1, 28, 5
records = {
    "public.test": [(A, PUBLIC)], "private.test": [(A, PRIVATE)], "metadata.test": [(A, METADATA)], "loop.test": [(A, "127.0.0.1")],
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


def serve_http():
    server = socket.create_server(("", 8080), family=socket.AF_INET6, dualstack_ipv6=True)
    while True:
        connection, _ = server.accept()
        connected.append(connection.getsockname()[0].removeprefix("::ffff:"))
        connection.recv(65536)
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok")
        connection.close()


for job in (serve_names, serve_http):
    threading.Thread(target=job, daemon=True).start()
result = {}
for name in [*records, *flips, *flips]:
    connected.clear()
    done = subprocess.run([outboxctl, "endpoint", "test", endpoint, "--url", f"http://{name}:8080/"], capture_output=True, text=True)
    result.setdefault(name, []).append({"exit": done.returncode, "error": done.stderr, "connected": list(connected)})
print(json.dumps(result))
