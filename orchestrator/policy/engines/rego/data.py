"""`data.json`, the base document that rules look into as `data.NAME`: one JSON object (RFC 8259), read strictly.

What JSON leaves open is refused, as other readers of the same file would choose otherwise: a key that is there twice,
NaN and Infinity, numbers that cannot be compared exactly. So is what would stand where rules do: Rego would mix both.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass

from orchestrator.policy.engines.rego.folder import PolicySource
from orchestrator.policy.engines.rego.problems import PolicyProblem, problem_at, without_backtrace

_WHOLE = re.compile(r"-?[0-9]+")
_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"|[{}\[\],:]|[^\s{}\[\],:"]+')
_EXACT = range(-(1 << 63), 1 << 63)
_EXACT_AS_FLOAT = 1 << 53
_PLACE = re.compile(r"(?P<message>.*?) at line (?P<line>\d+) column (?P<column>\d+)$")


@dataclass(frozen=True, slots=True)
class _Token:
    """A key, with the keys that lead to it, or a value that is neither object, list nor `,`."""

    text: str
    offset: int
    path: tuple[str, ...] = ()
    again: bool = False
    """Whether its object has had this key before."""


def check_data(source: PolicySource, packages: Collection[str]) -> Iterator[PolicyProblem]:
    """What is wrong with the data, where rules are in `packages` (`data.orchestrator`, ...)."""
    text = source.text

    def at(offset: int, message: str, hint: str = "") -> PolicyProblem:
        line, column = text.count("\n", 0, offset) + 1, offset - text.rfind("\n", 0, offset)
        return problem_at(text, source.name, line, column, message, hint)

    try:
        whole = json.loads(text, parse_int=str, parse_float=str)
    except json.JSONDecodeError as error:
        yield at(error.pos, f"is not JSON: {error.msg}")
        return
    except RecursionError:
        yield PolicyProblem(source.name, 1, 1, "is nested too deeply")
        return
    if not isinstance(whole, dict):
        yield at(len(text) - len(text.lstrip()), "is not one JSON object: rules see its members as `data.NAME`")
        return
    of_rules = {tuple(package.split(".")[1:]): package for package in packages}
    for token in _tokens(text):
        if token.again:
            yield at(token.offset, f"the key {token.text} is there twice, and readers differ in which one counts")
        elif token.path:
            if problem := _among_rules(text, token, of_rules):
                yield at(token.offset, problem, "give it a name that no package of the rules has")
        elif token.text in ("NaN", "Infinity", "-Infinity"):
            yield at(token.offset, f"{token.text} is no JSON")
        elif not _is_exact(token.text):
            yield at(token.offset, f"the number {token.text[:40]} cannot be compared exactly", "write it as a text")


def data_problem(source: PolicySource, error: Exception) -> PolicyProblem:
    """What regorus has against data that are JSON: how deep they are nested, half of a surrogate pair."""
    said = without_backtrace(error).splitlines()[0]
    if found := _PLACE.match(said):
        return problem_at(source.text, source.name, int(found["line"]), int(found["column"]), found["message"])
    return PolicyProblem(source.name, 0, 0, said)


def _is_exact(token: str) -> bool:
    if token[0] not in "-0123456789":
        return True
    if _WHOLE.fullmatch(token):
        return len(token) <= 20 and int(token) in _EXACT
    return abs(float(token)) < _EXACT_AS_FLOAT


def _among_rules(text: str, key: _Token, packages: dict[tuple[str, ...], str]) -> str:
    """Why a member cannot be where it is: it is what a package of rules is called, or is in the way to one."""
    for path, package in packages.items():
        if key.path == path:
            return f"`{package}` is a package of the rules; data with its name would be mixed with them"
        if key.path == path[: len(key.path)]:
            value = text[key.offset + len(key.text) :].lstrip().removeprefix(":").lstrip()[:1]
            if value != "{":
                return f"`{package}` is a package of the rules, and `data.{'.'.join(key.path)}` is no object"
    return ""


def _tokens(text: str) -> Iterator[_Token]:
    """The keys and the single values of a text that is known to be JSON."""
    seen: list[set[str] | None] = []
    path: list[str] = []
    key_is_next = False
    for match in _TOKEN.finditer(text):
        word = match[0]
        if word in "{[":
            seen.append(set() if word == "{" else None)
            path.append("")
            key_is_next = word == "{"
        elif word in "}]":
            seen.pop()
            path.pop()
            key_is_next = False
        elif word == ",":
            key_is_next = seen[-1] is not None
        elif word == ":":
            continue
        elif key_is_next and (keys := seen[-1]) is not None:
            path[-1] = json.loads(word)
            yield _Token(word, match.start(), tuple(path), again=path[-1] in keys)
            keys.add(path[-1])
            key_is_next = False
        else:
            yield _Token(word, match.start())
