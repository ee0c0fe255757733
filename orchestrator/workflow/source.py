"""YAML text turned into plain data together with the position of every key and value.

YAML 1.2, safe: no tags, no merge keys, no duplicate keys, one document, and limits on size, depth
and on what aliases may expand to.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from orchestrator.workflow.files import MAX_BYTES
from orchestrator.workflow.problems import MAX_PROBLEMS, Problem

MAX_DEPTH = 40
MAX_NODES = 100_000
"""How many nodes a file may have once its aliases are expanded."""

_EXCERPT = 240
"""Characters of a line that are shown with a problem."""

_SCALARS = frozenset(f"tag:yaml.org,2002:{kind}" for kind in ("str", "int", "float", "bool", "null", "timestamp"))
Path = tuple[str | int, ...]


@dataclass(slots=True)
class Source:
    """The text of a file, the data in it, and the problems found so far.

    `root` and `tokens` are those of the YAML parser, for whoever edits the text at their places.
    """

    filename: str
    lines: Sequence[str]
    data: Any = None
    root: Any = field(default=None, repr=False)
    tokens: list[Any] = field(default_factory=list, repr=False)
    values: dict[Path, tuple[int, int]] = field(default_factory=dict)
    keys: dict[Path, tuple[int, int]] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)

    def report(self, path: Sequence[str | int], message: str, hint: str = "", *, key: bool = False) -> None:
        """Add a problem at a path, or at the nearest enclosing one that is in the file."""
        self.problems.append(self.problem(path, message, hint, key=key))

    def problem(
        self, path: Sequence[str | int], message: str, hint: str = "", *, key: bool = False, warning: bool = False
    ) -> Problem:
        """A problem at a path. `key` points at the key instead of its value."""
        place = tuple(path)
        while place and place not in self.values:
            place = place[:-1]
        known = self.keys if key and place in self.keys else self.values
        line, column = known.get(place, (1, 1))
        return self.at(line, column, message, hint, warning=warning)

    def at(self, line: int, column: int, message: str, hint: str = "", *, warning: bool = False) -> Problem:
        """A problem at a line and column, from 1."""
        excerpt = self.lines[line - 1] if 0 < line <= len(self.lines) else ""
        cut = max(0, column - 1 - _EXCERPT // 2) if len(excerpt) > _EXCERPT else 0
        severity: Literal["warning", "error"] = "warning" if warning else "error"
        return Problem(self.filename, line, column, message, hint, severity, excerpt[cut : cut + _EXCERPT], cut)

    @property
    def full(self) -> bool:
        """Whether so much is wrong that nobody needs to look for more."""
        return len(self.problems) >= MAX_PROBLEMS


def parse(text: str, filename: str) -> Source:
    """Read YAML text. What is wrong with it is in `problems`; then `data` may be None."""
    from ruamel.yaml.error import MarkedYAMLError, YAMLError

    source = Source(filename, text.splitlines())
    if len(text.encode("utf-8", "surrogatepass")) > MAX_BYTES:
        source.problems.append(source.at(1, 1, f"the file is larger than {MAX_BYTES // 1024} KiB"))
        return source
    try:
        node = _yaml(source.tokens).compose(text)
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line, column = (mark.line + 1, mark.column + 1) if mark else (1, 1)
        source.problems.append(source.at(line, column, f"this is not valid YAML: {error.problem or error.context}"))
        return source
    except YAMLError as error:
        said = next(iter(str(error).splitlines()), "")[:200]
        source.problems.append(source.at(1, 1, f"this is not valid YAML: {said}"))
        return source
    except Exception as error:  # noqa: BLE001 -- the parser falls over odd files with whatever its code raises
        source.problems.append(source.at(1, 1, f"this is not valid YAML ({type(error).__name__})"))
        return source
    if node is None:
        source.problems.append(source.at(1, 1, "the file is empty", "`orchestrator init` writes a starter workflow"))
        return source
    source.root = node
    source.data = _Reader(source).read(node, (), 0)
    return source


def _yaml(tokens: list[Any]) -> Any:
    """A reader of YAML that refuses what the package would warn of, with lines of the file, wherever warnings go.

    The tokens that it reads are added to a list.
    """
    from ruamel.yaml import YAML
    from ruamel.yaml.composer import Composer, ComposerError
    from ruamel.yaml.events import AliasEvent
    from ruamel.yaml.scanner import Scanner

    class Once(Composer):  # type: ignore[misc, unused-ignore]
        def compose_node(self, parent: Any, index: Any) -> Any:
            event = self.parser.peek_event()
            anchor = getattr(event, "anchor", None)
            if anchor is not None and anchor in self.anchors and not isinstance(event, AliasEvent):
                raise ComposerError(None, None, "an anchor is defined twice", event.start_mark)
            return super().compose_node(parent, index)

    class Recording(Scanner):  # type: ignore[misc, unused-ignore]
        def get_token(self) -> Any:
            token = super().get_token()
            tokens.append(token)
            return token

    reader = YAML(typ="safe", pure=True)
    reader.Composer = Once
    reader.Scanner = Recording
    return reader


class _TooLarge(Exception):
    pass


class _Reader:
    """Turns composed nodes into data. Aliases are expanded under a limit, so that a bomb stays small."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._count = 0

    def read(self, node: Any, path: Path, depth: int) -> Any:
        try:
            return self._value(node, path, depth)
        except _TooLarge:
            return None

    def _value(self, node: Any, path: Path, depth: int) -> Any:
        self._count += 1
        line, column = node.start_mark.line + 1, node.start_mark.column + 1
        self._source.values.setdefault(path, (line, column))
        if self._source.full:
            raise _TooLarge
        if self._count > MAX_NODES or depth > MAX_DEPTH:
            what = "expands to too many values" if self._count > MAX_NODES else "is nested too deeply"
            self._source.problems.append(self._source.at(line, column, f"the file {what}", "write it without aliases"))
            raise _TooLarge
        tag = str(node.tag)
        if node.id == "mapping" and tag == "tag:yaml.org,2002:map":
            return self._mapping(node, path, depth)
        if node.id == "sequence" and tag == "tag:yaml.org,2002:seq":
            return [self._value(item, (*path, index), depth + 1) for index, item in enumerate(node.value)]
        if node.id == "scalar" and tag in _SCALARS:
            return _scalar(tag.rpartition(":")[2], node.value)
        self._source.report(path, f"the YAML tag `{tag}` is not allowed", "write plain values only")
        return None

    def _mapping(self, node: Any, path: Path, depth: int) -> dict[str, Any]:
        data: dict[str, Any] = {}
        for key_node, value_node in node.value:
            line, column = key_node.start_mark.line + 1, key_node.start_mark.column + 1
            if key_node.id != "scalar" or key_node.tag != "tag:yaml.org,2002:str":
                what, hint = _no_key(key_node)
                self._source.problems.append(self._source.at(line, column, what, hint))
                continue
            key = key_node.value
            if key in data:
                first = self._source.keys[(*path, key)][0]
                problem = self._source.at(
                    line, column, f"the key `{key}` is here twice", f"it is on line {first} already"
                )
                self._source.problems.append(problem)
                continue
            self._source.keys[(*path, key)] = (line, column)
            data[key] = self._value(value_node, (*path, key), depth + 1)
        return data


def _no_key(node: Any) -> tuple[str, str]:
    """Why this cannot be a key, and what to do."""
    if node.tag == "tag:yaml.org,2002:merge":
        return "merge keys (`<<`) are not read", "write out here what it brings in; only a whole value may be an alias"
    shown = str(node.value)[:40] if node.id == "scalar" else node.id
    return f"the key `{shown}` is not a text", "put it in quotes"


def _scalar(kind: str, text: str) -> Any:
    try:
        match kind:
            case "null":
                return None
            case "bool":
                return text.lower() == "true"
            case "int":
                return int(text.replace("_", ""), 0) if text.lstrip("+-")[:2].lower() in ("0x", "0o") else int(text)
            case "float":
                return _float(text)
    except ValueError:
        pass
    return text


def _float(text: str) -> float:
    lowered = text.lower().replace("_", "")
    return float(lowered.replace(".inf", "inf").replace(".nan", "nan"))
