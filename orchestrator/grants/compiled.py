"""From the privileges of a database grant to the names and limits of what provisioning installs for it."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass

from orchestrator.grants.models import DatabaseGrant, OwnedObjects
from orchestrator.grants.narrowing import narrow
from orchestrator.grants.privileges import Privilege, digest, merge, shape

SCOPE_ROLE_PREFIX = "orchestrator_scope_"
"""Begins the name of every NOLOGIN role that carries the privileges of a compiled grant."""

VAULT_ROLE_PREFIX = "orc-"
"""Begins the name of every compiled role of Vault's database engine."""


@dataclass(frozen=True, slots=True)
class CompiledGrant:
    """What one distinct grant needs in the database (`scope_role`) and in Vault (`vault_role`). TTLs in seconds.

    Grants with the same privileges share the scope role, whatever their other limits are.
    """

    connection: str
    mount: str
    vault_role: str
    scope_role: str
    privileges: tuple[Privilege, ...]
    ttl: int
    max_ttl: int
    max_connections: int
    statement_timeout: int | None
    read_only: bool
    owned_objects: OwnedObjects = "drop"

    def opens(self) -> list[object]:
        """Everything that the name of the scope role stands for."""
        return shape(self.privileges)

    def limits(self) -> tuple[object, ...]:
        """Everything that the name of the Vault role stands for."""
        limits = (self.ttl, self.max_ttl, self.max_connections, self.statement_timeout, self.read_only)
        return (self.connection, self.scope_role, *limits, self.owned_objects)


def compile_grant(grant: DatabaseGrant, *, ttl: int, max_ttl: int, narrower: str | None = None) -> CompiledGrant | None:
    """The compiled form, or None for a grant of a role that an admin maintains.

    `narrower` names one of the grant's forms with fewer columns. The same grant gives the same names, on every machine
    and in every release; another one gives others.
    """
    if not grant.privileges:
        return None
    privileges = merge(each.privilege() for each in grant.privileges)
    if narrower is not None:
        privileges = narrow(privileges, grant.narrower[narrower])
    scope = digest(privileges)
    limits = [grant.connection, scope, ttl, max_ttl, grant.max_connections, grant.statement_timeout, grant.read_only]
    if grant.owned_objects != "drop":  # not for the default, whose names are in use
        limits.append(grant.owned_objects)
    name = hashlib.sha256(json.dumps(limits).encode()).hexdigest()[:32]
    return CompiledGrant(
        connection=grant.connection,
        mount=grant.mount,
        vault_role=f"{VAULT_ROLE_PREFIX}{grant.connection}-{name}",
        scope_role=SCOPE_ROLE_PREFIX + scope,
        privileges=privileges,
        ttl=ttl,
        max_ttl=max_ttl,
        max_connections=grant.max_connections,
        statement_timeout=grant.statement_timeout,
        read_only=grant.read_only,
        owned_objects=grant.owned_objects,
    )
