"""The orchestrator's own secrets: a program that came by one takes it no further."""

from __future__ import annotations

import base64
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from bench import Bench

from orchestrator.actions.confinement import Confinement
from orchestrator.actions.process.private_folders import memory_folder, private_folder, temporary_folder
from orchestrator.configured.services import runner_config
from orchestrator.devstack.session import runtime_environment
from orchestrator.errors import ExitCode, OutputRefused
from orchestrator.redaction.own_secrets import OwnSecrets, secrets_in
from orchestrator.redaction.redactor import Redactor
from orchestrator.secret import Secret
from orchestrator.settings import Settings
from orchestrator.vault.config import TokenFileAuth

PRINTS = """
version: 1
name: prints
agent: tester
steps:
  work:
    action: exec
    with: {{ command: [/bin/sh, -c, '{script}'] }}
    outputs: [stdout]
"""
SHELLS = {
    "as it is": "cat FILE",
    "in base64": "base64 -w 0 FILE",
    "to its errors, and fails": "cat FILE >&2; exit 3",
    "behind much else, and fails": "cat FILE >&2; head -c 1985 /dev/zero | tr \\0 x >&2; exit 3",
}


def written(bench: Bench, value: str) -> list[str]:
    """Every file below the test's folder that holds the value, also in base64."""
    forms = (value.encode(), base64.b64encode(value.encode()))
    files = [path for path in bench.directory.rglob("*") if path.is_file()]
    return [str(path) for path in files if any(form in path.read_bytes() for form in forms)]


class Told:
    """The kinds of secrets that a process is told, and how it is told them."""

    def __init__(self, bench: Bench, folder: Path) -> None:
        self.bench = bench
        self.file = folder / "secret"

    def secret_id(self) -> tuple[str, dict[str, Any]]:
        return self.bench.provisioned.secret_id.reveal(), {}

    def token_in_a_file(self) -> tuple[str, dict[str, Any]]:
        token = self.bench.vault.auth.token.create(policies=["root"], ttl="10m")["auth"]["client_token"]
        self.file.write_text(token)
        config = replace(self.bench.config().vault, auth=TokenFileAuth(self.file))
        return token, {"vault": config}

    def password_of_a_database(self) -> tuple[str, dict[str, Any]]:
        dsn = "postgresql://admin:pass%2Fw0rd-4711@db.example/support"
        return "pass/w0rd-4711", {"own_secrets": secrets_in(dsn)}

    def password_of_the_ledger(self) -> tuple[str, dict[str, Any]]:
        name = "own_secrets_ledger"
        self.bench.sql(
            f"CREATE ROLE {name} LOGIN PASSWORD 'l3dger-Pw-4711'; CREATE SCHEMA {name} AUTHORIZATION {name};"
            f" GRANT CONNECT ON DATABASE support TO {name}"
        )
        url = self.bench.info.support_dsn.reveal()
        host = url.rpartition("@")[2]
        return "l3dger-Pw-4711", {"ledger_url": f"postgresql://{name}:l3dger-Pw-4711@{host}"}

    def clean(self) -> None:
        if self.bench.sql("SELECT 1 FROM pg_roles WHERE rolname = 'own_secrets_ledger'"):
            self.bench.sql("DROP OWNED BY own_secrets_ledger")
            self.bench.sql("REVOKE CONNECT ON DATABASE support FROM own_secrets_ledger")
            self.bench.sql("DROP ROLE own_secrets_ledger")


@pytest.fixture
def told(bench: Bench) -> Iterator[Told]:
    folder = private_folder(memory_folder() or temporary_folder())
    told = Told(bench, folder.path)
    yield told
    told.clean()
    told.file.unlink(missing_ok=True)
    folder.path.rmdir()
    folder.close()


