"""Text that is still being written, line by line and without secrets.

A secret may come in any number of pieces, over the ends of lines too. So a line waits for what follows as long as its
end may be the beginning of a secret, or of something encoded that goes on in the next line; then it is searched
together with that. What comes out depends on the text alone, and not on the pieces in which it came, unless there was
a pause: after one is told what was held for something encoded, or for three characters at most that begin a secret.
What follows is searched together with that all the same.
"""

from __future__ import annotations

import codecs
import io
import re
from collections.abc import Iterator
from dataclasses import dataclass

from orchestrator.redaction.layers import is_dumped, unbroken
from orchestrator.redaction.redactor import MASK, SHORTEST, Redactor

LONGEST_LINE = 16_384
"""Characters after which a line that does not end is broken."""
_SEARCHED_ALONE = 12
"""Lines at the end of what is held from each of which on it is searched."""
_ENCODED = 16
"""Characters of the shortest word that may be something encoded."""
_GOING_ON = 4096
"""Characters of lines that are held because something encoded may go on in the next one."""
_MOST_HELD, _MOST_LINES = 65_536, 512
"""Characters of lines that are held at all, or four times the longest form of a secret; and how many lines."""
_CERTAIN = 4
"""Characters at the end of a line that are held over a pause, too, where they begin a secret. Fewer are chance."""

_NUMBERS = re.compile(r"(?:(?:^|[\s\[({:,;=%-]{1,2})(?:0x)?[0-9A-Fa-f]{1,8}){3,}[\s\]):,;=]*$")
_ANY_NUMBERS = re.compile(r"(?:(?:^|[\s\[({:,;=%-]{1,2})(?:0x)?[0-9A-Fa-f]{1,8})+[\s\]):,;=%({\[-]*$")
_ONLY_NUMBERS = re.compile(r"[\s0-9A-Fa-fx,:;%=\[\](){}-]+")
_SEEN_OF_LINE = 400
"""Characters at the end of a line in which numbers are looked for."""


@dataclass(slots=True)
class _Line:
    """A line that waits; so many characters of it have been told, more than it has where all of it was."""

    text: str
    told: int = 0

    def left(self) -> list[str]:
        """What is still to be told."""
        left = self.text[self.told :]
        return [] if self.told and not left.strip() else [left]

    def mask(self, instead: str = MASK) -> None:
        """Put another text in its place, of which what was told stays as it was."""
        if self.told == 0:
            self.text = instead
        elif self.told <= len(self.text):
            self.text = self.text[: self.told] + MASK


