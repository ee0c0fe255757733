"""The newest rows of a table out of several parts, each of which an index gives in the order of time."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from sqlalchemy import (
    JSON,
    BindParameter,
    ColumnElement,
    Connection,
    Integer,
    ScalarSelect,
    Select,
    SQLColumnExpression,
    Table,
    Text,
    TextClause,
    bindparam,
    cast,
    column,
    false,
    func,
    select,
    true,
    tuple_,
    union_all,
)
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import FunctionElement

Condition = ColumnElement[bool] | TextClause

AFTER_ALL_TIMES = "~"
"""Text that sorts after every time as stored."""


@dataclass(frozen=True, slots=True)
class Order:
    """A table with what its rows are ordered by: the time, and the id where times are equal."""

    table: Table
    time: str
    key: str


Value = str | ColumnElement[str]
"""A value, or the place of one in a statement that is made once and asked often: making it is what costs."""


Statement = tuple[Select[tuple[object, ...]], Mapping[str, str | int]]
"""A statement, which is the same for all filters of a shape, and its parameters."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """Rows that one index holds in the order of time: under one value of each column in `under`, in the index's order.

    `since` is included, `until` is not; both are text as stored. Of rows with the very time `until` those are in the
    part whose id is below `until_key`. `conditions` are checked on each row.
    """

    under: Mapping[str, Value] = field(default_factory=dict)
    conditions: Sequence[Condition] = ()
    since: Value | None = None
    until: Value | None = None
    until_key: Value | None = None


def after_prefix(prefix: str) -> str | None:
    """The first string, by code point, after all that start with the prefix; None if there is none."""
    kept = prefix.rstrip(chr(sys.maxunicode))
    if not kept:
        return None
    following = ord(kept[-1]) + 1
    if 0xD800 <= following <= 0xDFFF:  # surrogates are no characters
        following = 0xE000
    return kept[:-1] + chr(following)


def place(name: str) -> BindParameter[str]:
    """Where a statement takes a value for the column of this name; `placed` gives the parameters."""
    return bindparam(f"of_{name}", type_=Text())


def placed(values: Mapping[str, str]) -> Mapping[str, str]:
    """The parameters that give these columns their values."""
    return {f"of_{name}": value for name, value in values.items()}


def newest(
    order: Order, parts: Sequence[Part], limit: int, *, seen_in_index: bool = False
) -> Select[tuple[object, ...]]:
    """The newest rows that belong to any part. No row may belong to two.

    From each part not more than `limit` times and ids are read, and whole rows only of what is answered: also of one
    part where the conditions are `seen_in_index`, and may hold of few rows.
    """
    table, key = order.table, order.table.c[order.key]
    if not parts:
        return select(table).where(false())
    if len(parts) == 1 and not seen_in_index:
        return _read(select(table), order, parts[0], limit)
    heads = [places(order, part, limit).subquery() for part in parts]
    together = union_all(*(select(head) for head in heads)).subquery()
    newest_first = (together.c[order.time].desc(), together.c[order.key].desc())
    chosen = select(together).order_by(*newest_first).limit(_literal(limit)).subquery()
    return (
        select(table)
        .join(chosen, key == chosen.c[order.key])
        .order_by(chosen.c[order.time].desc(), chosen.c[order.key].desc())
    )


def places(order: Order, part: Part, limit: int) -> Select[Any]:
    """Times and ids of the part's newest rows, newest first."""
    return _read(select(order.table.c[order.time], order.table.c[order.key]), order, part, limit)


class PlacesUnder:
    """The newest rows under values of the same columns, however many such parts are asked for, by one statement."""

    def __init__(self, order: Order, names: Sequence[str], conditions: Sequence[Condition], limit: int) -> None:
        self._order = order
        self._names = names
        self._conditions = conditions
        self._limit = limit

    def read(
        self,
        connection: Connection,
        parts: Sequence[Mapping[str, str]],
        since: str | None,
        until: str | None,
        until_key: str,
    ) -> Sequence[Any]:
        """Times and ids of the newest rows under the values of each part, newest first; on SQLite of one part only."""
        within = {"since": since or "", "until": until or AFTER_ALL_TIMES, "until_key": until_key}
        if len(parts) == 1:
            return connection.execute(self._one, {**placed(parts[0]), **within}).all()
        return connection.execute(self._several, {"parts": json.dumps([dict(part) for part in parts]), **within}).all()

    @cached_property
    def _one(self) -> Select[Any]:
        return self._places({name: place(name) for name in self._names})

    @cached_property
    def _several(self) -> Select[Any]:
        """PostgreSQL's: one row of values for each element of a JSON array."""
        records = func.json_to_recordset(cast(bindparam("parts", type_=Text()), JSON))
        parts = records.table_valued(*(column(name, Text()) for name in self._names)).render_derived(with_types=True)
        each = self._places(dict(parts.c)).lateral()
        newest_first = (each.c[self._order.time].desc(), each.c[self._order.key].desc())
        query = select(each).select_from(parts).join(each, true())
        return query.order_by(*newest_first).limit(_literal(self._limit))

    def _places(self, under: Mapping[str, Value]) -> Select[Any]:
        since, until = bindparam("since", type_=Text()), bindparam("until", type_=Text())
        key = bindparam("until_key", type_=Text())
        part = Part(under=under, conditions=self._conditions, since=since, until=until, until_key=key)
        return places(self._order, part, self._limit)


