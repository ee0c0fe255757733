"""Roles of Vault's pki and ssh engines that sign certificates: what an admin declares, and what is installed for it.

The authority itself, with its key, is none of this: who makes it, and who signs it, is an admin's to say.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag

from orchestrator.errors import UsageError
from orchestrator.grants.certificate import CERTIFICATE_ROLE, CertificateGrant, KeyType, Usage
from orchestrator.grants.fields import Duration, VaultPath
from orchestrator.grants.scope import ttl_of
from orchestrator.workflow.models.workflow import Workflow

_KEYS: dict[KeyType, tuple[Literal["ec", "rsa"], int]] = {
    "ecdsa-p256": ("ec", 256),
    "rsa-2048": ("rsa", 2048),
    "rsa-3072": ("rsa", 3072),
}


class _Role(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    max_ttl: Duration = 3600
    """The longest that a certificate may be valid."""


class X509Role(_Role):
    """Signs X.509 certificates for these names, each with a lease that revokes it. Wildcards are never signed."""

    mount: VaultPath = "pki"
    domains: list[str] = Field(default_factory=list)
    """Names, and common names, that it signs as they are."""
    subdomains: bool = False
    """And those below them."""
    uris: list[str] = Field(default_factory=list)
    """URIs that it signs; `*` stands for anything in them."""
    usage: Annotated[list[Usage], Field(min_length=1)] = ["client"]
    key: KeyType = "ecdsa-p256"
    organization: list[str] = Field(default_factory=list)
    """What it adds to the subject."""

    def path(self, name: str) -> str:
        """Where Vault has it."""
        return f"{self.mount}/roles/{name}"

    def payload(self) -> dict[str, Any]:
        """What it is there (Vault API, `POST /pki/roles/:name`)."""
        kind, bits = _KEYS[self.key]
        return {
            "allowed_domains": list(self.domains),
            "allow_bare_domains": True,
            "allow_subdomains": self.subdomains,
            "allow_any_name": False,
            "allow_glob_domains": False,
            "allow_localhost": False,
            "allow_wildcard_certificates": False,
            "allow_ip_sans": False,
            "allow_token_displayname": False,
            "allowed_domains_template": False,
            "allowed_uri_sans": list(self.uris),
            "allowed_uri_sans_template": False,
            "allowed_other_sans": [],
            "allowed_serial_numbers": [],
            "enforce_hostnames": True,
            "require_cn": False,
            "use_csr_common_name": False,
            "use_csr_sans": False,
            "client_flag": "client" in self.usage,
            "server_flag": "server" in self.usage,
            "code_signing_flag": False,
            "email_protection_flag": False,
            "ext_key_usage": [],
            "ext_key_usage_oids": [],
            "key_usage": ["DigitalSignature"],
            "key_type": kind,
            "key_bits": bits,
            "basic_constraints_valid_for_non_ca": True,
            "organization": list(self.organization),
            "ou": [],
            "not_after": "",
            "ttl": self.max_ttl,
            "max_ttl": self.max_ttl,
            "generate_lease": True,
            "no_store": False,
        }


class SshRole(_Role):
    """Signs SSH certificates of users, for these principals and with no other extensions than these."""

    mount: VaultPath = "ssh"
    principals: Annotated[list[str], Field(min_length=1)]
    extensions: list[str] = Field(default_factory=list)

    def path(self, name: str) -> str:
        """Where Vault has it."""
        return f"{self.mount}/roles/{name}"

    def payload(self) -> dict[str, Any]:
        """What it is there (Vault API, `POST /ssh/roles/:name`). The key id, which sshd logs, names the step."""
        return {
            "key_type": "ca",
            "allow_user_certificates": True,
            "allow_host_certificates": False,
            "allowed_users": ",".join(self.principals),
            "allowed_users_template": False,
            "default_user": "",
            "allowed_extensions": ",".join(self.extensions),
            "default_extensions": {},
            "allowed_critical_options": "",
            "default_critical_options": {},
            "allow_user_key_ids": False,
            "key_id_format": "{{token_display_name}}",
            "ttl": self.max_ttl,
            "max_ttl": self.max_ttl,
        }


def _form(value: Any) -> str:
    return "ssh" if isinstance(value, SshRole) or (isinstance(value, dict) and "principals" in value) else "x509"


CertificateRoles = dict[
    Annotated[str, Field(pattern=CERTIFICATE_ROLE)],
    Annotated[Annotated[X509Role, Tag("x509")] | Annotated[SshRole, Tag("ssh")], Discriminator(_form)],
]
"""By name; with `principals` it is one of SSH."""


def check_certificates(workflows: Iterable[Workflow], declared: Mapping[str, X509Role | SshRole]) -> None:
    """Raise UsageError for a grant that the declared role of its name could never give. Roles by hand are not known."""
    for workflow in workflows:
        for step_id, step in workflow.parts.items():
            for name, grant in step.grants.items():
                if not isinstance(grant, CertificateGrant):
                    continue
                role = declared.get(grant.role)
                if role is None or role.path(grant.role) != grant.signed_at.replace("/sign/", "/roles/", 1):
                    continue
                if problem := _misfit(grant, role, ttl_of(grant, step_timeout=step.timeout)):
                    where = f"grant `{name}` of step `{step_id}` in `{workflow.name}`"
                    raise UsageError(
                        f"{where}: the role `{grant.role}` {problem}",
                        hint="change the grant, or the role under `certificates` in declarations.yaml",
                    )


def _misfit(grant: CertificateGrant, role: X509Role | SshRole, ttl: int) -> str:
    if ttl > role.max_ttl:
        return f"signs for {role.max_ttl}s at most, not for {ttl}s"
    if isinstance(role, SshRole):
        if not grant.is_ssh:
            return "signs for SSH"
        lacking = (set(_constant(grant.principals)) - set(role.principals)) | (
            set(grant.extensions) - set(role.extensions)
        )
        return f"does not sign {', '.join(sorted(lacking))}" if lacking else ""
    if grant.is_ssh:
        return "signs X.509"
    if set(grant.usage) != set(role.usage):
        return f"signs for the usage {', '.join(sorted(role.usage))}"
    return "" if grant.key == role.key else f"signs keys of {role.key}"


def _constant(values: Iterable[str]) -> Iterator[str]:
    return (value for value in values if "${{" not in value)
