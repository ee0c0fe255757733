"""What a step's SQL needs beside what its grant declares: pure arithmetic over privileges."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

from orchestrator.grants.privileges import ALL_COLUMNS, Privilege, merge, qualified
from orchestrator.inference.live import Inferred

NOTHING = "the SQL needs no privilege at all, and a grant declares at least one: does the step need the database?"


@dataclass(frozen=True, slots=True)
class Difference:
    """The two sides held against each other.

    `wanted` is what is inferred, within the row limits that are declared: inference knows columns, not rows.
    `notes` say what is not known; while there are any, nothing is called superfluous. `remarks` are worth knowing
    before the step runs.
    """

    wanted: tuple[Privilege, ...]
    missing: tuple[Privilege, ...]
    superfluous: tuple[Privilege, ...]
    notes: tuple[str, ...]
    remarks: tuple[str, ...] = ()

    @property
    def complete(self) -> bool:
        """Whether everything was inferred: without it, what is superfluous is only a guess."""
        return not self.notes

    def __bool__(self) -> bool:
        return bool(self.missing or self.superfluous)


def difference(declared: Sequence[Privilege], inferred: Inferred) -> Difference:
    """What to add to what is declared, and what to take out of it."""
    held = {privilege.key: privilege for privilege in merge(declared)}
    optional = [privilege for privilege in inferred.everyones if privilege.key in held]
    wanted = tuple(
        replace(need, where=held[need.key].where) if need.key in held else need
        for need in _without_spare_schemas(merge([*inferred.privileges, *optional]))
    )
    notes = [*inferred.notes, *_rows_not_known(held.values(), wanted)]
    if not wanted and not notes:
        notes = [NOTHING]
    needed = {privilege.key: privilege for privilege in wanted}
    return Difference(
        wanted,
        missing=_beyond(wanted, held),
        superfluous=() if notes else _beyond(tuple(held.values()), needed),
        notes=tuple(notes),
        remarks=inferred.remarks,
    )


def _without_spare_schemas(privileges: Sequence[Privilege]) -> list[Privilege]:
    """Any privilege on something in a schema brings USAGE of the schema along."""
    covered = {each.schema for each in privileges if each.verb != "schema"}
    return [each for each in privileges if each.verb != "schema" or each.schema not in covered]


def _beyond(these: Sequence[Privilege], those: dict[tuple[str, str, str], Privilege]) -> tuple[Privilege, ...]:
    """The privileges of the one side, or the columns of them, that the other side does not have."""
    found = []
    for each in these:
        known = those.get(each.key)
        if known is None or (each.columns == ALL_COLUMNS != known.columns):
            found.append(each)
        elif known.columns != ALL_COLUMNS and (more := sorted(set(each.columns) - set(known.columns))):
            found.append(replace(each, columns=tuple(more)))
    return tuple(found)


def _rows_not_known(held: Collection[Privilege], wanted: Sequence[Privilege]) -> list[str]:
    """A new verb on a table whose rows are limited for another: adding it without a limit would open every row."""
    limited = {(each.schema, each.name): each.verb for each in held if each.where}
    keys = {each.key for each in held}
    return [
        f"the rows of {qualified(each.schema, each.name)} are limited for `{limited[each.schema, each.name]}`: "
        f"declare `{each.verb}` with the rows that it is for"
        for each in wanted
        if each.key not in keys and (each.schema, each.name) in limited
    ]
