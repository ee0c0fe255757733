"""Where the nodes of a YAML text are, and edits of the text at those places.

One rule holds for comments, in blocks and within brackets: they stay, those on the lines of what goes as well.
"""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from typing import Any

from ruamel.yaml.tokens import AnchorToken, BlockEntryToken, FlowEntryToken, KeyToken, ScalarToken, Token, ValueToken

from orchestrator.errors import UsageError
from orchestrator.inference.yaml_text import is_json

_LINE_END = re.compile(r"\r\n|\r|\n")
_COMMENT = re.compile(r"#[^\r\n]*")
_BLOCK_HEADER = re.compile(r"[|>][^\s#]*[ \t]+(?P<comment>#[^\r\n]*)")
_SEPARATORS = re.compile("[\x85\u2028\u2029]")
"""Line ends for some readers of YAML, and for others none."""


class Places:
    """A YAML text with its nodes and tokens, and the edits that were asked for.

    All edits raise UsageError, naming the step, for what cannot be edited without loss.
    """

    def __init__(self, text: str, root: Any, tokens: Sequence[Token]) -> None:
        self._text = text
        self._edits: list[tuple[int, int, str]] = []
        self._tokens = tokens
        self.root = root
        self._starts = [token.start_mark.index for token in self._tokens]
        self._lines = [0, *(found.end() for found in _LINE_END.finditer(text))]
        self._comments = list(_comments(text, self._tokens))
        self.is_json = is_json(text)
        """What is written in one line has to be JSON then."""

    def edited(self) -> str:
        """The text with all edits, which do not overlap; those at the same place in the order of asking."""
        parts, position = [], 0
        for first, last, new in sorted(self._edits, key=lambda edit: edit[:2]):
            parts += [self._text[position:first], new]
            position = last
        return "".join([*parts, self._text[position:]])

    def has(self, mapping: Any, key: str) -> bool:
        """Whether a mapping node has the key."""
        return any(known.value == key for known, _ in mapping.value)

    def value(self, mapping: Any, key: str, step: str) -> Any:
        """The value of a key that is there."""
        return self._pair(mapping, key, step)[1]

    def item(self, sequence: Any, index: int, step: str) -> Any:
        """An item of a sequence."""
        return self._own(sequence.value[index], sequence.start_mark.index, step)

    def replace_value(self, mapping: Any, key: str, new: str, step: str) -> None:
        """Put a scalar or a flow sequence in the place of a value."""
        known, value = self._pair(mapping, key, step)
        if _is_below(value):
            self._replace(self._colon(known).end_mark.index, self._end(value, step), f" {new}", step)
        else:
            self._replace(value.start_mark.index, value.end_mark.index, new, step)

    def replace_pair(self, mapping: Any, key: str, new: str, block: Sequence[str], flow: str, step: str) -> None:
        """Put another key in the place of one with a scalar: its value are lines below it, or `flow` is all of it."""
        known, value = self._pair(mapping, key, step)
        end = self._end(value, step)
        if _is_block(mapping):
            self._replace(known.start_mark.index, known.end_mark.index, new, step)
            self._replace(self._colon(known).end_mark.index, end, "", step)
            self._insert_lines(self._next_line(end), self._column(known), block)
        else:
            self._replace(known.start_mark.index, end, flow, step)

    def append_pair(self, mapping: Any, block: Sequence[str], flow: str, step: str, *, after: str = "") -> None:
        """Add a key with its value at the end of a mapping, or after one of its keys."""
        if not mapping.value:
            inside = mapping.end_mark.index - 1
            blank = "" if self._text[inside - 1].isspace() else " "
            self._edits.append((inside, inside, f"{blank}{flow} "))
            return
        known, value = self._pair(mapping, after or mapping.value[-1][0].value, step)
        if _is_block(mapping):
            after_it = self._next_line(self._end(value, step, whole=True))
            self._insert_lines(after_it, self._column(known), block)
        else:
            self._insert_in_flow(known.start_mark.index, value.end_mark.index, [flow])

    def change_items(
        self, sequence: Any, removed: Sequence[int], added: Sequence[tuple[list[str], str]], step: str
    ) -> None:
        """Take items out of a sequence, and add some at its end: each as lines, and in one line."""
        if not removed and not added:
            return
        items = [self.item(sequence, index, step) for index in range(len(sequence.value))]
        if _is_block(sequence):
            self._change_lines(items, set(removed), [line for block, _ in added for line in block], step)
        else:
            self._change_flow(items, set(removed), [flow for _, flow in added], step)

    def _change_lines(self, items: Sequence[Any], removed: set[int], lines: Sequence[str], step: str) -> None:
        dashes = [self._before(BlockEntryToken, item.start_mark.index).start_mark for item in items]
        indent = " " * dashes[0].column
        new = [indent + line for line in lines]
        for index in sorted(removed):
            start, end = self._line(dashes[index].index), self._next_line(self._end(items[index], step))
            if self._text[start : dashes[index].index].strip(" \t"):
                raise UsageError(
                    f"step `{step}` is written with something before the dash of an item that goes, in one line",
                    hint="give the dash a line of its own, or paste the privileges by hand",
                )
            self._check(start, end, step)
            stay = [indent + comment for comment in self._comments_in(start, end)]
            self._edits.append(
                (start, end, self._in_place_of(start, end, stay + (new if index + 1 == len(items) else [])))
            )
        if len(items) - 1 not in removed:
            self._insert_lines(self._next_line(self._end(items[-1], step, whole=True)), dashes[0].column, lines)

    def _change_flow(self, items: Sequence[Any], removed: set[int], added: Sequence[str], step: str) -> None:
        kept = [index for index in range(len(items)) if index not in removed]
        last = kept[-1] if kept else -1
        for index in range(last):
            if index in removed:
                self._replace(items[index].start_mark.index, items[index + 1].start_mark.index, "", step)
        if last + 1 < len(items):
            start = items[last + 1].start_mark.index if added or not kept else items[last].end_mark.index
            self._replace(start, items[-1].end_mark.index, ", ".join(added), step)
        elif added:
            self._insert_in_flow(items[-1].start_mark.index, items[-1].end_mark.index, added)

    def _insert_in_flow(self, start: int, end: int, texts: Sequence[str]) -> None:
        """Behind an entry within brackets: in lines of their own where the entry has one, else in its line."""
        line = self._line(start)
        indent = self._text[line:start]
        comma = self._tokens[bisect_left(self._starts, end)]
        has_comma = isinstance(comma, FlowEntryToken)
        last = comma.end_mark.index if has_comma else end
        stop = self._line_stop(last)
        if indent.strip(" \t") or self._starts[bisect_left(self._starts, last)] < stop:
            self._edits.append((end, end, "".join(f", {text}" for text in texts)))
            return
        if not has_comma:
            self._edits.append((end, end, ","))
        new = ",".join(f"{self._line_end(start)}{indent}{text}" for text in texts)
        self._edits.append((stop, stop, f"{new}{',' if has_comma else ''}"))

    def _insert_lines(self, index: int, column: int, lines: Sequence[str]) -> None:
        """Lines before the beginning of one, or at the end of the text."""
        if not lines:
            return
        end = self._line_end(index)
        text = end.join(" " * column + line for line in lines)
        self._edits.append((index, index, text + end if index in (0, self._line(index)) else end + text))

    def _replace(self, start: int, end: int, new: str, step: str) -> None:
        """Put a text in the place of a part; the comments of the part follow it, each to the end of a line."""
        self._check(start, end, step)
        comments = self._comments_in(start, end)
        if comments:
            line = self._text[self._line(end) : self._line_stop(end)]
            between = self._line_end(end) + line[: len(line) - len(line.lstrip(" \t"))]
            goes_on = bool(self._text[end : self._line_stop(end)].strip(" \t"))
            new += f"  {between.join(comments)}{between if goes_on else ''}"
        self._edits.append((start, end, new))

    def _check(self, start: int, end: int, step: str) -> None:
        """What goes must not be used elsewhere."""
        inside = self._tokens[bisect_left(self._starts, start) : bisect_left(self._starts, end)]
        if any(isinstance(token, AnchorToken) for token in inside):
            raise _anchored(step)

    def _pair(self, mapping: Any, key: str, step: str) -> tuple[Any, Any]:
        known, value = next(pair for pair in mapping.value if pair[0].value == key)
        return known, self._own(value, known.end_mark.index, step)

    def _own(self, node: Any, start: int, step: str) -> Any:
        """The node itself, where it is written where it is used, and used nowhere else."""
        if node.anchor is not None or node.start_mark.index < start:
            raise _anchored(step)
        return node

    def _end(self, node: Any, step: str, *, whole: bool = False) -> int:
        """Where the last thing in a node ends; the parser puts the end of a block after the comments that follow.

        The text of a block scalar ends with its blank lines only where it is wanted `whole`.
        """
        if not _is_block(node):
            end = int(node.end_mark.index)
            return end if whole or not _is_below(node) else len(self._text[:end].rstrip(" \t\r\n"))
        if node.id == "mapping":
            key, value = node.value[-1]
            return self._end(self._own(value, key.end_mark.index, step), step, whole=whole)
        return self._end(self.item(node, -1, step), step, whole=whole)

    def _before(self, kind: type[Token], index: int) -> Token:
        """The last token of a kind that begins at a place or before it."""
        at = bisect_right(self._starts, index) - 1
        while not isinstance(self._tokens[at], kind):
            at -= 1
        return self._tokens[at]

    def _column(self, key: Any) -> int:
        """Where a key begins in its line, the mark of an explicit one (`? key`) included."""
        return int(self._before(KeyToken, key.start_mark.index).start_mark.column)

    def _colon(self, key: Any) -> Token:
        at = bisect_left(self._starts, key.end_mark.index)
        while not isinstance(self._tokens[at], ValueToken):
            at += 1
        return self._tokens[at]

    def _line(self, index: int) -> int:
        """The beginning of the line of a place."""
        return self._lines[bisect_right(self._lines, index) - 1]

    def _next_line(self, index: int) -> int:
        """The beginning of the line after a place; the text of a block scalar ends there already."""
        at = bisect_left(self._lines, index)
        return self._lines[at] if at < len(self._lines) else len(self._text)

    def _line_stop(self, index: int) -> int:
        """Where the line of a place ends, without its line end."""
        found = _LINE_END.search(self._text, index)
        return found.start() if found else len(self._text)

    def _line_end(self, index: int) -> str:
        """The line end that is used around a place: of the line before, else the first of the text."""
        at = max(bisect_right(self._lines, index) - 1, 1)
        found = _LINE_END.search(self._text, self._lines[at - 1])
        return found.group() if found else "\n"

    def _in_place_of(self, start: int, end: int, lines: Sequence[str]) -> str:
        """Lines instead of whole lines, of which the last of a text may have no line end."""
        line_end = self._line_end(end)
        last = "" if self._line(end) < end else line_end
        return line_end.join(lines) + last if lines else ""

    def _comments_in(self, start: int, end: int) -> list[str]:
        return [
            text
            for _, text in self._comments[bisect_left(self._comments, (start,)) : bisect_left(self._comments, (end,))]
        ]