class LiveLines:
    """One stream of bytes. Each method gives the lines that may be shown now, without their ends."""

    def __init__(self, redactor: Redactor) -> None:
        self._redactor = redactor
        self._begin()

    def _begin(self, *, skip: int = 0) -> None:
        self._decoder = io.IncrementalNewlineDecoder(codecs.getincrementaldecoder("utf-8")("replace"), translate=True)
        self._held: list[_Line] = []
        self._partial, self._told = "", 0
        self._skip = skip

    @property
    def waits(self) -> bool:
        """Whether there is anything that has not been told yet."""
        return len(self._partial) > self._told or any(line.left() for line in self._held)

    def feed(self, data: bytes) -> list[str]:
        """More of it."""
        return list(self._feed(self._decoder.decode(data)))

    def pause(self) -> list[str]:
        """Nothing more came for a while: also what is held by chance, and of a line without an end what is safe."""
        return list(self._paused())

    def end(self) -> list[str]:
        """Nothing more will come. The beginning of a secret that was cut off is masked."""
        return self._end(cut_from=SHORTEST)

    def gap(self) -> list[str]:
        """What comes next is not what followed: it may begin with the rest of a secret, and is left out so far."""
        told = self._end(cut_from=1)
        self._begin(skip=max(1, self._redactor.reach))
        return told

    def _feed(self, text: str) -> Iterator[str]:
        *whole, last = text.split("\n")
        for line in whole:
            yield from self._ended(self._partial + line)
        self._partial += last
        self._partial, broken = self._shortened(self._partial)
        for piece in broken:
            yield from self._taken(piece)

    def _ended(self, line: str) -> Iterator[str]:
        rest, broken = self._shortened(line)
        for piece in (*broken, rest):
            yield from self._taken(piece)
        self._partial, self._told = "", 0

    def _shortened(self, line: str) -> tuple[str, list[str]]:
        """A line that is no longer than may be, and what was broken off before it."""
        pieces = []
        while len(line) >= LONGEST_LINE:
            piece = line[:LONGEST_LINE]
            cut = len(_without_end(piece, self._begun([piece])[0])) or LONGEST_LINE
            pieces.append(line[:cut])
            line = line[cut:]
        return line, pieces

    def _taken(self, text: str) -> Iterator[str]:
        """One more line, with as much of it told as was; what can be told now."""
        if self._skip:
            self._skip = max(0, self._skip - len(text) - 1)
            return
        told, self._told = min(self._told, len(text)), max(0, self._told - len(text))
        self._held.append(_Line(text, told))
        self._search()
        yield from self._let_go(self._first_held())

    def _search(self) -> None:
        """Mask what the newest line completes."""
        newest = self._held[-1]
        if (alone := self._redactor.redact(newest.text)) != newest.text:
            newest.mask(alone)
        # The fewest lines first: what stands before something encoded shifts it, and is none of it.
        for start in sorted({0, *range(max(0, len(self._held) - _SEARCHED_ALONE), len(self._held) - 1)}, reverse=True):
            if self._redactor.find(together := "\n".join(line.text for line in self._held[start:])):
                self._mask(start, together)

    def _mask(self, start: int, together: str) -> None:
        lines = self._held[start:]
        if any(line.told for line in lines):
            for line in lines:
                line.mask()
        else:
            self._held[start:] = [_Line(text) for text in self._redactor.redact(together).split("\n")]

    def _first_held(self) -> int:
        """The first line that has to wait for what follows."""
        texts = [line.text for line in self._held]
        going_on, size = len(texts), 0
        while going_on and _goes_on(texts[going_on - 1]):
            going_on -= 1
            size += len(texts[going_on])
            if size > _GOING_ON or not _is_only_encoded(texts[going_on]):
                break
        first = min(going_on, self._begins_secret(texts, least=1))
        most = max(_MOST_HELD, 4 * self._redactor.reach)
        if sum(map(len, texts[first:])) > most or len(texts) - first > _MOST_LINES:
            self._mask_end(1)
            return len(self._held)
        return first

    def _begun(self, texts: list[str]) -> list[int]:
        """How many characters at the end of each of these lines, one after another, may be the beginning of a secret.

        White space is not counted. A backslash before a break may be the break's.
        """
        counts = [0] * len(texts)
        bare = [unbroken(text) for text in texts]
        for lines in (bare, [line.removesuffix("\\") for line in bare]):
            left = self._redactor.unfinished("".join(lines))
            for at in range(len(lines) - 1, -1, -1):
                if left <= 0:
                    break
                counts[at] = max(counts[at], min(left, len(lines[at])), 1)
                left -= len(lines[at])
        return counts

    def _begins_secret(self, texts: list[str], *, least: int) -> int:
        """The first line of those whose end may be the beginning of a secret, of so many characters at least."""
        counts = self._begun(texts)
        return next((at for at, count in enumerate(counts) if count and sum(counts) >= least), len(texts))

    def _let_go(self, count: int) -> Iterator[str]:
        going, self._held = self._held[:count], self._held[count:]
        for line in going:
            yield from line.left()

    def _paused(self) -> Iterator[str]:
        """Tell it, and keep it to be searched with what follows."""
        first = self._begins_secret([line.text for line in self._held], least=_CERTAIN)
        for line in self._held[:first]:
            yield from line.left()
            line.told = len(line.text) + 1
        if first == len(self._held) and not self._skip:
            yield from self._safe_of_partial()

    def _safe_of_partial(self) -> Iterator[str]:
        """Of the line that has no end yet whole words, but for numbers and what may be the beginning of a secret."""
        words = self._partial.removesuffix(_last_word(self._partial))
        words = words[: len(words) - len(_numbers_at_end(words))]
        *before, begun = self._begun([*(line.text for line in self._held), words])
        safe = "" if any(before) else _without_end(words, begun)
        news = safe[self._told :].rstrip()
        if news and not self._redactor.find("\n".join([*(line.text for line in self._held), safe])):
            yield news
            self._told = len(safe)

    def _end(self, *, cut_from: int) -> list[str]:
        told = list(self._feed(self._decoder.decode(b"", final=True)))
        if self._partial:
            told += self._ended(self._partial)
        if self._held:
            self._mask_end(cut_from)
        told += self._let_go(len(self._held))
        self._begin()
        return told

    def _mask_end(self, least: int) -> None:
        """Mask the beginning of a secret at the end of what is held, of so many characters at least."""
        counts = self._begun([line.text for line in self._held])
        if sum(counts) >= least:
            for line, count in zip(self._held, counts, strict=True):
                if count:
                    line.mask(_without_end(line.text, count) + MASK)


def _goes_on(line: str) -> bool:
    """Whether it ends in something encoded, so that this may go on in the next line."""
    end = line[-_SEEN_OF_LINE:].rstrip()
    return len(_last_word(end)) >= _ENCODED or _NUMBERS.search(end) is not None or is_dumped(line)


def _is_only_encoded(line: str) -> bool:
    """Whether it holds nothing else, so that it may go on what the line before it began."""
    words = line.split(None, 1)
    return len(words) == 1 or _ONLY_NUMBERS.fullmatch(line) is not None or is_dumped(line)


def _last_word(text: str) -> str:
    """What stands after the last white space; empty where the text ends with that."""
    return text[len(text) - next((n for n, char in enumerate(reversed(text)) if char.isspace()), len(text)) :]


def _numbers_at_end(text: str) -> str:
    end = text[-_SEEN_OF_LINE:]
    found = _ANY_NUMBERS.search(end)
    return found[0] if found else ""


def _without_end(text: str, count: int) -> str:
    """The text without so many characters at its end, white space not counted."""
    count += count > 0 and text.rstrip().endswith("\\")
    end = len(text)
    while end and (left := count - len(unbroken(text[end:]))) > 0:
        end = max(0, end - left)
    return text[:end]
