"""A plan on a terminal: a tree of steps with exactly what each will be allowed to do."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from orchestrator.cli.display.terminal import console
from orchestrator.grants.fields import format_duration
from orchestrator.grants.scope import Scope
from orchestrator.jsontypes import JsonObject, JsonValue, counted
from orchestrator.policy.types import Decision
from orchestrator.presentation.terms import inputs_words
from orchestrator.workflow.models.steps import When
from orchestrator.workflow.models.tools import Tool
from orchestrator.workflow.tools.arguments import arguments_schema, bounds_words

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text
    from rich.tree import Tree

_ITEMS_SHOWN = 5
"""Of how many items that the policy denies the places are told."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepView:
    """One step as it is shown. `does` is the action's own public view of its parameters; `partial` says that
    some of them are only known at run time, when the policy is asked again."""

    step: str
    action: str
    does: JsonObject
    partial: bool
    needs: Sequence[str]
    condition: str | None
    timeout: int
    attempts: int
    when: When = "on_success"
    for_each: str | int | None = None
    """The expression that gives the items for each of which it is carried out, or how many are written out."""
    max_parallel: int = 1
    tool: Tool | None = None
    """What an agent chooses and how often, where it is the call of a tool."""
    scopes: Sequence[Scope]
    decision: Decision | None
    """None: the policy was not asked. Where it was asked about items, the first denial of them if there is one."""
    items: Sequence[Decision] = ()
    """What it said to each item of a list that is known, in their order."""
    unasked: int = 0
    """How many items there are beyond these."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanView:
    """A plan as it is shown; `inputs` without the secret ones."""

    workflow: str
    digest: str
    agent: str
    inputs: JsonObject
    steps: Sequence[StepView]

    @property
    def denied(self) -> Sequence[StepView]:
        """The steps that the policy would not allow."""
        return [step for step in self.steps if step.decision is not None and not step.decision.allow]

    @property
    def asked(self) -> bool:
        """Whether the policy was asked about every step."""
        return all(step.decision is not None for step in self.steps)


def print_plan(plan: PlanView, screen: Console | None = None) -> None:
    """The tree, and one line with the count."""
    from rich.text import Text
    from rich.tree import Tree

    screen = screen or console()
    title = Text.assemble((plan.workflow, "bold"), f" for {plan.agent or 'any agent'}  ", (plan.digest[:19], "dim"))
    tree = Tree(title, guide_style="dim")
    if plan.inputs:
        tree.add(Text.assemble(("inputs ", "dim"), inputs_words(plan.inputs)))
    for step in plan.steps:
        _add_step(tree, step, plan.agent)
    screen.print(tree)
    grants = sum(len(step.scopes) for step in plan.steps)
    kind = "tool" if any(step.tool for step in plan.steps) else "step"
    words = [counted(len(plan.steps), kind), counted(grants, "credential")]
    words += [f"{len(plan.denied)} DENIED"] if plan.denied else []
    whom = "Vault" if plan.asked else "Vault, and nothing of the policy"
    screen.print(f"{', '.join(words)}; nothing was asked of {whom}")


def _add_step(tree: Tree, step: StepView, agent: str) -> None:
    from rich.text import Text

    tries = f", up to {step.attempts} attempts" if step.attempts > 1 else ""
    branch = tree.add(
        Text.assemble((step.step, "bold"), f"  {step.action}  ", (f"{format_duration(step.timeout)}{tries}", "dim"))
    )
    at_the_end = {"on_failure": ", where something failed", "always": ", however they end"}
    for name, words in (
        ("after", ", ".join(step.needs) + at_the_end.get(step.when, "")),
        ("if", step.condition or ""),
        ("for each", _items_words(step)),
        ("does", does_words(step)),
    ):
        if words:
            branch.add(Text.assemble((f"{name} ", "dim"), words))
    if step.tool is not None:
        for name, words in _tool_words(step.tool):
            branch.add(Text.assemble((f"{name} ", "dim"), words))
    for scope in step.scopes:
        branch.add(Text.assemble(("grant ", "dim"), *_grant_words(scope)))
    branch.add(_policy(step, agent))


def _grant_words(scope: Scope) -> Iterator[str | tuple[str, str]]:
    """What it opens, and where it comes from, unless that is said already."""
    told = scope.describe()
    yield f"{scope.name}: {told}"
    if scope.resource not in told:
        yield f"  {scope.resource}", "dim"


def _items_words(step: StepView) -> str:
    if step.for_each is None:
        return ""
    items = f"of {counted(step.for_each, 'item')}" if isinstance(step.for_each, int) else f"item of {step.for_each}"
    return f"{items}, {step.max_parallel} at a time, each with credentials of its own"


def _tool_words(tool: Tool) -> Iterator[tuple[str, str]]:
    """What an agent chooses when it calls it, and how often it may."""
    for name, argument in tool.call.items():
        yield "chooses", f"{name}: {bounds_words(argument)}"
    limits = [f"{counted(tool.max_calls, 'call')} a task"] if tool.max_calls else []
    limits += [f"{tool.max_open} at a time"] if tool.max_open else []
    if limits:
        yield "at most", ", ".join(limits)


def _policy(step: StepView, agent: str) -> Text:
    from rich.text import Text

    decision = step.decision
    if decision is None and not agent:
        return Text.assemble(("policy ", "dim"), ("not asked: --agent says who would call it", "yellow"))
    if decision is None:
        return Text.assemble(("policy ", "dim"), ("not asked: it is a service, and --ask-policy asks it", "yellow"))
    if decision.allow:
        asked = f" for {counted(len(step.items), 'item')}" if step.items else ""
        more = f" and {step.unasked} more" if step.unasked else ""
        later = f"allowed{asked} so far,{more} decided at run time" if step.partial else f"allowed{asked}"
        return Text.assemble(("policy ", "dim"), (later, "green"))
    return Text.assemble(("policy ", "dim"), (f"DENIED{_which(step)}: " + "; ".join(decision.reasons), "red"))


def _which(step: StepView) -> str:
    """The items that are denied, by their places from 0."""
    if not step.items:
        return ""
    denied = [index for index, each in enumerate(step.items) if not each.allow]
    shown = ", ".join(map(str, denied[:_ITEMS_SHOWN]))
    more = f" and {len(denied) - _ITEMS_SHOWN} more" if len(denied) > _ITEMS_SHOWN else ""
    word = "item" if len(denied) == 1 else "items"
    return f" for {word} {shown}{more} of {len(step.items) + step.unasked}"


def does_words(step: StepView) -> str:
    """`verbs select`, `method POST, path /v1/translate`: what the action says of itself in public."""
    return ", ".join(f"{name} {_words(value)}" for name, value in step.does.items() if name != "partial")


def _words(value: JsonValue) -> str:
    if isinstance(value, list | tuple):
        return " ".join(map(str, value)) or "none"
    if isinstance(value, Mapping):
        return "; ".join(f"{name} {_words(item)}" for name, item in value.items() if item) or "none"
    return str(value)


def plan_json(plan: PlanView) -> Mapping[str, object]:
    """The same for programs. The same plan is the same text: no time, and of this machine's paths only those that its
    steps may reach. Where the policy was not asked `allowed` is null, and so is each `decision`."""
    return {
        "workflow": plan.workflow,
        "digest": plan.digest,
        "agent": plan.agent,
        "inputs": plan.inputs,
        "allowed": not plan.denied if plan.asked else None,
        "steps": [
            {
                "step": step.step,
                "action": step.action,
                "does": step.does,
                "needs": step.needs,
                "when": step.when,
                "if": step.condition,
                **({} if step.for_each is None else {"for_each": step.for_each, "max_parallel": step.max_parallel}),
                "timeout": step.timeout,
                "attempts": step.attempts,
                **({} if step.tool is None else {"tool": _tool_json(step.tool)}),
                "grants": [scope.as_json() for scope in step.scopes],
                "decision": _decision_json(step.decision, at_run_time=step.partial),
                **({} if not step.items else {"items": _items_json(step)}),
            }
            for step in plan.steps
        ],
    }


def _items_json(step: StepView) -> Mapping[str, object]:
    """How many items the policy was asked about and how many not, and which it denies."""
    denied = [
        {"index": index, "reasons": decision.reasons} for index, decision in enumerate(step.items) if not decision.allow
    ]
    return {"asked": len(step.items), "unasked": step.unasked, "denied": denied}


def _tool_json(tool: Tool) -> Mapping[str, object]:
    return {
        "description": tool.description,
        "arguments": arguments_schema(tool),
        "hand_over": tool.hand_over,
        "max_calls": tool.max_calls,
        "max_open": tool.max_open,
    }


def _decision_json(decision: Decision | None, *, at_run_time: bool) -> Mapping[str, object] | None:
    if decision is None:
        return None
    return {
        "allow": decision.allow,
        "reasons": decision.reasons,
        "at_run_time": at_run_time,
        "engine": decision.engine,
        "revision": decision.revision,
        "obligations": decision.obligations.as_json(),
    }
