"""The desired objects in Vault, and what Vault has of them now."""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from orchestrator.environment import how_to_set
from orchestrator.errors import UsageError
from orchestrator.grants.compiled import VAULT_ROLE_PREFIX, CompiledGrant
from orchestrator.grants.policy_names import BROKER_DUTIES, duty_role_name
from orchestrator.network.postgres import for_vault
from orchestrator.provision.change import Change, difference
from orchestrator.provision.database.statements import (
    DUTY_ROLES,
    RENEWAL,
    REVOCATION,
    ROLLBACK,
    USERNAME_TEMPLATE,
    creation,
    creation_of,
)
from orchestrator.provision.declarations import Connection, Declarations, Runtime
from orchestrator.provision.vault.admin import VaultAdmin
from orchestrator.secret import Secret

DUTY_TTL = 60
"""Seconds that a login lives with which the broker does a duty of its own, and the token that it hangs from."""


TRANSIT = "transit"
"""Where the declared transit keys are."""

SECRET_ID = "(a secret id that only the server knows)"  # noqa: S105 -- what stands in its place
_SECRET_ID = re.compile(r'(secret_id = ")([^"]*)(")')


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
    imported: bool = False
    """A key that somebody brings here: it is not created, and not changed."""
    signer: str = ""
    """The AppRole of which a secret id is written where the text says SECRET_ID. It is never shown."""


def desired_objects(
    declarations: Declarations,
    runtime_policy: str,
    access: Sequence[tuple[VaultObject, VaultObject]],
    grants: Sequence[CompiledGrant],
    signing: Sequence[VaultObject],
    endpoints: Mapping[str, str],
) -> list[VaultObject]:
    """Everything that is to be in Vault, in an order in which nothing is usable before what limits it is there.

    `access` has the policy and the token role of each step and duty, `signing` what signs tokens inside the server.
    """
    runtime = declarations.runtime
    objects = [
        VaultObject(f"sys/mounts/{name}", mount.model_dump(), once=True) for name, mount in declarations.mounts.items()
    ]
    objects.append(VaultObject("sys/auth/approle", {"type": "approle"}, once=True))
    objects += [
        VaultObject(
            f"{TRANSIT}/keys/{name}",
            {
                "type": key.type,
                "exportable": False,
                "allow_plaintext_backup": False,
                "derived": False,
                "deletion_allowed": False,
                **({"imported_key": True} if key.origin == "import" else {}),
            },
            imported=key.origin == "import",
        )
        for name, key in declarations.transit_keys.items()
    ]
    objects += [VaultObject(role.path(name), role.payload()) for name, role in declarations.certificates.items()]
    objects.append(VaultObject(f"sys/policies/acl/{runtime.name}", {"policy": runtime_policy}))
    objects += [policy for policy, _ in access]
    objects += signing
    for name, connection in declarations.connections.items():
        objects += _connection_objects(name, connection, endpoints.get(name))
    objects += [_compiled_role(grant) for grant in grants]
    objects += [role for _, role in access]
    objects.append(VaultObject(f"auth/approle/role/{runtime.name}", _login(runtime)))
    return objects


def _login(runtime: Runtime) -> dict[str, Any]:
    """The runtime's AppRole (Vault API, `POST /auth/approle/role/:role_name`)."""
    return {
        "token_policies": [runtime.name],
        "token_no_default_policy": True,
        "token_ttl": runtime.token_ttl,
        "token_max_ttl": runtime.token_max_ttl,
        "token_explicit_max_ttl": 0,
        "token_period": 0,
        "token_num_uses": 0,  # a token of limited uses may not make children
        "token_bound_cidrs": list(runtime.bound_cidrs),
        "token_type": "service",
        "bind_secret_id": True,
        "secret_id_ttl": runtime.secret_id_ttl,
        "secret_id_num_uses": runtime.secret_id_uses,
        "secret_id_bound_cidrs": list(runtime.bound_cidrs),
    }


