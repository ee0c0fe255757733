"""Which of the processes that wait in line give no sign of life, so that their places in it hold nobody up."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from orchestrator.ledger.coordination.runners import RunnerRecord, Steady
from orchestrator.ledger.places import Waiter


@dataclass(frozen=True, slots=True)
class _Beat:
    """The last sign of life of a process, and since when we know it (monotonic)."""

    number: int
    since: float


class Silence:
    """Remembers the signs of life that it sees, by our own monotonic clock. `dead_after` is in seconds.

    The rule is that of recovery, which may not go on anywhere: where all that is left of a service are commands that
    wait, nobody else looks whether one of them is dead.
    """

    def __init__(self, *, runner_id: str, dead_after: float, certainly_gone: Callable[[str], bool]) -> None:
        self._runner_id = runner_id
        self._dead_after = dead_after
        self._certainly_gone = certainly_gone
        self._beats: dict[str, _Beat] = {}
        self._steady = Steady(dead_after)

    def dead(self, line: Iterable[Waiter], now: float) -> list[RunnerRecord]:
        """Other processes in line that are to be taken for dead. Those that have left it are forgotten."""
        seen = {each.runner_id: each for each in line if each.runner_id != self._runner_id}
        before, self._beats = self._beats, {}
        steady = self._steady.look(now)
        found = []
        for runner_id, waiter in seen.items():
            beat = before.get(runner_id)
            if beat is None or beat.number != waiter.beat:
                beat = _Beat(waiter.beat, now)
            self._beats[runner_id] = beat
            if now - max(beat.since, steady) >= self._dead_after or self._certainly_gone(waiter.process):
                found.append(RunnerRecord(runner_id, waiter.process, waiter.beat, gone=False))
        return found
