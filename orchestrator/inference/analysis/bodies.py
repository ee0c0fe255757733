"""The statements in the body of an SQL function, with its arguments as parameters."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pglast import ast

from orchestrator.grants.sql.parsing import UnreadableSql, parse
from orchestrator.inference.statements import Dynamic, Text, text_of, walk

_PARTS = (ast.SelectStmt, ast.InsertStmt, ast.UpdateStmt, ast.DeleteStmt, ast.MergeStmt)


@dataclass(frozen=True, slots=True)
class Arguments:
    """Of a function: its own name, and the names of what goes in, empty for those without one."""

    function: str
    names: Sequence[str]

    def meant_by(self, path: Sequence[str]) -> tuple[int, Sequence[str]] | None:
        """The number of the argument that a name stands for, from 1, and what is left of the path to a field of it.

        What PostgreSQL does with a name that is no column (`sql_fn_post_column_ref` in `executor/functions.c`).
        """
        first, rest = path[0], path[1:]
        if first == self.function and rest and (number := self._number(rest[0])) is not None:
            return number, rest[1:]
        if len(path) > 2 or (number := self._number(first)) is None:
            return None
        return number, rest

    def _number(self, name: str) -> int | None:
        return next((number for number, each in enumerate(self.names, 1) if each and each == name), None)


def body_statements(source: str) -> list[Text | Dynamic]:
    """The statements of a body, whether it is a text, `RETURN` or `BEGIN ATOMIC`."""
    text = _plain(source)
    try:
        parsed = parse(text)
    except UnreadableSql as error:
        return [Dynamic(f"its body is not looked into: {error.message}")]
    return [
        Text(text_of(text, raw), raw.stmt)
        if isinstance(raw.stmt, _PARTS)
        else Dynamic(f"{type(raw.stmt).__name__.removesuffix('Stmt')} in its body is not looked into")
        for raw in parsed
    ]


def with_argument(statement: str, place: int, arguments: Arguments) -> str | None:
    """The statement with the name that stands at a place taken for an argument, as `$number`; None if it is none.

    A name is a column's where there is one (PostgreSQL manual, 36.5.1): only the server knows, and says where not.
    """
    from pglast.parser import scan

    (raw,) = parse(statement)
    assert raw.stmt is not None
    found = next((each for each in walk(raw.stmt) if isinstance(each, ast.ColumnRef) and each.location == place), None)
    if found is None:
        return None
    fields = found.fields or ()
    path = [str(each.sval) for each in fields if isinstance(each, ast.String)]
    meant = arguments.meant_by(path) if path else None
    if meant is None:
        return None
    number, rest = meant
    tokens = [token for token in scan(statement) if token.start >= place][: 2 * len(fields) - 1]
    kept = ["*"] if len(path) < len(fields) else []
    names = [f'"{name.replace(chr(34), 2 * chr(34))}"' for name in rest] + kept
    text = f"(${number}).{'.'.join(names)}" if names else f"${number}"
    return statement[:place] + text + statement[tokens[-1].end + 1 :]


def _plain(source: str) -> str:
    text = source.strip()
    if text.upper().startswith("BEGIN ATOMIC"):
        return text[len("BEGIN ATOMIC") :].rpartition("END")[0]
    if text.upper().startswith("RETURN "):
        return "SELECT " + text[len("RETURN ") :]
    return text
