"""When schedules fire: intervals, cron, and what happens when clocks change."""

from datetime import UTC, date, datetime, time, timedelta
from zoneinfo import ZoneInfo

import pytest

from orchestrator.scheduling.fire_times import fires_between, latest_fire, next_fire
from orchestrator.workflow.models.workflow import Schedule

ZONES = {
    # zone: (the day clocks go forward, the hour left out, the day they go back, the hour repeated), in 2026
    "Europe/Berlin": (date(2026, 3, 29), 2, date(2026, 10, 25), 2),
    "America/New_York": (date(2026, 3, 8), 2, date(2026, 11, 1), 1),
}


def local(cron: str, zone: str, day: date, days: int = 1) -> list[str]:
    """The fires of some local days, as local time with the offset."""
    tz = ZoneInfo(zone)
    start = datetime.combine(day, time(tzinfo=tz)).astimezone(UTC)
    end = datetime.combine(day + timedelta(days=days), time(tzinfo=tz)).astimezone(UTC)
    schedule = Schedule(cron=cron, timezone=zone)
    fires = fires_between(schedule, start - timedelta(microseconds=1), end - timedelta(microseconds=1), limit=10_000)
    return [fire.astimezone(tz).strftime("%d %H:%M:%S%z") for fire in fires]


@pytest.mark.parametrize("zone", ZONES)
def test_a_fixed_time_that_is_left_out_fires_once_right_after_the_gap(zone: str) -> None:
    day, hour, _, _ = ZONES[zone]
    fires = local(f"30 {hour} * * *", zone, day - timedelta(days=1), 3)
    assert [fire[3:8] for fire in fires] == [f"{hour:02}:30", f"{hour + 1:02}:00", f"{hour:02}:30"]


@pytest.mark.parametrize("zone", ZONES)
def test_several_fixed_times_in_the_gap_are_one(zone: str) -> None:
    day, hour, _, _ = ZONES[zone]
    assert [fire[3:8] for fire in local(f"15,45 {hour} * * *", zone, day)] == [f"{hour + 1:02}:00"]


@pytest.mark.parametrize("zone", ZONES)
def test_a_fixed_time_that_comes_twice_fires_the_first_time_only(zone: str) -> None:
    _, _, day, hour = ZONES[zone]
    fires = local(f"30 {hour} * * *", zone, day)
    assert len(fires) == 1
    first = datetime.combine(day, time(hour, 30, tzinfo=ZoneInfo(zone), fold=0))
    assert fires[0] == first.strftime("%d %H:%M:%S%z")


@pytest.mark.parametrize("zone", ZONES)
def test_asked_in_the_repeated_hour_a_fixed_time_is_not_given_again(zone: str) -> None:
    _, _, day, hour = ZONES[zone]
    second = datetime.combine(day, time(hour, 10, tzinfo=ZoneInfo(zone), fold=1))
    fire = next_fire(Schedule(cron=f"30 {hour} * * *", timezone=zone), second)
    assert fire is not None
    assert fire.astimezone(ZoneInfo(zone)).day == (day + timedelta(days=1)).day


@pytest.mark.parametrize("zone", ZONES)
@pytest.mark.parametrize(("cron", "spring", "autumn"), [("0 * * * *", 23, 25), ("*/15 * * * *", 92, 100)])
def test_a_job_of_every_hour_follows_the_elapsed_time(zone: str, cron: str, spring: int, autumn: int) -> None:
    forward, _, back, _ = ZONES[zone]
    assert len(local(cron, zone, forward)) == spring
    assert len(local(cron, zone, back)) == autumn


@pytest.mark.parametrize("zone", ZONES)
def test_with_seconds_a_fixed_time_keeps_the_same_rules(zone: str) -> None:
    forward, gap, back, hour = ZONES[zone]
    assert [fire[3:11] for fire in local(f"5,20 30 {gap} * * *", zone, forward)] == [
        f"{gap + 1:02}:00:05",
        f"{gap + 1:02}:00:20",
    ]
    assert len(local(f"0 30 {hour} * * *", zone, back)) == 1


def test_seconds_are_the_first_of_six_fields() -> None:
    schedule = Schedule(cron="*/20 * * * * *")
    after = datetime(2026, 1, 1, 0, 0, 5, tzinfo=UTC)
    assert [fire.second for fire in fires_between(schedule, after, after + timedelta(minutes=1), limit=9)] == [
        20,
        40,
        0,
    ]


def test_an_interval_is_counted_from_the_epoch_so_that_a_restart_does_not_shift_it() -> None:
    schedule = Schedule.model_validate({"every": "7m"})
    fires = {next_fire(schedule, datetime(2026, 1, 1, 12, 1, second, tzinfo=UTC)) for second in range(60)}
    assert len(fires) == 1
    (fire,) = fires
    assert fire is not None
    assert fire.timestamp() % 420 == 0


def test_a_date_that_never_comes_has_no_next_time() -> None:
    assert next_fire(Schedule(cron="0 0 31 2 1"), datetime(2026, 1, 1, tzinfo=UTC)) is not None  # day or weekday
    leap = next_fire(Schedule(cron="0 0 29 2 *"), datetime(2026, 1, 1, tzinfo=UTC))
    assert leap == datetime(2028, 2, 29, tzinfo=UTC)


def test_the_latest_time_of_a_long_absence_is_found_without_walking_through_it() -> None:
    now = datetime(2026, 6, 1, 12, 0, 0, tzinfo=UTC)
    long_ago = now - timedelta(days=3650)
    assert latest_fire(Schedule.model_validate({"every": "1s"}), long_ago, now) == now
    assert latest_fire(Schedule(cron="30 7 * * 1"), long_ago, now) == datetime(2026, 6, 1, 7, 30, tzinfo=UTC)
    assert latest_fire(Schedule(cron="30 7 * * 1"), now - timedelta(hours=1), now) is None
