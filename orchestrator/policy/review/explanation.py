"""Why a recorded decision came out as it did: the rules that were true, and what would have been decided otherwise."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass

from orchestrator.jsontypes import JsonObject, JsonValue
from orchestrator.policy.documents import as_json
from orchestrator.policy.engines.rego.engine import RegoEngine
from orchestrator.policy.review.changes import Change, smallest_changes, words_of
from orchestrator.policy.review.recorded import RecordedDecision
from orchestrator.policy.types import Decision


@dataclass(frozen=True, slots=True)
class RuleValue:
    """A rule that had a value. `places` are its parts, `file:line` each."""

    name: str
    places: tuple[str, ...]
    value: JsonValue


@dataclass(frozen=True, slots=True)
class Explanation:
    """`now` is what the policies say that there are now, by which rules and changes are told."""

    recorded: RecordedDecision
    now: Decision
    rules: tuple[RuleValue, ...]
    changes: tuple[Change, ...]

    @property
    def same_policies(self) -> bool:
        """Whether those of now are the very ones that decided."""
        return self.recorded.engine == self.now.engine and self.recorded.revision == self.now.revision

    def as_json(self) -> JsonObject:
        """For scripts."""
        return {
            "run": self.recorded.run,
            "workflow": self.recorded.workflow,
            "step": self.recorded.step,
            "attempt": self.recorded.attempt,
            "time": self.recorded.time.isoformat(),
            "question": self.recorded.question.value,
            "engine": self.recorded.engine,
            "revision": self.recorded.revision,
            "decision_id": self.recorded.decision_id,
            "allow": self.recorded.allow,
            "reasons": list(self.recorded.reasons),
            "obligations": self.recorded.obligations,
            "input": self.recorded.input,
            "answer": self.recorded.answer,
            "policies": {
                "revision": self.now.revision,
                "same": self.same_policies,
                "allow": self.now.allow,
                "reasons": list(self.now.reasons),
            },
            "rules": [{"rule": rule.name, "at": list(rule.places), "value": rule.value} for rule in self.rules],
            "changes": [[edit.as_json() for edit in change] for change in self.changes],
        }


def explain(recorded: RecordedDecision, engine: RegoEngine) -> Explanation:
    """Ask the policies that there are now with the recorded question, and then about changes of it."""
    question = recorded.question
    data = json.loads(engine.data.text) if engine.data else {}
    words = words_of([source.text for source in engine.sources], data)
    changes = smallest_changes(recorded.input, lambda document: engine.ask(question, document), words)
    return Explanation(recorded, engine.ask(question, recorded.input), _true(engine, recorded.input), tuple(changes))


def _true(engine: RegoEngine, document: JsonObject) -> tuple[RuleValue, ...]:
    """Every rule, but functions, that has another value than false and an empty set or object."""
    places: dict[str, list[str]] = {}
    for rule in engine.rules():
        if not rule.is_function:
            places.setdefault(rule.name, []).append(f"{rule.file}:{rule.line}")
    found = []
    for name, parts in places.items():
        try:
            value = as_json(engine.evaluate(name, document))
        except (RuntimeError, ValueError, TypeError):  # undefined, or in error: neither has spoken
            continue
        if value is not None and value is not False and value not in ([], {}):
            found.append(RuleValue(name, tuple(parts), value))
    return tuple(found)


def shown(value: JsonValue, *, limit: int = 100) -> str:
    """A value on one line, cut where it is long."""
    text = "true" if value is True else json.dumps(value, ensure_ascii=False, sort_keys=isinstance(value, Mapping))
    return text if len(text) <= limit else text[: limit - 3] + "..."
