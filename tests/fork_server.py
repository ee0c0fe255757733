"""Children that are there at once: one process imports what they need and forks for each of them.

Importing takes most of the time of a child that lives for a moment. What is forked has no threads and no open
connection, so a child is as if it had just been started; it is killed, and found dead, like any other process.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from contextlib import AbstractContextManager
from importlib import import_module
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from orchestrator.clock import SystemClock
from orchestrator.ledger.opening import open_ledger

FAULTS = Path(__file__).with_name("faults")
IMPORTED_LATE = (
    *("httpx", "hvac", "pglast", "psycopg", "ruamel.yaml", "orchestrator.runs.engines.dbos", "orchestrator.cli.main"),
    *(f"orchestrator.cli.commands.{name}" for name in ("run", "runs", "leases", "queue")),
)


class ForkServer(AbstractContextManager["ForkServer"]):
    """Runs `faults/crash_child.py` with one JSON object, or the command line with its words, again and again."""

    def __init__(self, directory: Path) -> None:
        self._written = directory / "stdout", directory / "stderr"

    def __enter__(self) -> Self:
        self._server = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._server:
            assert self._server.stdin is not None
            self._server.stdin.close()

    def run(self, given: dict[str, Any], *, seconds: int = 90) -> int:
        """How a crash child ended: its exit code, or the negative number of its signal (-14 where it took too long).

        What it prints goes to our stderr.
        """
        ended = self._ended({"given": given, "seconds": seconds})
        for file in self._written:
            sys.stderr.write(file.read_text(errors="replace"))
        return ended

    def command(
        self, *words: str, environment: Mapping[str, str], seconds: int = 90
    ) -> subprocess.CompletedProcess[str]:
        """`orchestrator WORDS`, which has ended."""
        ended = self._ended({"words": words, "environment": dict(environment), "seconds": seconds})
        output, errors = (file.read_text() for file in self._written)
        return subprocess.CompletedProcess(["orchestrator", *words], ended, output, errors)

    def _ended(self, asked: dict[str, Any]) -> int:
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        for file in self._written:
            file.write_bytes(b"")
        self._server.stdin.write(json.dumps({**asked, "written": [str(file) for file in self._written]}) + "\n")
        self._server.stdin.flush()
        return int(self._server.stdout.readline())


def serve() -> None:
    """Fork for each line of the standard input, and answer with how the child ended."""
    sys.path.insert(0, str(FAULTS))
    crash_child = import_module("crash_child")
    for name in crash_child.catalog.names():
        crash_child.catalog.params_of(name)
    for module in IMPORTED_LATE:
        import_module(module)
    with tempfile.TemporaryDirectory() as directory:  # imports what makes the tables, too
        open_ledger(f"sqlite:///{directory}/ledger.db", clock=SystemClock()).close()
    gc.freeze()
    for line in sys.stdin:
        asked = json.loads(line)
        child = os.fork()
        if child == 0:
            signal.alarm(asked["seconds"])
            _redirect(*asked["written"])
            if "given" in asked:
                sys.exit(asyncio.run(crash_child.main(asked["given"])))
            os.environ.clear()
            os.environ.update(asked["environment"])
            sys.argv = ["orchestrator", *asked["words"]]
            import_module("orchestrator.cli.entry").run()
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


def _redirect(output: str, errors: str) -> None:
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for number, file in enumerate((output, errors), start=1):
        os.dup2(os.open(file, os.O_WRONLY | os.O_APPEND), number)


if __name__ == "__main__":
    serve()
