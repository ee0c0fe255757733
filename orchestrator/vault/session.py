"""The one Vault session of a runner: login, child tokens, issuance, revocation.

Every request runs in a thread and is never abandoned: whoever cancels the awaiting task leaves the
request running, and `Broker` waits for its answer. See `orchestrator.credentials.broker`.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

from orchestrator.clock import Clock
from orchestrator.secret import Secret
from orchestrator.vault.config import TokenAuth, TokenFileAuth, VaultConfig
from orchestrator.vault.faults import Outcome, VaultRefused, VaultUnavailable
from orchestrator.vault.login_request import login_request, read_secret
from orchestrator.vault.retry import retrying
from orchestrator.vault.transport import Transport

_log = logging.getLogger(__name__)

_PARENT_MARGIN = 5.0
"""Seconds that the runtime's token must outlive a child token; a child dies with its parent."""

_LEAST_WAIT = 2.0
"""Seconds that a revocation is waited for even if those before it have used up all the time."""


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


@dataclass(slots=True)
class _RuntimeToken:
    token: Secret
    expires: float | None
    """Monotonic seconds, or None if it never expires."""
    renewable: bool
    own: bool
    """We obtained it by logging in, so we give it back at the end."""


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
        self._own_token = own_token
        self._transport = Transport(config)
        self._threads = ThreadPoolExecutor(max_workers=config.connections, thread_name_prefix="vault")
        self._runtime: _RuntimeToken | None = None
        self._retired: list[Secret] = []
        self._login_lock = asyncio.Lock()

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
    ) -> dict[str, Any]:
        """One request with retries until `deadline` (monotonic seconds).

        `repeatable=False` for what creates something: it is then tried again only if it was
        certainly not done. Raises VaultRefused or VaultUnavailable.
        """
        call = partial(self._transport.request, method, path, token=token, payload=payload)
        return await retrying(
            partial(self._in_thread, call), clock=self._clock, deadline=deadline, repeatable=repeatable, stop=stop
        )

    async def _in_thread(self, call: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        return await asyncio.get_running_loop().run_in_executor(self._threads, call)

    async def login(self, *, deadline: float, stop: asyncio.Event | None = None) -> None:
        """Become the runtime identity, if not done yet. Raises VaultRefused, VaultUnavailable or UsageError."""
        async with self._login_lock:
            if self._runtime is None:
                self._runtime = await self._log_in(deadline, stop)
            else:
                self._remember(self._runtime.token)  # it is in use: not to be forgotten with older secrets

    async def runtime_request(
        self, method: str, path: str, *, deadline: float, payload: Mapping[str, Any] | None = None
    ) -> dict[str, Any]:
        """A repeatable request as the runtime identity."""
        await self.login(deadline=deadline)
        assert self._runtime is not None
        return await self.request(method, path, token=self._runtime.token, deadline=deadline, payload=payload)

    async def create_step_token(
        self,
        *,
        policy: str,
        display_name: str,
        ttl: int,
        metadata: Mapping[str, str],
        deadline: float,
        stop: asyncio.Event | None = None,
    ) -> StepToken:
        """A child token with exactly one policy, through the token role.

        The runtime's own token is renewed or obtained again first where it would not outlive the child.
        """
        path = f"auth/token/create/{self._config.token_role}"
        try:
            parent = await self._parent_for(ttl, deadline, stop)
        except VaultUnavailable as error:
            error.outcome = Outcome.NOT_DONE  # whatever became of the login, no child was asked for
            raise
        body = await self.request(
            "post",
            path,
            token=parent,
            deadline=deadline,
            repeatable=False,
            stop=stop,
            payload={
                "policies": [policy],
                "display_name": display_name,
                "ttl": f"{ttl}s",
                "explicit_max_ttl": f"{ttl}s",
                "meta": dict(metadata),
                "renewable": True,
            },
        )
        token, auth = self._granted(body, path)
        return StepToken(token, str(auth["accessor"]), int(auth["lease_duration"]))

    def _granted(self, body: Mapping[str, Any], path: str) -> tuple[Secret, Mapping[str, Any]]:
        """The token of an answer, remembered, and what is said of it. Raises VaultUnavailable if it is not there."""
        auth = body.get("auth")
        if not isinstance(auth, dict) or not {"client_token", "accessor", "lease_duration", "renewable"} <= set(auth):
            raise _not_understood(path)
        token = Secret(auth["client_token"])
        self._remember(token)
        return token, auth

    async def revoke_lease(self, vault_lease_id: str, *, deadline: float) -> None:
        """Revoke and wait until it is done (`sync`). A lease that is already gone counts as revoked."""
        try:
            await self._take_back("put", "sys/leases/revoke", {"lease_id": vault_lease_id, "sync": True}, deadline)
        except VaultRefused as refusal:
            if not (refusal.status in (400, 404) and "lease not found" in refusal.message):
                raise

    async def renew_lease(self, vault_lease_id: str, *, increment: int, deadline: float) -> int:
        """Ask for `increment` more seconds from now, and return how many were granted.

        Raises VaultRefused or VaultUnavailable.
        """
        body = await self.runtime_request(
            "put", "sys/leases/renew", deadline=deadline, payload={"lease_id": vault_lease_id, "increment": increment}
        )
        granted = body.get("lease_duration")
        if not isinstance(granted, int):
            raise _not_understood("sys/leases/renew")
        return granted

    async def revoke_accessor(self, accessor: str, *, deadline: float) -> None:
        """Revoke a child token. Its remaining leases are queued by Vault, not yet gone, when this returns."""
        try:
            await self._take_back("post", "auth/token/revoke-accessor", {"accessor": accessor}, deadline)
        except VaultRefused as refusal:
            if not (refusal.status in (400, 403, 404) and "invalid accessor" in refusal.message):
                raise

    async def _take_back(self, method: str, path: str, payload: Mapping[str, Any], deadline: float) -> None:
        """A revocation, waited for until `deadline` and no longer, whatever Vault waits for.

        Its request is left to itself then: Vault goes on with it, and asking again does no harm. Logging in
        is not cut short, since the token that it brings would be lost.
        """
        await self.login(deadline=deadline)
        try:
            async with asyncio.timeout(max(_LEAST_WAIT, deadline - self._clock.monotonic())):
                await self.runtime_request(method, path, deadline=deadline, payload=payload)
        except TimeoutError:
            raise VaultUnavailable(
                f"Vault gave no answer to {path} in time", outcome=Outcome.UNKNOWN, path=path
            ) from None

    async def irrevocable_leases(self, *, deadline: float) -> list[IrrevocableLease]:
        """The leases that Vault has given up revoking, with its reasons. Raises VaultRefused or VaultUnavailable."""
        path = "sys/leases?type=irrevocable"
        body = await self.runtime_request("get", path, deadline=deadline)
        data = body.get("data")
        if not isinstance(data, dict) or not isinstance(data.get("leases"), list | None):
            raise _not_understood(path)
        return [
            IrrevocableLease(str(each["lease_id"]), str(each.get("error", ""))) for each in data.get("leases") or ()
        ]

    async def aclose(self, *, deadline: float | None = None) -> bool:
        """Give the runtime's own tokens back and close. Whatever still hangs from them goes with them.

        False if Vault did not confirm it for each of them.
        """
        own = list(self._retired)
        if self._runtime is not None and self._runtime.own:
            own.append(self._runtime.token)
        self._runtime, self._retired = None, []
        until = deadline if deadline is not None else self._clock.monotonic() + 5
        try:
            return all([await self._give_back(token, until) for token in own])
        finally:
            self._threads.shutdown(wait=False)
            self._transport.close()

    async def _give_back(self, token: Secret, deadline: float) -> bool:
        """Revoke a token of our own; whether it is gone. One that Vault no longer knows (403) has expired.

        That Vault does not take one back now must not hide how the run ended: recovery revokes it by its accessor.
        """
        try:
            await self.request("post", "auth/token/revoke-self", token=token, deadline=deadline)
        except VaultRefused as refusal:
            if refusal.status != 403:
                raise
        except VaultUnavailable as error:
            _log.warning("the orchestrator's own Vault token is not given back yet: %s", error.message)
            return False
        return True

    async def _parent_for(self, ttl: int, deadline: float, stop: asyncio.Event | None) -> Secret:
        """The runtime's token, made to live longer than a child of `ttl` seconds."""
        await self.login(deadline=deadline, stop=stop)
        async with self._login_lock:
            assert self._runtime is not None
            if self._outlives(self._runtime, ttl):
                return self._runtime.token
            if self._runtime.renewable:
                self._runtime.expires = await self._renew(self._runtime, deadline)
            if not self._outlives(self._runtime, ttl) and not isinstance(self._config.auth, TokenAuth):
                if self._runtime.own:
                    self._retired.append(self._runtime.token)
                self._runtime = await self._log_in(deadline, stop)
            if not self._outlives(self._runtime, ttl):
                raise VaultRefused(
                    f"the orchestrator's own Vault token expires before a step token of {ttl}s would",
                    status=0,
                    path=f"auth/token/create/{self._config.token_role}",
                    hint="shorten the step's timeout, or give the runtime identity a longer token_ttl or token_period",
                )
            return self._runtime.token

    def _outlives(self, runtime: _RuntimeToken, ttl: int) -> bool:
        return runtime.expires is None or runtime.expires - self._clock.monotonic() >= ttl + _PARENT_MARGIN

    async def _renew(self, runtime: _RuntimeToken, deadline: float) -> float | None:
        try:
            body = await self.request("post", "auth/token/renew-self", token=runtime.token, deadline=deadline)
        except VaultRefused:
            return runtime.expires
        _, granted = self._granted(body, "auth/token/renew-self")
        return self._expiry(granted["lease_duration"])

    def _expiry(self, seconds: int) -> float | None:
        return self._clock.monotonic() + seconds if seconds else None

    async def _log_in(self, deadline: float, stop: asyncio.Event | None) -> _RuntimeToken:
        auth = self._config.auth
        if isinstance(auth, TokenAuth | TokenFileAuth):
            token = auth.token if isinstance(auth, TokenAuth) else read_secret(auth.path, "Vault token file")
            self._remember(token)
            path = "auth/token/lookup-self"
            body = await self.request("get", path, token=token, deadline=deadline, stop=stop)
            data = body.get("data")
            if not isinstance(data, dict) or "ttl" not in data:
                raise _not_understood(path)
            return _RuntimeToken(token, self._expiry(data["ttl"]), bool(data.get("renewable")), own=False)
        path, payload = login_request(auth)
        body = await self.request("post", path, token=None, deadline=deadline, payload=payload, stop=stop)
        token, granted = self._granted(body, path)
        await asyncio.to_thread(self._own_token, str(granted["accessor"]))
        return _RuntimeToken(token, self._expiry(granted["lease_duration"]), bool(granted["renewable"]), own=True)


def _not_understood(path: str) -> VaultUnavailable:
    return VaultUnavailable(
        f"Vault's answer to {path} cannot be understood", outcome=Outcome.UNKNOWN, path=path, status=200
    )