def _connection_objects(name: str, connection: Connection, endpoint: str | None) -> Iterator[VaultObject]:
    if endpoint is None:
        raise UsageError(
            f"no endpoint is known for the connection `{name}`", hint=how_to_set("endpoints", name, "to its address")
        )
    duties = {duty: duty_role_name(duty, name) for duty in BROKER_DUTIES}
    yield VaultObject(
        f"database/config/{name}",
        {
            "plugin_name": "postgresql-database-plugin",
            "allowed_roles": sorted([f"{VAULT_ROLE_PREFIX}{name}-*", *duties.values(), *connection.other_roles]),
            "connection_url": for_vault(endpoint).replace("://", "://{{username}}:{{password}}@", 1),
            "username": connection.login,
            "username_template": USERNAME_TEMPLATE,
        },
        nested="connection_details",
        extra={"password_authentication": "scram-sha-256"},
    )
    for duty, role in duties.items():
        yield _role("database", role, name, creation(DUTY_ROLES[duty], 1), DUTY_TTL, 2 * DUTY_TTL)


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
    after = text_of(wanted.payload)
    if actual is None:
        if wanted.imported:
            return Change("import", f"vault {wanted.path}", "", after)
        return difference(f"vault {wanted.path}", None, after)
    if wanted.once:
        kind, ours = str(actual.get("type")), str(wanted.payload["type"])
        return None if kind == ours else Change("undeclared", f"vault {wanted.path}", f'type = "{kind}"', "")
    known = {**actual, **(actual.get(wanted.nested) or {})}
    before = {name: _like(value, known.get(name)) for name, value in wanted.payload.items()}
    if wanted.signer:
        usable = _known_secret_id(admin, wanted.signer, actual) is not None
        shown = SECRET_ID if usable else "(a secret id that its signer does not accept)"
        before["workflow"] = _SECRET_ID.sub(rf"\1{shown}\3", str(before["workflow"]))
    if wanted.imported and text_of(before) != after:
        return Change("undeclared", f"vault {wanted.path}", text_of(before), "")
    return difference(f"vault {wanted.path}", text_of(before), after)


def _like(wanted: Any, actual: Any) -> Any:
    """What Vault has, written as we write it: what is empty may be left out, and an address comes without its mask."""
    if actual is None and not wanted:
        return wanted
    if not isinstance(wanted, list) or not isinstance(actual, list):
        return actual
    same = {str(address).removesuffix("/32").removesuffix("/128"): address for address in wanted}
    return [same.get(str(each), each) for each in actual]


def write_object(admin: VaultAdmin, wanted: VaultObject, password: Secret | None = None) -> None:
    """Install one object. With its login's new password a connection gets it, and Vault then replaces it by its own."""
    payload = {**wanted.payload, **wanted.extra}
    if wanted.signer:
        payload["workflow"] = payload["workflow"].replace(SECRET_ID, _secret_id(admin, wanted).reveal())
    if password is not None:
        payload["password"] = password.reveal()
    admin.write(wanted.path, payload)
    if password is not None:
        admin.write(f"database/rotate-root/{wanted.path.rpartition('/')[2]}", {})


def _secret_id(admin: VaultAdmin, wanted: VaultObject) -> Secret:
    """The one that the object has already if it is still good, else a new one."""
    known = _known_secret_id(admin, wanted.signer, admin.read(wanted.path) or {})
    return admin.new_secret_id(wanted.signer) if known is None else known


def _known_secret_id(admin: VaultAdmin, signer: str, actual: Mapping[str, Any]) -> Secret | None:
    found = _SECRET_ID.search(str(actual.get("workflow", "")))
    if found is None or not admin.accepts_secret_id(signer, known := Secret(found[2])):
        return None
    return known


def new_password() -> Secret:
    """A password that nobody chose."""
    return Secret(secrets.token_urlsafe(32))


def text_of(payload: Mapping[str, Any]) -> str:
    """For the diff: HCL, and `key = value`."""
    lines = []
    for name, value in sorted(payload.items()):
        if name in ("policy", "workflow"):
            lines.append(str(value).strip())
        elif isinstance(value, list):
            lines += [f"{name}:", *(f"  {item}" for item in value)]
        else:
            lines.append(f"{name} = {json.dumps(value)}")
    return "\n".join(lines)
