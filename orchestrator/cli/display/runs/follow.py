"""A run that goes on somewhere, line by line as its record grows."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from orchestrator.cli.display.json_output import json_line, utc
from orchestrator.cli.display.printable import one_line
from orchestrator.cli.display.terminal import lasting
from orchestrator.ledger.states import RunState
from orchestrator.presentation.events import words
from orchestrator.presentation.runs import DUTIES
from orchestrator.runs.processes import has_ended

if TYPE_CHECKING:
    from datetime import datetime

    from orchestrator.ledger.types import EventRecord, LedgerReader, RunRecord
    from orchestrator.ledger.writing.store import Ledger

SHORTEST_PAUSE, LONGEST_PAUSE = 0.2, 2.0
"""Seconds between two looks at the ledger: short while much happens."""

Tell = Callable[["EventRecord"], None]


def follow(
    reader: LedgerReader,
    run_id: str,
    tell: Tell,
    *,
    sleep: Callable[[float], None],
    quiet: Callable[[RunRecord], None] = lambda run: None,
) -> RunRecord:
    """Tell every event, those of before first, until nobody drives the run any more; how it stands then.

    `quiet` is called after looks at which nothing was new. Only reads: whatever ends this, the run goes on.
    """
    seen, pause = 0, SHORTEST_PAUSE
    while True:
        run = reader.run(run_id)  # before its events: what has ended by then is told whole
        assert run is not None, "no run is ever taken out of a ledger"
        events = reader.events(run_id, after=seen)
        for event in events:
            tell(event)
            seen = event.seq
        if run.state is not RunState.RUNNING:
            return run
        if not events:
            quiet(run)
        pause = SHORTEST_PAUSE if events else min(pause * 1.5, LONGEST_PAUSE)
        sleep(pause)


@dataclass(slots=True)
class SignsOfLife:
    """Says once that the process that drives a run is dead: somebody must then close what it left.

    It is, where that can be seen from here, or where it has given no sign of life for `dead_after` seconds.
    """

    ledger: Ledger
    dead_after: float
    say: Callable[[str], None]
    now: Callable[[], float]
    _said: bool = False
    _beat: tuple[str, int] = ("", 0)
    _since: float = 0.0

    def __call__(self, run: RunRecord) -> None:
        """To be called where nothing new is on record."""
        if self._said or not self._dead(run.run_id):
            return
        again = self.ledger.run(run.run_id)
        if again is not None and again.state is RunState.RUNNING:  # else it has ended, and its process after it
            self._said = True
            self.say(
                f"the process that drives {run.run_id} has ended without a word: `orchestrator leases sweep` closes "
                "what it left, as services and other runs do"
            )

    def _dead(self, run_id: str) -> bool:
        process = self.ledger.runners.driver(run_id)
        if process is None or has_ended(process):
            return True
        beat = (process.runner_id, process.beat)
        if beat != self._beat:
            self._beat, self._since = beat, self.now()
        return self.now() - self._since > self.dead_after


def tell_as_json(event: EventRecord) -> None:
    """One JSON object a line, as `run --json` prints them. Raises BrokenPipeError where nobody reads it."""
    _write(json_line({"time": utc(event.time), "run": event.run_id, "kind": event.kind, **event.data}))


@dataclass(slots=True)
class LineTeller:
    """For people: `+1.20s  lease.issued  read.db: ...`. What the orchestrator's own logins did only if `everything`."""

    begun: datetime
    everything: bool = False
    _grants: dict[str, str] = field(default_factory=dict)
    _hidden: set[str] = field(default_factory=set)

    def __call__(self, event: EventRecord) -> None:
        """Raises BrokenPipeError where nobody reads it."""
        lease = event.data.get("lease_id")
        about = ""
        if isinstance(lease, str):
            if event.kind == "lease.requested":
                self._grants[lease] = f"{event.data['step']}.{event.data['grant']}"
                if event.data["grant"] in DUTIES:
                    self._hidden.add(lease)
            else:
                about = self._grants.get(lease, lease)
            if lease in self._hidden and not self.everything:
                return
        said = ": ".join(filter(None, (about, words(event.kind, event.data))))
        after = f"+{lasting(event.time - self.begun)}"
        _write(f"{after:>8}  {event.kind:<18}  {one_line(said)}".rstrip())


def _write(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()
