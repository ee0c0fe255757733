"""`runs retry`: a run of its own that takes over what succeeded and carries out the rest."""

from __future__ import annotations

import json
import re
import sqlite3
import subprocess
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from bench import Bench, Setup
from fork_server import ForkServer

from orchestrator.actions.catalog import catalog
from orchestrator.clock import SystemClock
from orchestrator.ledger.ids import new_run_id
from orchestrator.ledger.lease import FINAL
from orchestrator.ledger.opening import open_ledger
from orchestrator.ledger.states import RunState, StepState
from orchestrator.ledger.types import LeaseFilter, RunRecord
from orchestrator.workflow.loader import load_text

FLOW = """
version: 1
name: retried
agent: tester
INPUTS
steps:
  first:
    action: exec
    with: { command: [/bin/sh, -c, "echo first >> MARKS"], paths: { write: [FOLDER] } }
  read:
    needs: [first]
    action: postgres.query
    grants: { db: { kind: database, connection: support, role: feedback-read } }
    with: { sql: SELECT 7 AS id }
    outputs: [rows]
  tolerated:
    action: exec
    with: { command: [/bin/sh, -c, "echo tolerated >> MARKS; test -e OK"], paths: { write: [FOLDER] } }
    continue_on_error: true
  after:
    needs: [tolerated]
    action: exec
    with: { command: [/bin/sh, -c, "echo after >> MARKS"], paths: { write: [FOLDER] } }
  work:
    action: python
    grants: { db: { kind: database, connection: support, role: feedback-read } }
    with:
      callable: retried_work:work
      path: [FOLDER]
      arguments: { rows: "${{ steps.read.output.rows }}" }
      paths: { read: [FOLDER], write: [FOLDER] }
    outputs: [key]
  last:
    needs: [work]
    action: exec
    with: { command: [/bin/sh, -c, "echo last >> MARKS"], paths: { write: [FOLDER] } }
"""
WORK = """
from pathlib import Path


def work(context, rows):
    here = Path("FOLDER")
    with (here / "keys").open("a") as keys:
        keys.write(context["idempotency_key"] + "\\n")
    if not (here / "ok").exists():
        raise RuntimeError("not yet")
    return {"key": context["idempotency_key"], "rows": rows}
"""


class World:
    """A workflow whose steps leave marks, and the command line that runs and retries it."""

    def __init__(self, bench: Bench, setup: Setup, folder: Path, children: ForkServer) -> None:
        self.bench, self.setup, self.folder, self.children = bench, setup, folder, children
        self.marks, self.ok, self.file = folder / "marks", folder / "ok", folder / "flow.yaml"
        (folder / "retried_work.py").write_text(WORK.replace("FOLDER", str(folder)))
        self.write()

    def write(self, *, inputs: str = "", name: str = "", replaced: tuple[str, str] | None = None) -> None:
        content = FLOW.replace("INPUTS", inputs).replace("MARKS", str(self.marks)).replace("OK", str(self.ok))
        content = content.replace("FOLDER", str(self.folder))
        if replaced is not None:
            assert replaced[0] in content
            content = content.replace(*replaced, 1)
        self.file.write_text(content)
        self.bench.install(load_text(content, filename="flow.yaml", actions=catalog).workflow)

    def command(self, *words: str, **more: str) -> subprocess.CompletedProcess[str]:
        environment = {
            **self.bench.environment(),
            "ORCHESTRATOR_POLICY": "allow-all",
            "ORCHESTRATOR_LEDGER_URL": self.setup.ledger_url,
            **more,
        }
        return self.children.command(*words, environment=environment)

    def failed(self, *words: str) -> str:
        """The id of a run that has failed."""
        run_id = new_run_id()
        answer = self.command("run", str(self.file), "--run-id", run_id, *words)
        assert answer.returncode == 4, answer.stderr
        return run_id

    def retry(self, run: str, *words: str, **more: str) -> subprocess.CompletedProcess[str]:
        return self.command("runs", "retry", run, *words, **more)

    def run(self, run_id: str) -> RunRecord:
        with open_ledger(self.setup.ledger_url, clock=SystemClock()) as ledger:
            record = ledger.run(run_id)
            assert record is not None
            assert ledger.examine(run_id).whole
            return record

    def marked(self) -> list[str]:
        return self.marks.read_text().split()

    def keys(self) -> list[str]:
        return (self.folder / "keys").read_text().split()


