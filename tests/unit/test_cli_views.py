"""How a plan and a list of provisioning changes look."""

import io
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import pytest
from rich.console import Console

from orchestrator.cli.commands.provision import show
from orchestrator.cli.display.plan_view import PlanView, StepView, plan_json, print_plan
from orchestrator.cli.dry_run import decided
from orchestrator.grants.privileges import Privilege
from orchestrator.grants.scope import Scope
from orchestrator.policy.engines.rego.engine import RegoEngine
from orchestrator.policy.types import Decision, PolicyRequest
from orchestrator.workflow.models.steps import When

ENGINE = RegoEngine.from_directory(Path(__file__).parents[2] / "workflows" / "policies")

ALLOWED = Decision(True, ("permitted",), "rego", "sha256:00")
READ = StepView(
    step="read",
    action="postgres.query",
    does={"verbs": ["select"]},
    partial=False,
    needs=(),
    condition=None,
    timeout=30,
    attempts=1,
    scopes=(Scope("db", "database", "database/creds/feedback-read", 120, connection="support", role="feedback-read"),),
    decision=ALLOWED,
)
NOTIFY = StepView(
    step="notify",
    action="slack.post_message",
    does={"channel": "#support", "partial": True},
    partial=True,
    needs=("read",),
    condition="size(steps.read.output.rows) > 0",
    timeout=90,
    attempts=3,
    scopes=(Scope("bot", "secret", "secret/data/slack/support-bot", 120, keys=("token",)),),
    decision=ALLOWED,
)
PLAN = PlanView(
    workflow="customer_feedback",
    digest="sha256:" + "ab" * 32,
    agent="feedback-assistant",
    inputs={"limit": 5},
    steps=(READ, NOTIFY),
)


def printed(plan: PlanView, width: int = 110) -> list[str]:
    screen = Console(record=True, width=width, file=io.StringIO())
    print_plan(plan, screen)
    return [line.rstrip() for line in screen.export_text().splitlines()]


def test_a_plan_is_a_tree_of_exact_scopes() -> None:
    assert printed(PLAN) == [
        "customer_feedback for feedback-assistant  sha256:abababababab",
        "├── inputs limit=5",
        "├── read  postgres.query  30s",
        "│   ├── does verbs select",
        "│   ├── grant db: database support as feedback-read, 2m  database/creds/feedback-read",
        "│   └── policy allowed",
        "└── notify  slack.post_message  1m30s, up to 3 attempts",
        "    ├── after read",
        "    ├── if size(steps.read.output.rows) > 0",
        "    ├── does channel #support",
        "    ├── grant bot: secret secret/data/slack/support-bot [token], 2m",
        "    └── policy allowed so far, decided at run time",
        "2 steps, 2 credentials; nothing was asked of Vault",
    ]


def test_a_step_that_the_policy_denies_stands_out_with_every_reason() -> None:
    denied = replace(READ, decision=Decision(False, ("no such role", "too long"), "rego", "sha256:00"))
    lines = printed(replace(PLAN, steps=(denied, NOTIFY)))
    assert "│   └── policy DENIED: no such role; too long" in lines
    assert lines[-1] == "2 steps, 2 credentials, 1 DENIED; nothing was asked of Vault"


def test_at_eighty_columns_nothing_is_cut_off() -> None:
    lines = printed(PLAN, width=80)
    assert max(map(len, lines)) <= 80
    assert "…" not in "".join(lines)


def test_the_same_plan_is_the_same_text_for_programs() -> None:
    told = json.loads(json.dumps(plan_json(PLAN)))
    assert told["allowed"] is True
    assert told["steps"][0] == {
        "step": "read",
        "action": "postgres.query",
        "does": {"verbs": ["select"]},
        "needs": [],
        "when": "on_success",
        "if": None,
        "timeout": 30,
        "attempts": 1,
        "grants": [
            {
                "name": "db",
                "kind": "database",
                "resource": "database/creds/feedback-read",
                "ttl": 120,
                "connection": "support",
                "role": "feedback-read",
            }
        ],
        "decision": {
            "allow": True,
            "reasons": ["permitted"],
            "at_run_time": False,
            "engine": "rego",
            "revision": "sha256:00",
            "obligations": {},
        },
    }


@dataclass(frozen=True)
class Planned:
    request: PolicyRequest
    needs: tuple[str, ...] = ()
    condition: str | None = None
    timeout: int = 30
    attempts: int = 1
    when: When = "on_success"
    for_each: str | int | None = None
    max_parallel: int = 1
    tool: None = None
    items: tuple[PolicyRequest, ...] = ()
    unasked: int = 0


@dataclass(frozen=True)
class Steps:
    steps: tuple[Planned, ...]


async def test_a_dry_run_asks_the_policy_about_every_step() -> None:
    query = PolicyRequest(
        workflow="customer_feedback",
        workflow_digest="sha256:00",
        run="plan",
        trigger="plan",
        inputs={"limit": 5},
        context={},
        step="read",
        attempt=1,
        agent="feedback-assistant",
        action="postgres.query",
        action_view={"verbs": ["select"]},
        grants=(
            replace(READ.scopes[0], privileges=(Privilege("select", "public", "customer_feedback", ("comment",)),)),
        ),
    )
    later = replace(query, step="notify", action="slack.post_message", action_view={"partial": True}, grants=())
    worse = replace(query, step="clear", action_view={"verbs": ["delete"]})
    view = await decided(Steps((Planned(query), Planned(later), Planned(worse))), ENGINE)
    assert [(step.step, step.decision.allow, step.partial) for step in view.steps] == [
        ("read", True, False),
        ("notify", True, True),
        ("clear", False, False),
    ]
    assert [step.step for step in view.denied] == ["clear"]
    assert "│   └── policy allowed so far, decided at run time" in printed(view)


@dataclass(frozen=True)
class Changed:
    kind: Literal["create", "change", "delete"]
    resource: str
    before: str
    after: str

    def render(self) -> str:
        return f"{'+' if self.kind == 'create' else '-'} {self.resource}"


CHANGES = [Changed("create", "policy wf/read", "", "path {}"), Changed("delete", "policy wf/old", "path {}", "")]


@pytest.mark.parametrize(
    ("changes", "done", "last"),
    [
        (CHANGES, False, "1 to be created, 1 to be deleted"),
        (CHANGES, True, "1 created, 1 deleted"),
        ([], False, "nothing to change: what is declared is installed"),
    ],
)
def test_changes_are_shown_as_a_diff_with_a_count(changes: list[Changed], done: bool, last: str) -> None:
    screen = Console(record=True, width=80, file=io.StringIO())
    show(changes, as_json=False, done=done, screen=screen)
    assert screen.export_text().splitlines() == [*(change.render() for change in changes), last]


def test_changes_are_json_for_programs(capsys: pytest.CaptureFixture[str]) -> None:
    show(CHANGES[:1], as_json=True)
    assert json.loads(capsys.readouterr().out) == {
        "applied": False,
        "changes": [{"kind": "create", "resource": "policy wf/read", "before": "", "after": "path {}"}],
        "notes": [],
    }
