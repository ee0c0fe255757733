"""Where one HTTP/1.1 message ends and the next begins (RFC 9112, 6), as far as Vault and its clients use it."""

from __future__ import annotations

import asyncio
import re
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Message:
    """A request or an answer: its first line as text, and all of its bytes as they came."""

    first_line: str
    raw: bytes
    interim: bool = False
    """An answer 1xx: the real one follows."""


async def read_message(reader: asyncio.StreamReader, *, answer_to: str = "") -> Message | None:
    """The next message, or None when the peer has closed in between two. `answer_to` is a request's first line.

    Raises asyncio.IncompleteReadError where the peer closes in the middle of one.
    """
    try:
        head = await reader.readuntil(b"\r\n\r\n")
    except asyncio.IncompleteReadError as error:
        if error.partial:
            raise
        return None
    first_line = head.split(b"\r\n", 1)[0].decode("latin-1")
    status = re.match(r"HTTP/\S+ (\d{3})", first_line)
    if status and (status[1] in ("204", "304") or status[1].startswith("1") or answer_to.startswith("HEAD ")):
        return Message(first_line, head, interim=status[1].startswith("1"))
    if re.search(rb"(?im)^transfer-encoding:.*chunked", head):
        return Message(first_line, head + await _chunks(reader))
    if length := re.search(rb"(?im)^content-length: *(\d+)", head):
        return Message(first_line, head + await reader.readexactly(int(length[1])))
    if status:
        return Message(first_line, head + await reader.read())
    return Message(first_line, head)


async def _chunks(reader: asyncio.StreamReader) -> bytes:
    """A chunked body with its trailers (RFC 9112, 7.1)."""
    body = b""
    while True:
        line = await reader.readuntil(b"\r\n")
        body += line
        size = int(line.split(b";")[0], 16)
        if size == 0:
            break
        body += await reader.readexactly(size + 2)
    while (line := await reader.readuntil(b"\r\n")) != b"\r\n":
        body += line
    return body + line


def answer(status: int, body: bytes = b"", headers: dict[str, str] | None = None) -> bytes:
    """The bytes of an answer with this status."""
    lines = [f"HTTP/1.1 {status} Fault", f"Content-Length: {len(body)}", "Content-Type: application/json"]
    lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + body
