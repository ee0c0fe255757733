"""What runs were given and what steps gave goes when its retention is over; the signed history stays verifiable."""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import psycopg
import pytest
from apis import apis_on, call, opened
from bench import Bench, Setup
from fork_server import ForkServer
from personal import ANSWER, PERSON, WORKFLOW
from queued import put, shared
from signed_ledger import public_keys
from waiting import wait_for

from orchestrator.actions.catalog import catalog
from orchestrator.clock import SystemClock
from orchestrator.errors import ExitCode
from orchestrator.evidence.log.verification import Verified, verify
from orchestrator.evidence.receipts import receipt
from orchestrator.ledger.findings import DecisionFilter
from orchestrator.ledger.opening import open_ledger
from orchestrator.ledger.types import EventRecord, LeaseFilter
from orchestrator.workflow.loader import load_text

OVER = 1.1
"""Seconds after which something of one second is over."""
FAILING = WORKFLOW.replace("SELECT reverse(", "SELECT 1/0, reverse(").replace("name: personal", "name: failing")


class Given:
    """A run with an input and an output, in a ledger of either kind."""

    def __init__(self, bench: Bench, url: str, children: ForkServer, run: str = "") -> None:
        self.bench, self.url, self.children = bench, url, children
        self.run = run or self._run()
        self.environment = bench.environment(ORCHESTRATOR_LEDGER_URL=self.url)

    def _run(self) -> str:
        outcome = self.bench.run(WORKFLOW, inputs={"customer": PERSON}, ledger_url=self.url)
        assert outcome.exit_code is ExitCode.DONE
        return outcome.run_id

    def has_ended(self) -> bool:
        with open_ledger(self.url, clock=SystemClock()) as ledger:
            record = ledger.run(self.run)
        return record is not None and record.finished_at is not None

    def prune(self, *words: str, code: ExitCode = ExitCode.DONE) -> Any:
        answer = self.children.command("history", "prune", *words, "--json", environment=self.environment)
        assert answer.returncode == code, answer.stderr
        return json.loads(answer.stdout) if code is ExitCode.DONE else answer.stderr

    def events(self) -> list[EventRecord]:
        with open_ledger(self.url, clock=SystemClock()) as ledger:
            return list(ledger.events(self.run))

    def data(self, kind: str) -> Any:
        return next(event.data for event in self.events() if event.kind == kind)

    def verified(self) -> Verified:
        with open_ledger(self.url, clock=SystemClock()) as ledger:
            return verify(ledger, ledger.log, public_keys(self.bench, ledger.log.origin()))

    def holds(self, text: str) -> bool:
        """Whether the text is anywhere in the ledger: in its files, or in any row of its tables."""
        if self.url.startswith("sqlite"):
            path = Path(self.url.removeprefix("sqlite:///"))
            return any(text.encode() in file.read_bytes() for file in path.parent.glob(f"{path.name}*"))
        with psycopg.connect(self.url) as session:
            tables = session.execute(
                "SELECT format('%I.%I', table_schema, table_name) FROM information_schema.tables"
                " WHERE table_schema NOT IN ('pg_catalog', 'information_schema')"
            ).fetchall()
            rows = (session.execute(f"SELECT t::text FROM {name} AS t").fetchall() for (name,) in tables)
            return any(text in row for found in rows for (row,) in found)


@pytest.fixture
def given(bench: Bench, setup: Setup, children: ForkServer) -> Given:
    return Given(bench, setup.ledger_url, children)


def test_values_lie_beside_the_events_which_hold_only_digests(given: Given) -> None:
    assert given.data("run.started")["inputs"] == {"customer": PERSON}
    assert ANSWER in json.dumps(given.data("step.finished")["outputs"])
    with open_ledger(given.url, clock=SystemClock()) as ledger:
        stored = ledger.log.stored_events(given.run, last=1000)
    assert not any(PERSON in event.data or ANSWER in event.data for event in stored)
    beside = {event.kind for event in stored if event.kept}
    assert beside == {"run.started", "decision", "step.finished"}
    digests = [json.loads(event.data)["kept"] for event in stored if event.kept]
    assert all(len(digest) == 64 for each in digests for digest in each.values())


def test_the_same_value_never_has_the_same_digest(given: Given) -> None:
    """Else whoever guesses a value could tell that it was that one."""
    given.bench.run(WORKFLOW, inputs={"customer": PERSON}, ledger_url=given.url)
    with open_ledger(given.url, clock=SystemClock()) as ledger:
        runs = [ledger.log.stored_events(each.run_id, last=1)[0] for each in ledger.runs()]
    digests = {json.loads(event.data)["kept"]["inputs"] for event in runs}
    assert len(digests) == len(runs) == 2


