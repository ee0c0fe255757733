"""How runs of the shared queue get on, for `shared_queue.py`: beside a saturated connection, and one by one."""

from __future__ import annotations

import random
import statistics
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import psycopg
from shared_queue_engines import NOTHING, OURS, Databases, opened, put, workflow
from shared_queue_processes import BUSY, command_of, started, workers

from orchestrator.clock import SystemClock
from orchestrator.queue.shared import POLL_SECONDS, SharedQueue
from orchestrator.queue.tables import QueueState
from orchestrator.server.working import PAUSE_SECONDS

MOST = 12
"""`max_runs` of each of the three workflows."""

IDLE = ("idle_one", "idle_two")
SATURATED = "saturated"
TENTHS = 10
LOOK_SECONDS = 0.25

GRANT = f"grants: {{ db: {{ kind: database, connection: {BUSY}, role: any }} }}"

RUNS = """
SELECT run_id, extract(epoch FROM started_at::timestamptz)::float8, extract(epoch FROM finished_at::timestamptz)::float8
FROM run WHERE workflow = %s ORDER BY started_at
"""

TWICE = """
SELECT count(*) FROM (
  SELECT run_id, kind FROM event WHERE kind IN ('run.started', 'attempt.started', 'run.finished')
  GROUP BY run_id, kind HAVING count(*) > 1
) AS doubled
"""

STARTED = """
SELECT extract(epoch FROM started_at::timestamptz)::float8 FROM run r WHERE run_id = %s AND state = 'succeeded'
AND NOT EXISTS (SELECT FROM queued_run q WHERE q.run_id = r.run_id)
"""

STILL = (QueueState.WAITING, QueueState.DELAYED, QueueState.RUNNING)


@dataclass(frozen=True, slots=True)
class Span:
    """When a run began and ended, in seconds since the epoch; `end` is infinite while it goes on."""

    run_id: str
    begin: float
    end: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Shared:
    """How the runs of three workflows got on beside each other."""

    seconds: float
    """Until all runs of the idle connections had ended."""
    ended: int
    at_once: Mapping[str, int]
    """The most runs of a workflow that went on at once."""
    displaced: Mapping[str, tuple[int, int]]
    """By how many places a run began before or after its turn: the median and the most."""
    tenths: Mapping[str, Sequence[int]]
    """How many runs ended in each tenth of the time."""
    waited: int
    """How many runs of the saturated connection were begun, and waited."""

    def print(self) -> None:
        print(f"all {self.ended} runs of the two idle connections ended after {self.seconds:.1f} s", end="")
        print(f" ({self.ended / self.seconds:.0f} runs/s); {self.waited} of the saturated one waited, and ended none")
        print(
            "\n| workflow | most at once | max_runs | began out of turn by (median) | by (most) |\n"
            + "| --- " * 5
            + "|"
        )
        for name, most in self.at_once.items():
            median, worst = self.displaced[name]
            print(f"| {name} | {most} | {MOST} | {median} | {worst} |")
        print("\nended in each tenth of the time, and the share of the first of the two:")
        first, second = (self.tenths[name] for name in IDLE)
        for one, other in zip(first, second, strict=True):
            share = one / (one + other) if one + other else 0.0
            print(f"  {'#' * round(share * 40):40} {one:5} {other:5}  {share:4.0%}")


def beside_saturated(databases: Databases, *, runs: int, count: int, max_runs: int) -> Shared:
    """Runs of three workflows, one after another in turn, all put in before the first of them may begin."""
    url = databases.for_engine(OURS, max_runs)
    top = f"max_runs: {MOST}"
    loaded = [*(workflow(name, top=top) for name in IDLE), workflow(SATURATED, top=top, grants=GRANT)]
    with (
        started([command_of("holder")], [{"url": url}]),
        opened(url) as (ledger, shared),
        psycopg.connect(url, autocommit=True) as session,
    ):
        ledger.queue.pause("", by="bench", reason="", at=SystemClock().now())
        entered: dict[str, list[str]] = {each.workflow.name: [] for each in loaded}
        for number in range(runs):
            this = loaded[number % len(loaded)]
            entered[this.workflow.name].append(put(shared, this))
        idle = [run for name in IDLE for run in entered[name]]
        with workers(count, url, max_runs=max_runs):
            begin = time.time()
            ledger.queue.resume("")
            _wait_for(session, len(idle))
            spans = {name: [_span(row) for row in session.execute(RUNS, [name])] for name in entered}
        _assert_all_there(session, shared, entered)
    end = max(span.end for name in IDLE for span in spans[name])
    return Shared(
        seconds=end - begin,
        ended=len(idle),
        at_once={name: _checked(most_at_once(each)) for name, each in spans.items()},
        displaced={name: displaced(entered[name], each) for name, each in spans.items()},
        tenths={name: tenths(spans[name], begin, end) for name in IDLE},
        waited=len(spans[SATURATED]),
    )


