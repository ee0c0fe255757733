"""`${{ CEL }}` in workflow files: finding it, checking what it refers to, evaluating it.

A text that is exactly one expression keeps the type of its result; in a longer text the results
are inserted, and must be scalars. `$${{` stands for a literal `${{`. The language is CEL
(https://cel.dev); credentials are not among its variables, so no expression can ever see one.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cache, lru_cache
from types import ModuleType
from typing import Any

from orchestrator.errors import InvalidExpression
from orchestrator.secret import Secret

ROOTS = ("inputs", "steps", "run", "endpoints", "context")
_OPENING = re.compile(r"\$?\$\{\{")
_TOKEN = re.compile(
    r"""(?P<string>[rRbB]{0,2}(?:\"{3}(?:.|\n)*?\"{3}|'{3}(?:.|\n)*?'{3}|"(?:\\.|[^"\\\n])*"|'(?:\\.|[^'\\\n])*'))"""
    r"|(?P<number>\d[\w.]*)|(?P<name>[A-Za-z_]\w*)|(?P<other>\S)",
    re.VERBOSE,
)


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
    """Split a text into literals and expressions. Raises InvalidExpression for one that is not closed or not CEL."""
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
        _compiled(cel)
        parts.append(Expression(cel, opening.start()))
        position = closing + 2
    parts.append(text[position:])
    return Template(tuple(part for part in parts if part != "") or ("",))


def _closing(text: str, start: int) -> int | None:
    """Where the expression that begins at `start` ends: the first `}}` outside of strings and of braces of its own."""
    depth = 0
    position = start
    while position < len(text):
        match = _TOKEN.search(text, position)
        if match is None:
            return None
        token = match.group()
        if token == "}":  # noqa: S105 -- a token of the language
            if depth == 0 and text.startswith("}}", match.start()):
                return match.start()
            depth -= 1
        elif token == "{":  # noqa: S105 -- a token of the language
            depth += 1
        position = match.end()
    return None


@cache
def _engine() -> ModuleType:
    """The CEL runtime, without the command line that its package imports along: 10 MiB and a tenth of a second."""
    command_line = ModuleType("cel.cli")
    given = sys.modules.setdefault("cel.cli", command_line)
    try:
        import cel
    finally:
        if given is command_line:
            del sys.modules["cel.cli"]
    return cel


@lru_cache(maxsize=4096)
def _compiled(cel: str) -> Any:
    engine = _engine()
    if not cel:
        raise InvalidExpression("the expression is empty")
    try:
        return engine.compile(cel)
    except (ValueError, TypeError, RuntimeError) as error:
        detail = str(error).splitlines()[0].removeprefix(f"Failed to parse expression '{cel}': ")
        raise InvalidExpression(
            f"`{cel}` is not a CEL expression: {detail}", hint="the language is CEL, see cel.dev"
        ) from None


@lru_cache(maxsize=4096)
def references(cel: str) -> frozenset[Reference]:
    """What an expression refers to. Raises InvalidExpression for a variable that does not exist."""
    known = set(_compiled(cel).references()["variables"])
    tokens = list(_TOKEN.finditer(cel))
    found: set[Reference] = set()
    bound = _bound_names(tokens)
    for index, token in enumerate(tokens):
        name = token.group()
        after_dot = index > 0 and tokens[index - 1].group() == "."
        if token.lastgroup != "name" or after_dot or name not in known or name in bound:
            continue
        if name not in ROOTS:
            from orchestrator.workflow.problems import suggestion

            raise InvalidExpression(f"there is no variable `{name}`", hint=suggestion(name, ROOTS))
        found.add(Reference((name, *_selections(tokens, index + 1))))
    return frozenset(found)


def _bound_names(tokens: list[re.Match[str]]) -> set[str]:
    """Names bound by comprehension macros: the first argument of `.map(x, ...)` and its like."""
    bound = set()
    for index in range(len(tokens) - 4):
        dot, macro, paren, name, comma = (token.group() for token in tokens[index : index + 5])
        if dot == "." and macro in ("map", "filter", "all", "exists", "exists_one") and paren == "(" and comma == ",":
            bound.add(name)
    return bound


def _selections(tokens: list[re.Match[str]], index: int) -> Iterator[str]:
    while index + 1 < len(tokens):
        mark = tokens[index].group()
        following = tokens[index + 1]
        if mark == "." and following.lastgroup == "name":
            if index + 2 < len(tokens) and tokens[index + 2].group() == "(":
                return
            yield following.group()
            index += 2
        elif mark == "[" and following.lastgroup == "string" and index + 2 < len(tokens):
            yield following.group()[1:-1]
            index += 3
        else:
            return


def evaluate(value: Any, context: Mapping[str, Any]) -> Any:
    """The value with every expression in it replaced by its result; maps and lists are walked.

    `context` gives `inputs`, `steps`, `run`, `endpoints`, `context`. A secret input that is referred
    to as a whole comes out as the `Secret` itself. Raises InvalidExpression, which names the
    expression and never a value.
    """
    if isinstance(value, str):
        return _text(value, context)
    if isinstance(value, Mapping):
        return {key: evaluate(item, context) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [evaluate(item, context) for item in value]
    return value


def holds(condition: str, context: Mapping[str, Any]) -> bool:
    """Whether an `if:` is true. It may be written with or without `${{ }}`. Raises InvalidExpression."""
    result = _run(condition_of(condition), context)
    if not isinstance(result, bool):
        raise InvalidExpression(f"the condition `{condition}` is neither true nor false")
    return result


def condition_of(text: str) -> str:
    """The CEL text of an `if:`."""
    if "${{" not in text:
        _compiled(text.strip())
        return text.strip()
    whole = parse_template(text.strip()).whole
    if whole is None:
        raise InvalidExpression("a condition is one expression", hint="write all of it inside one `${{ }}`")
    return whole.cel


def _text(text: str, context: Mapping[str, Any]) -> Any:
    if "${{" not in text:
        return text
    template = parse_template(text)
    if template.whole is not None:
        return _secret(template.whole.cel, context) or _run(template.whole.cel, context)
    return "".join(part if isinstance(part, str) else _inserted(part.cel, context) for part in template.parts)


def _secret(cel: str, context: Mapping[str, Any]) -> Secret | None:
    """The secret input that is referred to as a whole, which never passes through CEL."""
    root, _, name = cel.partition(".")
    value = context.get("inputs", {}).get(name.strip()) if root.strip() == "inputs" else None
    return value if isinstance(value, Secret) else None


def _inserted(cel: str, context: Mapping[str, Any]) -> str:
    result = _run(cel, context)
    if isinstance(result, bool):
        return "true" if result else "false"
    if isinstance(result, str | int | float):
        return str(result)
    raise InvalidExpression(
        f"`{cel}` gives {_kind(result)}, which cannot stand inside a text",
        hint="let the expression be the whole value, or pick a single text or number from it",
    )


def _run(cel: str, context: Mapping[str, Any]) -> Any:
    visible = {key: value for key, value in context.items() if key != "inputs"}
    visible["inputs"] = {
        name: value for name, value in context.get("inputs", {}).items() if not isinstance(value, Secret)
    }
    try:
        return _plain(_compiled(cel).execute(visible), cel)
    except InvalidExpression:
        raise
    except KeyError as error:
        raise InvalidExpression(
            f"`{cel}`: there is no {error}", hint="check the name; `has(a.b)` asks whether it is there"
        ) from None
    except (ValueError, TypeError, RuntimeError, ArithmeticError) as error:
        raise InvalidExpression(f"`{cel}` cannot be evaluated ({type(error).__name__})") from None


def _plain(value: Any, cel: str) -> Any:
    """A CEL result as plain JSON data."""
    if value is None or isinstance(value, str | bool | int | float):
        return value
    if isinstance(value, Mapping):
        return {str(key): _plain(item, cel) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item, cel) for item in value]
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, timedelta):
        return value.total_seconds()
    raise InvalidExpression(f"`{cel}` gives {_kind(value)}, which is not JSON")


def _kind(value: Any) -> str:
    return {"dict": "a map", "list": "a list", "NoneType": "null", "bytes": "bytes"}.get(
        type(value).__name__, f"a {type(value).__name__}"
    )
