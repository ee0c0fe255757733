"""Ids by their beginning, as Git's are: `01K8` for `run_01K8QZ...`, where no other begins so."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import TYPE_CHECKING

from orchestrator.errors import UnknownRun, UnknownTask
from orchestrator.ledger.ids import CROCKFORD
from orchestrator.ledger.states import IdKind

if TYPE_CHECKING:
    from orchestrator.ledger.types import LedgerReader

SHORTEST = 4
"""Characters of an id, beside `run_` and the like, that may stand for it."""

_SHOWN = 8
"""Candidates that are listed where several begin so."""

_LOWER = frozenset("abcdefghijklmnopqrstuvwxyz234567")
_UPPER = frozenset(CROCKFORD)

_FORMS = {
    IdKind.RUN: (("run_", str.upper, _UPPER), ("call_", str.lower, _LOWER)),
    IdKind.TASK: (("task_", str.upper, _UPPER),),
    IdKind.LEASE: (("lease_", str.lower, _LOWER),),
    IdKind.APPROVAL: (("appr_", str.lower, _LOWER),),
}
"""What ids that are made here begin with, and the case and the characters of the rest (`orchestrator.ledger.ids`)."""


Find = Callable[[Collection[str], int], Sequence[str]]
"""The ids that begin with any of these texts, in order, not more than so many."""


def whole_id(reader: LedgerReader, kind: IdKind, text: str) -> str:
    """The id of this kind in the ledger that the text stands for, as `id_among` says it."""
    return id_among(lambda starts, most: reader.ids(kind, starts, most), kind, text)


def id_among(find: Find, kind: IdKind, text: str) -> str:
    """The id of this kind that the text is, or is the only one to begin so; the text itself where none does.

    The case of ids that are made here does not matter, and what they begin with may be left out. Ids that people chose
    are taken as they are written. Raises UnknownRun (of a task UnknownTask) where several begin so.
    """
    if text in find([text], 1):
        return text
    spelled = beginnings(kind, text)
    found = find(spelled, _SHOWN + 1) if spelled else ()
    if len(found) > 1:
        whole = [each for each in found if each in spelled]
        if len(whole) == 1:
            return whole[0]
        listed = ", ".join(found[:_SHOWN]) + (", ..." if len(found) > _SHOWN else "")
        error = UnknownTask if kind is IdKind.TASK else UnknownRun
        raise error(f"more than one {_WORDS[kind]} begins with {text}", hint=f"give more characters: {listed}")
    return found[0] if found else text


_WORDS = {
    IdKind.RUN: "run",
    IdKind.TASK: "task",
    IdKind.LEASE: "lease",
    IdKind.APPROVAL: "request for approval",
}


def beginnings(kind: IdKind, text: str, *, shortest: int = SHORTEST) -> tuple[str, ...]:
    """What ids of this kind begin with that the text may stand for; nothing where it is too short."""
    found = [text] if kind is IdKind.RUN and len(_rest(kind, text)) >= shortest else []
    for prefix, cased, characters in _FORMS[kind]:
        rest = text[len(prefix) :] if text[: len(prefix)].lower() == prefix else text
        if len(rest) >= shortest and set(cased(rest)) <= characters:
            found.append(prefix + cased(rest))
    return tuple(dict.fromkeys(found))


def _rest(kind: IdKind, text: str) -> str:
    """The text without what ids of this kind begin with."""
    starts = (prefix for prefix, _, _ in _FORMS[kind] if text[: len(prefix)].lower() == prefix)
    return text[len(next(starts, "")) :]
