"""Keys that come from elsewhere, brought into Vault's transit engine so that they can be used and never read.

What is sent is wrapped for Vault alone: the key by an AES-256 key that is made for it (AES-KWP, RFC 5649), and that by
Vault's own public wrapping key (RSA-OAEP with SHA-256; Vault API, `POST /transit/keys/:name/import`).
"""

from __future__ import annotations

import base64
import json
import re
import secrets
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from orchestrator.errors import ProvisionError, UsageError
from orchestrator.provision.vault.admin import VaultAdmin

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes

KeyUse = Literal["aws", "hmac", "signature"]
"""What a key is for: the secret access key of a user of AWS, any other shared secret, or a private key that signs."""

LONGEST_INPUT = 64 * 1024
"""Characters of what is imported."""

_AWS_SECRET = re.compile(r"[A-Za-z0-9/+=]{16,128}")
_SHORTEST_SECRET = 16
_CURVES = {"secp256r1": "ecdsa-p256", "secp384r1": "ecdsa-p384", "secp521r1": "ecdsa-p521"}


@dataclass(frozen=True, slots=True)
class Material:
    """What is imported, as Vault takes it. `public` is the public part, where there is one, as DER."""

    type: str
    content: bytes = field(repr=False)
    public: bytes | None = field(default=None, repr=False)


def material(text: str, use: KeyUse) -> Material:
    """What is to be imported of a text: a secret, a private key in PEM, or the JSON of a service account's key.

    Raises UsageError, which never has a part of the text.
    """
    if use == "signature":
        return _private_key(text)
    secret = text.strip("\r\n")
    if use == "aws":
        if not _AWS_SECRET.fullmatch(secret):
            raise UsageError(
                "that is no secret access key of AWS", hint="40 letters, digits, `/` and `+`, and nothing around them"
            )
        return Material("hmac", f"AWS4{secret}".encode())
    if len(secret.encode()) < _SHORTEST_SECRET:
        raise UsageError(f"the secret has less than {_SHORTEST_SECRET} bytes")
    return Material("hmac", secret.encode())


def wrapped(content: bytes, wrapping_key: str) -> str:
    """A key, wrapped for the holder of this public key (PEM) alone. Raises ProvisionError where it is none of RSA."""
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import padding, rsa
    from cryptography.hazmat.primitives.keywrap import aes_key_wrap_with_padding

    try:
        public = serialization.load_pem_public_key(wrapping_key.encode())
    except ValueError:
        public = None
    if not isinstance(public, rsa.RSAPublicKey) or public.key_size < 2048:
        raise ProvisionError("Vault's wrapping key is not an RSA key of 2048 bits or more")
    for_once = secrets.token_bytes(32)
    oaep = padding.OAEP(padding.MGF1(hashes.SHA256()), hashes.SHA256(), None)
    return base64.b64encode(public.encrypt(for_once, oaep) + aes_key_wrap_with_padding(for_once, content)).decode()


def import_key(admin: VaultAdmin, mount: str, name: str, key: Material, *, rotate: bool) -> int:
    """Bring a key into Vault, and return its version there.

    With `rotate` it becomes the newest version of a key that was imported before. Raises UsageError where there is one
    already, ProvisionError where Vault does not take it.
    """
    path = f"{mount}/keys/{name}"
    before = admin.read(path)
    if before is not None and not rotate:
        raise UsageError(
            f"there is a key `{name}` already",
            hint="--rotate makes what you have its newest version; the older ones stay",
        )
    if before is not None and before.get("type") != key.type:
        raise UsageError(f"the key `{name}` is of the type {before.get('type')}, and that is {key.type}")
    wrapping_key = str((admin.read(f"{mount}/wrapping_key") or {}).get("public_key", ""))
    sent: dict[str, Any] = {"ciphertext": wrapped(key.content, wrapping_key), "hash_function": "SHA256"}
    if before is None:
        kept_in: dict[str, Any] = {"type": key.type, "exportable": False, "allow_plaintext_backup": False}
        admin.write(f"{path}/import", sent | kept_in)
    else:
        admin.write(f"{path}/import_version", sent)
    after = admin.read(path) or {}
    version = int(after.get("latest_version", 0))
    if version != int((before or {}).get("latest_version", 0)) + 1 or not _is_its_own(after, version, key):
        raise ProvisionError(f"Vault's key `{name}` is not the one that was sent", hint="did somebody else write it?")
    return version


def _is_its_own(data: dict[str, Any], version: int, key: Material) -> bool:
    """Whether the public part in Vault is that of the key, where it has one."""
    if key.public is None:
        return True
    shown = str(data.get("keys", {}).get(str(version), {}).get("public_key", ""))
    lines = [line for line in shown.splitlines() if line and not line.startswith("-----")]
    found = base64.b64decode("".join(lines))
    return found == key.public or (len(found) == 32 and key.public.endswith(found))


def _private_key(text: str) -> Material:
    from cryptography.hazmat.primitives import serialization

    private = _loaded(_pem_of(text))
    pkcs8 = private.private_bytes(
        serialization.Encoding.DER, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    public = private.public_key().public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return Material(_type_of(private), pkcs8, public)


def _pem_of(text: str) -> str:
    """The private key in the JSON of a service account, or the text itself."""
    if not text.lstrip().startswith("{"):
        return text
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        found = None
    pem = found.get("private_key") if isinstance(found, dict) else None
    if not isinstance(pem, str):
        raise UsageError("there is no `private_key` in that JSON")
    return pem


def _loaded(pem: str) -> PrivateKeyTypes:
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives import serialization

    try:
        return serialization.load_pem_private_key(pem.encode(), password=None)
    except TypeError:
        problem = "that private key is encrypted"
    except (ValueError, UnsupportedAlgorithm):
        problem = "that is no private key in PEM"
    raise UsageError(problem, hint="such as `-----BEGIN PRIVATE KEY-----`, without a passphrase")


def _type_of(key: PrivateKeyTypes) -> str:
    """The type by which the transit engine knows it."""
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

    if isinstance(key, rsa.RSAPrivateKey) and key.key_size in (2048, 3072, 4096):
        return f"rsa-{key.key_size}"
    if isinstance(key, ec.EllipticCurvePrivateKey) and key.curve.name in _CURVES:
        return _CURVES[key.curve.name]
    if isinstance(key, ed25519.Ed25519PrivateKey):
        return "ed25519"
    raise UsageError(
        "the transit engine takes no private key of that kind",
        hint="RSA of 2048, 3072 or 4096 bits, EC on P-256, P-384 or P-521, or Ed25519",
    )
