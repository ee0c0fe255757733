"""Commands side by side on one ledger, killed at random moments, some of them while they recover others.

ORCHESTRATOR_TEST_KILLS=300 kills more of them; ORCHESTRATOR_TEST_SEED repeats the same choices. After one sweep
nothing is left in the database, every run has ended or can be resumed, and nothing was done or recorded twice.
"""

from __future__ import annotations

import os
import random
import signal
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from bench import Bench, Setup
from fork_server import Forked, ForkServer

from orchestrator.actions.catalog import catalog
from orchestrator.clock import SystemClock
from orchestrator.credentials.types import SWEEP_GRANT
from orchestrator.ledger.events import (
    AttemptFinished,
    LeaseRequested,
    RunFinished,
    RunResumed,
    RunStarted,
    RunTakenOver,
)
from orchestrator.ledger.ids import new_run_id
from orchestrator.ledger.lease import OPEN
from orchestrator.ledger.opening import open_ledger
from orchestrator.ledger.states import RunState
from orchestrator.ledger.types import EventRecord, LeaseFilter, RunRecord
from orchestrator.ledger.writing.store import Ledger
from orchestrator.workflow.loader import load_text

KILLS = int(os.environ.get("ORCHESTRATOR_TEST_KILLS", "8"))
SEED = int(os.environ.get("ORCHESTRATOR_TEST_SEED", "0")) or random.randrange(1, 1_000_000)
DATABASES = 1
PASSES_OF_A_SWEEP = 4
"""What a `leases sweep` looks at: the dead, what Vault gave up, left-over leases, expired logins."""

FLOW = """
version: 1
name: storm
agent: tester
steps:
  read:
    action: postgres.query
    grants:
      db: { kind: database, connection: support, role: feedback-read }
    with: { sql: SELECT id FROM customer_feedback LIMIT 1, grant: db }
  rest:
    needs: [read]
    action: exec
    grants:
      db: { kind: database, connection: support, role: feedback-read }
    with: { command: [/bin/sleep, "0.3"] }
    timeout: 60s
  read_beside:
    needs: [read]
    action: postgres.query
    grants:
      db: { kind: database, connection: support, role: feedback-read }
    with: { sql: SELECT pg_sleep(0.2)::text AS slept, grant: db }
    timeout: 60s
"""


@dataclass(frozen=True)
class Command:
    """A command under way, and where it writes."""

    words: tuple[str, ...]
    process: Forked
    written: Path

    def said(self) -> str:
        """What it has written to both of its streams."""
        return self.written.read_text()


@dataclass
class Storm:
    """Starts commands on one ledger and kills them."""

    bench: Bench
    setup: Setup
    flow: Path
    ledger: Ledger
    chance: random.Random
    children: ForkServer
    runs: list[str] = field(default_factory=list)
    kills: int = 0
    sweeps: int = 0

    def start(self, *words: str) -> Command:
        environment = {
            **self.bench.environment(),
            "ORCHESTRATOR_POLICY": "allow-all",
            "ORCHESTRATOR_LEDGER_URL": self.setup.ledger_url,
        }
        written = self.bench.directory / f"written-{time.monotonic_ns()}"
        with written.open("wb") as file:
            process = self.children.start(*words, environment=environment, log=file)
        return Command(words, process, written)

    def round(self) -> None:
        """A few commands at once; all, some or one of them killed, together or one after the other."""
        commands = [self.command() for _ in range(self.chance.randint(1, 4))]
        victims = self.chance.sample(commands, self.chance.randint(1, len(commands)))
        self.await_progress(victims[0])
        together = self.chance.random() < 0.5
        for victim in victims:
            if not together:
                time.sleep(self.chance.uniform(0, 0.2))
            if victim.process.poll() is None:
                victim.process.send_signal(signal.SIGKILL)
                self.kills += 1
        for command in commands:
            code = command.process.wait(timeout=120)
            if command not in victims:
                self.check_survivor(command, code)

    def command(self) -> Command:
        """Mostly a new run; else going on with an interrupted one, or a sweep."""
        interrupted = self.ledger.runs(state=RunState.INTERRUPTED, limit=100)
        what = self.chance.random()
        if what < 0.15 and interrupted:
            return self.start("runs", "resume", self.chance.choice(interrupted).run_id, "--quiet")
        if 0.15 <= what < 0.2:
            self.sweeps += 1
            return self.start("leases", "sweep")
        self.runs.append(new_run_id())
        return self.start("run", str(self.flow), "--run-id", self.runs[-1], "--quiet")

    def await_progress(self, victim: Command) -> None:
        """Wait for a random moment: of the start of a command, or of what its run does and recovers beside it."""
        if victim.words[0] == "run" and self.chance.random() < 0.8:
            run_id = victim.words[3]
            while self.ledger.run(run_id) is None and victim.process.poll() is None:
                time.sleep(0.01)
            time.sleep(self.chance.uniform(0, 0.8))
        else:
            time.sleep(self.chance.uniform(0, 1.5))

    def check_survivor(self, command: Command, code: int) -> None:
        if command.words[0] == "leases":
            assert code in (0, 6), command.said()
        elif command.words[0] == "run":
            own, said = command.words[3], command.said()
            assert code in (0, 6), said  # 6: what it could not confirm at once is left to the sweep
            assert code == 6 or said == "", "with --quiet nothing is said of a run that succeeded, nor of others"
            assert not [run for run in self.runs if run != own and run in said], said

    def records(self) -> list[RunRecord]:
        return [record for run in self.runs if (record := self.ledger.run(run)) is not None]

    def command_to_the_end(self, *words: str) -> Command:
        command = self.start(*words)
        command.process.wait(timeout=240)
        return command


