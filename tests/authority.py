"""A certificate authority of a test's own, made in memory, and the TLS servers that have its certificates."""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def _builder(subject: str, issuer: str, key: ec.EllipticCurvePublicKey) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(_name(subject))
        .issuer_name(_name(issuer))
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(minutes=5))
        .not_valid_after(now + timedelta(hours=1))
    )


@dataclass(frozen=True)
class Authority:
    """Signs certificates for servers on this machine. `file` holds its own, in PEM."""

    name: str
    key: ec.EllipticCurvePrivateKey
    certificate: x509.Certificate
    directory: Path

    @property
    def file(self) -> Path:
        return self.directory / f"{self.name}.pem"

    def server(self) -> ssl.SSLContext:
        """What a server of 127.0.0.1 and localhost needs."""
        key = ec.generate_private_key(ec.SECP256R1())
        names = x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1")), x509.DNSName("localhost")])
        made = _builder("localhost", self.name, key.public_key()).add_extension(names, critical=False)
        file = self.directory / f"{self.name}-server.pem"
        signed = made.sign(self.key, hashes.SHA256())
        file.write_bytes(pem_of(key) + signed.public_bytes(serialization.Encoding.PEM))
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(file)
        return context


def pem_of(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def authority(directory: Path, name: str = "test-authority") -> Authority:
    key = ec.generate_private_key(ec.SECP256R1())
    made = _builder(name, name, key.public_key()).add_extension(x509.BasicConstraints(True, None), critical=True)
    found = Authority(name, key, made.sign(key, hashes.SHA256()), directory)
    found.file.write_bytes(found.certificate.public_bytes(serialization.Encoding.PEM))
    return found
