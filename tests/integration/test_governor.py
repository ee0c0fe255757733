"""The issuance governor: runs and calls of several processes wait for places of a database, by the time they came."""

from __future__ import annotations

import json
import signal
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest
from bench import Bench, Setup
from fork_server import Forked, ForkServer
from queued import queued
from waiting import wait_for

from orchestrator.actions.catalog import catalog
from orchestrator.clock import SystemClock
from orchestrator.errors import ExitCode
from orchestrator.ledger.events import AttemptWaits
from orchestrator.ledger.ids import new_run_id
from orchestrator.ledger.opening import open_ledger
from orchestrator.ledger.states import RunState
from orchestrator.ledger.types import EventRecord
from orchestrator.workflow.loader import load_text

STEP = """
  {name}:
    action: postgres.query
    grants: {{ db: {{ kind: database, connection: support, role: feedback-read }} }}
    with: {{ sql: "SELECT 1 AS one" }}
    timeout: {timeout}
"""
FLOW = """
version: 1
name: {name}
agent: tester
steps:
"""


def flow(*steps: str, name: str = "governed", timeout: str = "90s") -> str:
    return FLOW.format(name=name) + "".join(STEP.format(name=each, timeout=timeout) for each in steps)


class Office:
    """Processes on one ledger, in which one lease of `support` may be open, and what there is to see of their line."""

    def __init__(self, bench: Bench, setup: Setup, children: ForkServer) -> None:
        self.bench, self.setup, self.children = bench, setup, children
        self.processes: list[Forked] = []
        self.limit = 1
        self.dead_after = 4

    @property
    def environment(self) -> dict[str, str]:
        return {
            **self.bench.environment(),
            "ORCHESTRATOR_POLICY": "allow-all",
            "ORCHESTRATOR_LEDGER_URL": self.setup.ledger_url,
            "ORCHESTRATOR_DEAD_AFTER": str(self.dead_after),
            "ORCHESTRATOR_CONNECTION_LEASES__SUPPORT": str(self.limit),
        }

    def file(self, text: str) -> Path:
        workflow = load_text(text, filename="flow.yaml", actions=catalog).workflow
        self.bench.install(workflow)
        path = self.bench.directory / f"{workflow.name}.yaml"
        path.write_text(text)
        return path

    def start(self, *words: str) -> Forked:
        process = self.children.start(*words, environment=self.environment)
        self.processes.append(process)
        return process

    def run(self, path: Path) -> tuple[str, Forked]:
        """A process of its own for one run."""
        run_id = new_run_id()
        return run_id, self.start("run", str(path), "--run-id", run_id)

    def line(self) -> list[str]:
        with open_ledger(self.setup.ledger_url, clock=SystemClock()) as ledger:
            return [each.run_id for each in ledger.places(SystemClock().now()).line]

    def in_line(self, run_id: str) -> None:
        wait_for(lambda: run_id in self.line(), "the run to wait in line")

    def events(self, run_id: str) -> list[EventRecord]:
        with open_ledger(self.setup.ledger_url, clock=SystemClock()) as ledger:
            assert ledger.verify(run_id) is None
            return list(ledger.events(run_id))

    def state(self, run_id: str) -> RunState | None:
        with open_ledger(self.setup.ledger_url, clock=SystemClock()) as ledger:
            record = ledger.run(run_id)
            return None if record is None else record.state

    def served(self, run_ids: list[str]) -> list[str]:
        """In the order in which their intents were recorded."""
        asked = {each: [e.time for e in self.events(each) if e.kind == "lease.requested"] for each in run_ids}
        return sorted((each for each in run_ids if asked[each]), key=lambda each: asked[each][0])

    def waits_are_followed(self, run_id: str) -> None:
        """Each beginning of a wait is followed by the attempt's leases, or by its end."""
        events = self.events(run_id)
        for place, event in enumerate(events):
            if event.kind == "attempt.waits":
                about = (event.data["step"], event.data["attempt"])
                after = [
                    each.kind
                    for each in events[place + 1 :]
                    if each.kind in ("lease.requested", "attempt.finished", "attempt.waits")
                    and (each.data["step"], each.data["attempt"]) == about
                ]
                assert after[:1] in (["lease.requested"], ["attempt.finished"])
                assert "attempt.waits" not in after

    @contextmanager
    def holder(self) -> Iterator[tuple[str, Forked]]:
        """A run that holds the only place until the context is left."""
        text = flow("hold", name="holder").replace("SELECT 1 AS one", "SELECT pg_advisory_lock_shared(4713)::text")
        with psycopg.connect(self.bench.info.support_dsn.reveal(), autocommit=True) as gate:
            gate.execute("SELECT pg_advisory_lock(4713)")
            run_id, process = self.run(self.file(text))
            wait_for(self.bench.logins_of_steps, "the login of the holder")
            yield run_id, process
            gate.execute("SELECT pg_advisory_unlock(4713)")

    def end(self) -> None:
        for process in self.processes:
            if process.poll() is None:
                process.send_signal(signal.SIGCONT)
                process.terminate()
        for process in self.processes:
            process.communicate(timeout=60)


