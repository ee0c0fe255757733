"""Running a step's command under supervision: when `run_process` returns or raises, nothing of it lives any more."""

from __future__ import annotations

import asyncio
import errno
import json
import logging
import os
import sys
from collections.abc import Callable, Coroutine, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path

from orchestrator.actions.base import Printed
from orchestrator.actions.process import supervisor
from orchestrator.actions.process.private_folders import (
    PrivateFolder,
    memory_folder,
    private_folder,
    temporary_folder,
)
from orchestrator.actions.process.rules import Reach, order_of, program_paths
from orchestrator.errors import StepFailed
from orchestrator.secret import Secret

_log = logging.getLogger(__name__)

GRACE = 2.0
"""Seconds between SIGTERM and SIGKILL."""
_STOP_LIMIT = GRACE + 10.0
_STDERR_KEPT = 64 * 1024
"""Bytes of the end of its standard error that are kept at least."""
DECLARE = (
    "The step is confined: files beyond the system's and its own are declared in `paths: {read: [...], write: [...]}`, "
    "endpoints that it connects to in `connect: [...]`."
)
"""What is said where a step may have been refused something by its confinement."""
SAFE_PATH = "/usr/local/bin:/usr/bin:/bin"


@dataclass(frozen=True, slots=True)
class Command:
    """What to run: `program` is the file, by default the first argument, which is then its full path.

    Its environment is `environment` and `secrets`, for each of `files` the path of a private file with that content,
    and TMPDIR, a fresh private folder; nothing else. `directory` None: that folder. `max_bytes` bounds its stdout.
    `started` is called once it runs, with what can still be brought to it; its stdin stays open then. `confinement`
    are the parts that hold it to the system's folders, to itself, and to `reach`. `printed` is told what it writes.
    """

    arguments: Sequence[str]
    program: str | None = None
    environment: Mapping[str, str] = field(default_factory=dict)
    secrets: Mapping[str, Secret] = field(default_factory=dict)
    files: Mapping[str, Secret] = field(default_factory=dict)
    directory: Path | None = None
    stdin: bytes = field(default=b"", repr=False)
    max_bytes: int = 5_000_000
    started: Callable[[Running], None] | None = None
    confinement: Sequence[str] = ()
    reach: Reach = field(default_factory=Reach)
    printed: Printed | None = None


@dataclass(slots=True)
class Written:
    """What a command has written until now: its standard output, and the end of its standard error."""

    stdout: bytearray = field(default_factory=bytearray, repr=False)
    stderr: bytearray = field(default_factory=bytearray, repr=False)
    stderr_cut: bool = False


@dataclass(frozen=True, slots=True)
class Finished:
    """How it ended: an exit code, negative for the signal that killed it, and its standard output."""

    exit_code: int
    stdout: bytes = field(repr=False)


class _Pipes(asyncio.SubprocessProtocol):
    """Collects output within bounds; what is too much is read and thrown away until the end."""

    def __init__(self, max_bytes: int, written: Written, printed: Printed | None) -> None:
        loop = asyncio.get_running_loop()
        self.written = written
        self.too_much: asyncio.Future[None] = loop.create_future()
        self.exited: asyncio.Future[None] = loop.create_future()
        self.closed: asyncio.Future[None] = loop.create_future()
        self._max_bytes, self._printed = max_bytes, printed

    def pipe_data_received(self, fd: int, data: bytes) -> None:
        if self._printed is not None:
            self._printed(fd, data)
        written = self.written
        if fd == 2:
            written.stderr += data
            if len(written.stderr) > 2 * _STDERR_KEPT:
                del written.stderr[:-_STDERR_KEPT]
                written.stderr_cut = True
        elif not self.too_much.done():
            room = self._max_bytes - len(written.stdout)
            written.stdout += data[:room]
            if len(data) > room:
                self.too_much.set_result(None)

    def end_printed(self) -> None:
        """Nothing more is told, whoever still has the other end of a pipe."""
        if (printed := self._printed) is not None:
            self._printed = None
            printed(1, b"")
            printed(2, b"")

    def process_exited(self) -> None:
        self.exited.set_result(None)

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.closed.done():
            self.closed.set_result(None)


