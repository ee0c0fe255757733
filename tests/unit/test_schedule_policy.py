"""What is done when a schedule is due: catching up after an absence, and overlap with what is running."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from orchestrator.scheduling.fires import requested, scheduled
from orchestrator.scheduling.overlap import QUEUE_LIMIT, Due, Verdict, admit, due, next_due
from orchestrator.workflow.models.workflow import Schedule

NOON = datetime(2026, 6, 1, 12, 0, 0, tzinfo=UTC)
MINUTE = timedelta(minutes=1)


def hourly(**more: Any) -> Schedule:
    return Schedule.model_validate({"every": "1h", **more})


def at(found: Due) -> list[int]:
    return [fire.at.hour for fire in found.fires]


def test_a_fire_that_is_on_time_is_run_once() -> None:
    found = due(hourly(), "w", after=NOON - MINUTE, now=NOON)
    assert at(found) == [12]
    assert (found.missed, found.caught_up) == (None, 0)
    assert due(hourly(), "w", after=found.upto or NOON, now=NOON + MINUTE) == Due()


@pytest.mark.parametrize(
    ("catch_up", "run", "caught_up", "missed"),
    [("none", [], 0, 12), ("latest", [12], 1, 9), ("all", [9, 10, 11, 12], 4, None)],
)
def test_after_an_absence_catch_up_says_which_times_are_made_up_for(
    catch_up: str, run: list[int], caught_up: int, missed: int | None
) -> None:
    found = due(hourly(catch_up=catch_up), "w", after=NOON - timedelta(hours=3, minutes=30), now=NOON + 10 * MINUTE)
    assert at(found) == run
    assert found.caught_up == caught_up
    assert (found.missed.at.hour if found.missed else None) == missed
    assert found.upto == NOON


def test_without_catching_up_the_newest_still_runs_if_it_is_on_time() -> None:
    found = due(hourly(), "w", after=NOON - timedelta(hours=3, minutes=30), now=NOON + timedelta(seconds=10))
    assert at(found) == [12]
    assert found.missed is not None


def test_all_missed_times_are_made_up_for_in_portions() -> None:
    schedule = Schedule.model_validate({"every": "1s", "catch_up": "all"})
    first = due(schedule, "w", after=NOON - timedelta(hours=1), now=NOON)
    assert len(first.fires) == QUEUE_LIMIT
    assert first.upto == first.fires[-1].at
    second = due(schedule, "w", after=first.fires[-1].at, now=NOON)
    assert second.fires[0].at == first.fires[-1].at + timedelta(seconds=1)
    assert due(schedule, "w", after=first.fires[-1].at, now=NOON, room=0) == Due()


def test_a_schedule_that_is_not_enabled_is_never_due() -> None:
    assert due(hourly(enabled=False, catch_up="all"), "w", after=NOON - timedelta(days=1), now=NOON) == Due()
    assert next_due(hourly(enabled=False), "w", after=NOON) is None


def test_with_jitter_a_fire_is_due_later_and_at_the_same_moment_in_every_process() -> None:
    schedule = hourly(jitter="30m")
    fire = scheduled(schedule, "w", NOON)
    assert NOON < fire.due < NOON + timedelta(minutes=30)
    just_before = fire.due - timedelta(milliseconds=1)
    assert NOON not in [found.at for found in due(schedule, "w", after=NOON - MINUTE, now=just_before).fires]
    assert [found.at for found in due(schedule, "w", after=NOON - MINUTE, now=fire.due).fires] == [NOON]
    assert scheduled(schedule, "w", NOON) == fire
    assert scheduled(schedule, "other", NOON).due != fire.due


@pytest.mark.parametrize(
    ("overlap", "idle", "busy"),
    [
        ("forbid", Verdict.START, Verdict.SKIP),
        ("queue", Verdict.START, Verdict.QUEUE),
        ("replace", Verdict.START, Verdict.REPLACE),
        ("allow", Verdict.START, Verdict.START),
    ],
)
def test_overlap_says_what_happens_while_a_run_is_going_on(overlap: str, idle: Verdict, busy: Verdict) -> None:
    schedule = hourly(overlap=overlap)
    fire = scheduled(schedule, "w", NOON)
    assert admit(schedule, fire, running=0, waiting=0, caught_up=False).verdict is idle
    assert admit(schedule, fire, running=1, waiting=0, caught_up=False).verdict is busy


def test_a_run_that_a_person_asked_for_waits_instead_of_being_skipped() -> None:
    for overlap in ("forbid", "replace", "queue"):
        decision = admit(hourly(overlap=overlap), requested("w", NOON), running=1, waiting=0, caught_up=False)
        assert decision.verdict is Verdict.QUEUE
    assert admit(None, requested("w", NOON), running=0, waiting=0, caught_up=False).verdict is Verdict.START


def test_what_is_made_up_for_waits_instead_of_being_skipped() -> None:
    schedule = hourly(catch_up="all")
    fire = scheduled(schedule, "w", NOON)
    assert admit(schedule, fire, running=1, waiting=0, caught_up=True).verdict is Verdict.QUEUE
    assert admit(schedule, fire, running=1, waiting=0, caught_up=False).verdict is Verdict.SKIP


def test_no_more_than_a_limit_waits() -> None:
    schedule = hourly(overlap="queue")
    decision = admit(schedule, scheduled(schedule, "w", NOON), running=1, waiting=QUEUE_LIMIT, caught_up=False)
    assert (decision.verdict, decision.reason) == (Verdict.SKIP, "queue_full")
