"""How a credential that is issued anew reaches the action at work, and one that is handed over whoever called."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable

from orchestrator.errors import NotRenewed
from orchestrator.grants.credential import Credential

Receive = Callable[[Credential], Awaitable[None]]
"""Brings a new credential to the work that goes on. Returning means that it is there; raises StepFailed otherwise."""

Renew = Callable[[], Awaitable[float]]
"""Has a lease renewed; when it ends then (monotonic). Raises NotRenewed, and what Vault and the ledger raise."""

_TO_END_SECONDS = 0.1
"""How long before its end a credential is taken back, so that one that ran out is no failure."""


class Handover:
    """Between the broker, which issues, and one run of an action, which takes. Belongs to one event loop."""

    def __init__(self) -> None:
        self._receive: Receive | None = None
        self._taking = asyncio.Event()
        self._turn = asyncio.Lock()
        self.delivered: list[Credential] = []
        """Everything that was issued anew, the newest last: the action's messages are cleared of these, too."""

    def take(self, receive: Receive) -> None:
        """Say how a new credential is brought to the work. What came before that is brought now."""
        self._receive = receive
        self._taking.set()

    async def deliver(self, credential: Credential) -> None:
        """Bring a new credential to the action, as soon as it takes any, one after another. Raises StepFailed."""
        self.delivered.append(credential)
        await self._taking.wait()
        async with self._turn:
            assert self._receive is not None
            await self._receive(credential)


class Recipient:
    """Whoever waits in this process for the credential of one call. Belongs to one event loop.

    Times are of the monotonic clock, which is the event loop's.
    """

    def __init__(self) -> None:
        self._credential: asyncio.Future[Credential] = asyncio.get_running_loop().create_future()
        self._back = asyncio.Event()
        self._renew: Renew | None = None
        self._ends = math.inf
        self._latest = math.inf
        self._limit: asyncio.Timeout | None = None
        self._turn = asyncio.Lock()

    def renewed_by(self, renew: Renew, ends: float | None) -> None:
        """Say how it is renewed, and when it ends until then; None where it lasts as long as the call anyway."""
        if ends is not None:
            self._renew, self._ends = renew, ends

    async def credential(self) -> Credential:
        """Wait for it. It never comes where the call ends before: wait for that as well."""
        return await asyncio.shield(self._credential)

    def give(self, credential: Credential) -> None:
        """Let the recipient have it."""
        if not self._credential.done():
            self._credential.set_result(credential)

    def give_back(self) -> None:
        """It is needed no more."""
        self._back.set()

    async def renew(self) -> None:
        """Have it longer. Where it lasts as long as it may already, nothing changes.

        Raises NotRenewed where it is not held any more, and what `Renew` raises.
        """
        async with self._turn:
            self._check_held()
            if self._renew is not None:
                self._ends = await self._renew()
                self._check_held().reschedule(self._end())

    async def until_given_back(self, latest: float) -> bool:
        """Whether it is given back before it ends, renewed or not, and before `latest`."""
        self._latest = latest
        try:
            async with asyncio.timeout_at(self._end()) as self._limit:
                await self._back.wait()
        except TimeoutError:
            return False
        finally:
            self._limit = None
        return True

    def _end(self) -> float:
        return min(self._ends, self._latest) - _TO_END_SECONDS

    def _check_held(self) -> asyncio.Timeout:
        if self._limit is None or self._limit.expired() or self._back.is_set():
            raise ended()
        return self._limit


def ended() -> NotRenewed:
    """Why a credential is not renewed that nobody has any more."""
    return NotRenewed("it has ended", hint="call the tool again for another one")
