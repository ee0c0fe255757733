"""What issuers and the broker say to each other."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from orchestrator.clock import Clock
from orchestrator.errors import Unreachable
from orchestrator.grants.credential import Credential
from orchestrator.grants.scope import Scope
from orchestrator.ledger.types import LeaseRecord
from orchestrator.secret import Secret
from orchestrator.vault.session import VaultSession

STEP_TOKEN_KIND = "step-token"  # noqa: S105 -- a kind of lease


@dataclass(frozen=True, slots=True)
class Attempt:
    """One try at a step, for which credentials are opened.

    `policy` is the Vault policy its child token gets; `deadline` is in seconds of the monotonic clock.
    """

    run_id: str
    fence: int
    workflow: str
    step: str
    number: int
    agent: str
    step_key: str
    scopes: tuple[Scope, ...]
    policy: str
    deadline: float


@dataclass(frozen=True, slots=True)
class IssueRequest:
    """What an issuer needs: one scope, for one attempt, with the attempt's own Vault token.

    `remember` takes every secret that is handed out, at once; `token_issuer` is the `iss` of signed tokens;
    `stop` is set when the attempt is being cancelled: no further try is made then.
    """

    scope: Scope
    attempt: Attempt
    lease_id: str
    token: Secret
    vault: VaultSession
    clock: Clock
    stop: asyncio.Event
    remember: Callable[[Secret], None]
    token_issuer: str | None = None


@dataclass(frozen=True, slots=True)
class Issued:
    """A credential and how it ends.

    With a `vault_lease_id` it is revoked through Vault. Without one it cannot be revoked: access to
    it ends with the step, and it stays valid until `valid_until` (None: until its owner changes it).
    """

    credential: Credential
    ttl: int
    subject: str = ""
    vault_lease_id: str = ""
    valid_until: datetime | None = None


class Issuer(Protocol):
    """Turns one kind of grant into a credential: the contract of the entry point group `orchestrator.issuers`.

    `issue` asks Vault with `request.token` and must not be cut off once the request is under way.
    It raises VaultRefused or GrantRefused for a definite no, VaultUnavailable for anything else.
    """

    async def issue(self, request: IssueRequest) -> Issued: ...


@dataclass(frozen=True, slots=True)
class LeaseHandle:
    """What it takes to close a lease, without the secret: kept while it is open, and in the ledger for recovery."""

    lease_id: str
    grant: str
    grant_kind: str
    resource: str
    vault_lease_id: str = ""
    accessor: str = ""
    connection: str | None = None
    valid_until: datetime | None = None
    subject: str = ""
    """Who holds it where it is valid: the login of a database."""
    unknown: bool = False
    """The answer to the issuance was lost: the credential may or may not exist."""
    answered: bool = True
    """Vault did answer, so it is done with the request, and what the database shows now is final."""

    @classmethod
    def of(cls, record: LeaseRecord) -> LeaseHandle:
        """The handle of a lease as the ledger knows it."""
        connection = record.scope.get("connection")
        return cls(
            record.lease_id,
            record.grant,
            record.grant_kind,
            record.resource,
            record.vault_lease_id,
            record.accessor,
            connection if isinstance(connection, str) else None,
            record.expires_at,
            record.subject,
            unknown=record.issued_at is None,
            answered=record.issued_at is not None,
        )


@dataclass(frozen=True, slots=True)
class LoginLeft:
    """A login that the database could not drop and has disabled. `problem` is the database's own reason."""

    login: str
    problem: str


class LoginsLeft(Unreachable):
    """Logins of a step are still in a database: nobody can use them, and a person has to clear the way."""

    def __init__(self, connection: str, left: tuple[LoginLeft, ...]) -> None:
        told = "; ".join(f"{each.login}: {each.problem}" for each in left)
        super().__init__(
            f"still in `{connection}`, disabled: {told}",
            hint="clear what keeps it, then run `orchestrator leases sweep`",
        )
        self.left = left


@dataclass(frozen=True, slots=True)
class ExpiredLogins:
    """What a sweep of one database found no longer valid: what it dropped, and what it could only disable."""

    dropped: tuple[str, ...]
    left: tuple[LoginLeft, ...]


class Duties(Protocol):
    """What the broker does in a database itself; see `orchestrator.credentials.duties`."""

    async def sweep(self, attempt: Attempt, connection: str, *, deadline: float) -> tuple[str, ...]:
        """Look for logins of the attempt's step key, drop them, and return their names.

        Returning means that none is left. Raises LoginsLeft with the database's reason where one is, and
        another OrchestratorError where nothing can be said.
        """

    async def sweep_expired(self, attempt: Attempt, connection: str, *, deadline: float) -> ExpiredLogins:
        """Drop the logins of any step that are no longer valid. Raises OrchestratorError where that cannot be asked."""

    async def bind(
        self, attempt: Attempt, connection: str, login: str, values: Sequence[str], *, deadline: float
    ) -> None:
        """Set the values of a login's row limits. Raises OrchestratorError where that did not happen."""
