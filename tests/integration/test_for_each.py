"""A step for each item of a list: a login of its own for each, within the bound, and none of them left."""

from __future__ import annotations

import json
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from bench import Bench, Setup
from waiting import wait_for

from orchestrator.actions.catalog import catalog
from orchestrator.clock import SystemClock
from orchestrator.errors import ExitCode
from orchestrator.ledger.events import AttemptStarted, Decided, LeaseIssued, LeaseRequested, LeaseRevoked, StepFinished
from orchestrator.ledger.opening import open_ledger
from orchestrator.ledger.states import RunState, StepState
from orchestrator.ledger.types import LeaseFilter
from orchestrator.workflow.loader import load_text

WORKFLOW = """
version: 1
name: items
agent: tester
{more}
steps:
  each:
    for_each: {items}
    {step}
    action: postgres.query
    grants:
      db: {{ kind: database, connection: support, role: feedback-read }}
    with:
      sql: {sql}
      parameters: {{ n: "${{{{ item }}}}" }}
    outputs: [rows]
{rest}
"""
WHO = "SELECT current_user AS login, %(n)s::int AS n"


def workflow(items: str, *, step: str = "", sql: str = WHO, more: str = "", rest: str = "") -> str:
    return WORKFLOW.format(items=items, step=step, sql=json.dumps(sql), more=more, rest=rest)


def most_at_once(bench: Bench) -> int:
    """How many logins of steps were held at the same time, by the order of the events."""
    open_now: set[str] = set()
    most = 0
    ours = {
        event.lease_id
        for event in bench.events
        if isinstance(event, LeaseRequested) and event.grant_kind == "database" and event.step.startswith("each[")
    }
    for event in bench.events:
        if isinstance(event, LeaseIssued) and event.lease_id in ours:
            open_now.add(event.lease_id)
        elif isinstance(event, LeaseRevoked):
            open_now.discard(event.lease_id)
        most = max(most, len(open_now))
    return most


def test_fifty_items_have_fifty_logins_one_after_the_other(bench: Bench) -> None:
    items = "${{ inputs.numbers }}"
    outcome = bench.run(
        workflow(items, more="inputs: { numbers: { type: array } }"), inputs={"numbers": list(range(50))}
    )
    assert outcome.exit_code is ExitCode.DONE
    assert outcome.steps == {"each": StepState.SUCCEEDED}
    kept = outcome.outputs["each"]["items"]
    assert isinstance(kept, list)
    rows = [each["rows"][0] for each in kept]  # type: ignore[index, call-overload]
    assert [row["n"] for row in rows] == list(range(50))  # type: ignore[index, call-overload]
    assert len({row["login"] for row in rows}) == 50  # type: ignore[index, call-overload]
    issued = [lease for lease in bench.history(outcome.run_id) if lease.step == "each" and lease.grant == "db"]
    assert len(issued) == 50
    assert len({lease.step_key for lease in issued}) == 50
    assert {lease.state.value for lease in issued} == {"revoked"}
    began = [event.step for event in bench.events if isinstance(event, AttemptStarted)]
    assert began == [f"each[{n}]" for n in range(50)]
    bench.assert_nothing_left()


def test_no_more_items_at_once_than_allowed_and_as_many(bench: Bench) -> None:
    sleeps = "SELECT pg_sleep(0.4 - 0.1 * (%(n)s::int %% 4)), %(n)s::int AS n"  # the later end first
    outcome = bench.run(workflow(str(list(range(12))), step="max_parallel: 4", sql=sleeps))
    assert outcome.exit_code is ExitCode.DONE
    kept = outcome.outputs["each"]["items"]
    assert [each["rows"][0]["n"] for each in kept] == list(range(12))  # type: ignore[index, call-overload, union-attr]
    running = most = 0
    for event in bench.events:
        if isinstance(event, AttemptStarted):
            running += 1
            most = max(most, running)
        elif isinstance(event, StepFinished) and event.step.startswith("each["):
            running -= 1
    assert most == 4
    bench.assert_nothing_left()


