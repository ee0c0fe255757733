"""The samples of deployment, each imitated: its files laid out as its platform does, its environment, its command."""

from __future__ import annotations

import configparser
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg
from bench import ROOT, Bench
from psycopg import sql
from ruamel.yaml import YAML

from orchestrator.devstack.openbao import OpenBao
from orchestrator.devstack.postgres import Postgres
from orchestrator.devstack.session import runtime_environment

LEFT = "SELECT count(*) FROM pg_roles WHERE rolname LIKE 'orc\\_%'"


@dataclass
class Place:
    """A machine of its own, as far as names go: where its absolute paths and its hosts are here."""

    root: Path
    here: dict[str, str] = field(default_factory=dict)
    """Texts of the sample, such as a host or a folder, and what stands for them."""

    def text(self, value: str) -> str:
        """A value of the sample, with what is here: the longest first, and `/work` is no beginning of `/workflows`."""
        there = sorted(self.here, key=len, reverse=True)
        pattern = "|".join(re.escape(each) + (r"(?![\w-])" if each.startswith("/") else "") for each in there)
        return re.sub(pattern, lambda match: self.here[match[0]], value)

    def folder(self, path: str) -> Path:
        """Make a folder for this absolute path."""
        folder = self.root / path.lstrip("/")
        folder.mkdir(parents=True, exist_ok=True)
        self.here[path] = str(folder)
        return folder

    def run(self, arguments: list[str], environment: Mapping[str, str], cwd: Path) -> subprocess.CompletedProcess[str]:
        """`orchestrator` with these arguments, this environment and nothing of ours."""
        home = self.root / "home"
        home.mkdir(exist_ok=True)
        return subprocess.run(
            [sys.executable, "-m", "orchestrator.cli", *(self.text(each) for each in arguments)],
            env={
                "PATH": os.defpath,
                "PYTHONPATH": str(ROOT),
                "HOME": str(home),
                **{name: self.text(value) for name, value in environment.items()},
            },
            cwd=cwd,
            capture_output=True,
            text=True,
            timeout=180,
        )


def yaml(file: str) -> list[Any]:
    return list(YAML(typ="safe", pure=True).load_all((ROOT / file).read_text()))


# --- Kubernetes -------------------------------------------------------------------------------------------


def mount_config_map(files: list[Path], folder: Path) -> None:
    """As the kubelet lays a ConfigMap out: files in a folder with a date, `..data` as a link to that, links to it."""
    dated = folder / "..2026_11_27_07_00_00.123456789"
    dated.mkdir()
    (folder / "..data").symlink_to(dated.name)
    for file in files:
        shutil.copy(file, dated / file.name)
        (dated / file.name).chmod(0o444)
        (folder / file.name).symlink_to(f"..data/{file.name}")


def config_maps(text: str) -> dict[str, list[Path]]:
    """What `kubectl create configmap NAME --from-file=PATH` of the sample takes: a file, or the files of a folder."""
    found = {}
    for name, path in re.findall(r"kubectl create configmap (\S+) --from-file=(\S+)", text):
        file = ROOT / path
        found[name] = sorted(each for each in file.iterdir() if each.is_file()) if file.is_dir() else [file]
    return found


