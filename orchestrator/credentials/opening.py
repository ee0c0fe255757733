"""Opening the credentials of one step attempt: the intents, the child token, then each lease.

Everything is on record before it is asked for, and again before the step may see it. An issuance in flight is
never abandoned: whoever closes waits for its answer, and what came is held by then.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

from orchestrator.credentials.governor.governor import LOOK_SECONDS
from orchestrator.credentials.parts import BrokerParts
from orchestrator.credentials.refusals import not_issued, unseen
from orchestrator.credentials.types import STEP_TOKEN_KIND, Attempt, Issued, IssueRequest, LeaseHandle, LeasesOfRun
from orchestrator.credentials.witnesses.dead_login import DeadLogin
from orchestrator.environment import setting_of
from orchestrator.errors import GrantRefused, LedgerError, OrchestratorError
from orchestrator.grants.credential import Credential
from orchestrator.grants.policy_names import token_role_name
from orchestrator.grants.scope import STEP_TOKEN_MARGIN, Scope
from orchestrator.ledger.events import Event, LeaseIssued, LeaseRequested, LeaseRevoking
from orchestrator.ledger.ids import carries, new_lease_id
from orchestrator.ledger.places import Blocked, PlacesWanted
from orchestrator.redaction.forms import recognisable
from orchestrator.secret import Secret
from orchestrator.vault.faults import Outcome, VaultUnavailable
from orchestrator.vault.session import StepToken

log = logging.getLogger(__name__)

STEP_TOKEN_GRANT = "(step token)"  # noqa: S105 -- how the ledger names the child token among the grants


_CLOCK_SECONDS = 2
"""By how much Vault's clock may differ from ours, and how long it took until its answer was here."""


@dataclass(frozen=True, slots=True)
class KeptLease:
    """A lease that has to be renewed or replaced while its step goes on. `ttl` in seconds; `version` from 1."""

    lease_id: str
    vault_lease_id: str
    scope: Scope
    ttl: int
    version: int


