"""The desired objects in Vault, and what Vault has of them now."""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from orchestrator.errors import ProvisionError
from orchestrator.grants.compiled import VAULT_ROLE_PREFIX, CompiledGrant
from orchestrator.grants.policy_names import BROKER_DUTIES, duty_role_name
from orchestrator.provision.change import Change, difference
from orchestrator.provision.declarations import Connection, Declarations
from orchestrator.provision.statements import (
    DUTY_ROLES,
    RENEWAL,
    REVOCATION,
    ROLLBACK,
    USERNAME_TEMPLATE,
    creation,
    creation_of,
)
from orchestrator.provision.step_policies import HEADER
from orchestrator.secret import Secret
from orchestrator.vault.config import VaultConfig
from orchestrator.vault.faults import VaultRefused, VaultUnavailable
from orchestrator.vault.transport import Transport

_MANAGED_POLICIES = ("step/", *(f"{duty}/" for duty in BROKER_DUTIES))
_DUTY_TTL = 60


@dataclass(frozen=True, slots=True)
class VaultObject:
    """One path and what is to be there. `nested` is where Vault hides some of the fields when it is read."""

    path: str
    payload: Mapping[str, Any]
    nested: str = ""
    once: bool = False
    """Created if absent, and never changed afterwards."""
    extra: Mapping[str, Any] = field(default_factory=dict)
    """Sent along when it is written, and never read back."""


class VaultAdmin:
    """Reads and writes Vault with the admin's token."""

    def __init__(self, config: VaultConfig, token: Secret) -> None:
        self._transport = Transport(config)
        self._token = token

    def read(self, path: str) -> dict[str, Any] | None:
        """The data at a path, or None. Raises VaultRefused and VaultUnavailable."""
        try:
            body = self._transport.request("get", path, token=self._token)
        except VaultRefused as refusal:
            if refusal.status == 404 or (refusal.status == 400 and path.startswith(("sys/mounts", "sys/auth"))):
                return None
            raise
        return dict(body.get("data") or body)

    def keys(self, path: str) -> list[str]:
        """The names below a path."""
        try:
            body = self._transport.request("list", path, token=self._token)
        except VaultRefused as refusal:
            if refusal.status == 404:
                return []
            raise
        return list(body.get("data", {}).get("keys", []))

    def write(self, path: str, payload: Mapping[str, Any]) -> dict[str, Any]:
        """Write to a path. Raises ProvisionError with what Vault said."""
        try:
            return self._transport.request("post", path, token=self._token, payload=payload)
        except (VaultRefused, VaultUnavailable) as error:
            raise ProvisionError(error.message, hint=error.hint) from error

    def delete(self, path: str) -> None:
        """Delete a path."""
        self._transport.request("delete", path, token=self._token)

    def close(self) -> None:
        """Close idle connections."""
        self._transport.close()


def desired_objects(
    declarations: Declarations,
    runtime_policy: str,
    policies: Mapping[str, str],
    grants: Sequence[CompiledGrant],
    endpoints: Mapping[str, str],
) -> list[VaultObject]:
    """Everything that is to be in Vault, in an order in which nothing is usable before what limits it is there."""
    runtime = declarations.runtime
    objects = [
        VaultObject(f"sys/mounts/{name}", mount.model_dump(), once=True) for name, mount in declarations.mounts.items()
    ]
    objects.append(VaultObject("sys/auth/approle", {"type": "approle"}, once=True))
    objects += [
        VaultObject(f"transit/keys/{name}", {"type": key.type, "exportable": False, "allow_plaintext_backup": False})
        for name, key in declarations.transit_keys.items()
    ]
    objects.append(VaultObject(f"sys/policies/acl/{runtime.name}", {"policy": runtime_policy}))
    objects += [VaultObject(f"sys/policies/acl/{name}", {"policy": text}) for name, text in sorted(policies.items())]
    for name, connection in declarations.connections.items():
        objects += _connection_objects(name, connection, endpoints.get(name))
    objects += [_compiled_role(grant) for grant in grants]
    objects.append(
        VaultObject(
            f"auth/token/roles/{declarations.token_role}",
            {
                "allowed_policies": [],
                "allowed_policies_glob": sorted(f"{folder}*" for folder in _MANAGED_POLICIES),
                "token_no_default_policy": True,
                "orphan": False,
                "renewable": True,
                "token_type": "service",
            },
        )
    )
    objects.append(
        VaultObject(
            f"auth/approle/role/{runtime.name}",
            {
                "token_policies": [runtime.name],
                "token_no_default_policy": True,
                "token_ttl": runtime.token_ttl,
                "token_type": "service",
                "bind_secret_id": True,
                "secret_id_ttl": runtime.secret_id_ttl,
            },
        )
    )
    return objects


