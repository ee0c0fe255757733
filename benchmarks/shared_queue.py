"""What the shared queue carries, and what bounds it: no-op runs, workers as real processes, one embedded PostgreSQL.

    python benchmarks/shared_queue.py [--runs 625] [--workers 1 2 4] [--waiting 100000] [--without procrastinate]

PostgreSQL is durable, and on the same processors. A no-op run has one step without credentials, whose action does
nothing; Vault is never asked. Workers are what `orchestrator worker` is, without its listener. Three parts:

1. Throughput. So many runs are put in by one transaction while idle workers wait for them (with fewer workers a share
of them, so that each worker has as many), from its commit until the last run has ended. Beside it, in databases of
their own: `bare DBOS`, an asynchronous no-op workflow on a partitioned queue with the same room in a worker, the same
time between two looks and the same serializer; `procrastinate`, installed for it into a temporary environment, with a
no-op task and the same concurrency. Processor time is that of all workers and of all of PostgreSQL's processes;
transactions are those of the database that committed (`pg_stat_database`), until the workers have ended. `bounded by`
follows from these figures: `looks` where a worker takes what it has room for, and looks again only after that time;
`processors` where they are busy; `one thread` where each worker's Python is; else `waiting`, such as for commits.

2. Fairness. Eight times as many runs of three workflows at the most workers, put in one by one and in turn while the
queue is paused, each workflow with the same `max_runs`. One of them needs a lease of a connection of which
`connection_leases` allows one, which another process has open in the ledger: its runs wait, and Vault is not asked.
The two others need no credentials, as there is no Vault to give them. Until all runs of these two have ended; begin
and end of a run are those of the ledger. Asserted: each of their runs was carried out once, each of the saturated
one waits, in the queue or in a worker, and no workflow had more runs at once than it may.

3. Latency. One worker; single runs, each added at a random moment when the one before has ended. `claim` is from before
`SharedQueue.add` to the time of `run.started` in the ledger, `add` is the call alone. First with nothing else in the
queue, then with so many waiting runs of another workflow that is paused, in the same queue of DBOS.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import psycopg
from shared_queue_engines import BARE_DBOS, OURS, Databases, Engine
from shared_queue_processes import started
from shared_queue_runs import beside_saturated, one_by_one

from orchestrator.devstack.postgres import Postgres
from orchestrator.queue.shared import POLL_SECONDS

SETTLE_SECONDS = 1.5
"""Until DBOS, which looks for queues once a second, has found its queue, and the server has counted the beginning."""

LOOK_SECONDS = 0.1
PATIENCE = 120.0
"""How many seconds the runs of one measurement may take."""

NEARLY = 0.7
"""A bound is what a figure is so near to."""

FAIR = 8
"""Times as many runs as in the first part."""

COMMITS = "SELECT xact_commit FROM pg_stat_database WHERE datname = current_database()"


@dataclass(frozen=True, slots=True, kw_only=True)
class Carried:
    """How an engine carried its runs. Processor times in seconds, over all of its processes."""

    engine: Engine
    workers: int
    max_runs: int
    runs: int
    seconds: float
    worker_time: float
    postgres_time: float
    transactions: int

    @property
    def rate(self) -> float:
        return self.runs / self.seconds

    @property
    def bounded_by(self) -> str:
        looks = self.workers * self.max_runs / POLL_SECONDS
        if self.engine.looks and self.rate > NEARLY * looks:
            return f"looks: {looks:.0f}/s at most"
        if self.worker_time + self.postgres_time > NEARLY * self.seconds * (os.cpu_count() or 1):
            return "processors"
        return "one thread" if self.worker_time > NEARLY * self.seconds * self.workers else "waiting"

    def line(self) -> str:
        busy = (self.worker_time + self.postgres_time) / self.seconds
        ours, server = (each / self.runs * 1000 for each in (self.worker_time, self.postgres_time))
        return (
            f"| {self.engine.name} | {self.max_runs} | {self.workers} | {self.rate:.1f} | {ours:.1f} | {server:.1f} "
            f"| {self.transactions / self.runs:.1f} | {busy:.1f} of {os.cpu_count()} | {self.bounded_by} |"
        )


def carried(databases: Databases, engine: Engine, *, runs: int, workers: int, max_runs: int) -> Carried:
    """Have an engine carry so many runs that are there at once."""
    url = databases.for_engine(engine, max_runs)
    given = [{"url": url, "max_runs": max_runs, "name": f"bench-{number}"} for number in range(workers)]
    with psycopg.connect(url, autocommit=True) as session:
        with started([engine.command] * workers, given) as processes:
            time.sleep(SETTLE_SECONDS)
            commits = _one(session, COMMITS)
            before = [sum(map(_own_time, processes)), _time_of_all(databases.server)]
            with psycopg.connect(url) as filling:
                engine.kept.put(filling, engine.ids(runs))
                begin = time.time()
            last = _until_over(session, engine, runs)
            after = [sum(map(_own_time, processes)), _time_of_all(databases.server)]
        transactions = _one(session, COMMITS) - commits
    return Carried(
        engine=engine,
        workers=workers,
        max_runs=max_runs,
        runs=runs,
        seconds=last - begin,
        worker_time=after[0] - before[0],
        postgres_time=after[1] - before[1],
        transactions=transactions,
    )


def _until_over(session: psycopg.Connection[Any], engine: Engine, runs: int) -> float:
    """When the last run ended, since the epoch."""
    until = time.monotonic() + PATIENCE
    while True:
        [over, last] = session.execute(engine.over).fetchone() or [0, None]
        if over == runs:
            return float(last)
        assert over < runs, f"{over} runs ended of {runs}"
        assert time.monotonic() < until, f"{over} of {runs} runs ended at {engine.name}"
        time.sleep(LOOK_SECONDS)


def _one(session: psycopg.Connection[Any], query: str) -> int:
    row = session.execute(query).fetchone()
    assert row is not None
    return int(row[0])


def _own_time(process: psutil.Process) -> float:
    times = process.cpu_times()
    return times.user + times.system


def _time_of_all(server: Postgres) -> float:
    """Of the server with all its processes, those that have ended included."""
    postmaster = psutil.Process(server.pid)
    ended = postmaster.cpu_times()
    total = _own_time(postmaster) + ended.children_user + ended.children_system
    for process in postmaster.children(recursive=True):
        try:
            total += _own_time(process)
        except psutil.NoSuchProcess:  # it has ended, and is counted with its parent the next time
            continue
    return total


def throughput(databases: Databases, given: argparse.Namespace) -> list[Carried]:
    engines = [OURS, BARE_DBOS]
    if "procrastinate" not in given.without:
        try:
            engines.append(databases.procrastinate())
        except subprocess.CalledProcessError as error:
            print(f"procrastinate is not measured, since it cannot be installed: {_last_line(error.stderr)}")
    return [
        carried(
            databases, engine, runs=max(1, given.runs * workers // max(given.workers)), workers=workers, max_runs=most
        )
        for most in given.max_runs
        for workers in given.workers
        for engine in engines
    ]


def _last_line(text: bytes) -> str:
    return "".join(text.decode(errors="replace").strip().splitlines()[-1:])[:200]


def print_throughput(figures: Sequence[Carried]) -> None:
    print("\n## 1. Throughput\n")
    head = ("engine", "room", "workers", "runs/s", "ms workers/run", "ms PostgreSQL/run", "transactions/run", "busy")
    print(f"| {' | '.join(head)} | bounded by |\n" + "| --- " * 9 + "|")
    for figure in figures:
        print(figure.line())
    fastest = max(figure.rate for figure in figures)
    print()
    for figure in sorted(figures, key=lambda each: (each.max_runs, each.engine.name, each.workers)):
        bar = "#" * max(1, round(figure.rate / fastest * 50))
        print(f"  room {figure.max_runs:3}  {figure.engine.name:13} x {figure.workers}  {bar} {figure.rate:.0f}")


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--runs", type=int, default=625, help="of the first part, at the most workers")
    options.add_argument("--workers", type=int, nargs="+", default=[1, 2, 4])
    options.add_argument(
        "--max-runs",
        type=int,
        nargs="+",
        default=[8, 64],
        help="the room of a worker: all of them in the first part, the first one in the others",
    )
    options.add_argument("--adds", type=int, default=100, help="single runs of each kind in the third part")
    options.add_argument("--waiting", type=int, default=100_000)
    options.add_argument("--without", action="append", default=[], choices=["procrastinate"])
    given = options.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        folder.chmod(0o755)  # PostgreSQL runs as another user where this process is root
        with Postgres(folder / "postgres") as server:
            databases = Databases(server, folder)
            print_throughput(throughput(databases, given))
            most, room = max(given.workers), given.max_runs[0]
            print(
                f"\n## 2. Fairness: {most} workers, {FAIR * given.runs} runs, of three workflows in turn\n", flush=True
            )
            beside_saturated(databases, runs=FAIR * given.runs, count=most, max_runs=room).print()
            print(f"\n## 3. Latency: one worker, {given.adds} single runs, in ms\n", flush=True)
            print("| in the queue | claim p50 | claim p99 | add p50 | add p99 |\n" + "| --- " * 5 + "|")
            for latency in one_by_one(databases, adds=given.adds, waiting=given.waiting, max_runs=room):
                print(latency.line())


if __name__ == "__main__":
    main()
