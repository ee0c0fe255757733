"""Files that a command was told to write."""

from __future__ import annotations

from pathlib import Path

from orchestrator.errors import UsageError


def check_place(file: Path) -> None:
    """Before what takes time: raises UsageError where no such file can be written."""
    if file.is_dir() or not file.parent.is_dir():
        raise UsageError(f"{file} cannot be written", hint="name a file in a folder that is there")


def write(file: Path, text: str, *, hint: str | None = None) -> None:
    """Write it, in UTF-8. Raises UsageError, with `hint` for what to do."""
    try:
        file.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UsageError(f"{file} cannot be written: {error.strerror}", hint=hint) from error
