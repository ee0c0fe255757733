"""What of a folder is read as policies: `*.rego`, tests (`*_test.rego`), and one `data.json` that rules look into.

`opa run FOLDER` reads any JSON and YAML beside the rules. What it would read and we would not is refused: one folder
has one meaning. Hidden files and subfolders are not looked at.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from orchestrator.errors import UsageError
from orchestrator.policy.engines.rego.problems import InvalidPolicy, PolicyProblem

DATA = "data.json"
MAX_FILE_BYTES = 1 << 20
"""The longest file: regorus takes no longer module."""

_TESTS = "_test.rego"
_READ_BY_OPA = {".json", ".yaml", ".yml"}


@dataclass(frozen=True, slots=True)
class PolicySource:
    """One Rego module, or the data. `name` is the path that error messages show."""

    name: str
    text: str


@dataclass(frozen=True, slots=True)
class PolicyFiles:
    """The files of a folder by what they are, each by name. `refused` are data that are not in `data.json`."""

    modules: tuple[Path, ...]
    tests: tuple[Path, ...]
    data: Path | None
    refused: tuple[PolicyProblem, ...]


def files_of(path: Path) -> PolicyFiles:
    """What is directly in a folder. Raises UsageError where it is no folder, or none that can be listed."""
    try:
        found = sorted(file for file in path.iterdir() if not file.name.startswith("."))
    except OSError as error:
        what = f"cannot be read: {error.strerror}" if path.is_dir() else "is not a folder"
        raise nothing_to_decide_by(path, what) from error
    rego = [file for file in found if file.suffix == ".rego"]
    data = [file for file in found if file.suffix in _READ_BY_OPA]
    return PolicyFiles(
        modules=tuple(file for file in rego if not file.name.endswith(_TESTS)),
        tests=tuple(file for file in rego if file.name.endswith(_TESTS)),
        data=next((file for file in data if file.name == DATA), None),
        refused=tuple(_refused(file) for file in data if file.name != DATA),
    )


def nothing_to_decide_by(path: Path, what: str) -> UsageError:
    """The error of a folder without policies."""
    return UsageError(
        f"{path} {what}: there is nothing to decide by",
        hint="name a folder with *.rego files in ORCHESTRATOR_POLICY_PATH, or with `policy_path`",
    )


def read_source(file: Path) -> PolicySource:
    """The text of a file. Raises InvalidPolicy where it is no UTF-8, no regular file, or too long."""
    try:
        if not file.is_file():
            raise OSError("a link to nowhere" if file.is_symlink() and not file.exists() else "not a regular file")
        with file.open("rb") as opened:
            content = opened.read(MAX_FILE_BYTES + 1)
        if len(content) > MAX_FILE_BYTES:
            raise OSError(f"longer than {MAX_FILE_BYTES} bytes")
        return PolicySource(str(file), _with_one_line_end(content.decode("utf-8")))
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror or error if isinstance(error, OSError) else error
        raise InvalidPolicy(PolicyProblem(str(file), 0, 0, f"cannot be read as UTF-8 text: {why}")) from error


def _with_one_line_end(text: str) -> str:
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _refused(file: Path) -> PolicyProblem:
    return PolicyProblem(
        str(file),
        0,
        0,
        f"is not read: the data of policies are in `{DATA}`, and OPA would take this file for data, too",
        hint=f"put what the rules need into `{DATA}`, and everything else into another folder",
    )
