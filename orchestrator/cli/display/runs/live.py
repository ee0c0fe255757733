"""Watching a run: a table that changes in place, plain lines, or JSON lines.

An observer never fails a run: when nobody reads any more, it goes quiet and the run goes on, for its
credentials have to be revoked all the same.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Protocol, TextIO

from orchestrator.cli.display.board import Board, StepLine
from orchestrator.cli.display.printable import clean, one_line
from orchestrator.cli.display.runs.steps_table import NOT_BEGUN, Row, drawn, fitted
from orchestrator.cli.display.terminal import LEASE_MARKS, console, took
from orchestrator.ledger.events import (
    ApprovalEnded,
    ApprovalRequested,
    ApprovalVoted,
    AttemptFinished,
    AttemptStarted,
    AttemptWaits,
    Decided,
    Event,
    LeaseDenied,
    LeaseFailed,
    LeaseIssued,
    LeaseRevocationFailed,
    Notified,
    RunFinished,
    RunNotified,
    RunStarted,
    StepFinished,
)
from orchestrator.ledger.states import StepState
from orchestrator.presentation.events import not_looked_for
from orchestrator.step_names import declared_step

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.live import Live


class View(Protocol):
    """Somebody who watches a run; `board` is what they have seen."""

    board: Board

    def __enter__(self) -> View: ...
    def __exit__(self, *error: object) -> None: ...
    def observe(self, run_id: str, time: datetime, event: Event) -> None:
        """An event was recorded at this time (UTC). Called in the event loop, in the ledger's order."""
        ...

    def notice(self, text: str) -> None:
        """One sentence for the person who waits, beside what the events tell."""
        ...


class Lines(Protocol):
    """Where lines go."""

    def line(self, text: str) -> None:
        """One more. Never fails, whoever reads."""
        ...


@dataclass(slots=True)
class Outlet:
    """Lines for a stream, until its reader goes away or the disk is full."""

    stream: TextIO
    broken: bool = False
    error: OSError | None = None
    """Why nothing more is taken, where that is known."""

    def line(self, text: str) -> None:
        """Write one line at once."""
        if self.broken:
            return
        try:
            self.stream.write(text + "\n")
            self.stream.flush()
        except (OSError, ValueError) as error:
            self.broken, self.error = True, error if isinstance(error, OSError) else None


@dataclass(slots=True)
class PlainLines:
    """For logs: one line where a step begins, ends or is refused, on standard error."""

    quiet: bool = False
    board: Board = field(default_factory=Board)
    outlet: Lines = field(default_factory=lambda: Outlet(sys.stderr))

    def __enter__(self) -> PlainLines:
        return self

    def __exit__(self, *error: object) -> None:
        return None

    def observe(self, run_id: str, time: datetime, event: Event) -> None:
        """Say what happened, where it is worth a line."""
        self.board.apply(run_id, time, event)
        for text in filter(None, (self._text(event), _unguarded(self.board, event))):
            if not self.quiet:
                self.outlet.line(f"{time.astimezone():%Y-%m-%dT%H:%M:%S%z} {run_id} {one_line(text)}")

    def notice(self, text: str) -> None:
        """Something that the person who waits should know now, quiet or not."""
        self.outlet.line(one_line(text))

    def _text(self, event: Event) -> str:
        match event:
            case RunStarted():
                return f"started: {event.workflow} for {event.agent}"
            case AttemptStarted():
                again = f", attempt {event.attempt}" if event.attempt > 1 else ""
                return f"{event.step}: started ({event.action}{again})"
            case AttemptFinished(retry_at=datetime() as until):
                return f"{event.step}: {event.reason}; tried again at {_clock_time(until)}"
            case Decided(allow=False):
                return f"{event.step}: denied by {event.engine}: {'; '.join(event.reasons)}"
            case ApprovalRequested():
                wanted = f"{event.count} of {', '.join(event.approvers)}"
                return f"{event.step}: waits for {wanted}: orchestrator approvals show {event.approval_id}"
            case ApprovalVoted():
                return f"{event.step}: {event.verdict} by {event.by}" + (f": {event.comment}" if event.comment else "")
            case ApprovalEnded():
                return f"{event.step}: {event.outcome} ({event.approval_id})"
            case Notified():
                return f"{event.step}: {event.to} " + (
                    f"could not be told: {event.error}" if event.error else "was told"
                )
            case RunNotified():
                return f"{event.to} " + (f"could not be told: {event.error}" if event.error else "was told of the end")
            case AttemptWaits():
                return f"{event.step}: waits: {event.reason}"
            case LeaseDenied() | LeaseFailed():
                word = "refused" if isinstance(event, LeaseDenied) else "not issued"
                return f"{self._grant(event.lease_id)} {word}: {event.reason}"
            case LeaseRevocationFailed():
                return f"{self._grant(event.lease_id)} not confirmed gone yet: {event.error}"
            case StepFinished():
                reason = "" if self._has_said(event) else event.reason
                return f"{event.step}: {event.state.value}" + (f": {reason}" if reason else "")
            case RunFinished():
                return f"{event.state.value}, exit code {event.exit_code}"
            case _:
                return ""

    def _has_said(self, event: StepFinished) -> bool:
        """Whether a line before said why the step was refused."""
        step = self.board.steps.get(declared_step(event.step))
        if step is None or event.state is not StepState.REFUSED:
            return False
        return bool(step.denials) or any(lease.reason == event.reason for lease in step.leases_now())

    def _grant(self, lease_id: str) -> str:
        found = self.board.lease_of(lease_id)
        return f"{found[0]}: {found[1].grant}" if found else lease_id


