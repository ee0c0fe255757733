"""Recorded decisions as events of OPA's decision log, so that what reads those reads ours.

The format is that of "Decision Logs" in OPA's documentation: `labels`, `decision_id`, `bundles`, `path`, `input`,
`result`, `requested_by`, `timestamp`; what was masked is listed in `erased` and `masked`. `result` is what the engine
said and is left out where it said nothing that is JSON; what was obeyed is in `custom`, with the place in our history.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC
from types import NoneType
from typing import Any

from orchestrator.errors import UsageError
from orchestrator.jsontypes import JsonObject
from orchestrator.policy.engines.rego.engine import RegoEngine
from orchestrator.policy.engines.rego.problems import reason_of
from orchestrator.policy.review.recorded import RecordedDecision
from orchestrator.version import __version__

MASK_RULE = "data.system.log.mask"
"""The rule of OPA that names what is taken out of an event; its `input` is the event."""

_MASKABLE = ("input", "result")

Masks = Callable[[JsonObject], Iterable[object]]
"""Given an event, what is taken out of it: JSON pointers (RFC 6901), or `{"op", "path", "value"}` as in OPA."""


def masks_of(pointers: Sequence[str], engine: RegoEngine | None) -> Masks:
    """These pointers, and what the rule `data.system.log.mask` of the policies says to each event, if they have it.

    The masks raise UsageError where the rule is in error: an event is not given out then.
    """
    asks = engine is not None and any(rule.name == MASK_RULE for rule in engine.rules())

    def masks(event: JsonObject) -> Iterable[object]:
        if engine is None or not asks:
            return pointers
        try:
            said = engine.evaluate(MASK_RULE, event)
        except (RuntimeError, ValueError) as error:
            raise UsageError(f"the rule {MASK_RULE} cannot be evaluated: {reason_of(error)}") from error
        if not isinstance(said, list | set | frozenset | NoneType):
            raise UsageError(f"the rule {MASK_RULE} is not a set of masks")
        return [*pointers, *(said or ())]

    return masks


def log_event(recorded: RecordedDecision) -> dict[str, Any]:
    """One decision as an event, with nothing taken out."""
    event: dict[str, Any] = {
        "labels": {"app": "credential-orchestrator", "version": __version__, "engine": recorded.engine},
        "decision_id": recorded.decision_id or f"{recorded.key}/{recorded.question.value}",
        "bundles": {"policies": {"revision": recorded.revision}},
        "path": f"orchestrator/{recorded.question.value}",
        "input": copy.deepcopy(recorded.input),
        "requested_by": recorded.key,
        "timestamp": recorded.time.astimezone(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z"),
        "custom": {
            "run": recorded.run,
            "workflow": recorded.workflow,
            "step": recorded.step,
            "attempt": recorded.attempt,
            "input_digest": recorded.input_digest,
            "allow": recorded.allow,
            "reasons": list(recorded.reasons),
            "obligations": recorded.obligations,
        },
    }
    if recorded.answer is not None:
        event["result"] = copy.deepcopy(recorded.answer)
    return event


def masked(event: dict[str, Any], masks: Iterable[object]) -> dict[str, Any]:
    """The event without what the masks name; a path that is not there is none. Changes `event`.

    Raises UsageError for a mask that cannot be read, or that would reach beyond `input` and `result`: an event that
    may hold what it should not is not given out.
    """
    erased, replaced = [], []
    for mask in masks:
        operation, path, value = _read(mask)
        holder, last = _holder(event, path)
        if holder is None:
            if operation == "remove" or not _put(event, path, value):
                continue
            replaced.append(path)
        elif operation == "remove":
            del holder[last]
            erased.append(path)
        else:
            holder[last] = value
            replaced.append(path)
    if erased:
        event["erased"] = sorted(erased)
    if replaced:
        event["masked"] = sorted(replaced)
    return event


def _read(mask: object) -> tuple[str, str, Any]:
    operation, path, value = "remove", mask, None
    if isinstance(mask, Mapping):
        operation, path, value = mask.get("op", "remove"), mask.get("path"), mask.get("value")
    first = path.split("/")[1] if isinstance(path, str) and path.startswith("/") else ""
    if operation not in ("remove", "upsert") or first not in _MASKABLE:
        raise UsageError(
            f"a mask cannot be obeyed: {mask!r}",
            hint='write a JSON pointer such as /input/run/inputs, or {"op": "upsert", "path": ..., "value": ...}',
        )
    return str(operation), str(path), value


def _parts(path: str) -> list[str]:
    return [part.replace("~1", "/").replace("~0", "~") for part in path.split("/")[1:]]


def _holder(event: Any, path: str) -> tuple[Any, Any]:
    """The object or list that holds what the pointer names, and where in it; None if it is not there."""
    *way, last = _parts(path)
    for part in way:
        event = _member(event, part)
    if isinstance(event, dict):
        return (event, last) if last in event else (None, last)
    if isinstance(event, list) and last.isdecimal() and int(last) < len(event):
        return event, int(last)
    return None, last


def _member(holder: Any, part: str) -> Any:
    if isinstance(holder, dict):
        return holder.get(part)
    if isinstance(holder, list) and part.isdecimal() and int(part) < len(holder):
        return holder[int(part)]
    return None


def _put(event: Any, path: str, value: Any) -> bool:
    """Add a member to an object that is there; whether there is one."""
    *way, last = _parts(path)
    for part in way:
        event = _member(event, part)
    if not isinstance(event, dict):
        return False
    event[last] = value
    return True
