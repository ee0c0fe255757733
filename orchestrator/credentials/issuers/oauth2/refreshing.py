"""A refresh token that is kept in Vault and used by one process at a time.

Many issuers give another refresh token with each answer, end the one before, and take a second use of that for theft:
then everything that they ever gave is void. So a process writes its name beside the token before it uses it, and takes
it away together with the successor, both by check-and-set (Vault API, KV version 2, `options.cas`). What is lost when
it is killed in between is told by that name: whoever comes next knows why the issuer may say no.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from orchestrator.credentials.types import IssueRequest
from orchestrator.errors import GrantRefused, OrchestratorError
from orchestrator.issuers.oauth2 import KvSecret
from orchestrator.secret import Secret
from orchestrator.vault.faults import VaultRefused
from orchestrator.vault.fields import section, whole_number

IN_USE = "in_use_by"
SINCE = "in_use_since"
_ABANDONED = timedelta(seconds=120)
"""After so long a process that has not given the token back is not waited for: longer than any answer is."""

_PAUSE = 0.1
_LAST_WORD = 1.0
"""Seconds before the step has to end in which it is said what it has waited for."""
_CAS = "check-and-set"
_STORE_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class Held:
    """The refresh token while it is ours. `version` is that of the secret; `left_by` who did not give it back."""

    token: Secret
    version: int
    others: Mapping[str, Any]
    left_by: str | None = None


class KeptToken:
    """The refresh token of one issuer, for one lease."""

    def __init__(self, secret: KvSecret, request: IssueRequest) -> None:
        self._secret = secret
        self._request = request

    async def take(self) -> Held:
        """The token, when nobody else uses it. Raises VaultRefused, VaultUnavailable, GrantRefused."""
        request, who = self._request, self._request.lease_id
        while True:
            data, version = await self._read()
            token = data.get(self._secret.key)
            if not isinstance(token, str) or not token:
                raise self._refused(f"the secret has no text under `{self._secret.key}`", "store a refresh token there")
            user, since = data.get(IN_USE), _time(data.get(SINCE))
            others = {name: value for name, value in data.items() if name not in (IN_USE, SINCE, self._secret.key)}
            if not user or since is None or await self._left(str(user), since):
                held = Held(Secret(token), version, others, str(user) if user else None)
                request.remember(held.token)
                mark = {IN_USE: who, SINCE: request.clock.now().isoformat()}
                if (now := await self._write({**others, self._secret.key: token, **mark}, version)) is not None:
                    return Held(held.token, now, others, held.left_by)
            if request.clock.monotonic() + _LAST_WORD > request.attempt.deadline or request.stop.is_set():
                raise self._refused(f"`{user}` is using the refresh token", "try again; or give the step more time")
            await asyncio.sleep(_PAUSE)

    async def give_back(self, held: Held, successor: Secret | None) -> bool:
        """Keep the successor if there is one, and whether that was done: it is lost otherwise.

        Tried for longer than the step may take.
        """
        data = {**held.others, self._secret.key: (successor or held.token).reveal()}
        try:
            stored = await self._write(data, held.version, until=self._request.clock.monotonic() + _STORE_SECONDS)
        except OrchestratorError:
            stored = None
        return stored is not None or successor is None

    def why(self, held: Held, message: str) -> GrantRefused:
        """The issuer does not take the token: with what is known of who had it before."""
        if held.left_by is None:
            return self._refused(message, AUTHORISE)
        return self._refused(
            f"{message}; `{held.left_by}` used the refresh token before, and did not store what followed", AUTHORISE
        )

    async def _left(self, user: str, since: datetime) -> bool:
        """Whether who had it is not coming back: its lease is closed, or of another ledger and far too old."""
        return self._request.clock.now() - since > _ABANDONED or await self._request.is_closed(user)

    async def _read(self) -> tuple[Mapping[str, Any], int]:
        request, path = self._request, self._secret.resource
        body = await request.vault.request(
            "get", path, token=request.token, deadline=request.attempt.deadline, stop=request.stop
        )
        read = section(body, "data", path)
        return section(read, "data", path), whole_number(section(read, "metadata", path), "version", path)

    async def _write(self, data: Mapping[str, Any], version: int, *, until: float | None = None) -> int | None:
        """The new version; None where somebody else has written meanwhile."""
        request, path = self._request, self._secret.resource
        try:
            body = await request.vault.request(
                "post",
                path,
                token=request.token,
                deadline=until or request.attempt.deadline,
                payload={"data": data, "options": {"cas": version}},
            )
        except VaultRefused as refusal:
            if refusal.status == 400 and _CAS in refusal.message:
                return await self._written_before(data, version)
            raise
        return whole_number(section(body, "data", path), "version", path)

    async def _written_before(self, data: Mapping[str, Any], version: int) -> int | None:
        """The version after a write whose answer was lost, and which was then tried again."""
        now, latest = await self._read()
        return latest if latest == version + 1 and dict(now) == dict(data) else None

    def _refused(self, message: str, hint: str) -> GrantRefused:
        scope = self._request.scope
        return GrantRefused(message, grant=scope.name, path=self._secret.resource, by="orchestrator", hint=hint)


AUTHORISE = "have whoever owns the account agree again, and store the new refresh token in Vault"


def _time(value: Any) -> datetime | None:
    try:
        found = datetime.fromisoformat(value)
    except (TypeError, ValueError):
        return None
    return found if found.tzinfo else None
