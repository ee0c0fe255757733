"""What the language says of steps at the end, of steps for items, and of the variables of expressions."""

from __future__ import annotations

from typing import Any, cast

import pytest

from orchestrator.actions.catalog import action, catalog
from orchestrator.errors import InvalidExpression
from orchestrator.ledger.states import StepState
from orchestrator.planning.graph import dependencies
from orchestrator.planning.plan import build
from orchestrator.planning.readiness import certainly_false, lacking
from orchestrator.runs.types import RunProgress, RunRequest
from orchestrator.workflow.expressions import evaluate
from orchestrator.workflow.inputs import bind_inputs
from orchestrator.workflow.loader import LoadedWorkflow, load_text
from orchestrator.workflow.problems import InvalidWorkflow


def read(steps: str, top: str = "", directory: str = "") -> LoadedWorkflow:
    text = f"version: 1\nname: w\nagent: a\n{top}\nsteps:\n{steps}"
    return load_text(text, filename="w.yaml", actions=catalog, directory=directory)


def told(steps: str, top: str = "") -> str:
    with pytest.raises(InvalidWorkflow) as caught:
        read(steps, top)
    return "\n".join(f"{each.message} / {each.hint}" for each in caught.value.problems)


def step(name: str, more: str = "", words: str = "/bin/true") -> str:
    return f"  {name}:\n    action: exec\n    with: {{ command: [{words}] }}\n    outputs: [stdout]\n{more}"


@pytest.mark.parametrize(
    ("steps", "waits"),
    [
        (step("a") + step("b") + step("z", "    when: always\n"), {"z": "a b"}),
        (step("a") + step("b", "    needs: [a]\n") + step("z", "    when: on_failure\n"), {"b": "a", "z": "a b"}),
        (step("a") + step("b") + step("z", "    when: always\n    needs: [a]\n"), {"z": "a"}),
        (
            step("a") + step("y", "    when: on_failure\n") + step("z", "    when: always\n"),
            {"y": "a", "z": "a"},
        ),
        (
            step("a") + step("z", "    when: always\n    needs: [a]\n") + step("b", "    needs: [z]\n"),
            {"z": "a", "b": "z"},
        ),
        (step("a") + step("b") + step("z", "    when: always\n    if: steps.a.state == 'failed'\n"), {"z": "a b"}),
        (step("a") + step("b", "    for_each: ${{ steps.a.output.stdout }}\n"), {"b": "a"}),
        (step("a") + step("b", "    for_each: ['${{ steps.a.output.stdout }}']\n"), {"b": "a"}),
    ],
)
def test_what_a_step_waits_for(steps: str, waits: dict[str, str]) -> None:
    found = dependencies(read(steps).workflow)
    assert {name: " ".join(sorted(each)) for name, each in found.items() if each} == waits


@pytest.mark.parametrize(
    ("steps", "said"),
    [
        (step("a", "    when: sometimes\n"), "on_success"),
        (step("a", "    max_parallel: 2\n"), "`max_parallel` says for how many items"),
        (step("a", "    for_each: [1]\n    max_parallel: 0\n"), "expected 1 or more"),
        (step("a", "    for_each: [1]\n    max_parallel: 101\n"), "expected 100 or less"),
        (step("a", "    for_each: abc\n"), "`for_each` is a list, or an expression that gives one"),
        (step("a", "    for_each: '${{ item }}'\n"), "`item` is not known here"),
        (step("a", "    for_each: [1]\n    if: item == 1\n"), "`item` is not known here"),
        (step("a", "    for_each: [1]\n    if: step.attempt == 1\n"), "`step` is not known here"),
        (step("a", words="'${{ item }}'"), "`item` is not known here"),
        (step("a", words="'${{ step.index }}'"), "`step.index` is not known"),
        (step("a", words="'${{ step }}'"), "`step` is not known"),
        (step("a", words="'${{ step.secret }}'"), "`step.secret` is not known"),
        (step("a", words="'${{ workflow.path }}'"), "`workflow.path` is not known"),
        (step("a", words="'${{ run.inputs }}'"), "`run.inputs` is not known"),
        (step("a") + step("b", words="'${{ steps.a.reason }}'"), "`steps.a` has `output`, `state` and `error`"),
        (step("a", "    for_each: [1]\n") + step("b", words="'${{ steps.a.output.stdout }}'"), "steps.a.output.items"),
        (step("a", "    for_each: [1]\n") + step("b", words="'${{ steps.a.output.items }}'"), "gives a list"),
        (step("a", "    for_each: '${{ steps.a.output.items }}'\n"), "refers to itself"),
        (
            step("a", "    needs: [z]\n") + step("z", "    when: always\n"),
            "the steps wait for each other: a -> z -> a",
        ),
    ],
)
def test_what_is_wrong_is_said_before_anything_runs(steps: str, said: str) -> None:
    assert said in told(steps)


@pytest.mark.parametrize(
    ("context", "said"),
    [
        ("${{ run.started }}", "`run.started` is not known here"),
        ("${{ step.id }}", "may refer to inputs, workflow, run"),
    ],
)
def test_of_a_run_that_has_not_begun_the_context_knows_less(context: str, said: str) -> None:
    assert said in told(step("a"), f"context: {{ c: '{context}' }}")


def test_a_secret_is_no_list_of_items() -> None:
    top = "inputs: { s: { type: string, secret: true } }"
    assert "may only be passed on whole" in told(step("a", "    for_each: ['${{ inputs.s }}']\n"), top)


