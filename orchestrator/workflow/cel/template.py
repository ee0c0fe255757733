"""`${{ CEL }}` in texts: finding it, and finding what it refers to. Nothing here needs the engine."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from orchestrator.errors import InvalidExpression
from orchestrator.workflow.cel.syntax import (
    MAX_CHARACTERS,
    PLAIN_TOKEN,
    TOKEN,
    check_size,
    loop_variables,
    tokens,
    variables,
)
from orchestrator.workflow.problems import suggestion

ROOTS = ("inputs", "steps", "run", "endpoints", "context", "call", "task", "workflow", "step", "item")
_OPENING = re.compile(r"\$?\$\{\{")
_OF_LOOPS_TOO = frozenset({"workflow", "step", "item"})
"""Variables whose names a loop may take for its own."""

PATH = re.compile(rf"(?:{'|'.join(ROOTS)})(?:\.[A-Za-z_]\w*)+|item")
"""An expression that only names a value."""

_KEY = re.compile(r"[\"'][\w \-]*[\"']")
"""A key whose literal is its text."""


@dataclass(frozen=True, slots=True)
class Expression:
    """One `${{ }}`: its CEL text, and where it begins in the surrounding text."""

    cel: str
    offset: int


@dataclass(frozen=True, slots=True)
class Template:
    """A text with expressions in it, as alternating literal and expression parts."""

    parts: tuple[str | Expression, ...]

    @property
    def expressions(self) -> tuple[Expression, ...]:
        """The expression parts, in their order."""
        return tuple(part for part in self.parts if isinstance(part, Expression))

    @property
    def whole(self) -> Expression | None:
        """The expression, if the text is nothing else."""
        return self.parts[0] if len(self.parts) == 1 and isinstance(self.parts[0], Expression) else None


@dataclass(frozen=True, slots=True, order=True)
class Reference:
    """What an expression refers to, such as `("steps", "read", "output", "rows")`."""

    path: tuple[str, ...]

    def __str__(self) -> str:
        return ".".join(self.path)


@lru_cache(maxsize=4096)
def parse_template(text: str) -> Template:
    """Split a text into literals and expressions. Raises InvalidExpression for one that is not closed, or too large.

    Whether it is CEL is not asked here: that takes the engine.
    """
    parts: list[str | Expression] = []
    position = 0
    for opening in _OPENING.finditer(text):
        if opening.start() < position:
            continue
        if opening.group().startswith("$$"):
            parts += [text[position : opening.start()], "${{"]
            position = opening.end()
            continue
        closing = _closing(text, opening.end())
        if closing is None:
            raise InvalidExpression("`${{` is not closed", hint="end the expression with `}}`")
        parts.append(text[position : opening.start()])
        cel = text[opening.end() : closing].strip()
        check_size(cel)
        parts.append(Expression(cel, opening.start()))
        position = closing + 2
    parts.append(text[position:])
    return Template(tuple(part for part in parts if part != "") or ("",))


def _closing(text: str, start: int) -> int | None:
    """Where the expression that begins at `start` ends: the first `}}` outside of strings and of braces of its own."""
    depth = 0
    position = plain_until = start
    while position < len(text):
        if position - start > 2 * MAX_CHARACTERS:  # white space around it included
            raise InvalidExpression(
                f"an expression is not closed after {position - start} characters; the limit is {MAX_CHARACTERS}",
                hint="end it with `}}`",
            )
        match = (PLAIN_TOKEN if position < plain_until else TOKEN).search(text, position)
        if match is None:
            return None
        if match.lastgroup == "unclosed":
            position, plain_until = match.start() + 1, match.end()
            continue
        token = match.group()
        if token == "}":  # noqa: S105 -- a token of the language
            if depth == 0 and text.startswith("}}", match.start()):
                return match.start()
            depth -= 1
        elif token == "{":  # noqa: S105 -- a token of the language
            depth += 1
        position = match.end()
    return None


@lru_cache(maxsize=4096)
def references(cel: str) -> frozenset[Reference]:
    """What an expression refers to. Raises InvalidExpression where it is too large, or names what there is not."""
    check_size(cel)
    found = tokens(cel)
    if taken := sorted(loop_variables(found) & (set(ROOTS) - _OF_LOOPS_TOO)):
        raise InvalidExpression(f"a loop of `{cel}` calls its variable `{taken[0]}`", hint="give it another name")
    names: set[Reference] = set()
    for index in variables(found):
        name = found[index].group()
        if name not in ROOTS:
            raise InvalidExpression(f"there is no variable `{name}`", hint=suggestion(name, ROOTS))
        names.add(Reference((name, *_selections(found, index + 1))))
    return frozenset(names)


def _selections(found: list[re.Match[str]], index: int) -> Iterator[str]:
    while index + 1 < len(found):
        mark = found[index].group()
        following = found[index + 1]
        if mark == "." and following.lastgroup == "name":
            if index + 2 < len(found) and found[index + 2].group() == "(":
                return
            yield following.group()
            index += 2
        elif mark == "[" and _KEY.fullmatch(following.group()) and index + 2 < len(found):
            yield following.group()[1:-1]
            index += 3
        else:
            return


def asked_for(cel: str) -> frozenset[str]:
    """The paths that `has(...)` asks for, such as `inputs.limit`."""
    found = tokens(cel)
    return frozenset(
        ".".join((found[index + 2].group(), *_selections(found, index + 3)))
        for index in range(len(found) - 2)
        if found[index].group() == "has" and found[index + 1].group() == "("
    )


def references_in(value: Any) -> Iterator[Reference]:
    """What all expressions in a value refer to; maps and lists are walked. Raises InvalidExpression."""
    for text in texts_in(value):
        for expression in parse_template(text).expressions:
            yield from references(expression.cel)


def texts_in(value: Any) -> Iterator[str]:
    """Every text in a value; maps, but for their keys, and lists are walked."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from texts_in(item)
    elif isinstance(value, list):
        for item in value:
            yield from texts_in(item)
