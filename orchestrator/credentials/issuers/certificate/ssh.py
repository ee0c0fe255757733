"""SSH certificates (OpenSSH's PROTOCOL.certkeys): an ed25519 key, and whether what was signed is what was asked for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    SSHCertificate,
    SSHCertificateType,
    load_ssh_public_identity,
)

from orchestrator.credentials.issuers.certificate.checked import Checked, Prepared, Unfit, differs, unreadable
from orchestrator.grants.certificate import sent
from orchestrator.secret import Secret


def prepare(said: Mapping[str, Any], seconds: int) -> Prepared:
    """A new key, and what `sign` is asked with."""
    key = new_key()
    public = key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()
    wish = {**sent(said), "public_key": public, "ttl": f"{seconds}s"}
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()).decode()
    ends = datetime.now(UTC) + timedelta(seconds=seconds)
    return Prepared(Secret(pem), wish, partial(_check, said, public, ends))


def new_key() -> Ed25519PrivateKey:
    """A key from the system's source of randomness."""
    return Ed25519PrivateKey.generate()


def _check(said: Mapping[str, Any], public: str, ends: datetime, signed: str, chain: Sequence[str]) -> Checked:
    try:
        found = load_ssh_public_identity(signed.strip().encode())
        if not isinstance(found, SSHCertificate):
            return unreadable(ends)
        fields = {"certificate": signed.strip() + "\n", "public_key": f"{public}\n"}
        begins, until = (datetime.fromtimestamp(each, UTC) for each in (found.valid_after, found.valid_before))
        return Checked(fields, f"serial {found.serial}", until, _unfit(found, said, public), begins)
    except (ValueError, TypeError, OverflowError, OSError, UnsupportedAlgorithm):
        return unreadable(ends)


def _unfit(found: SSHCertificate, said: Mapping[str, Any], public: str) -> Unfit | None:
    """A role may limit it further (`critical_options`), and add nothing."""
    if found.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode() != public:
        return Unfit("it is for another key", "whoever answered for Vault did not sign the request")
    try:
        found.verify_cert_signature()
    except InvalidSignature:
        return Unfit("its signature is wrong", "whoever answered for Vault is not the engine")
    if found.type is not SSHCertificateType.USER:
        return Unfit("it is not one of a user", "see `allow_host_certificates` of the role")
    principals = sorted(each.decode(errors="replace") for each in found.valid_principals)
    if principals != list(said["principals"]):
        return differs("principals", found=principals, asked=said["principals"])
    extensions = sorted(each.decode(errors="replace") for each in found.extensions)
    if extensions != list(said["extensions"]):
        return differs("extensions", found=extensions, asked=said["extensions"])
    return None