def most_at_once(spans: Sequence[Span]) -> int:
    """Those that ended at the very moment at which others began are not counted along."""
    changes = sorted([(each.begin, 1) for each in spans] + [(each.end, -1) for each in spans])
    return max(accumulate(change for _, change in changes), default=0)


def displaced(entered: Sequence[str], spans: Sequence[Span]) -> tuple[int, int]:
    """Between the places in which runs were entered and those in which they began: the median, and the most."""
    turn = {run_id: place for place, run_id in enumerate(entered)}
    by = [abs(turn[span.run_id] - place) for place, span in enumerate(sorted(spans, key=lambda each: each.begin))]
    return int(statistics.median(by)), max(by)


def tenths(spans: Sequence[Span], begin: float, end: float) -> list[int]:
    found = Counter(min(int((each.end - begin) / (end - begin) * TENTHS), TENTHS - 1) for each in spans)
    return [found[tenth] for tenth in range(TENTHS)]


def _span(row: Sequence[Any]) -> Span:
    return Span(row[0], row[1], float("inf") if row[2] is None else row[2])


def _checked(most: int) -> int:
    assert most <= MOST, f"{most} runs of a workflow went on at once, of {MOST} that may"
    return most


def _wait_for(session: psycopg.Connection[Any], count: int) -> None:
    until = time.monotonic() + 600
    while (over := session.execute(OURS.over).fetchone()) is None or over[0] < count:
        assert time.monotonic() < until, f"{over} of {count} ended"
        time.sleep(LOOK_SECONDS)


def _assert_all_there(
    session: psycopg.Connection[Any], shared: SharedQueue, entered: Mapping[str, Sequence[str]]
) -> None:
    """Each run of an idle connection was carried out once; each other one waits still, or was begun once and ended."""
    states = dict(session.execute("SELECT run_id, state FROM run").fetchall())
    for name in IDLE:
        assert Counter(states.get(run) for run in entered[name]) == {"succeeded": len(entered[name])}, name
    waiting = {each.run_id for each in shared.list(STILL, workflow=SATURATED, most=1_000_000)}
    for run in entered[SATURATED]:
        assert run in states or run in waiting, f"{run} is lost"
        assert states.get(run) in (None, "cancelled"), states[run]
    [doubled] = session.execute(TWICE).fetchone() or [None]
    assert doubled == 0, f"{doubled} were carried out twice"


@dataclass(frozen=True, slots=True)
class Latency:
    """Seconds from before `add` to the time of `run.started`, and of `add` itself, of single runs."""

    name: str
    claims: Sequence[float]
    adds: Sequence[float]

    def line(self) -> str:
        figures = (percentile(each, share) * 1000 for each in (self.claims, self.adds) for share in (50, 99))
        return f"| {self.name} | " + " | ".join(f"{each:.1f}" for each in figures) + " |"


def percentile(values: Sequence[float], share: int) -> float:
    """The smallest of them that is not exceeded by so many of a hundred."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, -(-len(ordered) * share // 100) - 1)]


def one_by_one(databases: Databases, *, adds: int, waiting: int, max_runs: int) -> list[Latency]:
    """Single runs at one worker, with nothing else in the queue, and with many that wait since they are paused."""
    url = databases.for_engine(OURS, max_runs)
    with (
        opened(url) as (ledger, shared),
        psycopg.connect(url, autocommit=True) as session,
        workers(1, url, max_runs=max_runs),
    ):
        put(shared, workflow("probe"))  # whatever is made once is made
        _wait_for(session, 1)
        alone = _latency("nothing else waits", shared, session, adds)
        ledger.queue.pause(NOTHING, by="bench", reason="", at=SystemClock().now())
        time.sleep(2 * PAUSE_SECONDS)  # until the worker knows it
        with psycopg.connect(url) as filling:
            OURS.kept.put(filling, OURS.ids(waiting))
        session.execute("ANALYZE")  # as the server does by itself after a minute
        beside = _latency(f"{waiting:,} others wait", shared, session, adds)
        [left] = session.execute("SELECT count(*) FROM queued_run").fetchone() or [None]
        assert left == waiting, f"{left} of {waiting} wait"
    return [alone, beside]


def _latency(name: str, shared: SharedQueue, session: psycopg.Connection[Any], adds: int) -> Latency:
    """Each run is put in when the one before has ended, at a random moment between two looks of the worker."""
    probe, moment = workflow("probe"), random.Random(1)  # the same moments each time
    claims, took = [], []
    for _ in range(adds):
        time.sleep(moment.uniform(0, POLL_SECONDS))
        entry, begin = time.time(), time.perf_counter()
        run_id = put(shared, probe)
        took.append(time.perf_counter() - begin)
        claims.append(_started(session, run_id) - entry)
    return Latency(name, claims, took)


def _started(session: psycopg.Connection[Any], run_id: str) -> float:
    """When the run began, once it has ended and the queue knows it no more."""
    until = time.monotonic() + 60
    while (row := session.execute(STARTED, [run_id]).fetchone()) is None:
        assert time.monotonic() < until, f"run {run_id} did not end"
        time.sleep(0.02)
    return float(row[0])
