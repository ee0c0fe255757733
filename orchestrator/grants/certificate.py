"""Certificates for keys that are made for one lease: X.509 for TLS, or SSH. All that they say is declared."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, model_validator

from orchestrator.grants.fields import LeasedGrant, VaultPath
from orchestrator.jsontypes import JsonObject

Usage = Literal["client", "server"]
"""What a certificate may be used for (extended key usage, RFC 5280, 4.2.1.12)."""

KeyType = Literal["ecdsa-p256", "rsa-2048", "rsa-3072"]

CERTIFICATE_ROLE = r"^[A-Za-z0-9_][\w.-]{0,127}$"
"""The name of a role in Vault's pki and ssh engines."""

LABEL = r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?"
_NAME = re.compile(rf"{LABEL}(?:\.{LABEL})*")
_COMMON_NAME = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9 ._@-]{0,62}[A-Za-z0-9_])?")
_URI = re.compile(r"[!-+\--~]{1,2048}")
_PRINCIPAL = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._@-]{0,63}")


def _common_name(value: str) -> str:
    if not _COMMON_NAME.fullmatch(value):
        raise ValueError("a common name is up to 64 letters, digits, spaces and any of `._@-`")
    return value


def _name(value: str) -> str:
    if len(value) > 253 or not _NAME.fullmatch(value):
        raise ValueError("a name is a host name in small letters, without `*` (of other scripts: xn--...)")
    return value


def _uri(value: str) -> str:
    if not _URI.fullmatch(value) or not urlsplit(value).scheme:
        raise ValueError("a URI is absolute, of ASCII without white space and commas, such as spiffe://orders/client")
    return value


def _principal(value: str) -> str:
    if not _PRINCIPAL.fullmatch(value):
        raise ValueError("a principal is up to 64 letters, digits and any of `._@-`")
    return value


_CHECKS = {"common_name": _common_name, "names": _name, "uris": _uri, "principals": _principal}
"""Of each member that may be bound when it is issued: what one value must be."""


def _declared(member: str) -> AfterValidator:
    return AfterValidator(lambda value: value if "${{" in value else _CHECKS[member](value))


_Names = Annotated[list[Annotated[str, _declared("names")]], Field(max_length=50)]
_Uris = Annotated[list[Annotated[str, _declared("uris")]], Field(max_length=50)]
_Principals = Annotated[list[Annotated[str, _declared("principals")]], Field(max_length=50)]
_OF_TLS = ("common_name", "names", "uris", "usage", "key")
_OF_SSH = ("principals", "extensions")


class CertificateGrant(LeasedGrant):
    """A certificate and its key, which is made for this lease and never leaves the orchestrator but for the step.

    With `principals` it is one of SSH, signed by Vault's ssh engine; else X.509, by its pki engine. One that says
    anything but what is declared is refused.
    """

    kind: Literal["certificate"]
    role: Annotated[str, Field(pattern=CERTIFICATE_ROLE)] = Field(
        description="The role that signs it: of `certificates` in declarations.yaml, or one that an admin maintains."
    )
    mount: VaultPath | None = Field(
        default=None, description="Mount path of the engine. Default: `pki`, and for SSH `ssh`."
    )
    common_name: Annotated[str, _declared("common_name")] | None = Field(
        default=None, description="The subject. May hold `${{ }}` expressions, as `names`, `uris` and `principals` may."
    )
    names: _Names = Field(default_factory=list, description="DNS names: exactly these, the common name is not added.")
    uris: _Uris = Field(default_factory=list, description="URIs, such as a SPIFFE id.")
    usage: Annotated[list[Usage], Field(min_length=1, max_length=2)] = Field(
        default=["client"], description="What it may be used for in TLS: `client`, `server` or both."
    )
    key: KeyType = Field(default="ecdsa-p256", description="The kind of key. Of SSH it is always ed25519.")
    principals: _Principals = Field(default_factory=list, description="Users that may be logged in as by SSH.")
    extensions: list[Annotated[str, Field(pattern=r"^[a-z][a-z0-9@.-]{0,63}$")]] = Field(
        default_factory=list, description="What a session of SSH may do, such as `permit-pty`; nothing else."
    )

    @model_validator(mode="after")
    def _of_one_kind(self) -> Self:
        if self.is_ssh:
            if given := sorted(self.model_fields_set & set(_OF_TLS)):
                raise ValueError(f"these belong to X.509, not to `principals`: `{'`, `'.join(given)}`")
            if self.on_expiry != "fail":
                raise ValueError("one of SSH has no lease that could be watched: leave `on_expiry` out, raise `ttl`")
        elif self.extensions:
            raise ValueError("`extensions` belong to `principals`, so to SSH")
        elif self.common_name is None and not self.names and not self.uris:
            raise ValueError("a certificate says who it is for: `common_name`, `names` or `uris`; for SSH `principals`")
        return self

    @property
    def is_ssh(self) -> bool:
        """Whether it is one of SSH."""
        return bool(self.principals)

    @property
    def signed_at(self) -> str:
        """The path in Vault that signs it."""
        return f"{self.mount or ('ssh' if self.is_ssh else 'pki')}/sign/{self.role}"

    def says(self) -> JsonObject:
        """What it is to say, for policies and the record; in a plan, as far as it is known."""
        if self.is_ssh:
            return {"form": "ssh", "principals": _set(self.principals), "extensions": _set(self.extensions)}
        return {
            "form": "x509",
            "usage": _set(self.usage),
            "key": self.key,
            **({} if self.common_name is None else {"common_name": self.common_name}),
            **({"names": _set(self.names)} if self.names else {}),
            **({"uris": _set(self.uris)} if self.uris else {}),
        }


MADE = {"x509": ("csr", "ttl"), "ssh": ("public_key", "ttl")}
"""What `sign` is sent besides, made for each lease, by the form of the certificate."""


def sent(said: Mapping[str, Any]) -> JsonObject:
    """What `sign` is sent of what a certificate is to say (Vault API, `/pki/sign/:name` and `/ssh/sign/:name`)."""
    if said["form"] == "ssh":
        extensions: JsonObject = dict.fromkeys(said["extensions"], "")
        return {"valid_principals": ",".join(said["principals"]), "cert_type": "user", "extensions": extensions}
    named = {"common_name": said.get("common_name"), "alt_names": said.get("names"), "uri_sans": said.get("uris")}
    texts = {name: value if isinstance(value, str) else ",".join(value) for name, value in named.items() if value}
    return {"format": "pem", "exclude_cn_from_sans": True, **texts}


def checked_certificate(said: Mapping[str, Any]) -> JsonObject:
    """The same with what the expressions gave. Raises ValueError, which names the member that is wrong."""
    found: dict[str, Any] = dict(said)
    for member, check in _CHECKS.items():
        values = found.get(member)
        for value in [] if values is None else values if isinstance(values, list) else [values]:
            if not isinstance(value, str):
                raise ValueError(f"`{member}` is not a text")
            try:
                check(value)
            except ValueError as error:
                raise ValueError(f"`{member}`: {error}") from None
        if isinstance(values, list):
            found[member] = _set(values)
    return found


def _set(values: Iterable[str]) -> list[Any]:
    return sorted(set(values))
