"""Trying what must not work: one representative operation of each class, and the server's own refusal.

Each is tried with the step's real login in a transaction that is rolled back whatever happens. What everybody may do
and the caller tolerates is not what the credential must not do: the class is then tried on another object, and where
there is none that is said.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum

import psycopg

from orchestrator.grants.privileges import Privilege
from orchestrator.proof.comparison import Excess
from orchestrator.proof.holdings import PUBLIC, Holding
from orchestrator.proof.operations import Operation, operations


class Verdict(StrEnum):
    """What a server said to an operation that must not work."""

    REFUSED = "refused"
    ALLOWED = "allowed"
    INCONCLUSIVE = "inconclusive"
    """The server answered with an error that says nothing about permission."""
    NOT_TRIED = "not tried"
    """There is nothing on which it could be tried."""


@dataclass(frozen=True, slots=True)
class Trial:
    """One operation, what came of it, and what was answered."""

    what: str
    verdict: Verdict
    answer: str


def try_forbidden(
    session: psycopg.Connection, privileges: Sequence[Privilege], scope_role: str, excess: Sequence[Excess]
) -> list[Trial]:
    """Try every class. The session must be the step's own, in autocommit. `excess`: what it holds beyond its grant."""
    public = [each for each in excess if each.via == PUBLIC]
    tolerated = [each.holding for each in public if each.tolerated]
    found = []
    for kind in operations(session, privileges, scope_role):
        chosen, skipped = [], 0
        for operation in kind.candidates:
            if _opened(operation, tolerated):
                skipped += 1
                continue
            chosen.append(operation)
            if len(chosen) == kind.at_most:
                break
        found += [_try(session, operation, public) for operation in chosen]
        if not chosen and (skipped or kind.expected):
            why = "everybody may, which is tolerated" if skipped else "the database has nothing to try it on"
            found.append(Trial(kind.what, Verdict.NOT_TRIED, why))
    return found


def _try(session: psycopg.Connection, operation: Operation, public: Iterable[Excess]) -> Trial:
    try:
        with session.transaction(force_rollback=True):
            rows = session.execute(operation.statement)
            if operation.shows_rows and rows.fetchone() is None:
                return Trial(operation.what, Verdict.REFUSED, "no such row is visible")
    except psycopg.errors.InsufficientPrivilege as error:
        return Trial(operation.what, Verdict.REFUSED, str(error.diag.message_primary))
    except psycopg.Error as error:
        standby = session.info.parameter_status("in_hot_standby") == "on"
        told = f"{error.sqlstate}: {error.diag.message_primary}{_AT_STANDBY if standby else ''}"
        return Trial(operation.what, Verdict.INCONCLUSIVE, told)
    by = _opened(operation, [each.holding for each in public])
    return Trial(
        operation.what, Verdict.ALLOWED, f"the server did it: {by} through PUBLIC" if by else "the server did it"
    )


_AT_STANDBY = "; this is a standby, where nothing can be written by anybody: name its primary in the settings"


def _opened(operation: Operation, holdings: Iterable[Holding]) -> Holding | None:
    """The first of these that is enough for the operation."""
    return next((each for each in holdings if any(_is(each, enough) for enough in operation.enough)), None)


def _is(holding: Holding, enough: Holding) -> bool:
    """A function is named up to its opening bracket: what its arguments are called differs between versions."""
    if (holding.kind, holding.privilege) != (enough.kind, enough.privilege):
        return False
    return holding.object == enough.object or (enough.object.endswith("(") and holding.object.startswith(enough.object))
