"""Lint of database grants: does the declared scope cover the step's SQL, and does it go beyond it?"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

from orchestrator.grants.models import DatabaseGrant
from orchestrator.grants.privileges import ALL_COLUMNS, Privilege, digest, merge
from orchestrator.grants.sql.parsing import TooLargeSql, UnreadableSql, parse
from orchestrator.inference.steps import database_grants, sql_of
from orchestrator.workflow.loader import LoadedWorkflow
from orchestrator.workflow.models.steps import Step
from orchestrator.workflow.problems import Problem

_WIDE = 2
"""From so many privileges on a scope that two steps share is called wide."""


def coverage(loaded: LoadedWorkflow) -> Iterator[Problem]:
    """SQL that the grant does not cover (errors), and what the SQL certainly does not need (warnings)."""
    for step_id, step in loaded.workflow.parts.items():
        statement, named = sql_of(step), _compiled_grant(step)
        if statement is None or statement.text is None or named is None:
            continue
        from orchestrator.inference.offline import certain, described, missing, superfluous, unnamed

        name, grant = named
        declared = merge(each.privilege() for each in grant.privileges)
        needs = certain(statement.text, placeholders=statement.placeholders)
        if needs is None:  # `readable` says so
            continue
        place = loaded.place(step_id, "grants", name, "privileges")
        for privilege in missing(declared, needs.privileges):
            yield loaded.problem(
                loaded.place(step_id, "with", "sql"),
                f"the SQL needs `{described(privilege)}`, which the grant `{name}` does not declare",
                "declare it, or let `orchestrator grants infer` do it",
            )
        for privilege in missing(declared, needs.of_rows):
            yield loaded.problem(
                loaded.place(step_id, "with", "sql"),
                f"the SQL needs `{described(privilege)}`, which the grant `{name}` does not declare, "
                "unless that is a function of the row",
                "declare it, or let `orchestrator grants infer` find out",
                warning=True,
            )
        for privilege in superfluous(declared, needs):
            yield loaded.problem(
                place,
                f"the SQL does not need `{privilege.describe()}`",
                "take it out, unless a trigger or a row policy of the table uses it as the step",
                warning=True,
            )
        for privilege in unnamed(declared, needs):
            yield loaded.problem(
                place,
                f"the SQL does not name the table of `{privilege.describe()}`",
                "take it out, unless a view, a function, a trigger or a row policy uses it as the step",
                warning=True,
            )


def readable(loaded: LoadedWorkflow) -> Iterator[Problem]:
    """SQL that PostgreSQL's own parser refuses, or that it is not given."""
    for step_id, step in loaded.workflow.parts.items():
        statement = sql_of(step)
        if statement is None or statement.text is None:
            continue
        try:
            parse(statement.text, placeholders=statement.placeholders)
        except TooLargeSql as error:
            yield loaded.problem(loaded.place(step_id, "with", "sql"), error.message, error.hint or "")
        except UnreadableSql as error:
            yield loaded.problem(loaded.place(step_id, "with", "sql"), error.message, "psql says the same")


def wildcards(loaded: LoadedWorkflow) -> Iterator[Problem]:
    """`columns: all` is allowed, and worth a second look."""
    for step_id, step in loaded.workflow.parts.items():
        for name, grant in step.grants.items():
            if not isinstance(grant, DatabaseGrant):
                continue
            for index, declared in enumerate(grant.privileges):
                if declared.privilege().columns == ALL_COLUMNS:
                    yield loaded.problem(
                        loaded.place(step_id, "grants", name, "privileges", index, "columns"),
                        "every column is granted, those included that are added later",
                        "name the columns; `orchestrator grants infer` finds those that the SQL needs",
                        warning=True,
                    )


def shared_scopes(loaded: LoadedWorkflow) -> Iterator[Problem]:
    """Two steps with one wide scope: each could do the other's work."""
    holders: dict[str, list[tuple[str, str, tuple[Privilege, ...]]]] = defaultdict(list)
    for step_id, step in loaded.workflow.parts.items():
        for name, grant in step.grants.items():
            if isinstance(grant, DatabaseGrant) and grant.privileges:
                privileges = merge(each.privilege() for each in grant.privileges)
                holders[f"{grant.connection} {digest(privileges)}"].append((step_id, name, privileges))
    for found in holders.values():
        first, *others = found
        if len(first[2]) < _WIDE:
            continue
        for step_id, name, _ in others:
            yield loaded.problem(
                loaded.place(step_id, "grants", name),
                f"step `{step_id}` has the same wide scope as step `{first[0]}`",
                "give each step only what its own SQL needs",
                warning=True,
            )


def _compiled_grant(step: Step) -> tuple[str, DatabaseGrant] | None:
    """The compiled grant that the step's SQL runs under."""
    found = database_grants(step)
    if len(found) != 1:
        return None
    ((name, grant),) = found.items()
    return (name, grant) if grant.privileges else None