def test_the_names_of_items_and_steps_may_be_those_of_loops() -> None:
    words = "'${{ [1, 2].map(item, item * 2).filter(step, step > 2).exists(workflow, workflow == 4) }}'"
    assert read(step("a", words=words))
    context: dict[str, Any] = {"item": {"x": 5}, "inputs": {"l": [1, 2]}}
    assert evaluate("${{ inputs.l.map(item, item + 1) }}", context) == [2, 3]
    assert evaluate("${{ item }}", context) == {"x": 5}
    assert evaluate("${{ item.x + 1 }}", context) == 6
    assert evaluate("n=${{ item.x }}", context) == "n=5"


def test_tools_have_neither_items_nor_ends() -> None:
    tools = (
        "version: 1\nname: w\ntools:\n  t:\n    description: d\n    for_each: [1]\n    action: exec\n"
        "    with: { command: [/bin/true, '${{ item }}', '${{ step.attempt }}', '${{ workflow.dir }}'] }\n"
    )
    with pytest.raises(InvalidWorkflow) as caught:
        load_text(tools, filename="w.yaml", actions=catalog)
    said = "\n".join(each.message for each in caught.value.problems)
    assert "for_each" in said
    assert "`item` is not known here" in said
    assert "`step` is not known here" in said
    assert "workflow" not in said


def test_a_plan_says_when_and_for_which_items_and_what_is_known_of_a_command() -> None:
    loaded = read(
        step("a", "    for_each: [1, 2, 3]\n    max_parallel: 2\n", words="/bin/echo, '${{ item }}', x")
        + step("b", "    for_each: '${{ steps.a.output.items }}'\n")
        + step("z", "    when: always\n", words="/bin/echo, '${{ run.started }}'")
        + step("y", "    when: on_failure\n", words="'${{ steps.a.error }}'"),
    )
    planned = build(loaded, {}, action=action, endpoints={})
    shown = {each.request.step: each for each in planned.steps}
    assert [(each.when, each.for_each, each.max_parallel) for each in shown.values()] == [
        ("on_success", 3, 2),
        ("on_success", "${{ steps.a.output.items }}", 1),
        ("always", None, 1),
        ("on_failure", None, 1),
    ]
    view = shown["a"].request.action_view
    assert (view["called"], view["arguments"], view["partial"]) == ("/bin/echo", 2, True)
    assert shown["y"].request.action_view["partial"] is True
    assert "called" not in shown["y"].request.action_view


def test_where_the_folder_is_not_known_its_name_is_an_error() -> None:
    there = read(step("a", words="/bin/echo, '${{ workflow.dir }}'"), directory="/srv/flows")
    assert there.variables == {"name": "w", "dir": "/srv/flows"}
    nowhere = read(step("a", words="/bin/echo, '${{ workflow.dir }}'"))
    with pytest.raises(InvalidExpression, match="there is no `dir`"):
        evaluate("${{ workflow.dir }}", {"workflow": nowhere.variables, "inputs": {}})


def test_what_runs_at_the_end_needs_its_endpoints_although_what_it_waits_for_never_runs() -> None:
    steps = step("a", "    if: inputs.go\n") + step(
        "z", "    when: always\n", words="/bin/echo, '${{ endpoints.crm }}'"
    )
    loaded = read(steps, "inputs: { go: { type: boolean } }")
    never = certainly_false(bind_inputs(loaded.workflow, {"go": False}), {})
    assert [each.message for each in lacking(loaded, {}, never=never)] == ["there is no endpoint `crm`"]
    ordinary = read(steps.replace("    when: always\n", "    needs: [a]\n"), "inputs: { go: { type: boolean } }")
    assert lacking(ordinary, {}, never=never) == []


def test_who_is_told_must_be_known_where_that_is_looked_at() -> None:
    loaded = read(step("a"), "notify: [{ to: oncall }, { to: on-duty }, { to: audit, when: always }]")
    never = certainly_false({}, {})
    assert lacking(loaded, {}, never=never) == []
    found = lacking(loaded, {}, never=never, destinations=["audit"])
    assert [(each.line, each.message, each.hint) for each in found] == [
        (4, "the settings know no destination `oncall`", "set ORCHESTRATOR_NOTIFY__ONCALL to the URL of a webhook"),
        (
            4,
            "the settings know no destination `on-duty`",
            "set `on-duty` under [notify] in the file that ORCHESTRATOR_CONFIG names to the URL of a webhook: no shell "
            "exports such a variable",
        ),
    ]


def test_expressions_see_how_steps_ended_and_not_how_each_item_did() -> None:
    """No name of the language is that of an item, and thousands of results would be copied for each of them."""
    loaded = read(step("first") + step("s", "    for_each: [a, b, c]\n") + step("last"))
    request = RunRequest(run_id="r", loaded=loaded, inputs={})
    progress = RunProgress(request=request, leases=cast(Any, None), context={}, public_inputs={})
    progress.items.update({"s[0]": "a", "s[1]": "b", "s[2]": "c"})
    for name in ("first", "s[0]", "s[1]"):
        progress.ended(name, StepState.SUCCEEDED, {"stdout": name})
    seen = progress.expression_context({}, "s[2]", 1)
    assert (seen["item"], seen["step"]["index"]) == ("c", 2)
    assert seen["steps"] == {"first": {"state": "succeeded", "output": {"stdout": "first"}, "error": ""}}
    assert evaluate("${{ size(steps) }}", seen) == 1