def test_all_steps_together_begin_no_more_attempts_than_the_process_may(bench: Bench) -> None:
    two = workflow(str(list(range(8))), step="max_parallel: 8", sql="SELECT pg_sleep(0.2), %(n)s::int AS n")
    body = two[two.index("  each:") :].replace("  each:", "  others:")
    outcome = bench.run(two + body, max_parallel=3)
    assert outcome.exit_code is ExitCode.DONE
    held: dict[str, bool] = {}
    most = 0
    for event in bench.events:
        if isinstance(event, LeaseRequested) and event.grant == "db":
            held[event.lease_id] = True
        elif isinstance(event, LeaseRevoked):
            held.pop(event.lease_id, None)
        most = max(most, len(held))
    ran = [event for event in bench.events if isinstance(event, AttemptStarted)]
    assert len(ran) == 16
    # a login is confirmed gone a moment after its attempt has made room for the next one
    under_way = 0
    for event in bench.events:
        if isinstance(event, AttemptStarted):
            under_way += 1
            assert under_way <= 3
        elif isinstance(event, StepFinished) and "[" in event.step:
            under_way -= 1
    bench.assert_nothing_left()


def test_the_items_that_fail_fail_the_step_and_the_others_are_carried_out(bench: Bench) -> None:
    outcome = bench.run(workflow("[1, 0, 2, 0]", sql="SELECT 6 / %(n)s::int AS n"))
    assert outcome.exit_code is ExitCode.STEP_FAILED
    assert outcome.steps == {"each": StepState.FAILED}
    assert set(outcome.errors) == {"each"}
    assert "2 of 4 items of step `each` failed; `each[1]`: " in outcome.errors["each"].message
    assert "division by zero" in outcome.errors["each"].message
    ends = {event.step: event.state for event in bench.events if isinstance(event, StepFinished)}
    assert [ends[f"each[{n}]"].value for n in range(4)] == ["succeeded", "failed", "succeeded", "failed"]
    bench.assert_nothing_left()


def test_where_a_failure_cancels_the_others_the_items_that_are_left_do_not_begin(bench: Bench) -> None:
    text = workflow("[1, 0, 2, 3]", sql="SELECT 6 / %(n)s::int AS n", more="on_failure: cancel")
    outcome = bench.run(text)
    assert outcome.exit_code is ExitCode.STEP_FAILED
    ends = {event.step: event.state.value for event in bench.events if isinstance(event, StepFinished)}
    assert ends == {
        "each[0]": "succeeded",
        "each[1]": "failed",
        "each[2]": "cancelled",
        "each[3]": "cancelled",
        "each": "failed",
    }
    bench.assert_nothing_left()


def test_what_failed_is_null_for_dependents_that_go_on(bench: Bench) -> None:
    rest = """
  after:
    action: python
    with:
      callable: json:dumps
      arguments: { obj: "${{ steps.each.output.items }}" }
"""
    text = workflow("[2, 0]", step="continue_on_error: true", sql="SELECT 6 / %(n)s::int AS n", rest=rest)
    outcome = bench.run(text)
    assert outcome.exit_code is ExitCode.DONE
    assert outcome.outputs["each"] == {"items": [{"rows": [{"n": 3}]}, None]}
    assert outcome.steps == {"each": StepState.FAILED, "after": StepState.SUCCEEDED}


@pytest.mark.parametrize(
    ("items", "said"),
    [
        ("${{ inputs.text }}", "`for_each` is no list"),
        ("${{ [1, 2].map(n, n / 0) }}", "divi"),
        ("${{ inputs.many }}", "`for_each` has 10001 items, and may have 10000"),
    ],
)
def test_a_list_that_is_none_fails_the_step_without_an_attempt(bench: Bench, items: str, said: str) -> None:
    more = "inputs: { text: { type: string, default: '' }, many: { type: array } }"
    outcome = bench.run(workflow(items, more=more), inputs={"many": list(range(10_001))})
    assert outcome.exit_code is ExitCode.STEP_FAILED
    assert said in outcome.errors["each"].message
    assert not [event for event in bench.events if isinstance(event, AttemptStarted)]
    assert not [lease for lease in bench.history(outcome.run_id) if lease.step == "each"]


def test_no_items_are_no_failure(bench: Bench) -> None:
    outcome = bench.run(workflow("[]"))
    assert outcome.exit_code is ExitCode.DONE
    assert outcome.outputs["each"] == {"items": []}


def test_what_is_kept_of_all_items_is_bounded(bench: Bench) -> None:
    long = "SELECT repeat('x', 300) AS text, %(n)s::int AS n"
    outcome = bench.run(workflow(str(list(range(5))), sql=long), max_output_bytes=1000)
    assert outcome.exit_code is ExitCode.STEP_FAILED
    assert "what is kept of its 5 items has" in outcome.errors["each"].message


