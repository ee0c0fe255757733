"""The command as a process: exit codes, streams, and what its start may import."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from orchestrator.cli.display import terminal

COMMAND = [sys.executable, "-c", "import sys; from orchestrator.cli.main import main; sys.exit(main())"]

FEEDBACK = """version: 1
name: feedback
agent: ann
steps:
  tell:
    action: exec
    with: { command: [/bin/echo, hello] }
"""


def orchestrator(*arguments: str, cwd: Path | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *arguments],
        capture_output=True,
        text=True,
        cwd=cwd,
        timeout=60,
        env={"PATH": os.environ["PATH"], "HOME": str(cwd or "/nonexistent"), "LC_ALL": "C.UTF-8", **environment},
    )


def test_help_names_every_command_and_every_exit_code() -> None:
    shown = orchestrator("--help")
    assert shown.returncode == 0
    for word in (
        "init",
        "validate",
        "plan",
        "schema",
        "run",
        "serve",
        "schedules",
        "runs",
        "leases",
        "provision",
        "dev",
        "130, 143",
        "129",
    ):
        assert word in shown.stdout
    assert "\x1b" not in shown.stdout


@pytest.mark.parametrize("command", ["init", "validate", "plan", "schema", "run", "serve", "dev"])
def test_every_command_explains_itself(command: str) -> None:
    shown = orchestrator(command, "--help")
    assert shown.returncode == 0
    assert f"Usage: orchestrator {command}" in shown.stdout


@pytest.mark.parametrize(
    "command",
    [
        ["schedules", "list"],
        ["schedules", "next"],
        ["schedules", "trigger"],
        ["schedules", "pause"],
        ["schedules", "resume"],
        ["runs", "list"],
        ["runs", "show"],
        ["runs", "verify"],
        ["leases", "list"],
        ["leases", "show"],
        ["leases", "sweep"],
        ["tasks", "list"],
        ["tasks", "show"],
        ["tasks", "close"],
        ["agents", "check"],
        ["agents", "list"],
        ["agents", "show"],
        ["agents", "revoke"],
        ["agents", "restore"],
        ["grants", "infer"],
        ["provision", "plan"],
        ["provision", "apply"],
        ["provision", "check"],
    ],
)
def test_every_noun_has_its_verbs(command: list[str]) -> None:
    assert orchestrator(*command, "--help").returncode == 0


def test_the_start_imports_nothing_heavy() -> None:
    heavy = ("rich", "pydantic", "sqlalchemy", "hvac", "psycopg", "httpx", "regorus", "aiohttp", "slack_sdk", "asyncio")
    code = f"import sys, orchestrator.cli.main; print([name for name in {heavy!r} if name in sys.modules])"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "[]"


SERVICES = ("hvac", "requests", "httpx", "aiohttp", "slack_sdk", "psycopg", "regorus", "alembic", "rich")
"""What only a run, a migration or a terminal needs."""

LEDGER = ("sqlalchemy",)
WRITER = ("orchestrator.ledger.writing", "sqlalchemy.dialects.postgresql", "pydantic_settings", "orchestrator.grants")
LANGUAGE = ("orchestrator.workflow.loader", "pydantic_settings")


@pytest.mark.parametrize(
    ("arguments", "not_needed"),
    [
        (["--help"], (*SERVICES, "pglast", *LEDGER, *LANGUAGE, "asyncio", "pydantic")),
        (["leases", "list"], (*SERVICES, "pglast", *WRITER, "orchestrator.workflow.loader")),
        (
            ["leases", "list", "--state", "revoking", "--json"],
            (*SERVICES, "pglast", *WRITER, "orchestrator.workflow.loader"),
        ),
        (["runs", "list"], (*SERVICES, "pglast", *WRITER, "orchestrator.workflow.loader")),
        (["tasks", "list"], (*SERVICES, "pglast", *WRITER, "orchestrator.workflow.loader")),
        (["agents", "list"], (*SERVICES, "pydantic_settings", "orchestrator.grants", "orchestrator.workflow.loader")),
        (["validate", "feedback.yaml"], (*SERVICES, *LEDGER, "pydantic_settings")),
    ],
    ids=lambda value: "-".join(value[:2]) if isinstance(value, list) else "",
)
def test_a_cheap_command_imports_nothing_that_it_does_not_need(
    tmp_path: Path, arguments: list[str], not_needed: tuple[str, ...]
) -> None:
    (tmp_path / "feedback.yaml").write_text(FEEDBACK)
    assert orchestrator("runs", "list", cwd=tmp_path).returncode == 0, "the ledger is made by the first command"
    code = (
        "import sys; from orchestrator.cli.main import main; code = main(sys.argv[1:]);"
        f"print([name for name in {not_needed!r} if name in sys.modules], file=sys.stderr); sys.exit(code)"
    )
    shown = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={
            "PATH": os.environ["PATH"],
            "HOME": str(tmp_path),
            "VAULT_ADDR": "https://vault.example",
            "LC_ALL": "C.UTF-8",
        },
    )
    assert (shown.returncode, shown.stderr.splitlines()[-1]) == (0, "[]"), shown.stderr


@pytest.mark.parametrize(
    "variables",
    [
        {"VAULT_ADDR": "vault.example"},
        {"VAULT_ADDR": "https://someone:secret@vault.example"},
        {"ORCHESTRATOR_ENDPOINTS__SUPPORT": "postgresql://someone:secret@db/support"},
        {"orchestrator_grace": "soon"},
    ],
)
def test_a_list_still_tells_of_a_setting_that_is_wrong(tmp_path: Path, variables: dict[str, str]) -> None:
    shown = orchestrator("runs", "list", cwd=tmp_path, **variables)
    assert shown.returncode == 2
    assert shown.stderr.startswith("error: ")
    assert "secret" not in shown.stderr


def test_a_list_is_of_the_ledger_that_the_settings_name(tmp_path: Path) -> None:
    """However it is named: a variable wins over the file, and an empty one says nothing."""
    (tmp_path / "settings.toml").write_text(f'ledger_url = "{tmp_path}/by-file.db"')
    for variables, expected in (
        ({"ORCHESTRATOR_CONFIG": "settings.toml"}, "by-file.db"),
        ({"ORCHESTRATOR_CONFIG": "settings.toml", "ORCHESTRATOR_LEDGER_URL": f"{tmp_path}/by-name.db"}, "by-name.db"),
        ({"orchestrator_ledger_url": f"{tmp_path}/lower.db"}, "lower.db"),
        ({"ORCHESTRATOR_LEDGER_URL": "", "XDG_STATE_HOME": str(tmp_path / "state")}, "state/orchestrator/ledger.db"),
    ):
        assert not (tmp_path / expected).exists()
        assert orchestrator("leases", "list", cwd=tmp_path, **variables).returncode == 0
        assert (tmp_path / expected).exists()


@pytest.mark.parametrize("arguments", [["runs", "list", "--json"], ["leases", "list"], ["schema"]])
def test_a_settings_file_of_the_folder_is_not_read_and_that_is_said_once_beside_the_output(
    tmp_path: Path, arguments: list[str]
) -> None:
    clean = orchestrator(*arguments, cwd=tmp_path)
    (tmp_path / "orchestrator.toml").write_text(f'ledger_url = "{tmp_path}/planted.db"\nno_such_setting = 1\n')
    shown = orchestrator(*arguments, cwd=tmp_path)
    assert (shown.returncode, shown.stdout) == (0, clean.stdout)
    assert not (tmp_path / "planted.db").exists()
    assert shown.stderr.count("orchestrator.toml") == 1
    assert "ORCHESTRATOR_CONFIG" in shown.stderr
    (tmp_path / "mine.toml").write_text("")
    named = orchestrator(*arguments, cwd=tmp_path, ORCHESTRATOR_CONFIG="mine.toml")
    assert (named.returncode, named.stderr) == (0, "")


def test_the_version_is_told() -> None:
    assert orchestrator("--version").stdout.startswith("orchestrator ")


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["unknown"], "unknown"),
        (["runs", "list", "--state", "sleeping"], "sleeping"),
        (["runs", "show"], "RUN"),
        (["leases", "list", "--limit", "0"], "--limit"),
    ],
)
def test_a_command_line_that_is_wrong_answers_two(arguments: list[str], told: str) -> None:
    shown = orchestrator(*arguments)
    assert shown.returncode == 2
    assert shown.stderr.startswith("error: ")
    assert told in shown.stderr
    assert "--help`" in shown.stderr.splitlines()[-1]
    assert shown.stdout == ""


def test_in_json_mode_a_wrong_command_line_is_an_object_too() -> None:
    shown = orchestrator("runs", "show", "--json")
    assert json.loads(shown.stdout)["error"]["exit_code"] == 2


def test_a_wrong_setting_is_told_by_name(tmp_path: Path) -> None:
    shown = orchestrator("runs", "list", cwd=tmp_path, ORCHESTRATOR_GRACE="soon")
    assert shown.returncode == 2
    assert shown.stderr.startswith("error: ORCHESTRATOR_GRACE: ")


def test_a_ledger_that_cannot_be_opened_answers_five(tmp_path: Path) -> None:
    (tmp_path / "not-a-folder").touch()
    shown = orchestrator("runs", "list", cwd=tmp_path, ORCHESTRATOR_LEDGER_URL=str(tmp_path / "not-a-folder" / "l.db"))
    assert shown.returncode == 5
    assert "Traceback" not in shown.stderr


DEFECT = """
import sys
from orchestrator.cli import connect, main
from orchestrator.secret import Secret