@pytest.mark.parametrize("setup", ["sqlite", "postgresql"], indirect=True)
def test_nothing_is_left_and_nothing_is_done_twice(bench: Bench, setup: Setup, children: ForkServer) -> None:
    print(f"ORCHESTRATOR_TEST_SEED={SEED} ORCHESTRATOR_TEST_KILLS={KILLS}")
    bench.install(load_text(FLOW, filename="storm.yaml", actions=catalog).workflow)
    flow = bench.directory / "storm.yaml"
    flow.write_text(FLOW)
    with open_ledger(setup.ledger_url, clock=SystemClock()) as ledger:
        storm = Storm(bench, setup, flow, ledger, random.Random(SEED), children)
        rounds = 0
        while storm.kills < KILLS:
            rounds += 1
            storm.round()
        swept = storm.command_to_the_end("leases", "sweep")
        assert swept.process.returncode in (0, 6), swept.said()
        storm.sweeps += 1
        assert bench.logins() == []
        assert bench.sessions() == []
        assert {record.state for record in storm.records()} <= {RunState.SUCCEEDED, RunState.INTERRUPTED}
        check_histories(storm, ledger)
        interrupted = [record.run_id for record in storm.records() if record.state is RunState.INTERRUPTED]
        for run_id in storm.chance.sample(interrupted, min(3, len(interrupted))):
            resumed = storm.command_to_the_end("runs", "resume", run_id, "--quiet")
            assert resumed.process.returncode in (0, 6), resumed.said()
            record = ledger.run(run_id)
            assert record is not None
            assert record.state is RunState.SUCCEEDED
        check_histories(storm, ledger)
        states = Counter(record.state.value for record in storm.records())
        print(f"{storm.kills} kills in {rounds} rounds, {storm.sweeps} sweeps: {dict(states)}")
    until = time.monotonic() + 90
    while bench.vault_leases() and time.monotonic() < until:
        time.sleep(0.2)  # Vault works off by itself what hangs from revoked tokens


def check_histories(storm: Storm, ledger: Ledger) -> None:
    recoverers: set[str] = set()
    longest = made_to_sweep = 0
    for record in storm.records():
        assert ledger.verify(record.run_id) is None
        events = ledger.events(record.run_id)
        assert_nothing_twice(events)
        takeovers = [str(event.data["runner"]) for event in events if event.kind == RunTakenOver.kind]
        recoverers |= set(takeovers)
        longest = max(longest, len(events))
        own, others = made_to_look(events)
        assert own <= 2 * DATABASES * sum(event.kind in (RunStarted.kind, RunResumed.kind) for event in events)
        made_to_sweep += others
    leases = ledger.leases(LeaseFilter(limit=1_000_000))
    passes = len(recoverers) + PASSES_OF_A_SWEEP * storm.sweeps
    print(
        f"{len(storm.runs)} runs, {len(recoverers)} recoverers, {made_to_sweep} logins made to sweep, "
        f"longest history {longest}, open leases {sum(lease.state in OPEN for lease in leases)}"
    )
    assert made_to_sweep <= 2 * DATABASES * passes


def made_to_look(events: Sequence[EventRecord]) -> tuple[int, int]:
    """The logins made to look into a database: by the process that drives the run, and by those that recover it."""
    own = others = 0
    driven = True
    for event in events:
        if event.kind in (RunStarted.kind, RunResumed.kind):
            driven = True
        elif event.kind in (RunTakenOver.kind, RunFinished.kind):
            driven = False
        elif event.kind == LeaseRequested.kind and event.data["grant"] == SWEEP_GRANT:
            own, others = (own + 1, others) if driven else (own, others + 1)
    return own, others


def assert_nothing_twice(events: Sequence[EventRecord]) -> None:
    """No attempt ends twice, nobody takes a run over twice, and a run ends as often as it began."""
    ended = Counter(
        (event.data["step"], event.data["attempt"]) for event in events if event.kind == AttemptFinished.kind
    )
    assert max(ended.values(), default=1) == 1, ended
    takers = Counter(event.data["runner"] for event in events if event.kind == RunTakenOver.kind)
    assert max(takers.values(), default=1) == 1, takers
    turns = [event.kind for event in events if event.kind in (RunStarted.kind, RunResumed.kind, RunFinished.kind)]
    began, over = turns[::2], turns[1::2]
    assert began == [RunStarted.kind, *[RunResumed.kind] * (len(began) - 1)], turns
    assert over == [RunFinished.kind] * len(over), turns
