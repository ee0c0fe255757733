"""Before the policy knows an agent nothing of its workflow is evaluated: no parameter, no condition, no context."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest
from bench import Bench

from orchestrator.actions.catalog import action, catalog
from orchestrator.cli.dry_run import decided
from orchestrator.errors import ExitCode
from orchestrator.ledger.events import AttemptFinished, Decided, LeaseRequested, StepFinished
from orchestrator.ledger.states import RunState, StepState
from orchestrator.planning.plan import build
from orchestrator.policy.engines.rego.engine import PolicySource, RegoEngine
from orchestrator.policy.types import Decision, PolicyRequest
from orchestrator.runs.types import RunOutcome
from orchestrator.workflow.loader import load_text

SAMPLE = RegoEngine.from_directory(Path(__file__).parents[2] / "workflows" / "policies")
BROKEN = "${{ inputs.one / 0 }}"
"""Seen from outside when it is evaluated: it fails."""

PARAMETER = f"    with: {{ sql: SELECT 1 AS one, parameters: {{ a: '{BROKEN}' }} }}"
PLAIN = "    with: { sql: SELECT 1 AS one }"
WHERE = {
    "parameter": {"step": PARAMETER},
    "condition": {"step": PLAIN + "\n    if: inputs.one / 0 == 1"},
    "context": {"step": PLAIN, "top": f"context: {{ task: '{BROKEN}' }}"},
    "row limit": {
        "step": PLAIN,
        "grant": "{ kind: database, connection: support, privileges: "
        f"[{{ select: customer_feedback, columns: [id], where: {{ id: '{BROKEN}' }} }}] }}",
    },
}


def workflow(
    where: str, *, agent: str = "nobody", action: str = "postgres.query", name: str = "admission", more: str = ""
) -> str:
    parts = WHERE[where]
    grant = parts.get("grant", "{ kind: database, connection: support, role: feedback-read }")
    return f"""
version: 1
name: {name}
agent: {agent}
inputs: {{ one: {{ type: integer, default: 1 }} }}
{parts.get("top", "")}
steps:
  work:
    action: {action}
    grants:
      db: {grant}
{parts["step"]}
{more}
"""


def run(bench: Bench, text: str, policy: object, **changes: object) -> RunOutcome:
    """Without a Vault: who asks it ends as unreachable."""
    nowhere = replace(bench.provisioned.vault_config(), address="http://127.0.0.1:1")
    return bench.run(text, install=False, policy=policy, vault=nowhere, **changes)  # type: ignore[arg-type]


def of_kind(bench: Bench, kind: type) -> list[object]:
    return [event for event in bench.events if isinstance(event, kind)]


@pytest.mark.parametrize("where", WHERE)
def test_an_unknown_agent_is_denied_and_nothing_of_it_is_evaluated(bench: Bench, where: str) -> None:
    outcome = run(bench, workflow(where), SAMPLE)
    assert (outcome.exit_code, outcome.state) == (ExitCode.REFUSED, RunState.REFUSED)
    assert outcome.steps == {"work": StepState.REFUSED}
    assert outcome.reason.endswith("agent `nobody` is not known to this policy")
    (event,) = of_kind(bench, Decided)
    assert isinstance(event, Decided)
    assert (event.allow, event.reasons) == (False, ("agent `nobody` is not known to this policy",))
    assert event.revision == SAMPLE.revision
    (finished,) = of_kind(bench, AttemptFinished)
    assert getattr(finished, "state", None) is StepState.REFUSED
    assert len(of_kind(bench, StepFinished)) == 1
    assert of_kind(bench, LeaseRequested) == []
    assert bench.logins() == []


@pytest.mark.parametrize("where", WHERE)
def test_what_an_admitted_agent_writes_is_evaluated(bench: Bench, where: str) -> None:
    """The other side of the test above: these expressions do show when they are evaluated."""
    outcome = run(bench, workflow(where, agent="feedback-assistant"), SAMPLE)
    assert outcome.state is RunState.FAILED
    assert "divides by zero" in outcome.reason
    assert of_kind(bench, Decided) == []


def test_an_action_that_the_agent_may_not_use_is_denied_before_its_parameters_are_evaluated(bench: Bench) -> None:
    outcome = run(bench, workflow("parameter", agent="feedback-enricher", action="postgres.execute"), SAMPLE)
    assert outcome.exit_code is ExitCode.REFUSED
    assert outcome.reason.endswith("agent `feedback-enricher` may not use the action `postgres.execute`")


OTHERS = """
  after:
    action: postgres.query
    needs: [work]
    grants:
      db: { kind: database, connection: support, role: feedback-read }
    with: { sql: SELECT 1 AS one }
  beside:
    action: exec
    with: { command: [/bin/true] }
