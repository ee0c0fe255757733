"""Reading PostgreSQL's textual form of a tree node (`nodeToString`, source: `nodes/outfuncs.c`, `nodes/read.c`).

`{NAME :field value :field value}`, where a value is a node, a list in brackets, or words. Only as much is read as is
asked for: most of what is wanted of a tree stands in fields that can be searched for.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

_TOKEN = re.compile(r"[(){}]|(?:\\.|[^\s(){}\\])+", re.DOTALL)
_ESCAPED = re.compile(r"\\(.)", re.DOTALL)


@dataclass(slots=True)
class Node:
    """One node: what kind it is, its fields by name, and where it stands in the text (from `start` to before `end`)."""

    kind: str
    start: int
    end: int = 0
    fields: dict[str, object] = field(default_factory=dict)

    def text(self, name: str) -> str:
        """A field of one word; empty where there is none."""
        found = self.fields.get(name)
        return "" if not isinstance(found, str) or found == "<>" else found

    def number(self, name: str) -> int:
        """A field that is a number; 0 where there is none."""
        found = self.text(name)
        return int(found) if found.lstrip("-").isdigit() else 0

    def nodes(self, name: str) -> list[Node]:
        """The nodes of a field that is a list, or one node."""
        found = self.fields.get(name)
        return [each for each in (found if isinstance(found, list) else [found]) if isinstance(each, Node)]

    def walk(self) -> Iterator[Node]:
        """This node and all below, in no particular order."""
        pending: list[object] = [self]
        while pending:
            each = pending.pop()
            if isinstance(each, Node):
                yield each
                pending.extend(each.fields.values())
            elif isinstance(each, list):
                pending.extend(each)


def read_node(text: str, start: int = 0) -> Node:
    """The node whose brace opens at `start`. Raises ValueError where there is none."""
    found = _read(text, start)
    if not isinstance(found, Node):
        raise ValueError("no node is there")
    return found


def read_value(text: str) -> object:
    """A node, a list or a word: what a whole text is."""
    return _read(text, 0)


def _read(text: str, start: int) -> object:
    """One value. The open nodes and lists are kept on a stack of our own: trees may be deeper than Python's."""
    open_: list[tuple[Node | None, list[object]]] = []
    for match in _TOKEN.finditer(text, start):
        word = match.group()
        if word == "{":
            open_.append((Node("", match.start()), []))
            continue
        if word == "(":
            open_.append((None, []))
            continue
        done: object
        if word in (")", "}"):
            node, parts = open_.pop()
            if node is None:
                done = parts
            else:
                node.end = match.end()
                _fill(node, parts)
                done = node
        else:
            done = _Word(word)
        if not open_:
            return done
        open_[-1][1].append(done)
    raise ValueError("the text ends within a node")


class _Word(str):
    """A word as it stands in the text, with what is escaped in it."""

    __slots__ = ()


def _fill(node: Node, parts: list[object]) -> None:
    name = ""
    for part in parts:
        if isinstance(part, _Word) and not node.kind:
            node.kind = str(part)
        elif isinstance(part, _Word) and part.startswith(":") and (not name or name in node.fields):
            name = part[1:]
        else:
            value = _ESCAPED.sub(r"\1", part) if isinstance(part, _Word) else part
            before = node.fields.get(name)
            if before is None:
                node.fields[name] = value
            elif isinstance(before, list):
                before.append(value)
            else:
                node.fields[name] = [before, value]
