"""What the engine says, in words of ours. Its own quote values; of them only what stands in the expression is kept."""

from __future__ import annotations

import re

NOT_CEL = "is not a CEL expression"

_PLACE = re.compile(r"ERROR: <input>:(-?\d+):(-?\d+): ([^\n]*)")
_UNDECLARED = re.compile(r"undeclared reference to '([\w.]+)'")
_OVERLOAD = re.compile(r"found no matching overload for '([^']*)' applied to '([^']*)'")

_CONVERT = "CEL does not convert by itself: int(x), double(x), string(x) and `has(a.b)` help"
_SIMPLER = "write it more simply"
_DEEP = "compute part of it in a step, or give it as an input"
_LIST_OF_FUNCTIONS = "see the list of CEL's functions at cel.dev"
_LOOPS = "let SQL or the service pick and shape the rows, or compute it in a step of the action `python`"


def wrong(words: str, cel: str) -> tuple[str, str]:
    """What is wrong with an expression that does not compile, and a hint. There are no values in it yet."""
    if "recursion" in words:
        return f"`{cel[:80]}` is nested too deeply: 32 levels are allowed, and a chain of `+` is one for each", _DEEP
    place = _PLACE.search(words)
    if place is None:
        return f"`{cel}` {NOT_CEL}", "the language is CEL, see cel.dev"
    line, column, said = place.groups()
    where = f"at its column {column}" if line == "1" else f"at its line {line}, column {column}"
    if "Syntax error" in said or "unsupported syntax" in said or line == "-1":
        detail = said.removeprefix("Syntax error: ").partition(" expecting {")[0][:200]
        return f"`{cel}` {NOT_CEL}: {detail}, {where}", "the language is CEL, see cel.dev"
    if undeclared := _UNDECLARED.search(said):
        return f"`{cel}`: there is no function or variable `{undeclared.group(1)}`, {where}", _LIST_OF_FUNCTIONS
    if overload := _OVERLOAD.search(said):
        name, kinds = overload.groups()
        operator = "?:" if name == "_?_:_" else "[]" if name == "_[_]" else name.strip("_").removeprefix("@")
        return f"`{cel}`: `{operator}` does not go with {kinds}, {where}", _CONVERT
    return f"`{cel}`: {said[:200]}, {where}", _SIMPLER


def reason(words: str, cel: str) -> tuple[str, str | None]:
    """Why an expression cannot be evaluated, and what to do."""
    if "ERROR: <input>" in words or "recursion limit" in words:
        message, what_to_do = wrong(words, cel)
        return message.removeprefix(f"`{cel}`: "), what_to_do
    for pattern, said, hint in _REASONS:
        if (found := re.search(pattern, words)) is not None:
            name = found.group(1) if found.groups() else ""
            if name and not re.search(rf"\b{re.escape(name)}\b", cel):
                continue
            return said.format(name), hint
    return "the engine failed", _SIMPLER


_KINDS = "the values are of kinds that do not go together"
_REASONS: tuple[tuple[str, str, str | None], ...] = (
    (r'Key not found in map : "(\w+)"', "there is no `{}`", "check the name; `has(a.b)` asks whether it is there"),
    (
        r"Key not found|No such key",
        "a map does not have the key that it asks for",
        "check the name; `has(a.b)` asks whether it is there",
    ),
    (
        r"Index error: index=",
        "a list does not have the element that it asks for",
        "ask first whether it is there, as in `size(rows) > 0 ? rows[0].id : null`, or in the step's `if`",
    ),
    (r"divide by zero|modulus by zero", "it divides by zero", "ask first, as in `n != 0 ? 100 / n : 0`"),
    (r"regular expression", "`matches` does not take this value", "look at what it is given"),
    (r"String to Timestamp", "`timestamp` does not take this value", "look at what it is given"),
    (r"String to Duration", "`duration` does not take this value", "look at what it is given"),
    (r"cannot convert string to (\w+)", "`{}` does not take this value", "look at what it is given"),
    (r"onversion error from '\w+' to '(\w+)'", "`{}` does not take this value", "look at what it is given"),
    (
        r"overflow|out of .*range",
        "a number or a time in it is too large or too small",
        "whole numbers have 64 bits, times are of the years 1 to 9999",
    ),
    (r"Iteration budget", "its loops take more than 10,000 rounds in all", _LOOPS),
    (r"out of memory|bad_alloc", "it takes too much memory", _LOOPS),
    (
        r"No matching overloads found : ([a-zA-Z]\w*)\(",
        "there is no function `{}` that takes these values",
        _LIST_OF_FUNCTIONS,
    ),
    (
        r"No matching overloads|expected integer type|Invalid container|non-message type|map key type|Unexpected value",
        _KINDS,
        _CONVERT,
    ),
    (r"duplicate key", "a map in it has a key twice", None),
    (r"malformed UTF-8", "bytes in it are not text", None),
)