def test_the_cron_job_of_kubernetes_runs_in_the_pod_that_it_describes(bench: Bench, tmp_path: Path) -> None:
    text = (ROOT / "deploy" / "kubernetes" / "cronjob.yaml").read_text()
    account, job = yaml("deploy/kubernetes/cronjob.yaml")
    pod = job["spec"]["jobTemplate"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert pod["serviceAccountName"] == account["metadata"]["name"]
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    assert {mount["name"] for mount in container["volumeMounts"]} == set(volumes)

    place, maps = Place(tmp_path / "pod"), config_maps(text)
    for mount in container["volumeMounts"]:
        folder = place.folder(mount["mountPath"])
        if (config_map := volumes[mount["name"]].get("configMap")) and config_map["name"] != "vault-ca":
            mount_config_map(maps[config_map["name"]], folder)
    (tmp_path / "pod" / "vault-ca" / "ca.crt").write_text("")

    runtime = runtime_environment(bench.provisioned, bench.directory)
    environment = {each["name"]: each.get("value", "") for each in container["env"]}
    login = {name for name in environment if name.startswith("ORCHESTRATOR_AUTH_")}
    assert login == {"ORCHESTRATOR_AUTH_METHOD", "ORCHESTRATOR_AUTH_ROLE", "ORCHESTRATOR_AUTH_JWT_FILE"}
    addresses = {
        name: value for name, value in runtime.items() if "ENDPOINTS__" in name or name == "ORCHESTRATOR_TOKEN_ISSUER"
    }
    del addresses["ORCHESTRATOR_ENDPOINTS__CRM"]  # of another sample
    slack = addresses.pop("ORCHESTRATOR_ENDPOINTS__SLACK")  # Slack's own address is known where none is named
    assert set(addresses) <= set(environment), "an address that the workflow needs is not set"
    given = {
        **{name: value for name, value in environment.items() if name not in login | {"ORCHESTRATOR_VAULT_CACERT"}},
        **addresses,
        "ORCHESTRATOR_ENDPOINTS__SLACK": slack,
        "ORCHESTRATOR_VAULT_ADDR": runtime["VAULT_ADDR"],
        "ORCHESTRATOR_LEDGER_URL": runtime["ORCHESTRATOR_LEDGER_URL"],
        **{name: runtime[name] for name in runtime if name.startswith("ORCHESTRATOR_AUTH_")},
    }
    workdir = re.findall(r"^WORKDIR (\S+)$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)[-1]
    done = place.run(container["args"], given, place.folder(workdir))
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert bench.sql("SELECT count(*) > 0 FROM feedback_translation") == [True]
    assert bench.sql(LEFT) == [0]
    bench.sql("TRUNCATE feedback_translation")


# --- systemd ----------------------------------------------------------------------------------------------


def test_the_unit_of_systemd_runs_with_the_files_that_it_names(bench: Bench, tmp_path: Path) -> None:
    unit = configparser.ConfigParser(strict=False, interpolation=None, delimiters=["="])
    unit.optionxform = str  # type: ignore[assignment,method-assign]
    text = (ROOT / "deploy" / "systemd" / "orchestrator-run@.service").read_text()
    unit.read_string(text)
    service = unit["Service"]
    place = Place(tmp_path / "machine")
    etc = place.folder("/etc/orchestrator")
    shutil.copytree(ROOT / "workflows", etc / "workflows")
    credentials = place.folder("/run/credentials")
    place.folder(f"/var/lib/{service['StateDirectory']}")
    name, source = service["LoadCredential"].split(":")
    assert source.startswith("/etc/orchestrator/")
    runtime = runtime_environment(bench.provisioned, bench.directory)
    (credentials / name).write_text(runtime["ORCHESTRATOR_AUTH_SECRET_ID"])
    place.here["%d"] = str(credentials)
    place.here["%i"] = "customer_feedback"
    set_here = dict(re.findall(r"^Environment=(\w+)=(.*)$", text, re.MULTILINE))
    in_file = {  # EnvironmentFile=: what is no secret, and is said nowhere else
        key: value
        for key, value in runtime.items()
        if key.startswith(("ORCHESTRATOR_ENDPOINTS__", "VAULT_"))
        or key in ("ORCHESTRATOR_TOKEN_ISSUER", "ORCHESTRATOR_AUTH_ROLE_ID")
    }
    program, *arguments = shlex.split(service["ExecStart"])
    assert Path(program).name == "orchestrator"
    done = place.run(arguments, {**in_file, **set_here}, Path(place.text(service["WorkingDirectory"])))
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert (tmp_path / "machine" / "var" / "lib" / "orchestrator" / "ledger.db").is_file()
    assert bench.sql(LEFT) == [0]
    bench.sql("TRUNCATE feedback_translation")


# --- Compose ----------------------------------------------------------------------------------------------

COMPOSE = (ROOT / "docker-compose.yml").read_text()


def interpolated(value: str, variables: Mapping[str, str]) -> str:
    """`${NAME:-default}` and `${NAME:?message}` (Compose specification, "Interpolation")."""

    def given(match: re.Match[str]) -> str:
        found = variables.get(match[1]) or (match[3] if match[2] == ":-" else None)
        assert found is not None, f"{match[1]} is not set: {match[3]}"
        return found

    return re.sub(r"\$\{(\w+)(?:(:-|:\?)([^}]*))?\}", given, value)


def test_the_compose_file_names_only_what_is_there() -> None:
    (compose,) = yaml("docker-compose.yml")
    assert set(compose) == {"services", "secrets", "volumes"}
    for name, service in compose["services"].items():
        assert ("image" in service) != ("build" in service), name
        assert set(service.get("depends_on", {})) <= set(compose["services"])
        assert set(service.get("secrets", [])) <= set(compose["secrets"])
        for volume in service.get("volumes", []):
            source, target, *_ = volume.split(":")
            assert target.startswith("/")
            assert (ROOT / source).exists() if source.startswith(".") else source in compose["volumes"], volume
    commands = re.findall(r"docker compose (?:up -d|run --rm|exec(?: -e \w+)?) (.*)$", COMPOSE, re.MULTILINE)
    assert len(commands) >= 5
    for command in commands:
        assert command.split()[0] in compose["services"]


def fill(server: Postgres, postgres: Mapping[str, Any], place: Place) -> None:
    """What the image's entry point does with an empty folder: the database, then what is in initdb.d, by name."""
    database = postgres["environment"]["POSTGRES_DB"]
    with psycopg.connect(server.dsn().reveal(), autocommit=True) as session:
        session.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(database)))
    mounted = {target: ROOT / source for source, target, *_ in (each.split(":") for each in postgres["volumes"])}
    with psycopg.connect(server.dsn(database).reveal(), autocommit=True) as session:
        for target in sorted(name for name in mounted if name.startswith("/docker-entrypoint-initdb.d/")):
            session.execute(place.text(mounted[target].read_text()).encode())


