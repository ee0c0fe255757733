"""The events of the ledger, with their fields."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Iterator
from typing import Any, get_args

from orchestrator.ledger.events import Event
from tools.reference.docstrings import attributes, summary
from tools.reference.markdown import code, page, paragraphs, prose, table, unset

_HEAD = """\
# Events of the ledger

What `runs show --json` lists and the hash chain covers. Every event has `kind`, the time at which it was recorded, and
its number within the run; no event holds a secret. Times are ISO 8601 in UTC, durations seconds.
"""

COMMON = {
    "step": "The step, or the tool, by its name in the file.",
    "attempt": "Which try at the step, from 1.",
    "workflow": "The workflow, by its name.",
    "agent": "The identity that the workflow acts for.",
    "lease_id": "The lease, by the orchestrator's own id.",
    "approval_id": "The request for approval.",
    "connection": "The database, by the name of its connection.",
    "state": "How it stands now: see [states](states.md).",
    "reason": "Why, in words for people.",
    "runner": "The process, by its id.",
    "action": "The action.",
    "engine": "The policy engine.",
    "revision": "Which policies it decided by.",
    "allow": "Whether it may be done.",
    "reasons": "Why, in the policy's words.",
    "grant": "The grant, by its name in the step.",
    "resource": "What was asked for: a path in Vault, or its issuer.",
    "ttl": "Seconds.",
    "expires_at": "When it ends by itself.",
    "inputs": "The values of the inputs; secret ones are `***`.",
    "trigger": "What started it: `manual`, `cron`, ...",
    "approvers": "Who may agree.",
    "count": "How many have to.",
    "valid_for": "Seconds for which the approval counts.",
    "by": "Who.",
    "at": "When.",
    "signature": "Of the statement, by the key in Vault.",
    "comment": "What they said.",
    "outcome": "How it ended.",
    "text": "What was said.",
    "tool": "The tool, by its name in the file.",
    "step_key": "What the names of the logins of the attempt carry.",
    "vault_lease_id": "Vault's own name of it, which opens nothing.",
    "accessor": "Vault's handle of a token, which opens nothing.",
    "deadline": "When it is closed in any case.",
    "digest": "SHA-256 of the file's text.",
}
"""Fields that mean the same wherever they are, for those that say nothing themselves."""

_WORDS = {
    "str": "text",
    "int": "integer",
    "bool": "true or false",
    "datetime": "time",
    "JsonObject": "object",
    "JsonValue": "any",
    "tuple[str, ...]": "list of text",
}


def text() -> str:
    """The page."""
    return page(_HEAD, *(_event(each) for each in events()))


def events() -> Iterator[Any]:
    """The classes of all events, in the order in which the union names them."""
    yield from get_args(Event)


def meaning(event: Any, name: str) -> str:
    """What a field means: its own text, else the sentence of the class that names it, else what it means everywhere."""
    said = attributes(event).get(name, "")
    if said or f"`{name}`" in summary(event):
        return said
    return COMMON.get(name, "")


def _event(event: Any) -> str:
    rows = [
        (code(each.name), _type(each.type), _default(each), prose(unset(meaning(event, each.name), "null")))
        for each in dataclasses.fields(event)
    ]
    return page(
        f"## {event.kind}",
        paragraphs(inspect.cleandoc(event.__doc__)),
        table(("field", "type", "default", "meaning"), rows),
    )


def _type(annotation: object) -> str:
    words = str(annotation).removesuffix(" | None")
    shown = _WORDS.get(words) or (f"[{words}](states.md#{words.lower()})" if words.endswith("State") else code(words))
    return shown + (", or null" if str(annotation).endswith("| None") else "")


def _default(each: dataclasses.Field[Any]) -> str:
    if each.default is dataclasses.MISSING:
        return "" if each.default_factory is dataclasses.MISSING else "empty"
    return "null" if each.default is None else "empty" if each.default in ("", ()) else code(str(each.default).lower())