def test_a_secret_of_one_item_is_no_secret_of_anothers_output_by_chance_but_is_refused_in_it(bench: Bench) -> None:
    """Redaction knows what was issued to the run: an item that gives its own password out is refused."""
    text = """
version: 1
name: leaking
agent: tester
steps:
  each:
    for_each: [1, 2]
    action: exec
    grants:
      db: { kind: database, connection: support, role: feedback-read }
    with:
      command: [/bin/sh, -c, 'printf %s "$P"']
      credentials: { env: { P: db.password } }
    outputs: [stdout]
"""
    outcome = bench.run(text)
    assert outcome.exit_code is ExitCode.STEP_FAILED
    assert "2 of 2 items" in outcome.errors["each"].message
    assert "each" not in outcome.outputs or outcome.outputs["each"] == {"items": [None, None]}
    bench.assert_nothing_left()


ROWS = """
version: 1
name: rows_of_items
agent: tester
steps:
  customers:
    action: postgres.query
    grants:
      db: { kind: database, connection: support, privileges: [{ select: customer_feedback, columns: [id] }] }
    with: { sql: SELECT id FROM customer_feedback ORDER BY id LIMIT 3 }
    outputs: [rows]
  each:
    for_each: ${{ steps.customers.output.rows }}
    max_parallel: 2
    action: postgres.query
    grants:
      db:
        kind: database
        connection: support
        privileges:
          - select: customer_feedback
            columns: [id]
            where: { id: "${{ item.id }}" }
    with: { sql: SELECT id FROM customer_feedback }
    outputs: [rows]
"""


def test_each_item_sees_only_the_rows_that_are_its_own(bench: Bench) -> None:
    outcome = bench.run(ROWS)
    assert outcome.exit_code is ExitCode.DONE, outcome.errors
    customers = outcome.outputs["customers"]["rows"]
    assert outcome.outputs["each"]["items"] == [{"rows": [row]} for row in customers]  # type: ignore[union-attr]
    asked = [event for event in bench.events if isinstance(event, Decided) and event.step.startswith("each[")]
    assert sorted(event.step for event in asked) == ["each[0]", "each[1]", "each[2]"]
    bench.assert_nothing_left()


