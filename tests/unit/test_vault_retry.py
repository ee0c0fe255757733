"""Trying again, over a clock of the test's own."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import UTC, datetime

import pytest

from orchestrator.vault.faults import Outcome, VaultUnavailable
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
