"""Applies a provisioning and kills itself with SIGKILL at the n-th point. Started by `test_provision_killed`.

Each line on standard input is a JSON object: the servers, the workflows, and the point. For each a fork of this process
does the work, and how it ended is a line on standard output, so that Python starts only once.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from orchestrator.provision.database.installation import Installation
from orchestrator.provision.database.side import DatabaseSide
from orchestrator.provision.service import load_workflows, open_provisioning
from orchestrator.provision.vault.admin import VaultAdmin
from orchestrator.secret import Secret
from orchestrator.vault.config import TokenAuth, VaultConfig
from orchestrator.workflow.models.workflow import Workflow

ROOT = Path(__file__).parents[2]


class Fatal:
    """Counts the points of one kind and dies at the one that is wanted."""

    def __init__(self, kind: str, number: int) -> None:
        self._kind = kind
        self._left = number

    def reached(self, kind: str) -> None:
        if kind == self._kind:
            self._left -= 1
            if self._left == 0:
                os.kill(os.getpid(), signal.SIGKILL)


def apply(given: Mapping[str, Any], workflows: Sequence[Workflow], fatal: Fatal) -> None:
    write, statements, committed = VaultAdmin.write, Installation.statements, DatabaseSide.apply

    def fatal_write(self: VaultAdmin, path: str, payload: Mapping[str, Any]) -> dict[str, Any]:
        fatal.reached("before a write to Vault")
        answer = write(self, path, payload)
        fatal.reached("after a write to Vault")
        return answer

    def fatal_statements(self: Installation) -> Iterator[Any]:
        for statement in statements(self):
            yield statement
            fatal.reached("after a statement")

    def fatal_apply(self: DatabaseSide) -> None:
        committed(self)
        fatal.reached("after the commit")

    VaultAdmin.write = fatal_write  # type: ignore[method-assign]
    Installation.statements = fatal_statements  # type: ignore[method-assign]
    DatabaseSide.apply = fatal_apply  # type: ignore[method-assign]
    with open_provisioning(
        VaultConfig(given["vault"], TokenAuth(Secret(given["token"]))),
        {"support": Secret(given["dsn"])},
        workflows=workflows,
        declarations=ROOT / "vault",
        endpoints=given["endpoints"],
    ) as work:
        work.apply(work.plan())


def main() -> None:
    workflows = load_workflows(ROOT / "workflows")
    for line in sys.stdin:
        given = json.loads(line)
        child = os.fork()
        if child == 0:
            apply(given, workflows, Fatal(given["kind"], given["number"]))
            os._exit(0)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


if __name__ == "__main__":
    main()
