"""The normalised form of a grant: what policies decide on, the ledger records and people read."""

from __future__ import annotations

import json
from dataclasses import dataclass

from orchestrator.grants.models import DatabaseGrant, DynamicGrant, SecretGrant, TokenGrant, format_duration

AnyGrant = DatabaseGrant | SecretGrant | DynamicGrant | TokenGrant

STEP_TOKEN_MARGIN = 30
"""Seconds that a credential outlives the time-out of its step, so that the step can finish cleanly."""


@dataclass(frozen=True, slots=True)
class Scope:
    """One grant, the same however it was written. Everything here may be shown to anyone.

    `resource` is the path in Vault that the credential comes from; `verbs`, `keys` and `scopes` are
    what it opens there; `ttl` is in seconds.
    """

    name: str
    kind: str
    resource: str
    ttl: int
    connection: str | None = None
    role: str | None = None
    audience: str | None = None
    keys: tuple[str, ...] = ()
    scopes: tuple[str, ...] = ()

    def as_json(self) -> dict[str, object]:
        """A JSON object without the parts that do not apply."""
        parts: dict[str, object] = {"name": self.name, "kind": self.kind, "resource": self.resource, "ttl": self.ttl}
        for key in ("connection", "role", "audience"):
            if (value := getattr(self, key)) is not None:
                parts[key] = value
        if self.keys:
            parts["keys"] = list(self.keys)
        if self.scopes:
            parts["scopes"] = list(self.scopes)
        return parts

    def canonical(self) -> str:
        """The same as text, for digests."""
        return json.dumps(self.as_json(), sort_keys=True, separators=(",", ":"), ensure_ascii=False)

    def describe(self) -> str:
        """One line for a terminal: `database support as feedback-read, 2m`."""
        what = {
            "database": f"database {self.connection} as {self.role}",
            "secret": f"secret {self.resource} [{', '.join(self.keys)}]",
            "dynamic": f"dynamic {self.resource}",
            "token": f"token for {self.audience} [{' '.join(self.scopes)}]",
        }.get(self.kind, f"{self.kind} {self.resource}")
        return f"{what}, {format_duration(self.ttl)}"


def normalise(name: str, grant: AnyGrant, *, step_timeout: int) -> Scope:
    """The scope of a declared grant. `step_timeout` is in seconds and gives the default TTL."""
    ttl = grant.ttl if grant.ttl is not None else step_timeout + STEP_TOKEN_MARGIN
    match grant:
        case DatabaseGrant():
            return Scope(
                name, "database", f"{grant.mount}/creds/{grant.role}", ttl, connection=grant.connection, role=grant.role
            )
        case SecretGrant():
            return Scope(name, "secret", f"{grant.mount}/data/{grant.path}", ttl, keys=tuple(sorted(set(grant.keys))))
        case DynamicGrant():
            return Scope(name, "dynamic", grant.path, ttl)
        case TokenGrant():
            return Scope(
                name,
                "token",
                f"{grant.mount}/sign/{grant.key}",
                ttl,
                audience=grant.audience,
                scopes=tuple(sorted(set(grant.scope))),
            )
