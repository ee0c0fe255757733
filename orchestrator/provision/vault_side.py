"""The desired objects in Vault, and what Vault has of them now."""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from orchestrator.errors import ProvisionError
from orchestrator.grants.policy_names import sweep_role_name
from orchestrator.provision.change import Change, difference
from orchestrator.provision.declarations import Connection, Declarations
from orchestrator.provision.statements import RENEWAL, REVOCATION, ROLLBACK, SWEEPER, USERNAME_TEMPLATE, creation
from orchestrator.provision.step_policies import HEADER
from orchestrator.secret import Secret
from orchestrator.vault.config import VaultConfig
from orchestrator.vault.faults import VaultRefused, VaultUnavailable
from orchestrator.vault.transport import Transport

_MANAGED_POLICIES = ("step/", "sweep/")


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
    declarations: Declarations, runtime_policy: str, policies: Mapping[str, str], endpoints: Mapping[str, str]
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
    objects.append(
        VaultObject(
            f"auth/token/roles/{declarations.token_role}",
            {
                "allowed_policies": [],
                "allowed_policies_glob": ["step/*", "sweep/*"],
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
    sweep = sweep_role_name(name)
    yield VaultObject(
        f"database/config/{name}",
        {
            "plugin_name": "postgresql-database-plugin",
            "allowed_roles": sorted([*connection.roles, sweep]),
            "connection_url": endpoint.replace("://", "://{{username}}:{{password}}@", 1),
            "username": connection.login,
            "username_template": USERNAME_TEMPLATE,
        },
        nested="connection_details",
        extra={"password_authentication": "scram-sha-256"},
    )
    for role, declared in connection.roles.items():
        yield _role(name, role, declared.scope, declared.max_connections, declared.default_ttl, declared.max_ttl)
    yield _role(name, sweep, SWEEPER, 1, 60, 120)


def _role(connection: str, role: str, scope: str, max_connections: int, ttl: int, max_ttl: int) -> VaultObject:
    return VaultObject(
        f"database/roles/{role}",
        {
            "db_name": connection,
            "creation_statements": creation(scope, max_connections),
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


def undeclared(admin: VaultAdmin, policies: Mapping[str, str]) -> list[Change]:
    """Step policies of ours that no workflow needs any more."""
    changes = []
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


def write_object(admin: VaultAdmin, wanted: VaultObject, password: Secret | None) -> None:
    """Install one object. A connection gets its login's password along, which Vault then replaces by one of its own."""
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
