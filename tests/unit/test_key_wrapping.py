"""What may be imported into the transit engine, and how it is wrapped: unwrapped here as its holder does it."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import dsa, ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.keywrap import aes_key_unwrap_with_padding

from orchestrator.errors import ProvisionError, UsageError
from orchestrator.provision.vault.key_import import Material, material, wrapped

RSA = rsa.generate_private_key(65537, 2048)


def pem(key: Any, form: serialization.PrivateFormat = serialization.PrivateFormat.PKCS8, password: bytes = b"") -> str:
    cipher = serialization.BestAvailableEncryption(password) if password else serialization.NoEncryption()
    return str(key.private_bytes(serialization.Encoding.PEM, form, cipher).decode())


def public_pem(key: Any) -> str:
    form = serialization.PublicFormat.SubjectPublicKeyInfo
    return str(key.public_key().public_bytes(serialization.Encoding.PEM, form).decode())


def unwrapped(text: str) -> bytes:
    data = base64.b64decode(text)
    oaep = padding.OAEP(padding.MGF1(hashes.SHA256()), hashes.SHA256(), None)
    return aes_key_unwrap_with_padding(RSA.decrypt(data[:256], oaep), data[256:])


@pytest.mark.parametrize("length", [16, 17, 44, 1218])
def test_what_is_wrapped_is_for_the_holder_of_the_key_alone(length: int) -> None:
    content = bytes(range(256)) * 5
    once, again = (wrapped(content[:length], public_pem(RSA)) for _ in range(2))
    assert unwrapped(once) == unwrapped(again) == content[:length]
    assert once != again
    assert content[:16] not in base64.b64decode(once)


@pytest.mark.parametrize("key", ["", "no key", public_pem(ec.generate_private_key(ec.SECP256R1()))])
def test_nothing_is_wrapped_for_what_is_no_rsa_key(key: str) -> None:
    with pytest.raises(ProvisionError, match="wrapping key"):
        wrapped(b"x" * 32, key)


def test_a_secret_access_key_is_the_beginning_of_a_signature() -> None:
    secret = "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY"
    assert material(secret + "\n", "aws") == Material("hmac", b"AWS4" + secret.encode())
    assert material(secret, "hmac") == Material("hmac", secret.encode())


KINDS: dict[str, Any] = {
    "rsa-2048": RSA,
    "ecdsa-p256": ec.generate_private_key(ec.SECP256R1()),
    "ecdsa-p384": ec.generate_private_key(ec.SECP384R1()),
    "ed25519": ed25519.Ed25519PrivateKey.generate(),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_private_key_is_told_by_its_kind(kind: str) -> None:
    found = material(pem(KINDS[kind]), "signature")
    assert found.type == kind
    assert serialization.load_der_private_key(found.content, None)


def test_a_private_key_may_come_as_it_is_handed_out() -> None:
    traditional = serialization.PrivateFormat.TraditionalOpenSSL
    account = json.dumps({"type": "service_account", "client_email": "a@b", "private_key": pem(RSA)})
    found = [material(text, "signature") for text in (pem(RSA), pem(RSA, traditional), account)]
    assert found[0] == found[1] == found[2]


WRONG = {
    "an access key id": ("AKIA QQQ", "aws"),
    "nothing": ("", "aws"),
    "two lines": ("a" * 40 + "\n" + "b" * 40, "aws"),
    "quoted": (f'"{"a" * 40}"', "aws"),
    "too short": ("short", "hmac"),
    "no PEM": ("secret-of-somebody", "signature"),
    "a public key": (public_pem(RSA), "signature"),
    "a passphrase": (pem(RSA, password=b"secret-of-somebody"), "signature"),
    "another kind": (pem(dsa.generate_private_key(2048)), "signature"),
    "an RSA key of 1024 bits": (pem(rsa.generate_private_key(65537, 1024)), "signature"),
    "JSON without a key": ('{"private_key_id": "secret-of-somebody"}', "signature"),
    "no JSON": ('{"secret-of-somebody"', "signature"),
    "deep JSON": ('{"a":' * 5000, "signature"),
}


@pytest.mark.parametrize(("text", "use"), WRONG.values(), ids=list(WRONG))
def test_what_is_no_such_key_is_refused_and_never_shown(text: str, use: Any) -> None:
    with pytest.raises(UsageError) as caught:
        material(text, use)
    assert "somebody" not in str(caught.value)
    assert "aaaa" not in str(caught.value)


def test_a_key_is_not_shown() -> None:
    assert "wJal" not in repr(material("wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY", "aws"))
