"""Narrower forms of a database grant: the same verbs, tables and rows, and fewer columns.

A workflow declares them so that they are provisioned; a policy may then demand one of them in place of the whole.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from orchestrator.grants.privileges import ALL_COLUMNS, ColumnVerb, Privilege, merge, parse_qualified, qualified

NarrowerColumns = Mapping[str, Mapping[ColumnVerb, Sequence[str]]]
"""By table (`schema.name`) and verb: the columns that may remain. What is not named stays as it is."""


def narrow(privileges: Sequence[Privilege], columns: NarrowerColumns) -> tuple[Privilege, ...]:
    """The privileges with at most these columns. Raises ValueError where one is not declared, or nothing would be left.

    A column that was not declared does not come in by this.
    """
    known = {privilege.key: privilege for privilege in merge(privileges)}
    for table, verbs in columns.items():
        schema, name = parse_qualified(table)
        for verb, remaining in verbs.items():
            privilege = known.get((schema, name, verb))
            if privilege is None or not privilege.columns:
                raise ValueError(f"`{verb}` of columns on {qualified(schema, name)} is not declared")
            declared = remaining if privilege.columns == ALL_COLUMNS else privilege.columns
            left = tuple(sorted(set(declared) & set(remaining)))
            if not left:
                raise ValueError(f"none of the declared columns of `{verb}` on {qualified(schema, name)} would be left")
            known[privilege.key] = replace(privilege, columns=left)
    return tuple(known[key] for key in sorted(known))


def check_narrower(privileges: Sequence[Privilege], columns: NarrowerColumns) -> None:
    """Raises ValueError unless every named column is declared, and fewer are left than are declared."""
    declared = {privilege.key: privilege.columns for privilege in merge(privileges)}
    for privilege in narrow(privileges, columns):
        before = declared[privilege.key]
        named = {
            column
            for table, verbs in columns.items()
            for verb, remaining in verbs.items()
            if (*parse_qualified(table), verb) == privilege.key
            for column in remaining
        }
        if before != ALL_COLUMNS and (unknown := sorted(named - set(before))):
            what = f"`{privilege.verb}` on {qualified(privilege.schema, privilege.name)}"
            raise ValueError(f"{what} does not declare {', '.join(unknown)}: a narrower form only has fewer columns")
    if narrow(privileges, columns) == merge(privileges):
        raise ValueError("it has every column that the grant has: leave it out, or name fewer")
