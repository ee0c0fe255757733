"""What runs along with a write: triggers, checks, generated columns, expressions of indexes and of partition keys.

It is looked for where the write can arrive: on the table itself, on its partitions and those that inherit from it,
and for a partition that is written to directly also in the keys of what it is a part of.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import psycopg

from orchestrator.inference.analysis.catalog import Relation
from orchestrator.inference.analysis.trees import DELETE, INSERT, UPDATE, Permission

_ROW, _BEFORE, _ON_INSERT, _ON_DELETE, _ON_UPDATE = 1, 2, 4, 8, 16
"""Bits of `tgtype` (`catalog/pg_trigger.h`)."""


@dataclass(frozen=True, slots=True)
class Fired:
    """A trigger that fires: of which table, its function, and the tree of its condition."""

    relation: int
    function: int
    condition: str


@dataclass(frozen=True, slots=True)
class _Part:
    """One row of the catalog. `columns` are names: the numbers differ between a table and its partitions."""

    what: str
    relation: int
    own: bool
    events: int
    columns: frozenset[str]
    text: str
    function: int


class Writes:
    """What the catalog says of the tables that are written to, read once for each."""

    def __init__(self, session: psycopg.Connection) -> None:
        self._session = session
        self._known: dict[tuple[int, bool], list[_Part]] = {}

    def fired(self, permission: Permission, relation: Relation) -> list[Fired]:
        """The triggers that the write fires, here and in what belongs to the table."""
        parts = self._parts(permission, relation)
        updated = {relation.columns[number] for number in permission.update if number in relation.columns}
        own = _events(permission.required)
        moved = _ON_INSERT | _ON_DELETE if own & _ON_UPDATE and _may_move(parts, updated) else 0
        return [
            Fired(part.relation, part.function, part.text)
            for part in parts
            if part.what == "trigger" and _fires(part, own, moved, updated, parts)
        ]

    def expressions(self, permission: Permission, relation: Relation) -> Iterator[str]:
        """The trees of what is computed of the new rows, whose functions are called as whoever writes."""
        if not permission.required & (INSERT | UPDATE):
            return
        parts = self._parts(permission, relation)
        updated = {relation.columns[number] for number in permission.update if number in relation.columns}
        all_columns = bool(permission.required & INSERT) or _changes_rows(parts)
        for part in parts:
            if part.what in ("check", "index", "key") or (
                part.what == "generated" and (all_columns or part.columns & updated)
            ):
                yield part.text

    def _parts(self, permission: Permission, relation: Relation) -> list[_Part]:
        descends = relation.kind == "p" or (permission.inherited and bool(permission.required & (UPDATE | DELETE)))
        key = (relation.oid, descends)
        if key not in self._known:
            parameters = {"relation": relation.oid, "descends": descends}
            self._known[key] = [
                _Part(
                    str(what),
                    int(where),
                    int(where) == relation.oid,
                    int(events),
                    frozenset(columns or ()),
                    str(text or ""),
                    int(function),
                )
                for what, where, events, columns, text, function in self._session.execute(_ALONG, parameters)
            ]
        return self._known[key]


def _events(required: int) -> int:
    pairs = ((INSERT, _ON_INSERT), (DELETE, _ON_DELETE), (UPDATE, _ON_UPDATE))
    return sum(event for bit, event in pairs if required & bit)


def _fires(part: _Part, own: int, moved: int, updated: set[str], parts: list[_Part]) -> bool:
    """A trigger for each statement fires only where the statement names the table, one for each row wherever it is."""
    events = part.events & (own | (moved if part.events & _ROW else 0))
    if not events or not (part.own or part.events & _ROW):
        return False
    if events == _ON_UPDATE and part.columns:  # UPDATE OF
        generated = {name for each in parts if each.what == "generated" for name in _generated(each)}
        return bool(part.columns & (updated | generated))
    return True


def _generated(part: _Part) -> frozenset[str]:
    """The generated column itself, which a trigger may be for: it counts as updated with any of its own."""
    return frozenset(name.removeprefix("=") for name in part.columns if name.startswith("="))


def _changes_rows(parts: list[_Part]) -> bool:
    """Whether a trigger may set other columns than the statement does."""
    mask = _ROW | _BEFORE | _ON_UPDATE
    return any(part.what == "trigger" and part.events & mask == mask for part in parts)


def _may_move(parts: list[_Part], updated: set[str]) -> bool:
    """Whether an update may move a row to another partition: then it is deleted here and inserted there."""
    keys = [part for part in parts if part.what == "key"]
    named = frozenset(column for part in keys for column in part.columns)
    return bool(keys) and (bool(named & updated) or _changes_rows(parts))


_ALONG = r"""
WITH RECURSIVE down (oid) AS (
    SELECT %(relation)s::oid UNION
    SELECT i.inhrelid FROM down d JOIN pg_inherits i ON i.inhparent = d.oid WHERE %(descends)s
), up (oid) AS (
    SELECT %(relation)s::oid UNION
    SELECT i.inhparent FROM up u JOIN pg_class c ON c.oid = u.oid AND c.relispartition
    JOIN pg_inherits i ON i.inhrelid = c.oid
)
SELECT 'trigger', d.oid::int8, t.tgtype::int,
    (SELECT array_agg(a.attname::text) FROM pg_attribute a WHERE a.attrelid = d.oid AND a.attnum = ANY(t.tgattr)),
    t.tgqual::text, t.tgfoid::int8
FROM down d JOIN pg_trigger t ON t.tgrelid = d.oid WHERE NOT t.tgisinternal AND t.tgenabled IN ('O', 'A')
UNION ALL
SELECT 'check', d.oid::int8, 0, NULL, c.conbin::text, 0 FROM down d JOIN pg_constraint c ON c.conrelid = d.oid
WHERE c.contype = 'c' AND c.conbin::text ~ 'funcid'
UNION ALL
SELECT 'generated', d.oid::int8, 0, array_append((
    SELECT array_agg(u.attname::text) FROM regexp_matches(e.adbin::text, ':varattno (\d+)', 'g') AS used (number)
    JOIN pg_attribute u ON u.attrelid = a.attrelid AND u.attnum = used.number[1]::int), '=' || a.attname),
    e.adbin::text, 0
FROM down d JOIN pg_attribute a ON a.attrelid = d.oid AND a.attgenerated = 's' AND NOT a.attisdropped
JOIN pg_attrdef e ON e.adrelid = a.attrelid AND e.adnum = a.attnum
UNION ALL
SELECT 'index', d.oid::int8, 0, NULL, concat(i.indexprs::text, ' ', i.indpred::text), 0
FROM down d JOIN pg_index i ON i.indrelid = d.oid WHERE i.indexprs IS NOT NULL OR i.indpred IS NOT NULL
UNION ALL
SELECT 'key', r.oid::int8, 0, (
    SELECT array_agg(a.attname::text) FROM pg_attribute a WHERE a.attrelid = p.partrelid AND (
        a.attnum = ANY(p.partattrs) OR a.attnum IN (
            SELECT u.n[1]::int FROM regexp_matches(p.partexprs::text, ':varattno (\d+)', 'g') AS u (n)))),
    p.partexprs::text, 0
FROM (SELECT oid FROM down UNION SELECT oid FROM up) r JOIN pg_partitioned_table p ON p.partrelid = r.oid
"""
