"""Arrays of types that a database defines itself: enumerations, domains, composite types, those of extensions.

psycopg knows the arrays of built-in types; what it does not know reaches us as text, such as `{sad,ok}`. What such an
array holds is in the catalog, which every login may read. Import it inside `run`: it needs psycopg.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from psycopg import AsyncConnection, Column
from psycopg.pq import Format

Convert = Callable[[str], Any]

_CATALOG = """
WITH RECURSIVE element(array_oid, delimiter, oid, kind, base) AS (
  SELECT a.oid, a.typdelim, e.oid, e.typtype, e.typbasetype
  FROM pg_catalog.pg_type a JOIN pg_catalog.pg_type e ON e.oid = a.typelem
  WHERE a.oid = ANY(%s) AND a.typcategory = 'A' AND a.typlen = -1
  UNION ALL
  SELECT x.array_oid, x.delimiter, e.oid, e.typtype, e.typbasetype
  FROM element x JOIN pg_catalog.pg_type e ON e.oid = x.base
  WHERE x.kind = 'd'
)
SELECT array_oid::int8, delimiter::text, oid::int8 FROM element WHERE kind <> 'd'
"""
"""Of each array type its delimiter, and the type of its elements; of a domain the type behind it."""


async def conversions(connection: AsyncConnection[Any], columns: Sequence[Column]) -> dict[int, Convert]:
    """What makes lists of the columns, by their number from 0, that hold arrays which psycopg does not know."""
    unknown = {
        number: column.type_code
        for number, column in enumerate(columns)
        if connection.adapters.types.get(column.type_code) is None
    }
    if not unknown:
        return {}
    async with connection.cursor() as cursor:
        await cursor.execute(_CATALOG, [sorted(set(unknown.values()))])
        found = {array: (delimiter, element) for array, delimiter, element in await cursor.fetchall()}
    return {number: _list_of(connection, *found[oid]) for number, oid in unknown.items() if oid in found}


def _list_of(connection: AsyncConnection[Any], delimiter: str, element: int) -> Convert:
    known = connection.adapters.get_loader(element, Format.TEXT) or connection.adapters.get_loader(0, Format.TEXT)
    assert known is not None
    load = known(element, connection).load
    return lambda text: parsed(text, delimiter, lambda item: load(item.encode()))


def parsed(text: str, delimiter: str, element: Convert) -> list[Any]:
    """An array in the server's text form (PostgreSQL manual, 8.15.6) as lists, as deep as it is."""
    found: list[Any] = []
    open_lists = [found]
    for token in _tokens(text[text.index("{") :], delimiter):
        if token.group() == "{":
            open_lists[-1].append([])
            open_lists.append(open_lists[-1][-1])
        elif token.group() == "}":
            open_lists.pop()
        elif (quoted := token.group("quoted")) is not None:
            open_lists[-1].append(element(re.sub(r"\\(.)", r"\1", quoted, flags=re.DOTALL)))
        elif (plain := token.group("plain")) is not None:
            open_lists[-1].append(None if plain == "NULL" else element(plain))
    (whole,) = found
    return list(whole)


def _tokens(text: str, delimiter: str) -> Iterator[re.Match[str]]:
    mark = re.escape(delimiter)
    return re.finditer(rf'[{{}}]|{mark}|"(?P<quoted>(?:[^"\\]|\\.)*)"|(?P<plain>[^{{}}"{mark}]+)', text, re.DOTALL)
