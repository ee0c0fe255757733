"""The steps of a run on a screen of any size: what works and what failed is seen, and how it stands with each."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from orchestrator.cli.display.terminal import style_of
from orchestrator.ledger.states import StepState

if TYPE_CHECKING:
    from rich.console import RenderableType

NOT_BEGUN = "waiting"
"""Of a step whose turn has not come, and of one that waits for somebody's approval: both have not begun."""

_GAP = 2
_LEAST_STEP, _LEAST_CREDENTIALS = 12, 16
"""Columns of a step's name and of its credentials below which another column is left out instead."""
_STATES, _TIMES = 9, 5
"""Columns of `succeeded` and of `0.42s`, so that none moves when the first step ends."""
_MARGIN = 3
"""Columns at the right that stay free: what a terminal shows of Ctrl-C would else break the last line in two."""
_OVER = (StepState.SUCCEEDED.value, StepState.SKIPPED.value)
"""States that nobody needs to see where there is no room."""


@dataclass(frozen=True, slots=True)
class Row:
    """One step; `state` is the bare word of what is shown of it."""

    step: str
    action: str
    shown: str
    took: str
    credentials: str
    state: str


@dataclass(frozen=True, slots=True)
class Fitted:
    """The rows that have room, in the order of the workflow, and how many in which state the others are."""

    rows: Sequence[Row]
    others: str = ""


def fitted(rows: Sequence[Row], most: int) -> Fitted:
    """What is shown in so many lines below the headings: what is over is left out first, then what has not begun."""
    if len(rows) <= most:
        return Fitted(rows)
    pressing = [row for row in rows if row.state not in (*_OVER, NOT_BEGUN)]
    working = [row for row in pressing if row.state == StepState.RUNNING.value]
    ended = [row for row in pressing if row.state != StepState.RUNNING.value]
    coming = [row for row in rows if row.state == NOT_BEGUN]
    kept = {row.step for row in [*working, *ended, *coming][: max(1, most - 1)]}
    left = Counter(row.state for row in rows if row.step not in kept)
    others = ", ".join(f"{count} {state}" for state, count in left.items())
    return Fitted([row for row in rows if row.step in kept], others)


@dataclass(frozen=True, slots=True)
class Widths:
    """Columns of each; 0 where it is left out."""

    step: int
    action: int
    credentials: int


def widths(rows: Sequence[Row], width: int) -> Widths:
    """How the columns share a screen. State and time are always whole; a long name of a step is shortened first."""
    state = max([_STATES, *(len(row.shown) for row in rows)])
    times = max([_TIMES, *(len(row.took) for row in rows)])
    left = width - _MARGIN - state - times - 2 * _GAP
    step = max([len("STEP"), *(len(row.step) for row in rows)])
    action = max([len("ACTION"), *(len(row.action) for row in rows)])
    credentials = max([len("CREDENTIALS"), *(len(row.credentials) for row in rows)])
    least = min(credentials, _LEAST_CREDENTIALS)
    for of_action, of_credentials in ((action + _GAP, least + _GAP), (0, least + _GAP), (0, 0)):
        room = left - of_action - of_credentials
        if room >= min(step, _LEAST_STEP) or not of_credentials:
            step = max(1, min(step, room))
            rest = left - step - of_action - _GAP
            return Widths(step, action if of_action else 0, min(credentials, rest) if of_credentials else 0)
    raise AssertionError("the last of them has room")


def drawn(shown: Fitted, width: int) -> RenderableType:
    """The table on a screen of this width, each row a line, and a line for the rows that have no room."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    made = Table(box=None, pad_edge=False, padding=(0, _GAP, 0, 0), header_style="bold")
    columns = widths(shown.rows, width)
    made.add_column("STEP", no_wrap=True, overflow="ellipsis", max_width=columns.step)
    if columns.action:
        made.add_column("ACTION", no_wrap=True)
    made.add_column("STATE", no_wrap=True, min_width=_STATES)
    made.add_column("TOOK", justify="right", no_wrap=True, min_width=_TIMES)
    if columns.credentials:
        made.add_column("CREDENTIALS", no_wrap=True, overflow="ellipsis", max_width=columns.credentials)
    for row in shown.rows:
        action = [row.action] if columns.action else []
        credentials = [row.credentials] if columns.credentials else []
        made.add_row(row.step, *action, Text(row.shown, style_of(row.state)), row.took, *credentials)
    return Group(made, Text(shown.others, "dim")) if shown.others else made
