"""Which schemas a text needs to be allowed to use: those of the names in it, whatever they stand for.

A name without USAGE on its schema is not found, even where everybody may use what it names (PostgreSQL manual,
5.10, "Schemas and Privileges"). What stands behind a view or in a body that was analysed when it was made is not
looked up again, and so needs none.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import psycopg
from pglast import ast
from psycopg import sql

from orchestrator.inference.analysis.catalog import FIRST_USER_OID
from orchestrator.inference.analysis.trees import Tree
from orchestrator.inference.statements import name_parts, walk

_SYSTEM = ("pg_catalog", "information_schema")


@dataclass(slots=True)
class Written:
    """The names in a text that are not of tables, columns or functions: what is qualified, and what is not."""

    schemas: set[str] = field(default_factory=set)
    types: set[str] = field(default_factory=set)
    collations: set[str] = field(default_factory=set)

    def add(self, root: ast.Node) -> None:
        """Look through a tree of the parser."""
        for node in walk(root):
            if isinstance(node, ast.RangeVar):
                if node.schemaname is not None:
                    self.schemas.add(node.schemaname)
                continue
            for name, unqualified in _names(node):
                if len(name) > 1:
                    self.schemas.add(name[-2])
                elif unqualified is not None:
                    getattr(self, unqualified).add(name[0])


def _names(node: ast.Node) -> Iterator[tuple[list[str], str | None]]:
    """The names in one node, with the attribute of `Written` that takes those without a schema."""
    match node:
        case ast.TypeName():
            yield name_parts(node.names), "types"
        case ast.CollateClause():
            yield name_parts(node.collname), "collations"
        case ast.FuncCall():
            yield name_parts(node.funcname), None
        case ast.A_Expr():
            yield name_parts(node.name), None
        case ast.SubLink():
            yield name_parts(node.operName), None
        case ast.SortBy():
            yield name_parts(node.useOp), None
        case ast.RangeTableSample():
            yield name_parts(node.method), None


@dataclass(slots=True)
class Names:
    """The schemas of names, asked of the database and kept."""

    session: psycopg.Connection
    _known: dict[tuple[str, object], str | None] = field(default_factory=dict)

    def schemas(self, written: Written, analysed: Tree, path: str | None) -> set[str]:
        """The schemas that are needed, without the server's own. `path` is a search path other than the session's."""
        found = set(written.schemas)
        wanted: list[tuple[str, object]] = []
        wanted += [("type", (path, name)) for name in written.types]
        wanted += [("collation", (path, name)) for name in written.collations]
        wanted += [("function", oid) for oid in analysed.functions_by_name() if oid >= FIRST_USER_OID]
        wanted += [("operator", oid) for oid in analysed.operators() if oid >= FIRST_USER_OID]
        wanted += [(_CLASSES[kind], oid) for kind, oid in analysed.named_constants() if oid >= FIRST_USER_OID]
        for each in wanted:
            schema = self._schema(*each)
            if schema is not None:
                found.add(schema)
        return {each for each in found if each not in _SYSTEM and not each.startswith("pg_")}

    def closed(self, schemas: Iterable[str]) -> list[str]:
        """Those of the schemas that the session may not use."""
        rows = self.session.execute(
            "SELECT nspname FROM pg_namespace WHERE nspname = ANY(%s) AND NOT has_schema_privilege(oid, 'USAGE')",
            [sorted(schemas)],
        )
        return [str(row[0]) for row in rows]

    def may_be_overloaded(self, root: ast.Node | None) -> bool:
        """Whether somebody made a function or an operator of a name that is used in a text."""
        names = {name[-1] for node in walk(root) for name, _ in _names(node) if name}
        row = (
            self.session.execute(_MADE, {"names": sorted(names), "first": FIRST_USER_OID}).fetchone() if names else None
        )
        return bool(row and row[0])

    def _schema(self, kind: str, what: object) -> str | None:
        if (kind, what) not in self._known:
            value = sql.Identifier(what[1]).as_string(None) if isinstance(what, tuple) else what
            row = self.session.execute(_QUERIES[kind].encode(), [value]).fetchone()
            self._known[kind, what] = None if row is None else str(row[0])
        return self._known[kind, what]


_CLASSES = {
    24: "function",
    2202: "function",
    2203: "operator",
    2204: "operator",
    2205: "relation",
    2206: "type by oid",
    3734: "configuration",
    3769: "dictionary",
    4191: "collation by oid",
}
"""By the types of constants that name something: `regproc`, `regprocedure`, `regoper`, `regoperator`, `regclass`,
`regtype`, `regconfig`, `regdictionary`, `regcollation`."""

_NAMESPACE = "SELECT n.nspname FROM {0} o JOIN pg_namespace n ON n.oid = o.{1} WHERE o.oid = {2}"
_QUERIES = {
    "function": _NAMESPACE.format("pg_proc", "pronamespace", "%s"),
    "operator": _NAMESPACE.format("pg_operator", "oprnamespace", "%s"),
    "relation": _NAMESPACE.format("pg_class", "relnamespace", "%s"),
    "configuration": _NAMESPACE.format("pg_ts_config", "cfgnamespace", "%s"),
    "dictionary": _NAMESPACE.format("pg_ts_dict", "dictnamespace", "%s"),
    "type": _NAMESPACE.format("pg_type", "typnamespace", "to_regtype(%s)::oid"),
    "type by oid": _NAMESPACE.format("pg_type", "typnamespace", "%s"),
    "collation": _NAMESPACE.format("pg_collation", "collnamespace", "to_regcollation(%s)::oid"),
    "collation by oid": _NAMESPACE.format("pg_collation", "collnamespace", "%s"),
}
_MADE = """
SELECT EXISTS (SELECT FROM pg_proc WHERE proname = ANY(%(names)s) AND oid >= %(first)s)
OR EXISTS (SELECT FROM pg_operator WHERE oprname = ANY(%(names)s) AND oid >= %(first)s)
"""
