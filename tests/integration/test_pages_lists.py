"""Lists of pages, whole: every row is on one page of them, what matters most is first, and what is left out is said."""

from __future__ import annotations

import asyncio
import csv
import io
import json
import re
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from typing import Any
from urllib.parse import urljoin

import httpx
import pytest
from bench import Bench, Setup
from page_server import pages_on, sources_on
from shown_ledger import ASKED, POLICY, REFUSED

from orchestrator.clock import SystemClock
from orchestrator.ledger.coordination.approvals import ApprovalRecord
from orchestrator.ledger.events import (
    Event,
    LeaseIssued,
    LeaseRequested,
    LeaseRevocationFailed,
    LeaseRevoked,
    LeaseRevoking,
    RunFinished,
    RunStarted,
)
from orchestrator.ledger.ids import call_id, new_approval_id, new_lease_id, new_run_id, new_task_id
from orchestrator.ledger.opening import open_ledger
from orchestrator.ledger.states import RunState
from orchestrator.ledger.task_events import TaskCalled, TaskOpened
from orchestrator.ledger.types import CallLimits, LeaseFilter
from orchestrator.ledger.writing.store import Ledger
from orchestrator.policy.engines.rego.engine import PolicySource, RegoEngine
from orchestrator.server.pages.drawing.timeline import held_seconds
from orchestrator.server.pages.views.home import SHOWN, TRIES
from orchestrator.server.pages.views.leases import ROWS_AT_ONCE
from orchestrator.server.pages.views.listing import ROWS
from orchestrator.server.pages.views.runs import changing_part
from orchestrator.server.pages.views.services import SILENT
from orchestrator.server.pages.views.tasks import MOST_CALLS

DIGEST = "sha256:" + "0" * 64
SCOPE: dict[str, Any] = {"kind": "secret", "path": "kv/data/x", "fields": ["a"], "ttl": 60}
CLOCK = SystemClock()


async def with_ledger(setup: Setup, write: Callable[[Ledger], Any]) -> Any:
    ledger = open_ledger(setup.ledger_url, clock=CLOCK)
    try:
        return await write(ledger)
    finally:
        await ledger.aclose()


async def begun(ledger: Ledger, workflow: str = "many") -> tuple[str, int]:
    run = new_run_id()
    started = RunStarted(workflow=workflow, digest=DIGEST, agent="a", trigger="manual", inputs={}, steps=("one",))
    return run, await ledger.begin_run(run, started)


def requested(lease: str, grant: str = "db") -> LeaseRequested:
    return LeaseRequested(
        lease_id=lease,
        step="one",
        attempt=1,
        grant=grant,
        grant_kind="secret",
        resource="kv/data/x",
        scope=SCOPE,
        ttl=60,
    )


def issued(lease: str) -> LeaseIssued:
    return LeaseIssued(lease_id=lease, ttl=60, expires_at=CLOCK.now() + timedelta(seconds=60))


def over(lease: str) -> list[Event]:
    return [LeaseRevoking(lease_id=lease, reason="over"), LeaseRevoked(lease_id=lease, confirmed_by="vault")]


async def leases(ledger: Ledger, count: int) -> list[str]:
    run, fence = await begun(ledger)
    ids = [new_lease_id() for _ in range(count)]
    await ledger.append(run, fence, [requested(each) for each in ids])
    return ids


async def runs(ledger: Ledger, count: int) -> list[str]:
    return [(await begun(ledger))[0] for _ in range(count)]


async def tasks(ledger: Ledger, count: int) -> list[str]:
    ids = [new_task_id() for _ in range(count)]
    for each in ids:
        opened = TaskOpened(
            task=each,
            workflow="desk",
            digest=DIGEST,
            agent="a",
            inputs={},
            context={},
            tools=("read",),
            deadline=CLOCK.now() + timedelta(hours=1),
            idle=None,
            caller={},
            reason="",
        )
        await ledger.begin_run(each, opened)
    return ids


