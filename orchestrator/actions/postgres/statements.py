"""`postgres.query` and `postgres.execute`: one statement, as the step's own short-lived login."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Self

from pydantic import Field, model_validator
from pydantic import JsonValue as Json

from orchestrator.actions.base import GrantRef, OutputType, Params, StepContext
from orchestrator.actions.postgres.session import check_strings, transaction
from orchestrator.errors import StepFailed
from orchestrator.grants.sql.statements import statement_verbs
from orchestrator.jsontypes import JsonObject, JsonValue

if TYPE_CHECKING:
    import psycopg

_FIRST_BATCH = 20
_LARGEST_BATCH = 2000
_INFLOW_OF_JSON, _INFLOW_BESIDE = 2, 1 << 20
"""Bytes that the server may send for each byte of JSON (hexadecimal digits become base64), and for all else."""


class _Statement(Params):
    fixed: ClassVar[frozenset[str]] = frozenset({"sql", "server_messages"})

    sql: Annotated[str, Field(min_length=1, pattern=r"^[^\x00]*$")] = Field(
        description="One statement. Values come in as `%(name)s` (or `%s`) and are bound, never pasted; where there "
        "are parameters, a percent sign is written `%%`."
    )
    parameters: dict[str, Json] | list[Json] | None = Field(
        default=None, description="Values by name or by position. Objects become jsonb, lists arrays."
    )
    grant: Annotated[str, GrantRef("database")] | None = Field(
        default=None, description="The database grant to use. Default: the step's only one."
    )
    server_messages: bool = Field(
        default=False,
        description="Tell the server's own words where the statement fails. They may quote rows, and errors are kept "
        "and shown.",
    )


class QueryParams(_Statement):
    """A statement that reads, and the limits of what it may return (rows, bytes of JSON)."""

    output_types: ClassVar[Mapping[str, OutputType]] = {"rows": "maps", "row_count": "int", "columns": "list"}

    max_rows: Annotated[int, Field(gt=0)] = Field(default=10_000, description="More rows are an error.")
    max_bytes: Annotated[int, Field(gt=0)] = Field(default=5_000_000, description="More bytes of JSON are an error.")

    def held_to_rows(self, most: int) -> Self:
        """The query with `max_rows` lowered to this."""
        return self.model_copy(update={"max_rows": min(self.max_rows, most)})


class ExecuteParams(_Statement):
    """A statement that writes, once, or once for each object of `each`."""

    output_types: ClassVar[Mapping[str, OutputType]] = {"row_count": "int"}

    each: list[dict[str, Json]] | None = Field(
        default=None,
        description="Execute the statement once for each of these objects, whose values are added to `parameters`; "
        "all in one transaction.",
    )

    @model_validator(mode="after")
    def _names_with_each(self) -> ExecuteParams:
        if self.each is not None and isinstance(self.parameters, list):
            raise ValueError("with `each`, `parameters` are given by name")
        return self


def _view(params: _Statement, *, placeholders: bool) -> JsonObject:
    view: JsonObject = {"verbs": sorted(statement_verbs(params.sql, placeholders=placeholders))}
    return {**view, "server_messages": True} if params.server_messages else view


class Query:
    """Output: `{"rows": [{column: value}], "row_count": n, "columns": [...]}`.

    Runs in a READ ONLY transaction through a cursor, and receives no more than `max_bytes` can hold: the memory used
    does not depend on how much the server would return, in one value or in many.
    Kinds: `connection`, `timeout`, `permission`, `database`, `output`.
    """

    summary: ClassVar[str] = "Read rows from PostgreSQL."
    params: ClassVar[type[Params]] = QueryParams

    def view(self, params: QueryParams) -> JsonObject:
        """The verbs of the statement, and `server_messages` where they are told."""
        return _view(params, placeholders=params.parameters is not None)

    async def run(self, params: QueryParams, context: StepContext) -> JsonValue:
        """Read all rows, or none: where a limit is met the transaction is rolled back and StepFailed raised."""
        async with (
            transaction(
                context,
                params.grant,
                read_only=True,
                max_inflow=_INFLOW_OF_JSON * params.max_bytes + _INFLOW_BESIDE,
                server_messages=params.server_messages,
            ) as connection,
            connection.cursor(name="step") as cursor,
        ):
            await cursor.execute(params.sql, _bound(params.parameters))
            columns = _columns(cursor)
            rows = await _fetch(cursor, columns, params)
        return {"rows": rows, "row_count": len(rows), "columns": columns}


class Execute:
    """Output: `{"row_count": n}`, the rows that were changed in all. One transaction; same kinds as the query."""

    summary: ClassVar[str] = "Change rows in PostgreSQL, once or once for each of a list."
    params: ClassVar[type[Params]] = ExecuteParams

    def view(self, params: ExecuteParams) -> JsonObject:
        """The verbs of the statement."""
        return _view(params, placeholders=params.parameters is not None or params.each is not None)

    async def run(self, params: ExecuteParams, context: StepContext) -> JsonValue:
        """Execute and commit. Raises StepFailed after everything was rolled back; an empty `each` does nothing."""
        if params.each is not None and not params.each:
            return {"row_count": 0}
        async with (
            transaction(context, params.grant, read_only=False, server_messages=params.server_messages) as connection,
            connection.cursor() as cursor,
        ):
            if params.each is None:
                # A prepared statement cannot hold several commands; without one, psycopg would send them all.
                await cursor.execute(params.sql, _bound(params.parameters), prepare=True)
                count = cursor.rowcount
            else:
                shared = params.parameters if isinstance(params.parameters, dict) else {}
                each = [_bound({**shared, **values}) for values in params.each]
                count = await _each(connection, cursor, params.sql, each)
        return {"row_count": max(0, count)}


async def _each(
    connection: psycopg.AsyncConnection[tuple[Any, ...]],
    cursor: psycopg.AsyncCursor[tuple[Any, ...]],
    sql: str,
    each: list[Any],
) -> int:
    """Execute a statement for each of these parameters, and count the rows.

    The server parses it again and again. Where it has a backslash in it, what the first time has set must not make
    another statement of it the next time: then one waits for the other, and the setting is looked at in between.
    """
    if "\\" not in sql:
        await cursor.executemany(sql, each)
        return cursor.rowcount
    count = 0
    for parameters in each:
        check_strings(connection)
        await cursor.execute(sql, parameters, prepare=True)
        count += max(0, cursor.rowcount)
    return count


def _bound(parameters: dict[str, Json] | list[Json] | None) -> Any:
    from orchestrator.actions.postgres.values import parameter

    if isinstance(parameters, dict):
        return {name: parameter(value) for name, value in parameters.items()}
    return None if parameters is None else [parameter(value) for value in parameters]


def _columns(cursor: psycopg.AsyncServerCursor[tuple[Any, ...]]) -> list[str]:
    columns = [column.name for column in cursor.description or ()]
    if twice := sorted({name for name in columns if columns.count(name) > 1}):
        raise StepFailed(
            f"the query returns several columns named {', '.join(twice)}", kind="output", hint="name them with AS"
        )
    return columns


async def _fetch(
    cursor: psycopg.AsyncServerCursor[tuple[Any, ...]], columns: list[str], params: QueryParams
) -> list[JsonValue]:
    """All rows, fetched in batches that fit into what is left of the limits."""
    rows: list[JsonValue] = []
    size, batch = 0, _FIRST_BATCH
    while fetched := await cursor.fetchmany(batch):
        for values in fetched:
            row = dict(zip(columns, values, strict=True))
            size += len(json.dumps(row, ensure_ascii=False).encode())
            if len(rows) >= params.max_rows or size > params.max_bytes:
                raise StepFailed(
                    f"the query returns more than {params.max_rows} rows or {params.max_bytes} bytes",
                    kind="output",
                    hint="add a LIMIT, select fewer columns, or raise `max_rows` or `max_bytes`",
                )
            rows.append(row)
        room = (params.max_bytes - size) // (size // len(rows) + 1) + 1
        batch = max(1, min(_LARGEST_BATCH, room, params.max_rows - len(rows) + 1))
    return rows
