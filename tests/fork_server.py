"""Processes that are there at once: one that has imported what they need forks for each of them.

Importing takes most of the time of a process that lives for a moment, and more than a second of every other. What is
forked has no threads and no open connection, so it is as if it had just been started; it is killed, and found dead,
like any other process. Only its arguments in /proc are those of the process that forked it.
"""

from __future__ import annotations

import asyncio
import atexit
import gc
import json
import os
import select
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping
from contextlib import AbstractContextManager, suppress
from importlib import import_module
from pathlib import Path
from pkgutil import walk_packages
from types import TracebackType
from typing import IO, Any, ClassVar, Self

import orchestrator as package
from orchestrator.clock import SystemClock
from orchestrator.ledger.opening import open_ledger

FAULTS = Path(__file__).with_name("faults")
LAUNCHER = Path(__file__).with_name("forked_command.py")
IMPORTED_LATE = ("httpx", "hvac", "pglast", "psycopg", "ruamel.yaml", "uvicorn")
NEVER_IMPORTED = ("orchestrator.cli.entry", "orchestrator.cli.__main__")
"""The first lines of a process, which it has to run itself."""
STATUS = struct.Struct("i")
"""How a process ended, as the pipe brings it: what waitpid(2) gives."""


class Forked:
    """A process that was forked, to be dealt with as with a `subprocess.Popen`."""

    def __init__(self, pid: int, ended: int, stdout: IO[str] | None) -> None:
        self.pid, self.stdout = pid, stdout
        self._ended = ended
        self.returncode: int | None = None
        self._said = ""

    def wait(self, timeout: float | None = None) -> int:
        """Its exit code, negative for a signal. Raises subprocess.TimeoutExpired after so many seconds."""
        if self.returncode is None:
            ready, _, _ = select.select([self._ended], [], [], timeout)
            if not ready:
                raise subprocess.TimeoutExpired(f"process {self.pid}", timeout or 0)
            self.returncode = os.waitstatus_to_exitcode(STATUS.unpack(os.read(self._ended, STATUS.size))[0])
            os.close(self._ended)
        return self.returncode

    def poll(self) -> int | None:
        with suppress(subprocess.TimeoutExpired):
            return self.wait(0)
        return None

    def communicate(self, timeout: float | None = None) -> tuple[str, None]:
        """What it printed, once it has ended."""
        reading = threading.Thread(target=self._read, daemon=True)
        reading.start()
        self.wait(timeout)
        reading.join(timeout)
        return self._said, None

    def _read(self) -> None:
        if self.stdout is not None and not self.stdout.closed:
            with self.stdout:
                self._said += self.stdout.read()

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            with suppress(ProcessLookupError):  # it has ended since, and the one that forked it has seen it first
                os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


class ForkServer(AbstractContextManager["ForkServer"]):
    """Runs `faults/crash_child.py` with one JSON object, or the command line with its words, again and again."""

    of_session: ClassVar[ForkServer]
    """That of the fixture `children`, which all tests with servers have."""

    def __init__(self, directory: Path) -> None:
        self._written = directory / "stdout", directory / "stderr"
        self._turn = threading.Lock()
        self._folder = tempfile.TemporaryDirectory(prefix="forks-")  # short: the path of a socket has 107 bytes at most
        self._address = f"{self._folder.name}/asking"

    def __enter__(self) -> Self:
        self._asking, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs, socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as door:
            door.bind(self._address)
            door.listen()
            given = [theirs.fileno(), door.fileno()]
            self._server = subprocess.Popen([sys.executable, __file__, *map(str, given)], pass_fds=given)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._asking.close()
        self._server.wait()
        self._folder.cleanup()

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

    def start(self, *words: str, environment: Mapping[str, str], log: IO[bytes] | None = None) -> Forked:
        """`orchestrator WORDS`, which goes on. What it prints goes to the log, or can be read here as `stdout`."""
        asked = {"words": words, "environment": dict(environment), "seconds": 0}
        if log is not None:
            return self._forked(asked, log.fileno(), log.fileno(), None)
        reading, writing = os.pipe()
        try:
            return self._forked(asked, writing, writing, os.fdopen(reading, encoding="utf-8"))
        finally:
            os.close(writing)

    def start_on(self, *words: str, environment: Mapping[str, str], streams: tuple[int, int, int]) -> Forked:
        """`orchestrator WORDS` with these descriptors as its standard input, output and error."""
        asked = {"words": words, "environment": dict(environment), "seconds": 0}
        return self._forked(asked, streams[1], streams[2], None, input=streams[0])

    def command_line(self) -> list[str]:
        """What runs `orchestrator` with the words that follow, for those who start a program by themselves."""
        return [sys.executable, "-I", "-S", str(LAUNCHER), self._address]

    def _ended(self, asked: dict[str, Any]) -> int:
        with self._written[0].open("wb") as output, self._written[1].open("wb") as errors:
            return self._forked(asked, output.fileno(), errors.fileno(), None).wait()

    def _forked(
        self, asked: dict[str, Any], output: int, errors: int, stdout: IO[str] | None, *, input: int | None = None
    ) -> Forked:
        ended, ending = os.pipe()
        with self._turn, open(os.devnull) as nothing:
            given = [nothing.fileno() if input is None else input, output, errors, ending]
            socket.send_fds(self._asking, [json.dumps(asked).encode()], given)
            os.close(ending)
            return Forked(int(self._asking.recv(20)), ended, stdout)


