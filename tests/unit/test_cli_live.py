"""What people and programs see of a run while it goes on, and the last word on it."""

import io
import json
import re
from dataclasses import replace
from datetime import timedelta

import pytest
from cli_samples import DENIED, READ, REFUSED, RUN, START, STARTED, SUCCEEDED, UNCONFIRMED, timed
from rich.console import Console

from orchestrator.cli.display.board import Board
from orchestrator.cli.display.runs.live import JsonLines, LiveTable, Outlet, PlainLines
from orchestrator.ledger.events import AttemptStarted, Event, LeaseIssued, RunStarted, StepFinished
from orchestrator.ledger.states import StepState
from orchestrator.ledger.storage.codec import event_to_json
from orchestrator.presentation.events import words


def shown(events: list[Event]) -> str:
    screen = Console(record=True, width=100, file=io.StringIO())
    view = LiveTable(screen=screen, now=lambda: START + timedelta(seconds=2))
    for moment in timed(events):
        view.observe(*moment)
    screen.print(view.table())
    return re.sub(r" +\n", "\n", screen.export_text())


def lines(events: list[Event], *, quiet: bool = False) -> list[str]:
    stream = io.StringIO()
    view = PlainLines(quiet=quiet, outlet=Outlet(stream))
    for moment in timed(events):
        view.observe(*moment)
    return stream.getvalue().splitlines()


def test_before_anything_begins_every_step_is_waiting() -> None:
    assert shown([STARTED]) == (
        "STEP    ACTION  STATE       TOOK  CREDENTIALS\n"
        "read            waiting        -\n"
        "notify          waiting        -\n"
    )  # fmt: skip


def of_items(*what: str) -> list[Event]:
    """`+3` begins the fourth item, `-3` ends it, `!3` ends it with a failure."""
    made: list[Event] = []
    for each in what:
        name = f"read[{each[1:]}]"
        if each[0] == "+":
            key = f"read-{each[1:]}"
            made.append(AttemptStarted(step=name, attempt=1, step_key=key, action="postgres.query", timeout=60))
        else:
            state = StepState.FAILED if each[0] == "!" else StepState.SUCCEEDED
            made.append(StepFinished(step=name, state=state))
    return made


def test_a_step_for_each_item_is_one_line_that_counts_them() -> None:
    assert shown([STARTED, *of_items("+0", "+1", "-0", "+2", "!1")]).splitlines()[1] == (
        "read    postgres.query  running    1.90s  2 items, 1 failed, 1 under way"
    )
    over = [*of_items("+0", "-0"), StepFinished(step="read", state=StepState.SUCCEEDED)]
    assert shown([STARTED, *over]).splitlines()[1].endswith("1 item")
    assert "read[" not in shown([STARTED, *over])


def test_a_step_at_work_shows_the_credentials_it_holds() -> None:
    assert shown([STARTED, *READ]) == (
        "STEP    ACTION          STATE       TOOK  CREDENTIALS\n"
        "read    postgres.query  running    1.90s  ● step  ● db\n"
        "notify                  waiting        -\n"
    )


def test_a_run_that_worked_shows_what_is_gone_and_what_only_ended() -> None:
    assert shown(SUCCEEDED) == (
        "STEP    ACTION              STATE       TOOK  CREDENTIALS\n"
        "read    postgres.query      succeeded  0.70s  ✓ step  ✓ db\n"
        "notify  slack.post_message  succeeded  0.50s  ○ bot\n"
    )


def test_a_refused_grant_is_crossed_out_and_its_dependents_are_skipped() -> None:
    assert shown(REFUSED) == (
        "STEP    ACTION          STATE       TOOK  CREDENTIALS\n"
        "read    postgres.query  refused    0.50s  ✗ db\n"
        "notify                  skipped        -\n"
    )


def test_what_is_not_confirmed_gone_stays_half_open() -> None:
    assert "✓ step  ◐ db" in shown(UNCONFIRMED)


def test_another_attempt_shows_its_own_credentials_only() -> None:
    again = AttemptStarted(step="read", attempt=2, step_key="read-2", action="postgres.query", timeout=30)
    assert "running #2  1.90s\n" in shown([STARTED, *READ, again])


