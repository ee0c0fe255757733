"""Expressions as tokens: their bounds, and the names in them. Nothing here needs the engine."""

from __future__ import annotations

import re
from functools import lru_cache

from orchestrator.errors import InvalidExpression

MAX_CHARACTERS = 20_000
"""Of one expression."""

MAX_TOKENS = 1_000
"""Of one expression. The engine parses no deeper than 32 levels, and needs 0.1 s to refuse a chain of 20,000."""

MAX_NESTING = 30
"""Brackets within brackets. The engine itself refuses 32."""

_TEXTS = (
    r"(?:[bB]?[rR]|[rR][bB])(?:\"{3}[\s\S]*?\"{3}|'{3}[\s\S]*?'{3}|\"[^\"\r\n]*\"|'[^'\r\n]*')",
    r"[bB]?(?:\"{3}(?:\\[\s\S]|[^\\])*?\"{3}|'{3}(?:\\[\s\S]|[^\\])*?'{3})",
    r"[bB]?(?:\"(?:\\[\s\S]|[^\"\\\r\n])*\"|'(?:\\[\s\S]|[^'\\\r\n])*')",
)
"""Literals of texts and bytes: raw ones, in which a backslash is only a backslash, and the others."""

_UNCLOSED = r"(?P<unclosed>\"(?:\\[\s\S]|[^\"\\\r\n])*|'(?:\\[\s\S]|[^'\\\r\n])*)"
"""A quote that nothing closes, with the rest of its line: otherwise each quote of such a line is looked for anew."""

_PLAIN = r"(?P<number>\d[\w.]*)|(?P<name>[A-Za-z_]\w*)|(?P<other>\S)"
PLAIN_TOKEN = re.compile(_PLAIN)
"""What stands behind a quote that nothing closes, in a comment say."""

_REST = f"{_UNCLOSED}|{_PLAIN}"
TOKEN = re.compile(rf"(?P<string>{'|'.join(_TEXTS)})|{_REST}")
_TOKEN_OR_COMMENT = re.compile(rf"(?P<comment>//[^\n]*)|(?P<string>{'|'.join(_TEXTS)})|{_REST}")

_NO_VARIABLES = frozenset(
    (
        *("true", "false", "null", "in", "type", "google"),
        *("int", "uint", "double", "bool", "string", "bytes", "list", "map", "null_type"),
    )
)
"""Words and types of the language."""

_MACROS = ("map", "filter", "all", "exists", "exists_one", "existsOne")


def tokens(cel: str) -> list[re.Match[str]]:
    """The tokens of an expression, without comments."""
    return [token for token in _TOKEN_OR_COMMENT.finditer(cel) if token.lastgroup != "comment"]


@lru_cache(maxsize=4096)
def check_size(cel: str) -> None:
    """Raises InvalidExpression for an expression that the engine is not to see: empty, too long, or too deep."""
    if not cel:
        raise InvalidExpression("the expression is empty", hint="write one, or take the `${{ }}` out")
    shown = cel[:40].strip()
    if len(cel) > MAX_CHARACTERS:
        raise InvalidExpression(
            f"the expression `{shown}...` has {len(cel)} characters; the limit is {MAX_CHARACTERS}", hint=TOO_LARGE
        )
    depth = deepest = 0
    found = tokens(cel)
    for token in found:
        depth += (token.group() in ("(", "[", "{")) - (token.group() in (")", "]", "}"))
        deepest = max(deepest, depth)
    if len(found) > MAX_TOKENS:
        raise InvalidExpression(
            f"the expression `{shown}...` has {len(found)} words and signs; the limit is {MAX_TOKENS}", hint=TOO_LARGE
        )
    if deepest > MAX_NESTING:
        raise InvalidExpression(
            f"the expression `{shown}...` has {deepest} brackets within each other; the limit is {MAX_NESTING}",
            hint=TOO_LARGE,
        )


TOO_LARGE = "compute it in a step, such as one of the action `python`, or give the data as an input"


def variables(found: list[re.Match[str]]) -> list[int]:
    """The indexes of the tokens that are variables taken from outside: no member, function, type or loop variable."""
    bound = loop_variables(found)
    return [
        index
        for index, token in enumerate(found)
        if token.lastgroup == "name"
        and token.group() not in _NO_VARIABLES
        and token.group() not in bound
        and not (index > 0 and found[index - 1].group() == ".")
        and not (index + 1 < len(found) and found[index + 1].group() in ("(", "{"))
    ]


def loop_variables(found: list[re.Match[str]]) -> frozenset[str]:
    """Names bound by macros: the first argument of `.map(x, ...)` and its like."""
    bound = set()
    for index in range(len(found) - 4):
        dot, macro, bracket, name, comma = (token.group() for token in found[index : index + 5])
        if dot == "." and macro in _MACROS and bracket == "(" and comma == ",":
            bound.add(name)
    return frozenset(bound)
