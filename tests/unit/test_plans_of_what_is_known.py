"""A plan says all that is known of a step before the run: the names of what it is given, and each item of its list."""

from __future__ import annotations

import asyncio
import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from orchestrator.actions.catalog import action, catalog
from orchestrator.cli.display.plan_view import PlanView, plan_json, print_plan
from orchestrator.cli.dry_run import decided
from orchestrator.doctor.policies import policies
from orchestrator.doctor.subject import Subject
from orchestrator.errors import UsageError
from orchestrator.grants.scope import Scope
from orchestrator.jsontypes import JsonObject
from orchestrator.planning.plan import build
from orchestrator.policy.engines.rego.engine import PolicySource, RegoEngine
from orchestrator.policy.types import Decision, PolicyEngine, PolicyRequest
from orchestrator.workflow.inputs import bind_inputs
from orchestrator.workflow.loader import LoadedWorkflow, load_text

MODULE = "def build(**given): return given\n"
READ = "  read: { action: exec, with: { command: [/bin/echo], output: json }, outputs: [json] }\n"
LATER = "'${{ steps.read.output.json }}'"


def read(steps: str, top: str = "", directory: str = "") -> LoadedWorkflow:
    text = f"version: 1\nname: w\nagent: a\n{top}\nsteps:\n{steps}"
    return load_text(text, filename="w.yaml", actions=catalog, directory=directory)


def viewed(tmp_path: Path, given: str, *, name: str = "python", more: str = "") -> JsonObject:
    """What is said of a step whose parameters are `given`."""
    (tmp_path / "reports.py").write_text(MODULE)
    loaded = read(READ + f"  s: {{ action: {name}, {more} with: {{ {given} }} }}\n", directory=str(tmp_path))
    (view,) = (
        each.request.action_view
        for each in build(loaded, {}, action=action, endpoints={}).steps
        if each.request.step == "s"
    )
    return view


AWS = "service: s3, operation: ListBuckets, region: eu-central-1, grant: s"
AWS_GRANT = (
    "grants: { s: { kind: aws, issuer: i, role: r, actions: ['s3:ListAllMyBuckets'], resources: ['*'], "
    "wildcards: [resources] } },"
)
CALL = 'callable: "reports:build", path: [.]'


@pytest.mark.parametrize(
    ("given", "names", "partial"),
    [
        (CALL, [], False),
        (f"{CALL}, arguments: {{ a: 1, b: x }}", ["a", "b"], False),
        (f"{CALL}, arguments: {{ a: {LATER} }}", ["a"], True),
        (f"{CALL}, arguments: {{ a: 1, b: {LATER}, c: [{LATER}], d: {{ e: {LATER} }} }}", ["a", "b", "c", "d"], True),
        (f"{CALL}, arguments: {LATER}", None, True),
        (f"{CALL}, arguments: {{ a: 1 }}, max_bytes: {LATER}", ["a"], True),
    ],
)
def test_arguments_have_their_names_in_a_plan_whatever_their_values_will_be(
    tmp_path: Path, given: str, names: list[str] | None, partial: bool
) -> None:
    view = viewed(tmp_path, given)
    assert view.get("arguments") == names
    assert view.get("partial", False) is partial
    assert view["callable"] == "reports:build"


@pytest.mark.parametrize(
    ("name", "given", "shown", "hidden"),
    [
        (
            "aws.call",
            f"{AWS}, parameters: {{ A: {LATER} }}",
            ("A",),
            "",
        ),
        (
            "aws.call",
            f"{AWS}, parameters: {LATER}",
            (),
            "parameters",
        ),
        ("exec", f"command: [/bin/echo, {LATER}], environment: {{ LEVEL: {LATER} }}", ("LEVEL",), ""),
        ("exec", f"command: [/bin/echo], environment: {LATER}", (), "environment"),
        ("exec", f"command: [{LATER}, x]", (), "program"),
        ("http.request", f"url: 'https://a.example/', follow_redirects: {LATER}", ("/",), "follow_redirects"),
    ],
)
def test_nothing_is_said_of_a_parameter_of_which_nothing_is_known(
    tmp_path: Path, name: str, given: str, shown: tuple[str, ...], hidden: str
) -> None:
    view = viewed(tmp_path, given, name=name, more=AWS_GRANT if name == "aws.call" else "")
    assert view["partial"] is True
    assert hidden not in view
    assert all(f'"{word}"' in json.dumps(view) for word in shown)
    assert "known at run time" not in json.dumps(view)


