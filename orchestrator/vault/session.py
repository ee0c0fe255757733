"""The one Vault session of a runner: login, child tokens, issuance, revocation.

Every request runs in a thread and is never abandoned: whoever cancels the awaiting task leaves the
request running, and `Broker` waits for its answer. See `orchestrator.credentials.broker`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import Any

from orchestrator.clock import Clock
from orchestrator.errors import OrchestratorError
from orchestrator.secret import Secret
from orchestrator.vault.config import VaultConfig
from orchestrator.vault.faults import Outcome, VaultRefused, VaultUnavailable
from orchestrator.vault.fields import (
    Confirmation,
    done,
    no_such_token,
    not_understood,
    seconds,
    section,
    text,
    token_gone,
)
from orchestrator.vault.identity import RuntimeIdentity, granted_token
from orchestrator.vault.retry import retrying
from orchestrator.vault.threads import Threads
from orchestrator.vault.time import VaultTime
from orchestrator.vault.transport import Transport

_TIME_SECONDS = 5.0
"""How long Vault is waited for that is asked for nothing but the time."""

_TIME_PAUSE = 10.0
"""Seconds after such a question before the next one, whatever came of it: many may want to know."""

_LEAST_WAIT = 2.0
"""Seconds that a revocation is given even if those before it have used up all the time."""


@dataclass(frozen=True, slots=True)
class StepToken:
    """A child token for one step attempt. `ttl` in seconds from its creation."""

    token: Secret
    accessor: str
    ttl: int


@dataclass(frozen=True, slots=True)
class IrrevocableLease:
    """A lease that Vault tries no more to revoke. `error` is the beginning of its last reason; neither is a secret."""

    vault_lease_id: str
    error: str


class VaultSession:
    """Logged in as the runtime. Create it, use it from one event loop, then `await aclose()`.

    `remember` is called with every secret that arrives, before anybody else sees it, so that a
    redactor knows it; `own_token` (in a thread) with the accessor of every token that it logs in for,
    before anything is issued with it.
    """

    def __init__(
        self,
        config: VaultConfig,
        *,
        clock: Clock,
        remember: Callable[[Secret], None],
        own_token: Callable[[str], None] = lambda accessor: None,
    ) -> None:
        self._config = config
        self._clock = clock
        self._remember = remember
        self._time = VaultTime(clock)
        self._asking_time = asyncio.Lock()
        self._ask_time_from = 0.0
        self._transport = Transport(config, hear_date=self._time.hear)
        self._threads = Threads(config.connections, "vault")
        self._identity = RuntimeIdentity(
            config.auth, ask=self.request, clock=clock, remember=remember, own_token=own_token
        )

    def time(self) -> datetime | None:
        """The time at Vault; None if it has not answered lately. See `orchestrator.vault.time`."""
        return self._time.now()

    async def ask_time(self) -> datetime | None:
        """The time at Vault, asked for if it has not answered lately; None if it does not answer now either."""
        async with self._asking_time:
            begun = self._clock.monotonic()
            if self._time.now() is None and begun >= self._ask_time_from:
                with suppress(OrchestratorError):  # a refusal tells the time, too
                    await self.runtime_request("get", "auth/token/lookup-self", deadline=begun + _TIME_SECONDS)
                self._ask_time_from = self._clock.monotonic() + _TIME_PAUSE
        return self._time.now()

    async def request(
        self,
        method: str,
        path: str,
        *,
        token: Secret | None,
        deadline: float,
        payload: Mapping[str, Any] | None = None,
        repeatable: bool = True,
        stop: asyncio.Event | None = None,
        confirmed_by: Confirmation | None = None,
    ) -> dict[str, Any]:
        """One request with retries until `deadline` (monotonic seconds).

        With `confirmed_by` only such an answer counts; see `orchestrator.vault.fields`.
        `repeatable=False` for what creates something: it is then tried again only if it was
        certainly not done, and its answer is waited for as long as Vault may take. What is
        repeatable is given up at the deadline. Raises VaultRefused or VaultUnavailable.
        """

        async def once() -> dict[str, Any]:
            seconds = deadline - self._clock.monotonic() if repeatable else None
            call = partial(
                self._transport.request,
                method,
                path,
                token=token,
                payload=payload,
                seconds=seconds,
                confirmed_by=confirmed_by,
            )
            return await self._threads.run(call)

        return await retrying(once, clock=self._clock, deadline=deadline, repeatable=repeatable, stop=stop)

    async def login(self, *, deadline: float) -> None:
        """Become the runtime identity, if not done yet. Raises VaultRefused, VaultUnavailable or UsageError."""
        await self._identity.token(deadline=deadline)

    async def keep_identity(self, *, deadline: float) -> None:
        """Renew the runtime's own token if it is time to; see `RuntimeIdentity.keep`."""
        await self._identity.keep(deadline=deadline)

    async def runtime_request(
        self,
        method: str,
        path: str,
        *,
        deadline: float,
        payload: Mapping[str, Any] | None = None,
        confirmed_by: Confirmation | None = None,
    ) -> dict[str, Any]:
        """A repeatable request as the runtime identity; see `request`."""
        return await self._as_runtime(
            partial(self._identity.token, deadline=deadline),
            lambda token: self.request(
                method, path, token=token, deadline=deadline, payload=payload, confirmed_by=confirmed_by
            ),
            deadline,
        )

    async def _as_runtime(
        self,
        identity: Callable[[], Awaitable[Secret]],
        call: Callable[[Secret], Awaitable[dict[str, Any]]],
        deadline: float,
    ) -> dict[str, Any]:
        """Make a request with the runtime's own token, and once more if it turns out that the token is gone."""
        token = await identity()
        try:
            return await call(token)
        except VaultRefused as refusal:
            if refusal.status != 403:
                raise
            await self._identity.replace(token, refusal, deadline=deadline)
        return await call(await identity())

    async def create_step_token(
        self,
        *,
        role: str,
        display_name: str,
        ttl: int,
        metadata: Mapping[str, str],
        deadline: float,
        stop: asyncio.Event | None = None,
    ) -> StepToken:
        """A child token through a token role, which gives it its one policy and the longest that it may live.

        The runtime may ask for a shorter life and nothing else.
        The runtime's own token is renewed or obtained again first where it would not outlive the child.
        """
        path = f"auth/token/create/{role}"
        wish = {"display_name": display_name, "ttl": f"{ttl}s", "meta": dict(metadata)}

        async def parent() -> Secret:
            try:
                return await self._identity.parent(ttl=ttl, path=path, deadline=deadline, stop=stop)
            except VaultUnavailable as error:
                error.outcome = Outcome.NOT_DONE  # whatever became of the login, no child was asked for
                raise

        def create(parent: Secret) -> Awaitable[dict[str, Any]]:
            return self.request(
                "post", path, token=parent, deadline=deadline, repeatable=False, stop=stop, payload=wish
            )

        granted = granted_token(await self._as_runtime(parent, create, deadline), path)
        self._remember(granted.token)
        return StepToken(granted.token, granted.accessor, granted.ttl)

    async def revoke_lease(self, vault_lease_id: str, *, deadline: float) -> None:
        """Revoke and wait until it is done (`sync`). A lease that is already gone counts as revoked.

        Raises VaultRefused, and VaultUnavailable also where an answer came that does not confirm it.
        """
        wish = {"lease_id": vault_lease_id, "sync": True}
        try:
            await self._take_back("put", "sys/leases/revoke", wish, deadline, done)
        except VaultRefused as refusal:
            if not (refusal.status in (400, 404) and "lease not found" in refusal.message):
                raise

    async def renew_lease(self, vault_lease_id: str, *, increment: int, deadline: float) -> int:
        """Ask for `increment` more seconds from now, and return how many were granted.

        Raises VaultRefused or VaultUnavailable.
        """
        path, wish = "sys/leases/renew", {"lease_id": vault_lease_id, "increment": increment}
        return seconds(await self.runtime_request("put", path, deadline=deadline, payload=wish), "lease_duration", path)

    async def revoke_accessor(self, accessor: str, *, deadline: float) -> None:
        """Revoke a child token. Its remaining leases are queued by Vault, not yet gone, when this returns.

        A token that is already gone counts as revoked. Raises as `revoke_lease`.
        """
        try:
            await self._take_back("post", "auth/token/revoke-accessor", {"accessor": accessor}, deadline, token_gone)
        except VaultRefused as refusal:
            if not no_such_token(refusal.status, refusal.message):
                raise

    async def _take_back(
        self, method: str, path: str, payload: Mapping[str, Any], deadline: float, confirmed_by: Confirmation
    ) -> None:
        until = max(deadline, self._clock.monotonic() + _LEAST_WAIT)
        await self.runtime_request(method, path, deadline=until, payload=payload, confirmed_by=confirmed_by)

    async def irrevocable_leases(self, *, deadline: float) -> list[IrrevocableLease]:
        """The leases that Vault has given up revoking, with its reasons. Raises VaultRefused or VaultUnavailable."""
        path = "sys/leases?type=irrevocable"
        data = section(await self.runtime_request("get", path, deadline=deadline), "data", path)
        leases = data.get("leases")
        if not isinstance(leases, list | None) or not all(isinstance(each, dict) for each in leases or ()):
            raise not_understood(path)
        return [IrrevocableLease(text(each, "lease_id", path), str(each.get("error", ""))) for each in leases or ()]

    async def aclose(self, *, deadline: float | None = None) -> bool:
        """Give the runtime's own tokens back and close. Whatever still hangs from them goes with them.

        False if Vault did not confirm it for each of them.
        """
        until = deadline if deadline is not None else self._clock.monotonic() + 5
        try:
            return await self._identity.give_back(deadline=until)
        finally:
            self._threads.close()
            self._transport.close()