def serve(asking: socket.socket, door: socket.socket) -> None:
    """Fork for each message, and say of each that ended how it did."""
    sys.path.insert(0, str(FAULTS))
    crash_child = import_module("crash_child")
    for name in crash_child.catalog.names():
        crash_child.catalog.params_of(name)
    for module in (*IMPORTED_LATE, *of_ours()):
        import_module(module)
    with tempfile.TemporaryDirectory() as directory:  # imports what makes the tables, too
        open_ledger(f"sqlite:///{directory}/ledger.db", clock=SystemClock()).close()
    gc.freeze()
    wake, waker = os.pipe()
    for end in (wake, waker):
        os.set_blocking(end, False)
    signal.set_wakeup_fd(waker, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda _number, _frame: None)
    alive: dict[int, int] = {}

    def answer(asked: socket.socket) -> bool:
        """Fork if there is a message, and say the process's number."""
        message, descriptors, _, _ = socket.recv_fds(asked, 1 << 20, 4)
        if not message:
            return False
        *streams, ending = descriptors
        pid = os.fork()
        if pid == 0:
            ours = {asking.fileno(), door.fileno(), asked.fileno(), wake, waker, ending, *alive.values()}
            for descriptor in ours:
                os.close(descriptor)
            be(json.loads(message), streams, crash_child)
        for descriptor in streams:
            os.close(descriptor)
        alive[pid] = ending
        with suppress(BrokenPipeError):
            asked.send(str(pid).encode())
        return True

    goes_on = True
    while goes_on:
        ready, _, _ = select.select([asking, door, wake], [], [])
        if wake in ready:
            os.read(wake, 512)
            tell_ended(alive)
        if door in ready:
            with door.accept()[0] as asked:
                answer(asked)
        if asking in ready:
            goes_on = answer(asking)
    for pid in alive:
        os.kill(pid, signal.SIGKILL)


def orchestrator() -> list[str]:
    """What runs `orchestrator` with the words that follow, where a test is not about how a process begins or dies."""
    return ForkServer.of_session.command_line()


def of_ours() -> list[str]:
    """Every module of the package, whatever a command imports of it when it is first needed."""
    found = (module.name for module in walk_packages(package.__path__, "orchestrator."))
    return [name for name in found if name not in NEVER_IMPORTED and ".migrations." not in name]


def tell_ended(alive: dict[int, int]) -> None:
    with suppress(ChildProcessError):
        while (ended := os.waitpid(-1, os.WNOHANG))[0]:
            if (pipe := alive.pop(ended[0], None)) is not None:
                with suppress(BrokenPipeError):
                    os.write(pipe, STATUS.pack(ended[1]))
                os.close(pipe)


def be(asked: dict[str, Any], streams: list[int], crash_child: Any) -> None:
    """The process that was asked for; returns never."""
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.alarm(asked["seconds"])
    for number, descriptor in enumerate(streams):
        os.dup2(descriptor, number)
        if descriptor > 2:
            os.close(descriptor)
    sys.stdin = os.fdopen(0, encoding="utf-8", closefd=False)
    sys.stdout = os.fdopen(1, "w", encoding="utf-8", closefd=False)  # the old ones know what they wrote to at first
    sys.stderr = os.fdopen(2, "w", encoding="utf-8", errors="backslashreplace", buffering=1, closefd=False)
    try:
        if "given" in asked:
            sys.exit(asyncio.run(crash_child.main(asked["given"])))
        os.environ.clear()
        os.environ.update(asked["environment"])
        os.chdir(asked.get("folder", "."))
        sys.argv = ["orchestrator", *asked["words"]]
        import_module("orchestrator.cli.entry").run()
    except SystemExit as end:
        if isinstance(end.code, int):
            leave(end.code)
        raise


def leave(code: int) -> None:
    """End as Python does, but for taking apart every module: that would copy all the memory that is shared until then,
    and takes longer than most of what is asked for."""
    threading._shutdown()  # type: ignore[attr-defined]  # waits for the threads that are not daemons
    atexit._run_exitfuncs()
    gc.collect()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(code)


if __name__ == "__main__":
    serve(socket.socket(fileno=int(sys.argv[1])), socket.socket(fileno=int(sys.argv[2])))
