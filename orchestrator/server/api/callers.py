"""Who calls: by the token of a request, or the certificate of its connection. Nothing that a caller says takes part."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from starlette.requests import Request

from orchestrator.agents.authentication import Authentication, Caller
from orchestrator.clock import Clock
from orchestrator.server.api.problems import Kind, Problem

PEER = "spiffe_ids"
"""The name in `scope["state"]` of the URIs in the certificate that the connection has shown, where it has."""

LONGEST_TOKEN = 16_384


@dataclass(slots=True)
class Rates:
    """How often each agent may ask: `per_second` on average, and `burst` at once. In this process."""

    clock: Clock
    per_second: float = 50.0
    burst: float = 100.0
    _left: dict[str, tuple[float, float]] = field(default_factory=dict)
    """What an agent has left, and when that was."""

    def take(self, agent: str) -> None:
        """Raises Problem where the agent asks too often."""
        now = self.clock.monotonic()
        left, since = self._left.get(agent, (self.burst, now))
        left = min(self.burst, left + (now - since) * self.per_second)
        if left < 1:
            wait = max(1, round((1 - left) / self.per_second + 0.5))
            raise Problem(
                Kind.TOO_MANY,
                f"the agent asks more than {self.per_second:g} times a second",
                headers={"Retry-After": str(wait)},
            )
        self._left[agent] = (left - 1, now)


@dataclass(frozen=True, slots=True)
class Callers:
    """Tells who calls, and holds each agent to its rate."""

    authentication: Authentication
    rates: Rates

    async def caller(self, request: Request) -> Caller:
        """Raises Problem, CallerRefused, TokenRefused, IssuerUnreachable."""
        caller = await self._known(request)
        self.rates.take(caller.agent)
        return caller

    async def shown(self, request: Request) -> Caller | None:
        """Who a request shows itself to be of, where it does so at all. Raises what `caller` raises."""
        peer = request.scope.get("state", {}).get(PEER)
        return await self._known(request) if peer or "authorization" in request.headers else None

    async def _known(self, request: Request) -> Caller:
        sent = request.headers.getlist("authorization")
        peer: Sequence[str] | None = request.scope.get("state", {}).get(PEER)
        if sent and peer:
            raise _unknown("show a token or a certificate, and not both")
        if peer:
            return self.authentication.by_certificate(frozenset(peer))
        if len(sent) != 1:
            raise _unknown("show one token: Authorization: Bearer TOKEN")
        scheme, _, token = sent[0].partition(" ")
        if scheme.lower() != "bearer" or not token or len(token) > LONGEST_TOKEN:
            raise _unknown("show one token: Authorization: Bearer TOKEN")
        return await self.authentication.by_token(token)


def _unknown(detail: str) -> Problem:
    return Problem(Kind.UNAUTHENTICATED, detail, headers={"WWW-Authenticate": 'Bearer realm="orchestrator"'})
