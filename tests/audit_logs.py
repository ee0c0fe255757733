"""PostgreSQL with its log in all three forms, and the files of both servers' logs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from orchestrator.devstack import postgres

FORMS = {"text": "pg.log", "csv": "pg.csv", "json": "pg.json"}


@contextmanager
def logging_postgres(monkeypatch: pytest.MonkeyPatch, log_statement: str) -> Iterator[None]:
    """While inside servers that start log statements so, into files of the folder `log` beside their data."""
    settings = {
        "log_statement": log_statement,
        "logging_collector": "on",
        "log_destination": "stderr,csvlog,jsonlog",
        "log_directory": "log",
        "log_filename": FORMS["text"],
        "log_file_mode": "0644",
        "log_line_prefix": "%m [%p] %q%u@%d/%a ",
        "log_min_messages": "warning",
        "log_min_error_statement": "error",
    }
    with monkeypatch.context() as patch:
        patch.setattr(postgres, "_SETTINGS", {**postgres._SETTINGS, **settings})
        yield
