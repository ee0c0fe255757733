"""What stands behind the encodings that tools apply by the way: the same text without folds, and decoded bytes as text.

Pure functions. Each is made to cost little where there is nothing of its kind: outputs are mostly rows of words and
numbers. Bytes are told as text of the code points 0 to 255 (Latin-1), so that one search serves all.
"""

from __future__ import annotations

import base64
import binascii
import html
import re
import zlib
from collections.abc import Iterator

BETWEEN = "\x1e"
"""Between texts that are searched together: no form of a secret has it inside."""

_UNPACKED = 1 << 20
"""Bytes that are unpacked of all compressed texts in one text together."""

_ANSI = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[@-Z\\^_])")
_INVISIBLE = re.compile("[\u00ad\u200b-\u200f\u2060-\u2064\ufeff]")
_OCTAL = re.compile(r"\\([0-3][0-7]{2})")
_RUN = re.compile(r"[A-Za-z0-9+/_-]{16,}")
"""What base64, base32 and hexadecimal digits of at least eight bytes look like, and long words."""
_BASE32 = re.compile(r"[A-Z2-7]+")
_HEX = re.compile(r"[0-9A-Fa-f]{16,}")
_ROW = re.compile(r"[\s\x1e\[({:,;=%-][0-9A-Fa-f]{1,8}(?:[\s:,;=%-]{1,2}[0-9A-Fa-f]{1,8}){3,}")
"""Bytes one by one, in decimal or hexadecimal numbers, or in groups as dumps have them."""
_TOKEN = re.compile(r"[0-9A-Fa-f]+")
_DUMP = re.compile(r"(?:^|\x1e)[ \t]*[0-9A-Fa-f]{4,16}:?[ \t]{1,4}((?:[0-9A-Fa-f]{2}[ \t]{0,2}){1,16})", re.MULTILINE)
"""A line of `xxd` or `hexdump -C`: sixteen bytes; what is beside them may look like more of them."""
_LEAST_DIGITS = 16
_GZIP, _ZLIB, _GZIP_IN_BASE64 = b"\x1f\x8b", b"\x78", "H4sI"


def unfolded(text: str) -> list[str]:
    """The text without the breaks of its lines, colours of a terminal and characters that are not seen.

    Nothing where it has none of them; twice where a backslash before a break may be the break's.
    """
    plain = _ANSI.sub("", text) if "\x1b" in text else text
    if not plain.isascii():
        plain = _INVISIBLE.sub("", plain)
    if "\n" in plain or "\r" in plain:
        lines = [line.strip() for line in plain.splitlines()]
        plain = "".join(lines)
        if any(line.endswith("\\") for line in lines):
            return [plain, "".join(line.removesuffix("\\") for line in lines[:-1]) + lines[-1]]
    return [] if plain == text else [plain]


def unbroken(line: str) -> str:
    """A line as it is where several are taken for one text: without white space, colours and what is not seen."""
    plain = _ANSI.sub("", line) if "\x1b" in line else line
    if not plain.isascii():
        plain = _INVISIBLE.sub("", plain)
    return "".join(plain.split())


def is_dumped(line: str) -> bool:
    """Whether it is a line of `xxd` or `hexdump -C`."""
    return _DUMP.match(line) is not None


def readings(text: str) -> Iterator[str]:
    """The text with what can be told of single characters: entities of HTML, octal escapes, UTF-16 read as bytes."""
    if "&" in text and ";" in text and (plain := html.unescape(text)) != text:
        yield plain
    if "\\" in text and _OCTAL.search(text):
        yield _OCTAL.sub(lambda match: chr(int(match[1], 8)), text)
    if "\x00" in text:
        yield text.replace("\x00", "")


def decoded(text: str) -> str:
    """What base64, base32, dumps and rows of numbers in the text stand for, unpacked where it is compressed."""
    budget = _Budget()
    pieces = [*_of_runs(_RUN.findall(text), budget), *_of_rows(_ROW.findall(" " + text))]
    if "\n" in text and (dumped := "".join(_DUMP.findall(text))):
        pieces += _from_hex("".join(_TOKEN.findall(dumped)))
    if "0x" in text:
        pieces += _of_rows(_ROW.findall(" " + text.replace("0x", "")))
    return BETWEEN.join([piece.decode("latin-1") for piece in pieces])


def _of_runs(runs: list[str], budget: _Budget) -> Iterator[bytes]:
    for run in dict.fromkeys(runs):
        yield from budget.unpacked(_from_base64(run))
        if (start := run.find(_GZIP_IN_BASE64)) > 0:
            yield from budget.unpacked(_from_base64(run[start:]))
        for digits in _HEX.findall(run):
            yield from _from_hex(digits)
        if _BASE32.fullmatch(run):
            yield _from_base32(run)


def _of_rows(rows: list[str]) -> Iterator[bytes]:
    for row in rows:
        tokens = _TOKEN.findall(row)
        if len(tokens) >= _LEAST_DIGITS // 2 and all(map(str.isdecimal, tokens)):
            yield b"".join(bytes([number]) if (number := int(token)) < 256 else b"\x1e" for token in tokens)
        yield from _from_hex("".join(tokens))


def _from_hex(digits: str) -> Iterator[bytes]:
    """Both ways to pair the digits: what stands before the first one of interest may be an odd number of them."""
    if len(digits) >= _LEAST_DIGITS:
        for begin in (0, 1):
            yield bytes.fromhex(digits[begin : len(digits) - (len(digits) - begin) % 2])


def _from_base64(run: str) -> bytes:
    run = run.translate({45: "+", 95: "/"})
    run = run[: len(run) - (len(run) % 4 == 1)]
    return binascii.a2b_base64(run + "=" * (-len(run) % 4))


def _from_base32(run: str) -> bytes:
    """Without the characters at the end that make no whole byte (RFC 4648, 6)."""
    run = run[: len(run) - {1: 1, 3: 1, 6: 1}.get(len(run) % 8, 0)]
    return base64.b32decode(run + "=" * (-len(run) % 8))


class _Budget:
    """What may still be unpacked in one text."""

    def __init__(self) -> None:
        self._left = _UNPACKED

    def unpacked(self, raw: bytes) -> Iterator[bytes]:
        """The bytes, and what they are unpacked to where they are compressed (zlib manual, inflateInit2)."""
        yield raw
        if self._left and raw.startswith((_GZIP, _ZLIB)):
            try:
                plain = zlib.decompressobj(47).decompress(raw, self._left)
            except zlib.error:
                return
            self._left -= len(plain)
            yield plain