connect.redactor().add(Secret("canary-5f2c-secret"))

def broken():
    raise KeyError("canary-5f2c-secret is missing")

connect.ledger_reader = broken
sys.exit(main.main(["runs", "list"]))
"""


@pytest.mark.parametrize("debug", ["", "1"])
def test_a_defect_is_one_line_and_a_traceback_only_when_asked_for_neither_with_a_secret(debug: str) -> None:
    shown = subprocess.run(
        [sys.executable, "-c", DEFECT],
        capture_output=True,
        text=True,
        env={**os.environ, "ORCHESTRATOR_DEBUG": debug},
    )
    assert shown.returncode == 1
    assert "error: unexpected KeyError at <string>:9: '*** is missing'" in shown.stderr
    assert "canary" not in shown.stderr
    assert ("Traceback" in shown.stderr) == bool(debug)
    assert ("ORCHESTRATOR_DEBUG=1" in shown.stderr) != bool(debug)


def test_a_reader_who_goes_away_is_no_defect(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    shown = subprocess.run(
        [*COMMAND, "runs", "list"],
        stdout=writing,
        stderr=subprocess.PIPE,
        text=True,
        env={"PATH": os.environ["PATH"], "ORCHESTRATOR_LEDGER_URL": str(tmp_path / "l.db")},
        cwd=tmp_path,
    )
    os.close(writing)
    assert shown.stderr == ""
    assert shown.returncode == 141


def test_a_terminal_without_unicode_gets_other_marks_and_question_marks_instead_of_a_crash() -> None:
    marks = "".join(terminal.LEASE_MARKS.values())
    code = f"from orchestrator.cli.display import streams; streams.prepare(); print('{marks} h\u00e9')"
    shown = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, "PYTHONIOENCODING": "ascii"}
    )
    assert shown.stdout == ".*~++oxx h?\n"


def test_each_module_registers_the_commands_that_the_program_looks_for_in_it() -> None:
    from typer.main import get_command

    from orchestrator.cli.main import COMMANDS, command_line

    for words in COMMANDS.values():
        for word in words:
            assert tuple(get_command(command_line(word)).commands) == words  # type: ignore[attr-defined]
    everything = [word for words in COMMANDS.values() for word in words]
    assert sorted(get_command(command_line()).commands) == sorted(everything)  # type: ignore[attr-defined]
    assert sorted(get_command(command_line("unheard-of")).commands) == sorted(everything)  # type: ignore[attr-defined]


def test_a_command_that_is_none_is_refused_as_before() -> None:
    refused = orchestrator("leasse")
    assert refused.returncode == 2
    assert "leasse" in refused.stderr
