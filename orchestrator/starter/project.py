"""A folder with all that leads to a first run on somebody's own Vault and database."""

from __future__ import annotations

import json
import os
import re
import secrets
import shlex
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

from orchestrator.environment import setting_of
from orchestrator.errors import UsageError
from orchestrator.grants.privileges import check_identifier, parse_qualified, qualified
from orchestrator.policy.authoring.starter import write_starter
from orchestrator.samples.place import runtime_policy

_TEXTS = Path(__file__).with_name("files")
_PLACE = re.compile(r"@(\w+)@")
_AGENT = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
_CONNECTION = re.compile(r"(?=.{1,40}\Z)[a-z][a-z0-9]*(?:_[a-z0-9]+)*")
"""What is a name of a connection, a part of a shell's variable, and a bare key of TOML and YAML."""

WORKFLOW = "workflows/first_run.yaml"
FILES: Mapping[str, str] = {
    "README.md": "README.md",
    ".gitignore": "gitignore",
    "settings.toml": "settings.toml",
    WORKFLOW: "workflow.yaml",
    "policies/data.json": "data.json",
    "policies/agents_test.rego": "agents_test.rego",
    "vault/declarations.yaml": "declarations.yaml",
}
"""The files that are filled in, and the text of each; rules, their tests and the runtime's policy come besides."""


@dataclass(frozen=True, slots=True)
class Choices:
    """What somebody has: a Vault, a database, and a table in it that the first step reads."""

    connection: str
    table: tuple[str, str]
    """Schema and name, exactly as the catalog has them."""
    columns: tuple[str, ...]
    agent: str
    database: str
    vault: str

    @classmethod
    def parse(cls, *, connection: str, table: str, columns: str, agent: str, database: str, vault: str) -> Choices:
        """What was written on the command line. The addresses were checked already. Raises UsageError."""
        if not _CONNECTION.fullmatch(connection):
            raise UsageError(
                f"{connection!r} is not a name for a connection", hint="small letters, digits and `_`, such as `shop`"
            )
        if not _AGENT.fullmatch(agent):
            raise UsageError(
                f"{agent!r} is not a name for an agent",
                hint="letters, digits, `_`, `.` and `-`, such as `report-writer`",
            )
        try:
            schema, name = parse_qualified(table)
            named = tuple(check_identifier(column.strip()) for column in columns.split(","))
        except ValueError as error:
            raise UsageError(str(error), hint="for example: --table shop.orders --columns id,placed_at") from None
        for part in (schema, name, *named):
            if not part.isprintable() or "${{" in part or part == "*":
                raise UsageError(
                    f"{part!r} cannot be written into a workflow from here", hint="name another table or other columns"
                )
        if len(set(named)) != len(named):
            raise UsageError("a column is named twice", hint="name each column once")
        return cls(connection, (schema, name), named, agent, database, vault)


def write_project(folder: Path, choices: Choices) -> list[str]:
    """Write a project into a new folder, all of it or nothing, and name its files. Raises UsageError.

    It is made beside its place under another name and then renamed: whoever sees the folder sees all of it.
    """
    if folder.is_symlink() or folder.exists():
        raise UsageError(f"{folder} is there already", hint="name a new folder: nothing is overwritten")
    target = folder.absolute()
    beside = target.with_name(f".{target.name}.{secrets.token_hex(4)}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            _write(beside, choices)
            os.rename(beside, target)  # of what has come there meanwhile it replaces an empty folder at most
        except BaseException:
            shutil.rmtree(beside, ignore_errors=True)
            raise
    except OSError as error:
        raise UsageError(f"{folder} cannot be written: {error.strerror}") from error
    return sorted(path.relative_to(target).as_posix() for path in target.rglob("*") if path.is_file())


def _write(folder: Path, choices: Choices) -> None:
    filled = _filled(choices)
    write_starter(folder / "policies")
    for name, text in FILES.items():
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        template = (_TEXTS / text).read_text(encoding="utf-8")
        file.write_text(_PLACE.sub(lambda match: filled[match[1]], template), encoding="utf-8")
    policy = folder / "vault" / "policies" / "orchestrator-runtime.hcl"
    policy.parent.mkdir()
    policy.write_text(runtime_policy(), encoding="utf-8")


def _filled(choices: Choices) -> Mapping[str, str]:
    """What stands in the places of the texts. A string of JSON is one in YAML, in TOML and in Rego, too."""
    schema, name = choices.table
    table = qualified(schema, name)
    variable = setting_of("provision_databases", choices.connection)
    place = choices.database.partition("://")[2].rpartition("@")[2]
    admin = shlex.quote(f"postgresql://ADMIN:PASSWORD@{place}")
    return {
        "connection": choices.connection,
        "agent": json.dumps(choices.agent),
        "object": json.dumps(table, ensure_ascii=False),
        "columns": json.dumps(list(choices.columns), ensure_ascii=False),
        "sql_columns": ", ".join(_in_sql(column) for column in choices.columns),
        "sql_table": f"{_in_sql(schema)}.{_in_sql(name)}",
        "permission": json.dumps(f"{choices.connection}: select {table}", ensure_ascii=False),
        "databases": ", ".join(dict.fromkeys([_in_sql(_database(choices.database)), "postgres", "template1"])),
        "database": json.dumps(choices.database),
        "vault": json.dumps(choices.vault),
        "vault_text": shlex.quote(choices.vault),
        "admin_variable": variable,
        "export_admin": f"export {variable}={admin}",
    }


def _database(address: str) -> str:
    return unquote(urlsplit(address).path.lstrip("/")) or "postgres"


def _in_sql(name: str) -> str:
    """A name in a statement with parameters (`%` is written twice): quoted unless it is plain and no keyword."""
    from pglast import keywords

    words = keywords.RESERVED_KEYWORDS | keywords.TYPE_FUNC_NAME_KEYWORDS | keywords.COL_NAME_KEYWORDS
    if re.fullmatch(r"[a-z_][a-z0-9_]*", name) and name not in words:
        return name
    return '"' + name.replace('"', '""').replace("%", "%%") + '"'
