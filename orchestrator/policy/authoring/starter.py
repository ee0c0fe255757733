"""A folder of policies to start from: it denies everything, and says where to write what is to be allowed."""

from __future__ import annotations

from pathlib import Path

from orchestrator.errors import UsageError

FILES = ("orchestrator.rego", "data.json", "orchestrator_test.rego")

_TEXTS = Path(__file__).with_name("starter_files")


def write_starter(path: Path, *, overwrite: bool = False) -> list[Path]:
    """Write the files into a folder, which is made where there is none; all of them or, where one is there, none.

    Raises UsageError.
    """
    written = [path / name for name in FILES]
    there = [file for file in written if file.is_symlink() or file.exists()]
    if there and not overwrite:
        raise UsageError(f"{there[0]} is there already", hint="--force overwrites it")
    try:
        path.mkdir(parents=True, exist_ok=True)
        for file in written:
            with file.open("w" if overwrite else "x", encoding="utf-8") as opened:
                opened.write((_TEXTS / file.name).read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"{error.filename or path} cannot be written: {error.strerror}") from error
    return written