def test_plain_lines_tell_beginnings_and_ends() -> None:
    said = lines(SUCCEEDED)
    assert [line.split(f" {RUN} ")[1] for line in said] == [
        "started: customer_feedback for feedback-assistant",
        "read: started (postgres.query)",
        "read: succeeded",
        "notify: started (slack.post_message)",
        "notify: succeeded",
        "succeeded, exit code 0",
    ]
    assert all(re.match(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d[+-]\d{4} ", line) for line in said)


@pytest.mark.parametrize(
    ("events", "told"),
    [
        (REFUSED, "read: db refused: Vault refused database/creds/feedback-read: permission denied"),
        (DENIED, "read: denied by rego: SQL verb `delete` is forbidden to every agent; grant `db` lives 3600s"),
        (UNCONFIRMED, "read: db not confirmed gone yet: the database did not answer"),
    ],
)
def test_plain_lines_tell_refusals_and_what_is_not_gone(events: list[Event], told: str) -> None:
    assert told in "\n".join(lines(events))


def test_why_a_step_was_refused_is_said_once() -> None:
    for events, reason in ((REFUSED, "permission denied"), (DENIED, "the policy denied it")):
        told = [line.split(f" {RUN} ")[1] for line in lines(events)]
        assert "read: refused" in told
        assert len([line for line in told if reason in line]) == (events is REFUSED)


def test_what_steps_do_is_shown_before_they_begin_where_it_is_known() -> None:
    screen = Console(record=True, width=100, file=io.StringIO())
    view = LiveTable(screen=screen, actions={"read": "postgres.query", "notify": "slack.post_message"})
    for moment in timed([STARTED]):
        view.observe(*moment)
    screen.print(view.table())
    assert [line.split() for line in screen.export_text().splitlines()][1:] == [
        ["read", "postgres.query", "waiting", "-"],
        ["notify", "slack.post_message", "waiting", "-"],
    ]


def test_what_cannot_be_looked_for_in_outputs_is_said_where_it_is_issued_and_in_the_history() -> None:
    said = "`pin`, `stage` too short or too common to be looked for in outputs"
    events: list[Event] = [
        replace(STARTED, not_looked_for=("pin", "stage")),
        *(replace(each, not_looked_for=("pin", "stage")) if isinstance(each, LeaseIssued) else each for each in READ),
    ]
    for found in ("\n".join(lines(events)), " ".join(shown(events).split())):
        assert f"inputs: {said}" in found
        assert f"read: db: {said}" in found
    for event in events:
        if isinstance(event, RunStarted | LeaseIssued):
            assert words(event.kind, event_to_json(event)).endswith(f"; {said}")
    assert lines(events, quiet=True) == []


def test_quiet_is_quiet_about_everything_but_notices() -> None:
    assert lines(REFUSED, quiet=True) == []
    stream = io.StringIO()
    PlainLines(quiet=True, outlet=Outlet(stream)).notice("SIGTERM: revoking")
    assert stream.getvalue() == "SIGTERM: revoking\n"


def test_every_event_is_one_json_line_with_its_time_in_utc() -> None:
    stream = io.StringIO()
    view = JsonLines(outlet=Outlet(stream))
    for moment in timed(SUCCEEDED):
        view.observe(*moment)
    documents = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert [document["kind"] for document in documents] == [event.kind for event in SUCCEEDED]
    assert documents[1]["time"] == "2026-03-02T05:00:05.100000Z"
    assert documents[1] | {"time": ""} == {
        "time": "",
        "run": RUN,
        "kind": "attempt.started",
        "step": "read",
        "attempt": 1,
        "step_key": "read-k3v9w2m7q4xa",
        "action": "postgres.query",
        "timeout": 30,
        "confinement": None,
    }


class Gone(io.StringIO):
    def write(self, text: str) -> int:
        raise BrokenPipeError


@pytest.mark.parametrize("make", [JsonLines, PlainLines])
def test_a_reader_who_goes_away_does_not_fail_the_run(make: type[JsonLines] | type[PlainLines]) -> None:
    view = make(outlet=Outlet(Gone()))
    for moment in timed(SUCCEEDED):
        view.observe(*moment)
    assert view.outlet.broken
    assert view.board.exit_code == 0


@pytest.mark.parametrize(
    ("events", "words"),
    [
        (SUCCEEDED, "3 issued, 2 confirmed gone, 1 ended (secret still valid)"),
        (REFUSED, "0 issued, 1 refused"),
        (DENIED, "0 issued"),
        (UNCONFIRMED, "3 issued, 1 confirmed gone, 1 ended (secret still valid), 1 NOT CONFIRMED GONE"),
    ],
)
def test_the_count_of_credentials_says_what_became_of_them(events: list[Event], words: str) -> None:
    board = Board()
    for moment in timed(events):
        board.apply(*moment)
    assert board.count().words() == words