@pytest.fixture
def world(bench: Bench, setup: Setup, tmp_path: Path, children: ForkServer) -> World:
    return World(bench, setup, tmp_path, children)


@pytest.fixture
def simple(bench: Bench, tmp_path: Path, children: ForkServer) -> Iterator[World]:
    """The same on one machine with a file."""
    with bench.setup("sqlite") as setup:
        yield World(bench, setup, tmp_path, children)


def test_what_succeeded_is_taken_over_and_the_rest_is_carried_out_with_credentials_of_its_own(world: World) -> None:
    run_id, retry_id = world.failed(), new_run_id()
    before = world.marked()
    world.ok.touch()
    answer = world.retry(run_id, "--run-id", retry_id, "--reason", "the disk was full")
    assert answer.returncode == 0, answer.stderr
    assert f"run {retry_id} goes on from {run_id}; taken over: first, read; carried out: " in answer.stderr
    assert sorted(before) == ["after", "first", "tolerated"]
    assert sorted(world.marked()) == ["after", "after", "first", "last", "tolerated", "tolerated"]
    retried, retry = world.run(run_id), world.run(retry_id)
    assert (retried.state, retried.retry_of) == (RunState.FAILED, None)
    assert (retry.state, retry.retry_of, retry.trigger) == (RunState.SUCCEEDED, run_id, "retry")
    with open_ledger(world.setup.ledger_url, clock=SystemClock()) as ledger:
        events = ledger.events(retry_id)
        assert events[0].data["reason"] == "the disk was full"
        assert [each.kind for each in events[:3]] == ["run.started", "step.finished", "step.finished"]
        assert [each.data["taken_from"] for each in events[1:3]] == [run_id, run_id]
        steps = {each.step: each for each in ledger.steps(retry_id)}
        assert steps["read"].outputs == {"rows": [{"id": 7}]}
        assert (steps["read"].attempts, steps["read"].reason) == (0, f"taken from {run_id}")
        assert (steps["work"].attempts, steps["work"].state) == (1, StepState.SUCCEEDED)
        leases = ledger.leases(LeaseFilter(run=retry_id))
        assert "work" in {each.step for each in leases}
        assert not {"first", "read"} & {each.step for each in leases}
        assert {each.state for each in leases} <= FINAL
    assert world.bench.logins() == []


def test_the_idempotency_key_stays_that_of_the_first_run_of_the_chain(simple: World) -> None:
    first, second, third = simple.failed(), new_run_id(), new_run_id()
    assert simple.retry(first, "--run-id", second).returncode == 4
    simple.ok.touch()
    assert simple.retry(second, "--run-id", third).returncode == 0
    assert simple.keys() == [f"{first}/work"] * 3
    assert simple.run(third).retry_of == second
    with open_ledger(simple.setup.ledger_url, clock=SystemClock()) as ledger:
        assert [ledger.events(each)[0].data["original"] for each in (first, second, third)] == ["", first, first]
        assert {each.data["taken_from"] for each in ledger.events(third, kind="step.finished")} == {second, ""}


