"""`runs show --follow`: the record of a run as it grows, read by another process than the one that drives it."""

from __future__ import annotations

import json
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from bench import Bench, Setup
from fork_server import Forked, ForkServer
from waiting import wait_for

from orchestrator.actions.catalog import catalog
from orchestrator.clock import SystemClock
from orchestrator.ledger.ids import new_run_id
from orchestrator.ledger.opening import open_ledger
from orchestrator.ledger.states import RunState
from orchestrator.workflow.loader import load_text

FLOW = """
version: 1
name: followed
agent: tester
steps:
  first:
    action: exec
    with: { command: [/bin/sh, -c, "exit 0"] }
  work:
    needs: [first]
    action: exec
    grants: { db: { kind: database, connection: support, role: feedback-read } }
    with:
      command: [/bin/sh, -c, "until test -e FOLDER/go; do sleep 0.05; done; exit $(cat FOLDER/go)"]
      paths: { read: [FOLDER] }
"""


class Followed:
    """A run that goes on until it is told how to end, and those who look at it."""

    def __init__(self, bench: Bench, setup: Setup, folder: Path, children: ForkServer) -> None:
        self.bench, self.setup, self.folder, self.children = bench, setup, folder, children
        text = FLOW.replace("FOLDER", str(folder))
        self.file = folder / "flow.yaml"
        self.file.write_text(text)
        bench.install(load_text(text, filename="flow.yaml", actions=catalog).workflow)
        self.run_id = new_run_id()
        self.processes: list[Forked] = []

    def start(self, *words: str) -> Forked:
        environment = {
            **self.bench.environment(),
            "ORCHESTRATOR_POLICY": "allow-all",
            "ORCHESTRATOR_LEDGER_URL": self.setup.ledger_url,
            "ORCHESTRATOR_DEAD_AFTER": "4",
        }
        self.processes.append(self.children.start(*words, environment=environment))
        return self.processes[-1]

    def begin(self) -> Forked:
        """The process of the run, once its step works."""
        process = self.start("run", str(self.file), "--run-id", self.run_id, "--quiet")
        wait_for(lambda: self.bench.logins_of_steps(), "the step to hold its login")
        return process

    def end(self, code: int) -> None:
        """Let the step end with this code."""
        (self.folder / "go.new").write_text(str(code))
        (self.folder / "go.new").rename(self.folder / "go")

    def state(self) -> RunState:
        with open_ledger(self.setup.ledger_url, clock=SystemClock()) as ledger:
            record = ledger.run(self.run_id)
            assert record is not None
            return record.state


@pytest.fixture
def followed(bench: Bench, setup: Setup, tmp_path: Path, children: ForkServer) -> Iterator[Followed]:
    yield from _followed(bench, setup, tmp_path, children)


@pytest.fixture
def simple(bench: Bench, tmp_path: Path, children: ForkServer) -> Iterator[Followed]:
    with bench.setup("sqlite") as setup:
        yield from _followed(bench, setup, tmp_path, children)


def _followed(bench: Bench, setup: Setup, tmp_path: Path, children: ForkServer) -> Iterator[Followed]:
    run = Followed(bench, setup, tmp_path, children)
    yield run
    for process in run.processes:
        process.terminate()
        process.communicate(timeout=60)


class Lines:
    """What a process prints, as it does."""

    def __init__(self, process: Forked) -> None:
        self.seen: list[str] = []
        self._reading = threading.Thread(target=self._read, args=(process,), daemon=True)
        self._reading.start()

    def _read(self, process: Forked) -> None:
        assert process.stdout is not None
        self.seen.extend([])
        for line in process.stdout:
            self.seen.append(line.rstrip("\n"))

    def has(self, text: str) -> bool:
        return any(text in line for line in list(self.seen))

    def all(self) -> list[str]:
        self._reading.join(30)
        return self.seen


def test_what_happens_is_told_while_it_does_and_the_exit_code_is_the_runs(followed: Followed) -> None:
    process = followed.begin()
    looking = followed.start("runs", "show", followed.run_id[:-2].lower(), "--follow")
    lines = Lines(looking)
    wait_for(lambda: lines.has("lease.issued"), "the lease to be told")
    assert not lines.has("lease.revoked  ") or not lines.has("run.finished")
    assert looking.poll() is None
    followed.end(3)
    assert process.wait(60) == 4
    assert looking.wait(30) == 4
    said = lines.all()
    assert said[0].split()[1] == "run.started"
    assert said[-1].endswith("run.finished        failed, exit code 4: " + said[-1].rpartition("exit code 4: ")[2])
    assert [line for line in said if "work.db: confirmed by" in line]
    with open_ledger(followed.setup.ledger_url, clock=SystemClock()) as ledger:
        assert len([line for line in said if line.startswith((" ", "+"))]) <= len(ledger.events(followed.run_id))


def test_programs_get_a_line_of_json_for_each_event(simple: Followed) -> None:
    process = simple.begin()
    looking = simple.start("runs", "show", simple.run_id, "--follow", "--json")
    lines = Lines(looking)
    wait_for(lambda: lines.has("lease.issued"), "the lease to be told")
    simple.end(0)
    assert (process.wait(60), looking.wait(30)) == (0, 0)
    told: list[dict[str, Any]] = [json.loads(line) for line in lines.all()]
    with open_ledger(simple.setup.ledger_url, clock=SystemClock()) as ledger:
        assert [each["kind"] for each in told] == [each.kind for each in ledger.events(simple.run_id)]
    assert {each["run"] for each in told} == {simple.run_id}
    assert (told[-1]["state"], told[-1]["exit_code"]) == ("succeeded", 0)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_whoever_looks_can_go_away_and_the_run_goes_on(simple: Followed, number: int) -> None:
    process = simple.begin()
    looking = simple.start("runs", "show", simple.run_id, "-f")
    lines = Lines(looking)
    wait_for(lambda: lines.has("attempt.started"), "something to be told")
    looking.send_signal(number)
    assert looking.wait(30) == 128 + number
    assert not lines.has("Traceback")
    assert process.poll() is None
    assert simple.state() is RunState.RUNNING
    assert simple.bench.logins_of_steps() != []
    simple.end(0)
    assert process.wait(60) == 0


def test_a_run_that_has_ended_is_told_whole(simple: Followed) -> None:
    simple.end(0)
    assert simple.start("run", str(simple.file), "--run-id", simple.run_id, "-q").wait(60) == 0
    looking = simple.start("runs", "show", simple.run_id, "--follow")
    said, _ = looking.communicate(60)
    assert looking.returncode == 0
    assert "run.started" in said
    assert "run.finished        succeeded, exit code 0" in said
    unknown = simple.start("runs", "show", "nobody", "--follow")
    assert "no run nobody is in the ledger" in unknown.communicate(60)[0]
    assert unknown.returncode == 2


def test_a_run_whose_process_has_died_is_followed_until_somebody_has_closed_it(followed: Followed) -> None:
    process = followed.begin()
    looking = followed.start("runs", "show", followed.run_id, "--follow")
    lines = Lines(looking)
    wait_for(lambda: lines.has("lease.issued"), "the lease to be told")
    process.kill()
    process.wait(30)
    wait_for(lambda: lines.has("has ended without a word"), "that it died to be told", 30)
    assert looking.poll() is None
    assert followed.start("leases", "sweep").wait(90) == 0
    assert looking.wait(30) == 130
    assert lines.has(f"`orchestrator runs resume {followed.run_id}` goes on with it")
    assert followed.bench.logins() == []
    followed.end(0)
    assert followed.start("runs", "resume", followed.run_id, "-q").wait(60) == 0
