"""How recorded decisions look: one that is explained, and many that were asked again."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from orchestrator.jsontypes import JsonObject, counted
from orchestrator.policy.review.replay import DECISIVE, Change, Group, Replayed

if TYPE_CHECKING:
    from orchestrator.policy.review.explanation import Explanation
    from orchestrator.policy.types import Decision

_MOST_NAMED = 3
_STYLES = {Change.DENIED: "red", Change.ALLOWED: "green"}


def print_explanation(found: Explanation) -> None:
    """What was asked and answered, which rules were true, and what would have been decided otherwise."""
    from rich.text import Text

    from orchestrator.cli.display.terminal import console, local
    from orchestrator.policy.review.explanation import shown

    screen, recorded = console(), found.recorded
    verdict = ("allowed", "green") if recorded.allow else ("DENIED", "red")
    screen.print(Text.assemble((recorded.key, "bold"), "  ", verdict, f"  {local(recorded.time)}"))

    def line(name: str, words: str) -> None:
        screen.print(Text.assemble((f"  {name} ", "dim"), words))

    line("by", f"{recorded.engine} {recorded.revision}" + (f", {recorded.decision_id}" if recorded.decision_id else ""))
    line("asked", recorded.question.value)
    for reason in recorded.reasons:
        line("because", reason)
    if recorded.obligations:
        line("demands", shown(recorded.obligations, limit=400))
    screen.print(Text("  input", "dim"))
    for each in json.dumps(recorded.input, indent=2, ensure_ascii=False).splitlines():
        screen.print(Text(f"    {each}"))
    if not found.same_policies:
        now = "allow it" if found.now.allow else f"deny it: {'; '.join(found.now.reasons)}"
        line("policies", f"are others now ({found.now.revision}), and {now}. By these:")
    for rule in found.rules:
        line("true", f"{rule.name} = {shown(rule.value)}  ({', '.join(rule.places)})")
    otherwise = "denied" if found.now.allow else "allowed"
    for change in found.changes:
        line(f"{otherwise} instead:", " and ".join(map(str, change)))
    if not found.changes:
        line(f"{otherwise} instead:", "no small change was found")


def print_replay(counts: Mapping[Change, int], groups: Sequence[Group]) -> None:
    """How many decisions change, and how."""
    from rich.text import Text

    from orchestrator.cli.display.terminal import console

    screen = console()
    for group in groups:
        named = ", ".join(group.runs[:_MOST_NAMED]) + (", ..." if len(group.runs) > _MOST_NAMED else "")
        screen.print(
            Text.assemble(
                (f"{len(group.runs)} {group.change.value}", _STYLES.get(group.change, "yellow")),
                (f"  {group.workflow}/{group.step}", "bold"),
                f" for {group.agent}  ({named})",
            )
        )
        if group.before:
            screen.print(Text.assemble(("  before ", "dim"), "; ".join(group.before)))
        if group.after or group.obligations:
            after = "; ".join(group.after) + (f" {json.dumps(group.obligations)}" if group.obligations else "")
            screen.print(Text.assemble(("  now    ", "dim"), after.strip()))
    asked = sum(counts.values())
    words = [f"{count} {change.value}" for change, count in counts.items() if count and change is not Change.NONE]
    screen.print(f"{counted(asked, 'decision')} asked again: {', '.join(words) or 'none changes'}")


def _said(decision: Decision | None) -> JsonObject | None:
    if decision is None:
        return None
    obligations = decision.obligations.as_json()
    return {"allow": decision.allow, "reasons": list(decision.reasons), "obligations": obligations}


def replay_json(counts: Mapping[Change, int], changed: Sequence[Replayed]) -> JsonObject:
    """The same for scripts, one by one."""
    return {
        "asked": sum(counts.values()),
        "unchanged": not any(counts[change] for change in DECISIVE),
        "counts": {change.name.lower(): count for change, count in counts.items()},
        "changed": [
            {
                "change": each.change.name.lower(),
                "run": each.recorded.run,
                "workflow": each.recorded.workflow,
                "step": each.recorded.step,
                "attempt": each.recorded.attempt,
                "time": each.recorded.time.isoformat(),
                "before": {
                    "allow": each.recorded.allow,
                    "reasons": list(each.recorded.reasons),
                    "obligations": each.recorded.obligations,
                },
                "now": _said(each.now),
            }
            for each in changed
        ],
    }
