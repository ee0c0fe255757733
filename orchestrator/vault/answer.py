"""One HTTP/1.1 answer of Vault's, read by `http.client` with a parser for its head that knows only what we need.

The standard parser treats the head as an e-mail, which costs this process more than all the rest of a request. Here
a head is what RFC 9112 says and no more, and whatever departs from it is refused: an answer that two readers could
understand in two ways confirms nothing. Every size that the peer chooses is bounded.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from http.client import HTTPException, HTTPResponse
from typing import cast

LARGEST_BODY = 16 * 1024 * 1024
"""Bytes of the body of an answer. Vault's own limit for a request is 32 MiB; its answers to us are a few KiB."""

_LONGEST_LINE = 64 * 1024
_MOST_FIELDS = 200
_MOST_INTERIM = 10
_PIECE = 64 * 1024

_STATUS_LINE = re.compile(rb"HTTP/1\.([01]) ([1-9][0-9]{2})(?: ([^\r\n]*))?\r?\n")
_FIELD_NAME = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_LENGTH = re.compile(r"[0-9]{1,18}")


class BrokenAnswer(HTTPException):
    """What came is not an answer after RFC 9112, breaks off, or is larger than `LARGEST_BODY`."""


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer that came whole. The names of `headers` are spelled as in `Retry-After`; the last of several counts."""

    status: int
    reason: str
    headers: dict[str, str] = field(repr=False)
    content: bytes = field(repr=False)
    reusable: bool = False
    """The connection may carry another request."""

    @property
    def ok(self) -> bool:
        """Whether hvac would raise no error for it."""
        return self.status < 400


class LeanResponse(HTTPResponse):
    """The standard response with a head of our own. Give it the socket and the method, then call `answer` once."""

    def answer(self) -> Answer:
        """Read the answer to its end.

        Raises BrokenAnswer or another HTTPException, and OSError (TimeoutError included).
        """
        with self:
            self.begin()
            content = b"" if self.length == 0 else self._body()
            return Answer(self.status, self.reason, self._fields, content, not self.will_close)

    def begin(self) -> None:
        """Read the head, and those of the interim answers (RFC 9110, 15.2) before it."""
        for _ in range(_MOST_INTERIM):
            minor = self._read_status_line()
            self._fields = self._read_fields()
            if self.status >= 200:
                break
        else:
            raise BrokenAnswer("too many interim answers")
        coding, length = self._fields.get("Transfer-Encoding"), self._fields.get("Content-Length")
        self.chunked, self.chunk_left = coding is not None, None
        if coding is not None and coding.lower() != "chunked":
            raise BrokenAnswer("a transfer coding that was not asked for")
        if length is not None and (self.chunked or not _LENGTH.fullmatch(length)):
            raise BrokenAnswer("the length of the body is not clear")
        self.length = int(length) if length is not None else None
        if self.status == 204 and (self.length or self.chunked):
            raise BrokenAnswer("204 with a body")
        if self.status in (204, 304):
            self.length = 0
        framed = self.chunked or self.length is not None
        self.will_close = minor == b"0" or not framed or "close" in self._fields.get("Connection", "").lower()

    def _read_status_line(self) -> bytes:
        """Returns the minor version."""
        line = self.fp.readline(_LONGEST_LINE)
        found = _STATUS_LINE.fullmatch(line)
        if found is None:
            raise BrokenAnswer("no status line" if line else "closed without an answer")
        self.status = self.code = int(found[2])
        self.reason = (found[3] or b"").decode("latin-1")
        return cast(bytes, found[1])

    def _read_fields(self) -> dict[str, str]:
        fields: dict[str, str] = {}
        for _ in range(_MOST_FIELDS):
            line = self.fp.readline(_LONGEST_LINE)
            if line in (b"\r\n", b"\n"):
                return fields
            field_name, _, rest = line.partition(b":")
            if not _FIELD_NAME.fullmatch(field_name) or not line.endswith(b"\n"):
                raise BrokenAnswer("not a header field")
            name, value = field_name.decode("ascii").title(), rest.strip().decode("latin-1")
            if name == "Content-Length" and fields.get(name, value) != value:
                raise BrokenAnswer("two lengths")
            fields[name] = value
        raise BrokenAnswer("too many header fields")

    def _body(self) -> bytes:
        if self.length is not None:
            if self.length > LARGEST_BODY:
                raise BrokenAnswer("too large")
            return self.read()
        body, piece = bytearray(), bytearray(_PIECE)
        try:
            while count := self.readinto(piece):
                body += memoryview(piece)[:count]
                if len(body) > LARGEST_BODY:
                    raise BrokenAnswer("too large")
        except ValueError as error:
            raise BrokenAnswer("a chunk without a size") from error
        return bytes(body)