class Opening:
    """What is held of an attempt's credentials, and how more of it comes about.

    `held` are the leases that have to be taken back, in the order in which they came; `unasked` those on record
    that Vault was not asked for, by lease id; `stop` is set when nothing new may be asked for. `keep` is told of
    each lease that may end before the step, as soon as it is on record.
    """

    def __init__(
        self, broker: BrokerParts, attempt: Attempt, run: LeasesOfRun, keep: Callable[[KeptLease], None]
    ) -> None:
        self.attempt = attempt
        self.held: list[LeaseHandle] = []
        self.unasked: dict[str, Scope] = {}
        self.to_try: dict[str, DeadLogin] = {}
        """The logins that are tried when Vault says that they are revoked, by lease id; until then."""
        self.unrecorded: tuple[Event, ...] = ()
        """What goes along with the first intent, until that is on record."""
        self.stop = asyncio.Event()
        self.step_token: StepToken | None = None
        self.broker = broker
        self.run = run
        self.on_secret: Callable[[Secret], None] = lambda secret: None
        self._keep = keep
        self._token_scope = _token_scope(broker, attempt)
        self._in_flight: dict[str, Scope] = {}

    async def record(self) -> None:
        """Have on record what there is to record of an attempt without credentials. Raises LedgerError."""
        await self.run.journal.append(*self.unrecorded)
        self.unrecorded = ()

    async def open(self) -> dict[str, Credential]:
        """Issue every grant; the credentials by its name.

        Raises GrantRefused, VaultUnreachable or LedgerError; what was issued before is held.
        """
        token_id = new_lease_id()
        wanted = {new_lease_id(): scope for scope in self.attempt.scopes}
        await self._intend(
            self.requested(token_id, self._token_scope),
            *(self.requested(lease_id, scope) for lease_id, scope in wanted.items()),
        )
        self.unasked = wanted
        self._in_flight[token_id] = self._token_scope
        token = self.step_token = await self._mint(token_id)
        del self._in_flight[token_id]
        # Committed with the first lease at the latest, so before any step sees one.
        self.run.journal.defer(self._token_held(token_id, token))
        credentials: dict[str, Credential] = {}
        for lease_id, scope in list(self.unasked.items()):
            if self.stop.is_set():
                break
            del self.unasked[lease_id]
            credentials[scope.name] = await self.issue(lease_id, scope, token, version=1)
        return credentials

    async def _intend(self, *intents: LeaseRequested) -> None:
        """Have the intents on record, as soon as the connections have places for all of their leases at once.

        Raises GrantRefused where they have none before the attempt has to end.
        """
        governor = self.broker.governor
        wanted = None if governor is None else governor.wanted(self.attempt)
        if governor is None or wanted is None:
            await self.run.journal.append(*self.unrecorded, *intents)
            self.unrecorded = ()
            return
        self._refuse_what_never_fits(wanted)
        await governor.enter()
        if (blocked := await self._request(wanted, intents)) is None:
            return
        with governor.waiting((self.attempt.run_id, self.attempt.step, self.attempt.number)) as turn:
            try:
                while blocked is not None:
                    left = self.attempt.deadline - self.broker.clock.monotonic() - LOOK_SECONDS
                    if not await turn.come(self.stop, left):
                        raise self._no_place(blocked)
                    blocked = await self._request(replace(wanted, known=True), intents)
            except BaseException:
                await self._leave_line()
                raise

    async def _request(self, wanted: PlacesWanted, intents: Sequence[LeaseRequested]) -> Blocked | None:
        blocked = await self.run.journal.request(wanted, self.unrecorded, intents)
        self.unrecorded = ()
        return blocked

    def _refuse_what_never_fits(self, wanted: PlacesWanted) -> None:
        for name, leases in wanted.leases.items():
            if leases > (most := wanted.limits[name]):
                scope = self._of_connection(name)
                raise GrantRefused(
                    f"{self.where(scope)}: the step wants {leases} leases of `{name}` at once, and no more than {most} "
                    "may be open",
                    grant=scope.name,
                    path=scope.resource,
                    by="orchestrator",
                    hint=f"part the step, or raise {setting_of('connection_leases', name)}",
                )

    def _no_place(self, blocked: Blocked) -> GrantRefused:
        scope = self._of_connection(blocked.connection)
        return GrantRefused(
            f"{self.where(scope)}: {blocked.reason}, for as long as the step may take",
            grant=scope.name,
            path=scope.resource,
            by="orchestrator",
            hint=f"raise the step's timeout, or {setting_of('connection_leases', blocked.connection)}; "
            "`orchestrator leases list --state waiting` shows who waits",
        )

    def _of_connection(self, name: str) -> Scope:
        return next(scope for scope in self.attempt.scopes if scope.connection == name)

    async def _leave_line(self) -> None:
        """Where it cannot be recorded it is with the end of the run, which cannot be recorded now either."""
        attempt = self.attempt
        try:
            await self.broker.ledger.leave_line(attempt.run_id, attempt.step, attempt.number)
        except LedgerError as error:
            log.warning("step %s of run %s waits still, on record: %s", attempt.step, attempt.run_id, error.message)

    async def issue(
        self, lease_id: str, scope: Scope, token: StepToken, *, version: int, deadline: float | None = None
    ) -> Credential:
        """Issue what is on record as requested.

        It is asked for until `deadline` (monotonic), by default as long as the step may take. Raises like `open`.
        """
        broker, secrets = self.broker, list[Secret]()

        def remember(secret: Secret) -> None:
            secrets.append(secret)
            broker.remember(secret)
            self.on_secret(secret)

        request = IssueRequest(
            scope=scope,
            attempt=self.attempt if deadline is None else replace(self.attempt, deadline=deadline),
            lease_id=lease_id,
            token=token.token,
            vault=broker.vault,
            clock=broker.clock,
            stop=self.stop,
            remember=remember,
            token_issuer=broker.token_issuer,
            issuers=broker.issuers,
            is_closed=self._is_closed,
        )
        self._in_flight[lease_id] = scope
        try:
            issued = await broker.issuer(scope.kind).issue(request)
        except OrchestratorError as error:
            raise await self._not_issued(lease_id, scope, error) from error
        except Exception as error:
            garbled = VaultUnavailable(
                f"Vault's answer to {scope.resource} cannot be understood",
                outcome=Outcome.UNKNOWN,
                path=scope.resource,
                status=200,
            )
            raise await self._not_issued(lease_id, scope, garbled) from error
        ttl = issued.ttl if scope.outside else min(issued.ttl, token.ttl)
        handle = LeaseHandle(
            lease_id,
            scope.name,
            scope.kind,
            scope.resource,
            vault_lease_id=issued.vault_lease_id,
            connection=scope.connection,
            valid_until=issued.valid_until,
            subject=issued.subject,
            revoke=issued.revoke,
        )
        password = issued.credential.fields.get("password")
        if password is not None and scope.connection and broker.tries(handle, self.attempt.step_key):
            self.to_try[lease_id] = DeadLogin(lease_id, scope.connection, issued.subject, password)
        self.held.append(handle)  # held first and recorded second: if the record fails, closing knows what to revoke
        await self.run.journal.append(
            self._issued_event(
                lease_id,
                ttl=ttl,
                vault_lease_id=issued.vault_lease_id,
                subject=issued.subject,
                not_looked_for=_not_looked_for(issued.credential, secrets),
            )
        )
        del self._in_flight[lease_id]
        self._check(scope, issued, ttl)
        if issued.vault_lease_id and broker.clock.monotonic() + ttl < self.attempt.deadline and not self.stop.is_set():
            self._keep(KeptLease(lease_id, issued.vault_lease_id, scope, ttl, version))
        if scope.bindings and scope.connection:
            await self._bind(scope, scope.connection, issued.subject)
        return replace(issued.credential, ttl=ttl, version=version)

    async def _is_closed(self, lease_id: str) -> bool:
        return await asyncio.to_thread(self.broker.is_closed, lease_id)

    async def give_up_on(self, late: Sequence[asyncio.Task[Any]]) -> None:
        """Stop waiting for issuances that outlast even the grace, and for what fell over while it asked for them.

        Each is recorded as of unknown outcome.
        """
        for task in late:
            task.cancel()
        held = {handle.lease_id for handle in self.held}
        for lease_id, scope in list(self._in_flight.items()):
            if lease_id not in held:
                late_one = unseen(lease_id, scope, self.broker.clock.now(), answered=False)
                self.held.append(replace(late_one, connection=None))
                reason = f"outcome unknown: {'no answer within the grace' if late else 'asking for it fell over'}"
                await self.run.journal.append(LeaseRevoking(lease_id=lease_id, reason=reason))

    def requested(self, lease_id: str, scope: Scope) -> LeaseRequested:
        """The intent to ask for one grant."""
        return LeaseRequested(
            lease_id=lease_id,
            step=self.attempt.step,
            attempt=self.attempt.number,
            grant=scope.name,
            grant_kind=scope.kind,
            resource=scope.resource,
            step_key=self.attempt.step_key,
            scope=scope.as_json(),  # type: ignore[arg-type]  # an object of JSON values, typed as object
            ttl=scope.ttl,
        )

    def where(self, scope: Scope) -> str:
        """Step, grant and path, for people."""
        return f"step `{self.attempt.step}`: grant `{scope.name}` ({scope.resource})"

    async def _mint(self, lease_id: str) -> StepToken:
        attempt, scope = self.attempt, self._token_scope
        try:
            return await self.broker.vault.create_step_token(
                role=token_role_name(attempt.policy),
                display_name=attempt.step_key,
                ttl=scope.ttl,
                metadata={"run": attempt.run_id, "step": attempt.step, "attempt": str(attempt.number)},
                deadline=attempt.deadline,
                stop=self.stop,
            )
        except OrchestratorError as error:
            raise await self._not_issued(lease_id, scope, error) from error

    def _token_held(self, lease_id: str, token: StepToken) -> LeaseIssued:
        scope = self._token_scope
        self.on_secret(token.token)
        self.held.append(LeaseHandle(lease_id, scope.name, scope.kind, scope.resource, accessor=token.accessor))
        return self._issued_event(lease_id, ttl=token.ttl, accessor=token.accessor, subject=self.attempt.step_key)

    async def _bind(self, scope: Scope, connection: str, login: str) -> None:
        """Without its values a row limit shows no row at all, so nothing is open before this returns."""
        if self.broker.duties is None:
            raise GrantRefused(
                f"{self.where(scope)}: its row limits cannot be set here",
                grant=scope.name,
                path=scope.resource,
                by="orchestrator",
            )
        await self.broker.duties.bind(
            self.attempt, connection, login, scope.bindings, deadline=self.attempt.deadline, run=self.run
        )

    def _check(self, scope: Scope, issued: Issued, ttl: int) -> None:
        """Refuse what was issued but does not serve: it is on record by now and is closed like any other."""
        if (refused := issued.refused) is not None:
            raise GrantRefused(
                f"{self.where(scope)}: {refused.message}",
                grant=scope.name,
                path=scope.resource,
                by=refused.by,
                hint=refused.hint,
            )
        longest = self.attempt.max_ttl
        if longest is not None and issued.valid_until is not None:
            latest = self.broker.clock.now() + timedelta(seconds=longest + _CLOCK_SECONDS)
            if issued.valid_until > latest:
                raise GrantRefused(
                    f"{self.where(scope)}: it is valid for longer than the {longest}s that the policy allows",
                    grant=scope.name,
                    path=scope.resource,
                    by="orchestrator",
                    hint="shorten the grant's `ttl`, then `orchestrator provision apply`",
                )
        needed = int(min(self.attempt.deadline - self.broker.clock.monotonic(), scope.ttl))
        if ttl < needed:
            raise GrantRefused(
                f"{self.where(scope)}: it was issued for {ttl}s, not for the {needed}s that the step needs",
                grant=scope.name,
                path=scope.resource,
                hint="shorten the step's timeout, or raise the TTL of the role and of the grant",
            )
        if scope.kind == "database" and not carries(issued.subject, self.attempt.step_key):
            raise GrantRefused(
                f"{self.where(scope)}: the name of the issued login does not carry the step key",
                grant=scope.name,
                path=scope.resource,
                by="orchestrator",
                hint=f"the Vault connection `{scope.connection}` lacks the orchestrator's username_template; "
                "run `orchestrator provision apply`",
            )

    async def _not_issued(self, lease_id: str, scope: Scope, error: OrchestratorError) -> OrchestratorError:
        """Record that a grant was not issued, and turn the reason into the error that the step fails with."""
        self._in_flight.pop(lease_id, None)
        outcome = not_issued(lease_id, scope, self.where(scope), error, self.broker.clock.now())
        if outcome.left is not None:
            self.held.append(outcome.left)
        await self.run.journal.append(outcome.event)
        return outcome.error

    def _issued_event(self, lease_id: str, *, ttl: int, **rest: Any) -> LeaseIssued:
        expires = self.broker.clock.now() + timedelta(seconds=ttl)
        return LeaseIssued(lease_id=lease_id, ttl=ttl, expires_at=expires, **rest)


def _not_looked_for(credential: Credential, secrets: Sequence[Secret]) -> tuple[str, ...]:
    """The fields of a credential that are too short or too common to be recognised in an output."""
    return tuple(
        name for name, value in credential.fields.items() if value in secrets and not recognisable(value.reveal())
    )


def _token_scope(broker: BrokerParts, attempt: Attempt) -> Scope:
    """The attempt's own token: it lives as long as the attempt may take, so that leases can be renewed under it."""
    left = math.ceil(attempt.deadline - broker.clock.monotonic())
    ttl = max([left + STEP_TOKEN_MARGIN, *(scope.ttl for scope in attempt.scopes if not scope.outside)])
    if attempt.max_ttl is not None:  # what hangs from the token ends with it, whatever Vault's roles say
        ttl = min(ttl, attempt.max_ttl)
    return Scope(STEP_TOKEN_GRANT, STEP_TOKEN_KIND, attempt.policy, ttl)
