"""A host that gives out videos over TLS, on loopback: what it says to each path is given, down to the byte."""

from __future__ import annotations

import datetime
import ipaddress
import socket
import socketserver
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

Say = Callable[[socket.socket], None]


@dataclass
class Host:
    """A running host, and what it was asked."""

    port: int
    tls: ssl.SSLContext
    """What a client needs to trust it."""
    heads: list[str] = field(default_factory=list)
    """Request lines and headers."""
    names: list[str | None] = field(default_factory=list)
    """Server names of TLS handshakes."""


def response(content: bytes, status: str = "200 OK", *headers: str) -> Say:
    """Says `content` with its length."""
    head = "\r\n".join((f"HTTP/1.1 {status}", f"Content-Length: {len(content)}", *headers, "", ""))
    return lambda connection: connection.sendall(head.encode() + content)


def raw(content: bytes) -> Say:
    return lambda connection: connection.sendall(content)


@contextmanager
def host(folder: Path, says: dict[str, Say], name: str = "clips.example.org") -> Iterator[Host]:
    """A host whose certificate, made in `folder`, is for `name`; path -> what it says there."""
    certificate, key = _certificate(folder, name)
    server_tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server_tls.load_cert_chain(certificate, key)
    found = Host(0, ssl.create_default_context(cafile=str(certificate)))
    server_tls.sni_callback = lambda _, asked, __: found.names.append(asked)

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            try:
                with server_tls.wrap_socket(self.request, server_side=True) as connection:
                    head = b""
                    while b"\r\n\r\n" not in head and (piece := connection.recv(4096)):
                        head += piece
                    found.heads.append(head.decode())
                    says[head.split()[1].decode()](connection)
            except OSError:
                pass  # the client went away, which some tests want

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        server.block_on_close = False
        found.port = server.server_address[1]
        thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        try:
            yield found
        finally:
            server.shutdown()
            thread.join()


def _certificate(folder: Path, name: str) -> tuple[Path, Path]:
    """The files of a certificate that signs itself, and of its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.UTC)
    names = x509.SubjectAlternativeName([x509.DNSName(name)] if not name[0].isdigit() else [x509.IPAddress(ipaddress.ip_address(name))])
    made = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(names, critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    certificate_file, key_file = folder / f"{name}.pem", folder / f"{name}.key"
    certificate_file.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    plain = serialization.NoEncryption()
    key_file.write_bytes(key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, plain))
    return certificate_file, key_file