@pytest.fixture
def office(bench: Bench, setup: Setup, children: ForkServer) -> Iterator[Office]:
    with ExitStack() as stack:
        office = Office(bench, setup, children)
        stack.callback(office.end)
        yield office


both_ledgers = pytest.mark.parametrize("setup", ["sqlite", "postgresql"], indirect=True)
one_ledger = pytest.mark.parametrize("setup", ["sqlite"], indirect=True)


@both_ledgers
def test_processes_are_served_in_the_order_in_which_they_came(office: Office) -> None:
    path = office.file(flow("work"))
    runs = []
    with office.holder():
        for _ in range(5):
            runs.append(office.run(path))
            office.in_line(runs[-1][0])
        assert office.line() == [run_id for run_id, _ in runs]
    assert [process.wait(60) for _, process in runs] == [0] * 5
    assert office.served([run_id for run_id, _ in runs]) == [run_id for run_id, _ in runs]
    for run_id, _ in runs:
        assert [event.kind for event in office.events(run_id)].count("attempt.waits") == 1
        office.waits_are_followed(run_id)
    assert office.line() == []


@one_ledger
def test_a_run_of_several_steps_does_not_wait_for_itself(office: Office) -> None:
    path = office.file(flow("one", "two", "three", timeout="20s"))
    run_id, process = office.run(path)
    assert process.wait(60) == 0, process.communicate()
    office.waits_are_followed(run_id)


@both_ledgers
@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGSTOP, signal.SIGTERM, signal.SIGINT])
def test_a_waiter_whose_process_ends_holds_nobody_up(office: Office, end: signal.Signals) -> None:
    """Nobody but those who wait is there to see that one of them is dead."""
    path = office.file(flow("work"))
    with office.holder():
        first, dying = office.run(path)
        office.in_line(first)
        second, process = office.run(path)
        office.in_line(second)
        dying.send_signal(end)
        if end in (signal.SIGTERM, signal.SIGINT):
            assert dying.wait(30) in (130, 143)
            assert office.line() == [second]
            assert office.state(first) is RunState.CANCELLED
            office.waits_are_followed(first)
    assert process.wait(60) == 0
    office.waits_are_followed(second)
    if end is signal.SIGSTOP:
        dying.send_signal(signal.SIGCONT)
        assert dying.wait(60) != 0, "it was taken for dead"
    if end in (signal.SIGSTOP, signal.SIGKILL):
        assert office.children.command("leases", "sweep", environment=office.environment).returncode == 0
        office.waits_are_followed(first)
        assert office.state(first) in (RunState.INTERRUPTED, RunState.CANCELLED)
    assert office.line() == []


@both_ledgers
def test_the_place_of_a_killed_holder_comes_back_by_recovery(office: Office) -> None:
    path = office.file(flow("work"))
    with office.holder() as (held, holder):
        run_id, process = office.run(path)
        office.in_line(run_id)
        holder.kill()
        holder.wait(30)
        (office.bench.directory / "nothing").mkdir()
        service = office.start("serve", str(office.bench.directory / "nothing"), "--no-listen")
        assert process.wait(60) == 0
        service.terminate()
        assert service.wait(60) == 0
    assert office.state(held) is RunState.INTERRUPTED
    office.waits_are_followed(run_id)


@both_ledgers
def test_a_run_in_line_is_cancelled(office: Office) -> None:
    path = office.file(flow("work"))
    with office.holder():
        first, cancelled = office.run(path)
        office.in_line(first)
        second, process = office.run(path)
        office.in_line(second)
        assert office.children.command("runs", "cancel", first, environment=office.environment).returncode == 0
        assert cancelled.wait(30) == 130
        assert office.line() == [second]
        office.waits_are_followed(first)
        assert [each.kind for each in office.events(first)].count("lease.requested") == 0
    assert process.wait(60) == 0