@pytest.mark.parametrize("setup", ["sqlite", "postgresql"], indirect=True)
def test_an_interrupted_list_goes_on_with_the_items_that_are_left(bench: Bench, setup: Setup, tmp_path: Path) -> None:
    file = tmp_path / "items.yaml"
    slow = "SELECT pg_sleep(CASE WHEN %(n)s::int = 2 THEN 4 ELSE 0 END), %(n)s::int AS n"
    file.write_text(workflow(str(list(range(6))), sql=slow))
    environment = bench.environment(ORCHESTRATOR_POLICY="allow-all", ORCHESTRATOR_LEDGER_URL=setup.ledger_url)
    command = [sys.executable, "-m", "orchestrator.cli"]
    with (tmp_path / "out").open("w") as out:
        killed = subprocess.Popen(
            [*command, "run", str(file), "--run-id", "r1"], env=environment, stdout=out, stderr=out
        )

    def ended() -> list[str]:
        with open_ledger(setup.ledger_url, clock=SystemClock()) as ledger:
            return [each.step for each in ledger.steps("r1") if each.state is StepState.SUCCEEDED]

    # Cut off while it asks for a login, nobody knows at once whether there is one.
    sleeping = "SELECT pid FROM pg_stat_activity WHERE usename LIKE 'orc\\_each%' AND wait_event = 'PgSleep'"
    wait_for(lambda: bench.sql(sleeping), "the third item to query")
    killed.kill()
    killed.wait()
    before = ended()
    done = subprocess.run(
        [*command, "runs", "resume", "r1", "--json"], env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stdout + done.stderr
    with open_ledger(setup.ledger_url, clock=SystemClock()) as ledger:
        events = [event for event in ledger.events("r1") if event.kind == AttemptStarted.kind]
        assert ledger.verify("r1") is None
        attempts = {each.step: each.attempts for each in ledger.steps("r1") if each.step != "each"}
        record = ledger.run("r1")
        assert record is not None
        assert record.state is RunState.SUCCEEDED
        kept = next(each for each in ledger.steps("r1") if each.step == "each").outputs
        assert {lease.state.value for lease in ledger.leases(LeaseFilter(run="r1"))} <= {"revoked", "ended"}
    assert all(attempts[step] == 1 for step in before)
    assert set(attempts) == {f"each[{n}]" for n in range(6)}
    assert sum(attempts.values()) in (6, 7)
    assert len(events) == sum(attempts.values())
    assert [each["rows"][0]["n"] for each in kept["items"]] == list(range(6))  # type: ignore[index, call-overload]
    bench.assert_nothing_left()


def test_an_item_is_tried_again_by_itself_and_each_try_has_a_login_of_its_own(bench: Bench) -> None:
    text = """
version: 1
name: again
agent: tester
steps:
  each:
    for_each: [a, b]
    action: exec
    grants:
      db: { kind: database, connection: support, role: feedback-read }
    retry: { attempts: 3, backoff: 1s, on: [exit_status] }
    with:
      command: [/bin/sh, -c, 'test "$N" -ge "$TRY"']
      environment: { TRY: "${{ item == 'a' ? 1 : 3 }}", N: "${{ step.attempt }}" }
"""
    outcome = bench.run(text)
    assert outcome.exit_code is ExitCode.DONE, outcome.errors
    began = [(event.step, event.attempt) for event in bench.events if isinstance(event, AttemptStarted)]
    assert began == [("each[0]", 1), ("each[1]", 1), ("each[1]", 2), ("each[1]", 3)]
    keys = [event.step_key for event in bench.events if isinstance(event, AttemptStarted)]
    assert len(set(keys)) == 4
    assert all(one != other for one, other in pairwise(keys))
    bench.assert_nothing_left()


def test_what_was_decided_about_an_item_is_found_by_its_name_its_step_and_its_lease(bench: Bench) -> None:
    outcome = bench.run(workflow("[1, 2, 3]"))
    leases = {lease.step_key: lease for lease in bench.history(outcome.run_id) if lease.grant == "db"}
    keys = {event.step: event.step_key for event in bench.events if isinstance(event, AttemptStarted)}

    def explained(*words: str) -> Any:
        command = [sys.executable, "-m", "orchestrator.cli", "policy", "explain", *words, "--json"]
        done = subprocess.run(command, env=bench.environment(), capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stdout + done.stderr
        return json.loads(done.stdout)

    assert explained(outcome.run_id, "each[1]")["step"] == "each[1]"
    assert explained(outcome.run_id, "each")["step"] == "each[2]"
    assert explained(leases[keys["each[0]"]].lease_id)["step"] == "each[0]"


def test_gone_on_with_after_its_list_a_run_tells_of_steps_and_their_lists_only(bench: Bench, tmp_path: Path) -> None:
    waits = tmp_path / "waits"
    waits.touch()
    rest = f"""
  after:
    needs: [each]
    action: exec
    with:
      command: [/bin/sh, -c, 'while [ -e "$0" ]; do sleep 0.1; done; echo "$1"', "{waits}"]
      stdin: ${{{{ steps.each.output.items }}}}
      paths: {{ read: ["{tmp_path}"] }}
    outputs: [stdout]
"""
    text = workflow("[1, 2]", rest=rest)
    bench.install(load_text(text, filename="w.yaml", actions=catalog).workflow)
    (tmp_path / "w.yaml").write_text(text)
    environment = bench.environment(ORCHESTRATOR_POLICY="allow-all")
    command = [sys.executable, "-m", "orchestrator.cli"]
    with (tmp_path / "out").open("w") as out:
        run = [*command, "run", str(tmp_path / "w.yaml"), "--run-id", "r1"]
        died = subprocess.Popen(run, env=environment, stdout=out, stderr=out)

    def last_step() -> bool:
        with open_ledger(bench.config().ledger_url, clock=SystemClock()) as ledger:
            return any(each.step == "after" for each in ledger.steps("r1"))

    wait_for(last_step, "the last step to begin")
    died.kill()
    died.wait()
    waits.unlink()
    done = subprocess.run(
        [*command, "runs", "resume", "r1", "--json"], env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stdout + done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    assert set(told["steps"]) == {"each", "after"}
    assert [each["rows"][0]["n"] for each in told["outputs"]["each"]["items"]] == [1, 2]
    with open_ledger(bench.config().ledger_url, clock=SystemClock()) as ledger:
        attempts = {each.step: each.attempts for each in ledger.steps("r1")}
    assert (attempts["each[0]"], attempts["each[1]"], attempts["after"]) == (1, 1, 2)
    bench.assert_nothing_left()
