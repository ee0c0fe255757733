"""The pages on a ledger of either kind: evidence, values that were dropped, long runs, and a ledger that is away."""

from __future__ import annotations

import asyncio
import re
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from datetime import UTC, timedelta
from functools import partial
from html import unescape
from urllib.parse import quote, urlsplit

import httpx
import pytest
from bench import Bench, Setup
from page_server import pages_on, sources_on
from personal import ANSWER, PERSON, WORKFLOW
from shown_ledger import HOSTILE, hostile_rows

from orchestrator.clock import SystemClock
from orchestrator.errors import ExitCode
from orchestrator.evidence.retention import Retention, prune
from orchestrator.jsontypes import counted
from orchestrator.ledger.events import (
    AttemptFinished,
    AttemptStarted,
    Decided,
    Event,
    LeaseIssued,
    LeaseRequested,
    LeaseRevoked,
    LeaseRevoking,
    RunFinished,
    RunStarted,
    StepFinished,
    ValuesDropped,
)
from orchestrator.ledger.ids import new_lease_id, new_run_id
from orchestrator.ledger.lease import LeaseState
from orchestrator.ledger.opening import open_ledger
from orchestrator.ledger.states import RunState, StepState
from orchestrator.ledger.types import LeaseFilter, RunFilter
from orchestrator.server.pages.answers import Asked as Question
from orchestrator.server.pages.views import receipts
from orchestrator.server.pages.views.leases import download_leases
from orchestrator.server.pages.views.runs import EVENTS, MOST_EVENTS, MOST_LEASES, MOST_STEPS, SHOWN

LISTS = (
    "/ui/",
    "/ui/runs",
    "/ui/runs?workflow=personal&agent=tester&trigger=manual&state=succeeded",
    "/ui/runs?agent=tester&trigger=never",
    "/ui/runs?all=1&until=1h",
    "/ui/leases",
    "/ui/leases?workflow=personal&agent=tester&kind=database&state=revoked",
    "/ui/leases?resource=database/",
    "/ui/tasks",
    "/ui/approvals",
    "/ui/exposure",
    "/ui/exposure?days=366&by=resource&agent=tester",
    "/ui/schedules",
    "/ui/workers",
    "/ui/search?q=personal",
)


class Asked:
    """The pages of a ledger, and what they say."""

    def __init__(self, base: str) -> None:
        self.base = base

    def get(self, path: str, status: int = 200) -> str:
        """The text of a page, without its marks."""
        answer = httpx.get(self.base + path, trust_env=False, follow_redirects=True, timeout=60)
        assert answer.status_code == status, (path, answer.status_code)
        assert "Traceback" not in answer.text
        self.html = answer.text
        return re.sub(r"\s+", " ", unescape(re.sub(r"<[^>]*>", " ", answer.text)))


@contextmanager
def asked(setup: Setup) -> Iterator[Asked]:
    with pages_on(setup.ledger_url) as base:
        yield Asked(base)


def carried_out(bench: Bench, setup: Setup) -> str:
    outcome = bench.run(WORKFLOW, inputs={"customer": PERSON}, ledger_url=setup.ledger_url)
    assert outcome.exit_code is ExitCode.DONE
    return outcome.run_id


async def dropped(setup: Setup, **kept: int) -> str:
    """Drop what has been kept for longer; the day on which that was, in UTC."""
    ledger, clock = open_ledger(setup.ledger_url, clock=SystemClock()), SystemClock()
    try:
        found = await prune(ledger, ledger, Retention(**kept), clock.now() + timedelta(hours=1))
        assert found.runs == 1
        (run, *_) = ledger.newest_runs(RunFilter(limit=1))
        (event, *_) = ledger.events(run.run_id, kind=ValuesDropped.kind)
        return event.time.astimezone(UTC).date().isoformat()
    finally:
        await ledger.aclose()


