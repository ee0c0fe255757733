"""`postgres.query` and `postgres.execute`: one statement, as the step's own short-lived login."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Self

from pydantic import Field, model_validator
from pydantic import JsonValue as Json

from orchestrator.actions.base import Finding, GrantRef, OutputType, Params, StepContext
from orchestrator.actions.postgres.checks import (
    NAME_THEM,
    against_parameters,
    parsed,
    returns_rows,
    several_named,
    statement_findings,
)
from orchestrator.actions.postgres.session import MAX_INFLOW, check_strings, transaction
from orchestrator.errors import StepFailed
from orchestrator.grants.sql.commands import unfit_to_execute, unfit_to_query
from orchestrator.grants.sql.statements import statement_verbs
from orchestrator.jsontypes import JsonObject, JsonValue

if TYPE_CHECKING:
    import psycopg

_FIRST_BATCH = 20
_LARGEST_BATCH = 2000
_INFLOW_OF_JSON, _INFLOW_BESIDE = 2, 1 << 20
"""Bytes that the server may send for each byte of JSON (hexadecimal digits become base64), and for all else."""


class _Statement(Params):
    output_types: ClassVar[Mapping[str, OutputType]] = {"rows": "maps", "row_count": "int", "columns": "list"}
    output_descriptions: ClassVar[Mapping[str, str]] = {
        "rows": "What came back: a map of column to value for each row.",
        "row_count": "How many rows came back, or were written.",
        "columns": "The names of the columns, in the statement's order.",
    }
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

    max_rows: Annotated[int, Field(gt=0)] = Field(default=10_000, description="More rows that come back are an error.")
    max_bytes: Annotated[int, Field(gt=0)] = Field(default=5_000_000, description="More bytes of JSON are an error.")

    def held_to_rows(self, most: int) -> Self:
        """The statement with `max_rows` lowered to this."""
        return self.model_copy(update={"max_rows": min(self.max_rows, most)})

    @classmethod
    def output_keys(cls, given: Mapping[str, Any]) -> frozenset[str]:
        """Those of `output_types`."""
        return frozenset(cls.output_types)


class QueryParams(_Statement):
    """A statement that reads, and the limits of what it may return (rows, bytes of JSON)."""

    @classmethod
    def certainly_wrong(cls, step: Mapping[str, Any]) -> Iterator[Finding]:
        """What is no query, placeholders without a parameter, and columns of one name."""
        yield from statement_findings(_given(step), unfit_to_query)


class ExecuteParams(_Statement):
    """A statement that writes, once, or once for each object of `each`, and what it may give back."""

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

    @classmethod
    def certainly_wrong(cls, step: Mapping[str, Any]) -> Iterator[Finding]:
        """As for a query; and rows that are kept of a statement that gives none."""
        given, outputs = _given(step), step.get("outputs")
        yield from statement_findings(given, unfit_to_execute)
        if isinstance(outputs, list) and returns_rows(given) is False:
            for index, key in enumerate(outputs):
                if key in ("rows", "columns"):
                    yield ("outputs", index), "the statement gives no rows back", "add RETURNING, or keep `row_count`"


def _given(step: Mapping[str, Any]) -> Mapping[str, Any]:
    given = step.get("with")
    return given if isinstance(given, dict) else {}


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
        _check_bound(params.sql, params.parameters)
        async with (
            transaction(
                context,
                params.grant,
                read_only=True,
                max_inflow=_inflow(params),
                server_messages=params.server_messages,
            ) as connection,
            cursor_of_the_server(connection) as cursor,
        ):
            await cursor.execute(params.sql, _bound(params.parameters))
            result = await _fetch(connection, cursor, params)
        return {"rows": result.rows, "row_count": len(result.rows), "columns": result.columns}


@asynccontextmanager
async def cursor_of_the_server(
    connection: psycopg.AsyncConnection[tuple[Any, ...]],
) -> AsyncIterator[psycopg.AsyncServerCursor[tuple[Any, ...]]]:
    """One that is closed however the connection ends: psycopg leaves it open where that breaks while it closes it."""
    import psycopg

    cursor = connection.cursor(name="step")
    try:
        async with cursor:
            yield cursor
    finally:
        await psycopg.AsyncCursor.close(cursor)  # asks the server nothing


class Execute:
    """Output: `{"row_count": n, "rows": [{column: value}], "columns": [...]}`: how many rows were changed in all, and
    what came back, as of RETURNING. One transaction, which more rows than the limits allow roll back; same kinds as the
    query.
    """

    summary: ClassVar[str] = "Change rows in PostgreSQL, once or once for each of a list."
    params: ClassVar[type[Params]] = ExecuteParams

    def view(self, params: ExecuteParams) -> JsonObject:
        """The verbs of the statement, and `returning` where what is written comes back."""
        view = _view(params, placeholders=params.parameters is not None or params.each is not None)
        statements = parsed({"sql": params.sql, "parameters": params.parameters, "each": params.each}) or ()
        if any(getattr(each.stmt, "returningClause", None) for each in statements):
            return {**view, "returning": True}
        return view

    async def run(self, params: ExecuteParams, context: StepContext) -> JsonValue:
        """Execute and commit. Raises StepFailed after everything was rolled back; an empty `each` does nothing."""
        _check_bound(params.sql, params.parameters, params.each)
        result = _Result(params)
        if params.each is None or params.each:
            async with (
                transaction(
                    context,
                    params.grant,
                    read_only=False,
                    max_inflow=max(MAX_INFLOW, _inflow(params)),
                    server_messages=params.server_messages,
                ) as connection,
                connection.cursor() as cursor,
            ):
                async for outcome in _outcomes(connection, cursor, params):
                    await result.add(connection, outcome)
        return {"row_count": result.count, "rows": result.rows, "columns": result.columns}


async def _outcomes(
    connection: psycopg.AsyncConnection[tuple[Any, ...]],
    cursor: psycopg.AsyncCursor[tuple[Any, ...]],
    params: ExecuteParams,
) -> AsyncIterator[psycopg.AsyncCursor[tuple[Any, ...]]]:
    """Execute the statement, once or for each, and give the cursor with each outcome.

    The server parses it again and again. Where it has a backslash in it, what the first time has set must not make
    another statement of it the next time: then one waits for the other, and the setting is looked at in between.
    """
    if params.each is None:
        # A prepared statement cannot hold several commands; without one, psycopg would send them all.
        yield await cursor.execute(params.sql, _bound(params.parameters), prepare=True)
        return
    shared = params.parameters if isinstance(params.parameters, dict) else {}
    each = [_bound({**shared, **values}) for values in params.each]
    if "\\" in params.sql:
        for parameters in each:
            check_strings(connection)
            yield await cursor.execute(params.sql, parameters, prepare=True)
        return
    await cursor.executemany(params.sql, each, returning=True)
    async for outcome in cursor.results():
        yield outcome


def _check_bound(sql: str, parameters: dict[str, Json] | list[Json] | None, each: Any = None) -> None:
    """Raise StepFailed where the parameters that expressions gave are not those of the statement."""
    if parameters is not None or each is not None:
        for _, message, hint in against_parameters(sql, parameters, each):
            raise StepFailed(message, kind="database", hint=hint)


def _bound(parameters: dict[str, Json] | list[Json] | None) -> Any:
    from orchestrator.actions.postgres.values import parameter

    if isinstance(parameters, dict):
        return {name: parameter(value) for name, value in parameters.items()}
    return None if parameters is None else [parameter(value) for value in parameters]


@dataclass(slots=True)
class _Result:
    """What came back until now, within the limits of the step."""

    limits: _Statement
    rows: list[JsonValue] = field(default_factory=list)
    columns: list[str] = field(default_factory=list)
    conversions: Mapping[int, Callable[[str], JsonValue]] = field(default_factory=dict)
    count: int = 0
    size: int = 0

    async def add(
        self, connection: psycopg.AsyncConnection[tuple[Any, ...]], cursor: psycopg.AsyncCursor[tuple[Any, ...]]
    ) -> None:
        """Take an outcome over: its rows, and how many were changed. Raises StepFailed where a limit is met."""
        self.count += max(0, cursor.rowcount)
        if cursor.description:
            if not self.columns:
                await self.describe(connection, cursor)
            for values in await cursor.fetchall():
                self.take(values)

    async def describe(
        self,
        connection: psycopg.AsyncConnection[tuple[Any, ...]],
        cursor: psycopg.AsyncCursor[tuple[Any, ...]] | psycopg.AsyncServerCursor[tuple[Any, ...]],
    ) -> None:
        """Learn the names of the columns, and how their values become JSON. Raises StepFailed for two of one name."""
        from orchestrator.actions.postgres.arrays import conversions

        self.columns = _columns(cursor)
        self.conversions = await conversions(connection, cursor.description or ())

    def take(self, values: tuple[Any, ...]) -> None:
        """One row. Raises StepFailed where it is too many, or too large."""
        row = dict(zip(self.columns, values, strict=True))
        for number, convert in self.conversions.items():
            if values[number] is not None:
                row[self.columns[number]] = convert(values[number])
        self.size += len(json.dumps(row, ensure_ascii=False).encode())
        if len(self.rows) >= self.limits.max_rows or self.size > self.limits.max_bytes:
            raise StepFailed(
                f"the statement returns more than {self.limits.max_rows} rows or {self.limits.max_bytes} bytes",
                kind="output",
                hint="add a LIMIT, return fewer columns, or raise `max_rows` or `max_bytes`",
            )
        self.rows.append(row)


def _inflow(limits: _Statement) -> int:
    return _INFLOW_OF_JSON * limits.max_bytes + _INFLOW_BESIDE


def _columns(cursor: psycopg.AsyncCursor[tuple[Any, ...]] | psycopg.AsyncServerCursor[tuple[Any, ...]]) -> list[str]:
    columns = [column.name for column in cursor.description or ()]
    if twice := sorted({name for name in columns if columns.count(name) > 1}):
        raise StepFailed(several_named(twice), kind="output", hint=NAME_THEM)
    return columns


async def _fetch(
    connection: psycopg.AsyncConnection[tuple[Any, ...]],
    cursor: psycopg.AsyncServerCursor[tuple[Any, ...]],
    params: QueryParams,
) -> _Result:
    """All rows, fetched in batches that fit into what is left of the limits."""
    result, batch = _Result(params), _FIRST_BATCH
    await result.describe(connection, cursor)
    while fetched := await cursor.fetchmany(batch):
        for values in fetched:
            result.take(values)
        room = (params.max_bytes - result.size) // (result.size // len(result.rows) + 1) + 1
        batch = max(1, min(_LARGEST_BATCH, room, params.max_rows - len(result.rows) + 1))
    return result
