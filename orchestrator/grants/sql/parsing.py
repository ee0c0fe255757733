"""The one door to PostgreSQL's parser, which is native code that overflows its stack on what is nested too deeply.

Only bounded texts pass. The bounds are counted over the tokens of PostgreSQL's own lexer, which does not recurse.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from orchestrator.errors import UsageError

if TYPE_CHECKING:
    from pglast import ast

MAX_CHARACTERS = 100_000
"""Of one text with all its statements."""

MAX_TOKENS = 20_000
"""Of one text: a tenth of a second in the parser."""

MAX_NESTING = 60
"""Brackets and CASE within each other. On a thread with a stack of 512 KiB about 400 subqueries crash the process."""

MAX_JOINED = 100
"""UNION, INTERSECT, EXCEPT and JOIN in one query, those around it included; about 700 crash."""

MAX_CHAINED = 400
"""Tokens between two commas (or AND, OR, WHEN, THEN, ELSE, `;`), with those around them: `1 + 1 + ...` is as deep as
it is long, and about 1,200 tokens crash."""

MAX_SIGNS = 500
"""Characters of operators in a row. For each of them the lexer looks at the whole row and gives it back: 70,000 take it
17 seconds, in which nothing else of the process is carried out."""

_PLACEHOLDER = re.compile(r"%%|%\(([^)]{0,500})\)[sbt]|%[sbt]")
"""A name has a length, so that a text of `%(` without end is looked through once, and not once for each."""

_ESCAPED = re.compile(r"[z\u0080-\U0010ffff]")

_SIGNS = re.compile(r"[-+*/<>=~!@#%^&|`?]+")

_CLOSED_BY = {"ASCII_40": "ASCII_41", "ASCII_91": "ASCII_93", "CASE": "END_P"}
"""The names that PostgreSQL's lexer gives to brackets."""

_CLOSING = frozenset(_CLOSED_BY.values())
_SEPARATING = frozenset(("ASCII_44", "AND", "OR", "WHEN", "THEN", "ELSE"))
_JOINING = frozenset(("UNION", "INTERSECT", "EXCEPT", "JOIN"))
_COMMENTS = frozenset(("SQL_COMMENT", "C_COMMENT"))
_SEMICOLON = "ASCII_59"


class UnreadableSql(UsageError):
    """A text that PostgreSQL's parser refuses, or that it is not given."""


class TooLargeSql(UnreadableSql):
    """A text that is too long or too deep for the parser."""


def with_parameters(sql: str) -> str:
    """The statement with psycopg's placeholders (`%(name)s`, `%s`) as `$1`, `$2`..., and `%%` as `%`.

    A name that occurs twice is the same parameter, as psycopg does it.
    """
    return _numbered(sql)[0]


def parameter_names(sql: str) -> list[str]:
    """The names of psycopg's placeholders in the order of their numbers, `#0`, `#1`... for those without one."""
    return list(_numbered(sql)[1])


def _numbered(sql: str) -> tuple[str, dict[str, int]]:
    numbers: dict[str, int] = {}

    def parameter(match: re.Match[str]) -> str:
        if match.group() == "%%":
            return "%"
        name = match.group(1) if match.group(1) is not None else f"#{len(numbers)}"
        return f"${numbers.setdefault(name, len(numbers) + 1)}"

    return _PLACEHOLDER.sub(parameter, sql), numbers


def parse(sql: str, *, placeholders: bool = False) -> tuple[ast.RawStmt, ...]:
    """The statements of a text. `placeholders` are psycopg's; else there are `$n`. Raises UnreadableSql."""
    from pglast import parse_sql
    from pglast.error import Error

    if len(sql) > MAX_CHARACTERS:
        raise _too_large(f"{len(sql)} characters", MAX_CHARACTERS)
    text, names = _numbered(sql) if placeholders else (sql, {})
    try:
        check_bounds(text)
        parsed: tuple[ast.RawStmt, ...] = parse_sql(text)
    except (Error, ValueError, RecursionError) as error:
        said = str(error.args[0]) if error.args and not isinstance(error, UnicodeError) else type(error).__name__
        said = _with_names(said, names)
        where = _line_of(text, error.args[1] if len(error.args) > 1 else None)
        raise UnreadableSql(f"the SQL cannot be parsed: {said}{where}", hint="try it with psql") from None
    return parsed