class _Report(asyncio.Protocol):
    """What the supervisor says on its status pipe, in lines of JSON."""

    def __init__(self) -> None:
        loop = asyncio.get_running_loop()
        self.facts: dict[str, int] = {}
        self.ended: asyncio.Future[None] = loop.create_future()
        self._replaced: asyncio.Future[int] | None = None
        self._rest = b""

    def expect_replaced(self) -> asyncio.Future[int]:
        """The errno with which the next replacement of files ends; 0 if it succeeds, or nobody is there any more."""
        self._replaced = asyncio.get_running_loop().create_future()
        if self.ended.done():
            self._replaced.set_result(0)
        return self._replaced

    def data_received(self, data: bytes) -> None:
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            fact: dict[str, int] = json.loads(line)
            if "replaced" in fact:
                self._answer(fact["replaced"])
            else:
                self.facts |= fact

    def connection_lost(self, exc: Exception | None) -> None:
        self._answer(0)
        if not self.ended.done():
            self.ended.set_result(None)

    def _answer(self, number: int) -> None:
        if self._replaced is not None and not self._replaced.done():
            self._replaced.set_result(number)


@dataclass(frozen=True, slots=True)
class Running:
    """A command that runs, and what can still be brought to it."""

    _paths: Mapping[str, str]
    _control: asyncio.WriteTransport
    _stdin: asyncio.WriteTransport
    _report: _Report

    def write(self, data: bytes) -> None:
        """Write to its standard input. One that reads nothing any more misses nothing."""
        if not self._stdin.is_closing():
            self._stdin.write(data)

    async def replace_files(self, files: Mapping[str, Secret]) -> None:
        """Put other private files in the place of these, by name; each at once. One replacement at a time.

        Raises StepFailed if that is impossible.
        """
        replaced = self._report.expect_replaced()
        if self._control.is_closing():
            return
        contents = {self._paths[name]: content.reveal() for name, content in files.items()}
        self._control.write(json.dumps({"replace": contents}).encode() + b"\n")
        if number := await replaced:
            raise StepFailed(f"a new credential could not be written to its file: {os.strerror(number)}")


async def run_process(command: Command, written: Written | None = None) -> Finished:
    """Run to the end. Raises StepFailed `error` (cannot start, cannot be stopped) or `output` (too much stdout).

    `written` has what it wrote, also where this raises.

    Cancellation stops it: SIGTERM to all its processes, SIGKILL two seconds later, and only when all are
    confirmed dead does the cancellation go on.
    """
    with ExitStack() as stack:
        work = _folder(temporary_folder(), stack)
        vault = _folder(memory_folder() or temporary_folder(), stack) if command.files else None
        private = [folder for folder in (vault, work) if folder is not None]
        files = {name: str(vault.path / name) for name in command.files} if vault else {}
        stack.callback(supervisor.remove_private, [str(folder.path) for folder in private], list(files.values()))
        directory = command.directory or work.path
        environment = {"TMPDIR": str(work.path), **command.environment}
        program = command.program or command.arguments[0]
        order = {
            "program": program,
            "command": list(command.arguments),
            "environment": {
                **environment,
                **{name: secret.reveal() for name, secret in command.secrets.items()},
                **files,
            },
            "directory": str(directory),
            "files": {path: command.files[name].reveal() for name, path in files.items()},
            "remove": [str(folder.path) for folder in private],
            "grace": GRACE,
            "confinement": order_of(
                command.confinement,
                command.reach,
                read=(
                    *program_paths(program, command.arguments[0]),
                    *((vault.path,) if vault else ()),
                ),
                write=(work.path,),
            ),
        }
        locks = [folder.lock for folder in private]
        return await _supervised(json.dumps(order).encode() + b"\n", command, written or Written(), files, locks)


def _folder(parent: Path, stack: ExitStack) -> PrivateFolder:
    folder = private_folder(parent)
    stack.callback(folder.close)
    stack.callback(supervisor.remove_private, [str(folder.path)], [])
    return folder