@pytest.mark.parametrize(
    ("scope", "line"),
    [
        (Scope("bot", "secret", "secret/data/bot", 60, keys=("token",)), "secret secret/data/bot [token], 1m"),
        (Scope("k", "dynamic", "consul/creds/ops", 60), "dynamic consul/creds/ops, 1m"),
        (Scope("x", "certificate", "pki/issue/web", 60), "certificate of pki/issue/web, 1m"),
        (Scope("o", "otp", "totp/code/door", 60), "otp totp/code/door, 1m"),
        (
            Scope("db", "database", "database/creds/r", 60, connection="c", role="r"),
            "database c as r, 1m  database/creds/r",
        ),
    ],
)
def test_a_plan_says_once_where_a_credential_comes_from(scope: Scope, line: str) -> None:
    view = planned(READ)
    step = view.steps[0]
    shown = printed(PlanView(**{**_fields(view), "steps": (_with_scope(step, scope),)}))
    assert [each.partition("grant ")[2] for each in shown if "grant " in each] == [f"{scope.name}: {line}"]
    assert shown[-1].startswith("1 step, 1 credential; ")


def _fields(view: PlanView) -> dict[str, Any]:
    return {name: getattr(view, name) for name in ("workflow", "digest", "agent", "inputs")}


def _with_scope(step: Any, scope: Scope) -> Any:
    return replace(step, scopes=(scope,))


NO_THIRD = """package orchestrator
default decision := {"allow": false, "reasons": ["nothing allows it"]}
decision := {"allow": true} if not input.step.index
decision := {"allow": true} if { input.step.index != 2; not forbidden }
forbidden if input.action.called == "/bin/false"
"""


def planned(steps: str, top: str = "", inputs: JsonObject | None = None, policy: str | None = None) -> PlanView:
    loaded = read(steps, top)
    bound = bind_inputs(loaded.workflow, dict(inputs or {}))
    engine: PolicyEngine = RegoEngine.from_sources([PolicySource("p.rego", policy or NO_THIRD)])
    return asyncio.run(decided(build(loaded, bound, action=action, endpoints={}), engine))


def printed(view: PlanView) -> list[str]:
    screen = Console(record=True, width=120, file=io.StringIO())
    print_plan(view, screen)
    return [line.rstrip() for line in screen.export_text().splitlines()]


def step(items: str, words: str = "/bin/echo, '${{ item }}'") -> str:
    return f"  s:\n    for_each: {items}\n    action: exec\n    with: {{ command: [{words}] }}\n"


LIST = "inputs: { names: { type: array } }"


@pytest.mark.parametrize(
    ("items", "top", "inputs", "policy"),
    [
        ("[a, b]", "", {}, "allowed for 2 items"),
        ("[a]", "", {}, "allowed for 1 item"),
        ("[a, b, c, d]", "", {}, "DENIED for item 2 of 4: nothing allows it"),
        ("${{ inputs.names }}", LIST, {"names": ["a", "b", "c"]}, "DENIED for item 2 of 3: nothing allows it"),
        ("${{ inputs.names.filter(n, n != 'c') }}", LIST, {"names": ["a", "b", "c"]}, "allowed for 2 items"),
        (
            "${{ [context.first, 'b', run.trigger] }}",
            "context: { first: a }",
            {},
            "DENIED for item 2 of 3: nothing allows it",
        ),
        ("${{ inputs.names }}", LIST, {"names": []}, "allowed so far, decided at run time"),
    ],
)
def test_the_policy_is_asked_about_each_item_that_is_known(
    items: str, top: str, inputs: JsonObject, policy: str
) -> None:
    lines = printed(planned(step(items), top, inputs))
    assert [line.partition("policy ")[2] for line in lines if "policy " in line] == [policy]