def newest_time(order: Order, part: Part, columns: Mapping[str, ColumnElement[str]]) -> ScalarSelect[str | None]:
    """The time of the part's newest row with the values in these columns of the enclosing query, or null.

    By equalities: of values that are not known yet PostgreSQL assumes that they are rare, and SQLite reads no range.
    """
    time, key = order.table.c[order.time], order.table.c[order.key]
    equal = [order.table.c[name] == value for name, value in {**columns, **part.under}.items()]
    newest_first = (time.desc(), key.desc())
    query = select(time).where(*part.conditions, *equal, *_within(time, part)).order_by(*newest_first)
    return query.limit(_literal(1)).scalar_subquery()


def _within(time: ColumnElement[str], part: Part) -> list[ColumnElement[bool]]:
    """Where there is a key, rows with the very time `until` are in, too: whoever reads rows looks at their ids."""
    since = [] if part.since is None else [time >= part.since]
    if part.until is None:
        return since
    return [*since, time < part.until if part.until_key is None else time <= part.until]


def _read(query: Select[Any], order: Order, part: Part, limit: int) -> Select[Any]:
    """The part's rows, newest first.

    Where it is under some values these are no equalities but a range over all columns of the index, in whose order
    the rows are asked for. That leaves a planner no other index: by equalities PostgreSQL estimates how soon a walk
    through the newest rows of all would meet enough, which goes wrong for what is long past or goes never together.
    """
    names = [*part.under, order.time, order.key]
    columns = [order.table.c[name] for name in names]
    conditions = list(part.conditions)
    if part.under:
        row = tuple_(*columns)
        since = "" if part.since is None else part.since
        until = AFTER_ALL_TIMES if part.until is None else part.until
        conditions.append(row >= tuple_(*part.under.values(), since, ""))
        until_key = "" if part.until_key is None else part.until_key
        conditions.append(row < tuple_(*part.under.values(), until, until_key))
    elif part.until is not None and part.until_key is not None:
        conditions += _within(order.table.c[order.time], replace(part, until=None))
        conditions.append(tuple_(*columns) < tuple_(part.until, part.until_key))
    else:
        conditions += _within(order.table.c[order.time], part)
    return query.where(*conditions).order_by(*(column.desc() for column in columns)).limit(_literal(limit))


def _literal(limit: int) -> BindParameter[int]:
    """PostgreSQL plans a prepared statement whose limit it does not know for a tenth of the table."""
    return bindparam(None, limit, type_=Integer, literal_execute=True, unique=True)


class unindexed(FunctionElement[str]):  # noqa: N801 -- it reads as the SQL function that it stands for
    """A column whose index SQLite is not to choose: without statistics it would guess between two that fit.

    SQLite's unary `+` does it (https://sqlite.org/optoverview.html, section 2.3); PostgreSQL has its statistics.
    """

    inherit_cache = True
    type = Text()

    def __init__(self, column: SQLColumnExpression[str]) -> None:
        super().__init__(column)


class _elements(FunctionElement[str]):  # noqa: N801 -- likewise
    """A row with a `value` for each string of a JSON array."""

    inherit_cache = True
    type = Text()


@compiles(_elements)
def _of_jsonb(element: _elements, compiler: SQLCompiler, **how: object) -> str:
    return f"jsonb_array_elements_text(CAST({compiler.process(element.clauses, **how)} AS jsonb))"


@compiles(_elements, "sqlite")
def _of_json(element: _elements, compiler: SQLCompiler, **how: object) -> str:
    return f"json_each({compiler.process(element.clauses, **how)})"


def elements(array: BindParameter[str]) -> Select[tuple[str]]:
    """The strings of a JSON array: one parameter however many they are, since each of its own costs more than a row."""
    return select(_elements(array).table_valued("value").c.value)


@compiles(unindexed)
def _plain(element: unindexed, compiler: SQLCompiler, **how: object) -> str:
    return compiler.process(element.clauses, **how)


@compiles(unindexed, "sqlite")
def _disqualified(element: unindexed, compiler: SQLCompiler, **how: object) -> str:
    return "+" + compiler.process(element.clauses, **how)
