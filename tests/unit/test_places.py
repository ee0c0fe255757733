"""Whose turn it is: the rule of the issuance governor, without any ledger."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from orchestrator.credentials.governor.silence import Silence
from orchestrator.ledger.places import KEPT_AFTER, Claim, Places, PlacesWanted, Waiter, granted
from orchestrator.telemetry.metrics import ConnectionFigures, figures

NOON = datetime(2026, 1, 31, 12, tzinfo=UTC)
A, B, BOTH = Claim({"a": 1}), Claim({"b": 1}), Claim({"a": 1, "b": 1})
KEPT = Claim({"a": 1, "b": 1}, kept=True)


@pytest.mark.parametrize(
    ("held", "limits", "line", "going"),
    [
        pytest.param({}, {"a": 1}, [A, A], [True, False], id="one after the other"),
        pytest.param({"a": 1}, {"a": 1}, [A, A], [False, False], id="full"),
        pytest.param({"a": 1}, {"a": 3}, [A, A, A], [True, True, False], id="as many as there are places"),
        pytest.param({"a": 5}, {"a": 3}, [A], [False], id="more are open than may be by now"),
        pytest.param({"a": 2}, {"a": 3}, [Claim({"a": 2}), A], [False, False], id="a smaller wish overtakes nobody"),
        pytest.param({"b": 1}, {"a": 1, "b": 1}, [BOTH, A], [False, True], id="who waits for b holds up nobody at a"),
        pytest.param({"b": 1}, {"a": 1, "b": 2}, [BOTH, A, B], [True, False, False], id="both at once"),
        pytest.param({"b": 1}, {"a": 1, "b": 1}, [BOTH, B], [False, False], id="but at b it is ahead"),
        pytest.param({"b": 1}, {"a": 1, "b": 2}, [B, BOTH, B, A], [True, False, False, True], id="b was given away"),
        pytest.param({"a": 1, "b": 1}, {"a": 1, "b": 2}, [BOTH, A], [False, False], id="only a is why it waits"),
        pytest.param({"a": 1, "b": 1}, {"a": 2, "b": 1}, [KEPT, A], [False, False], id="its place is kept at last"),
        pytest.param({"a": 1, "b": 1}, {"a": 2, "b": 1}, [BOTH, A], [False, True], id="and not before"),
        pytest.param({"a": 9}, {}, [A], [True], id="no limit that is known"),
    ],
)
def test_the_rule(held: dict[str, int], limits: dict[str, int], line: list[Claim], going: list[bool]) -> None:
    assert granted(held, limits, line) == going


def waiter(number: int, leases: dict[str, int], *, seconds: float = 0, runner: str = "", **more: int) -> Waiter:
    return Waiter(
        ticket=number,
        run_id=f"run_{number}",
        step="work",
        attempt=1,
        leases=leases,
        limits=dict.fromkeys(leases, more.get("most", 1)),
        since=NOON - timedelta(seconds=seconds),
        workflow="w",
        agent="ann",
        task=None,
        runner_id=runner or f"host-{number}",
        process="{}",
        beat=more.get("beat", 0),
    )


def wanting(**leases: int) -> PlacesWanted:
    return PlacesWanted("work", 1, "host-9", leases, {"a": 1, "b": 1})


def test_a_newcomer_comes_after_all_who_are_in_line() -> None:
    places = Places({}, [waiter(1, {"a": 1})])
    blocked = places.blocked(("run_9", "work", 1), wanting(a=1), NOON)
    assert blocked is not None
    assert (blocked.connection, blocked.reason) == ("a", "others have waited longer for leases of `a`")
    assert places.blocked(("run_1", "work", 1), wanting(a=1), NOON) is None
    assert places.blocked(("run_9", "work", 1), wanting(b=1), NOON) is None
    assert places.next({"a": 1}, NOON) == {("run_1", "work", 1)}


@pytest.mark.parametrize(
    ("held", "most", "leases", "reason"),
    [
        (1, 1, 1, "1 lease of `a` is open, and no more may be"),
        (2, 2, 1, "2 leases of `a` are open, and no more may be"),
        (2, 3, 2, "2 leases of `a` are open, 2 more are wanted at once, and no more than 3 may be"),
    ],
)
def test_it_is_said_why_there_is_no_place(held: int, most: int, leases: int, reason: str) -> None:
    wanted = PlacesWanted("work", 1, "host-9", {"a": leases}, {"a": most})
    blocked = Places({"a": held}, []).blocked(("run_9", "work", 1), wanted, NOON)
    assert blocked is not None
    assert blocked.reason == reason


def test_places_are_kept_for_whoever_waited_for_so_long() -> None:
    for seconds, newcomer_waits in ((0, False), (KEPT_AFTER.total_seconds(), True)):
        places = Places({"b": 1}, [waiter(1, {"a": 1, "b": 1}, seconds=seconds)])
        assert (places.blocked(("run_9", "work", 1), wanting(a=1), NOON) is not None) is newcomer_waits


def test_a_limit_that_only_others_have_holds_for_them() -> None:
    """One who waits for `b`, which has no limit here, is not owed the place at `a`."""
    places = Places({"b": 1}, [waiter(1, {"a": 1, "b": 1})])
    wanted = PlacesWanted("work", 1, "host-9", {"a": 1}, {"a": 1})
    assert places.blocked(("run_9", "work", 1), wanted, NOON) is None


def test_everybody_has_a_place_in_line_at_each_connection() -> None:
    places = Places({}, [waiter(1, {"b": 1}), waiter(2, {"a": 1, "b": 1}), waiter(3, {"a": 1})])
    shown = [(each.run_id, name, place) for each, name, place in places.in_line()]
    assert shown == [("run_1", "b", 1), ("run_2", "a", 1), ("run_2", "b", 2), ("run_3", "a", 2)]


def test_figures_are_of_connections_with_a_limit() -> None:
    places = Places({"a": 2, "c": 7}, [waiter(1, {"a": 1}, seconds=4), waiter(2, {"a": 1, "b": 1}, seconds=-3)])
    assert figures(places, {"b": 1, "a": 2}, NOON) == [
        ConnectionFigures("a", 2, 2, 2, 4.0),
        ConnectionFigures("b", 1, 0, 1, 0.0),
    ]


def test_a_process_without_a_sign_of_life_is_taken_for_dead_and_our_own_never() -> None:
    silence = Silence(runner_id="us", dead_after=4, certainly_gone=lambda process: process == "gone")
    ours, theirs, third = (waiter(1, {"a": 1}, runner=name) for name in ("us", "them", "third"))
    assert silence.dead([ours, theirs, third], 100) == []
    alive = waiter(1, {"a": 1}, runner="third", beat=1)
    assert silence.dead([ours, theirs, alive], 102) == []
    assert silence.dead([ours, theirs, alive], 103.9) == []
    (found,) = silence.dead([ours, theirs, alive], 104)
    assert (found.runner_id, found.beat, found.gone) == ("them", 0, False)
    assert silence.dead([ours, alive], 105) == [], "who has left the line is not looked at"
    assert silence.dead([ours, theirs, alive], 105.9) == [], "and is seen anew"
    assert [each.runner_id for each in silence.dead([alive], 107.9)] == ["third"]


def test_whoever_could_not_look_for_a_while_takes_nobody_for_dead_because_of_it() -> None:
    silence = Silence(runner_id="us", dead_after=10, certainly_gone=lambda process: False)
    theirs = waiter(1, {"a": 1}, runner="them")
    for now in (100, 104, 108, 118, 122, 127):  # the ledger was away from 108 on
        assert silence.dead([theirs], now) == []
    assert [each.runner_id for each in silence.dead([theirs], 128)] == ["them"]
