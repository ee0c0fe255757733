"""The Merkle tree of RFC 6962, 2.1: roots, and proofs that a leaf is in it. Pure functions over hashes.

Hashes are 32 bytes of SHA-256; positions and sizes are counted in leaves, from 0. Of the subtrees that are complete
those of 256 leaves, of 256 times as many, and so on are stored; everything else is computed from them and from at most
255 leaves beside them, which takes less time than asking for it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

TILE = 8
"""Levels from one stored hash down to the next ones, as in the tiles of C2SP (https://c2sp.org/tlog-tiles)."""

EMPTY = hashlib.sha256(b"").digest()
"""The root of a tree without leaves."""


def leaf_hash(data: bytes) -> bytes:
    """Of what is logged."""
    return hashlib.sha256(b"\0" + data).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """Of two subtrees beside each other."""
    return hashlib.sha256(b"\1" + left + right).digest()


def folded(hashes: Sequence[bytes]) -> bytes:
    """The root over a power of two of complete subtrees of one size."""
    while len(hashes) > 1:
        hashes = [node_hash(hashes[at], hashes[at + 1]) for at in range(0, len(hashes), 2)]
    return hashes[0]


class Hashes(Protocol):
    """Where hashes of complete subtrees are had from."""

    def read(self, level: int, start: int, stop: int) -> Sequence[bytes]:
        """Those of the subtrees of 2**level leaves at the positions from `start` to before `stop`.

        `level` is a multiple of `TILE`, and all of them are within one subtree of the next such level.
        """
        ...


def root(hashes: Hashes, size: int) -> bytes:
    """The root of the tree of the first `size` leaves."""
    return _over(hashes, 0, size) if size else EMPTY


def inclusion(hashes: Hashes, index: int, size: int) -> tuple[bytes, ...]:
    """The path that proves the leaf at `index` to be in the tree of `size` leaves, the leaf's sibling first.

    Raises ValueError where it is not in it.
    """
    if not 0 <= index < size:
        raise ValueError(f"a tree of {size} leaves has none at {index}")
    path: list[bytes] = []
    start, stop = 0, size
    while stop - start > 1:
        middle = start + _split(stop - start)
        if index < middle:
            path.append(_over(hashes, middle, stop))
            stop = middle
        else:
            path.append(_over(hashes, start, middle))
            start = middle
    return tuple(reversed(path))


def root_of_inclusion(leaf: bytes, index: int, size: int, path: Sequence[bytes]) -> bytes | None:
    """The root to which a path leads from the hash of a leaf, None where it cannot be a path (RFC 9162, 2.1.3.2)."""
    if not 0 <= index < size:
        return None
    at, last, found = index, size - 1, leaf
    for sibling in path:
        if last == 0:
            return None
        if at & 1 or at == last:
            found = node_hash(sibling, found)
            while not at & 1 and at:
                at, last = at >> 1, last >> 1
        else:
            found = node_hash(found, sibling)
        at, last = at >> 1, last >> 1
    return found if last == 0 else None


def _split(leaves: int) -> int:
    """The largest power of two below it."""
    return 1 << (leaves - 1).bit_length() - 1


def _over(hashes: Hashes, start: int, stop: int) -> bytes:
    """The root over a range that begins where a subtree of its size may begin."""
    found: bytes | None = None
    for level, index in reversed(list(_complete(start, stop))):
        complete = _subtree(hashes, level, index)
        found = complete if found is None else node_hash(complete, found)
    assert found is not None, "the range is not empty"
    return found


def _complete(start: int, stop: int) -> Iterator[tuple[int, int]]:
    """The complete subtrees, the largest first, that such a range consists of: level and position of each."""
    while start < stop:
        level = (stop - start).bit_length() - 1
        yield level, start >> level
        start += 1 << level


def _subtree(hashes: Hashes, level: int, index: int) -> bytes:
    within = level % TILE
    return folded(hashes.read(level - within, index << within, (index + 1) << within))


@dataclass(slots=True)
class Growing:
    """A tree to which leaves are added one by one: only the roots of its complete subtrees are kept."""

    size: int = 0
    _complete: list[bytes] = field(default_factory=list)
    """The largest first."""

    def add(self, leaf: bytes) -> Sequence[tuple[int, int, bytes]]:
        """Add the hash of a leaf; the level, position and root of those stored subtrees that are complete by it."""
        self._complete.append(leaf)
        self.size += 1
        level, stored = 0, []
        while not self.size >> level & 1:
            level += 1
            right = self._complete.pop()
            self._complete.append(node_hash(self._complete.pop(), right))
            if level % TILE == 0:
                stored.append((level, (self.size >> level) - 1, self._complete[-1]))
        return stored

    @property
    def root(self) -> bytes:
        """Of what it has now."""
        found: bytes | None = None
        for each in reversed(self._complete):
            found = each if found is None else node_hash(each, found)
        return EMPTY if found is None else found