async def _supervised(
    order: bytes, command: Command, written: Written, files: Mapping[str, str], locks: Sequence[int]
) -> Finished:
    """`locks` are kept by the supervisor, too: what it uses is nobody's only when it is gone as well."""
    loop = asyncio.get_running_loop()
    control_end, control = os.pipe()
    status, status_end = os.pipe()
    line: asyncio.WriteTransport | None = None
    process: asyncio.SubprocessTransport | None = None
    listening: asyncio.ReadTransport | None = None
    pipes, report = _Pipes(command.max_bytes, written, command.printed), _Report()
    try:
        line, _ = await loop.connect_write_pipe(asyncio.BaseProtocol, os.fdopen(control, "wb", buffering=0))
        process, _ = await loop.subprocess_exec(
            lambda: pipes,
            *(sys.executable, "-I", "-S", supervisor.__file__, *map(str, (control_end, status_end, *locks))),
            pass_fds=(control_end, status_end, *locks),
            env={},
            start_new_session=True,
        )
        os.close(control_end)
        os.close(status_end)
        control_end = status_end = -1
        listening, _ = await loop.connect_read_pipe(lambda: report, os.fdopen(status, "rb", buffering=0))
        status = -1
        line.write(order)
        stdin = _feed(process, command.stdin, close=command.started is None)
        if command.started is not None:
            command.started(Running(files, line, stdin, report))
        await asyncio.wait({pipes.closed, pipes.exited, pipes.too_much}, return_when=asyncio.FIRST_COMPLETED)
        if pipes.too_much.done():
            raise StepFailed(
                f"the command wrote more than {command.max_bytes} bytes to its standard output",
                kind="output",
                hint="write less, or raise `max_bytes`",
            )
        await pipes.exited
        await asyncio.wait({pipes.closed}, timeout=GRACE)
        await report.ended  # the supervisor is over, and nobody else holds the other end
        return _finished(report.facts, pipes, command)
    finally:
        if line is not None and not line.is_closing():
            line.abort()
        if process is not None:
            await _uninterrupted(_stop(process, pipes))
        pipes.end_printed()
        if listening is not None:
            listening.close()
        for fd in (status, control_end, status_end):
            if fd >= 0:
                os.close(fd)


def _feed(process: asyncio.SubprocessTransport, stdin: bytes, *, close: bool) -> asyncio.WriteTransport:
    pipe = process.get_pipe_transport(0)
    assert isinstance(pipe, asyncio.WriteTransport)
    pipe.write(stdin)
    if close:
        pipe.close()
    return pipe


async def _stop(process: asyncio.SubprocessTransport, pipes: _Pipes) -> None:
    """Wait for the supervisor, which ends when all that it started is dead."""
    done, _ = await asyncio.wait({pipes.exited}, timeout=_STOP_LIMIT)
    if not done:
        _log.error("the supervisor of a step's command (pid %d) does not end; it is killed", process.get_pid())
        with suppress(ProcessLookupError):
            process.kill()
        await pipes.exited
    await asyncio.wait({pipes.closed}, timeout=GRACE)
    process.close()


async def _uninterrupted(work: Coroutine[None, None, None]) -> None:
    """Finish the work even if the task is cancelled meanwhile, any number of times; then be cancelled."""
    task = asyncio.create_task(work)
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.wait({task})
        except asyncio.CancelledError as error:
            cancelled = error
    task.result()
    if cancelled is not None:
        raise cancelled


def _finished(report: Mapping[str, int], pipes: _Pipes, command: Command) -> Finished:
    if "unconfined" in report:
        raise StepFailed(
            f"the command cannot be confined, and was not started: {os.strerror(report['unconfined'])}",
            kind="confinement",
            hint="Landlock or seccomp is there, but refuses the rules: is this process in a sandbox of its own?",
        )
    if "failed" in report:
        hint = "is it an executable of this machine, and is `cwd` there?"
        if command.confinement and report["failed"] == errno.EACCES:
            hint += f" Is it a script whose interpreter lies outside of the system's folders? {DECLARE}"
        raise StepFailed(f"the command cannot be started: {os.strerror(report['failed'])}", hint=hint)
    if report.get("left"):
        raise StepFailed(
            "processes of the command survived SIGKILL", hint="look for processes in state D or owned by another user"
        )
    if "left" not in report or not {"exit", "signal"} & report.keys():
        raise StepFailed(
            "the command was stopped from outside",
            hint="its supervisor was killed; other processes that the command had begun may live",
        )
    code = report["exit"] if "exit" in report else -report["signal"]
    return Finished(code, bytes(pipes.written.stdout))
