"""Taking the compression off a body while it arrives, never more of it than is wanted (RFC 9110, 8.4)."""

from __future__ import annotations

import zlib
from collections.abc import Iterator

_WINDOW = {"gzip": 31, "x-gzip": 31, "deflate": 15}
"""How zlib is told which frame there is around the data (zlib manual, inflateInit2)."""
_RAW_DEFLATE = -15
_HEADER = 2
"""Bytes that tell the frame of zlib from bare data."""
_PIECE = 1 << 18
"""Bytes that are made at once: between two pieces the event loop has its turn."""


class Undecodable(ValueError):
    """The body is not what its `Content-Encoding` says, or that is not what was asked for."""


class Decoder:
    """Decodes one body. Of a few bytes that stand for gigabytes no more is made than is asked for."""

    def __init__(self, encoding: str, *, accepted: str) -> None:
        """`encoding` and `accepted` are the headers Content-Encoding and Accept-Encoding; raises Undecodable."""
        layers = [name.strip().lower() for name in encoding.split(",") if name.strip().lower() not in ("", "identity")]
        if len(layers) > 1:
            raise Undecodable("it is encoded more than once")
        if layers and (layers[0] not in _WINDOW or layers[0].removeprefix("x-") not in _asked_for(accepted)):
            raise Undecodable("it has an encoding that was not asked for")
        self._raw = not layers
        self._inflate = zlib.decompressobj(_WINDOW[layers[0]]) if layers else zlib.decompressobj()
        self._frame_unknown = layers == ["deflate"]
        self._first = b""
        self._began = False

    def pieces(self, data: bytes) -> Iterator[bytes]:
        """What these bytes of the body stand for, in pieces of a bounded size. Raises Undecodable."""
        if self._raw:
            yield data
            return
        self._began = self._began or bool(data)
        if self._frame_unknown:
            data = self._first = self._first + data
            if len(data) < _HEADER:
                return
            self._frame_unknown = False
            if not _has_zlib_header(data):
                self._inflate = zlib.decompressobj(_RAW_DEFLATE)  # as many servers send it
        whole = False
        while data or whole:  # a piece that is whole may not be all that was in the data
            piece = self._piece(data)
            yield piece
            data, whole = self._inflate.unconsumed_tail, len(piece) == _PIECE
            if self._inflate.eof:
                break
        if self._inflate.unused_data:
            raise Undecodable("something follows after its end")

    def _piece(self, data: bytes) -> bytes:
        try:
            return self._inflate.decompress(data, _PIECE)
        except zlib.error:
            raise Undecodable("it is not in the encoding that it claims") from None

    def end(self) -> None:
        """Raises Undecodable where the body stopped in the middle."""
        if self._began and not self._inflate.eof:
            raise Undecodable("it ends in the middle")


def _has_zlib_header(data: bytes) -> bool:
    """RFC 1950, 2.2: the method is 8, and both bytes together are a multiple of 31."""
    return data[0] & 0x0F == 8 and (data[0] * 256 + data[1]) % 31 == 0


def _asked_for(accepted: str) -> set[str]:
    """The encodings that an Accept-Encoding names (RFC 9110, 12.5.3)."""
    asked = set()
    for each in accepted.lower().split(","):
        name, _, parameters = (part.strip() for part in each.partition(";"))
        if parameters.replace(" ", "") not in ("q=0", "q=0.0", "q=0.00", "q=0.000"):
            asked |= {"gzip", "deflate"} if name == "*" else {name.removeprefix("x-")}
    return asked