async def approvals(ledger: Ledger, count: int) -> list[str]:
    run, _ = await begun(ledger)
    now, ids = CLOCK.now(), [new_approval_id() for _ in range(count)]
    for number, each in enumerate(ids):
        ledger.approvals.ask(
            ApprovalRecord(
                approval_id=each,
                run_id=run,
                workflow="many",
                step=f"step_{number}",
                subject="s",
                question={},
                demand={"approvers": ["vault:alice"], "count": 1, "valid_for": 60},
                asked_by={"name": "a"},
                asked_at=now,
                expires_at=now + timedelta(hours=1),
            )
        )
    return ids


def walked(address: str) -> Iterator[str]:
    """The table of each page of a list, from the newest to the oldest."""
    while address:
        answer = httpx.get(address, trust_env=False, timeout=60)
        assert answer.status_code == 200
        yield answer.text
        older = re.search(r'<a href="([^"]*)" rel="next">', answer.text)
        address = urljoin(address, older[1]) if older else ""


@pytest.mark.parametrize("kind", [runs, leases, tasks, approvals])
@pytest.mark.parametrize("count", [ROWS, 2 * ROWS + 1])
def test_a_list_leads_from_page_to_page_to_every_row(
    setup: Setup, kind: Callable[[Ledger, int], Any], count: int
) -> None:
    """A page that is full has one after it only where there is a row for it."""
    ids = asyncio.run(with_ledger(setup, lambda ledger: kind(ledger, count)))
    with pages_on(setup.ledger_url) as base:
        seen = [
            re.findall(rf'href="/ui/{kind.__name__}/([^"/?]+)"', page) for page in walked(f"{base}/ui/{kind.__name__}")
        ]
        newest = httpx.get(f"{base}/ui/{kind.__name__}?before={ids[-1]}", trust_env=False).text
    seen = [list(dict.fromkeys(each)) for each in seen]
    assert [len(each) for each in seen] == [min(ROWS, count - first) for first in range(0, count, ROWS)]
    assert sorted(row for page in seen for row in page) == sorted(ids)
    assert f'href="/ui/{kind.__name__}">Newest</a>' in newest


def downloaded(base: str, **query: str) -> list[dict[str, str]]:
    """The rows of the table of leases, which said that it is whole."""
    answer = httpx.get(f"{base}/ui/leases.csv", params=query, trust_env=False, timeout=60)
    *rows, end = csv.reader(io.StringIO(answer.text))
    assert end[:2] == ["#end", f"leases={len(rows) - 1}"]
    return [dict(zip(rows[0], row, strict=True)) for row in rows[1:]]


@pytest.mark.parametrize("count", [ROWS_AT_ONCE, ROWS_AT_ONCE + 1])
def test_a_download_is_of_every_lease_however_many_are_read_at_once(setup: Setup, count: int) -> None:
    ids = asyncio.run(with_ledger(setup, lambda ledger: leases(ledger, count)))
    with pages_on(setup.ledger_url) as base:
        for query in ({}, {"workflow": "many"}, {"state": "open"}, {"step": "one", "until": "2100-01-01"}):
            assert sorted(row["lease"] for row in downloaded(base, **query)) == sorted(ids), query


async def of_each_kind(ledger: Ledger) -> list[str]:
    """A lease that was never issued, one that is held, and one that was."""
    run, fence = await begun(ledger)
    ids = [new_lease_id() for _ in range(3)]
    await ledger.append(run, fence, [*map(requested, ids), *map(issued, ids[1:])])
    await asyncio.sleep(0.3)
    await ledger.append(run, fence, over(ids[2]))
    await asyncio.sleep(0.3)
    return ids


