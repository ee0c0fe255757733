"""What can happen in the life of a lease: each event leads to one state, as `orchestrator.ledger.lease` allows it.

No event holds a secret. `lease_id` is the orchestrator's own id; `vault_lease_id` and `accessor` are
Vault's handles, which open nothing. Durations are seconds; times are UTC and stamped by the ledger.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import ClassVar

from orchestrator.jsontypes import JsonObject
from orchestrator.jsontypes import JsonValue as JsonValue  # which reads the types of the fields need, too
from orchestrator.ledger.lease import LeaseState


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseRequested:
    """The intent, recorded before Vault is asked. `ttl` (seconds) is what is wanted; `scope` is `Scope.as_json`."""

    kind: ClassVar[str] = "lease.requested"
    to: ClassVar[LeaseState] = LeaseState.REQUESTED
    lease_id: str
    step: str
    attempt: int
    grant: str
    grant_kind: str
    """A grant kind, or `step-token` for the child token that the attempt's leases hang from."""
    resource: str
    scope: JsonObject
    ttl: int
    step_key: str = ""
    """What the name of the issued login carries; empty: the step key of the attempt."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseDenied:
    """Vault or the orchestrator said no: there is no credential. Final."""

    kind: ClassVar[str] = "lease.denied"
    to: ClassVar[LeaseState] = LeaseState.DENIED
    lease_id: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseFailed:
    """It was certainly not issued, for another reason than a refusal. Final."""

    kind: ClassVar[str] = "lease.failed"
    to: ClassVar[LeaseState] = LeaseState.FAILED
    lease_id: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseIssued:
    """Vault gave the credential. `ttl` (seconds) is what was granted; `expires_at` is by our clock."""

    kind: ClassVar[str] = "lease.issued"
    to: ClassVar[LeaseState] = LeaseState.ISSUED
    lease_id: str
    ttl: int
    expires_at: datetime
    vault_lease_id: str = ""
    accessor: str = ""
    subject: str = ""
    """Who the credential is: a database role name, a token's `jti`, a secret's version."""
    not_looked_for: tuple[str, ...] = ()
    """Fields of it that are too short or too common to be recognised in an output."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseRenewed:
    """It lives longer: `ttl` seconds from the renewal on."""

    kind: ClassVar[str] = "lease.renewed"
    to: ClassVar[LeaseState] = LeaseState.ISSUED
    lease_id: str
    ttl: int
    expires_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseRevoking:
    """It is to go; from here on it counts as open until somebody confirms its end."""

    kind: ClassVar[str] = "lease.revoking"
    to: ClassVar[LeaseState] = LeaseState.REVOKING
    lease_id: str
    reason: str
    """`step ended`, or `outcome unknown: ...`, or what else made it go."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseRevocationFailed:
    """One try to take it back was not confirmed. `error` says why, without secrets; it is tried again."""

    kind: ClassVar[str] = "lease.revocation_failed"
    to: ClassVar[LeaseState] = LeaseState.REVOKING
    lease_id: str
    error: str
    vault_time: datetime | None = None
    """When that was, by Vault's own clock; None if Vault did not say."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseVaultRevoked:
    """Vault has answered that it is revoked. It counts as gone when the database has been asked, too."""

    kind: ClassVar[str] = "lease.vault_revoked"
    to: ClassVar[LeaseState] = LeaseState.REVOKING
    lease_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseLoginTried:
    """After Vault has answered, its login was tried once with its own password. Decides nothing; a witness more."""

    kind: ClassVar[str] = "lease.login_tried"
    to: ClassVar[LeaseState] = LeaseState.REVOKING
    lease_id: str
    refused: bool | None
    """Whether the server refused it; False: a session was opened, and closed at once. None: that is not known."""
    sqlstate: str | None = None
    """The server's own code, such as 28P01 (no such login, or another password); None where there was none."""
    server: str = ""
    """Host and port that were connected to."""
    at: datetime
    reason: str = ""
    """Why it is not known, or whence without a code; without secrets."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseRevoked:
    """Confirmed gone. Final."""

    kind: ClassVar[str] = "lease.revoked"
    to: ClassVar[LeaseState] = LeaseState.REVOKED
    lease_id: str
    confirmed_by: str
    """`vault` (it answered a synchronous revocation), `database` (its catalog was asked, whatever Vault said) or
    `issuer` (who issued it says that it is no longer active)."""
    witness: JsonObject = field(default_factory=dict)
    """Of a database: what it said (`role`, `sessions`), which `server` it is, when that was by its own clock (`at`) and
    who asked (`asked_by`). What is null is not known, and `unknown` says why. Empty where no database was asked, and in
    older records."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseExpired:
    """It ran out before it could be revoked, by its own end and that of all that it hung from. Final."""

    kind: ClassVar[str] = "lease.expired"
    to: ClassVar[LeaseState] = LeaseState.EXPIRED
    lease_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseEnded:
    """The step has it no more, but it cannot be revoked. Final."""

    kind: ClassVar[str] = "lease.ended"
    to: ClassVar[LeaseState] = LeaseState.ENDED
    lease_id: str
    valid_until: datetime | None
    """None: the secret stays valid until its owner changes it."""
    reason: str = ""
    """Why it is not called revoked although its issuer can revoke."""


LeaseEvent = (
    LeaseRequested
    | LeaseDenied
    | LeaseFailed
    | LeaseIssued
    | LeaseRenewed
    | LeaseRevoking
    | LeaseRevocationFailed
    | LeaseVaultRevoked
    | LeaseLoginTried
    | LeaseRevoked
    | LeaseExpired
    | LeaseEnded
)
