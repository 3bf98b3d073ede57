"""HTTPS servers for the tests, each wrong in its own way. Usage: tls.py FOLDER

Writes the certificates into the folder, listens on a port for each server, prints "ready {name: port}", and then a line
"NAME METHOD PATH" for every request, "+NAME" for every connection and "!NAME" for an answer that nobody asked for.
"""
import datetime, ipaddress, json, pathlib, socket, ssl, struct, sys, threading, time

import h2.config, h2.connection, h2.errors, h2.events
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

folder = pathlib.Path(sys.argv[1])
now = datetime.datetime.now(datetime.timezone.utc)
day = datetime.timedelta(days=1)


def certificate(name, issuer=None, ca=False, host="127.0.0.1", start=now - day, end=now + 30 * day):
    """Makes a key and a certificate; an issuer is what this returned before."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    builder = (x509.CertificateBuilder().subject_name(subject).issuer_name(issuer[1].subject if issuer else subject)
               .public_key(key.public_key()).serial_number(x509.random_serial_number())
               .not_valid_before(start).not_valid_after(end)
               .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True))
    if not ca:
        builder = builder.add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(host))]), critical=False)
    made = builder.sign(issuer[0] if issuer else key, hashes.SHA256())
    return key, made


def pem(*certificates):
    return b"".join(c[1].public_bytes(serialization.Encoding.PEM) for c in certificates)


def write(name, key, *chain):
    (folder / f"{name}.pem").write_bytes(pem(*chain))
    (folder / f"{name}.key").write_bytes(key[0].private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()))


authority = certificate("Test CA", ca=True)
other = certificate("Other CA", ca=True)
between = certificate("Between", authority, ca=True)
good = certificate("good", authority)
write("ca", authority, authority)
write("good", good, good)
expired = certificate("expired", authority, start=now - 10 * day, end=now - day)
write("expired", expired, expired)
alone = certificate("alone")
write("self_signed", alone, alone)
elsewhere = certificate("elsewhere", authority, host="127.0.0.9")
write("wrong_host", elsewhere, elsewhere)
leaf = certificate("leaf", between)
write("missing_intermediate", leaf, leaf)
write("full_chain", leaf, leaf, between)
client = certificate("client", authority)
write("client", client, client)
stranger = certificate("stranger", other)
write("stranger", stranger, stranger)

counts = {}
lock = threading.Lock()


def report(name, line):
    with lock:
        counts[name] = counts.get(name, 0) + 1
        print(name, line, flush=True)


def tell(line):
    with lock:
        print(line, flush=True)


def http1(name, connection):
    buffer = b""
    while True:
        while b"\r\n\r\n" not in buffer:
            data = connection.recv(65536)
            if not data:
                return
            buffer += data
        head, buffer = buffer.split(b"\r\n\r\n", 1)
        length = next((int(l.split(b":")[1]) for l in head.split(b"\r\n") if l.lower().startswith(b"content-length:")), 0)
        while len(buffer) < length:
            buffer += connection.recv(65536)
        buffer = buffer[length:]
        report(name, head.split(b" HTTP", 1)[0].decode())
        subject = connection.getpeercert() or {}
        body = json.dumps({"client": [v for part in subject.get("subject", []) for k, v in part]}).encode()
        answer = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body
        if name in ("unasked", "unasked12", "pending", "garbage") and counts[name] > 1:
            answer = answer.replace(b"200 OK", b"500 No")
        if name == "pending":
            # The body and another answer in one record: the client reads only as much of it as the body has.
            head, rest = answer.split(b"\r\n\r\n", 1)
            connection.sendall(head + b"\r\n\r\n")
            time.sleep(0.02)
            connection.sendall(rest + answer.replace(b"500 No", b"200 OK"))
            tell("!" + name)
            continue
        connection.sendall(answer)
        if name == "garbage":
            # What is no TLS, and then a reset: whoever answers with an alert writes to a closed connection.
            time.sleep(0.05)
            raw = socket.socket(fileno=connection.detach())
            raw.sendall(b"HTTP/1.1 408 Request Timeout\r\nContent-Length: 0\r\n\r\n")
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            raw.close()
            tell("!" + name)
            return
        if name.startswith("unasked"):
            time.sleep(0.05)
            connection.sendall(answer.replace(b"500 No", b"200 OK"))
            tell("!" + name)


def http2(name, connection):
    state = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False))
    state.initiate_connection()
    connection.sendall(state.data_to_send())
    while True:
        data = connection.recv(65536)
        if not data:
            return
        for event in state.receive_data(data):
            if isinstance(event, h2.events.RequestReceived):
                headers = dict(event.headers)
                text = lambda k: headers.get(k, headers.get(k.encode(), b""))
                decode = lambda v: v.decode() if isinstance(v, bytes) else v
                report(name, decode(text(":method")) + " " + decode(text(":path")))
                if name == "h2_refused":
                    state.reset_stream(event.stream_id, h2.errors.ErrorCodes.REFUSED_STREAM)
                elif name == "h2_goaway":
                    connection.sendall(state.data_to_send())
                    state.close_connection(last_stream_id=0)
                    connection.sendall(state.data_to_send())
                    return
            elif isinstance(event, h2.events.StreamEnded) and name == "h2_empty":
                # Frames without data, for ever: nothing of a response, and always something to read.
                state.send_headers(event.stream_id, [(":status", "200")])
                connection.sendall(state.data_to_send())
                frames = (b"\0\0\0\0\0" + struct.pack(">I", event.stream_id)) * 3000
                while True:
                    connection.sendall(frames)
            elif isinstance(event, h2.events.StreamEnded) and name == "h2":
                state.send_headers(event.stream_id, [(":status", "200")])
                state.send_data(event.stream_id, b"two", end_stream=True)
        connection.sendall(state.data_to_send())


def context(name):
    source = name if (folder / f"{name}.pem").exists() else "good"
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    made.load_cert_chain(folder / f"{source}.pem", folder / f"{source}.key")
    if name == "old_protocol":
        made.set_ciphers("ALL:@SECLEVEL=0")
        made.minimum_version = ssl.TLSVersion.TLSv1
        made.maximum_version = ssl.TLSVersion.TLSv1_1
    if name.endswith("12"):
        made.maximum_version = ssl.TLSVersion.TLSv1_2
    if name.startswith("client_required"):
        made.verify_mode = ssl.CERT_REQUIRED
        made.load_verify_locations(folder / "ca.pem")
    if name.startswith("h2"):
        made.set_alpn_protocols(["h2"])
    return made


def serve(name, listener):
    made = context(name)

    def one(raw):
        try:
            with made.wrap_socket(raw, server_side=True) as connection:
                tell("+" + name)
                (http2 if name.startswith("h2") else http1)(name, connection)
        except (ssl.SSLError, OSError):
            pass

    while True:
        raw, _ = listener.accept()
        threading.Thread(target=one, args=(raw,), daemon=True).start()


ports = {}
for name in ["good", "expired", "self_signed", "wrong_host", "missing_intermediate", "full_chain", "old_protocol",
             "client_required", "h2", "h2_refused", "h2_goaway", "h2_empty", "good12", "unasked", "unasked12", "pending", "garbage"]:
    listener = socket.create_server(("127.0.0.1", 0))
    ports[name] = listener.getsockname()[1]
    threading.Thread(target=serve, args=(name, listener), daemon=True).start()
print("ready", json.dumps(ports), flush=True)
threading.Event().wait()