def test_what_is_dropped_is_gone_and_everything_else_is_as_it_was_signed(given: Given) -> None:
    before = given.events()
    assert given.holds(PERSON)
    assert given.holds(ANSWER)
    assert given.prune("--keep-inputs", "1s", "--keep-outputs", "1s", "--dry-run")["runs"] in (0, 1)
    time.sleep(OVER)
    assert given.prune("--keep-inputs", "1s", "--keep-outputs", "1s") == {
        "dropped": True,
        "runs": 1,
        "inputs": 1,
        "outputs": 1,
        "inline": 0,
    }
    found = given.verified()
    assert (found.problems, found.unsigned, found.unsigned_entries) == ([], [], 0)
    assert found.entries == 2, "the act is logged, too"
    after = given.events()
    assert [event.digest for event in after[:-1]] == [event.digest for event in before]
    assert after[-1].kind == "values.dropped"
    assert after[-1].data == {"values": ["inputs", "outputs"], "reason": "retention: inputs 1s, outputs 1s"}
    assert given.data("run.started")["inputs"] == {}
    assert given.data("step.finished")["outputs"] is None
    assert given.data("decision")["input"] == {}
    dropped = {event.kind: event.dropped for event in after if event.dropped}
    assert dropped["run.started"] == {"inputs"}
    assert not given.holds(PERSON)
    assert not given.holds(ANSWER)
    with open_ledger(given.url, clock=SystemClock()) as ledger:
        (record,) = ledger.runs()
        assert (record.inputs, record.dropped) == ({}, ("inputs", "outputs"))
        assert [step.outputs for step in ledger.steps(given.run)] == [None]
        assert ledger.examine(given.run).whole
        ledger.rebuild(given.run)
        assert ledger.examine(given.run).whole
    assert given.prune("--keep-inputs", "1s", "--keep-outputs", "1s")["runs"] == 0


def test_inputs_and_outputs_have_times_of_their_own(given: Given) -> None:
    time.sleep(OVER)
    assert given.prune("--keep-outputs", "1s", "--keep-inputs", "4w")["outputs"] == 1
    assert given.data("run.started")["inputs"] == {"customer": PERSON}
    assert given.data("step.finished")["outputs"] is None
    assert not given.holds(ANSWER)
    pruned = given.prune("--keep-outputs", "1s", "--keep-inputs", "1s")
    assert (pruned["inputs"], pruned["outputs"]) == (1, 0)
    assert given.verified().problems == []


def test_what_goes_on_keeps_its_values(bench: Bench, setup: Setup, children: ForkServer) -> None:
    import asyncio

    from orchestrator.assembly import open_services
    from orchestrator.ledger.events import RunFinished, RunStarted
    from orchestrator.ledger.states import RunState
    from orchestrator.redaction.redactor import Redactor

    async def begin() -> None:
        async with open_services(bench.config(ledger_url=setup.ledger_url), redactor=Redactor()) as services:
            for name, end in {"run_a": None, "run_b": RunState.INTERRUPTED, "run_c": RunState.WAITING}.items():
                started = RunStarted(
                    workflow="w", digest="d", agent="a", trigger="manual", inputs={"who": PERSON}, steps=("s",)
                )
                fence = await services.ledger.begin_run(name, started)
                if end is not None:
                    await services.ledger.append(name, fence, [RunFinished(state=end, exit_code=7)])

    asyncio.run(begin())
    time.sleep(OVER)
    environment = bench.environment(ORCHESTRATOR_LEDGER_URL=setup.ledger_url)
    answer = children.command("history", "prune", "--keep-inputs", "1s", "--json", environment=environment)
    assert json.loads(answer.stdout)["runs"] == 0
    with open_ledger(setup.ledger_url, clock=SystemClock()) as ledger:
        assert [run.inputs for run in ledger.runs()] == [{"who": PERSON}] * 3


def test_the_settings_say_how_long_and_something_has_to(given: Given) -> None:
    assert "nothing says how long values are kept" in given.prune(code=ExitCode.INVALID)
    assert "write it such as 30d" in given.prune("--keep-inputs", "soon", code=ExitCode.INVALID)
    given.environment["ORCHESTRATOR_KEEP_OUTPUTS"] = "4w"
    assert given.prune("--dry-run") == {"dropped": False, "runs": 0, "inputs": 0, "outputs": 0, "inline": 0}


def sqlite(given: Given) -> sqlite3.Connection:
    if not given.url.startswith("sqlite"):
        pytest.skip("by hand on the file; the tables are the same")
    return sqlite3.connect(given.url.removeprefix("sqlite:///"))


