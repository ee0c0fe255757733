"""How long the pages of a large ledger take to be made, on SQLite and on an embedded PostgreSQL.

    python benchmarks/pages.py [--leases 1000000] [--times 200] [--days 730] [--directory DIR] [--only sqlite]

The ledger is filled in bulk as in `ledger.py`, over so many days. Then every list is asked for, with filters that are
common, rare, of the past or unknown and on later pages, and every page of one thing. Counted is the whole time from the
question to the text of the page, in this process; p50 and p99 are over the questions. Exposure is
measured on its first look, when all days are added up, and after that. Before the pages of one thing are asked for, all
runs are entered in the log and it is signed, by a key of this process. At last the download of all leases, in rows a
second.

What is wanted is what a page takes on a machine that nobody else uses; this one may be lent to others, for milliseconds
or for minutes, and then everything takes twice as long. So a question is asked three times in a row, each time after a
loop of fixed work, and counts with the least share of such a loop, in the time of the shortest loop of all. Told beside
it is the p99 of all first times as they were, and at last the loop's own p50 and p99. The limit is 50 ms for the p99
over the questions, but for the first look at the exposure, and the exit code is 1 where it does not hold.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import ledger_rows
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from ledger import databases
from ledger_rows import Filled, fill

from orchestrator.clock import SystemClock
from orchestrator.evidence.log.checkpoint import Checkpoint
from orchestrator.evidence.log.note import NoteKey, signed_note
from orchestrator.jsontypes import JsonObject
from orchestrator.ledger.coordination.schedules import open_schedules
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
)
from orchestrator.ledger.ids import new_lease_id, new_run_id
from orchestrator.ledger.log.reader import StoredCheckpoint
from orchestrator.ledger.log.store import LogStore
from orchestrator.ledger.opening import open_ledger
from orchestrator.ledger.states import RunState, StepState
from orchestrator.ledger.types import LeaseFilter, RunFilter
from orchestrator.ledger.writing.store import Ledger
from orchestrator.server.pages.answers import Asked, Download, Elsewhere, Page
from orchestrator.server.pages.application import PAGES
from orchestrator.server.pages.rendering import prepare, rendered
from orchestrator.server.pages.sources import Sources

CEILING = 0.050
TIMES_EACH = 3
STEPS = (40, 400)
"""Of the runs whose pages are measured: rows in bulk have no events."""

Query = Mapping[str, str]


@contextmanager
def opened(url: str, now: object) -> Iterator[tuple[Ledger, Sources]]:
    clock = SimpleNamespace(now=lambda: now, monotonic=time.monotonic)
    with open_ledger(url, clock=SystemClock()) as ledger, open_schedules(url) as schedules:
        yield (
            ledger,
            Sources(
                reader=ledger,
                log=ledger.log,
                approvals=ledger.approvals,
                runners=ledger.runners,
                schedules=schedules,
                clock=clock,  # the time is that of the newest row
            ),
        )


async def one_run(ledger: Ledger, steps: int) -> str:
    """A run with events: each step decided, begun, and with a lease."""
    run, clock = new_run_id(), SystemClock()
    names = tuple(f"step_{number}" for number in range(steps))
    started = RunStarted(workflow="flow_0", digest="0" * 64, agent="agent-0", trigger="manual", inputs={}, steps=names)
    fence = await ledger.begin_run(run, started)
    scope: JsonObject = {"kind": "secret", "path": "kv/data/x", "fields": ["a"], "ttl": 60}
    for name in names:
        lease = new_lease_id()
        events: list[Event] = [
            AttemptStarted(step=name, attempt=1, step_key=f"{name}-k", action="exec", timeout=60),
            Decided(
                step=name, attempt=1, engine="rego", revision="1", input_digest="0", allow=True, reasons=("it may",)
            ),
            LeaseRequested(
                lease_id=lease,
                step=name,
                attempt=1,
                grant="db",
                grant_kind="secret",
                resource="kv/data/x",
                scope=scope,
                ttl=60,
            ),
            LeaseIssued(lease_id=lease, ttl=60, expires_at=clock.now() + timedelta(seconds=60)),
            AttemptFinished(step=name, attempt=1, state=StepState.SUCCEEDED),
            StepFinished(step=name, state=StepState.SUCCEEDED, outputs={"rows": [name] * 20}),
            LeaseRevoking(lease_id=lease, reason="step ended"),
            LeaseRevoked(lease_id=lease, confirmed_by="vault"),
        ]
        await ledger.append(run, fence, events)
    await ledger.append(run, fence, [RunFinished(state=RunState.SUCCEEDED, exit_code=0)])
    return run


def lists(filled: Filled, ledger: Ledger, chance: random.Random) -> Iterator[tuple[str, str, Callable[[], Query]]]:
    """What is asked of lists: a name, a path, and something that draws a query."""
    flows = [*(each.name for each in filled.workflows), "unknown"]
    agents = [*sorted({each.agent for each in filled.workflows}), "unknown"]
    runs = [each.run_id for each in ledger.newest_runs(RunFilter(limit=2000))][::50]
    leases = [each.lease_id for each in ledger.leases(LeaseFilter(limit=2000))][::50]
    old = (filled.newest - timedelta(days=100)).date().isoformat()
    states = ("succeeded", "failed", "running", "waiting", "cancelled")
    triggers = ("schedule", "manual", "unknown")
    lease_states = ("revoked", "ended", "denied", "revoking", "open")
    yield "overview", "/", dict
    yield "runs", "/runs", dict
    yield "runs: workflow", "/runs", lambda: {"workflow": chance.choice(flows)}
    yield "runs: state", "/runs", lambda: {"state": chance.choice(states)}
    yield "runs: agent, state", "/runs", lambda: {"agent": chance.choice(agents), "state": chance.choice(states)}
    yield "runs: agent", "/runs", lambda: {"agent": chance.choice(agents)}
    yield "runs: agent, workflow", "/runs", lambda: {"agent": chance.choice(agents), "workflow": chance.choice(flows)}
    yield "runs: agent, trigger", "/runs", lambda: {"agent": chance.choice(agents), "trigger": chance.choice(triggers)}
    yield (
        "runs: workflow, trigger",
        "/runs",
        lambda: {"workflow": chance.choice(flows), "trigger": chance.choice(triggers)},
    )
    yield "runs: trigger, state", "/runs", lambda: {"trigger": chance.choice(triggers), "state": chance.choice(states)}
    yield "runs: everything, state", "/runs", lambda: {"all": "1", "state": chance.choice(states)}
    yield "runs: until", "/runs", lambda: {"until": old, "workflow": chance.choice(flows)}
    yield "runs: later page", "/runs", lambda: {"before": chance.choice(runs)}
    yield "leases", "/leases", dict
    yield "leases: workflow", "/leases", lambda: {"workflow": chance.choice(flows)}
    yield "leases: state", "/leases", lambda: {"state": chance.choice(lease_states)}
    yield "leases: agent, kind", "/leases", lambda: {"agent": chance.choice(agents), "kind": "database"}
    yield "leases: resource", "/leases", lambda: {"resource": "database/creds/support-3"}
    yield "leases: workflow, until", "/leases", lambda: {"workflow": chance.choice(flows), "until": old}
    yield "leases: later page", "/leases", lambda: {"before": chance.choice(leases)}
    yield (
        "leases: filters, later page",
        "/leases",
        lambda: {"before": chance.choice(leases), "workflow": chance.choice(flows), "agent": chance.choice(agents)},
    )
    yield "search: id", "/search", lambda: {"q": chance.choice(filled.some_runs)}
    yield "search: beginning", "/search", lambda: {"q": chance.choice(filled.some_runs)[:9]}
    yield "search: step key", "/search", lambda: {"q": chance.choice(filled.some_step_keys)}
    yield "search: unknown", "/search", lambda: {"q": "nothing-like-it"}
    for path in ("/tasks", "/approvals", "/schedules", "/workers"):
        yield path[1:], path, dict


def details(ledger: Ledger) -> Iterator[tuple[str, str, Query]]:
    """The pages of one thing: a name, a path, and the names in it."""
    runs = {steps: asyncio.run(one_run(ledger, steps)) for steps in STEPS}
    sign(ledger.log)
    for steps, run in runs.items():
        lease = ledger.leases(LeaseFilter(run=run, limit=1))[0].lease_id
        decision = {"run": run, "step": "step_3", "attempt": "1"}
        yield f"run of {steps} steps", "/runs/{run}", {"run": run}
        yield f"lease of {steps}", "/leases/{lease}", {"lease": lease}
        yield f"receipt of {steps}", "/leases/{lease}/receipt", {"lease": lease}
        yield f"decision of {steps}", "/decisions/{run}/{step:path}/{attempt}", decision


def sign(log: LogStore) -> None:
    """Enter what has ended, and keep a checkpoint of all of it."""
    begin = time.perf_counter()
    while log.enter():
        pass
    took, size, private = time.perf_counter() - begin, log.size(), Ed25519PrivateKey.generate()
    print(f"  log: {size / took:,.0f} runs a second are entered")
    key = NoteKey(log.origin(), private.public_key().public_bytes_raw())
    text = Checkpoint(key.name, size, log.root(size)).text()
    log.keep(StoredCheckpoint(size, signed_note(text, key, private.sign(text.encode())), SystemClock().now()))


def made(sources: Sources, path: str, query: Query, names: Query) -> float:
    """Seconds until the text is there."""
    begin = time.perf_counter()
    asked = Asked(f"/ui{path}", names, query, sources.clock.now())
    try:
        answer = dict(PAGES)[path](sources, asked)
        assert isinstance(answer, Page)
        rendered(answer)
    except Elsewhere:
        pass
    return time.perf_counter() - begin


def measure(name: str, url: str, leases: int, times: int) -> bool:
    open_ledger(url, clock=SystemClock()).close()
    filled = fill(url, leases)
    print(f"{name}: {filled.leases:,} leases of {filled.runs:,} runs")
    held = True
    chance = random.Random(3)
    prepare()
    for _ in range(200):
        loop()
    with opened(url, filled.newest + timedelta(hours=2)) as (ledger, sources):

        def asked(path: str, names: Query) -> Callable[[Query], float]:
            return lambda query: made(sources, path, query, names)

        for what, path, draw in list(lists(filled, ledger, chance)):
            held &= told(what, draw, asked(path, {}), times)
        for what, path, names in details(ledger):
            held &= told(what, dict, asked(path, names), times)
        exposed = asked("/exposure", {})
        for days in ("30", "365"):
            print(f"  exposure of {days} days, first look: {exposed({'days': days}):.3f} s")
            held &= told(f"exposure of {days} days", partial(dict, days=days), exposed, 50)
        begin = time.perf_counter()
        answer = dict(PAGES)["/leases.csv"](sources, Asked("/ui/leases.csv", {}, {}, sources.clock.now()))
        assert isinstance(answer, Download)
        size = sum(len(part) for part in answer.parts)
        took = time.perf_counter() - begin
        of_loop = cuts(LOOPS)
        print(
            f"  loop of fixed work: least {min(LOOPS) * 1000:.2f} ms, "
            f"p50 {of_loop[49] * 1000:.2f} ms, p99 {of_loop[98] * 1000:.2f} ms"
        )
        print(f"  CSV: {filled.leases / took:,.0f} leases a second, {size / 1e6:,.0f} MB")
    return held


def told(what: str, draw: Callable[[], Query], ask: Callable[[Query], float], times: int) -> bool:
    """Whether the limit holds for so many questions."""
    shares, first = [], []
    for query in (draw() for _ in range(times)):
        asked = [(loop(), ask(query)) for _ in range(TIMES_EACH)]
        shares.append(min(seconds / looped for looped, seconds in asked))
        first.append(asked[0][1])
    of_page = cuts([share * min(LOOPS) for share in shares])
    p50, p99, p99_first = (seconds * 1000 for seconds in (of_page[49], of_page[98], cuts(first)[98]))
    held = of_page[98] <= CEILING
    print(f"  {what:30} p50 {p50:6.2f} ms, p99 {p99:6.2f} ms ({p99_first:6.2f}){'' if held else '   TOO SLOW'}")
    return held


LOOPS: list[float] = []
"""How long the loop took each time."""


def loop() -> float:
    """Seconds for always the same work."""
    begin, text = time.perf_counter(), ""
    for number in range(20_000):
        text = f"{text[-50:]}{number}"
    LOOPS.append(time.perf_counter() - begin)
    return LOOPS[-1]


def cuts(seconds: list[float]) -> list[float]:
    return statistics.quantiles(seconds, n=100, method="inclusive")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--leases", type=int, default=1_000_000)
    parser.add_argument("--times", type=int, default=200, help="questions of each kind")
    parser.add_argument("--days", type=int, default=730, help="over which the leases are spread")
    parser.add_argument("--directory", type=Path, help="where the files go (default: a temporary folder)")
    parser.add_argument("--only", choices=("sqlite", "postgresql"))
    options = parser.parse_args()
    ledger_rows.YEARS = timedelta(days=options.days)
    held = True
    with tempfile.TemporaryDirectory(dir=options.directory) as folder:
        directory = Path(folder)
        directory.chmod(0o755)
        if options.only != "postgresql":
            held &= measure("SQLite", str(directory / "large.db"), options.leases, options.times)
        if options.only != "sqlite":
            with databases(directory) as create:
                held &= measure("PostgreSQL", create("large"), options.leases, options.times)
    return 0 if held else 1


if __name__ == "__main__":
    sys.exit(main())