@dataclass(slots=True)
class JsonLines:
    """For programs: every event as one JSON object, on standard output."""

    board: Board = field(default_factory=Board)
    outlet: Outlet = field(default_factory=lambda: Outlet(sys.stdout))
    notices: Outlet = field(default_factory=lambda: Outlet(sys.stderr))

    def __enter__(self) -> JsonLines:
        return self

    def __exit__(self, *error: object) -> None:
        return None

    def observe(self, run_id: str, time: datetime, event: Event) -> None:
        """Print the event."""
        from orchestrator.cli.display.json_output import json_line, utc
        from orchestrator.ledger.storage.codec import event_to_json

        self.board.apply(run_id, time, event)
        self.outlet.line(json_line({"time": utc(time), "run": run_id, "kind": event.kind, **event_to_json(event)}))

    def notice(self, text: str) -> None:
        """Words are not JSON: they go to standard error."""
        self.notices.line(one_line(text))


@dataclass(slots=True)
class LiveTable:
    """For people: the steps with their leases, changing in place."""

    board: Board = field(default_factory=Board)
    now: Callable[[], datetime] = lambda: datetime.now(UTC)
    screen: Console = field(default_factory=console)
    actions: Mapping[str, str] = field(default_factory=dict)
    """Of the steps that have not begun, where that is known."""
    _live: Live | None = None
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __enter__(self) -> LiveTable:
        from rich.live import Live

        self._live = Live(console=self.screen, get_renderable=self.table, refresh_per_second=8)
        self._live.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self._live is not None:
            with suppress(OSError):
                self._live.stop()

    def observe(self, run_id: str, time: datetime, event: Event) -> None:
        """Take the event in; the table shows it at its next refresh."""
        with self._lock:
            self.board.apply(run_id, time, event)
        if text := _unguarded(self.board, event):
            self.notice(text)

    def notice(self, text: str) -> None:
        """A line above the table."""
        with suppress(OSError):
            self.screen.print(clean(text), style="yellow")

    def line(self, text: str) -> None:
        """A line above the table as it is."""
        with suppress(OSError):
            self.screen.print(clean(text))

    def table(self) -> RenderableType:
        """The table as it stands now, as high and as wide as the screen."""
        with self._lock:
            rows = [self._row(name, step) for name, step in self.board.steps.items()]
        size = self.screen.size
        # The last time, when there is no more drawing over it, all of it is drawn however long it is.
        changes = self._live is not None and self._live.vertical_overflow != "visible"
        most = size.height - 2 if changes else len(rows)
        return drawn(fitted(rows, most), size.width)

    def _row(self, name: str, step: StepLine) -> Row:
        state = step.state.value if step.state else NOT_BEGUN
        tries = f" #{step.attempt}" if step.attempt > 1 else ""
        tries += f", again at {_clock_time(step.retry_at)}" if step.retry_at else ""
        span = took(step.started, step.finished or self.now()) if step.started else "-"
        action = step.action or self.actions.get(name, "")
        return Row(name, action, state + tries, span, _leases(step), state=state)


def _clock_time(moment: datetime) -> str:
    """The time of day, with the day where it is another one: a wait may be a long one."""
    local, today = moment.astimezone(), datetime.now(UTC).astimezone().date()
    return f"{local:%H:%M:%S}" if local.date() == today else f"{local:%Y-%m-%d %H:%M:%S}"


def _unguarded(board: Board, event: Event) -> str:
    """What of a secret does not keep an output from being accepted; an empty text if it all does."""
    if not isinstance(event, RunStarted | LeaseIssued) or not (text := not_looked_for(event.not_looked_for)):
        return ""
    found = board.lease_of(event.lease_id) if isinstance(event, LeaseIssued) else None
    return f"{found[0]}: {found[1].grant}: {text}" if found else f"inputs: {text}"


def _leases(step: StepLine) -> str:
    return step.items.words() or "  ".join(f"{LEASE_MARKS[lease.state]} {lease.grant}" for lease in step.leases_now())