def test_a_download_says_for_how_long_each_lease_was_held(setup: Setup) -> None:
    ids = asyncio.run(with_ledger(setup, of_each_kind))
    with pages_on(setup.ledger_url) as base:
        rows = {row["lease"]: row for row in downloaded(base)}
    never, still, was = (rows[each] for each in ids)
    assert (never["issued"], never["held_seconds"], never["closed"]) == ("", "", "")
    assert float(still["held_seconds"]) >= 0.6
    assert still["closed"] == ""
    issued_at, closed_at = (datetime.fromisoformat(was[each]) for each in ("issued", "closed"))
    assert 0.3 <= float(was["held_seconds"]) == pytest.approx((closed_at - issued_at).total_seconds(), abs=0.002)


def test_a_view_is_still_that_view_on_its_second_page(setup: Setup) -> None:
    ids = asyncio.run(with_ledger(setup, lambda ledger: leases(ledger, 2)))
    with pages_on(setup.ledger_url) as base:
        page = httpx.get(f"{base}/ui/leases?state=open&before={ids[1]}", trust_env=False).text
        other = httpx.get(f"{base}/ui/leases?state=open&agent=a&before={ids[1]}", trust_env=False).text
    assert re.findall(r'aria-current="true">([^<]*)</a></li>', page) == ["Not confirmed gone"]
    assert re.findall(r'aria-current="true">([^<]*)</a></li>', other) == []


async def being_taken_back(ledger: Ledger, tries: dict[str, int]) -> dict[str, str]:
    """A lease for each name that was tried in vain so often; the first of them is the oldest."""
    run, fence = await begun(ledger)
    ids = {name: new_lease_id() for name in tries}
    for name, failed in tries.items():
        lease = ids[name]
        events: list[Event] = [requested(lease, name), issued(lease), LeaseRevoking(lease_id=lease, reason="over")]
        events += [LeaseRevocationFailed(lease_id=lease, error="Vault is sealed")] * failed
        await ledger.append(run, fence, events)
    await ledger.append(run, fence, [RunFinished(state=RunState.FAILED, exit_code=1, reason="sealed")])
    return ids


def parts(page: str) -> dict[str, list[str]]:
    """The leases under each heading of the overview."""
    sections = re.findall(r"<h2 id=[^>]*>([^<]*)</h2>(.*?)</section>", page, re.DOTALL)
    return {name: re.findall(r'href="/ui/leases/([^"]+)"', part) for name, part in sections}


def test_what_does_not_go_is_first_however_much_came_after_it(setup: Setup) -> None:
    tries = {"oldest": TRIES + 1, "young": 0, "tried": TRIES - 1, "stuck": TRIES}
    tries |= {f"later_{number}": 0 for number in range(3 * ROWS)}
    ids = asyncio.run(with_ledger(setup, lambda ledger: being_taken_back(ledger, tries)))
    with pages_on(setup.ledger_url) as base:
        page = httpx.get(f"{base}/ui/", trust_env=False).text
    found = parts(page)
    assert found["Cannot be taken back"] == [ids["oldest"], ids["stuck"]]
    assert found["Being taken back"][:3] == [ids["tried"], ids["young"], ids["later_0"]]
    assert len(found["Being taken back"]) == ROWS - 2
    assert f'<a href="/ui/leases?state=revoking">{len(tries) - ROWS} leases more</a>' in page


def test_nothing_is_said_to_be_gone_that_is_not(setup: Setup) -> None:
    gone = "every lease that ended is confirmed gone"
    with pages_on(setup.ledger_url) as base:

        def overview() -> str:
            return httpx.get(f"{base}/ui/", trust_env=False).text

        assert gone in overview()
        asyncio.run(with_ledger(setup, lambda ledger: being_taken_back(ledger, {"stuck": TRIES})))
        page = overview()
        assert gone not in page
        assert "Nothing else." in page
        names = {f"stuck_{number}": TRIES for number in range(ROWS)}
        asyncio.run(with_ledger(setup, lambda ledger: being_taken_back(ledger, names)))
        page = overview()
        assert gone not in page
        assert "Nothing else." not in page
        assert ">1 lease more</a>" in page


