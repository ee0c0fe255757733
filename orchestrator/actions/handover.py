"""How a credential that is issued anew while a step runs reaches its action."""

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
