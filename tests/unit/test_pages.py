"""What pages work out without a server: scales of time, addresses, cells of a download, sums."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, date, datetime, timedelta, timezone
from itertools import pairwise
from typing import Any
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.errors import UsageError
from orchestrator.jsontypes import JsonObject
from orchestrator.ledger.findings import Exposure
from orchestrator.ledger.lease import LeaseState
from orchestrator.ledger.log.reader import StoredCheckpoint
from orchestrator.ledger.states import RunState
from orchestrator.ledger.types import EventRecord, LeaseRecord
from orchestrator.server.pages.answers import Asked, Page, address
from orchestrator.server.pages.days import By, Day, Days
from orchestrator.server.pages.drawing.svg import bar_svg, columns_svg, timeline_svg
from orchestrator.server.pages.drawing.timeline import Bar, Dot, Row, Timeline
from orchestrator.server.pages.drawing.timescale import MOST_CUTS, WIDTH, timescale
from orchestrator.server.pages.live import message
from orchestrator.server.pages.rendering import link_markup, prepare, rendered, state_markup
from orchestrator.server.pages.views.evidence import Signed, dropped_in
from orchestrator.server.pages.views.exposure import lines_of
from orchestrator.server.pages.views.receipts import MOST_EVENTS, has_receipt

NOW = datetime(2026, 3, 2, 12, tzinfo=UTC)
MOMENTS = st.lists(st.integers(0, 10**13).map(lambda each: each / 1e6), min_size=1, max_size=40)


LEASE = LeaseRecord(
    lease_id="lease_1",
    run_id="run_1",
    workflow="w",
    agent="a",
    step="s",
    attempt=1,
    step_key="k",
    grant="db",
    grant_kind="database",
    resource="database/creds/x",
    scope={},
    state=LeaseState.REVOKED,
    ttl=60,
    requested_at=NOW,
    issued_at=NOW,
    expires_at=NOW,
    closed_at=NOW,
    vault_lease_id="",
    accessor="",
    subject="",
    reason="",
)
SIGNED = StoredCheckpoint(size=3, note="", at=NOW)


def signed_up_to(seq: int) -> Signed:
    return Signed(SIGNED, 1, seq)


def asked(path: str = "/ui/runs", **query: str) -> Asked:
    return Asked(path, {}, query, NOW)


@given(MOMENTS)
def test_a_scale_has_all_of_the_line_and_keeps_the_order(moments: list[float]) -> None:
    scale = timescale(moments)
    stretches = scale.stretches
    assert stretches[0].left == 0
    assert stretches[-1].right == pytest.approx(WIDTH)
    for before, after in pairwise(stretches):
        assert (before.end, before.right) == (after.start, pytest.approx(after.left))
    assert len(scale.cuts) <= MOST_CUTS
    places = [scale.place(each) for each in sorted(moments)]
    assert all(after >= before - 1e-9 for before, after in pairwise(places))
    assert all(0 <= each <= WIDTH + 1e-6 for each in places)


def test_a_long_time_without_anything_is_cut_and_short_ones_are_not() -> None:
    scale = timescale([0, 1, 2, 3602, 3603])
    (cut,) = scale.cuts
    assert (cut.start, cut.end, cut.seconds) == (2, 3602, 3600)
    assert scale.place(1) - scale.place(0) > 25
    assert timescale([0, 1, 2, 3, 4]).cuts == []


def test_what_lasts_for_no_time_has_a_scale_too() -> None:
    assert timescale([]).place(0) == 0
    assert timescale([5, 5]).place(5) == 0


def test_an_address_keeps_whatever_is_in_a_name_in_one_segment() -> None:
    assert address("decisions", "run_1", "a/../b?c#d", 2) == "/ui/decisions/run_1/a%2F..%2Fb%3Fc%23d/2"


def test_a_query_is_kept_and_changed() -> None:
    page = asked(workflow=" a b ", state="", before="x")
    assert page.with_(before="run_2") == "/ui/runs?workflow=a+b&before=run_2"
    assert page.with_(before=None) == "/ui/runs?workflow=a+b"


@pytest.mark.parametrize(
    "ask",
    [
        lambda: asked(state="asleep").one_of("state", RunState),
        lambda: asked(since="soon").moment("since"),
        lambda: asked(since="0001-01-01T00:00:00+14:00").moment("since"),
        lambda: asked(workflow="x" * 501).text("workflow"),
        lambda: asked(workflow="a\0b").text("workflow"),
        lambda: asked(days="-1").number("days", 1, least=1, most=9),
        lambda: asked(days="99").number("days", 1, least=1, most=9),
        lambda: asked(days="9" * 500).number("days", 1, least=1, most=9),
        lambda: asked(days="٣").number("days", 1, least=1, most=9),
    ],
)
def test_what_cannot_be_asked_is_said(ask: Any) -> None:
    with pytest.raises(UsageError):
        ask()


def test_times_without_an_offset_are_utc() -> None:
    assert asked(since="2026-03-02").moment("since") == datetime(2026, 3, 2, tzinfo=UTC)
    assert asked(since="2h").moment("since") == NOW - timedelta(hours=2)


def test_an_event_of_several_lines_stays_one_event() -> None:
    assert message("<p>\na\n</p>") == b"data: <p>\ndata: a\ndata: </p>\n\n"


def test_what_is_drawn_is_escaped() -> None:
    assert "<script>" not in bar_svg(0.5, "<script>")
    assert "<script>" not in columns_svg([("<script>", 1.0, "<script>")], "<script>", "<script>")


HOSTILE = "<script>\"'&</title></svg>"


def test_whatever_a_timeline_has_to_say_it_is_one_drawing() -> None:
    bars = [Bar(0, 50, HOSTILE, HOSTILE), Bar(50, 100, "taking", HOSTILE, open=True)]
    row = Row(HOSTILE, thin=True, bars=bars, dots=[Dot(3, HOSTILE, HOSTILE), Dot(99, "allowed", HOSTILE)])
    drawn = timeline_svg(
        Timeline(timescale([0, 1, 2, 3602, 3603]), [row, Row("", False, [])], 0, 3603), HOSTILE, HOSTILE
    )
    root = ElementTree.fromstring(drawn)
    said = [text for each in root.iter() for text in (each.text, *each.attrib.values()) if text and "<" in text]
    assert said.count(HOSTILE) == 2 + 4 + 1 + 1, "title and description, those of bars and dots, the label, a class"
    assert {each.tag for each in root.iter()} <= {"svg", "title", "desc", "defs", "pattern", "rect", "text", "g"}


def test_states_of_different_kinds_have_marks_of_their_own() -> None:
    """`ended` is equal to `ended`, and is not the same."""
    assert "failed" in state_markup(RunState.FAILED)
    assert "(secret still valid)" in state_markup(LeaseState.ENDED)
    assert "(secret still valid)" not in state_markup("ended")
    assert state_markup(HOSTILE).count("<") == 4


@pytest.mark.parametrize("kind", ["runs", "leases"])
def test_a_link_holds_whatever_an_id_is(kind: str) -> None:
    root = ElementTree.fromstring(link_markup(kind, HOSTILE))
    assert (root.text, list(root)) == (HOSTILE, [])
    assert root.attrib["href"].startswith(f"/ui/{kind}/%3Cscript%3E")


def test_every_template_can_be_read() -> None:
    prepare()


def test_what_was_dropped_is_said_with_the_first_day_of_each_kind() -> None:
    def event(day: int, *values: str, reason: str = "retention: inputs 1d") -> EventRecord:
        moment = datetime(2026, 3, day, 23, 30, tzinfo=timezone(timedelta(hours=-2)))
        data: JsonObject = {"values": list(values), "reason": reason}
        return EventRecord(run_id="r", seq=day, time=moment, kind="values.dropped", data=data, digest="")

    assert dropped_in([]) == {}
    found = dropped_in([event(1, "inputs"), event(2, "inputs", "outputs", reason="")])
    assert found == {
        "inputs": "dropped on 2026-03-02 by retention: inputs 1d",
        "outputs": "dropped on 2026-03-03 by somebody",
    }


def test_a_problem_is_a_page_and_escaped() -> None:
    text = rendered(Page("problem.html", {"title": "<b>", "message": "<i>", "hint": "<u>", "login": ""}))
    assert "&lt;b&gt;" in text
    assert "<i>" not in text


def exposure(workflow: str, leases: int, seconds: float, longest: float, still: int = 0) -> Exposure:
    return Exposure(
        workflow=workflow, agent="a", resource="r", leases=leases, open=still, seconds=seconds, longest=longest
    )


def test_exposure_is_added_up_by_name_the_longest_first() -> None:
    one, other = [exposure("x", 1, 2, 2), exposure("y", 3, 9, 4)], [exposure("x", 1, 1, 1)]
    lines = lines_of([Day.of(found).by[By.WORKFLOW] for found in (one, other)], 86400)
    assert [(line.name, line.leases, line.seconds, line.longest) for line in lines] == [("y", 3, 9, 4), ("x", 2, 3, 2)]
    assert lines[0].of_standing == 9 / 86400
    assert Day.of(one).only({By.WORKFLOW: "x"}) == Day.of(one[:1])
    assert Day.of(one).only({By.WORKFLOW: "x", By.AGENT: "b"}).found == []


class Counting:
    """A reader that counts how often it adds up."""

    def __init__(self, found: Exposure) -> None:
        self.found = found
        self.asked: list[datetime] = []

    def exposure(self, since: datetime, until: datetime) -> list[Exposure]:
        self.asked.append(since)
        return [self.found]


def test_a_day_that_is_over_is_added_up_once_and_one_with_something_open_each_time() -> None:
    over, still, days = Counting(exposure("x", 1, 1, 1)), Counting(exposure("x", 1, 0, 0, still=1)), Days()
    for _ in range(2):
        days.of(over, date(2026, 3, 1), NOW)  # type: ignore[arg-type]
        days.of(over, NOW.date(), NOW)  # type: ignore[arg-type]
    assert len(over.asked) == 3
    for _ in range(2):
        days.of(still, date(2026, 2, 28), NOW)  # type: ignore[arg-type]
    assert len(still.asked) == 2


@pytest.mark.parametrize(
    ("closed", "last", "found", "has"),
    [
        (True, 7, signed_up_to(7), True),
        (True, 7, signed_up_to(9), True),
        (True, 7, signed_up_to(MOST_EVENTS), True),
        (True, 7, signed_up_to(MOST_EVENTS + 1), False),
        (True, 7, signed_up_to(6), False),
        (True, 7, replace(signed_up_to(7), fits=False), False),
        (True, 7, Signed(SIGNED), False),
        (True, 7, None, False),
        (True, 0, signed_up_to(7), False),
        (False, 7, signed_up_to(7), False),
    ],
)
def test_there_is_a_receipt_of_what_is_over_and_signed_to_its_end(
    closed: bool, last: int, found: Signed | None, has: bool
) -> None:
    """A lease that ended after its run's entry is over, and what says so is not signed yet."""
    lease = replace(LEASE, closed_at=NOW if closed else None)
    life = [EventRecord("run_1", seq, NOW, "lease.requested", {}, "") for seq in range(3, last + 1)]
    assert has_receipt(lease, life, found) is has
