"""Finding issued secrets in text, however they were encoded, and taking them out.

A secret is looked for as it is and in the forms that programs give it by accident: base64 (standard
and URL-safe, also in the middle of a longer encoded text, with or without padding and line breaks),
hexadecimal, percent-encoding and the escapes of JSON and of Python's `repr`. Of a secret of several
lines every line is a secret too. What is deliberately disguised cannot be found by any such search.
"""

from __future__ import annotations

import logging
import re
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import lru_cache

from orchestrator.jsontypes import JsonValue
from orchestrator.redaction.forms import Needle, lines_of, needles_of, spelled, unescaped, unquoted, whole_forms_of
from orchestrator.redaction.layers import BETWEEN, decoded, readings, unfolded
from orchestrator.secret import Secret

MASK = "***"
SHORTEST = 6
"""Characters. A shorter secret is only recognised where it is the whole of a text: it would destroy all others."""

_SPELLED_LIMIT = 200_000
"""Characters. Above it the slow search for mixed escapes is not made, and the whole text is masked."""


class Redactor:
    """Knows the secrets that were issued, until they are forgotten: a process that serves for weeks must forget.

    `only` says which values, and which lines of them, are looked for at all; the others are not even kept.

    Not safe for use by several threads while secrets are added or forgotten, except that a search which runs at the
    same time misses none that is known before and after.
    """

    def __init__(self, secrets: Iterable[Secret] = (), *, only: Callable[[str], bool] = lambda value: True) -> None:
        self._only = only
        self._forms = _Forms()
        self._whole: frozenset[str] = frozenset()
        self._order: dict[str, int] = {}
        self._position = 0
        for secret in secrets:
            self.add(secret)

    def add(self, secret: Secret) -> None:
        """Look for this secret too from now on. Adding it again only makes it the newest."""
        value = secret.reveal()
        if not self._only(value):
            return
        self._position += 1
        known_before = self._order.pop(value, None) is not None
        self._order[value] = self._position
        if known_before:
            return
        if len(value) < SHORTEST:
            self._whole |= whole_forms_of(value)
            return
        for each in self._searched(value):
            self._forms.add(each)

    @property
    def position(self) -> int:
        """A point in the order of all additions so far, for `forget`."""
        return self._position

    def forget(self, *, until: int, keep: int) -> None:
        """Forget what was last added at or before the position `until`, except the `keep` newest of all."""
        candidates = list(self._order.items())[: max(0, len(self._order) - keep)]
        old = {value for value, position in candidates if position <= until}
        if not old:
            return
        self._order = {value: position for value, position in self._order.items() if value not in old}
        forms = _Forms()
        for value in self._order:
            if len(value) >= SHORTEST:
                for each in self._searched(value):
                    forms.add(each, self._forms.of[each])
        self._forms = forms
        _forms_of.cache_clear()
        self._whole = frozenset(
            form for value in self._order if len(value) < SHORTEST for form in whole_forms_of(value)
        )

    @property
    def reach(self) -> int:
        """Characters of the longest form of any secret: a text cut anywhere may begin with as much of one."""
        return max((len(value) * 12 for value in tuple(self._forms.of)), default=0)

    def find(self, text: str) -> bool:
        """Whether the text contains a secret in any form."""
        return text in self._whole or self._forms.found(text)

    def redact(self, text: str) -> str:
        """The text with every secret replaced by `***`; afterwards `find` is false.

        Where a secret is seen that cannot be cut out (encoded twice, say) the whole text is replaced.
        """
        if text in self._whole:
            return MASK
        if not self._forms.found(text):
            return text
        text = _cut(text, self._forms.spans(text))
        if self._forms.found(text) and len(text) <= _SPELLED_LIMIT:
            text = self._forms.pattern().sub(MASK, text)
        return MASK if self.find(text) else text

    def unfinished(self, text: str) -> int:
        """How many characters at the end of the text may be the beginning of a secret whose rest is yet to come.

        Of the literal forms, white space left out: the text must have none either.
        """
        return self._forms.unfinished(text)

    def contains(self, value: JsonValue) -> bool:
        """Whether any string, key or number of a JSON value contains a secret."""
        texts = list(_texts(value))
        if not self._whole.isdisjoint(texts):
            return True
        if len(texts) > 1 and not self._forms.found(BETWEEN.join(texts)):
            return False
        return any(self._forms.found(text) for text in texts)

    def _searched(self, value: str) -> set[str]:
        return {value, *(line for line in lines_of(value) if self._only(line))}


