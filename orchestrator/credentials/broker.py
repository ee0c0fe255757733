"""Opens and closes all credentials of one step attempt, in the right order.

Opening: the intent is committed to the ledger, a child token is minted, each lease is issued and
committed before the step may see it. Closing, in reverse: each lease is revoked synchronously, then
the child token by its accessor; what is not confirmed by Vault is looked for in the database. An
issuance in flight is never abandoned: closing waits for its answer, then revokes it.

In between, leases that end before the step are renewed; where that is impossible another one takes the
place of such a lease, if the grant says so, or the step is ended in time.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from types import TracebackType
from typing import Any, TypeVar

from orchestrator.clock import Clock
from orchestrator.credentials.closing import close_all, close_lease
from orchestrator.credentials.refusals import not_issued
from orchestrator.credentials.renewal import Ending, Renewal
from orchestrator.credentials.types import (
    STEP_TOKEN_KIND,
    Attempt,
    Duties,
    Issued,
    Issuer,
    IssueRequest,
    LeaseHandle,
)
from orchestrator.errors import GrantRefused, OrchestratorError, StepFailed
from orchestrator.grants.credential import Credential
from orchestrator.grants.scope import STEP_TOKEN_MARGIN, Scope
from orchestrator.ledger.events import (
    Event,
    LeaseFailed,
    LeaseIssued,
    LeaseRequested,
    LeaseRevocationFailed,
    LeaseRevoking,
)
from orchestrator.ledger.ids import carries, new_lease_id
from orchestrator.ledger.types import LedgerWriter
from orchestrator.redaction_forms import recognisable
from orchestrator.secret import Secret
from orchestrator.vault.faults import Outcome, VaultUnavailable
from orchestrator.vault.session import StepToken, VaultSession

STEP_TOKEN_GRANT = "(step token)"  # noqa: S105 -- how the ledger names the child token among the grants


T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Broker:
    """What is needed to open credentials. `grace` bounds, in seconds, how long closing tries to confirm."""

    vault: VaultSession
    ledger: LedgerWriter
    issuer: Callable[[str], Issuer]
    remember: Callable[[Secret], None]
    clock: Clock
    grace: float = 30.0
    token_issuer: str | None = None
    duties: Duties | None = None

    def open(self, attempt: Attempt, *, prelude: Sequence[Event] = ()) -> StepLeases:
        """The credentials of an attempt, as an asynchronous context manager.

        `prelude` is committed in the same transaction as the intent. Entering raises GrantRefused,
        VaultUnreachable or LedgerError after everything already opened has been closed again.
        """
        return StepLeases(self, attempt, prelude)


class StepLeases:
    """The open credentials of one attempt. Leaving the context takes them back, however it is left.

    After that `pending` holds the ids of leases whose end is not confirmed yet.
    """

    def __init__(self, broker: Broker, attempt: Attempt, prelude: Sequence[Event]) -> None:
        self._broker = broker
        self._attempt = attempt
        self._prelude = tuple(prelude)
        self._held: list[LeaseHandle] = []
        self._token_scope = _token_scope(broker, attempt)
        self._unasked: dict[str, Scope] = {}
        self._in_flight: dict[str, Scope] = {}
        self._opening: asyncio.Task[dict[str, Credential]] | None = None
        self._unabandoned: set[asyncio.Task[Any]] = set()
        self._stop = asyncio.Event()
        self.epilogue: tuple[Event, ...] = ()
        """Committed together with the beginning of the revocation; set it before leaving the context."""
        self.pending: tuple[str, ...] = ()
        self.on_expiry: Callable[[OrchestratorError], None] = lambda error: None
        """Called once if a lease is about to end before the step's deadline and cannot be renewed."""
        self.on_secret: Callable[[Secret], None] = lambda secret: None
        """Called with every secret that is issued to the attempt, before anybody else has it."""
        self.deliver: Callable[[Credential], Awaitable[None]] = _takes_nothing
        """Brings a credential that was issued anew to the action; raises StepFailed if that is impossible."""
        self._upkeep: list[asyncio.Task[None]] = []
        self.step_token: StepToken | None = None
        """The attempt's own token while its leases are open: for proving what it cannot do, never for a step."""

    @property
    def replaceable(self) -> bool:
        """Whether any credential of the attempt may be issued anew while the action runs."""
        return any(scope.on_expiry == "reissue" for scope in self._attempt.scopes)

    async def __aenter__(self) -> Mapping[str, Credential]:
        self._opening = asyncio.create_task(self._open(), name=f"open {self._attempt.step_key}")
        try:
            return await asyncio.shield(self._opening)
        except BaseException as error:
            self._stop.set()
            await _to_the_end(self._close(_why(error)))
            raise

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await _to_the_end(self._close("step ended" if error is None else _why(error)))

    async def _open(self) -> dict[str, Credential]:
        if not self._attempt.scopes:
            await self._record(*self._prelude)
            return {}
        token_id = new_lease_id()
        wanted = {new_lease_id(): scope for scope in self._attempt.scopes}
        await self._record(
            *self._prelude,
            self._requested(token_id, self._token_scope),
            *(self._requested(lease_id, scope) for lease_id, scope in wanted.items()),
        )
        self._unasked = wanted
        self._in_flight[token_id] = self._token_scope
        token = self.step_token = await self._mint(token_id)
        del self._in_flight[token_id]
        on_record = asyncio.create_task(self._record(self._token_held(token_id, token)))
        try:
            return await self._issue_all(token)
        finally:
            await on_record  # while it is written Vault works on the first lease

    async def _issue_all(self, token: StepToken) -> dict[str, Credential]:
        credentials: dict[str, Credential] = {}
        for lease_id, scope in list(self._unasked.items()):
            if self._stop.is_set():
                break
            del self._unasked[lease_id]
            credentials[scope.name] = await self._issue(lease_id, scope, token, version=1)
        return credentials

    async def _mint(self, lease_id: str) -> StepToken:
        attempt, scope = self._attempt, self._token_scope
        try:
            return await self._broker.vault.create_step_token(
                policy=attempt.policy,
                display_name=attempt.step_key,
                ttl=scope.ttl,
                metadata={"run": attempt.run_id, "step": attempt.step, "attempt": str(attempt.number)},
                deadline=attempt.deadline,
                stop=self._stop,
            )
        except OrchestratorError as error:
            raise await self._not_issued(lease_id, scope, error) from error

    def _token_held(self, lease_id: str, token: StepToken) -> LeaseIssued:
        scope = self._token_scope
        self.on_secret(token.token)
        self._held.append(LeaseHandle(lease_id, scope.name, scope.kind, scope.resource, accessor=token.accessor))
        return self._issued_event(lease_id, ttl=token.ttl, accessor=token.accessor, subject=self._attempt.step_key)

    async def _issue(
        self, lease_id: str, scope: Scope, token: StepToken, *, version: int, deadline: float | None = None
    ) -> Credential:
        """Issue what is on record as requested. It is asked for until `deadline`, by default as long as the step."""
        broker, secrets = self._broker, list[Secret]()

        def remember(secret: Secret) -> None:
            secrets.append(secret)
            broker.remember(secret)
            self.on_secret(secret)

        request = IssueRequest(
            scope=scope,
            attempt=self._attempt if deadline is None else replace(self._attempt, deadline=deadline),
            lease_id=lease_id,
            token=token.token,
            vault=broker.vault,
            clock=broker.clock,
            stop=self._stop,
            remember=remember,
            token_issuer=broker.token_issuer,
        )
        self._in_flight[lease_id] = scope
        try:
            issued = await broker.issuer(scope.kind).issue(request)
        except OrchestratorError as error:
            raise await self._not_issued(lease_id, scope, error) from error
        except (KeyError, TypeError, ValueError) as error:
            garbled = VaultUnavailable(
                f"Vault's answer to {scope.resource} cannot be understood",
                outcome=Outcome.UNKNOWN,
                path=scope.resource,
                status=200,
            )
            raise await self._not_issued(lease_id, scope, garbled) from error
        ttl = min(issued.ttl, token.ttl)
        await self._hold(
            LeaseHandle(
                lease_id,
                scope.name,
                scope.kind,
                scope.resource,
                vault_lease_id=issued.vault_lease_id,
                connection=scope.connection,
                valid_until=issued.valid_until,
                subject=issued.subject,
            ),
            self._issued_event(
                lease_id,
                ttl=ttl,
                vault_lease_id=issued.vault_lease_id,
                subject=issued.subject,
                not_looked_for=_not_looked_for(issued.credential, secrets),
            ),
        )
        del self._in_flight[lease_id]
        self._check(scope, issued, ttl)
        if issued.vault_lease_id and self._broker.clock.monotonic() + ttl < self._attempt.deadline:
            self._keep(lease_id, issued.vault_lease_id, scope, ttl, version)
        if scope.bindings and scope.connection:
            await self._bind(scope, scope.connection, issued.subject)
        return replace(issued.credential, ttl=ttl, version=version)

    def _keep(self, lease_id: str, vault_lease_id: str, scope: Scope, ttl: int, version: int) -> None:
        if self._stop.is_set():
            return
        renewal = Renewal(
            lease_id=lease_id,
            vault_lease_id=vault_lease_id,
            ttl=ttl,
            wanted=scope.ttl,
            deadline=self._attempt.deadline,
        )
        work = self._look_after(renewal, scope, version)
        self._upkeep.append(asyncio.create_task(work, name=f"look after {lease_id}"))

    async def _look_after(self, renewal: Renewal, scope: Scope, version: int) -> None:
        """Renew a lease, then replace it if its grant says so; where neither helps have the step end in time."""
        clock = self._broker.clock
        try:
            ending = await renewal.keep(self._broker.vault, clock, self._record)
        except OrchestratorError as error:
            self.on_expiry(error)
            return
        if ending is None:
            return
        reason = ending.reason
        if scope.on_expiry == "reissue":
            try:
                await self._replace(renewal.lease_id, scope, version + 1, ending)
            except OrchestratorError as error:
                reason = f"{reason}, and no other one could take its place: {error.message}"
            else:
                return
        await asyncio.sleep(max(0.0, ending.last_call - clock.monotonic()))
        self.on_expiry(
            StepFailed(
                f"{self._where(scope)} ends before the step does: {reason}",
                kind="expiry",
                hint="raise the grant's ttl and its maximum in Vault, or shorten the step's timeout",
            )
        )

    async def _replace(self, lease_id: str, scope: Scope, version: int, ending: Ending) -> None:
        """Issue a new lease, hand it to the action, and revoke the old one when both have been valid for a while.

        Raises OrchestratorError if the action does not have it before the old one ends.
        """
        clock, successor = self._broker.clock, new_lease_id()
        left = max(0.0, ending.last_call - clock.monotonic())
        try:
            async with asyncio.timeout(left):
                issuance = self._issue_anew(successor, scope, version, ending.last_call)
                await self.deliver(await self._never_abandoned(issuance))
        except TimeoutError:
            raise StepFailed("it was not issued and handed over in time", kind="expiry") from None
        await asyncio.sleep(max(0.0, min(scope.overlap, ending.expires - clock.monotonic())))
        await self._never_abandoned(self._retire(lease_id, f"{successor} has taken its place"))

    async def _issue_anew(self, lease_id: str, scope: Scope, version: int, deadline: float) -> Credential:
        assert self.step_token is not None, "it is kept until everything that is under way has been settled"
        await self._record(self._requested(lease_id, scope))
        return await self._issue(lease_id, scope, self.step_token, version=version, deadline=deadline)

    async def _retire(self, lease_id: str, reason: str) -> None:
        """Take one lease back while the step goes on. What cannot be confirmed now is tried again at its end."""
        handle = next(each for each in self._held if each.lease_id == lease_id)
        await self._record(LeaseRevoking(lease_id=lease_id, reason=reason))
        deadline = self._broker.clock.monotonic() + self._broker.grace
        end = await close_lease(handle, self._broker.vault, deadline=deadline)
        await self._record(end)
        if not isinstance(end, LeaseRevocationFailed):
            self._held.remove(handle)

    async def _never_abandoned(self, work: Coroutine[Any, Any, T]) -> T:
        """Work that goes on when whoever waits for it is cancelled; closing waits for it."""
        task = asyncio.create_task(work)
        self._unabandoned.add(task)
        task.add_done_callback(self._unabandoned.discard)
        return await asyncio.shield(task)

    async def _bind(self, scope: Scope, connection: str, login: str) -> None:
        """Without its values a row limit shows no row at all, so nothing is open before this returns."""
        if self._broker.duties is None:
            raise GrantRefused(
                f"{self._where(scope)}: its row limits cannot be set here",
                grant=scope.name,
                path=scope.resource,
                by="orchestrator",
            )
        await self._broker.duties.bind(
            self._attempt, connection, login, scope.bindings, deadline=self._attempt.deadline
        )

    def _check(self, scope: Scope, issued: Issued, ttl: int) -> None:
        """Refuse what was issued but does not serve: it is on record by now and is closed like any other."""
        needed = int(min(self._attempt.deadline - self._broker.clock.monotonic(), scope.ttl))
        if ttl < needed:
            raise GrantRefused(
                f"{self._where(scope)}: Vault issued it for {ttl}s, not for the {needed}s that the step needs",
                grant=scope.name,
                path=scope.resource,
                hint="shorten the step's timeout, or raise the TTL of the role and of the grant",
            )
        if scope.kind == "database" and not carries(issued.subject, self._attempt.step_key):
            raise GrantRefused(
                f"{self._where(scope)}: the name of the issued login does not carry the step key",
                grant=scope.name,
                path=scope.resource,
                by="orchestrator",
                hint=f"the Vault connection `{scope.connection}` lacks the orchestrator's username_template; "
                "run `orchestrator provision apply`",
            )

    async def _not_issued(self, lease_id: str, scope: Scope, error: OrchestratorError) -> OrchestratorError:
        """Record that a grant was not issued, and turn the reason into the error that the step fails with."""
        self._in_flight.pop(lease_id, None)
        outcome = not_issued(lease_id, scope, self._where(scope), error)
        if outcome.left is not None:
            self._held.append(outcome.left)
        await self._record(outcome.event)
        return outcome.error

    async def _hold(self, handle: LeaseHandle, event: LeaseIssued) -> None:
        """Held first and recorded second: if the record fails, closing still knows what to revoke."""
        self._held.append(handle)
        await self._record(event)

    async def _close(self, reason: str) -> None:
        deadline = self._broker.clock.monotonic() + self._broker.grace
        self._stop.set()
        for task in self._upkeep:
            task.cancel()
        await self._settle()
        self.step_token = None
        held = [*reversed(self._held)]
        self._held = []
        beginning = self._record(
            *self.epilogue,
            *(LeaseFailed(lease_id=lease_id, reason=f"not asked for: {reason}") for lease_id in self._unasked),
            *(LeaseRevoking(lease_id=handle.lease_id, reason=reason) for handle in held if not handle.unknown),
        )
        self._unasked = {}
        taking_back = close_all(
            held, self._attempt, vault=self._broker.vault, duties=self._broker.duties, deadline=deadline
        )
        recorded, ends = await asyncio.gather(beginning, taking_back, return_exceptions=True)
        if isinstance(ends, BaseException):
            raise ends
        self.pending = tuple(end.lease_id for end in ends if isinstance(end, LeaseRevocationFailed))
        if isinstance(recorded, BaseException):
            raise recorded
        await self._record(*ends)

    async def _settle(self) -> None:
        """Wait for what is under way. An issuance that outlasts even the grace is recorded as of unknown outcome."""
        under_way = {*self._unabandoned, *([self._opening] if self._opening else [])}
        if not under_way:
            return
        done, late = await asyncio.wait(under_way, timeout=self._broker.grace)
        for task in done:
            if not task.cancelled():
                task.exception()  # whoever waited for it was told
        if not late:
            return
        for task in late:
            task.cancel()
        held = {handle.lease_id for handle in self._held}
        for lease_id, scope in list(self._in_flight.items()):
            if lease_id not in held:
                self._held.append(LeaseHandle(lease_id, scope.name, scope.kind, scope.resource, unknown=True))
                reason = "outcome unknown: no answer within the grace"
                await self._record(LeaseRevoking(lease_id=lease_id, reason=reason))

    async def _record(self, *events: Event) -> None:
        if events:
            await self._broker.ledger.append(self._attempt.run_id, self._attempt.fence, events)

    def _requested(self, lease_id: str, scope: Scope) -> LeaseRequested:
        return LeaseRequested(
            lease_id=lease_id,
            step=self._attempt.step,
            attempt=self._attempt.number,
            grant=scope.name,
            grant_kind=scope.kind,
            resource=scope.resource,
            step_key=self._attempt.step_key,
            scope=scope.as_json(),  # type: ignore[arg-type]  # an object of JSON values, typed as object
            ttl=scope.ttl,
        )

    def _issued_event(self, lease_id: str, *, ttl: int, **rest: Any) -> LeaseIssued:
        expires = self._broker.clock.now() + timedelta(seconds=ttl)
        return LeaseIssued(lease_id=lease_id, ttl=ttl, expires_at=expires, **rest)

    def _where(self, scope: Scope) -> str:
        return f"step `{self._attempt.step}`: grant `{scope.name}` ({scope.resource})"


