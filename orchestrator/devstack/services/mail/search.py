"""Gmail's search box, as far as a support team uses it: operators, words, phrases, and what is excluded."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

from orchestrator.devstack.services.mail.messages import Mail, addresses

_TERM = re.compile(r'(?P<not>-?)(?:(?P<operator>[a-z0-9_]+):)?(?:"(?P<phrase>[^"]*)"|(?P<word>[^\s"]+))')
_HIDDEN = ("SPAM", "TRASH")
_STATES = {"unread": ("UNREAD", True), "read": ("UNREAD", False), "starred": ("STARRED", True)}


@dataclass(frozen=True, slots=True)
class Term:
    """One condition. `operator` is None for words of the mail itself."""

    operator: str | None
    value: str
    negated: bool = False


def terms(query: str) -> tuple[Term, ...]:
    """All of them must hold."""
    found = []
    for match in _TERM.finditer(query):
        value = match["phrase"] if match["phrase"] is not None else match["word"]
        found.append(Term(match["operator"], value.lower(), bool(match["not"])))
    return tuple(found)


def shows_hidden(wanted: tuple[Term, ...]) -> bool:
    """Whether the query itself speaks of spam or trash, which are left out otherwise."""
    places = {"anywhere", *(name.lower() for name in _HIDDEN)}
    return any(term.operator in ("in", "label") and term.value in places and not term.negated for term in wanted)


def is_hidden(mail: Mail) -> bool:
    """Spam, or trash."""
    return any(label in mail.labels for label in _HIDDEN)


def matches(mail: Mail, wanted: tuple[Term, ...], labels: Mapping[str, str]) -> bool:
    """Whether a mail is what is looked for. `labels`: ids by their names in small letters."""
    return all(_holds(mail, term, labels) != term.negated for term in wanted)


def _holds(mail: Mail, term: Term, labels: Mapping[str, str]) -> bool:
    parsed = mail.parsed
    value = term.value
    subject = str(parsed.get("Subject", "")).lower()
    conditions: dict[str, Callable[[], bool]] = {
        "from": lambda: value in str(parsed.get("From", "")).lower(),
        "to": lambda: value in " ".join(addresses(parsed, "To", "Cc")),
        "subject": lambda: value in subject,
        "rfc822msgid": lambda: value.strip("<>") == str(parsed.get("Message-ID", "")).lower().strip("<>"),
        "label": lambda: labels.get(value) in mail.labels,
        "in": lambda: value == "anywhere" or labels.get(value) in mail.labels,
        "is": lambda: _is(mail, value),
        "after": lambda: mail.received >= _milliseconds(value),
        "before": lambda: mail.received < _milliseconds(value),
    }
    if term.operator is None:
        return value in f"{subject} {_words(mail)} {str(parsed.get('From', '')).lower()}"
    known = conditions.get(term.operator)
    return f"{term.operator}:{value}" in _words(mail) if known is None else known()


def _words(mail: Mail) -> str:
    return " ".join(mail.text.lower().split())


def _is(mail: Mail, state: str) -> bool:
    label, there = _STATES.get(state, (state.upper(), True))
    return (label in mail.labels) is there


def _milliseconds(text: str) -> int:
    """Of `2026/11/24`, `2026-11-24` or seconds since 1970; what is neither is never."""
    if text.isdecimal():
        return int(text) * 1000
    try:
        year, month, day = (int(part) for part in re.split("[/-]", text))
        return int(datetime(year, month, day, tzinfo=UTC).timestamp() * 1000)
    except ValueError:
        return 1 << 62