def _comments(text: str, tokens: Sequence[Token]) -> Iterator[tuple[int, str]]:
    """Every comment with its place: what is between two tokens is nothing else, but for blanks and line ends."""
    position = 0
    for token in tokens:
        gap = text[position : token.start_mark.index]
        if _SEPARATORS.search(gap):
            raise UsageError(
                "the file has a line separator (U+0085, U+2028 or U+2029) beside its texts, which readers of YAML "
                "understand differently; nothing was written",
                hint="take it out, or paste the privileges by hand",
            )
        for found in _COMMENT.finditer(gap):
            yield position + found.start(), found.group()
        position = max(position, token.end_mark.index)
        is_block = isinstance(token, ScalarToken) and token.style in ("|", ">")
        if is_block and (header := _BLOCK_HEADER.match(text, token.start_mark.index)):
            yield header.start("comment"), header["comment"]


def _anchored(step: str) -> UsageError:
    return UsageError(
        f"step `{step}` is written with a YAML anchor or alias, so that an edit could change more than it",
        hint="write it out, or paste the privileges by hand",
    )


def _is_block(node: Any) -> bool:
    return node.id != "scalar" and not node.flow_style


def _is_below(node: Any) -> bool:
    """Whether a value may begin in one line and go on in those below, so that its place is all behind the colon."""
    return _is_block(node) or (node.id == "scalar" and node.style in ("|", ">"))
