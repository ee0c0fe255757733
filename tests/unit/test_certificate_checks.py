"""A signed certificate is what was asked for, or it is refused: every way in which it may say something else."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from typing import Any

import pytest
from authority import Authority, authority
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    SSHCertificateBuilder,
    SSHCertificateType,
    load_ssh_public_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from orchestrator.credentials.issuers.certificate import ssh
from orchestrator.credentials.issuers.certificate import x509 as tls
from orchestrator.credentials.issuers.certificate.checked import Checked, Prepared

SAID: dict[str, Any] = {
    "form": "x509",
    "common_name": "a.example",
    "names": ["a.example", "b.example"],
    "uris": ["spiffe://x/y"],
    "usage": ["client"],
    "key": "ecdsa-p256",
}
_USAGE = {
    "digital_signature": True,
    "content_commitment": False,
    "key_encipherment": False,
    "data_encipherment": False,
    "key_agreement": False,
    "key_cert_sign": False,
    "crl_sign": False,
    "encipher_only": False,
    "decipher_only": False,
}
NOW = datetime.now(UTC).replace(microsecond=0)


@pytest.fixture(scope="module")
def ca(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return authority(tmp_path_factory.mktemp("authority"))


def signed(ca: Authority, made: Prepared, **changes: Any) -> Checked:
    """What the check says of a certificate for the request, with these deviations."""
    request = x509.load_pem_x509_csr(made.wish["csr"].encode())
    subject = changes.get("subject", [(NameOID.COMMON_NAME, "a.example")])
    names = changes.get(
        "names",
        [x509.DNSName("a.example"), x509.DNSName("b.example"), x509.UniformResourceIdentifier("spiffe://x/y")],
    )
    builder = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(oid, value) for oid, value in subject]))
        .issuer_name(ca.certificate.subject)
        .public_key(changes.get("key", request.public_key()))
        .serial_number(0x0E2C)
        .not_valid_before(NOW)
        .not_valid_after(NOW + timedelta(seconds=60))
    )
    usage: dict[str, bool] | None = changes.get("usage", {})
    usages = changes.get("usages", [ExtendedKeyUsageOID.CLIENT_AUTH])
    for extension, critical in (
        (x509.SubjectAlternativeName(names) if names else None, False),
        (x509.BasicConstraints(changes.get("is_authority", False), None), True),
        (None if usage is None else x509.KeyUsage(**{**_USAGE, **usage}), True),
        (x509.ExtendedKeyUsage(usages) if usages else None, False),
    ):
        if extension is not None:
            builder = builder.add_extension(extension, critical=critical)
    certificate = builder.sign(changes.get("signer", ca.key), SHA256())
    above = changes.get("above", ca.certificate)
    chain = [above.public_bytes(Encoding.PEM).decode()] if above else []
    return made.check(certificate.public_bytes(Encoding.PEM).decode(), chain)


def test_one_that_says_what_was_asked_for_is_taken(ca: Authority) -> None:
    made = tls.prepare(SAID, 60)
    found = signed(ca, made)
    assert found.unfit is None
    assert (found.subject, found.not_before, found.not_after) == ("0e:2c", NOW, NOW + timedelta(seconds=60))
    assert set(found.fields) == {"certificate", "ca", "serial"}
    assert made.key.reveal().startswith("-----BEGIN PRIVATE KEY-----")


def test_what_an_admin_has_the_role_add_of_an_organisation_is_taken(ca: Authority) -> None:
    subject = [(NameOID.ORGANIZATION_NAME, "Orders"), (NameOID.COMMON_NAME, "a.example")]
    assert signed(ca, tls.prepare(SAID, 60), subject=subject).unfit is None


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"key": ec.generate_private_key(ec.SECP256R1()).public_key()}, "another key"),
        ({"signer": ec.generate_private_key(ec.SECP256R1())}, "not signed by"),
        ({"above": None}, "not signed by"),
        ({"subject": [(NameOID.COMMON_NAME, "b.example")]}, "common name"),
        ({"subject": []}, "common name"),
        ({"subject": [(NameOID.COMMON_NAME, "a.example"), (NameOID.COMMON_NAME, "root")]}, "common name"),
        ({"subject": [(NameOID.COMMON_NAME, "a.example"), (NameOID.EMAIL_ADDRESS, "root@a.example")]}, "subject"),
        ({"subject": [(NameOID.COMMON_NAME, "a.example"), (NameOID.USER_ID, "root")]}, "subject"),
        ({"names": []}, "names"),
        ({"names": [x509.DNSName("a.example"), x509.DNSName("b.example")]}, "names"),
        *(
            (
                {
                    "names": [
                        x509.DNSName("a.example"),
                        x509.DNSName("b.example"),
                        x509.UniformResourceIdentifier("spiffe://x/y"),
                        more,
                    ]
                },
                "names",
            )
            for more in (
                x509.DNSName("c.example"),
                x509.DNSName("*.example"),
                x509.UniformResourceIdentifier("spiffe://x/z"),
                x509.IPAddress(ip_address("127.0.0.1")),
                x509.RFC822Name("root@a.example"),
            )
        ),
        ({"is_authority": True}, "sign certificates"),
        ({"usage": {"key_cert_sign": True}}, "sign certificates"),
        ({"usage": {"crl_sign": True}}, "sign certificates"),
        ({"usage": None}, "sign certificates"),
        ({"usages": []}, "usage"),
        ({"usages": [ExtendedKeyUsageOID.SERVER_AUTH]}, "usage"),
        ({"usages": [ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH]}, "usage"),
        ({"usages": [ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE]}, "usage"),
    ],
)
def test_one_that_says_anything_else_is_refused(ca: Authority, changes: dict[str, Any], why: str) -> None:
    found = signed(ca, tls.prepare(SAID, 60), **changes)
    assert found.unfit is not None
    assert why in found.unfit.what
    assert found.subject == "0e:2c", "it is known by its number, to be revoked"


@pytest.mark.parametrize("pem", ["", "nonsense", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----"])
def test_what_is_no_certificate_is_refused(pem: str) -> None:
    for made in (tls.prepare(SAID, 60), ssh.prepare(OF_SSH, 60)):
        assert made.check(pem, []).unfit is not None


OF_SSH: dict[str, Any] = {"form": "ssh", "principals": ["deploy", "ops"], "extensions": ["permit-pty"]}


def ssh_signed(
    made: Prepared, change: Callable[[SSHCertificateBuilder], SSHCertificateBuilder], **more: Any
) -> Checked:
    public: Any = more.get("key") or load_ssh_public_key(made.wish["public_key"].encode())
    builder = (
        SSHCertificateBuilder()
        .public_key(public)
        .serial(7)
        .type(more.get("type", SSHCertificateType.USER))
        .key_id(b"step")
        .valid_after(int(NOW.timestamp()))
        .valid_before(int(NOW.timestamp()) + 60)
    )
    if more.get("principals", True) is True:
        builder = builder.valid_principals([b"deploy", b"ops"])
    elif more["principals"] is None:
        builder = builder.valid_for_all_principals()
    else:
        builder = builder.valid_principals(more["principals"])
    certificate = change(builder).sign(ed25519.Ed25519PrivateKey.generate())
    return made.check(certificate.public_bytes().decode(), [])


def with_pty(builder: SSHCertificateBuilder) -> SSHCertificateBuilder:
    return builder.add_extension(b"permit-pty", b"")


def test_an_ssh_certificate_that_says_what_was_asked_for_is_taken() -> None:
    made = ssh.prepare(OF_SSH, 60)
    found = ssh_signed(made, with_pty)
    assert found.unfit is None
    assert (found.subject, found.not_after) == ("serial 7", NOW + timedelta(seconds=60))
    assert set(found.fields) == {"certificate", "public_key"}
    limited = ssh_signed(made, lambda builder: with_pty(builder).add_critical_option(b"source-address", b"10.0.0.0/8"))
    assert limited.unfit is None, "a role may limit it further"


@pytest.mark.parametrize(
    ("change", "more", "why"),
    [
        (lambda builder: builder, {}, "extensions"),
        (lambda builder: with_pty(builder).add_extension(b"permit-x", b""), {}, "extensions"),
        (with_pty, {"principals": [b"deploy"]}, "principals"),
        (with_pty, {"principals": [b"deploy", b"ops", b"root"]}, "principals"),
        (with_pty, {"principals": None}, "principals"),
        (with_pty, {"type": SSHCertificateType.HOST}, "not one of a user"),
        (with_pty, {"key": ed25519.Ed25519PrivateKey.generate().public_key()}, "another key"),
    ],
)
def test_an_ssh_certificate_that_says_anything_else_is_refused(change: Any, more: dict[str, Any], why: str) -> None:
    found = ssh_signed(ssh.prepare(OF_SSH, 60), change, **more)
    assert found.unfit is not None
    assert why in found.unfit.what


def test_a_public_key_alone_is_no_certificate() -> None:
    made = ssh.prepare(OF_SSH, 60)
    assert made.check(made.wish["public_key"], []).unfit is not None


def test_every_lease_has_a_key_of_its_own() -> None:
    keys = {
        prepare(said, 60).key.reveal()
        for _ in range(5)
        for prepare, said in ((tls.prepare, SAID), (ssh.prepare, OF_SSH))
    }
    assert len(keys) == 10