def _token_scope(broker: Broker, attempt: Attempt) -> Scope:
    """The attempt's own token: it lives as long as the attempt may take, so that leases can be renewed under it."""
    left = math.ceil(attempt.deadline - broker.clock.monotonic())
    ttl = max([left + STEP_TOKEN_MARGIN, *(scope.ttl for scope in attempt.scopes)])
    return Scope(STEP_TOKEN_GRANT, STEP_TOKEN_KIND, attempt.policy, ttl)


def _not_looked_for(credential: Credential, secrets: Sequence[Secret]) -> tuple[str, ...]:
    return tuple(
        name for name, value in credential.fields.items() if value in secrets and not recognisable(value.reveal())
    )


async def _to_the_end(work: Coroutine[Any, Any, None]) -> None:
    """Run clean-up that a cancellation of the caller must not cut off; the cancellation is raised afterwards."""
    task = asyncio.ensure_future(work)
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.wait({task})
        except asyncio.CancelledError as error:
            cancelled = error
    task.result()
    if cancelled is not None:
        raise cancelled


async def _takes_nothing(credential: Credential) -> None:
    raise StepFailed("the step takes no new credential while it runs", kind="expiry")


def _why(error: BaseException) -> str:
    if isinstance(error, asyncio.CancelledError):
        return "cancelled"
    if isinstance(error, TimeoutError):
        return "timed out"
    return f"step failed: {type(error).__name__}"
