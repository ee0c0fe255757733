"""Opens and closes all credentials of one step attempt, in the right order.

Opening: the intent is committed to the ledger, a child token is minted, each lease is issued and committed before
the step may see it. In between, leases that end before the step are renewed, or replaced. Closing, in reverse:
each lease is revoked synchronously, then the child token by its accessor; what Vault does not confirm is looked
for in the database at once, and the rest when the run is over. An issuance in flight is never abandoned: closing
waits for its answer, then revokes it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType

from orchestrator.credentials.closing import close_lease, merged, suspects_of
from orchestrator.credentials.opening import Opening
from orchestrator.credentials.parts import BrokerParts
from orchestrator.credentials.run_leases import RunLeases
from orchestrator.credentials.types import STEP_TOKEN_KIND, Attempt, LeaseHandle, LeasesOfRun, Suspect
from orchestrator.credentials.upkeep import Upkeep
from orchestrator.credentials.witnesses.dead_login import DeadLogin
from orchestrator.errors import OrchestratorError
from orchestrator.grants.credential import Credential
from orchestrator.ledger.events import Event, LeaseEvent, LeaseFailed, LeaseRevoking, OrphansSwept
from orchestrator.ledger.journal import SOON_SECONDS, Journal
from orchestrator.secret import Secret
from orchestrator.uninterrupted import to_the_end
from orchestrator.vault.session import StepToken


class Broker(BrokerParts):
    """Opens the credentials of step attempts."""

    def of_run(self, journal: Journal) -> RunLeases:
        """What the attempts of one run share. Settle it before the run is over."""
        return RunLeases(self, journal)

    def open(self, attempt: Attempt, *, prelude: Sequence[Event] = (), run: LeasesOfRun | None = None) -> StepLeases:
        """The credentials of an attempt, as an asynchronous context manager.

        `prelude` is committed in the same transaction as the intent. Without a `run` nothing is left to it:
        leaving the context takes back, and confirms, everything. Entering raises GrantRefused,
        VaultUnreachable or LedgerError after everything already opened has been closed again.
        """
        own = None if run is not None else self.of_run(Journal(self.ledger, attempt.run_id, attempt.fence))
        shared = run or own
        assert shared is not None
        return StepLeases(self, attempt, prelude, shared, own)


@dataclass(frozen=True, slots=True)
class _TakenBack:
    """What became of the leases of a step, whose database is yet to be asked, and the tokens that are left."""

    ends: Sequence[LeaseEvent | OrphansSwept]
    suspects: Sequence[Suspect]
    tokens: Sequence[LeaseHandle] = ()


class StepLeases:
    """The open credentials of one attempt. Leaving the context takes them back, however it is left."""

    def __init__(
        self, broker: Broker, attempt: Attempt, prelude: Sequence[Event], run: LeasesOfRun, own: RunLeases | None
    ) -> None:
        self._broker = broker
        self._attempt = attempt
        self._run = run
        self._own = own
        self._upkeep = Upkeep()
        self._opening = Opening(broker, attempt, run, keep=lambda lease: self._upkeep.keep(self._opening, lease))
        self._opening.unrecorded = tuple(prelude)
        self._task: asyncio.Task[dict[str, Credential]] | None = None
        self.epilogue: tuple[Event, ...] = ()
        """Committed together with the beginning of the revocation; set it before leaving the context."""

    @property
    def replaceable(self) -> bool:
        """Whether any credential of the attempt may be issued anew while the action runs."""
        return any(scope.on_expiry == "reissue" for scope in self._attempt.scopes)

    @property
    def unrecorded(self) -> tuple[Event, ...]:
        """What goes along with the first intent, until that is on record."""
        return self._opening.unrecorded

    @property
    def step_token(self) -> StepToken | None:
        """The attempt's own token while its leases are open: for proving what it cannot do, never for a step."""
        return self._opening.step_token

    @property
    def ends(self) -> float | None:
        """When the lease ends that only its holder has renewed (monotonic); None where there is none."""
        return self._upkeep.ends

    async def renew(self) -> float:
        """Renew that lease, by its `ttl` and not beyond the attempt; when it ends then (monotonic).

        Raises NotRenewed, VaultRefused, VaultUnavailable and LedgerError.
        """
        return await self._upkeep.renew(self._opening)

    def watch(
        self,
        on_expiry: Callable[[OrchestratorError], None],
        on_secret: Callable[[Secret], None],
        deliver: Callable[[Credential], Awaitable[None]] | None = None,
    ) -> None:
        """Say who is told that a lease ends before the step does, and what brings a new credential to the action.

        `on_secret` is called with every secret that is issued to the attempt, before anybody else has it.
        """
        self._upkeep.on_expiry = on_expiry
        self._opening.on_secret = on_secret
        if deliver is not None:
            self._upkeep.deliver = deliver

    async def __aenter__(self) -> Mapping[str, Credential]:
        if not self._attempt.scopes:
            await to_the_end(self._opening.record())
            return {}
        self._task = asyncio.create_task(self._opening.open(), name=f"open {self._attempt.step_key}")
        try:
            return await asyncio.shield(self._task)
        except BaseException as error:
            self._opening.stop.set()
            await to_the_end(self._close(_why(error)))
            raise

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await to_the_end(self._close("step ended" if error is None else _why(error)))

    async def _close(self, reason: str) -> None:
        if not self._attempt.scopes:  # nothing is held, and the end of such a step is told with what comes next
            self._run.journal.defer(*self.epilogue, within=SOON_SECONDS)
            if self._own is not None:
                await self._own.settle()
            return
        deadline = self._broker.clock.monotonic() + self._broker.grace
        self._opening.stop.set()
        self._upkeep.stop()
        await self._settle()
        self._opening.step_token = None
        held, self._opening.held = [*reversed(self._opening.held)], []
        to_try, self._opening.to_try = self._opening.to_try, {}
        tokens = [handle for handle in held if handle.grant_kind == STEP_TOKEN_KIND]
        beginning = self._run.journal.append(
            *self.epilogue,
            *(LeaseFailed(lease_id=lease, reason=f"not asked for: {reason}") for lease in self._opening.unasked),
            *(LeaseRevoking(lease_id=handle.lease_id, reason=reason) for handle in held if not handle.unknown),
        )
        self._opening.unasked = {}
        leases = [handle for handle in held if handle not in tokens]
        taking_back = self._take_back(leases, tokens, to_try, deadline)
        recorded, taken = await asyncio.gather(beginning, taking_back, return_exceptions=True)
        if isinstance(taken, BaseException):
            raise taken
        on_record = not isinstance(recorded, BaseException)
        for handle in taken.tokens:
            self._run.in_background(self._take_back_token(handle, deadline, on_record=on_record))
        if on_record:  # an end can follow only where the beginning is on record
            self._run.journal.defer(*taken.ends)
            self._run.given_back(self._attempt, taken.suspects)
            for suspect in taken.suspects:
                if (dead := to_try.pop(suspect.handle.lease_id, None)) is not None:
                    self._run.try_login(dead, deadline=deadline)
        if self._own is not None:
            await self._own.settle()
        if isinstance(recorded, BaseException):
            raise recorded

    async def _take_back(
        self,
        held: Sequence[LeaseHandle],
        tokens: Sequence[LeaseHandle],
        to_try: dict[str, DeadLogin],
        deadline: float,
    ) -> _TakenBack:
        """Have Vault revoke the leases; the step's token is left, since nobody waits for its end.

        What Vault does not confirm may still hang from the token, so then that goes at once, too, and the database
        is asked.
        """
        broker, attempt = self._broker, self._attempt
        ends: list[LeaseEvent | OrphansSwept] = await self._ended(held, deadline)
        retired = self._upkeep.retired
        handles = [*held, *(handle for handle, _ in retired)]
        suspects = suspects_of(attempt.step_key, handles, [*ends, *(end for _, end in retired)])
        if all(suspect.vault_agrees for suspect in suspects):
            return _TakenBack(ends, suspects, tokens)
        ends += [await close_lease(handle, broker.vault, deadline=deadline) for handle in tokens]
        ends += await self._tried(suspects, to_try, deadline)  # while there is still something to be refused
        told = (await self._run.asked(suspects, attempt, deadline=deadline)).told
        decided = {event.lease_id for event in told if not isinstance(event, OrphansSwept)}
        left = [each for each in suspects if each.vault_agrees and each.handle.lease_id not in decided]
        return _TakenBack(merged(ends, told), left)

    async def _tried(
        self, suspects: Sequence[Suspect], to_try: dict[str, DeadLogin], deadline: float
    ) -> Sequence[LeaseEvent]:
        if (logins := self._broker.dead_logins) is None:
            return []
        revoked = [each.handle.lease_id for each in suspects if each.vault_agrees]
        dead = [to_try.pop(lease_id) for lease_id in revoked if lease_id in to_try]
        return await asyncio.gather(*(logins.tried(each, deadline=deadline) for each in dead))

    async def _ended(self, held: Sequence[LeaseHandle], deadline: float) -> list[LeaseEvent | OrphansSwept]:
        """What becomes of the leases. Other issuers than Vault are asked meanwhile: a slow one holds up nobody."""
        broker, key = self._broker, self._attempt.step_key

        async def ended(*handles: LeaseHandle) -> list[LeaseEvent]:
            return [
                await close_lease(each, broker.vault, deadline=deadline, confirm=broker.confirmed_by(each, key))
                for each in handles
            ]

        of_vault = [handle for handle in held if not handle.outside]
        outside = [handle for handle in held if handle.outside]
        told = await asyncio.gather(ended(*of_vault), *(ended(handle) for handle in outside))
        return [event for events in told for event in events]

    async def _take_back_token(self, handle: LeaseHandle, deadline: float, *, on_record: bool) -> None:
        end = await close_lease(handle, self._broker.vault, deadline=deadline)
        if on_record:
            self._run.journal.defer(end)

    async def _settle(self) -> None:
        """Wait for what is under way. An issuance that outlasts even the grace is recorded as of unknown outcome."""
        under_way = {*self._upkeep.under_way, *([self._task] if self._task else [])}
        done, late = await asyncio.wait(under_way, timeout=self._broker.grace) if under_way else (set(), set())
        for task in done:
            if not task.cancelled():
                task.exception()  # whoever waited for it was told
        await self._opening.give_up_on(list(late))


def _why(error: BaseException) -> str:
    if isinstance(error, asyncio.CancelledError):
        return "cancelled"
    if isinstance(error, TimeoutError):
        return "timed out"
    return f"step failed: {type(error).__name__}"
