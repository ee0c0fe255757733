"""Recorded decisions asked again of other policies: what would be denied that was allowed, and the other way round."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from enum import StrEnum

from orchestrator.jsontypes import JsonObject
from orchestrator.policy.engines.rego.engine import RegoEngine
from orchestrator.policy.review.recorded import RecordedDecision
from orchestrator.policy.types import Decision, Question


class Change(StrEnum):
    """What the other policies make of a recorded decision."""

    NONE = "none"
    DENIED = "newly denied"
    ALLOWED = "newly allowed"
    ADMITTED = "newly admitted"
    """It was refused before anything was evaluated, and would not be: what comes after was never asked."""
    OBLIGATIONS = "other obligations"
    REASONS = "other reasons"
    """Both say no, each for reasons of its own."""
    UNKNOWN = "not recorded whole"
    """The question is not on record, or was dropped after its retention: it cannot be asked again."""


DECISIVE = frozenset({Change.DENIED, Change.ALLOWED, Change.ADMITTED, Change.OBLIGATIONS})
"""Changes of what happens, not only of what is said."""


@dataclass(frozen=True, slots=True)
class Replayed:
    """One recorded decision and what the other policies say; None where they could not be asked."""

    recorded: RecordedDecision
    change: Change
    now: Decision | None = None


@dataclass(slots=True)
class Group:
    """Replayed decisions of one kind of step that changed in the same way, for people to read."""

    change: Change
    workflow: str
    step: str
    agent: str
    before: tuple[str, ...]
    after: tuple[str, ...]
    obligations: JsonObject = field(default_factory=dict)
    runs: list[str] = field(default_factory=list)
    """`RUN/STEP/ATTEMPT` of each."""


def replay(decisions: Iterable[RecordedDecision], engine: RegoEngine) -> Iterator[Replayed]:
    """Ask each of them again, one by one."""
    for recorded in decisions:
        if not recorded.input:
            yield Replayed(recorded, Change.UNKNOWN)
            continue
        now = _asked_again(recorded, engine)
        yield Replayed(recorded, _change(recorded, now), now)


def _asked_again(recorded: RecordedDecision, engine: RegoEngine) -> Decision | None:
    """What the policies say to it; None where it was not admitted then and would be now."""
    if engine.admits:
        admitted = engine.ask(Question.ADMIT, _unevaluated(recorded.input))
        if not admitted.allow:
            return admitted
    return None if recorded.question is Question.ADMIT else engine.ask(Question.DECISION, recorded.input)


def _unevaluated(document: JsonObject) -> JsonObject:
    """The question before anything is evaluated. Row limits are left as they are: only their values are on record."""
    action = document.get("action")
    name = action.get("name", "") if isinstance(action, dict) else ""
    return {**document, "context": {}, "action": {"name": name}}


def _change(recorded: RecordedDecision, now: Decision | None) -> Change:
    if now is None:
        return Change.ADMITTED
    if recorded.allow != now.allow:
        return Change.ALLOWED if now.allow else Change.DENIED
    if recorded.obligations != now.obligations.as_json():
        return Change.OBLIGATIONS
    return Change.NONE if now.allow or recorded.reasons == now.reasons else Change.REASONS


def grouped(changes: Iterable[Replayed]) -> list[Group]:
    """Those that changed, together where workflow, step, agent and what is said are the same; most of them first."""
    found: dict[tuple[object, ...], Group] = {}
    for each in changes:
        recorded, now = each.recorded, each.now
        agent = str(recorded.input.get("agent", ""))
        after = now.reasons if now else ()
        obligations = now.obligations.as_json() if now else {}
        key = (each.change, recorded.workflow, recorded.step, agent, recorded.reasons, after, repr(obligations))
        group = found.setdefault(
            key, Group(each.change, recorded.workflow, recorded.step, agent, recorded.reasons, after, obligations)
        )
        group.runs.append(recorded.key)
    return sorted(found.values(), key=lambda group: (-len(group.runs), group.workflow, group.step))


def counted(replayed: Iterable[Replayed]) -> tuple[dict[Change, int], list[Replayed]]:
    """How many there are of each kind, and those that changed; of the rest nothing is kept."""
    counts = dict.fromkeys(Change, 0)
    changed = []
    for each in replayed:
        counts[each.change] += 1
        if each.change not in (Change.NONE, Change.UNKNOWN):
            changed.append(each)
    return counts, changed