def test_a_run_is_retried_once_and_then_its_retry_is(simple: World) -> None:
    run_id = simple.failed()
    retry_id = new_run_id()
    assert simple.retry(run_id, "--run-id", retry_id).returncode == 4
    again = simple.retry(run_id)
    assert again.returncode == 2
    assert f"run {run_id} has been retried already, as {retry_id}" in again.stderr
    assert f"orchestrator runs retry {retry_id}" in again.stderr
    simple.ok.touch()
    assert simple.retry(retry_id).returncode == 0
    done = simple.retry(retry_id)
    assert (done.returncode, "it has succeeded" in done.stderr) == (2, True)
    assert simple.marked().count("last") == 1


def test_of_two_processes_that_retry_a_run_at_once_one_does(world: World) -> None:
    run_id = world.failed()
    world.ok.touch()
    how = {
        **world.bench.environment(),
        "ORCHESTRATOR_POLICY": "allow-all",
        "ORCHESTRATOR_LEDGER_URL": world.setup.ledger_url,
    }
    both = [world.children.start("runs", "retry", run_id, environment=how) for _ in range(2)]
    said = [each.communicate(timeout=60)[0] for each in both]
    assert sorted(each.returncode or 0 for each in both) == [0, 2], said
    assert f"run {run_id} has been retried already, as run_" in "".join(said)
    assert world.marked().count("last") == 1
    with open_ledger(world.setup.ledger_url, clock=SystemClock()) as ledger:
        assert [each.retry_of for each in ledger.runs(workflow="retried")].count(run_id) == 1


def test_the_same_id_given_again_tells_the_outcome_and_runs_nothing(simple: World) -> None:
    run_id = simple.failed()
    simple.ok.touch()
    assert simple.retry(run_id, "--run-id", "mended-1").returncode == 0
    marked = simple.marked()
    again = simple.retry(run_id, "--run-id", "mended-1")
    assert again.returncode == 0
    assert "run mended-1 had ended before" in again.stderr
    assert simple.marked() == marked


@pytest.mark.parametrize("taken", ["a run", "a retry"])
def test_the_id_of_another_run_is_refused(simple: World, taken: str) -> None:
    run_id, other = simple.failed(), simple.failed()
    if taken == "a retry":
        retry_id = new_run_id()
        assert simple.retry(other, "--run-id", retry_id).returncode == 4
        other = retry_id
    answer = simple.retry(run_id, "--run-id", other)
    assert answer.returncode == 2
    assert f"run {other} is in the ledger, and no retry of {run_id}" in answer.stderr
    assert simple.retry(run_id, "--run-id", "no good").returncode == 2


def test_the_recorded_workflow_is_carried_out_whatever_the_file_says_by_now(simple: World) -> None:
    run_id = simple.failed()
    simple.file.write_text("nothing that could be run")
    simple.ok.touch()
    assert simple.retry(run_id).returncode == 0
    assert "last" in simple.marked()


def test_of_a_mended_file_the_steps_that_changed_run_again_and_what_needs_them(simple: World) -> None:
    run_id = simple.failed()
    simple.ok.touch()
    simple.write(replaced=('"echo first', '"echo other'))
    answer = simple.retry(run_id, "--file", str(simple.file))
    assert answer.returncode == 0, answer.stderr
    assert "taken over: nothing; carried out: first, read, tolerated" in answer.stderr
    assert simple.marked().count("other") == 1


def test_of_a_mended_file_the_steps_that_did_not_change_count(simple: World) -> None:
    run_id = simple.failed()
    simple.write(replaced=("retried_work:work", "retried_mended:work"))
    mended = WORK.replace('"ok"', '"flow.yaml"').replace("FOLDER", str(simple.folder))
    (simple.folder / "retried_mended.py").write_text(mended)
    retry_id = new_run_id()
    answer = simple.retry(run_id, "--run-id", retry_id, "--file", str(simple.file))
    assert (answer.returncode, "taken over: first, read;" in answer.stderr) == (0, True), answer.stderr
    assert simple.marked().count("first") == 1
    with open_ledger(simple.setup.ledger_url, clock=SystemClock()) as ledger:
        states = {each.step: each.state for each in ledger.steps(retry_id)}
    assert states["work"] is StepState.SUCCEEDED
    assert states["tolerated"] is StepState.FAILED


