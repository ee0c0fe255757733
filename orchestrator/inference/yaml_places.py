"""Where the nodes of a YAML text are, and edits of the text at those places."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ruamel.yaml import YAML

from orchestrator.errors import UsageError


class Places:
    """A YAML text with its nodes, and the edits that were asked for. The text must be valid YAML.

    All edits raise UsageError, naming the step, for what cannot be edited without loss.
    """

    def __init__(self, text: str) -> None:
        self._text = text
        self._line_end = "\r\n" if "\r\n" in text else "\n"
        self._edits: list[tuple[int, int, str]] = []
        self.root: Any = YAML(typ="safe", pure=True).compose(text)

    def edited(self) -> str:
        """The text with all edits, which do not overlap; those at the same place in the order of asking."""
        return self._with_edits(0, len(self._text))

    def has(self, mapping: Any, key: str) -> bool:
        """Whether a mapping node has the key itself; one that a merge (`<<`) brings in is not counted."""
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
        start = value.start_mark.index
        if _is_block(value):
            self._replace(known.end_mark.index, self._end(value, step), f": {new}", value, step)
        else:
            self._replace(start, value.end_mark.index, new, value, step)

    def replace_pair(self, mapping: Any, key: str, new: str, block: Sequence[str], flow: str, step: str) -> None:
        """Put another key in the place of one with a scalar; its value are lines below it, or in the same line."""
        known, value = self._pair(mapping, key, step)
        start, end = known.start_mark.index, value.end_mark.index
        if _is_block(mapping):
            self._replace(start, end, f"{new}:", value, step)
            self._insert_lines(self._next_line(end), known.start_mark.column, block)
        else:
            self._replace(start, end, f"{new}: {flow}", value, step)

    def append_pair(self, mapping: Any, block: Sequence[str], flow: str, step: str, *, after: str = "") -> None:
        """Add a key with its value at the end of a mapping, or after one of its keys."""
        if not mapping.value:
            self._replace(mapping.start_mark.index, mapping.end_mark.index, f"{{ {flow} }}", mapping, step)
            return
        known, _ = mapping.value[-1]
        known, value = self._pair(mapping, after or known.value, step)
        if _is_block(mapping):
            self._insert_lines(self._next_line(self._end(value, step)), known.start_mark.column, block)
        else:
            self._edits.append((value.end_mark.index, value.end_mark.index, f", {flow}"))

    def change_items(
        self, sequence: Any, removed: Sequence[int], added: Sequence[tuple[list[str], str]], step: str
    ) -> None:
        """Take items out of a sequence, and add some at its end: each as lines, and in one line."""
        if not removed and not added:
            return
        items = [self.item(sequence, index, step) for index in range(len(sequence.value))]
        if not _is_block(sequence):
            kept = [self._edited_part(node) for index, node in enumerate(items) if index not in removed]
            new = f"[{', '.join([*kept, *(flow for _, flow in added)])}]"
            self._replace(sequence.start_mark.index, sequence.end_mark.index, new, sequence, step)
            return
        column = sequence.start_mark.column
        for index in removed:
            self._edits.append((self._dash(items[index], column), self._next_line(self._end(items[index], step)), ""))
        lines = [line for block, _ in added for line in block]
        self._insert_lines(self._next_line(self._end(items[-1], step)), column, lines)

    def _pair(self, mapping: Any, key: str, step: str) -> tuple[Any, Any]:
        known, value = next(pair for pair in mapping.value if pair[0].value == key)
        return known, self._own(value, known.end_mark.index, step)

    def _own(self, node: Any, start: int, step: str) -> Any:
        """The node itself, where it is written where it is used, and used nowhere else."""
        if node.anchor is not None or node.start_mark.index < start:
            raise UsageError(
                f"step `{step}` is written with a YAML anchor or alias, so that an edit could change more than it",
                hint="write it out, or paste the privileges by hand",
            )
        return node

    def _end(self, node: Any, step: str) -> int:
        """Where the last thing in a node ends; the parser puts the end of a block after the comments that follow."""
        if not _is_block(node):
            return int(node.end_mark.index)
        if node.id == "mapping":
            key, value = node.value[-1]
            return self._end(self._own(value, key.end_mark.index, step), step)
        return self._end(self.item(node, -1, step), step)

    def _dash(self, item: Any, column: int) -> int:
        """The beginning of the line with the dash of a block item; it may be above the item itself."""
        start = self._text.rfind("\n", 0, item.start_mark.index) + 1
        while not self._text.startswith("-", start + column) or self._text[start : start + column].strip():
            start = self._text.rfind("\n", 0, start - 1) + 1
        return start

    def _next_line(self, index: int) -> int:
        """The beginning of the line after a place; the text of a block scalar ends there already."""
        if self._text[index - 1 : index] == "\n":
            return index
        found = self._text.find("\n", index)
        return len(self._text) if found < 0 else found + 1

    def _insert_lines(self, index: int, column: int, lines: Sequence[str]) -> None:
        if not lines:
            return
        text = self._line_end.join(" " * column + line for line in lines)
        at_end_without_line_end = index == len(self._text) and not self._text.endswith("\n")
        text = self._line_end + text if at_end_without_line_end else text + self._line_end
        self._edits.append((index, index, text))

    def _replace(self, start: int, end: int, new: str, node: Any, step: str) -> None:
        """Replace a part of the text in which nothing but the node is."""
        outside = self._text[start:end]
        for scalar in _scalars(node):
            first, last = scalar.start_mark.index - start, scalar.end_mark.index - start
            if 0 <= first <= last <= end - start:
                outside = outside[:first] + " " * (last - first) + outside[last:]
        if "#" in outside:
            raise UsageError(
                f"step `{step}`: an edit would lose the comments inside its privileges",
                hint="write them as a block, one item a line, or paste the privileges by hand",
            )
        self._edits = [edit for edit in self._edits if not start <= edit[0] < end]
        self._edits.append((start, end, new))

    def _edited_part(self, node: Any) -> str:
        """The text of a node with the edits inside it."""
        return self._with_edits(node.start_mark.index, node.end_mark.index)

    def _with_edits(self, start: int, end: int) -> str:
        parts, position = [], start
        for first, last, new in sorted(self._edits, key=lambda edit: edit[:2]):
            if start <= first and last <= end:
                parts += [self._text[position:first], new]
                position = last
        return "".join([*parts, self._text[position:end]])


def _is_block(node: Any) -> bool:
    return node.id != "scalar" and not node.flow_style


def _scalars(node: Any) -> list[Any]:
    if node.id == "scalar":
        return [node]
    children = [each for pair in node.value for each in pair] if node.id == "mapping" else node.value
    return [scalar for child in children for scalar in _scalars(child)]
