"""What a model is told: what a call has given, or what went wrong and what it can do now. Nothing else gets out."""

from __future__ import annotations

import json
from collections.abc import Mapping

from mcp_types import CallToolResult, TextContent

from orchestrator.errors import Defect, StepFailed
from orchestrator.jsontypes import JsonObject, JsonValue
from orchestrator.server.api.documents import call_document
from orchestrator.server.api.problems import Kind, Problem, problem_of
from orchestrator.tasks.results import CallResult, CallState

META = "credential-orchestrator/"
"""Before the names of what is told beside a result (`_meta`): `task`, `call`, `state`, `approval`, `problem`."""

LONGEST_REASON = 2000

_NEXT = {
    Kind.INVALID: "Nothing was done. Correct the arguments as the tool's schema says, and call it again.",
    Kind.DENIED: "Nothing was done. The same call will be denied again: go on without it, or tell whom you work for.",
    Kind.NOT_FOUND: "Nothing was done. It may have ended, or never have been yours.",
    Kind.NOT_ALLOWED: "Nothing was done. Tell whom you work for.",
    Kind.BUDGET_SPENT: "Nothing was done.",
    Kind.CUT_OFF: "Nothing was done. Stop, and tell whom you work for: no further call is answered.",
    Kind.KEY_USED: "Nothing was done. Call it again: the client has used the number of a request twice.",
    Kind.DRAINING: "Nothing was done. Call it again in a moment.",
}

_UNAVAILABLE = "A service that this needs does not answer. Call it again in a minute, or tell whom you work for."
_DEFECT = "This ended by a defect of the server, whose log says more. Do not repeat it; tell whom you work for."


def told(result: CallResult, task_id: str, address: str | None) -> CallToolResult:
    """Of a call that has begun. `address` is of the database of a credential that is handed over."""
    meta: dict[str, JsonValue] = {"task": task_id, "call": result.call_id, "state": result.state.value}
    match result.state:
        case CallState.DONE:
            return _answer(dict(result.output or {}), meta)
        case CallState.HANDED_OVER:
            document = call_document(result, task_id, address)
            return _answer(document.model_dump(mode="json", include={"credential", "lease"}), meta)
        case CallState.WAITING:
            return _error(
                f"This needs somebody's approval, who has been asked (approval {result.approval}). Nothing was done "
                "yet. Call the same tool with the same arguments again later: that tells whether it was approved, and "
                "asks nobody anew. Until then go on with something else, or tell whom you work for what is waited for.",
                {**meta, "approval": result.approval},
            )
        case CallState.RUNNING:
            return _error(f"It goes on: {_cut(result.reason)}.", meta)
        case CallState.REFUSED:
            return _error(
                f"Denied: {_cut(result.reason)}. {_NEXT[Kind.DENIED]}", {**meta, "problem": Kind.DENIED.value}
            )
        case CallState.CANCELLED:
            return _error(f"It was cancelled before it was done: {_cut(result.reason)}.", meta)
        case CallState.FAILED:
            return _error(_failure(result), meta)


def told_error(error: Exception, task_id: str, *, over: str) -> CallToolResult:
    """Of a call that has not begun. `over` says what can be done where the task has ended."""
    problem = problem_of(error)
    meta: dict[str, JsonValue] = {**({"task": task_id} if task_id else {}), "problem": problem.kind.value}
    return _error(_words(problem, over), meta)


def _words(problem: Problem, over: str) -> str:
    if problem.kind is Kind.UNAVAILABLE:
        return f"Nothing was done. {_UNAVAILABLE}"
    if problem.kind is Kind.TASK_ENDED:
        return f"{_cut(problem.detail)}. Nothing was done. {over}"
    if problem.kind is Kind.BUDGET_SPENT and problem.hint:
        return f"{_cut(problem.detail)}. {_NEXT[problem.kind]} Now: {problem.hint}."
    if (what_now := _NEXT.get(problem.kind)) is not None:
        return f"{_cut(problem.detail)}. {what_now}"
    return _DEFECT


def _failure(result: CallResult) -> str:
    """An action's own words say what it failed of. What the orchestrator itself could not do is for its log."""
    if isinstance(result.error, Defect):
        return _DEFECT
    if result.error is not None and not isinstance(result.error, StepFailed):
        return _UNAVAILABLE if problem_of(result.error).kind is Kind.UNAVAILABLE else _DEFECT
    return f"It failed: {_cut(result.reason)}. Look whether other arguments help before you call it again."


def _cut(text: str) -> str:
    return text[:LONGEST_REASON].strip().rstrip(".")


def _answer(content: JsonObject, meta: Mapping[str, JsonValue]) -> CallToolResult:
    return CallToolResult(content=[_text(content)], structured_content=content, _meta=_named(meta))


def _error(words: str, meta: Mapping[str, JsonValue]) -> CallToolResult:
    return CallToolResult(content=[TextContent(text=words)], is_error=True, _meta=_named(meta))


def _text(content: JsonObject) -> TextContent:
    return TextContent(text=json.dumps(content, ensure_ascii=False))


def _named(meta: Mapping[str, JsonValue]) -> dict[str, JsonValue]:
    return {META + name: value for name, value in meta.items()}


def answer(content: JsonObject) -> CallToolResult:
    """An answer that is of no call."""
    return _answer(content, {})
