"""Which SQL a step runs, and under which of its grants. Pure; nothing here looks into the SQL."""

from __future__ import annotations

from dataclasses import dataclass

from orchestrator.grants.models import DatabaseGrant
from orchestrator.workflow.models.steps import Step

ACTIONS = ("postgres.query", "postgres.execute")
"""The actions that run SQL which is written in the workflow."""


@dataclass(frozen=True, slots=True)
class StepSql:
    """The SQL of a step. `text` is None where an expression makes it, so that only the run knows it.

    `placeholders` says whether psycopg's are in it: without parameters, psycopg takes `%` as an operator.
    """

    text: str | None
    placeholders: bool


def sql_of(step: Step) -> StepSql | None:
    """The SQL, or None for a step whose action runs none that is written in the workflow."""
    if step.action not in ACTIONS:
        return None
    text = step.with_.get("sql")
    known = isinstance(text, str) and "${{" not in text
    has_parameters = step.with_.get("parameters") is not None or step.with_.get("each") is not None
    return StepSql(text if known else None, has_parameters)


def database_grants(step: Step) -> dict[str, DatabaseGrant]:
    """The grants that the SQL may run under: the one that `with.grant` names, else all database grants."""
    found = {name: grant for name, grant in step.grants.items() if isinstance(grant, DatabaseGrant)}
    wanted = step.with_.get("grant")
    if isinstance(wanted, str) and "${{" not in wanted:
        return {name: grant for name, grant in found.items() if name == wanted}
    return found