@pytest.fixture
def on_file(bench: Bench, children: ForkServer) -> Iterator[Given]:
    with bench.setup("sqlite") as setup:
        yield Given(bench, setup.ledger_url, children)


TAMPERED = {
    "values removed by hand": ("UPDATE event SET kept = NULL WHERE kind = 'run.started'", "values were removed"),
    "a value changed": (
        f"UPDATE event SET kept = replace(kept, '{PERSON}', 'Somebody') WHERE kind = 'run.started'",
        "broken from event 1 on",
    ),
    "a value of another event": (
        "UPDATE event SET kept = (SELECT kept FROM event WHERE kind = 'step.finished') WHERE kind = 'run.started'",
        "broken from event 1 on",
    ),
    "values beside an event that has none": (
        "UPDATE event SET kept = (SELECT kept FROM event WHERE kind = 'run.started') WHERE kind = 'run.finished'",
        "broken from event",
    ),
    "values that are none": ("UPDATE event SET kept = '[]' WHERE kind = 'run.started'", "broken from event 1 on"),
    "inputs shown as others": ("UPDATE run SET inputs = '{}'", "changed: inputs"),
    "outputs shown as others": ("UPDATE step SET outputs = 'null'", "changed: outputs"),
    "said to be dropped": ("UPDATE run SET dropped = 3", "changed: dropped"),
}


@pytest.mark.parametrize("name", TAMPERED)
def test_values_are_not_changed_and_not_removed_without_a_word(on_file: Given, name: str) -> None:
    statement, says = TAMPERED[name]
    with closing(sqlite(on_file)) as connection:
        for (trigger,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'").fetchall():
            connection.execute(f"DROP TRIGGER {trigger}")
        assert connection.execute(statement).rowcount
        connection.commit()
    assert any(says in problem for problem in on_file.verified().problems), on_file.verified().problems


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE event SET kept = 'x' WHERE kind = 'run.started'",
        "UPDATE event SET data = '{}'",
        "UPDATE event SET kept = NULL, seq = seq + 100",
        "DELETE FROM event",
    ],
)
def test_the_database_refuses_to_change_anything_else_of_an_event(given: Given, statement: str) -> None:
    if given.url.startswith("sqlite"):
        file = given.url.removeprefix("sqlite:///")
        with closing(sqlite3.connect(file)) as connection, pytest.raises(sqlite3.Error, match="append-only"):
            connection.execute(statement)
    else:
        with psycopg.connect(given.url) as session, pytest.raises(psycopg.Error, match="append-only"):
            session.execute(statement)


def test_a_receipt_has_values_only_on_demand_and_verifies_without(given: Given, tmp_path: Path) -> None:
    with open_ledger(given.url, clock=SystemClock()) as ledger:
        lease = next(each for each in ledger.leases(LeaseFilter(run=given.run)) if each.grant == "db")
        with_values = receipt(ledger, ledger.log, lease.lease_id, values=True)
        without = receipt(ledger, ledger.log, lease.lease_id)
        key = tmp_path / "vkey"
        key.write_text("\n".join(map(str, public_keys(given.bench, ledger.log.origin()))))
    assert PERSON in json.dumps(with_values)
    assert PERSON not in json.dumps(without)
    for number, document in enumerate((with_values, without)):
        file = tmp_path / f"{number}.receipt.json"
        file.write_text(json.dumps(document))
        done = given.children.command("history", "verify", "--key", str(key), str(file), environment=given.environment)
        assert done.returncode == ExitCode.DONE, done.stdout
    changed = tmp_path / "changed.receipt.json"
    changed.write_text(json.dumps(with_values).replace(PERSON, "Somebody"))
    done = given.children.command("history", "verify", "--key", str(key), str(changed), environment=given.environment)
    assert done.returncode == ExitCode.STEP_FAILED


def test_dropped_decisions_are_said_to_be_so(given: Given) -> None:
    time.sleep(OVER)
    given.prune("--keep-inputs", "1s")
    with open_ledger(given.url, clock=SystemClock()) as ledger:
        (decision,) = ledger.decisions(DecisionFilter(run=given.run))
    assert decision.decided.input == {}
    shown = given.children.command("runs", "show", given.run, environment=given.environment)
    assert shown.returncode == ExitCode.DONE
    assert "inputs: retention: inputs 1s" in shown.stdout


def test_what_is_dropped_is_in_no_file_although_somebody_has_the_ledger_open(on_file: Given) -> None:
    with closing(sqlite(on_file)) as reader:
        assert reader.execute("SELECT count(*) FROM run").fetchone() == (1,)
        time.sleep(OVER)
        on_file.prune("--keep-inputs", "1s", "--keep-outputs", "1s")
        assert not on_file.holds(PERSON)
        assert not on_file.holds(ANSWER)


