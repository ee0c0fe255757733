"""States of runs, steps, tasks, approvals and leases, and how they follow each other."""

from __future__ import annotations

from enum import Enum
from typing import get_args

from orchestrator.errors import IllegalTransition
from orchestrator.ledger import states
from orchestrator.ledger.events import Event, LeaseEvent, RunFinished, RunResumed
from orchestrator.ledger.lease import FINAL, TRANSITIONS, LeaseState
from orchestrator.ledger.states import RESUMABLE, RunState
from orchestrator.ledger.storage.projections import RunRows, project
from tools.reference.docstrings import attributes, summary
from tools.reference.markdown import code, page, paragraphs, prose, table

_HEAD = """\
# States

As the ledger has them, `--json` prints them, and `--state` takes them. The [events](events.md) say what makes one of
the other.
"""


def text() -> str:
    """The page."""
    own = [each for each in vars(states).values() if isinstance(each, type) and each.__module__ == states.__name__]
    return page(_HEAD, *(_states(each) for each in own if issubclass(each, Enum)), _leases())


def _states(kind: type[Enum]) -> str:
    said = attributes(kind)
    rows = [(code(str(each.value)), prose(said.get(each.name, "")), *_after(each)) for each in kind]
    heads = ("state", "meaning", "followed by")[: len(rows[0])]
    return page(f"## {kind.__name__}", paragraphs(summary(kind)), table(heads, rows))


def _after(state: Enum) -> tuple[str, ...]:
    """What a run can become. (Steps follow their attempts, and the others have one end.)"""
    if not isinstance(state, RunState):
        return ()
    if state is not RunState.RUNNING and state not in RESUMABLE:
        return ("nothing: it is final",)
    following = [each for each in RunState if each is not state and _may_follow(state, each)]
    return (", ".join(code(each.value) for each in following),)


def _may_follow(state: RunState, following: RunState) -> bool:
    """Whether the ledger takes the event that makes the one of the other."""
    event: Event = RunFinished(state=following, exit_code=0)
    if following is RunState.RUNNING:
        event = RunResumed(runner="", reason="")
    try:
        project(RunRows(run={"state": state.value}), [("", event)])
    except IllegalTransition:
        return False
    return True


def _leases() -> str:
    said = attributes(LeaseState)
    causes: dict[LeaseState, list[str]] = {}
    for event in get_args(LeaseEvent):
        causes.setdefault(event.to, []).append(event.kind)
    rows = [
        (
            code(state.value),
            prose(said.get(state.name, "")),
            ", ".join(code(kind) for kind in causes.get(state, ())),
            "nothing: it is final" if state in FINAL else ", ".join(code(each.value) for each in _sorted(state)),
        )
        for state in LeaseState
    ]
    return page(
        "## LeaseState",
        paragraphs(summary(LeaseState)),
        table(("state", "meaning", "by the event", "followed by"), rows),
        "Nothing else is legal: an event that would make another change is refused before it is written.",
    )


def _sorted(state: LeaseState) -> list[LeaseState]:
    return [each for each in LeaseState if each in TRANSITIONS[state]]
