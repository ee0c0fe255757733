"""The runtime's own Vault token: obtained when it is first needed, kept alive, obtained again, given back.

A run never dies of it. A token whose known life is nearly over is renewed, or another one is obtained; one that
Vault does not know any more (it was revoked, or Vault lost it) is noticed by the 403 that it gets, and replaced.
Step tokens hang from the token that made them and die with it, so a token that is only replaced lives on until
the end, and what hung from one that was revoked is gone as well.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Protocol

from orchestrator.clock import Clock
from orchestrator.secret import Secret
from orchestrator.vault.config import AppRoleAuth, Auth, TokenAuth, TokenFileAuth
from orchestrator.vault.faults import Outcome, VaultRefused, VaultUnavailable
from orchestrator.vault.fields import Confirmation, done, seconds, section, text
from orchestrator.vault.login_request import login_request, read_secret

_log = logging.getLogger(__name__)

_MARGIN = 5.0
"""Seconds that the token must outlive what is done with it: one request, or a child token."""

_GONE = "the orchestrator's own Vault token is gone: it has expired, or somebody has revoked it"

_LOOKUP, _RENEW, _REVOKE = "auth/token/lookup-self", "auth/token/renew-self", "auth/token/revoke-self"


class Ask(Protocol):
    """A request to Vault with retries until the deadline; see `VaultSession.request`."""

    def __call__(
        self,
        method: str,
        path: str,
        *,
        token: Secret | None,
        deadline: float,
        payload: Mapping[str, Any] | None = None,
        stop: asyncio.Event | None = None,
        confirmed_by: Confirmation | None = None,
    ) -> Awaitable[dict[str, Any]]:
        """The JSON body of the answer. Raises VaultRefused or VaultUnavailable."""
        ...


@dataclass(frozen=True, slots=True)
class GrantedToken:
    """What Vault says of a token that it grants or renews. `ttl` is in seconds from now, 0 if it never expires."""

    token: Secret
    accessor: str
    ttl: int
    renewable: bool


@dataclass(slots=True)
class _Held:
    token: Secret
    life: float
    """Seconds that were granted last; 0 if it never expires."""
    expires: float | None
    """Monotonic seconds, or None if it never expires."""
    renewable: bool
    own: bool
    """We obtained it by logging in, so we give it back at the end."""

    def outlives(self, moment: float) -> bool:
        return self.expires is None or self.expires >= moment


class RuntimeIdentity:
    """Belongs to one event loop. `own_token` is told, in a thread, the accessor of each token it logs in for."""

    def __init__(
        self,
        auth: Auth,
        *,
        ask: Ask,
        clock: Clock,
        remember: Callable[[Secret], None],
        own_token: Callable[[str], None],
    ) -> None:
        self._auth = auth
        self._ask = ask
        self._clock = clock
        self._remember = remember
        self._own_token = own_token
        self._held: _Held | None = None
        self._retired: list[_Held] = []
        self._lock = asyncio.Lock()

    async def token(self, *, deadline: float) -> Secret:
        """The token for a request that is made now. Raises VaultRefused, VaultUnavailable or UsageError."""
        async with self._turn(deadline):
            held = await self._lasting(0.0, deadline)
            self._remember(held.token)  # it is in use: not to be forgotten with older secrets
            return held.token

    async def parent(self, *, ttl: float, path: str, deadline: float, stop: asyncio.Event | None = None) -> Secret:
        """The token, living longer than a child of `ttl` seconds that is made at `path` now. Raises as `token`.

        Once `stop` is set no further try is made to log in.
        """
        async with self._turn(deadline):
            held = await self._lasting(ttl, deadline, stop)
            if not held.outlives(self._clock.monotonic() + ttl + _MARGIN):
                raise VaultRefused(
                    f"the orchestrator's own Vault token expires before a step token of {ttl:.0f}s would",
                    status=0,
                    path=path,
                    hint="shorten the step's timeout, or give the runtime identity a longer token_ttl or token_period",
                )
            self._remember(held.token)
            return held.token

    async def replace(self, token: Secret, refusal: VaultRefused, *, deadline: float) -> None:
        """Obtain another token if `token` was refused because Vault does not know it any more.

        Raises `refusal` where Vault still knows it, and VaultRefused where no other one is to be had.
        """
        async with self._turn(deadline):
            if self._held is None or self._held.token != token:
                return  # somebody else has noticed before
            try:
                await self._ask("get", _LOOKUP, token=token, deadline=deadline)
            except VaultRefused as unknown:
                if unknown.status != 403:
                    raise
            else:
                raise refusal
            _log.warning("%s; another one is obtained", _GONE)
            self._held = None
            self._held = await self._log_in_again(_GONE, deadline)

    async def keep(self, *, deadline: float) -> None:
        """Renew the token in the second half of its life, so that it does not end while there is nothing to do.

        It matters where another one cannot be obtained: a token that was given, a secret id that is used up.
        Raises VaultUnavailable.
        """
        async with self._turn(deadline):
            held = self._held
            if held is None or held.expires is None or not held.renewable:
                return
            if held.expires - self._clock.monotonic() < held.life / 2:
                await self._renew(held, deadline)

    async def give_back(self, *, deadline: float) -> bool:
        """Revoke every token that was logged in for; whether Vault confirmed it for each of them."""
        given = [*self._retired, *([self._held] if self._held else [])]
        self._held, self._retired = None, []
        return all([await self._revoke(held.token, deadline) for held in given if held.own])

    @asynccontextmanager
    async def _turn(self, deadline: float) -> AsyncIterator[None]:
        """One task at a time looks after the token. Whoever waits in vain for another one's login learns it in time."""
        try:
            if self._lock.locked():
                async with asyncio.timeout(max(0.0, deadline - self._clock.monotonic())):
                    await self._lock.acquire()
            else:
                await self._lock.acquire()  # at once, so that no timer is needed
        except TimeoutError:
            raise VaultUnavailable(
                "Vault has not let the orchestrator log in yet", outcome=Outcome.NOT_DONE, path=_LOOKUP
            ) from None
        try:
            yield
        finally:
            self._lock.release()

    async def _lasting(self, seconds: float, deadline: float, stop: asyncio.Event | None = None) -> _Held:
        """The token, renewed or obtained again if it would not last so long and that helps."""
        if self._held is None:
            self._held = await self._log_in(deadline, stop)
        held = self._held
        wanted = seconds + (_MARGIN if seconds else min(_MARGIN, held.life / 3))
        if not held.outlives(self._clock.monotonic() + wanted) and held.renewable:
            await self._renew(held, deadline)
        if held.outlives(self._clock.monotonic() + wanted) or isinstance(self._auth, TokenAuth):
            return held
        try:
            self._held = await self._log_in_again("the orchestrator's own Vault token is nearly over", deadline, stop)
        except VaultRefused:
            if not seconds and held.outlives(self._clock.monotonic()):
                return held  # as long as it lives it serves
            raise
        self._retired = [each for each in self._retired if each.outlives(self._clock.monotonic())]
        if held.own:
            self._retired.append(held)
        return self._held

    async def _renew(self, held: _Held, deadline: float) -> None:
        try:
            body = await self._ask("post", _RENEW, token=held.token, deadline=deadline)
        except VaultRefused:
            held.renewable = False
            return
        life = granted_token(body, _RENEW).ttl
        held.renewable = not 0 < life < held.life  # less than before: its maximum is reached
        held.life, held.expires = life, self._expiry(life)

    async def _log_in_again(self, why: str, deadline: float, stop: asyncio.Event | None = None) -> _Held:
        if isinstance(self._auth, TokenAuth):
            raise VaultRefused(
                f"{why}, and a token that was given cannot be obtained again",
                status=403,
                path=_LOOKUP,
                hint="log in by AppRole, Kubernetes or JWT, or name a token file that somebody keeps fresh "
                "(ORCHESTRATOR_AUTH_TOKEN_FILE)",
            )
        try:
            return await self._log_in(deadline, stop)
        except VaultRefused as refusal:
            hint = refusal.hint
            if isinstance(self._auth, AppRoleAuth):
                hint = (
                    "the secret id may be used up or expired: give the role a token_period or a longer token_ttl, or a "
                    "secret id that may be used for more than one login (secret_id_num_uses, secret_id_ttl)"
                )
            raise VaultRefused(
                f"{why}, and logging in again was refused: {refusal.message}",
                status=refusal.status,
                path=refusal.path,
                hint=hint,
            ) from refusal

    async def _log_in(self, deadline: float, stop: asyncio.Event | None) -> _Held:
        auth = self._auth
        if isinstance(auth, TokenAuth | TokenFileAuth):
            token = auth.token if isinstance(auth, TokenAuth) else read_secret(auth.path, "Vault token file")
            self._remember(token)
            body = await self._ask("get", _LOOKUP, token=token, deadline=deadline, stop=stop)
            data = section(body, "data", _LOOKUP)
            life = seconds(data, "ttl", _LOOKUP)
            _warn_of_root(data)
            return _Held(token, life, self._expiry(life), data.get("renewable") is True, own=False)
        path, payload = login_request(auth)
        body = await self._ask("post", path, token=None, deadline=deadline, payload=payload, stop=stop)
        granted = granted_token(body, path)
        self._remember(granted.token)
        _warn_of_root(section(body, "auth", path))
        await asyncio.to_thread(self._own_token, granted.accessor)
        return _Held(granted.token, granted.ttl, self._expiry(granted.ttl), granted.renewable, own=True)

    async def _revoke(self, token: Secret, deadline: float) -> bool:
        """Revoke a token of our own; whether it is gone. One that Vault no longer knows (403) has expired.

        That Vault does not take one back now must not hide how the run ended: recovery revokes it by its accessor.
        """
        try:
            await self._ask("post", _REVOKE, token=token, deadline=deadline, confirmed_by=done)
        except VaultRefused as refusal:
            if refusal.status != 403:
                raise
        except VaultUnavailable as error:
            _log.warning("the orchestrator's own Vault token is not given back yet: %s", error.message)
            return False
        return True

    def _expiry(self, seconds: int) -> float | None:
        return self._clock.monotonic() + seconds if seconds else None


def _warn_of_root(told: Mapping[str, Any]) -> None:
    """Say it where the login may do everything: then nothing holds the runtime to what was provisioned."""
    policies = told.get("policies")
    if isinstance(policies, list) and "root" in policies:
        _log.warning(
            "logged in to Vault as root: whoever gets hold of this process has all of Vault; use the runtime's login "
            "that `orchestrator provision apply` installs (ORCHESTRATOR_AUTH_ROLE_ID)"
        )


def granted_token(body: Mapping[str, Any], path: str) -> GrantedToken:
    """The token of an answer. Raises VaultUnavailable if it is not there whole."""
    auth = section(body, "auth", path)
    return GrantedToken(
        Secret(text(auth, "client_token", path)),
        text(auth, "accessor", path),
        seconds(auth, "lease_duration", path),
        renewable=auth.get("renewable") is True,
    )
