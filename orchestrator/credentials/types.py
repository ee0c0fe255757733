"""What issuers and the broker say to each other."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Protocol

from orchestrator.clock import Clock
from orchestrator.credentials.witnesses.database import Witness
from orchestrator.errors import GrantRefused, OrchestratorError
from orchestrator.grants.credential import Credential
from orchestrator.grants.scope import OUTSIDE_VAULT, Scope
from orchestrator.jsontypes import JsonObject
from orchestrator.ledger.events import LeaseEvent, OrphansSwept
from orchestrator.ledger.journal import Journal
from orchestrator.ledger.types import LeaseRecord
from orchestrator.secret import Secret
from orchestrator.vault.faults import Outcome, VaultUnavailable
from orchestrator.vault.session import VaultSession

if TYPE_CHECKING:
    from orchestrator.credentials.witnesses.dead_login import DeadLogin
    from orchestrator.issuers.declared import DeclaredIssuer

STEP_TOKEN_KIND = "step-token"  # noqa: S105 -- a kind of lease


SWEEP_GRANT = "(sweep)"
"""How the ledger names a login that was made to look for others. Its own end needs no further one to be confirmed."""


@dataclass(frozen=True, slots=True)
class Attempt:
    """One try at a step, for which credentials are opened.

    `policy` is the Vault policy its child token gets; `deadline` is in seconds of the monotonic clock; `max_ttl` in
    seconds caps the life of everything that is issued for it, whatever the scopes say. `held_by_agent`: nothing is
    renewed but when the agent asks for it.
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
    max_ttl: int | None = None
    held_by_agent: bool = False


async def _not_known(lease_id: str) -> bool:
    return False


@dataclass(frozen=True, slots=True)
class IssueRequest:
    """What an issuer needs: one scope, for one attempt, with the attempt's own Vault token.

    `remember` takes every secret that is handed out, at once; `token_issuer` is the `iss` of signed tokens;
    `issuers` are those that are not Vault, by name; `stop` is set when the attempt is being cancelled: no further try
    is made then; `is_closed` tells whether a lease of this ledger has come to its end.
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
    issuers: Mapping[str, DeclaredIssuer] = field(default_factory=dict)
    is_closed: Callable[[str], Awaitable[bool]] = _not_known

    async def ask_on_the_way(
        self,
        method: str,
        path: str,
        payload: Mapping[str, Any] | None = None,
        *,
        deadline: float,
        stop: asyncio.Event | None = None,
    ) -> Mapping[str, Any]:
        """Ask Vault, with the attempt's token, for what another issuer is asked with: a signature, a secret.

        Whatever comes of it, that issuer was not asked yet. Raises VaultRefused, and VaultUnavailable as not done.
        """
        try:
            return await self.vault.request(
                method, path, token=self.token, deadline=deadline, stop=stop, payload=payload
            )
        except VaultUnavailable as error:
            raise VaultUnavailable(
                error.message, outcome=Outcome.NOT_DONE, path=path, status=error.status, hint=error.hint
            ) from None


@dataclass(frozen=True, slots=True)
class Revocation:
    """What came of asking an issuer to revoke a credential: it says that it is no longer valid, or why not."""

    confirmed: bool
    reason: str = ""


Revoke = Callable[[float], Awaitable[Revocation]]
"""Asks the issuer of one credential to revoke it, until a deadline (monotonic). Raises OrchestratorError."""


@dataclass(frozen=True, slots=True)
class Issued:
    """A credential and how it ends.

    With a `vault_lease_id` it is revoked through Vault, with `revoke` by its issuer, as long as this process lives.
    Without either it cannot be revoked: access to it ends with the step, and it stays valid until `valid_until`
    (None: until its owner changes it).
    """

    credential: Credential
    ttl: int
    subject: str = ""
    vault_lease_id: str = ""
    valid_until: datetime | None = None
    revoke: Revoke | None = field(default=None, repr=False)
    refused: GrantRefused | None = None
    """Why nobody gets it although it was issued: it is on record, and taken back like any other."""


class Issuer(Protocol):
    """Turns one kind of grant into a credential: the contract of the entry point group `orchestrator.issuers`.

    `issue` asks Vault with `request.token` and must not be cut off once the request is under way.
    It raises VaultRefused or GrantRefused for a definite no, VaultUnavailable or IssuerUnavailable for anything else.
    """

    async def issue(self, request: IssueRequest) -> Issued:
        """Ask for the credential of `request.scope` and pass its secrets to `request.remember` at once.

        Raises VaultRefused, GrantRefused, VaultUnavailable or IssuerUnavailable; KeyError, TypeError and ValueError
        mean that the answer could not be read, so that its outcome is unknown.
        """
        ...


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
    revoke: Revoke | None = field(default=None, repr=False, compare=False)
    """How its issuer is asked to revoke it, where that is not Vault and this process holds the credential."""

    @property
    def outside(self) -> bool:
        """Whether somebody else than Vault issues it: no call to Vault ends it."""
        return self.grant_kind in OUTSIDE_VAULT

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
            record.expires_at or record.requested_at + timedelta(seconds=int(str(record.scope.get("ttl", 0)))),
            record.subject,
            unknown=record.issued_at is None,
            answered=record.issued_at is not None,
            revoke=_nobody_holds_it if record.grant_kind in OUTSIDE_VAULT else None,
        )


async def _nobody_holds_it(deadline: float) -> Revocation:
    return Revocation(False, "the process that held it is gone")


@dataclass(frozen=True, slots=True)
class LoginLeft:
    """A login that the database could not drop and has disabled. `problem` is the database's own reason."""

    login: str
    problem: str


