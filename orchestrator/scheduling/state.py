"""Changing what the scheduler remembers of a workflow, while other processes may be doing the same."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import datetime

from orchestrator.errors import UsageError
from orchestrator.ledger.coordination.schedules import ScheduleState, ScheduleStates

StateChange = Callable[[ScheduleState], ScheduleState]


def change_state(store: ScheduleStates, workflow: str, change: StateChange, *, known_since: datetime) -> ScheduleState:
    """Change a workflow's row, reading it again whenever somebody was faster. Raises LedgerError.

    A workflow without a row gets one in which every time up to `known_since` is handled.
    """
    while True:
        state = store.get(workflow) or ScheduleState(workflow=workflow, handled=known_since)
        changed = change(state)
        if changed == state and state.version:
            return state
        if (written := store.put(changed)) is not None:
            return written


def remember_from(store: ScheduleStates, workflow: str, now: datetime) -> ScheduleState:
    """The workflow's row, made where there is none: nothing before `now` is made up for. Raises LedgerError."""
    return change_state(store, workflow, lambda state: state, known_since=now)


def pause(store: ScheduleStates, workflow: str, now: datetime) -> ScheduleState:
    """Let no scheduled time of the workflow be run from now on. Runs that go on are left alone."""
    return _change_known(store, workflow, lambda state: replace(state, paused=True), now)


def resume(store: ScheduleStates, workflow: str, now: datetime) -> ScheduleState:
    """Run scheduled times again; those that passed meanwhile were not missed."""

    def resumed(state: ScheduleState) -> ScheduleState:
        return replace(state, paused=False, handled=max(state.handled, now)) if state.paused else state

    return _change_known(store, workflow, resumed, now)


def trigger(store: ScheduleStates, workflow: str, now: datetime) -> ScheduleState:
    """Ask the scheduler for one run as soon as can be, paused or not. Asking again before it began changes nothing."""
    return _change_known(
        store, workflow, lambda state: state if state.requested else replace(state, requested=now), now
    )


def _change_known(store: ScheduleStates, workflow: str, change: StateChange, now: datetime) -> ScheduleState:
    if store.get(workflow) is None:
        raise UsageError(
            f"no scheduler that writes to this ledger knows the workflow {workflow}",
            hint="`orchestrator schedules list` shows those that are known; `orchestrator serve` makes them known",
        )
    return change_state(store, workflow, change, known_since=now)
