"""What `orchestrator init FOLDER` writes: a workflow, its policies with their tests, declarations, settings, a README.

What is written is valid as it stands: `plan` allows it, `provision plan` shows what it needs, and where the table is
there a run succeeds.
"""

from __future__ import annotations

import json
import re
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from orchestrator.environment import has_password
from orchestrator.errors import UsageError
from orchestrator.policy.authoring.starter import write_starter
from orchestrator.projects.packaged import repository

_TEXTS = Path(__file__).with_name("files")
_FILES = {
    "README.md": "README.md",
    "orchestrator.toml": "orchestrator.toml",
    "gitignore": ".gitignore",
    "workflows/first.yaml": "workflows/first.yaml",
    "vault/declarations.yaml": "vault/declarations.yaml",
}
_WORDS = {
    "connection": (r"[a-z][a-z0-9_]{0,39}", "a name such as `billing`: small letters, digits and `_`"),
    "table": (r"[a-z_][a-z0-9_]{0,62}\.[a-z_][a-z0-9_]{0,62}", "a table such as `public.orders`"),
    "agent": (r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}", "a name such as `report-writer`"),
    "address": (r"postgres(ql)?://[^\s\"\\]+", "the URL of a database, such as postgresql://db.example:5432/billing"),
    "vault": (r"https?://[^\s\"\\]+", "the URL of Vault, such as https://vault.example:8200"),
}
"""What may stand where in the files, and what it is called."""

RUNTIME_POLICY = "vault/policies/orchestrator-runtime.hcl"


@dataclass(frozen=True, slots=True, kw_only=True)
class Project:
    """What the folder is to be about: one table of one database, and the agent that may count its rows.

    `address` is where steps reach the database, without credentials; `table` is `schema.name` as SQL has it.
    """

    name: str
    connection: str = "main"
    table: str = "public.my_table"
    agent: str = "my-agent"
    address: str = "postgresql://localhost:5432/main"
    vault: str = "http://127.0.0.1:8200"

    def __post_init__(self) -> None:
        """Raise UsageError for what cannot stand in the files as it is."""
        for name, (pattern, what) in _WORDS.items():
            if not re.fullmatch(pattern, getattr(self, name)):
                raise UsageError(f"--{name} {getattr(self, name)!r} is not {what}")
        if has_password(self.address):
            raise UsageError("an address holds no credentials: Vault issues them", hint="leave the password out of it")


def write_project(folder: Path, project: Project) -> list[Path]:
    """Write all of it, or nothing: the folder must be new or empty. The files, in the order in which to read them.

    Raises UsageError.
    """
    if folder.is_symlink() or (folder.exists() and (not folder.is_dir() or any(folder.iterdir()))):
        raise UsageError(f"{folder} is there already, and is no empty folder", hint="name a new one")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        made = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
        try:
            made.chmod(0o755)
            _write(made, project)
            made.replace(folder)
        except BaseException:
            shutil.rmtree(made, ignore_errors=True)
            raise
    except OSError as error:
        raise UsageError(f"{error.filename or folder} cannot be written: {error.strerror}") from error
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _write(folder: Path, project: Project) -> None:
    for text, name in _FILES.items():
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(_filled((_TEXTS / text).read_text(encoding="utf-8"), project), encoding="utf-8")
    runtime = folder / RUNTIME_POLICY
    runtime.parent.mkdir(parents=True, exist_ok=True)
    runtime.write_text((repository() / RUNTIME_POLICY).read_text(encoding="utf-8"), encoding="utf-8")
    write_starter(folder / "policies")
    allowed = {
        "agents": {
            project.agent: {
                "actions": ["postgres.query"],
                "grants": [f"{project.connection}: select {project.table}"],
            }
        }
    }
    (folder / "policies" / "data.json").write_text(json.dumps(allowed, indent=2) + "\n", encoding="utf-8")


def _filled(text: str, project: Project) -> str:
    """The text with what is particular; `%NAME%` stands for it."""
    for name in ("name", "connection", "table", "agent", "address", "vault"):
        text = text.replace(f"%{name.upper()}%", getattr(project, name))
    return text.replace("%CONNECTION_VARIABLE%", project.connection.upper())