"""


def test_only_the_steps_that_are_denied_are_not_evaluated(bench: Bench) -> None:
    policy = rego(
        'decision := {"allow": true}\n'
        'admit := {"allow": input.action.name == "exec", "reasons": ["exec alone"]} if input.context == {}'
    )
    outcome = run(bench, workflow("parameter", more=OTHERS), policy)
    assert outcome.exit_code is ExitCode.REFUSED
    assert outcome.steps == {"work": StepState.REFUSED, "after": StepState.SKIPPED, "beside": StepState.SUCCEEDED}
    assert "exec alone" in outcome.reason


def rego(rules: str) -> RegoEngine:
    return RegoEngine.from_sources([PolicySource("p.rego", f"package orchestrator\nimport rego.v1\n{rules}\n")])


ALLOW = 'decision := {"allow": true}\n'


@pytest.mark.parametrize(
    ("rule", "reason"),
    [
        ('admit := {"allow": true} if input.agent == "somebody"', "undefined"),
        ("admit := true", "undefined"),
        ('admit := {"allow": "yes"}', "no boolean `allow`"),
        ('admit := {"allow": to_number(input.agent) > 1}', "could not parse"),
        ('admit := {"allow": true}\nadmit := {"allow": false} if input.agent', "conflicts"),
        ('admit := {"allow": true, "obligations": {"max_ttl": 60}}', "obligation"),
        ('admit := {"allow": true, "obligations": {"delete_everything": "at once"}}', "cannot do: delete_everything"),
        ('default admit := {"allow": false, "reasons": ["by default"]}', "by default"),
    ],
)
def test_an_admission_that_is_no_clear_yes_is_a_denial(bench: Bench, rule: str, reason: str) -> None:
    outcome = run(bench, workflow("parameter"), rego(ALLOW + rule))
    assert outcome.exit_code is ExitCode.REFUSED
    assert reason in outcome.reason


@pytest.mark.parametrize("where", WHERE)
def test_an_engine_that_fails_when_it_is_asked_admits_nothing(bench: Bench, where: str) -> None:
    class Engine:
        name = "failing"

        async def decide(self, request: PolicyRequest) -> Decision:
            return Decision(True, (), self.name, "1")

        async def admit(self, request: PolicyRequest) -> Decision | None:
            raise ValueError("out of order")

    outcome = run(bench, workflow(where), Engine())
    assert outcome.state is RunState.FAILED
    assert outcome.steps == {"work": StepState.FAILED}
    assert "out of order" in outcome.reason


def test_policies_without_the_rule_are_asked_at_the_step(bench: Bench) -> None:
    outcome = run(bench, workflow("condition"), rego(ALLOW))
    assert outcome.exit_code is ExitCode.STEP_FAILED
    assert "`if`" in outcome.reason
    denied = run(bench, workflow("context").replace("/ 0", "+ 0"), rego('decision := {"allow": false}'))
    assert denied.exit_code is ExitCode.REFUSED


async def test_the_question_holds_what_is_declared_and_nothing_that_was_evaluated(bench: Bench) -> None:
    asked: list[dict[str, object]] = []

    class Engine:
        name = "listening"

        async def decide(self, request: PolicyRequest) -> Decision:
            raise AssertionError("asked too late")

        async def admit(self, request: PolicyRequest) -> Decision | None:
            asked.append(dict(request.as_json()))
            return Decision(False, ("no",), self.name, "1")

    outcome = await asyncio.to_thread(run, bench, workflow("row limit"), Engine())
    question = asked[-1]
    assert question["workflow"] == {"name": "admission", "digest": (question["workflow"])["digest"]}  # type: ignore[index]
    assert question["run"] == {"id": outcome.run_id, "trigger": "manual", "reason": "", "inputs": {"one": 1}}
    assert (question["agent"], question["step"]) == ("nobody", {"id": "work", "attempt": 1, "timeout": 60})
    assert (question["action"], question["context"]) == ({"name": "postgres.query"}, {})
    assert question["time"] is not None
    (grant,) = question["grants"]  # type: ignore[misc]
    assert grant["connection"] == "support"
    assert grant["privileges"][0]["where"] == {"id": BROKEN}


@pytest.mark.parametrize(
    ("rule", "allowed", "reason"),
    [
        ('admit := {"allow": false, "reasons": ["a stranger"]}', False, "a stranger"),
        ('admit := {"allow": input.time != null}', False, "does not allow"),
        ('admit := {"allow": true, "obligations": {"max_ttl": 60}}', False, "obligation"),
        ('admit := {"allow": input.context == {}}', True, "decided"),
        ("", True, "decided"),
    ],
)
async def test_a_plan_tells_what_the_first_question_would_be_answered(rule: str, allowed: bool, reason: str) -> None:
    text = workflow("context").replace("/ 0", "+ 0")
    planned = build(load_text(text, filename="w.yaml", actions=catalog), {"one": 1}, action=action, endpoints={})
    shown = await decided(planned, rego('decision := {"allow": true, "reasons": ["decided"]}\n' + rule))
    (step,) = shown.steps
    assert step.decision.allow is allowed
    assert reason in step.decision.reasons[0]


@pytest.mark.parametrize("setup", ["postgresql"])
def test_every_engine_and_ledger_asks_first(bench: Bench, setup: str) -> None:
    with bench.setup(setup) as chosen:
        text = workflow("context", name="admission_engines", more=OTHERS)
        outcome = run(bench, text, SAMPLE, ledger_url=chosen.ledger_url)
    assert outcome.exit_code is ExitCode.REFUSED
    assert outcome.steps == {"work": StepState.REFUSED, "after": StepState.SKIPPED, "beside": StepState.REFUSED}
    assert "not known to this policy" in outcome.reason
