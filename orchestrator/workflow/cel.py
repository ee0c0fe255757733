"""The engine that expressions run on, with everything that it can raise turned into InvalidExpression.

It is native code (the package `common-expression-language`, Rust's `cel` underneath). It raises a dozen kinds of
Python exceptions, panics as a subclass of BaseException, and overflows the native stack, which no handler can
catch, on long chains of operators. So an expression is bounded before the engine sees it, and its own words,
which quote values, never reach an error of ours.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Mapping
from functools import lru_cache
from types import ModuleType
from typing import Any, TypeVar

from orchestrator.errors import InvalidExpression

T = TypeVar("T")

MAX_CHARACTERS = 20_000
"""Of one expression. Far below the column (65,535) from which on the engine panics when it reports an error."""

MAX_TOKENS = 1_000
"""Of one expression. A chain such as `1+1+...` is as deep as it is long: on a thread with a stack of 512 KiB, as
macOS gives to all but the first, about 1,500 tokens crash the process; on 8 MiB about 20,000 do."""

MAX_NESTING = 50
"""Brackets within brackets. 64 crash a thread with 512 KiB; the engine itself refuses about 90."""

TOKEN = re.compile(
    r"""(?P<string>[rRbB]{0,2}(?:\"{3}(?:.|\n)*?\"{3}|'{3}(?:.|\n)*?'{3}|"(?:\\.|[^"\\\n])*"|'(?:\\.|[^'\\\n])*'))"""
    r"|(?P<number>\d[\w.]*)|(?P<name>[A-Za-z_]\w*)|(?P<other>\S)",
    re.VERBOSE,
)
_UNKNOWN = re.compile(r"Undefined variable or function: '(\w+)'")
_FUNCTION = re.compile(r"Function '(\w+)' error")


@lru_cache(maxsize=1)
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
def compiled(cel: str) -> Any:
    """The engine's program for a CEL text. Raises InvalidExpression for one that is too large, or is not CEL."""
    engine = _engine()
    if not cel:
        raise InvalidExpression("the expression is empty")
    _check_size(cel)
    try:
        return _contained(lambda: engine.compile(cel))
    except _Fault as fault:
        lines = str(fault.error).splitlines() or [""]
        detail = lines[0].removeprefix(f"Failed to parse expression '{cel}': ")
        raise InvalidExpression(
            f"`{cel}` is not a CEL expression: {detail}", hint="the language is CEL, see cel.dev"
        ) from None


@lru_cache(maxsize=4096)
def variables(cel: str) -> frozenset[str]:
    """The names that an expression takes from outside or binds itself. Raises InvalidExpression."""
    program = compiled(cel)
    try:
        return frozenset(_contained(lambda: program.references()["variables"]))
    except _Fault:
        raise InvalidExpression(f"what `{cel}` refers to cannot be told", hint="write it more simply") from None


def execute(cel: str, context: Mapping[str, Any]) -> Any:
    """The result as the engine gives it. Raises InvalidExpression, which says why and never shows a value."""
    program = compiled(cel)
    try:
        return _contained(lambda: program.execute(dict(context)))
    except _Fault as fault:
        why, hint = _reason(fault.error, cel)
        raise InvalidExpression(f"`{cel}` cannot be evaluated: {why}", hint=hint) from None


class _Fault(Exception):
    """Something that the engine raised."""

    def __init__(self, error: BaseException) -> None:
        super().__init__()
        self.error = error


def _contained(call: Callable[[], T]) -> T:
    try:
        return call()
    except Exception as error:  # noqa: BLE001 -- whatever it is, it is the expression that failed
        raise _Fault(error) from None
    except BaseException as error:
        if type(error).__module__ != "pyo3_runtime":  # a panic; anything else is not the engine's
            raise
        raise _Fault(error) from None


def _check_size(cel: str) -> None:
    shown = cel[:40].strip()
    if len(cel) > MAX_CHARACTERS:
        raise InvalidExpression(
            f"the expression `{shown}...` has {len(cel)} characters; the limit is {MAX_CHARACTERS}", hint=_TOO_LARGE
        )
    depth = deepest = 0
    tokens = 0
    for token in TOKEN.finditer(cel):
        tokens += 1
        depth += (token.group() in ("(", "[", "{")) - (token.group() in (")", "]", "}"))
        deepest = max(deepest, depth)
    if tokens > MAX_TOKENS:
        raise InvalidExpression(
            f"the expression `{shown}...` has {tokens} words and signs; the limit is {MAX_TOKENS}", hint=_TOO_LARGE
        )
    if deepest > MAX_NESTING:
        raise InvalidExpression(
            f"the expression `{shown}...` has {deepest} brackets within each other; the limit is {MAX_NESTING}",
            hint=_TOO_LARGE,
        )


_TOO_LARGE = "compute it in a step, such as one of the action `python`, or give the data as an input"


def _reason(error: BaseException, cel: str) -> tuple[str, str | None]:
    """Why, and what to do. Of the engine's own words only a name that stands in the expression itself is repeated."""
    match error:
        case KeyError():
            key = str(error.args[0]) if error.args else ""
            named = f"there is no `{key}`" if key and key in cel else "a map does not have the key that it asks for"
            return named, "check the name; `has(a.b)` asks whether it is there"
        case IndexError():
            return (
                "a list does not have the element that it asks for",
                "ask first whether it is there, as in `size(rows) > 0 ? rows[0].id : null`, or in the step's `if`",
            )
        case ZeroDivisionError():
            return "it divides by zero", "ask first, as in `n != 0 ? 100 / n : 0`"
        case OverflowError():
            return "a number or a time in it is too large", "whole numbers have 64 bits, times end with the year 9999"
        case TypeError():
            return (
                "the values are of kinds that do not go together",
                "CEL does not convert by itself: int(x), double(x), string(x) and `has(a.b)` help",
            )
        case RuntimeError():
            return _from_words(str(error), cel)
        case ValueError():
            return "a value in it is out of range", None
        case _:
            return f"the engine failed ({type(error).__name__})", "write it more simply"


def _from_words(words: str, cel: str) -> tuple[str, str | None]:
    unknown, function = _UNKNOWN.search(words), _FUNCTION.search(words)
    if unknown and unknown.group(1) in cel:
        return (
            f"there is no function `{unknown.group(1)}`, or none that takes these values",
            "see the list of CEL's functions at cel.dev",
        )
    if function and function.group(1) in cel:
        return f"`{function.group(1)}` does not take this value", "look at what it is given"
    return "the engine failed", "write it more simply"