def test_another_workflow_or_another_agent_takes_nothing_over(simple: World) -> None:
    run_id = simple.failed()
    simple.write(replaced=("name: retried", "name: another"))
    other = simple.retry(run_id, "--file", str(simple.file))
    assert (other.returncode, "the file declares `another`" in other.stderr) == (2, True)
    simple.write(replaced=("agent: tester", "agent: somebody"))
    agent = simple.retry(run_id, "--file", str(simple.file))
    assert (agent.returncode, "acted for the agent `tester`" in agent.stderr) == (2, True)
    assert simple.retry(run_id, "--file", str(simple.folder / "missing.yaml")).returncode == 2


INPUTS = "inputs: { pin: { type: string, secret: true }, limit: { type: integer, default: 5 } }"


def test_secret_inputs_are_given_again_and_the_others_stay(simple: World) -> None:
    simple.write(inputs=INPUTS)
    secrets = simple.folder / "secrets.json"
    secrets.write_text(json.dumps({"pin": "correct horse battery"}))
    run_id = simple.failed("--inputs", str(secrets), "--input", "limit=9")
    simple.ok.touch()
    without = simple.retry(run_id)
    assert (without.returncode, "the secret input `pin` is not kept" in without.stderr) == (2, True)
    argument = simple.retry(run_id, "--input", "pin=correct horse battery")
    assert (argument.returncode, "arguments can be read by everybody" in argument.stderr) == (2, True)
    other = simple.retry(run_id, "--inputs", str(secrets), "--input", "limit=10")
    assert (other.returncode, "begun with another value of: `limit`" in other.stderr) == (2, True)
    retry_id = new_run_id()
    assert simple.retry(run_id, "--inputs", str(secrets), "--input", "limit=9", "--run-id", retry_id).returncode == 0
    assert simple.run(retry_id).inputs == {"pin": "***", "limit": 9}


def test_an_input_that_a_mended_file_has_more_is_given(simple: World) -> None:
    run_id = simple.failed()
    simple.ok.touch()
    simple.write(inputs="inputs: { limit: { type: integer } }")
    without = simple.retry(run_id, "--file", str(simple.file))
    assert (without.returncode, "the input `limit` is missing" in without.stderr) == (2, True)
    retry_id = new_run_id()
    answer = simple.retry(run_id, "--file", str(simple.file), "--input", "limit=3", "--run-id", retry_id)
    assert (answer.returncode, simple.run(retry_id).inputs) == (0, {"limit": 3}), answer.stderr


def test_a_policy_sees_that_it_is_a_retry(simple: World) -> None:
    run_id = simple.failed()
    simple.ok.touch()
    folder = simple.folder / "policies"
    folder.mkdir()
    (folder / "retries.rego").write_text(
        'package orchestrator\ndecision := {"allow": input.run.trigger != "retry", "reasons": ["no retries"]}\n'
    )
    how = {"ORCHESTRATOR_POLICY": "rego", "ORCHESTRATOR_POLICY_PATH": str(folder)}
    answer = simple.retry(run_id, **how)
    assert (answer.returncode, "no retries" in answer.stderr) == (3, True), answer.stderr
    assert simple.bench.logins() == []


def test_what_was_changed_in_the_ledger_is_not_gone_on_from(simple: World) -> None:
    run_id = simple.failed()
    with closing(sqlite3.connect(simple.setup.ledger_url.removeprefix("sqlite:///"))) as ledger:
        ledger.execute("""UPDATE step SET outputs = '{"rows":[{"id":8}]}' WHERE step = 'read'""")
        ledger.commit()
    answer = simple.retry(run_id)
    assert answer.returncode != 0
    assert f"run {run_id} cannot be retried: what the ledger shows of it is not what its history says" in answer.stderr


