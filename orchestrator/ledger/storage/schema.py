"""Which revisions of the schema this version knows. Kept apart so that the check needs no Alembic."""

from __future__ import annotations

REVISIONS = tuple(f"r{number:04}" for number in range(1, 20))
"""In order, the newest last; a test compares them with the scripts in `migrations/versions`."""

CURRENT = REVISIONS[-1]
