"""How a credential that is issued anew reaches the action at work, and one that is handed over whoever called."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from orchestrator.grants.credential import Credential

Receive = Callable[[Credential], Awaitable[None]]
"""Brings a new credential to the work that goes on. Returning means that it is there; raises StepFailed otherwise."""


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
    """Whoever waits in this process for the credential of one call. Belongs to one event loop."""

    def __init__(self) -> None:
        self._credential: asyncio.Future[Credential] = asyncio.get_running_loop().create_future()
        self._back = asyncio.Event()

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

    async def until_given_back(self, seconds: float) -> bool:
        """Whether it is given back within that time."""
        try:
            async with asyncio.timeout(seconds):
                await self._back.wait()
        except TimeoutError:
            return False
        return True