@pytest.mark.parametrize("kind", ["secret_id", "token_in_a_file", "password_of_a_database", "password_of_the_ledger"])
@pytest.mark.parametrize("how", SHELLS)
def test_a_program_that_prints_one_has_its_output_refused_and_nothing_keeps_it(
    told: Told, bench: Bench, kind: str, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    value, changes = getattr(told, kind)()
    told.file.write_text(value)
    script = SHELLS[how].replace("FILE", str(told.file))
    outcome = bench.run(PRINTS.format(script=script), confinement=Confinement.OFF, **changes)
    assert outcome.exit_code is ExitCode.STEP_FAILED
    error = outcome.errors["work"]
    assert isinstance(error, OutputRefused) == ("fails" not in how), error.message
    if "fails" not in how:
        assert "a secret of the orchestrator" in error.message
    halves = (value[:12], value[-12:])
    assert not any(half in f"{error} {error.message} {error.hint} {outcome.reason}" for half in halves)
    assert not any(half in repr(bench.events) for half in halves)
    assert not any(half in caplog.text for half in halves)
    if kind != "password_of_the_ledger":
        assert written(bench, value) == []
    else:
        assert bench.sql("SELECT count(*) > 3 FROM own_secrets_ledger.event") == [True]
        assert bench.sql("SELECT count(*) FROM own_secrets_ledger.event WHERE data::text LIKE %s", [f"%{value}%"]) == [
            0
        ]


def test_a_token_that_somebody_replaces_in_its_file_while_the_step_runs_is_known(told: Told, bench: Bench) -> None:
    _, changes = told.token_in_a_file()
    file = changes["vault"].auth.path
    script = f"sleep 0.3; printf s.another-token-4711-of-the-agent > {file}; cat {file}"
    outcome = bench.run(PRINTS.format(script=script), confinement=Confinement.OFF, **changes)
    assert isinstance(outcome.errors["work"], OutputRefused)


def test_a_process_of_the_command_line_knows_what_its_environment_told_it(bench: Bench, tmp_path: Path) -> None:
    """The canary, end to end: events, logs and files of a run whose program reads the secret id from its file."""
    environment = {**os.environ, **runtime_environment(bench.provisioned, tmp_path)}
    value = bench.provisioned.secret_id.reveal()
    file = tmp_path / "secret-id"
    file.write_text(value)
    environment.pop("ORCHESTRATOR_AUTH_SECRET_ID", None)
    workflow = tmp_path / "reads.yaml"
    workflow.write_text(PRINTS.format(script=f"cat {file}"))
    done = subprocess.run(
        [sys.executable, "-m", "orchestrator.cli", "run", str(workflow), "--json"],
        env={
            **environment,
            "ORCHESTRATOR_AUTH_SECRET_ID_FILE": str(file),
            "ORCHESTRATOR_CONFINEMENT": "off",
            "ORCHESTRATOR_POLICY": "allow-all",
            "ORCHESTRATOR_LEDGER_URL": f"sqlite:///{tmp_path}/own.db",
            "ORCHESTRATOR_LOG_LEVEL": "debug",
        },
        capture_output=True,
        text=True,
    )
    assert done.returncode == ExitCode.STEP_FAILED, done.stderr
    assert value not in done.stdout + done.stderr
    file.unlink()
    assert [path for path in written(bench, value) if "own.db" in path] == []


def test_the_settings_name_the_secrets_of_all_their_databases(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith(("ORCHESTRATOR_", "VAULT_"))]:
        monkeypatch.delenv(name)
    settings = Settings.model_validate(
        {
            "vault_addr": "https://vault.example",
            "auth_method": "token",
            "auth_token": "s.the-login-of-4711",
            "auth_secret_id": "the-secret-id-of-4711",
            "policy": "allow-all",
            "ledger_url": "postgresql://l:ledger-pw-4711@h/l",
            "provision_databases": {"a": "host=h user=a password='admin pw \\' 4711'"},
            "catalog_databases": {"a": "postgresql://h/x?user=c&password=c4talog-Pw-4711"},
        }
    )
    known = OwnSecrets(Redactor(), standing=lambda: runner_config(settings).own_secrets).redactor
    for value in ("the-secret-id-of-4711", "s.the-login-of-4711", "admin pw ' 4711", "c4talog-Pw-4711"):
        assert known.find(f"it says {value}."), value


@pytest.mark.parametrize(
    ("address", "passwords"),
    [
        ("postgresql://u:p%40ss@h/db", ["p@ss"]),
        ("postgresql+psycopg://u:plain@h:1,k:2/db", ["plain"]),
        ("postgresql://h/db?sslpassword=key&password=other", ["key", "other"]),
        ("host=h password=plain", ["plain"]),
        ("password = 'with \\'quotes\\' and \\\\' host=h", ["with 'quotes' and \\"]),
        ("host=h PASSWORD=up\\ space", ["up space"]),
        ("postgresql://h/db", []),
        ("sqlite:////var/lib/ledger.db", []),
    ],
)
def test_passwords_are_found_in_every_form_of_address(address: str, passwords: list[str]) -> None:
    found = [secret.reveal() for secret in secrets_in(address)]
    assert found == ([*passwords, address] if passwords else [])


def test_standing_secrets_are_never_forgotten_and_old_tokens_are() -> None:
    own = OwnSecrets(Redactor(), standing=lambda: [Secret("the-secret-id-of-4711")])
    for number in range(1000):
        own.remember_token(Secret(f"s.token-number-{number:06}"))
        if number % 7 == 0:
            own.look_again()
    assert own.redactor.find("the-secret-id-of-4711")
    assert own.redactor.find("s.token-number-000999")
    assert not own.redactor.find("s.token-number-000001")


def test_a_common_word_for_a_password_refuses_no_output() -> None:
    own = OwnSecrets(Redactor(), standing=lambda: secrets_in("postgresql://postgres:postgres@h/postgres"))
    assert not own.redactor.find("the database is called postgres")
    assert own.redactor.find("it is at postgresql://postgres:postgres@h/postgres")
