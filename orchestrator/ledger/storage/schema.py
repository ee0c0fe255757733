"""Which revisions of the schema this version knows. Kept apart so that the check needs no Alembic."""

from __future__ import annotations

REVISIONS = (
    "r0001",
    "r0002",
    "r0003",
    "r0004",
    "r0005",
    "r0006",
    "r0007",
    "r0008",
    "r0009",
    "r0010",
    "r0011",
    "r0012",
    "r0013",
)
"""In order, the newest last; a test compares them with the scripts in `migrations/versions`."""

CURRENT = REVISIONS[-1]