def test_a_run_whose_values_are_gone_is_not_retried_with_others(given: Given) -> None:
    outcome = given.bench.run(FAILING, inputs={"customer": PERSON}, ledger_url=given.url)
    assert outcome.exit_code is ExitCode.STEP_FAILED
    time.sleep(OVER)
    given.prune("--keep-inputs", "1s")
    refused = given.children.command("runs", "retry", outcome.run_id, environment=given.environment)
    assert refused.returncode == ExitCode.INVALID
    assert "the inputs of run" in refused.stderr
    assert "were dropped after their retention" in refused.stderr
    replayed = given.children.command("policy", "explain", outcome.run_id, "one", environment=given.environment)
    assert replayed.returncode == ExitCode.INVALID
    assert "is not on record any more" in replayed.stderr


TASK = """\
version: 1
name: complaint_desk
inputs: { customer: { type: string } }
context: { customer: "${{ inputs.customer }}" }
task: { duration: 10m }
tools:
  read:
    description: Read something about somebody.
    call: { note: { type: string } }
    grants: { db: { kind: database, connection: support, role: feedback-read } }
    action: postgres.query
    with:
      sql: SELECT length(%(note)s) AS long
      parameters: { note: "${{ call.note }}" }
    outputs: [rows]
"""
NOTE = "she told us about 0816"


def test_a_task_and_its_calls_lose_what_they_were_given(bench: Bench, setup: Setup, children: ForkServer) -> None:
    """While the process that took them goes on."""
    with apis_on(bench, children, setup.ledger_url) as apis:
        apis.put(TASK)
        apis.start()
        with apis.client() as client:
            task = opened(client, PERSON)["id"]  # type: ignore[arg-type]
            assert call(client, task, "read", {"note": NOTE}).status_code == 200
            given = Given(bench, setup.ledger_url, children, task)
            time.sleep(OVER)
            assert given.prune("--keep-inputs", "1s", "--dry-run")["runs"] == 1, "the call; the task goes on"
            assert client.delete(f"/v1/tasks/{task}").status_code in (200, 204)
        assert given.holds(PERSON)
        assert given.holds(NOTE)
        time.sleep(OVER)
        assert given.prune("--keep-inputs", "1s")["inputs"] == 2
        assert not given.holds(PERSON)
        assert not given.holds(NOTE)
    assert given.verified().problems == []


def test_a_queued_run_leaves_its_inputs_in_no_table(bench: Bench, children: ForkServer) -> None:
    """Neither where its worker was killed between the end of the run and taking it out of the queue."""
    with bench.setup("queue") as setup:
        loaded = load_text(WORKFLOW, filename="flow.yaml", actions=catalog)
        bench.install(loaded.workflow)
        with shared(setup.ledger_url) as queue:
            run = put(queue, loaded, {"customer": PERSON})
        given = Given(bench, setup.ledger_url, children, run)
        with psycopg.connect(given.url) as session:
            session.execute("CREATE TABLE as_it_was AS SELECT * FROM queued_run")
        given.environment["ORCHESTRATOR_POLICY"] = "allow-all"
        worker = children.start("worker", "--no-listen", environment=given.environment)
        wait_for(given.has_ended, "the queued run to end")
        worker.terminate()
        worker.communicate(timeout=60)
        with psycopg.connect(given.url) as session:
            session.execute("INSERT INTO queued_run SELECT * FROM as_it_was ON CONFLICT DO NOTHING")
            session.execute("DROP TABLE as_it_was")
        time.sleep(OVER)
        assert given.prune("--keep-inputs", "1s", "--keep-outputs", "1s")["inputs"] == 1
        assert not given.holds(PERSON)
        assert not given.holds(ANSWER)
        assert given.verified().problems == []


def test_a_service_drops_what_is_over_by_itself(given: Given, tmp_path: Path) -> None:
    given.environment["ORCHESTRATOR_KEEP_INPUTS"] = "1s"
    (tmp_path / "none").mkdir()
    time.sleep(OVER)
    log = tmp_path / "log"
    with log.open("ab") as file:
        serving = given.children.start(
            "serve", str(tmp_path / "none"), "--no-listen", environment=given.environment, log=file
        )
    wait_for(lambda: "dropped inputs of 1" in log.read_text(), "what is over to be dropped")
    serving.terminate()
    serving.communicate(timeout=60)
    assert not given.holds(PERSON)
    assert given.holds(ANSWER), "nothing says how long these are kept"
