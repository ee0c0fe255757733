"""The statements in the body of an SQL function, with its arguments as parameters."""

from __future__ import annotations

from collections.abc import Callable

from pglast import ast

from orchestrator.grants.sql.parsing import UnreadableSql, deparse, parse
from orchestrator.inference.statements import Analysed, Dynamic, replace_nodes

_PARTS = (ast.SelectStmt, ast.InsertStmt, ast.UpdateStmt, ast.DeleteStmt, ast.MergeStmt)


def body_statements(source: str, arguments: list[str], function: str) -> list[Analysed | Dynamic]:
    """The statements of a body, whether it is a text, `RETURN` or `BEGIN ATOMIC`.

    `function.argument` becomes `$n`. An argument's bare name is a column's where there is one (PostgreSQL
    manual, 36.5.1); only whoever prepares the statement knows, and then calls `with_argument`.
    """
    try:
        parsed = parse(_plain(source))
    except UnreadableSql as error:
        return [Dynamic(f"its body is not looked into: {error.message}")]
    numbers = {name: number for number, name in enumerate(arguments, 1) if name}
    found: list[Analysed | Dynamic] = []
    for raw in parsed:
        if isinstance(raw.stmt, _PARTS):
            replace_nodes(raw.stmt, _argument(lambda path: _of_function(path, function, numbers)))
            found.append(Analysed(deparse(raw.stmt), len(arguments)))
        else:
            found.append(Dynamic(f"{type(raw.stmt).__name__.removesuffix('Stmt')} in its body is not looked into"))
    return found


def with_argument(statement: str, name: str, number: int) -> str:
    """The statement with the bare name taken for the argument, as `$number`."""
    (raw,) = parse(statement)
    assert raw.stmt is not None
    replace_nodes(raw.stmt, _argument(lambda path: number if path == [name] else None))
    return deparse(raw.stmt)


def _of_function(path: list[str], function: str, numbers: dict[str, int]) -> int | None:
    return numbers.get(path[1]) if len(path) == 2 and path[0] == function else None


def _argument(number_of: Callable[[list[str]], int | None]) -> Callable[[object], object]:
    def replaced(node: object) -> object:
        if not isinstance(node, ast.ColumnRef) or not all(isinstance(each, ast.String) for each in node.fields or ()):
            return node
        number = number_of([str(each.sval) for each in node.fields or ()])
        return node if number is None else ast.ParamRef(number=number)

    return replaced


def _plain(source: str) -> str:
    text = source.strip()
    if text.upper().startswith("BEGIN ATOMIC"):
        return text[len("BEGIN ATOMIC") :].rpartition("END")[0]
    if text.upper().startswith("RETURN "):
        return "SELECT " + text[len("RETURN ") :]
    return text
