"""One request and its answer, however often it has to be sent: without any input or output.

A flow is a generator that yields what is to be done and is given what came of it, so that the blocking client and the
asynchronous one drive the same code (as httpx does with its flows of authentication).
"""

from __future__ import annotations

import random
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

import httpx

from orchestrator.client.errors import AGAIN, BrokerError, Unauthenticated, Unavailable, error_of
from orchestrator.client.possession import Prover
from orchestrator.clock import Clock, SystemClock

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Ask:
    """A request. With the same `key` it is the same call.

    `form` is sent instead of a JSON `body`; where it `is_exchange` the agent's token is a part of it, and no header.
    `prover` makes a new proof each time that it is sent.
    """

    method: str
    path: str
    body: Mapping[str, Any] | None = None
    key: str = ""
    form: Mapping[str, str] | None = field(default=None, repr=False)
    is_exchange: bool = False
    prover: Prover | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class Send:
    """To be done: send it. Gives an httpx.Response, or raises httpx.TransportError."""

    ask: Ask
    token: str | None = field(repr=False)
    seconds: float

    def headers(self) -> dict[str, str]:
        """What goes with it."""
        shown = self.token is not None and not self.ask.is_exchange
        found = {"Authorization": f"Bearer {self.token}"} if shown else {}
        return found | ({"Idempotency-Key": self.ask.key} if self.ask.key else {})


@dataclass(frozen=True, slots=True)
class Pause:
    """To be done: nothing, for so many seconds."""

    seconds: float


@dataclass(frozen=True, slots=True)
class TokenWanted:
    """To be done: get the agent's token. Gives a str, None where there is none. `refused` is not believed any more."""

    refused: str | None = field(default=None, repr=False)


Flow = Generator[Send | Pause | TokenWanted, Any, T]


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """How long is waited for what, in seconds."""

    answer: float = 60.0
    """For one answer. A call that takes longer is asked for again, with the same key, and goes on."""
    away: float = 30.0
    """For a broker that cannot be reached, has too much to do, or is about to end."""
    closing: float = 15.0
    """For the confirmation that something is gone."""
    clock: Clock = field(default_factory=SystemClock, repr=False)
    chance: Callable[[], float] = field(default=random.random, repr=False)
    """Between 0 and 1: those who wait for the same do not come back at the same moment."""

    def now(self) -> float:
        """On the monotonic clock."""
        return self.clock.monotonic()

    def pauses(self, *, most: float = 2.0) -> Generator[float, None, None]:
        """Ever longer ones."""
        pause = 0.1
        while True:
            yield pause * (0.75 + self.chance() / 2)
            pause = min(most, pause * 2)


def answered(
    ask: Ask, patience: Patience, *, until: float | None = None, slow_until: float | None = None
) -> Flow[httpx.Response]:
    """A 2xx answer. What was lost on the way, 429 and 503 are tried again for as long as `patience` has it.

    `until` ends everything at a moment. Before `slow_until` an answer that does not come only means that it takes long.
    Raises BrokerError.
    """
    token = yield TokenWanted()
    pauses, given_up, renewed = patience.pauses(), until, False
    while True:
        seconds = patience.answer if until is None else max(0.1, min(patience.answer, until - patience.now()))
        wait = 0.0
        error: BrokerError
        try:
            response: httpx.Response = yield Send(ask, token, seconds)
        except httpx.TransportError as lost:
            if isinstance(lost, httpx.ReadTimeout) and slow_until is not None and patience.now() < slow_until:
                given_up = until
                continue
            error = _lost(lost)
        else:
            if response.is_success:
                return response
            error = error_of(response)
            if isinstance(error, Unauthenticated) and not renewed:
                renewed = True
                fresh = yield TokenWanted(refused=token)
                if fresh != token:
                    token = fresh
                    continue
            if response.status_code not in AGAIN:
                raise error
            wait = _retry_after(response)
        if given_up is None:
            given_up = patience.now() + patience.away
        pause = max(wait, next(pauses))
        if patience.now() + pause >= given_up:
            raise error
        yield Pause(pause)


def _lost(error: httpx.TransportError) -> Unavailable:
    found = Unavailable(f"the broker was not reached: {error or type(error).__name__}", hint="is its URL right?")
    found.__cause__ = error
    return found


def _retry_after(response: httpx.Response) -> float:
    """Seconds (RFC 9110, 10.2.3); 0 where it says none, or a date, which a broker never does."""
    said = response.headers.get("retry-after", "")
    return float(said) if said.isascii() and said.isdigit() else 0.0
