"""Trying again, over a clock of the test's own."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime

import pytest

from orchestrator.vault.faults import Outcome, VaultRefused, VaultUnavailable
from orchestrator.vault.retry import retrying


class Ticking:
    """Every look at it takes a while."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._passed = 0.0

    def now(self) -> datetime:
        return datetime(2026, 3, 2, tzinfo=UTC)

    def monotonic(self) -> float:
        self._passed += self._seconds
        return self._passed


def failing(times: int) -> Callable[[], Awaitable[str]]:
    left = [True] * times

    async def call() -> str:
        if left:
            left.pop()
            raise VaultUnavailable("Vault is sealed", outcome=Outcome.NOT_DONE, path="a/b", status=503)
        return "done"

    return call


async def test_what_is_waited_for_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    assert await retrying(failing(3), clock=Ticking(1.0), deadline=100.0, repeatable=False) == "done"
    (told,) = caplog.messages
    assert told.startswith("Vault is sealed; trying again for up to ")


async def test_a_short_stumble_is_not_worth_a_word(caplog: pytest.LogCaptureFixture) -> None:
    assert await retrying(failing(2), clock=Ticking(0.001), deadline=100.0, repeatable=False) == "done"
    assert caplog.messages == []


async def test_after_the_deadline_the_last_error_is_raised() -> None:
    with pytest.raises(VaultUnavailable, match="sealed"):
        await retrying(failing(100), clock=Ticking(1.0), deadline=5.0, repeatable=False)


def busy(seconds: float | None) -> VaultUnavailable:
    return VaultUnavailable("busy", outcome=Outcome.NOT_DONE, path="a/b", status=429, retry_after=seconds)


async def test_a_server_that_wants_to_be_left_alone_beyond_the_deadline_is_not_waited_for() -> None:
    calls = 0

    async def call() -> str:
        nonlocal calls
        calls += 1
        raise busy(60.0)

    with pytest.raises(VaultUnavailable, match="busy"):
        await retrying(call, clock=Ticking(0.001), deadline=30.0, repeatable=True)
    assert calls == 1


async def test_each_error_counts_once_and_the_last_one_is_raised() -> None:
    errors = [busy(0.0), busy(0.0), VaultRefused("no", status=403, path="a/b")]
    left = [*errors]

    async def call() -> str:
        raise left.pop(0)

    with pytest.raises(VaultRefused) as refused:
        await retrying(call, clock=Ticking(0.001), deadline=100.0, repeatable=True)
    assert refused.value is errors[-1]
    assert left == []


async def test_what_is_refused_or_may_have_been_done_is_not_tried_again() -> None:
    unknown = VaultUnavailable("cut", outcome=Outcome.UNKNOWN, path="a/b")
    for error in (unknown, VaultRefused("no", status=403, path="a/b")):
        left = [error]

        async def call(left: list[Exception] = left) -> str:
            raise left.pop()

        with pytest.raises(type(error)) as raised:
            await retrying(call, clock=Ticking(0.001), deadline=100.0, repeatable=False)
        assert raised.value is error


async def test_no_further_try_is_made_once_it_is_to_stop() -> None:
    stop = asyncio.Event()
    stop.set()
    with pytest.raises(VaultUnavailable, match="sealed"):
        await retrying(failing(100), clock=Ticking(0.001), deadline=100.0, repeatable=True, stop=stop)
