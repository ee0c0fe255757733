"""The smallest changes of a question that would have been decided otherwise.

They are looked for among what whoever asks could change: asking for less (a grant, a privilege, a column, a verb, a
scope left out), and another value in the place of one, of those that the policies themselves mention.
"""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from functools import partial
from itertools import combinations
from typing import Any

from orchestrator.jsontypes import JsonObject, JsonValue
from orchestrator.policy.types import Decision

Ask = Callable[[JsonObject], Decision]
Path = tuple[str | int, ...]

MOST_QUESTIONS = 5_000
"""How often the policies are asked for one explanation."""

MOST_TOGETHER = 3
"""How many changes are tried together."""

_MOST_COMBINED = 40
_FIXED = {
    ("version",),
    ("workflow", "digest"),
    ("run", "id"),
    ("step", "attempt"),
    ("time",),
    ("supported_obligations",),
}
"""What nobody who asks chooses."""

_LITERAL = re.compile(r'"((?:[^"\\\n]|\\.)*)"|(?<![\w.])(\d+)(?![\w.])')


@dataclass(frozen=True, slots=True)
class Edit:
    """One change: a value in the place of another, or an element of a list left out (`value` is REMOVED)."""

    path: Path
    before: JsonValue
    value: Any

    @property
    def where(self) -> str:
        """The place as people write it: `grants[0].ttl`."""
        text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in self.path)
        return text.removeprefix(".")

    def __str__(self) -> str:
        before = _shown(self.before)
        return (
            f"without {self.where} ({before})"
            if self.value is REMOVED
            else f"{self.where}: {_shown(self.value)} instead of {before}"
        )

    def as_json(self) -> JsonObject:
        """The same for scripts, with `remove` or `replace` as in RFC 6902."""
        pointer = "/" + "/".join(str(part).replace("~", "~0").replace("/", "~1") for part in self.path)
        if self.value is REMOVED:
            return {"op": "remove", "path": pointer, "before": self.before}
        return {"op": "replace", "path": pointer, "before": self.before, "value": self.value}


class _Removed:
    """Stands where an element was."""


REMOVED = _Removed()
Change = tuple[Edit, ...]


def smallest_changes(document: JsonObject, ask: Ask, words: Sequence[JsonValue], *, most: int = 5) -> list[Change]:
    """Up to `most` changes, all equally small, after which the answer is the opposite one; none if none was found.

    `words` are the values that the policies mention. The policies are asked `MOST_QUESTIONS` times at most.
    """
    asked = _Asked(document, ask)
    now = asked(())
    if now is None:
        return []
    found: list[Change] = []
    helpful: list[Edit] = []
    for edit in _edits(document, words, asking=now.allow):
        decision = asked((edit,))
        if decision is None:
            break
        if decision.allow != now.allow:
            found.append((edit,))
        elif not decision.allow and len(decision.reasons) < len(now.reasons):
            helpful.append(edit)
    if found:
        return _plainest(found)[:most]
    for together in range(2, MOST_TOGETHER + 1):
        for change in combinations(helpful[:_MOST_COMBINED], together):
            if len({edit.path for edit in change}) < together:
                continue
            decision = asked(change)
            if decision is None:
                return _plainest(found)[:most]
            if decision.allow != now.allow:
                found.append(change)
                if len(found) >= most:
                    return _plainest(found)
        if found:
            return _plainest(found)[:most]
    return []


def words_of(sources: Sequence[str], data: JsonValue) -> list[JsonValue]:
    """The texts and numbers that rules (their text) and data mention, each once, in order."""
    found: dict[str, JsonValue] = {}

    def add(value: JsonValue) -> None:
        found.setdefault(json.dumps(value), value)

    def walk(value: JsonValue) -> None:
        if isinstance(value, dict):
            for key, item in value.items():
                add(key)
                walk(item)
        elif isinstance(value, list):
            for item in value:
                walk(item)
        elif isinstance(value, str | int) and not isinstance(value, bool):
            add(value)

    walk(data)
    for text in sources:
        for match in _LITERAL.finditer(text):
            if match[2] is not None:
                add(int(match[2]))
            elif "%" not in match[1] and "\\" not in match[1]:
                add(match[1])
    return list(found.values())


class _Asked:
    """Asks about the document after a change, so many times at most; None after that."""

    def __init__(self, document: JsonObject, ask: Ask) -> None:
        self._document = json.dumps(document)
        self._ask = ask
        self._left = MOST_QUESTIONS

    def __call__(self, change: Change) -> Decision | None:
        if not self._left:
            return None
        self._left -= 1
        changed = json.loads(self._document)
        # From the end on, so that what is left out moves nothing that another edit names.
        for edit in sorted(change, key=lambda edit: [f"{part:>9}" for part in edit.path], reverse=True):
            *way, last = edit.path
            holder = changed
            for part in way:
                holder = holder[part]
            if edit.value is REMOVED:
                del holder[last]
            else:
                holder[last] = copy.deepcopy(edit.value)
        return self._ask(changed)


def _edits(document: JsonObject, words: Sequence[JsonValue], *, asking: bool) -> Iterator[Edit]:
    """Those that ask for less first. Of an allowed question (`asking`) every value is also tried as another one."""
    places = list(_places(document, ()))
    for path, value in places:
        if isinstance(path[-1], int):
            yield Edit(path, value, REMOVED)
    for path, value in places:
        if isinstance(value, dict | list):
            continue
        if isinstance(value, bool):
            yield Edit(path, value, not value)
            continue
        if asking and isinstance(value, str):
            yield Edit(path, value, value + "?")
        for word in sorted((word for word in words if type(word) is type(value)), key=partial(_distance, value)):
            if word != value:
                yield Edit(path, value, word)
        if asking and isinstance(value, int):
            yield Edit(path, value, value * 1000 + 1)


def _distance(value: Any, word: Any) -> float:
    """How far a word is from the value that it would replace."""
    return abs(word - value) if isinstance(value, int) else -SequenceMatcher(None, value, word).ratio()


def _places(value: Any, path: Path) -> Iterator[tuple[Path, Any]]:
    if path in _FIXED:
        return
    if path:
        yield path, value
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _places(item, (*path, key))
    elif isinstance(value, list | tuple):
        for number, item in enumerate(value):
            yield from _places(item, (*path, number))


def _plainest(found: list[Change]) -> list[Change]:
    """Asking for less before asking as somebody else, and one change of each place only."""
    by_places: dict[tuple[Path, ...], Change] = {}
    for change in found:
        by_places.setdefault(tuple(edit.path for edit in change), change)
    return sorted(by_places.values(), key=lambda change: sum(edit.value is not REMOVED for edit in change))


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        name = value.get("name") or value.get("object")
        verb = f"{value['verb']} on " if "verb" in value else ""
        return f"`{verb}{name}`" if name else "..."
    text = value if isinstance(value, str) else json.dumps(value)
    return f"`{text if len(text) <= 60 else text[:57] + '...'}`"