def test_every_list_and_search_is_answered(bench: Bench, setup: Setup) -> None:
    run = carried_out(bench, setup)
    asyncio.run(hostile_rows(setup.ledger_url))
    with asked(setup) as pages:
        for path in LISTS:
            pages.get(path)
            assert "<script>alert" not in pages.html, path
        assert run in pages.get(LISTS[2])
        assert "No run agrees with this." in pages.get(LISTS[3])
        assert "personal / one.db" not in pages.get("/ui/"), "nothing of it is open"
        rows = httpx.get(f"{pages.base}/ui/leases.csv", trust_env=False).text.splitlines()
        with open_ledger(setup.ledger_url, clock=SystemClock()) as ledger:
            assert len(rows) == 2 + len(ledger.leases(LeaseFilter(limit=1000)))
        assert pages.get(f"/ui/runs/{run[:-4]}") == pages.get(f"/ui/runs/{run}")


def test_what_is_kept_is_shown_and_what_was_dropped_is_said_with_its_day(bench: Bench, setup: Setup) -> None:
    run = carried_out(bench, setup)
    pages_of_run = (f"/ui/runs/{run}", f"/ui/decisions/{run}/one/1")
    with asked(setup) as pages:
        text = pages.get(pages_of_run[0])
        assert f'customer="{PERSON}"' in text
        assert ANSWER in text
        assert PERSON in pages.get(pages_of_run[1])
        assert "dropped on" not in text
        day = asyncio.run(dropped(setup, outputs=1))
        text = pages.get(pages_of_run[0])
        assert f"dropped on {day} by retention: outputs 1s" in text
        assert PERSON in text
        assert ANSWER not in text
        day = asyncio.run(dropped(setup, inputs=1))
        for path in pages_of_run:
            text = pages.get(path)
            assert f"dropped on {day} by retention: inputs 1s" in text
            assert PERSON not in text
        assert "Not recorded." not in text
        text = pages.get(pages_of_run[0])
        assert f"dropped on {day} by retention: outputs 1s" in text
        assert text.count("values.dropped") == 2
        assert "hash chain whole" in text


def test_a_lease_says_who_confirmed_what_and_that_its_history_is_signed(bench: Bench, setup: Setup) -> None:
    run = carried_out(bench, setup)
    with open_ledger(setup.ledger_url, clock=SystemClock()) as ledger:
        (lease,) = [each for each in ledger.leases(LeaseFilter(run=run)) if each.grant == "db"]
        assert lease.state is LeaseState.REVOKED
        events = {event.kind: event for event in ledger.events(run, lease_id=lease.lease_id)}
        checkpoint = ledger.log.newest_checkpoint()
        assert checkpoint is not None
        found = ledger.log.leaf(run, before=checkpoint.size)
        assert found is not None
    with asked(setup) as pages:
        text = pages.get(f"/ui/leases/{lease.lease_id}")
        at = events["lease.vault_revoked"].time.astimezone(UTC)
        assert f"confirmed by Vault {at:%H:%M:%S}" in text
        assert re.search(r"database support at \S+ \(system \d+\): role absent, 0 sessions, asked by orc_sweep-", text)
        assert "its password is refused" in text
        assert "(28P01)" in text
        assert "lease.login_tried" in text
        assert f"signed log entry {found[0]}, under the checkpoint of" in text
        assert f"orchestrator leases receipt {lease.lease_id}" in text
        assert f"signed log entry {found[0]}, under" in pages.get(f"/ui/runs/{run}")
        asyncio.run(dropped(setup, outputs=1))
        assert f"up to event {found[1].head.seq} only" in pages.get(f"/ui/runs/{run}")
        assert "only" not in pages.get(f"/ui/leases/{lease.lease_id}"), "the lease was over before"