_FOLDABLE, _FEW = 12, 4
"""Characters, and different ones, of a form that is looked for across white space: shorter ones are also met by chance
where one word follows another."""
_FOLDABLE_BYTES = 8
"""Characters of a secret that is looked for among decoded bytes."""
_BEGINNING = 4
"""Characters of the beginning by which a form is looked for at the end of a text."""
_LAYERS = 2
"""Encodings, one within the other, that are taken off."""


class _Forms:
    """The forms of long secrets. They only grow, so that a search at the same time misses none that was there."""

    def __init__(self) -> None:
        self.of: dict[str, tuple[Needle, ...]] = {}
        self._needles: dict[str, Needle] = {}
        self._texts: list[str] = []
        self._wrapping: list[str] = []
        self._unbroken: list[str] = []
        self._foldable: list[str] = []
        self._raw: list[str] = []
        self._beginnings: set[str] = set()
        self._spelled: re.Pattern[str] | None = None

    def add(self, value: str, made: tuple[Needle, ...] = ()) -> None:
        """Look for this value too; `made` are its forms where they were made before: each output is searched for all,
        and every step adds some."""
        if value in self.of:
            return
        made = made or _forms_of(value)
        for needle in made:
            known = self._needles.get(needle.text)
            if known is None:
                self._texts.append(needle.text)
            if needle.wraps and (known is None or not known.wraps):
                self._wrapping.append(needle.text)
            if known is None or needle.wraps:
                self._needles[needle.text] = needle
        self._add_hidden(value, made)
        self.of[value] = made
        self._spelled = None

    def _add_hidden(self, value: str, made: tuple[Needle, ...]) -> None:
        texts = {"".join(needle.text.split()) for needle in made}
        self._beginnings |= {text[:length] for text in texts for length in range(1, min(_BEGINNING, len(text)))}
        self._unbroken += texts
        self._foldable += [text for text in texts if len(text) >= _FOLDABLE and len(set(text)) > _FEW]
        if len(value) >= _FOLDABLE_BYTES:
            raw, wide = value.encode("utf-8", "surrogatepass"), value.encode("utf-16-le", "surrogatepass")
            self._raw += [raw.decode("latin-1"), wide.decode("latin-1")]

    def found(self, text: str) -> bool:
        """Whether the text contains any, also broken into lines, or spelled with escapes."""
        if not self._texts:
            return False
        if any(map(text.__contains__, self._texts)):
            return True
        if "\n" in text or "\r" in text:
            joined = text.replace("\n", "").replace("\r", "")
            if any(map(joined.__contains__, self._wrapping)):
                return True
        return any(any(map(view.__contains__, self._texts)) for view in _views(text)) or self._hidden(text)

    def _hidden(self, text: str) -> bool:
        """Whether the text contains any in a form that tools give it by the way: folded, in colours, as a dump, as
        numbers, in two layers of encoding."""
        flat = unfolded(text)
        if any(any(map(view.__contains__, self._foldable)) for view in flat):
            return True
        if any(any(map(view.__contains__, self._texts)) for view in readings(text)):
            return True
        return any(map(self._inside, [text, *flat]))

    def _inside(self, text: str) -> bool:
        """Whether any is among the bytes that are encoded in the text, of one layer or two."""
        for _ in range(_LAYERS):
            text = decoded(text)
            if not text:
                return False
            if any(map(text.__contains__, self._raw)) or any(map(text.__contains__, self._texts)):
                return True
        return False

    def unfinished(self, text: str) -> int:
        """How many characters at the end of a text without white space are the beginning of any, and not all of it."""
        longest = max((n for n in range(1, _BEGINNING) if text[-n:] in self._beginnings), default=0)
        for form in tuple(self._unbroken):
            start = max(0, len(text) - len(form) + 1)
            begin = form[:_BEGINNING]
            while (start := text.find(begin, start)) >= 0:
                if form.startswith(text[start:]):
                    longest = max(longest, len(text) - start)
                    break
                start += 1
        return min(longest, len(text))

    def spans(self, text: str) -> list[tuple[int, int]]:
        """Where the literal forms are, from left to right; they may overlap."""
        spans = []
        for needle in tuple(self._needles.values()):
            start = text.find(needle.text)
            while start >= 0:
                end = start + len(needle.text)
                spans.append(needle.widened(text, start, end))
                start = text.find(needle.text, start + 1)
        return sorted(spans)

    def pattern(self) -> re.Pattern[str]:
        """What matches them with any of their characters escaped, or broken into lines."""
        pattern = self._spelled
        if pattern is None:
            longest_first = sorted(self.of, key=len, reverse=True)
            wrapped = ("\r?\n?".join(map(re.escape, text)) for text in self._wrapping)
            pattern = self._spelled = re.compile("|".join([*map(spelled, longest_first), *wrapped]))
        return pattern


