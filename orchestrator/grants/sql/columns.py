"""What a statement calls the columns that it gives back, as far as that is certain without the catalog. Pure."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pglast import ast

_UNNAMED = "?column?"
_WITHOUT_NAMES = frozenset(("A_Const", "ParamRef", "BoolExpr", "NullTest", "BooleanTest"))
_OF_THEIR_KIND = {
    "CoalesceExpr": "coalesce",
    "A_ArrayExpr": "array",
    "RowExpr": "row",
    "GroupingFunc": "grouping",
}


def repeated_columns(statement: ast.RawStmt) -> tuple[str, ...]:
    """Names that certainly more than one column has, sorted; what `*` stands for is not known here."""
    names = Counter(name for name in map(_name_of, _targets(statement.stmt)) if name is not None)
    return tuple(sorted(name for name, times in names.items() if times > 1))


def _targets(node: ast.Node | None) -> Iterator[ast.ResTarget]:
    """The output columns: those of the first SELECT where several are combined."""
    while type(node).__name__ == "SelectStmt" and (left := getattr(node, "larg", None)) is not None:
        node = left
    if type(node).__name__ == "SelectStmt":
        yield from getattr(node, "targetList", None) or ()
    elif (returning := getattr(node, "returningClause", None)) is not None:
        yield from returning.exprs or ()


def _name_of(target: ast.ResTarget) -> str | None:
    if target.name:
        return str(target.name)
    certain, name = _figured(target.val)
    return (name or _UNNAMED) if certain else None


def _figured(node: ast.Node | None) -> tuple[bool, str | None]:
    """Whether the name is certain, and which it is; None: it has none of its own.

    The rules are those of `FigureColnameInternal` in PostgreSQL's parser (src/backend/parser/parse_target.c).
    """
    kind = type(node).__name__
    if kind in ("ColumnRef", "FuncCall"):
        last = getattr(node, "fields" if kind == "ColumnRef" else "funcname")[-1]
        return (True, str(last.sval)) if type(last).__name__ == "String" else (False, None)
    if kind in _OF_THEIR_KIND:
        return True, _OF_THEIR_KIND[kind]
    if kind == "TypeCast":
        certain, name = _figured(getattr(node, "arg", None))
        return certain, name or str(getattr(node, "typeName").names[-1].sval)  # noqa: B009 -- typed as a bare node
    if kind == "CollateClause":
        return _figured(getattr(node, "arg", None))
    if kind == "A_Expr":
        return getattr(node, "kind").name == "AEXPR_OP", None  # noqa: B009 -- typed as a bare node
    return kind in _WITHOUT_NAMES, None
