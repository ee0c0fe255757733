"""`acme.count`: how many rows of a table there are for each value of a column."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

from psycopg import sql
from pydantic import Field

from orchestrator.actions.base import GrantRef, OutputType, Params, StepContext
from orchestrator.actions.postgres.session import transaction
from orchestrator.jsontypes import JsonObject, JsonValue

Word = Annotated[str, Field(pattern=r"^[a-z_][a-z0-9_]{0,62}$")]


class CountParams(Params):
    """Of which table, and by which column. The grant must allow to read that column."""

    fixed: ClassVar[frozenset[str]] = frozenset({"table", "column"})
    output_types: ClassVar[Mapping[str, OutputType]] = {"values": "maps"}
    output_descriptions: ClassVar[Mapping[str, str]] = {"values": "`value` and `rows`, the most frequent first."}

    table: Word = Field(description="The table.")
    column: Word = Field(description="Its rows are counted by the values of this column.")
    most: Annotated[int, Field(ge=1, le=1000)] = Field(default=10, description="How many values are told.")
    grant: Annotated[str, GrantRef("database")] | None = Field(default=None, description="Default: the only one.")

    @classmethod
    def output_keys(cls, given: Mapping[str, Any]) -> frozenset[str]:
        """Those that are described."""
        return frozenset(cls.output_descriptions)


class Count:
    """Kinds of failure: those of `transaction`."""

    summary: ClassVar[str] = "Count the rows of a table by a column."
    params: ClassVar[type[Params]] = CountParams

    def view(self, params: CountParams) -> JsonObject:
        """Table and column: what a policy decides on."""
        return {"table": params.table, "column": params.column}

    async def run(self, params: CountParams, context: StepContext) -> JsonValue:
        """Read as the step's own login, in a transaction that cannot write. Raises StepFailed."""
        statement = sql.SQL("SELECT {0}::text, count(*) FROM {1} GROUP BY 1 ORDER BY 2 DESC, 1 LIMIT %s").format(
            sql.Identifier(params.column), sql.Identifier(params.table)
        )
        async with transaction(context, params.grant, read_only=True) as connection:
            cursor = await connection.execute(statement, [params.most])
            return {"values": [{"value": value, "rows": rows} for value, rows in await cursor.fetchall()]}
