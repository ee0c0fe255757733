"""Vault's clock, as our monotonic one carries it on."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime

import pytest

from orchestrator.vault.time import VaultTime


@dataclass
class Stopped:
    """Clocks that stand still until they are moved."""

    wall: datetime = datetime(2000, 1, 1, tzinfo=UTC)
    seconds: float = 100.0

    def now(self) -> datetime:
        return self.wall

    def monotonic(self) -> float:
        return self.seconds


def test_nothing_is_known_before_vault_has_answered() -> None:
    assert VaultTime(Stopped()).now() is None


def test_the_time_goes_on_by_the_monotonic_clock_whatever_the_wall_clock_says() -> None:
    clock = Stopped()
    time = VaultTime(clock)
    time.hear("Wed, 25 Nov 2026 15:00:00 GMT")
    clock.seconds += 9
    clock.wall = datetime(1970, 1, 1, tzinfo=UTC)
    assert time.now() == datetime(2026, 11, 25, 15, 0, 9, tzinfo=UTC)


def test_a_vault_that_is_silent_does_not_tell_the_time() -> None:
    clock = Stopped()
    time = VaultTime(clock)
    time.hear("Wed, 25 Nov 2026 15:00:00 GMT")
    clock.seconds += 11
    assert time.now() is None
    time.hear("Wed, 25 Nov 2026 15:00:11 GMT")
    assert time.now() == datetime(2026, 11, 25, 15, 0, 11, tzinfo=UTC)


@pytest.mark.parametrize(
    "date",
    [
        None,
        "",
        "yesterday",
        "Fri, 31 Dec 9999 23:59:59 GMT",
        "Fri, 31 Dec 9999 23:59:59 -1200",
        "Thu, 01 Jan 99999 00:00:00 GMT",
        "Thu, 01 Jan 1970 00:00:20 +9999999999",
    ],
)
def test_an_answer_without_a_date_changes_nothing(date: str | None) -> None:
    time = VaultTime(Stopped())
    time.hear("Wed, 25 Nov 2026 15:00:00 GMT")
    time.hear(date)
    assert time.now() == datetime(2026, 11, 25, 15, 0, 0, tzinfo=UTC)
