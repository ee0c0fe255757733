"""Reading what PostgreSQL prints of a rewritten query: who needs what on which relation, and what is called.

`debug_print_rewritten` (PostgreSQL manual, 19.8.1) shows the tree after parse analysis and rewriting.
Its `RTEPERMISSIONINFO` nodes are what the executor checks privileges by (source: `nodes/parsenodes.h`),
so that nothing has to be guessed: `*`, views, NATURAL JOIN, MERGE and all the rest are resolved there.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

INSERT, SELECT, UPDATE, DELETE = 1, 2, 4, 8
"""Bits of `requiredPerms` (`nodes/parsenodes.h`, `ACL_INSERT` and so on)."""

_OFFSET = 7
"""What is added to attribute numbers in the bit sets (`access/sysattr.h`, `FirstLowInvalidHeapAttributeNumber`)."""

_PERMISSION = re.compile(
    r"\{RTEPERMISSIONINFO\s+:relid\s+(\d+)\s+:inh\s+\w+\s+:requiredPerms\s+(\d+)\s+:checkAsUser\s+(\d+)"
    r"\s+:selectedCols\s+\(b([^)]*)\)\s+:insertedCols\s+\(b([^)]*)\)\s+:updatedCols\s+\(b([^)]*)\)"
)
_CALLS = re.compile(r":(?:funcid|opfuncid|aggfnoid|winfnoid)\s+(\d+)")
_NEXTVAL = re.compile(
    r":funcid\s+(1574|1575|1576|1765)\s[^{}]*?:args\s+\(\s*\{CONST\s+:consttype\s+2205\b[^{}]*?:constvalue\s+\d+"
    r"\s+\[([-\d\s]+)\]"
)
_SETVAL = ("1576", "1765")


@dataclass(frozen=True, slots=True)
class Permission:
    """What is checked on one relation, as attribute numbers: 0 is the whole row, below are system columns."""

    relation: int
    required: int
    select: frozenset[int]
    insert: frozenset[int]
    update: frozenset[int]


@dataclass(frozen=True, slots=True)
class Tree:
    """What one printed tree says, by object ids."""

    permissions: tuple[Permission, ...]
    functions: frozenset[int]
    sequences: frozenset[int]
    set_sequences: frozenset[int]
    """Those whose value is set, which no grant can declare."""


def read_tree(text: str) -> Tree:
    """Read one tree. What is checked as another user, the owner of a view, is left out."""
    permissions = tuple(
        Permission(int(relation), int(required), _numbers(select), _numbers(insert), _numbers(update))
        for relation, required, owner, select, insert, update in _PERMISSION.findall(text)
        if owner == "0" and required != "0"
    )
    sequences: set[int] = set()
    set_sequences: set[int] = set()
    for function, value in _NEXTVAL.findall(text):
        (set_sequences if function in _SETVAL else sequences).add(_oid(value))
    return Tree(
        permissions,
        frozenset(int(oid) for oid in _CALLS.findall(text)),
        frozenset(sequences),
        frozenset(set_sequences),
    )


def _numbers(bits: str) -> frozenset[int]:
    return frozenset(int(bit) - _OFFSET for bit in bits.split())


def _oid(value: str) -> int:
    """The object id in the bytes of a constant, which are printed as signed numbers."""
    return int.from_bytes(bytes(int(byte) & 255 for byte in value.split()[:4]), "little")