def test_a_receipt_that_is_too_long_for_a_page_is_left_to_the_command_line(
    bench: Bench, setup: Setup, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = carried_out(bench, setup)
    with open_ledger(setup.ledger_url, clock=SystemClock()) as ledger:
        (lease,) = [each for each in ledger.leases(LeaseFilter(run=run)) if each.grant == "db"]
        events = len(ledger.events(run))
    page = f"/ui/leases/{lease.lease_id}"
    with asked(setup) as pages:
        monkeypatch.setattr(receipts, "MOST_EVENTS", events)
        pages.get(page)
        assert f'href="{page}/receipt"' in pages.html
        assert lease.lease_id in pages.get(f"{page}/receipt")
        monkeypatch.setattr(receipts, "MOST_EVENTS", events - 1)
        assert f"orchestrator leases receipt {lease.lease_id}" in pages.get(page)
        assert f'href="{page}/receipt"' not in pages.html
        for kind in ("receipt", "receipt.json"):
            text = pages.get(f"{page}/{kind}", 400)
            assert f"has more than {events - 1} events" in text
            assert f"`orchestrator leases receipt {lease.lease_id}` makes it" in text


def test_a_run_that_is_in_no_checkpoint_yet_says_so(bench: Bench, setup: Setup) -> None:
    hostile = asyncio.run(hostile_rows(setup.ledger_url))
    with asked(setup) as pages:
        assert "signed log" not in pages.get(f"/ui/runs/{hostile['hostile']}"), "nothing was ever signed"
    carried_out(bench, setup)
    late = asyncio.run(hostile_rows(setup.ledger_url))
    with asked(setup) as pages:
        assert "not in it yet" in pages.get(f"/ui/runs/{late['hostile']}")
        step = quote(HOSTILE, safe="")
        assert HOSTILE in unescape(pages.get(f"/ui/decisions/{late['hostile']}/{step}/1"))


def test_a_page_says_where_the_entry_of_the_log_is_another_event(bench: Bench, setup: Setup) -> None:
    run = carried_out(bench, setup)
    with open_ledger(setup.ledger_url, clock=SystemClock()) as ledger, ledger._engine.begin() as connection:
        connection.exec_driver_sql("UPDATE log_leaf SET head = head || '0'")
    with asked(setup) as pages:
        assert "is NOT the one that was entered" in pages.get(f"/ui/runs/{run}")


def test_a_history_that_was_changed_is_said_to_be_broken_and_from_where(bench: Bench, setup: Setup) -> None:
    run = carried_out(bench, setup)
    task = asyncio.run(hostile_rows(setup.ledger_url))["hostile_task"]
    places = {f"/ui/runs/{run}": (run, 3), f"/ui/tasks/{task}": (task, 2)}
    guard = "update" if setup.ledger_url.startswith("sqlite") else "change ON event"
    with asked(setup) as pages:
        for path in places:
            assert "hash chain whole" in pages.get(path)
        with open_ledger(setup.ledger_url, clock=SystemClock()) as ledger, ledger._engine.begin() as connection:
            connection.exec_driver_sql(f"DROP TRIGGER event_refuses_{guard}")
            for history, seq in places.values():
                changed = f"time = '2020-01-01T00:00:00.000000Z' WHERE run_id = '{history}' AND seq = {seq}"
                assert connection.exec_driver_sql(f"UPDATE event SET {changed}").rowcount == 1
        for path, (_, seq) in places.items():
            text = pages.get(path)
            assert f"BROKEN from event {seq} on" in text
            assert "hash chain whole" not in text


def test_a_task_says_by_whom_it_was_closed_and_a_step_what_it_held(setup: Setup) -> None:
    """A step of a run that nothing was issued to held nothing: that is not the same as for no time."""
    hostile = asyncio.run(hostile_rows(setup.ledger_url))
    run, _ = asyncio.run(long_run(setup.ledger_url, 1))
    bare = asyncio.run(bare_run(setup.ledger_url))
    with asked(setup) as pages:
        assert re.search(rf"closed [\d: -]+ by {re.escape(HOSTILE)}", pages.get(f"/ui/tasks/{hostile['hostile_task']}"))
        assert re.search(r"step_0000 exec 1 decision \S+ \S+ \d+%", pages.get(f"/ui/runs/{run}"))
        assert re.search(r"\bone exec 1 \S+ – – ", pages.get(f"/ui/runs/{bare}"))


async def bare_run(ledger_url: str) -> str:
    """A run of one step that was given nothing."""
    ledger, run = open_ledger(ledger_url, clock=SystemClock()), new_run_id()
    started = RunStarted(workflow="bare", digest="0" * 64, agent="a", trigger="manual", inputs={}, steps=("one",))
    try:
        fence = await ledger.begin_run(run, started)
        begun = AttemptStarted(step="one", attempt=1, step_key="one-k", action="exec", timeout=60)
        await ledger.append(run, fence, [begun])
        await asyncio.sleep(0.02)
        ended = AttemptFinished(step="one", attempt=1, state=StepState.SUCCEEDED)
        await ledger.append(run, fence, [ended, StepFinished(step="one", state=StepState.SUCCEEDED)])
        await ledger.append(run, fence, [RunFinished(state=RunState.SUCCEEDED, exit_code=0)])
    finally:
        await ledger.aclose()
    return run


async def long_run(ledger_url: str, steps: int) -> tuple[str, str]:
    """A run of so many steps, each decided, with a lease and an output; and the id of one of its leases."""
    ledger, clock = open_ledger(ledger_url, clock=SystemClock()), SystemClock()
    names = tuple(f"step_{number:04}" for number in range(steps))
    run, lease = new_run_id(), ""
    started = RunStarted(workflow="long", digest="0" * 64, agent="a", trigger="manual", inputs={}, steps=names)
    try:
        fence = await ledger.begin_run(run, started)
        for first in range(0, steps, 50):
            events: list[Event] = []
            for name in names[first : first + 50]:
                lease = new_lease_id()
                events += [
                    Decided(
                        step=name,
                        attempt=1,
                        engine="rego",
                        revision="1",
                        input_digest="0",
                        allow=True,
                        reasons=(f"{name} may",),
                        input={"step": name},
                    ),
                    AttemptStarted(step=name, attempt=1, step_key=f"{name}-k", action="exec", timeout=60),
                    LeaseRequested(
                        lease_id=lease,
                        step=name,
                        attempt=1,
                        grant="db",
                        grant_kind="secret",
                        resource="kv/data/x",
                        scope={"kind": "secret", "path": "kv/data/x", "fields": ["a"], "ttl": 60},
                        ttl=60,
                    ),
                    LeaseIssued(lease_id=lease, ttl=60, expires_at=clock.now() + timedelta(seconds=60)),
                    AttemptFinished(step=name, attempt=1, state=StepState.SUCCEEDED),
                    StepFinished(step=name, state=StepState.SUCCEEDED, outputs={"text": name * 400}),
                    LeaseRevoking(lease_id=lease, reason="step ended"),
                    LeaseRevoked(lease_id=lease, confirmed_by="vault"),
                ]
            await ledger.append(run, fence, events)
        await ledger.append(run, fence, [RunFinished(state=RunState.SUCCEEDED, exit_code=0)])
    finally:
        await ledger.aclose()
    return run, lease


@pytest.mark.parametrize("steps", [110, 400, 1100])
def test_a_run_of_many_steps_has_a_page_of_bounded_size(setup: Setup, steps: int) -> None:
    run, lease = asyncio.run(long_run(setup.ledger_url, steps))
    with asked(setup) as pages:
        text = pages.get(f"/ui/runs/{run}")
        assert len(pages.html) < 3_000_000
        assert f"Drawn are the first {MOST_EVENTS} events of {steps * 8 + 2}" in text
        assert text.count(" characters more") == MOST_STEPS
        assert "step_0000" * (SHOWN // 9 + 1) not in text
        assert counted(steps * 8 + 2, "event") in text
        assert f"Later steps of {counted(steps, 'step')}" in text
        assert f"{min(steps, MOST_LEASES) - MOST_STEPS} leases more" in text
        assert ("the newest 1,000 are drawn" in text) is (steps > MOST_LEASES)
        later = pages.get(f"/ui/runs/{run}?steps={(steps - 1) // MOST_STEPS * MOST_STEPS}")
        assert f"step_{steps - 1:04} exec" in later
        assert "Later steps" not in later
        assert ("hash chain whole" in text) is (steps * 8 < MOST_EVENTS)
        assert "hash chain whole" in pages.get(f"/ui/runs/{run}?check=1")
        assert "Earlier events" in text
        assert "Later events" not in text
        assert pages.html.count('<td class="num" title=') == EVENTS
        earlier = pages.get(f"/ui/runs/{run}?events=0")
        assert "run.started" in earlier
        assert "Later events" in earlier
        assert "lease.revoked" in pages.get(f"/ui/leases/{lease}")
        assert "step_0007 may" in pages.get(f"/ui/decisions/{run}/step_0007/1")


def away(bench: Bench, setup: Setup) -> tuple[Callable[[], object], Callable[[], object]]:
    """How this ledger goes away, and how it comes back: nobody can connect to it, or its tables are not there."""
    if setup.ledger_url.startswith("sqlite"):
        path = setup.ledger_url.removeprefix("sqlite:///")

        def renamed(before: str, after: str) -> None:
            with closing(sqlite3.connect(path, isolation_level=None)) as connection:
                for table in ("run", "lease"):
                    connection.execute(f"ALTER TABLE {before}{table} RENAME TO {after}{table}")

        return partial(renamed, "", "away_"), partial(renamed, "away_", "")
    name = urlsplit(setup.ledger_url).path.removeprefix("/")

    def close() -> None:
        bench.sql(f"ALTER DATABASE {name} ALLOW_CONNECTIONS false")
        bench.sql(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}'")

    return close, lambda: bench.sql(f"ALTER DATABASE {name} ALLOW_CONNECTIONS true")


def test_a_ledger_that_is_away_is_said_on_the_page_and_found_again(bench: Bench, setup: Setup) -> None:
    hostile = asyncio.run(hostile_rows(setup.ledger_url))
    lose, find = away(bench, setup)
    run = f"/ui/runs/{hostile['hostile']}"
    with asked(setup) as pages:
        assert "failed" in pages.get(run)
        lose()
        try:
            for path in ("/ui/", "/ui/runs", run, f"/ui/runs/{hostile['hostile'][:-4]}", "/ui/search?q=run_abc"):
                text = pages.get(path, 503)
                assert "The ledger does not answer now." in text
                assert "Try again in a moment." in text
                for said_inside in ("no such table", "connection", "setup_ledger", "SELECT", "sqlalchemy"):
                    assert said_inside not in text, path
            answer = httpx.get(pages.base + run, trust_env=False)
            assert answer.headers["retry-after"] == "5"
            assert "default-src 'none'" in answer.headers["content-security-policy"]
            assert httpx.get(f"{pages.base}/ui/static/style.css", trust_env=False).status_code == 200
        finally:
            find()
        assert "failed" in pages.get(run)


def test_a_download_that_the_ledger_leaves_says_that_it_is_not_complete(bench: Bench, setup: Setup) -> None:
    asyncio.run(long_run(setup.ledger_url, 60))
    lose, find = away(bench, setup)
    with sources_on(setup.ledger_url) as sources:
        parts = download_leases(sources, Question("/ui/leases.csv", {}, {}, sources.clock.now())).parts
        assert next(parts).startswith(b"lease,run,")
        lose()
        try:
            assert list(parts) == [b"#not-complete: the ledger did not answer any more,leases=0\r\n"]
        finally:
            find()
        *_, end = download_leases(sources, Question("/ui/leases.csv", {}, {}, sources.clock.now())).parts
        assert end.startswith(b"#end,leases=60,")