def test_a_run_that_succeeded_or_is_not_there_is_refused(simple: World) -> None:
    simple.ok.touch()
    run_id = new_run_id()
    assert simple.command("run", str(simple.file), "--run-id", run_id).returncode == 0
    done = simple.retry(run_id)
    assert (done.returncode, "has succeeded: there is nothing to retry" in done.stderr) == (2, True)
    gone = simple.retry(new_run_id())
    assert (gone.returncode, "is in the ledger" in gone.stderr) == (2, True)


def test_a_retry_and_its_run_tell_of_each_other(simple: World) -> None:
    run_id, retry_id = simple.failed(), new_run_id()
    simple.ok.touch()
    assert simple.retry(run_id[4:20].lower(), "--run-id", retry_id).returncode == 0
    shown = {each: simple.command("runs", "show", each).stdout for each in (run_id, retry_id)}
    assert re.search(rf"^retried as +{retry_id}$", shown[run_id], re.MULTILINE)
    assert re.search(rf"^retry of +{run_id}$", shown[retry_id], re.MULTILINE)
    assert re.search(rf"^read +succeeded .*taken from {run_id}$", shown[retry_id], re.MULTILINE)
    listed: list[dict[str, Any]] = json.loads(simple.command("runs", "list", "--json").stdout)
    told = {each["run_id"]: (each["retry_of"], each["retried_by"]) for each in listed}
    assert told == {run_id: (None, retry_id), retry_id: (run_id, None)}
    table = simple.command("runs", "list").stdout
    assert f"of {run_id}" in table
    assert f"by {retry_id}" in table


ITEMS = """
version: 1
name: retried_items
agent: tester
steps:
  list:
    action: postgres.query
    grants: { db: { kind: database, connection: support, role: feedback-read } }
    with: { sql: "SELECT n FROM generate_series(1, 4) n" }
    outputs: [rows]
  each:
    for_each: "LIST"
    action: exec
    grants: { db: { kind: database, connection: support, role: feedback-read } }
    with:
      command: [/bin/sh, -c, 'echo "$0" >> MARKS; test "$0" != 3 || test -e OK && echo "n$0"', "${{ item.n }}"]
      paths: { write: [FOLDER] }
    outputs: [stdout]
"""


@pytest.mark.parametrize(
    ("listed", "again"),
    [
        ("${{ steps.list.output.rows }}", ["3"]),
        ("${{ run.id == '' ? [] : steps.list.output.rows }}", ["1", "2", "3", "4"]),
    ],
)
def test_of_a_list_the_items_are_taken_over_that_succeeded_if_they_can_only_be_the_same(
    simple: World, listed: str, again: list[str]
) -> None:
    text = ITEMS.replace("LIST", listed).replace("MARKS", str(simple.marks)).replace("OK", str(simple.ok))
    simple.file.write_text(text.replace("FOLDER", str(simple.folder)))
    simple.bench.install(load_text(simple.file.read_text(), filename="flow.yaml", actions=catalog).workflow)
    run_id, retry_id = simple.failed(), new_run_id()
    assert simple.marked() == ["1", "2", "3", "4"]
    simple.ok.touch()
    answer = simple.retry(run_id, "--run-id", retry_id, "--json")
    assert answer.returncode == 0, answer.stderr
    assert simple.marked() == ["1", "2", "3", "4", *again]
    told = json.loads(answer.stdout.splitlines()[-1])
    assert told["outputs"]["each"] == {"items": [{"stdout": f"n{n}\n"} for n in range(1, 5)]}
    assert set(told["steps"]) == {"list", "each"}
    with open_ledger(simple.setup.ledger_url, clock=SystemClock()) as ledger:
        issued = [each for each in ledger.leases(LeaseFilter(run=retry_id)) if each.grant == "db"]
    assert [each.step for each in issued] == ["each"] * len(again)
    simple.run(retry_id)
    assert simple.bench.logins() == []
