"""Servers at a database's address that are not the database: those that want its passwords, and a gateway with TLS."""

from __future__ import annotations

import datetime
import ipaddress
import os
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

SSL_REQUEST, GSS_REQUEST, CANCEL = 80877103, 80877104, 80877102
ASKS: dict[str, bytes] = {
    "clear": b"R" + (8).to_bytes(4, "big") + (3).to_bytes(4, "big"),
    "md5": b"R" + (12).to_bytes(4, "big") + (5).to_bytes(4, "big") + b"salt",
    "nothing": b"R" + (8).to_bytes(4, "big") + (0).to_bytes(4, "big"),
}
"""How a server asks for a password (PostgreSQL manual, 54.7, Authentication...)."""


@contextmanager
def listening(serve: Callable[[socket.socket], None], host: str = "127.0.0.1") -> Iterator[int]:
    """A port on which each connection is served in a thread of its own."""
    with socket.create_server((host, 0)) as listener:

        def one(connection: socket.socket) -> None:
            with connection, suppress(OSError):
                connection.settimeout(30)
                serve(connection)

        def accept() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                threading.Thread(target=one, args=[connection], daemon=True).start()

        threading.Thread(target=accept, daemon=True).start()
        yield listener.getsockname()[1]
        listener.shutdown(socket.SHUT_RDWR)


@contextmanager
def encrypted(certificate: ssl.SSLContext, connection: socket.socket) -> Iterator[ssl.SSLSocket]:
    with certificate.wrap_socket(connection, server_side=True, do_handshake_on_connect=False) as secured:
        secured.do_handshake()
        yield secured


def exactly(connection: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        if not (more := connection.recv(size - len(data))):
            raise ConnectionResetError
        data += more
    return data


def startup(connection: socket.socket) -> tuple[int, bytes]:
    """The first message: its code and its whole."""
    length = exactly(connection, 4)
    body = exactly(connection, int.from_bytes(length, "big") - 4)
    return int.from_bytes(body[:4], "big"), length + body


@dataclass
class Thief:
    """Refuses TLS or takes any, asks for a password in its way, and keeps what it is told."""

    asks: str
    certificate: ssl.SSLContext | None = None
    stop: bool = False
    """Hang up after the first answer."""
    began: int = 0
    answers: list[bytes] = field(default_factory=list)

    def __call__(self, connection: socket.socket) -> None:
        with ExitStack() as secured:
            self._serve(connection, secured)

    def _serve(self, connection: socket.socket, secured: ExitStack) -> None:
        code, _ = startup(connection)
        while code in (SSL_REQUEST, GSS_REQUEST):
            self.began += 1
            if code == SSL_REQUEST and self.certificate:
                connection.sendall(b"S")
                connection = secured.enter_context(encrypted(self.certificate, connection))
            else:
                connection.sendall(b"N")
            code, _ = startup(connection)
        self.began += 1
        connection.sendall(ASKS[self.asks])
        if self.asks == "nothing":  # ready for a query, as after a log-in
            connection.sendall(b"Z" + (5).to_bytes(4, "big") + b"I")
        while data := connection.recv(65536):
            self.answers.append(data)
            if self.stop:
                return


@dataclass
class Gateway:
    """TLS in front of a real server, as a proxy of a cloud provider makes it."""

    port: int
    certificate: ssl.SSLContext
    encrypted: int = 0

    def __call__(self, connection: socket.socket) -> None:
        with ExitStack() as secured:
            self._serve(connection, secured)

    def _serve(self, connection: socket.socket, secured: ExitStack) -> None:
        code, whole = startup(connection)
        if code == SSL_REQUEST:
            connection.sendall(b"S")
            connection = secured.enter_context(encrypted(self.certificate, connection))
            code, whole = startup(connection)
            self.encrypted += 1
        with socket.create_connection(("127.0.0.1", self.port)) as server:
            server.sendall(whole)
            back = threading.Thread(target=pump, args=[server, connection], daemon=True)
            back.start()
            pump(connection, server)
            back.join(10)


def pump(source: socket.socket, target: socket.socket) -> None:
    with suppress(OSError):
        while data := source.recv(65536):
            target.sendall(data)
    with suppress(OSError):
        target.shutdown(socket.SHUT_WR)


@dataclass
class Authority:
    """A certificate authority; `file` is its certificate."""

    file: Path
    key: ec.EllipticCurvePrivateKey
    certificate: x509.Certificate

    @classmethod
    def make(cls, folder: Path, name: str) -> Authority:
        key = ec.generate_private_key(ec.SECP256R1())
        subject = _name(name)
        certificate = (
            _builder(subject, subject, key)
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
            .add_extension(_SIGNS, critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .sign(key, hashes.SHA256())
        )
        file = folder / f"{name}.pem"
        file.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        return cls(file, key, certificate)

    def server(self, host: str, *, expired: bool = False) -> ssl.SSLContext:
        """What a server of this name presents itself with."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.issued(host, expired=expired))
        return context

    def issued(self, host: str, *, expired: bool = False) -> Path:
        """A file with a key and a certificate of this name: an address, a host, or a URI."""
        key = ec.generate_private_key(ec.SECP256R1())
        name: x509.GeneralName
        try:
            name = x509.IPAddress(ipaddress.ip_address(host))
        except ValueError:
            name = x509.UniformResourceIdentifier(host) if "://" in host else x509.DNSName(host)
        certificate = (
            _builder(_name(host), self.certificate.subject, key, days=-0.5 if expired else 2)
            .add_extension(x509.SubjectAlternativeName([name]), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key()), critical=False)
            .sign(self.key, hashes.SHA256())
        )
        file = self.file.with_name(f"server-{os.urandom(4).hex()}.pem")
        file.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
            + certificate.public_bytes(serialization.Encoding.PEM)
        )
        return file


_SIGNS = x509.KeyUsage(
    digital_signature=False,
    content_commitment=False,
    key_encipherment=False,
    data_encipherment=False,
    key_agreement=False,
    key_cert_sign=True,
    crl_sign=True,
    encipher_only=False,
    decipher_only=False,
)


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey, *, days: float = 2
) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=days))
    )