def _connection_objects(name: str, connection: Connection, endpoint: str | None) -> Iterator[VaultObject]:
    if endpoint is None:
        raise ProvisionError(
            f"no endpoint is known for the connection `{name}`", hint=f"set ORCHESTRATOR_ENDPOINTS__{name.upper()}"
        )
    duties = {duty: duty_role_name(duty, name) for duty in BROKER_DUTIES}
    yield VaultObject(
        f"database/config/{name}",
        {
            "plugin_name": "postgresql-database-plugin",
            "allowed_roles": sorted([f"{VAULT_ROLE_PREFIX}{name}-*", *duties.values(), *connection.other_roles]),
            "connection_url": endpoint.replace("://", "://{{username}}:{{password}}@", 1),
            "username": connection.login,
            "username_template": USERNAME_TEMPLATE,
        },
        nested="connection_details",
        extra={"password_authentication": "scram-sha-256"},
    )
    for duty, role in duties.items():
        yield _role("database", role, name, creation(DUTY_ROLES[duty], 1), _DUTY_TTL, 2 * _DUTY_TTL)


def _compiled_role(grant: CompiledGrant) -> VaultObject:
    return _role(grant.mount, grant.vault_role, grant.connection, creation_of(grant), grant.ttl, grant.max_ttl)


def _role(mount: str, role: str, connection: str, statements: list[str], ttl: int, max_ttl: int) -> VaultObject:
    return VaultObject(
        f"{mount}/roles/{role}",
        {
            "db_name": connection,
            "creation_statements": statements,
            "revocation_statements": REVOCATION,
            "renew_statements": RENEWAL,
            "rollback_statements": ROLLBACK,
            "default_ttl": ttl,
            "max_ttl": max_ttl,
        },
    )


def change_of(admin: VaultAdmin, wanted: VaultObject) -> Change | None:
    """How an object differs from what Vault has; only the declared fields count."""
    actual = admin.read(wanted.path)
    after = _text(wanted.payload)
    if actual is None:
        return difference(f"vault {wanted.path}", None, after)
    if wanted.once:
        return None
    known = {**actual, **(actual.get(wanted.nested) or {})}
    return difference(f"vault {wanted.path}", _text({name: known.get(name) for name in wanted.payload}), after)


def undeclared(admin: VaultAdmin, objects: Sequence[VaultObject]) -> list[Change]:
    """Policies and database roles of ours that no workflow needs any more."""
    wanted = {each.path for each in objects}
    policies = {path.removeprefix("sys/policies/acl/") for path in wanted if path.startswith("sys/policies/acl/")}
    changes = [
        Change("delete", f"vault {path}", _text(admin.read(path) or {}), "")
        for mount in sorted({path.partition("/roles/")[0] for path in wanted if "/roles/orc" in path} | {"database"})
        for name in admin.keys(f"{mount}/roles")
        for path in [f"{mount}/roles/{name}"]
        if name.startswith(VAULT_ROLE_PREFIX) and path not in wanted
    ]
    for name in _policy_names(admin):
        path = f"sys/policies/acl/{name}"
        if name not in policies and name.startswith(_MANAGED_POLICIES):
            text = str((admin.read(path) or {}).get("policy", ""))
            if text.startswith(HEADER):
                changes.append(Change("delete", f"vault {path}", _text({"policy": text}), ""))
    return changes


def _policy_names(admin: VaultAdmin) -> list[str]:
    return [name for name in admin.keys("sys/policies/acl") if not name.endswith("/")] + [
        folder + name
        for folder in admin.keys("sys/policies/acl")
        if folder.endswith("/")
        for name in admin.keys(f"sys/policies/acl/{folder}")
    ]


def write_object(admin: VaultAdmin, wanted: VaultObject, password: Secret | None = None) -> None:
    """Install one object. With its login's new password a connection gets it, and Vault then replaces it by its own."""
    payload = {**wanted.payload, **wanted.extra}
    if password is not None:
        payload["password"] = password.reveal()
    admin.write(wanted.path, payload)
    if password is not None:
        admin.write(f"database/rotate-root/{wanted.path.rpartition('/')[2]}", {})


def new_password() -> Secret:
    """A password that nobody chose."""
    return Secret(secrets.token_urlsafe(32))


def _text(payload: Mapping[str, Any]) -> str:
    lines = []
    for name, value in sorted(payload.items()):
        if name == "policy":
            lines.append(str(value).strip())
        elif isinstance(value, list):
            lines += [f"{name}:", *(f"  {item}" for item in value)]
        else:
            lines.append(f"{name} = {json.dumps(value)}")
    return "\n".join(lines)
