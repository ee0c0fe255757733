"""How long is waited for a service that asks for patience, and that it is told."""

from __future__ import annotations

import re
from datetime import timedelta

import pytest
from bench import Bench
from test_actions_http import serving

from orchestrator.cli.display.runs.live import PlainLines
from orchestrator.clock import SystemClock
from orchestrator.errors import ExitCode
from orchestrator.ledger.events import AttemptFinished, AttemptStarted
from orchestrator.ledger.opening import open_ledger
from orchestrator.ledger.storage.codec import event_from_json

WORKFLOW = """
version: 1
name: patient
agent: tester
{top}
steps:
  call:
    action: http.request
    with: {{ url: "{url}/busy" }}
    retry: {{ attempts: 3, backoff: 1s, max_backoff: 3s, on: [rate_limited, http_status] }}
    timeout: 5s
"""


@pytest.mark.parametrize("status", [429, 503])
@pytest.mark.parametrize("wish", ["1795000000", "1795000000000", "9" * 400, "Fri, 31 Dec 9999 23:59:59 GMT", "61"])
def test_a_service_that_wants_too_long_a_wait_is_asked_once(bench: Bench, status: int, wish: str) -> None:
    with serving() as service:
        service.answers("/busy", status=status, retry_after=wish)
        outcome = bench.run(WORKFLOW.format(url=service.url, top=""))
    assert len(service.received) == 1
    assert outcome.exit_code is ExitCode.STEP_FAILED
    assert "not tried again: it asks for a wait of" in outcome.reason
    assert "longer than the 60 s that are waited at most" in outcome.reason
    [ended] = [event for event in bench.events if isinstance(event, AttemptFinished)]
    assert ended.retry_at is None


def test_a_service_that_wants_to_be_asked_after_the_run_is_not_waited_for(bench: Bench) -> None:
    with serving() as service:
        service.answers("/busy", status=429, retry_after="40")
        outcome = bench.run(WORKFLOW.format(url=service.url, top="timeout: 30s"))
    assert len(service.received) == 1
    assert "it asks for a wait of 40 s, longer than the run has time left" in outcome.reason


def test_a_wait_is_on_record_with_its_end_and_told_in_a_line(bench: Bench) -> None:
    with serving() as service:
        service.answers("/busy", status=429, retry_after="3")
        outcome = bench.run(WORKFLOW.format(url=service.url, top=""))
    assert len(service.received) == 3
    lines = PlainLines()
    with open_ledger(bench.config().ledger_url, clock=SystemClock()) as ledger:
        assert ledger.verify(outcome.run_id) is None
        records = ledger.events(outcome.run_id)
    events = [(record.time, event_from_json(record.kind, record.data)) for record in records]
    ended = [(time, event) for time, event in events if isinstance(event, AttemptFinished)]
    begun = [time for time, event in events if isinstance(event, AttemptStarted)]
    for (time, event), following in zip(ended[:2], begun[1:], strict=True):
        assert event.retry_at is not None
        assert event.retry_at - time <= timedelta(seconds=3)
        assert following > time
        lines.board.apply(outcome.run_id, time, event)
        assert lines.board.steps["call"].retry_at == event.retry_at
        said = lines._text(event)
        assert re.search(r"answered 429.*; tried again at (\d{4}-\d\d-\d\d )?\d\d:\d\d:\d\d$", said)
    assert ended[2][1].retry_at is None