@lru_cache(maxsize=8)
def _forms_of(value: str) -> tuple[Needle, ...]:
    """A secret is given to several redactors at the same time: that of its process and that of its run."""
    return tuple(needles_of(value))


def redact_exception(error: BaseException, redactor: Redactor) -> str:
    """One safe line about any exception, even one that cannot say what it is: type and redacted message, at most
    500 characters."""
    try:
        text = " ".join(redactor.redact(str(error)).split())
    except Exception:  # noqa: BLE001 -- `__str__` is code of whoever raised it
        text = ""
    name = type(error).__name__
    return f"{name}: {text[:500]}" if text else name


class RedactingFilter(logging.Filter):
    """Takes secrets out of log records: message, arguments, traceback, stack and extra fields.

    Attach it to handlers: the filter of a logger does not see what its children log. Arguments are
    merged into the message and the traceback becomes text, so that no later formatter can show them.
    """

    def __init__(self, redactor: Redactor) -> None:
        super().__init__()
        self._redactor = redactor

    def filter(self, record: logging.LogRecord) -> bool:
        """Always true; the record is changed in place."""
        redact = self._redactor.redact
        try:
            message = record.getMessage()
        except (TypeError, ValueError, KeyError, IndexError):
            message = f"{record.msg} (its arguments do not fit)"
        record.msg, record.args = redact(message), ()
        if record.exc_info and not record.exc_text:
            record.exc_text = "".join(traceback.format_exception(*record.exc_info)).rstrip()
        record.exc_info = None
        for name, value in list(vars(record).items()):
            if isinstance(value, str):
                setattr(record, name, redact(value))
            elif name not in _STANDARD and not isinstance(value, bool | int | float | None):
                setattr(record, name, redact(str(value)))
        return True


_STANDARD = frozenset(vars(logging.makeLogRecord({})))


def _views(text: str) -> Iterator[str]:
    """The text as it reads after decoding its escapes, one layer at a time and both kinds in turn."""
    for _ in range(3):
        before = text
        if "\\" in text:
            text = unescaped(text)
            yield text
        if "%" in text:
            decoded = unquoted(text)
            yield decoded
            if "+" in text:
                yield unquoted(text.replace("+", " "))
            text = decoded
        elif "+" in text:
            yield text.replace("+", " ")
        if text == before:
            return


def _cut(text: str, spans: list[tuple[int, int]]) -> str:
    parts, position = [], 0
    for start, end in spans:
        if start >= position:
            parts += [text[position:start], MASK]
        position = max(position, end)
    return "".join([*parts, text[position:]])


def _texts(value: JsonValue) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield key
            yield from _texts(item)
    elif isinstance(value, list | tuple):
        if len(value) >= _FOLDABLE_BYTES and all(type(item) is int and 0 <= item < 256 for item in value):
            yield " ".join(map(str, value))  # bytes, as JSON of Node's Buffer has them
        for item in value:
            yield from _texts(item)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield str(value)