@pytest.mark.parametrize("count", [SHOWN, SHOWN + 1])
def test_the_overview_says_that_more_is_asked_for_than_it_shows(setup: Setup, count: int) -> None:
    asyncio.run(with_ledger(setup, lambda ledger: approvals(ledger, count)))
    with pages_on(setup.ledger_url) as base:
        page = httpx.get(f"{base}/ui/", trust_env=False).text
    assert len(set(re.findall(r'href="/ui/approvals/([^"]+)"', page))) == SHOWN
    assert ('href="/ui/approvals?state=open">All requests' in page) is (count > SHOWN)


@pytest.mark.parametrize("count", [SHOWN - 1, SHOWN + 5])
def test_a_search_that_finds_more_than_it_shows_says_so(setup: Setup, count: int) -> None:
    ids = asyncio.run(with_ledger(setup, lambda ledger: runs(ledger, count)))
    with pages_on(setup.ledger_url) as base:
        page = httpx.get(f"{base}/ui/search?q={ids[0][:8]}", trust_env=False).text
    found = re.findall(r'<li><span class="kind">run</span> <a class="id" href="/ui/runs/([^"]+)"', page)
    assert found == sorted(ids)[:SHOWN]
    assert (f"not more than {SHOWN} are shown" in page) is (count > SHOWN)


def test_a_workflow_is_found_whatever_its_name(setup: Setup) -> None:
    name = "a&agent=b#c d"
    run, _ = asyncio.run(with_ledger(setup, lambda ledger: begun(ledger, name)))
    with pages_on(setup.ledger_url) as base:
        answer = httpx.get(f"{base}/ui/search", params={"q": name}, trust_env=False, follow_redirects=True)
    assert answer.url.params["workflow"] == name
    assert f"/ui/runs/{run}" in answer.text


async def called(ledger: Ledger, count: int) -> str:
    (task,) = await tasks(ledger, 1)
    for number in range(count):
        call = call_id(task, str(number))
        event = TaskCalled(call=call, tool="read", arguments_digest=DIGEST)
        started = RunStarted(
            workflow="desk", digest=DIGEST, agent="a", trigger="call", inputs={}, steps=("read",), task=task, call={}
        )
        await ledger.begin_call(event, task, started, CallLimits(), "runner")
        await ledger.append(call, 1, [RunFinished(state=RunState.SUCCEEDED, exit_code=0)])
    return task


@pytest.mark.parametrize("count", [MOST_CALLS - 1, MOST_CALLS + 2])
def test_a_task_of_many_calls_says_what_it_leaves_out(setup: Setup, count: int) -> None:
    task = asyncio.run(with_ledger(setup, lambda ledger: called(ledger, count)))
    with pages_on(setup.ledger_url) as base:
        page = httpx.get(f"{base}/ui/tasks/{task}", trust_env=False).text
    assert len(re.findall(r'<a class="id" href="/ui/runs/', page)) == min(count, MOST_CALLS)
    assert ("2 calls came before." in page) is (count > MOST_CALLS)
    assert ("3 events came before." in page) is (count > MOST_CALLS)
    assert page.count("came before") == (2 if count > MOST_CALLS else 0)


async def processes(ledger: Ledger) -> list[str]:
    """One that lives and drives twelve runs, one that is silent, one that is gone, and one that says nothing."""
    now = CLOCK.now()
    said = json.dumps({"role": "worker", "host": "build-7", "pid": 4711, "max_runs": 20})
    for name, at in (("lives", now), ("silent", now - SILENT - timedelta(seconds=1)), ("gone", now)):
        ledger.runners.register(name, said, at)
    ledger.runners.register("wordless", "[]", now)
    ledger.runners.retire("gone", clean=False)
    ids = [new_run_id() for _ in range(12)]
    for run in ids:
        assert ledger.runners.own(run, "lives", digest=DIGEST, text=None)
        started = RunStarted(workflow="many", digest=DIGEST, agent="a", trigger="manual", inputs={}, steps=("one",))
        await ledger.begin_run(run, started)
    return ids