def test_what_an_item_says_is_what_the_policy_sees() -> None:
    view = planned(step("[/bin/echo, /bin/false, /bin/echo]", "'${{ item }}'"))
    assert plan_json(view)["allowed"] is False
    (told,) = json.loads(json.dumps(plan_json(view)))["steps"]
    assert told["items"] == {
        "asked": 3,
        "unasked": 0,
        "denied": [{"index": 1, "reasons": ["nothing allows it"]}, {"index": 2, "reasons": ["nothing allows it"]}],
    }
    assert (told["for_each"], told["decision"]["allow"], told["decision"]["at_run_time"]) == (3, False, False)
    assert "DENIED for items 1, 2 of 3" in "\n".join(printed(view))


def test_a_long_list_is_asked_about_in_part_and_the_rest_is_counted() -> None:
    allowed = 'package orchestrator\ndecision := {"allow": true}\n'
    refused = allowed.replace("true", "false")
    names: JsonObject = {"names": [f"n{number}" for number in range(97)]}
    view = planned(step("${{ inputs.names }}"), LIST, names, allowed)
    assert "policy allowed for 50 items so far, and 47 more decided at run time" in "\n".join(printed(view))
    denied = printed(planned(step("${{ inputs.names }}"), LIST, names, refused))
    assert "DENIED for items 0, 1, 2, 3, 4 and 45 more of 97: " in "\n".join(denied)


def test_an_item_that_only_the_run_will_know_is_asked_about_without_its_value() -> None:
    view = planned(READ + step(f"[a, {LATER}, c]"))
    (told,) = (each for each in json.loads(json.dumps(plan_json(view)))["steps"] if each["step"] == "s")
    assert told["items"]["asked"] == 3
    assert [each["index"] for each in told["items"]["denied"]] == [2]
    assert told["decision"]["at_run_time"] is True


class Asked:
    """Allows everything and remembers what it was asked."""

    name = "asked"

    def __init__(self, *, admits: bool = True) -> None:
        self.requests: list[PolicyRequest] = []
        self.admissions: list[PolicyRequest] = []
        self.admits = admits

    async def decide(self, request: PolicyRequest) -> Decision:
        self.requests.append(request)
        return Decision(True, (), self.name, "r")

    async def admit(self, request: PolicyRequest) -> Decision:
        self.admissions.append(request)
        return Decision(self.admits, ("not today",), self.name, "r")


def asked(steps: str, *, admits: bool = True) -> tuple[Asked, PlanView]:
    engine = Asked(admits=admits)
    return engine, asyncio.run(decided(build(read(steps), {}, action=action, endpoints={}), engine))


def test_the_questions_of_a_plan_are_those_of_the_run() -> None:
    engine, _ = asked(step("[x, y]", "/bin/echo, '${{ item }}', '${{ step.index }}', '${{ step.id }}'"))
    assert [(each.index, each.action_view["arguments"], "partial" in each.action_view) for each in engine.requests] == [
        (0, 3, False),
        (1, 3, False),
    ]
    assert [each.index for each in engine.admissions] == [None, 0, 1]


def test_a_list_that_may_not_be_evaluated_is_one_denial() -> None:
    engine, view = asked(step("[x, y]"), admits=False)
    assert (engine.requests, [each.index for each in engine.admissions]) == ([], [None])
    assert "policy DENIED: not today" in "\n".join(printed(view))
    assert "items" not in json.loads(json.dumps(plan_json(view)))["steps"][0]


@pytest.mark.parametrize(
    ("items", "said"),
    [("[a, b]", "rego answers, and allows every step"), ("[a, b, c]", "step s of w is denied: nothing allows it")],
)
def test_the_doctor_asks_about_each_item_too(items: str, said: str) -> None:
    subject = Subject(
        vault=UsageError("no login"),
        policy=lambda: RegoEngine.from_sources([PolicySource("p.rego", NO_THIRD)]),
        ledger="",
        remember=lambda secret: None,
        workflows=[read(step(items))],
    )
    (finding,) = asyncio.run(policies(subject))
    assert finding.found == said
