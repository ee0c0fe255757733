"""X.509: a key, the request for it (PKCS #10), and whether what was signed is what was asked for (RFC 5280)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from orchestrator.credentials.issuers.certificate.checked import Checked, Prepared, Unfit, differs, unreadable
from orchestrator.grants.certificate import sent
from orchestrator.secret import Secret

_USAGES = {"client": ExtendedKeyUsageOID.CLIENT_AUTH, "server": ExtendedKeyUsageOID.SERVER_AUTH}
_OF_THE_ROLE = frozenset(
    {
        NameOID.ORGANIZATION_NAME,
        NameOID.ORGANIZATIONAL_UNIT_NAME,
        NameOID.COUNTRY_NAME,
        NameOID.STATE_OR_PROVINCE_NAME,
        NameOID.LOCALITY_NAME,
        NameOID.STREET_ADDRESS,
        NameOID.POSTAL_CODE,
    }
)
"""What an admin may have the role add to the subject: it says of whom the name is."""

_Key = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey


def prepare(said: Mapping[str, Any], seconds: int) -> Prepared:
    """A new key, and what `sign` is asked with. Takes a moment for RSA: not for an event loop."""
    key = new_key(said["key"])
    request = x509.CertificateSigningRequestBuilder().subject_name(_subject(said))
    if names := _alternative_names(said):
        request = request.add_extension(x509.SubjectAlternativeName(names), critical=False)
    wish = {
        **sent(said),
        "csr": request.sign(key, SHA256()).public_bytes(Encoding.PEM).decode(),
        "ttl": f"{seconds}s",
    }
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
    ends = datetime.now(UTC) + timedelta(seconds=seconds)
    return Prepared(Secret(pem), wish, partial(_check, said, key, ends))


def new_key(kind: str) -> _Key:
    """A key of this kind, from the system's source of randomness."""
    if kind == "ecdsa-p256":
        return ec.generate_private_key(ec.SECP256R1())
    return rsa.generate_private_key(65537, int(kind.removeprefix("rsa-")))


def _subject(said: Mapping[str, Any]) -> x509.Name:
    common_name = said.get("common_name")
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)] if common_name else [])


def _alternative_names(said: Mapping[str, Any]) -> list[x509.GeneralName]:
    return [
        *(x509.DNSName(name) for name in said.get("names", ())),
        *(x509.UniformResourceIdentifier(uri) for uri in said.get("uris", ())),
    ]


def _check(said: Mapping[str, Any], key: _Key, ends: datetime, pem: str, chain: Sequence[str]) -> Checked:
    """What was signed. `chain` begins with the certificate of whoever signed."""
    try:
        leaf = x509.load_pem_x509_certificate(pem.encode())
        above = [x509.load_pem_x509_certificate(each.encode()) for each in chain]
        unfit = _unfit(leaf, above, said, key)
        serial = leaf.serial_number.to_bytes((leaf.serial_number.bit_length() + 7) // 8 or 1, "big").hex(":")
        intermediates = [each for each in above if each.subject != each.issuer]
        fields = {
            "certificate": _pem([leaf, *intermediates]),
            "ca": _pem(above),
            "serial": serial,
        }
        return Checked(fields, serial, leaf.not_valid_after_utc, unfit, leaf.not_valid_before_utc)
    except (ValueError, TypeError, UnsupportedAlgorithm, x509.DuplicateExtension):
        return unreadable(ends)


def _unfit(
    leaf: x509.Certificate, above: Sequence[x509.Certificate], said: Mapping[str, Any], key: _Key
) -> Unfit | None:
    spki = (Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    if leaf.public_key().public_bytes(*spki) != key.public_key().public_bytes(*spki):
        return Unfit("it is for another key", "whoever answered for Vault did not sign the request")
    if not above or not _is_signed_by(leaf, above[0]):
        return Unfit("it is not signed by the authority that the answer names", "whoever answered is not the engine")
    return _unfit_subject(leaf, said) or _unfit_names(leaf, said) or _unfit_use(leaf, said)


def _is_signed_by(leaf: x509.Certificate, authority: x509.Certificate) -> bool:
    try:
        leaf.verify_directly_issued_by(authority)
    except (InvalidSignature, ValueError, TypeError):
        return False
    return True


def _unfit_subject(leaf: x509.Certificate, said: Mapping[str, Any]) -> Unfit | None:
    asked = [said["common_name"]] if "common_name" in said else []
    found = [str(each.value) for each in leaf.subject if each.oid == NameOID.COMMON_NAME]
    if found != asked:
        return differs("common name", found=found, asked=asked)
    others = [each.oid for each in leaf.subject if each.oid != NameOID.COMMON_NAME and each.oid not in _OF_THE_ROLE]
    return differs("subject", found=leaf.subject.rfc4514_string(), asked=asked) if others else None


def _unfit_names(leaf: x509.Certificate, said: Mapping[str, Any]) -> Unfit | None:
    """Every name of every kind, not only those of the kinds that can be asked for."""
    asked = {repr(each) for each in _alternative_names(said)}
    found = {repr(each) for each in _extension(leaf, x509.SubjectAlternativeName) or ()}
    return None if found == asked else differs("names", found=sorted(found), asked=sorted(asked))


def _unfit_use(leaf: x509.Certificate, said: Mapping[str, Any]) -> Unfit | None:
    basic = _extension(leaf, x509.BasicConstraints)
    usage = _extension(leaf, x509.KeyUsage)
    if (basic is not None and basic.ca) or usage is None or usage.key_cert_sign or usage.crl_sign:
        return Unfit(
            "it could sign certificates itself, or does not say that it may not", "see `key_usage` of the role"
        )
    wanted = {_USAGES[each].dotted_string for each in said["usage"]}
    found = {each.dotted_string for each in _extension(leaf, x509.ExtendedKeyUsage) or ()}
    return None if found == wanted else differs("usage", found=sorted(found), asked=sorted(wanted))


def _extension(leaf: x509.Certificate, kind: type[Any]) -> Any:
    try:
        return leaf.extensions.get_extension_for_class(kind).value
    except x509.ExtensionNotFound:
        return None


def _pem(certificates: Sequence[x509.Certificate]) -> str:
    return "".join(each.public_bytes(Encoding.PEM).decode() for each in certificates)
