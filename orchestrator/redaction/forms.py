"""The forms that a secret takes when programs encode it. Pure functions over text; `redaction` puts them together."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator
from dataclasses import dataclass
from urllib.parse import unquote

_BASE64 = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/-_")
_LINE = 8
"""Characters of the shortest line that is looked for by itself."""
_LEAST = 8
"""Characters of a value that is looked for in outputs: what is shorter is met by chance, and no service should take it
for a password (NIST SP 800-63B, 5.1.1.2)."""
_LONG = 16
"""Characters from which letters alone or digits alone are no word, number or date any more: 16 small letters are an
application's password at Google, 16 digits a payment card."""
_SEPARATORS = re.compile(r"[-_./:,\s]+")
_NUMBER = re.compile(r"[A-Za-z]?\d+[A-Za-z]?")
_ARMOUR = re.compile(r"-----(BEGIN|END) [A-Z0-9 ]+-----")
_ESCAPE = re.compile(r"((?:\\u[0-9a-fA-F]{4})+)|\\(?:x([0-9a-fA-F]{2})|U([0-9a-fA-F]{8})|(.))", re.DOTALL)
_SHORT = {"n": "\n", "t": "\t", "r": "\r", "b": "\b", "f": "\f", "a": "\a", "v": "\v", "0": "\0"}


@dataclass(frozen=True, slots=True)
class Needle:
    """A literal to look for. `before` and `after`: base64 characters beside it that hold bits of the secret too.

    `wraps`: encoders may break it into lines.
    """

    text: str
    before: int = 0
    after: int = 0
    wraps: bool = False

    def widened(self, text: str, start: int, end: int) -> tuple[int, int]:
        """The span of a hit together with the characters that hold bits of the secret, and padding."""
        for _ in range(self.before):
            if start and text[start - 1] in _BASE64:
                start -= 1
        for _ in range(self.after):
            if end < len(text) and text[end] in _BASE64:
                end += 1
        while self.wraps and end < len(text) and text[end] == "=":
            end += 1
        return start, end


def recognisable(value: str) -> bool:
    """Whether a text that holds this value has it from the secret and not by chance: then it is a reason to refuse.

    Words, numbers, dates, addresses, versions, regions (`eu-central-1`) and rows of dashes are met by chance. To take
    them out of messages does no harm; to refuse outputs for them would fail steps that have nothing to do with them.
    """
    if len(value) < _LEAST or len(set(value)) < 3:
        return False
    parts = filter(None, _SEPARATORS.split(value))
    return len(value) >= _LONG or not all(_NUMBER.fullmatch(part) or _is_word(part) for part in parts)


def _is_word(part: str) -> bool:
    return part.isalpha() and part in (part.lower(), part.upper(), part.capitalize())


def lines_of(value: str) -> set[str]:
    """The lines of a secret of several lines that are secrets by themselves; not the armour lines of PEM."""
    lines = {line.strip() for line in value.splitlines()}
    return {line for line in lines if len(line) >= _LINE and line != value and not _ARMOUR.fullmatch(line)}


def whole_forms_of(value: str) -> frozenset[str]:
    """What a text that holds nothing but this (short) secret may read."""
    raw = value.encode("utf-8", "surrogatepass")
    encoded = {form(raw).decode() for form in (base64.b64encode, base64.urlsafe_b64encode)}
    return frozenset({value, raw.hex(), raw.hex().upper(), *encoded, *(text.rstrip("=") for text in encoded)}) - {""}


def needles_of(value: str) -> Iterator[Needle]:
    """Plain, hexadecimal and base64. Percent-encoding and escapes are found by decoding the text instead."""
    yield Needle(value)
    raw = value.encode("utf-8", "surrogatepass")
    yield Needle(raw.hex())
    yield Needle(raw.hex().upper())
    for needle in _base64_of(raw):
        yield needle
        yield Needle(needle.text.translate({43: "-", 47: "_"}), needle.before, needle.after, wraps=True)


def _base64_of(raw: bytes) -> Iterator[Needle]:
    """For each of the three alignments, the characters that depend on the secret alone (RFC 4648, 4)."""
    for offset in range(3):
        bits = (offset + len(raw)) * 8
        encoded = base64.b64encode(b"\0" * offset + raw).decode()
        first, last = (offset * 8 + 5) // 6, bits // 6
        yield Needle(encoded[first:last], before=1 if offset else 0, after=1 if bits % 6 else 0, wraps=True)


def unescaped(text: str) -> str:
    r"""The text with `\uXXXX`, `\xXX`, `\n`, `\"` and the like decoded (RFC 8259, 7; Python string literals)."""

    def decode(match: re.Match[str]) -> str:
        units, byte, wide, char = match.groups()
        if units:
            raw = bytes.fromhex(units.replace("\\u", ""))
            return raw.decode("utf-16-be", "surrogatepass")
        if byte or wide:
            code = int(byte or wide, 16)
            return chr(code) if code < 0x110000 else match.group()
        return _SHORT.get(char, char)

    return _ESCAPE.sub(decode, text)


def unquoted(text: str) -> str:
    """The text with percent-encoding decoded as UTF-8 (RFC 3986, 2.1)."""
    return unquote(text, errors="surrogateescape")


def spelled(value: str) -> str:
    """A regular expression for the text in which each character may be escaped or percent-encoded, or not."""
    return "".join(f"(?:{'|'.join(_spellings(char))})" for char in value)


def _spellings(char: str) -> Iterator[str]:
    yield re.escape(char)
    raw = char.encode("utf-8", "surrogatepass")
    yield "".join(_any_case("%", f"{byte:02x}") for byte in raw)
    units = char.encode("utf-16-be", "surrogatepass")
    yield "".join(_any_case(r"\\u", units[i : i + 2].hex()) for i in range(0, len(units), 2))
    if ord(char) < 256:
        yield _any_case(r"\\x", f"{ord(char):02x}")
    if ord(char) > 0xFFFF:
        yield _any_case(r"\\U", f"{ord(char):08x}")
    for short, meaning in _SHORT.items():
        if char == meaning:
            yield rf"\\{short}"
    if not char.isalnum():
        yield r"\\" + re.escape(char)
    if char == " ":
        yield r"\+"


def _any_case(prefix: str, digits: str) -> str:
    return prefix + "".join(f"[{d}{d.upper()}]" if d.isalpha() else d for d in digits)
