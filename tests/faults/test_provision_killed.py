"""`provision apply` is killed with SIGKILL at every point, and done again until it is through."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest

from orchestrator.devstack.provisioned import Provisioned, provision_stack
from orchestrator.devstack.session import run_command, runtime_environment, what_is_left
from orchestrator.devstack.stack import DevStack, StackInfo

ROOT = Path(__file__).parents[2]
KILLED = -9

Attempt = Callable[[str, int], int]


@pytest.fixture
def empty(tmp_path: Path) -> Iterator[StackInfo]:
    """Servers that hold nothing of ours."""
    with DevStack(tmp_path / "stack") as info:
        yield info


@pytest.fixture
def attempt(empty: StackInfo) -> Iterator[Attempt]:
    """Apply, and die at the n-th point of a kind; how the process ended."""
    child = subprocess.Popen(
        [sys.executable, str(Path(__file__).with_name("provision_child.py"))],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert child.stdin
    assert child.stdout
    servers = {
        "vault": empty.vault_address,
        "token": empty.root_token.reveal(),
        "dsn": empty.support_dsn.reveal(),
        "endpoints": empty.endpoints,
    }

    def go(kind: str, number: int) -> int:
        assert child.stdin
        assert child.stdout
        child.stdin.write(json.dumps({**servers, "kind": kind, "number": number}) + "\n")
        child.stdin.flush()
        return int(child.stdout.readline())

    yield go
    child.stdin.close()
    assert child.wait(30) == 0
    child.stdout.close()


def ours(info: StackInfo) -> list[str]:
    """The roles of ours that are in the database."""
    with psycopg.connect(info.support_dsn.reveal()) as session:
        rows = session.execute("SELECT rolname FROM pg_roles WHERE rolname LIKE 'orchestrator\\_%' ORDER BY 1")
        return [str(row[0]) for row in rows]


def test_killed_at_every_point_and_done_again_it_converges(empty: StackInfo, attempt: Attempt, tmp_path: Path) -> None:
    for number in (1, 2, 5, 10, 20, 40):
        assert attempt("after a statement", number) == KILLED
        assert ours(empty) == [], "a transaction that was cut off has left nothing"
    assert attempt("after the commit", 1) == KILLED
    assert "orchestrator_vault" in ours(empty)
    written = 0
    while attempt("before a write to Vault", 1) == KILLED and attempt("after a write to Vault", 1) == KILLED:
        written += 1
    assert written > 12, "each process got one thing further"
    provisioned = provision_stack(empty, declarations=ROOT / "vault", workflows=ROOT / "workflows")
    assert provisioned.changes == (), "nothing is left to be done"
    assert works(provisioned, tmp_path)


def works(provisioned: Provisioned, folder: Path) -> bool:
    """Whether the sample runs with what was installed, and leaves nothing."""
    environment = runtime_environment(provisioned, folder)
    code = run_command(["run", "workflows/customer_feedback.yaml", "--quiet"], environment, folder=ROOT)
    return code == 0 and what_is_left(provisioned).clean
