"""What holds for every schedule, zone and instant."""

from datetime import UTC, datetime, timedelta

from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.scheduling.fire_times import fires_between, latest_fire, next_fire
from orchestrator.scheduling.fires import scheduled
from orchestrator.scheduling.overlap import due
from orchestrator.workflow.models.workflow import Schedule

ZONES = ("UTC", "Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "Asia/Bangkok", "Africa/Casablanca")


@st.composite
def schedules(draw: st.DrawFn) -> Schedule:
    if draw(st.booleans()):
        return Schedule.model_validate({"every": draw(st.integers(1, 7 * 86400))})
    minute = draw(st.sampled_from(["0", "30", "15,45", "*/10", "*", "7-9"]))
    hour = draw(st.sampled_from(["*", "*/2", "1", "2", "3", "1-3", "23,0"]))
    day = draw(st.sampled_from(["* * *", "* * 1-5", "1 * *", "L * *", "* 3,10,11 0"]))
    second = draw(st.sampled_from(["", "0 ", "10,50 ", "*/30 "]))
    return Schedule.model_validate({"cron": f"{second}{minute} {hour} {day}", "timezone": draw(st.sampled_from(ZONES))})


# The years' clock changes of these zones lie in March, April, October and November.
instants = st.floats(0, 420 * 86400).map(lambda seconds: datetime(2026, 3, 1, tzinfo=UTC) + timedelta(seconds=seconds))


@given(schedules(), instants, st.floats(0, 1))
@settings(max_examples=400, deadline=None)
def test_until_the_next_time_every_instant_has_the_same_next_time(
    schedule: Schedule, instant: datetime, part: float
) -> None:
    following = next_fire(schedule, instant)
    assert following is not None
    assert following > instant
    between = instant + (following - instant) * part
    if between < following:
        assert next_fire(schedule, between) == following


@given(schedules(), instants)
@settings(max_examples=200, deadline=None)
def test_times_follow_each_other_without_a_gap_or_a_repetition(schedule: Schedule, instant: datetime) -> None:
    fires = fires_between(schedule, instant, instant + timedelta(days=40), limit=20)
    assert list(fires) == sorted(set(fires))
    for earlier, later in zip((instant, *fires), fires, strict=False):
        assert next_fire(schedule, earlier) == later
    if 0 < len(fires) < 20:
        assert latest_fire(schedule, instant, instant + timedelta(days=40)) == fires[-1]


@given(schedules(), instants, st.lists(st.integers(0, 4000), min_size=1, max_size=20), st.integers(0, 5000))
@settings(max_examples=200, deadline=None)
def test_looking_again_and_again_no_time_is_run_twice_and_with_catching_up_none_is_lost(
    schedule: Schedule, instant: datetime, pauses: list[int], jitter: int
) -> None:
    if schedule.every is not None:
        jitter = min(jitter, schedule.every - 1)
    schedule = schedule.model_copy(update={"catch_up": "all", "jitter": jitter or None})
    after, now, run = instant, instant, []
    for pause in pauses:
        now += timedelta(seconds=pause)
        while (found := due(schedule, "w", after=after, now=now)).upto is not None:
            after = found.upto
            run += [fire.at for fire in found.fires]
            if len(run) > 2000:
                return
    expected = [
        at for at in fires_between(schedule, instant, now, limit=2001) if scheduled(schedule, "w", at).due <= now
    ]
    assert run == expected
