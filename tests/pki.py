"""A certificate authority in the pki engine of a test's Vault, at a mount of its own."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import hvac
from cryptography import x509


@dataclass(frozen=True)
class Pki:
    """What Vault itself says of its certificates."""

    vault: hvac.Client
    mount: str
    ca: str

    def role(self, name: str, **changes: Any) -> None:
        wanted = {
            "allowed_domains": ["orders.example"],
            "allow_subdomains": True,
            "generate_lease": True,
            "max_ttl": "1h",
            "key_type": "any",
            "client_flag": True,
            "server_flag": False,
            "key_usage": ["DigitalSignature"],
        }
        self.vault.write_data(f"{self.mount}/roles/{name}", data={**wanted, **changes})

    def serials(self) -> list[str]:
        """Of everything that was ever issued, but to the authority itself and to servers of tests."""
        listed = self.vault.list(f"{self.mount}/certs")["data"]["keys"]
        names = {each: self.certificate(each).subject.rfc4514_string() for each in listed}
        return [each for each, name in names.items() if name not in ("CN=Test CA", "CN=localhost")]

    def revoked(self) -> list[str]:
        """What is revoked, by Vault's own list."""
        listed = self.vault.list(f"{self.mount}/certs/revoked")
        return listed["data"]["keys"] if listed else []

    def revocation_time(self, serial: str) -> int:
        found: int = self.vault.read(f"{self.mount}/cert/{serial}")["data"]["revocation_time"]
        return found

    def certificate(self, serial: str) -> x509.Certificate:
        return x509.load_pem_x509_certificate(
            self.vault.read(f"{self.mount}/cert/{serial}")["data"]["certificate"].encode()
        )

    def crl(self) -> x509.CertificateRevocationList:
        return x509.load_pem_x509_crl(self.vault.read(f"{self.mount}/cert/crl")["data"]["certificate"].encode())

    def leases(self) -> list[str]:
        found, folders = [], [f"sys/leases/lookup/{self.mount}"]
        while folders:
            folder = folders.pop()
            for key in (self.vault.list(folder) or {"data": {"keys": []}})["data"]["keys"]:
                (folders if key.endswith("/") else found).append(f"{folder}/{key}".rstrip("/"))
        return found


@contextmanager
def pki_of(vault: hvac.Client, **authority: Any) -> Iterator[Pki]:
    """Mounted, with a new authority whose key never leaves Vault; unmounted at the end."""
    mount = f"pki-{os.urandom(3).hex()}"
    vault.sys.enable_secrets_engine("pki", path=mount, config={"max_lease_ttl": "87600h"})
    wanted = {"common_name": "Test CA", "ttl": "8760h", "key_type": "ec", "key_bits": 256, **authority}
    made = vault.write_data(f"{mount}/root/generate/internal", data=wanted)
    try:
        yield Pki(vault, mount, made["data"]["certificate"])
    finally:
        vault.sys.disable_secrets_engine(mount)