@one_ledger
def test_who_has_no_place_within_the_time_of_its_step_is_refused(office: Office) -> None:
    path = office.file(flow("work", timeout="2s"))
    with office.holder():
        run_id, process = office.run(path)
        said, _ = process.communicate(60)
        assert process.returncode == ExitCode.REFUSED
        assert "1 lease of `support` is open, and no more may be, for as long as the step may take" in unfolded(said)
        assert "`orchestrator leases list --state waiting` shows who waits" in unfolded(said)
        assert office.line() == []
        office.waits_are_followed(run_id)


@one_ledger
def test_a_step_that_wants_more_than_there_may_ever_be_is_refused_at_once(office: Office) -> None:
    another = "grants: { more: { kind: database, connection: support, role: feedback-read }, db:"
    text = flow("work").replace("grants: { db:", another).replace('one"', 'one", grant: db')
    run_id, process = office.run(office.file(text))
    said, _ = process.communicate(60)
    assert process.returncode == ExitCode.REFUSED
    assert "the step wants 2 leases of `support` at once, and no more than 1 may be open" in unfolded(said)
    assert "ORCHESTRATOR_CONNECTION_LEASES__SUPPORT" in said
    kinds = [each.kind for each in office.events(run_id)]
    assert "attempt.waits" not in kinds
    assert "lease.requested" not in kinds


@both_ledgers
def test_who_waits_is_listed(office: Office) -> None:
    path = office.file(flow("work"))
    waiting = ("leases", "list", "--state", "waiting")

    def listed(*words: str) -> Any:
        told = office.children.command(*waiting, "--json", *words, environment=office.environment)
        assert told.returncode == 0, told.stderr
        return json.loads(told.stdout)

    with office.holder():
        assert listed() == []
        first, one = office.run(path)
        office.in_line(first)
        second, two = office.run(path)
        office.in_line(second)
        assert [(each["run_id"], each["place"]) for each in listed()] == [(first, 1), (second, 2)]
        about = listed()[0]
        assert (about["step"], about["attempt"], about["workflow"], about["agent"]) == ("work", 1, "governed", "tester")
        assert (about["connection"], about["leases"], about["task"]) == ("support", 1, None)
        assert f"-{one.pid}-" in about["process"]
        assert about["since"].endswith("Z")
        (only,) = listed("--run", second)
        assert (only["run_id"], only["place"]) == (second, 2), "its place is that among all"
        for words in (("--workflow", "other"), ("--agent", "other"), ("--step", "other"), ("--until", "1h")):
            assert listed(*words) == []
        assert len(listed("--since", "1h", "--workflow", "governed", "--agent", "tester", "--step", "work")) == 2
        shown = office.children.command(*waiting, environment=office.environment).stdout
        assert shown.split("\n")[0].split()[:5] == ["CONNECTION", "PLACE", "STEP", "SINCE", "RUN"]
        for more in (("--state", "issued"), ("--kind", "database"), ("--resource", "x")):
            refused = office.children.command(*waiting, *more, environment=office.environment)
            assert refused.returncode == ExitCode.INVALID
            assert "goes with it" in unfolded(refused.stderr)
    assert (one.wait(60), two.wait(60)) == (0, 0)
    assert office.children.command(*waiting, environment=office.environment).stdout == "nobody waits\n"


@pytest.mark.parametrize("setup", ["queue"], indirect=True)
def test_there_are_never_more_logins_than_may_be(office: Office) -> None:
    office.limit = 2
    path = office.file(flow("one", "two", "three"))
    most, over = [0], threading.Event()

    def sample() -> None:
        query = "SELECT count(*) FROM pg_roles WHERE rolname LIKE 'orc\\_%' AND rolname NOT LIKE 'orc\\_sweep-%'"
        with psycopg.connect(office.bench.info.support_dsn.reveal(), autocommit=True) as session:
            while not over.is_set():
                most[0] = max(most[0], session.execute(query).fetchone()[0])  # type: ignore[index]

    run_ids = [queued(office.setup.ledger_url, path) for _ in range(8)]
    sampler = threading.Thread(target=sample)
    sampler.start()
    try:
        workers = [office.start("worker", "--no-listen") for _ in range(4)]
        wait_for(lambda: {office.state(each) for each in run_ids} == {RunState.SUCCEEDED}, "all runs to succeed")
        for worker in workers:
            worker.terminate()
        assert [worker.wait(60) for worker in workers] == [0] * 4
    finally:
        over.set()
        sampler.join()
    assert most == [2]
    waited = [event for run_id in run_ids for event in office.events(run_id) if event.kind == AttemptWaits.kind]
    assert waited, "somebody had to wait"
    for run_id in run_ids:
        office.waits_are_followed(run_id)
    assert office.line() == []


def unfolded(said: str) -> str:
    """What was folded to the width of a screen, on one line."""
    return " ".join(said.split())
