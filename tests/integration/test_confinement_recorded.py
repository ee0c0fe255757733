"""What a run says of how its programs were confined, and what it does where that is not enough."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import pytest
from bench import Bench
from fork_server import orchestrator

from orchestrator.actions import confinement
from orchestrator.actions.confinement import Confinement, available_parts
from orchestrator.devstack.session import runtime_environment
from orchestrator.errors import ExitCode
from orchestrator.ledger.events import AttemptStarted, LeaseRequested
from orchestrator.ledger.states import StepState
from orchestrator.policy.types import Decision, PolicyRequest

DB = "{ kind: database, connection: support, role: feedback-read }"
SAYS = f"""
version: 1
name: says
agent: tester
steps:
  program:
    action: exec
    grants: {{ db: {DB} }}
    with: {{ command: [/bin/true] }}
  function:
    action: python
    with: {{ callable: "posixpath:basename", arguments: {{ p: a/b }} }}
  query:
    action: postgres.query
    grants: {{ db: {DB} }}
    with: {{ sql: SELECT 1 }}
"""


def recorded(bench: Bench) -> dict[str, tuple[str, ...] | None]:
    return {event.step: event.confinement for event in bench.events if isinstance(event, AttemptStarted)}


@pytest.mark.parametrize("mode", Confinement)
def test_each_attempt_says_what_its_program_was_held_to(bench: Bench, mode: Confinement) -> None:
    parts = () if mode is Confinement.OFF else available_parts()
    outcome = bench.run(SAYS, confinement=mode)
    if mode is Confinement.REQUIRED and available_parts() != confinement.PARTS:
        assert outcome.exit_code is ExitCode.STEP_FAILED
        return
    assert outcome.exit_code is ExitCode.DONE, outcome.reason
    assert recorded(bench) == {"program": parts, "function": parts, "query": None}


def test_the_command_line_shows_it_and_the_environment_chooses(bench: Bench) -> None:
    workflow = bench.directory / "says.yaml"
    given = f"{{ command: [/bin/true], paths: {{ write: [{bench.directory}] }}, connect: [support] }}"
    workflow.write_text(f"version: 1\nname: shown\nagent: t\nsteps:\n  s: {{ action: exec, with: {given} }}\n")
    environment = {
        **os.environ,
        **runtime_environment(bench.provisioned, bench.directory),
        "ORCHESTRATOR_POLICY": "allow-all",
        "ORCHESTRATOR_LEDGER_URL": bench.config().ledger_url,
    }

    def command(*arguments: str, **more: str) -> Any:
        program = [*orchestrator(), *arguments, "--json"]
        done = subprocess.run(program, env={**environment, **more}, capture_output=True, text=True, cwd=bench.directory)
        assert done.returncode == 0, done.stderr
        return done.stdout

    (planned,) = json.loads(command("plan", str(workflow)))["steps"]
    assert planned["does"]["paths"] == {"read": [], "write": [str(bench.directory)]}
    assert planned["does"]["connect"] == ["support"]
    for mode, parts in (("off", []), ("best", list(available_parts()))):
        said = command("run", str(workflow), ORCHESTRATOR_CONFINEMENT=mode)
        run = json.loads(said.splitlines()[0])["run"]
        story = json.loads(command("runs", "show", run))
        (event,) = [each for each in story["events"] if each["kind"] == "attempt.started"]
        assert event["data"]["confinement"] == parts


def test_what_is_required_and_missing_refuses_the_step_before_anything_is_issued(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(confinement, "available_parts", lambda: ("files", "truncate", "seccomp"))
    outcome = bench.run(SAYS, confinement=Confinement.REQUIRED)
    for step in ("program", "function"):
        assert "lacks tcp, ioctl, signals" in outcome.errors[step].message
        assert "ORCHESTRATOR_CONFINEMENT=best" in str(outcome.errors[step].hint)
    requested = {event.step for event in bench.events if isinstance(event, LeaseRequested) and event.grant == "db"}
    assert requested == {"query"}, "what starts no program goes on"


def test_an_endpoint_that_is_not_there_is_told_before_anything_is_issued(bench: Bench) -> None:
    outcome = bench.run(SAYS.replace("command: [/bin/true]", "command: [/bin/true], connect: [nowhere]"))
    assert "`nowhere`" in outcome.reason
    assert set(outcome.steps.values()) == {StepState.CANCELLED}
    assert "program" not in {event.step for event in bench.events if isinstance(event, LeaseRequested)}


class Looking:
    """A policy that allows what it sees, and remembers it."""

    name = "looking"

    def __init__(self) -> None:
        self.seen: list[Any] = []

    async def decide(self, request: PolicyRequest) -> Decision:
        self.seen.append(request.action_view)
        return Decision(True, ("seen",), engine=self.name, revision="1")


def test_the_policy_is_asked_with_what_the_program_may_reach(bench: Bench) -> None:
    policy = Looking()
    folder = bench.directory
    text = SAYS.replace(
        "command: [/bin/true]",
        f"command: [/bin/true], connect: [support], cwd: {folder}, paths: {{ write: [{folder}] }}",
    )
    bench.run(text, policy=policy)
    (view,) = [view for view in policy.seen if view.get("program")]
    assert view["paths"] == {"read": [str(folder)], "write": [str(folder)]}
    assert view["connect"] == ["support"]


CONNECTS = """
version: 1
name: connects
agent: tester
steps:
  work:
    action: exec
    grants: {{ db: {db} }}
    with:
      command: [{python}, -c, {code}]
      credentials: {{ env: {{ PGUSER: db.username, PGPASSWORD: db.password }} }}
      connect: {connect}
      output: json
    outputs: [json]
"""
CODE = """
import json, psycopg, socket
with psycopg.connect({dsn!r}) as session:
    rows = session.execute("SELECT count(id) > 0 FROM customer_feedback").fetchone()[0]
host, port = {vault!r}.rpartition("/")[2].split(":")
print(json.dumps([rows, socket.socket().connect_ex((host, int(port)))]))
"""


def test_a_steps_own_database_is_reached_and_vault_is_not_unless_it_is_named(bench: Bench) -> None:
    code = CODE.format(dsn=bench.info.support_endpoint, vault=bench.info.vault_address)
    endpoints = {**bench.provisioned.endpoints, "vault": bench.info.vault_address}
    for connect, refused in (("[]", "tcp" in available_parts()), ("[vault]", False)):
        text = CONNECTS.format(db=DB, python=sys.executable, code=json.dumps(code), connect=connect)
        bench.events.clear()
        outcome = bench.run(text, endpoints=endpoints)
        assert outcome.exit_code is ExitCode.DONE, outcome.reason
        (output,) = [event.outputs for event in bench.events if event.kind == "step.finished"]  # type: ignore[union-attr]
        assert output["json"] == [True, 13 if refused else 0]  # type: ignore[index, call-overload]