@dataclass(frozen=True, slots=True)
class SweptLogins:
    """What a sweep of one database came to: what it dropped, and what it could only disable. Nothing else is left.

    `apart`: the login that looked is of another run, and not of the one for which it was asked.
    """

    dropped: tuple[str, ...]
    left: tuple[LoginLeft, ...]
    apart: bool = False
    witnesses: Mapping[str, Witness] = field(default_factory=dict)
    """The database's word that nothing else is left, by step key."""


class Confirm(StrEnum):
    """Whose word it takes that a database login is gone."""

    DATABASE = "database"
    """The database's own catalog, asked after Vault has answered."""
    VAULT = "vault"
    """Vault's answer alone, where the orchestrator cannot reach the database."""


@dataclass(frozen=True, slots=True)
class Suspect:
    """A database login that its database has not been asked about.

    `known` are the logins that were certainly issued under its step key; `vault_agrees` that Vault says it is gone.
    """

    handle: LeaseHandle
    step_key: str
    known: frozenset[str]
    vault_agrees: bool = False


@dataclass(slots=True)
class Asked:
    """What databases said: what is known now, and by connection why nothing is.

    `apart`: nothing was issued for it in the run itself.
    """

    told: list[LeaseEvent | OrphansSwept] = field(default_factory=list)
    silent: dict[str, OrchestratorError] = field(default_factory=dict)
    apart: bool = True
    witnesses: dict[tuple[str, str], Witness] = field(default_factory=dict)
    """By connection and step key."""

    def witness(self, suspect: Suspect) -> JsonObject:
        """What is recorded of who says that it is gone; empty where nobody was asked."""
        found = self.witnesses.get((suspect.handle.connection or "", suspect.step_key))
        return {} if found is None else found.as_json()


class LeasesOfRun(Protocol):
    """What the attempts of one run share; see `orchestrator.credentials.run_leases`."""

    @property
    def journal(self) -> Journal:
        """Where the run's events go."""

    def in_background(self, work: Coroutine[Any, Any, None]) -> None:
        """Have something done that no step waits for, but the end of the run."""

    def try_login(self, dead: DeadLogin, *, deadline: float) -> None:
        """Have a login that Vault says is revoked tried once, which no step waits for, but its database's answer."""

    async def asked(self, suspects: Sequence[Suspect], attempt: Attempt, *, deadline: float) -> Asked:
        """Ask the databases at once; see `orchestrator.credentials.closing.ask_databases`."""

    def given_back(self, attempt: Attempt, suspects: Sequence[Suspect]) -> None:
        """Remember logins whose database is to be asked before the run is over."""


class Duties(Protocol):
    """What the broker does in a database itself; see `orchestrator.credentials.duties`."""

    async def sweep(
        self, attempt: Attempt, connection: str, step_keys: Collection[str], *, deadline: float
    ) -> SweptLogins:
        """Look for logins of these step keys and drop them, all with one login of its own, made for `attempt`.

        Returning means that the database has no login of these keys but those in `left`. Raises
        OrchestratorError where nothing can be said.
        """

    async def sweep_expired(self, attempt: Attempt, connection: str, *, deadline: float) -> SweptLogins:
        """Drop the logins of any step that are no longer valid. Raises OrchestratorError where that cannot be asked."""

    async def bind(
        self, attempt: Attempt, connection: str, login: str, values: Sequence[str], *, deadline: float, run: LeasesOfRun
    ) -> None:
        """Set the values of a login's row limits. Raises OrchestratorError where that did not happen.

        What became of the login that this takes is confirmed with the other leases of `run`.
        """