def test_processes_are_shown_with_whether_they_live_and_what_they_drive(setup: Setup) -> None:
    ids = asyncio.run(with_ledger(setup, processes))
    with pages_on(setup.ledger_url) as base:
        page = httpx.get(f"{base}/ui/workers", trust_env=False).text
    rows = {}
    for row in re.findall(r"<tr>(<td>.*?)</tr>", page, re.DOTALL):
        state, name, role, host, pid, _, runs_of = re.findall(r"<td[^>]*>(.*?)</td>", row, re.DOTALL)
        rows[name] = re.sub("<[^>]*>", "", state).split()[-1], role, host, pid, runs_of
    whole = ("worker", "build-7", "4711")
    assert {name: row[0] for name, row in rows.items()} == {
        "lives": "alive",
        "silent": "silent",
        "gone": "gone",
        "wordless": "alive",
    }
    assert all(rows[name][1:4] == whole for name in ("lives", "silent", "gone"))
    assert rows["wordless"][1:4] == ("", "", "")
    assert re.findall(r'href="/ui/runs/([^"]+)"', rows["lives"][4]) == sorted(ids)[:10]
    assert "and 2 more" in rows["lives"][4]


def test_a_run_is_followed_until_it_is_over_also_while_it_waits(bench: Bench) -> None:
    policy = RegoEngine.from_sources([PolicySource("test.rego", POLICY)])
    ledger_url = bench.config().ledger_url
    going, _ = asyncio.run(with_ledger(Setup(ledger_url), begun))
    waits = bench.run(ASKED, policy=policy, parks=True)
    refused = bench.run(REFUSED, policy=policy)
    assert (waits.state, refused.state) == (RunState.WAITING, RunState.REFUSED)
    with sources_on(ledger_url) as sources, pages_on(ledger_url) as base:
        for run, goes_on in ((going, True), (waits.run_id, True), (refused.run_id, False)):
            part = changing_part(sources, run)
            assert part is not None
            assert part.over is not goes_on
            page = httpx.get(f"{base}/ui/runs/{run}", trust_env=False).text
            assert (f'hx-sse:connect="/ui/live/runs/{run}"' in page) is goes_on


async def held(ledger: Ledger, workflow: str) -> None:
    run, fence = await begun(ledger, workflow)
    lease = new_lease_id()
    await ledger.append(run, fence, [requested(lease), issued(lease)])
    await asyncio.sleep(0.2 if workflow == "short" else 1.0)
    await ledger.append(run, fence, over(lease))


def test_exposure_draws_each_share_of_the_most(setup: Setup) -> None:
    for workflow in ("short", "long"):
        asyncio.run(with_ledger(setup, lambda ledger, name=workflow: held(ledger, name)))
    with pages_on(setup.ledger_url) as base:
        page = httpx.get(f"{base}/ui/exposure?days=2", trust_env=False).text
    with open_ledger(setup.ledger_url, clock=CLOCK) as ledger:
        held_for = {each.workflow: held_seconds(each, CLOCK.now()) for each in ledger.leases(LeaseFilter())}
    widths = [float(each) for each in re.findall(r'<rect class="lease" width="([\d.]+)%" height="10"/>', page)]
    names = re.findall(r'<tr><td><a href="[^"]*">([^<]*)</a>', page)
    assert names == sorted(held_for, key=lambda name: -held_for[name])
    assert widths == pytest.approx([100 * held_for[name] / held_for[names[0]] for name in names], abs=0.1)


@pytest.mark.parametrize("query", ["since=2026-03-09&until=2026-03-02", "since=2020-01-01&until=2026-01-01"])
def test_a_range_of_no_day_or_of_years_is_refused(setup: Setup, query: str) -> None:
    with pages_on(setup.ledger_url) as base:
        answer = httpx.get(f"{base}/ui/exposure?{query}", trust_env=False)
    assert answer.status_code == 400
    assert "the range must have a day at least" in answer.text
