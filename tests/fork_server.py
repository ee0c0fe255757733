"""Crash children that are there at once: one process imports what they need and forks for each of them.

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
from contextlib import AbstractContextManager
from importlib import import_module
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from orchestrator.clock import SystemClock
from orchestrator.ledger.opening import open_ledger

FAULTS = Path(__file__).with_name("faults")


class ForkServer(AbstractContextManager["ForkServer"]):
    """Runs `faults/crash_child.py` with one JSON object, again and again. What a child prints goes to our stderr."""

    def __init__(self, directory: Path) -> None:
        self._log = directory / "children.log"

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
        """How a child ended: its exit code, or the negative number of its signal (-14 where it took too long)."""
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        self._log.write_bytes(b"")
        self._server.stdin.write(json.dumps({"given": given, "log": str(self._log), "seconds": seconds}) + "\n")
        self._server.stdin.flush()
        ended = int(self._server.stdout.readline())
        sys.stderr.write(self._log.read_text(errors="replace"))
        return ended


def serve() -> None:
    """Fork for each line of the standard input, and answer with how the child ended."""
    sys.path.insert(0, str(FAULTS))
    crash_child = import_module("crash_child")
    for name in crash_child.catalog.names():
        crash_child.catalog.params_of(name)
    for module in ("httpx", "hvac", "pglast", "psycopg", "ruamel.yaml", "orchestrator.runs.engines.dbos"):
        import_module(module)
    with tempfile.TemporaryDirectory() as directory:  # imports what makes the tables, too
        open_ledger(f"sqlite:///{directory}/ledger.db", clock=SystemClock()).close()
    gc.freeze()
    for line in sys.stdin:
        asked = json.loads(line)
        child = os.fork()
        if child == 0:
            signal.alarm(asked["seconds"])
            _redirect(asked["log"])
            sys.exit(asyncio.run(crash_child.main(asked["given"])))
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


def _redirect(log: str) -> None:
    silence = os.open(os.devnull, os.O_RDONLY)
    output = os.open(log, os.O_WRONLY | os.O_APPEND)
    for source, target in ((silence, 0), (output, 1), (output, 2)):
        os.dup2(source, target)


if __name__ == "__main__":
    serve()
