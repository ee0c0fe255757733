"""What a process that holds credentials keeps to itself, whichever command it carries out."""

import ctypes
import os
import resource
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from importlib.metadata import entry_points
from pathlib import Path

import pytest
from typer.main import get_command

from orchestrator.cli.main import command_line
from orchestrator.hardening import keep_memory_private

_PR_GET_DUMPABLE = 3
ROOT = Path(__file__).parents[2]

PROBE = """
import sys
class Probe:
    def find_spec(self, name, path=None, target=None):
        if name.startswith("orchestrator.cli.commands"):
            import ctypes, os, resource
            private = ctypes.CDLL(None).prctl(3) == 0 and resource.getrlimit(resource.RLIMIT_CORE) == (0, 0)
            os._exit(42 if private else 43)
sys.meta_path.insert(0, Probe())
"""
"""Ends the process with 42 or 43 at the moment when the first module of any command is imported."""


def commands() -> Iterator[tuple[str, ...]]:
    """Every command of the program, as it is typed."""
    for name, command in get_command(command_line()).commands.items():  # type: ignore[attr-defined]
        subcommands = getattr(command, "commands", None)
        yield from ((name, sub) for sub in subcommands) if subcommands else ((name,),)


def test_no_core_file_is_written_and_nobody_else_reads_the_memory() -> None:
    child = os.fork()
    if child == 0:
        keep_memory_private()
        private = ctypes.CDLL(None).prctl(_PR_GET_DUMPABLE) == 0 and resource.getrlimit(resource.RLIMIT_CORE) == (0, 0)
        os._exit(0 if private else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_there_are_commands_that_hold_an_administrators_secret() -> None:
    found = set(commands())
    assert {("provision", "apply"), ("grants", "infer"), ("leases", "sweep"), ("prove",), ("dev",)} <= found


@pytest.mark.parametrize("way", ["module", "script"])
@pytest.mark.parametrize("words", sorted(commands()), ids=" ".join)
def test_the_memory_is_private_before_anything_of_a_command_is_loaded(
    words: tuple[str, ...], way: str, tmp_path: Path
) -> None:
    (tmp_path / "sitecustomize.py").write_text(PROBE)
    if way == "module":
        command = ["-m", "orchestrator.cli"]
    else:
        (script,) = entry_points(group="console_scripts", name="orchestrator")
        command = ["-c", f"import {script.module} as m; m.{script.attr}()"]
    environment = {"PYTHONPATH": str(tmp_path), "PATH": os.environ["PATH"]}
    ended = subprocess.run([sys.executable, *command, *words], env=environment, cwd=tmp_path, timeout=60)
    assert ended.returncode == 42


ORDINARY = ["setpriv", "--bounding-set=-all", "--inh-caps=-all"] if os.geteuid() == 0 else []
"""Before a command: it may do what an ordinary user's process may do to others of the same user."""


def read_by_another_process(process: int, part: str) -> bytes | None:
    """What `/proc/PID/part` says to a process of the same user; None where it is refused."""
    reader = subprocess.run([*ORDINARY, "head", "-c", "4000", f"/proc/{process}/{part}"], capture_output=True)
    return reader.stdout if reader.returncode == 0 else None


@pytest.mark.skipif(
    bool(ORDINARY) and not shutil.which("setpriv"), reason="root reads everything, and nothing takes that"
)
@pytest.mark.parametrize("words", ["provision plan", "leases sweep", "run workflow.yaml"])
def test_another_process_of_the_same_user_reads_neither_environment_nor_memory(words: str, tmp_path: Path) -> None:
    """While the command waits for a Vault that does not answer."""
    (tmp_path / "workflow.yaml").write_text(
        "version: 1\nname: w\nagent: a\nsteps:\n  a:\n    action: exec\n    with: {command: [/bin/true]}\n"
        "    grants: {t: {kind: secret, path: app/x, keys: [token]}}\n"
    )
    folder = ROOT if words.startswith("provision") else tmp_path
    with ExitStack() as stack:
        silent = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(tmp_path),
            "VAULT_ADDR": f"http://{address}",
            "VAULT_TOKEN": "root-secret-token",
            "ORCHESTRATOR_POLICY": "allow-all",
            "ORCHESTRATOR_PROVISION_DATABASES__SUPPORT": f"postgresql://admin:admin-password@{address}/x",
            "ORCHESTRATOR_ENDPOINTS__SUPPORT": f"postgresql://{address}/x",
            "ORCHESTRATOR_LEDGER_URL": f"sqlite:///{tmp_path}/ledger.db",
        }

        def started(*arguments: str) -> int:
            process = subprocess.Popen([*ORDINARY, sys.executable, *arguments], env=environment, cwd=folder)
            stack.callback(process.wait)
            stack.callback(process.kill)
            silent.settimeout(60)
            connection, _ = silent.accept()
            stack.callback(connection.close)
            return process.pid

        host, port = silent.getsockname()
        waiting = f"import socket; socket.create_connection(({host!r}, {port})).recv(1)"
        assert b"root-secret-token" in (read_by_another_process(started("-c", waiting), "environ") or b"")
        command = started("-m", "orchestrator.cli", *words.split())
        for part in ("environ", "maps", "mem"):
            assert read_by_another_process(command, part) is None
