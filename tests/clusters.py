"""Data folders of PostgreSQL servers, copied: initdb takes a second of the processor's time, and makes always the same.

Only of servers that are not durable: the first of a process has its folder made by initdb, the others begin as copies
of it, with its superuser's password.
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

from orchestrator.devstack.postgres import Postgres
from orchestrator.secret import Secret

Initialise = Callable[[Postgres], None]


class Copied:
    """In the place of `Postgres._initialise`."""

    def __init__(self, initialise: Initialise, folder: Path) -> None:
        self._initialise = initialise
        self._kept = folder / "pgdata"
        self._password: Secret | None = None

    def __call__(self, server: Postgres) -> None:
        if server.durable:
            self._initialise(server)
        elif self._password is None:
            self._initialise(server)
            _copy(server.data_dir, self._kept)
            self._password = server.password
        else:
            _copy(self._kept, server.data_dir)
            server.password = self._password


def _copy(source: Path, target: Path) -> None:
    """With owners and permissions: as root the server runs as another user."""
    subprocess.run(["cp", "-a", str(source), str(target)], check=True)