def test_the_compose_file_provisions_and_runs_by_the_lines_that_it_says(
    tmp_path: Path,
    openbao_server: Callable[..., OpenBao],
    postgres_server: Callable[..., Postgres],
) -> None:
    (compose,) = yaml("docker-compose.yml")
    services, vault, server = compose["services"], openbao_server(), postgres_server()
    place = Place(tmp_path / "containers")
    place.here |= {"openbao:8200": f"127.0.0.1:{vault.port}", "@postgres:5432": f"@{server.host}:{server.port}"}
    place.here |= {"//postgres:5432": f"//{server.host}:{server.port}"}
    secrets = place.folder("/run/secrets")
    place.folder("/var/lib/orchestrator")
    (secrets / "postgres_password").write_text(server.password.reveal())
    with tempfile.TemporaryDirectory() as samples:  # which the server reads itself, as another user
        Path(samples).chmod(0o755)
        shutil.copy(ROOT / "workflows" / "data" / "customer_feedback.csv", samples)
        place.here["/samples"] = samples
        fill(server, services["postgres"], place)

    def run(name: str, given: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
        (arguments,) = re.findall(rf"^#   docker compose run --rm {name} (.*)$", COMPOSE, re.MULTILINE)
        service, work = services[name], place.root / name / "work"
        for volume in service["volumes"]:
            source, target, *mode = volume.split(":")
            if source.startswith("."):
                assert mode == ["ro"]
                shutil.copytree(ROOT / source, work.parent / target.lstrip("/"), dirs_exist_ok=True)
        place.here["/work"] = str(work)
        environment = {
            variable: given[variable] if value is None else interpolated(str(value), given)
            for variable, value in service["environment"].items()
        }
        return place.run(shlex.split(arguments), environment, work)

    (dsn,) = re.findall(r'export ORCHESTRATOR_PROVISION_DATABASES__SUPPORT="(.*)"', COMPOSE)
    shell = {
        "VAULT_TOKEN": vault.root_token.reveal(),
        "ORCHESTRATOR_PROVISION_DATABASES__SUPPORT": dsn.replace(
            "$(cat $SECRETS/postgres_password)", (secrets / "postgres_password").read_text()
        ),
    }
    installed = run("admin", shell)
    assert installed.returncode == 0, installed.stdout + installed.stderr

    role, secret = re.findall(r"bao (?:read|write -force) -field=(\w+) (\S+)$", COMPOSE, re.MULTILINE)
    role_id = vault.request("GET", role[1])["data"][role[0]]
    (secrets / "orchestrator_secret_id").write_text(vault.request("POST", secret[1])["data"][secret[0]])
    done = run("orchestrator", {"ORCHESTRATOR_AUTH_ROLE_ID": role_id})
    assert done.returncode == 0, done.stdout + done.stderr
    with psycopg.connect(server.dsn("support").reveal(), autocommit=True) as session:
        assert session.execute("SELECT count(*) FROM customer_feedback").fetchone() == (1974,)
        assert session.execute("SELECT customer_id, messages > 0 FROM ticket").fetchall() == [(1234, True)]
        assert session.execute(LEFT.encode()).fetchone() == (0,)