def _with_names(said: str, names: Mapping[str, int]) -> str:
    """What the parser says, with psycopg's placeholders where it has seen `$n`."""
    written = {f'"${number}"': '"%s"' if name.startswith("#") else f'"%({name})s"' for name, number in names.items()}
    return re.sub(r'"\$\d+"', lambda match: written.get(match[0], match[0]), said)


def _line_of(text: str, position: object) -> str:
    """In which line of several a character is, which the parser names by its number from 0."""
    if not isinstance(position, int) or "\n" not in text.strip():
        return ""
    return f", in its line {text.count(chr(10), 0, position) + 1}"


def check_bounds(text: str) -> None:
    """Raises UnreadableSql for a text that the parser must not be given, and ValueError for one without tokens.

    Its tokens are those of SQL, which are also those of PL/pgSQL.
    """
    from pglast.parser import scan

    if len(text) > MAX_CHARACTERS:
        raise _too_large(f"{len(text)} characters", MAX_CHARACTERS)
    if max((len(row.group()) for row in _SIGNS.finditer(text)), default=0) > MAX_SIGNS:
        raise _too_large("more signs in a row", MAX_SIGNS)
    if "\0" in text:
        raise UnreadableSql("the SQL has a NUL character", hint="the server would read it up to there only")
    _check_depth([token.name for token in scan(_in_ascii(text))])


def deparse(node: ast.Node) -> str:
    """The text of a tree. Raises UnreadableSql for one that is too deep to be written."""
    from pglast.stream import RawStream

    try:
        return str(RawStream()(node))
    except RecursionError:
        raise _too_large("more levels than can be written", MAX_NESTING) from None


def _in_ascii(text: str) -> str:
    """The text with the same tokens in ASCII: for others the lexer counts the characters before each token anew.

    Letters become letters, and no two texts become one: a dollar quote is closed where it was. None of the words that
    are looked at has a z.
    """
    if text.isascii():
        return text
    return _ESCAPED.sub(lambda found: "zz" if found.group() == "z" else f"zy{ord(found.group()):x}y", text)


@dataclass(slots=True)
class _Level:
    """Inside of one bracket or CASE: what closes it, and what was read there since the last comma or its like."""

    closing: str
    chained: int = 0
    joined: int = 0
    between: int = 0


def _check_depth(names: Iterable[str]) -> None:
    """How deep the tree can be at most, told from tokens alone: more than it is, never less."""
    levels = [_Level("")]
    count = 0
    before = ""
    for name in names:
        if name in _COMMENTS:
            continue
        count += 1
        here = levels[-1]
        if name == _SEMICOLON:
            here.chained = here.joined = 0
        elif name == "AND" and here.between:  # of BETWEEN: `x BETWEEN 1 AND 2 IS NULL BETWEEN ...` goes on for ever
            here.between -= 1
            here.chained += 1
        elif name in _SEPARATING:
            here.chained = 0
        elif name in _CLOSING and before != "ASCII_46":  # `a.end` is a column
            _close(levels, name)
        else:
            here.chained += 1
            here.between += name == "BETWEEN"
            here.joined += name in _JOINING
            if name in _CLOSED_BY:
                levels.append(_Level(_CLOSED_BY[name]))
            _check_levels(levels)
        before = name
    if count > MAX_TOKENS:
        raise _too_large(f"{count} words and signs", MAX_TOKENS)


def _close(levels: list[_Level], name: str) -> None:
    """Leave the level that the token closes. END closes CASE alone: elsewhere it names a column."""
    if name == "END_P":
        if levels[-1].closing == name:
            levels.pop()
    elif any(level.closing == name for level in levels):
        while levels.pop().closing != name:
            pass


def _check_levels(levels: list[_Level]) -> None:
    if len(levels) - 1 > MAX_NESTING:
        raise _too_large("more brackets and CASE within each other", MAX_NESTING)
    if sum(level.joined for level in levels) > MAX_JOINED:
        raise _too_large("more JOIN or UNION", MAX_JOINED)
    if sum(level.chained for level in levels) > MAX_CHAINED:
        raise _too_large("more words and signs without a comma, AND or OR between them", MAX_CHAINED)


def _too_large(what: str, limit: int) -> TooLargeSql:
    return TooLargeSql(
        f"the SQL is too large to be looked into: {what}; the limit is {limit}",
        hint="split it into several steps, use WITH, or put it into a view or a function of the database",
    )
