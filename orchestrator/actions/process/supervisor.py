"""The small process between the orchestrator and a step's command. Stand-alone: it imports only the standard library.

It starts the command, waits, and does not end before every process that descends from the command is
dead, also those that moved to another session: it is their subreaper (prctl(2), Linux), so orphans become
its children. It stops them all when its control pipe closes, and so also when the orchestrator is killed.
On other systems only the command's own process group is covered.

Control pipe: one line of JSON (`command`, `environment`, `directory`, `files`, `remove`, `grace`, and `confinement`,
the rules that the command is held to, or null), then it stays open; each further line
(`{"replace": {path: content}}`) puts other files in the place of some. Status pipe: lines of JSON,
`{"replaced": errno}` after each of these, `{"failed": errno}` or `{"unconfined": errno}`, `{"exit": code}` or
`{"signal": number}`, and `{"left": count}` at the end. The credentials travel in these lines, so they are in
nobody's arguments and in no environment but the command's own.
"""

from __future__ import annotations

import errno
import json
import os
import resource
import select
import signal
import stat
import struct
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE, _PR_SET_CHILD_SUBREAPER = 1, 4, 36
_PR_SET_SECCOMP, _PR_SET_NO_NEW_PRIVS, _SECCOMP_MODE_FILTER = 22, 38, 2
_PR_CAPBSET_DROP, _PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL = 24, 47, 4
_KEPT_CAPABILITIES = frozenset((0, 1, 3, 4, 5, 6, 7, 8, 10))
"""capabilities(7) of files' owners, signals and users, and of low ports. The others reach all of the machine: with
CAP_PERFMON or CAP_SYS_ADMIN the environment of every process can be read in /proc, whatever Landlock says."""
_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_BENEATH, _PORT = 1, 2
_OF_FILES = 0b1100_0000_0000_0111
"""Landlock's rights on what is no folder: execute, write, read, truncate, commands to devices."""
_KILL_LIMIT = 5.0
"""Seconds to wait for processes that got SIGKILL; longer means that they hang in the kernel or belong to root."""


def _prctl() -> Callable[[int, int], object] | None:
    if sys.platform != "linux":
        return None
    import ctypes

    function = ctypes.CDLL(None).prctl
    return lambda option, value: function(option, ctypes.c_ulong(value), 0, 0, 0)


def _confine(rules: dict[str, Any]) -> None:
    """Hold this process, and all that it starts, to the rules. Raises OSError where any of them is not in force.

    landlock(7), seccomp(2): it cannot be undone, and needs no privilege but that none is gained any more.
    """
    import ctypes

    library = ctypes.CDLL(None, use_errno=True)

    def call(function: Any, *arguments: Any) -> int:
        if (answer := int(function(*arguments))) < 0:
            raise OSError(ctypes.get_errno(), "confinement")
        return answer

    def add(ruleset: int, kind: int, rule: bytes) -> None:
        call(library.syscall, _ADD_RULE, ruleset, kind, rule, 0)

    library.prctl(_PR_CAP_AMBIENT, *map(ctypes.c_ulong, (_PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0)))
    for capability in range(64):  # refused for one that is unknown, and to whoever has none to give away
        if capability not in _KEPT_CAPABILITIES:
            library.prctl(_PR_CAPBSET_DROP, *map(ctypes.c_ulong, (capability, 0, 0, 0)))
    call(library.prctl, _PR_SET_NO_NEW_PRIVS, *map(ctypes.c_ulong, (1, 0, 0, 0)))
    if rules["files"]:
        size = rules["size"]
        handled = struct.pack("=QQQ", rules["files"], rules["net"], rules["scoped"])[:size]
        ruleset = call(library.syscall, _CREATE_RULESET, handled, ctypes.c_size_t(size), 0)
        for path, rights in rules["paths"]:
            try:
                fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
            except (FileNotFoundError, NotADirectoryError, PermissionError):
                continue
            rights &= -1 if stat.S_ISDIR(os.fstat(fd).st_mode) else _OF_FILES
            if rights:
                add(ruleset, _BENEATH, struct.pack("=Qi", rights, fd))
            os.close(fd)
        for port in rules["ports"]:
            add(ruleset, _PORT, struct.pack("=QQ", rules["connect"], port))
        call(library.syscall, _RESTRICT_SELF, ruleset, 0)
        os.close(ruleset)
    if rules["seccomp"]:
        code = ctypes.create_string_buffer(bytes.fromhex(rules["seccomp"]))
        length = len(rules["seccomp"]) // 16  # hexadecimal digits of a `struct sock_filter`
        program = struct.pack("@HP", length, ctypes.addressof(code))
        call(library.prctl, _PR_SET_SECCOMP, ctypes.c_ulong(_SECCOMP_MODE_FILTER), program, 0, 0)


class _Tree:
    """The command and all that descends from it."""

    def __init__(self, main: int, wake: int, *, adopts: bool) -> None:
        self.main, self._wake, self._adopts = main, wake, adopts
        self.status: int | None = None

    def reap(self) -> bool:
        """Collect every child that has ended; whether any child is left, which the kernel alone knows for sure."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return False
            if pid == 0:
                return True
            if pid == self.main:
                self.status = status

    def left(self) -> int:
        """How many processes still live."""
        children = self.reap()
        if self._adopts:
            return len(_descendants(os.getpid())) or 1 if children else 0
        try:
            os.killpg(self.main, 0)
        except ProcessLookupError:
            return 0
        except PermissionError:
            return 1
        return 1

    def signal(self, number: int) -> None:
        if not self._adopts:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(self.main, number)
            return
        for pid in _descendants(os.getpid()):
            with suppress(ProcessLookupError, PermissionError):
                os.kill(pid, number)

    def wait_until_gone(self, seconds: float, resend: int | None = None) -> bool:
        """Wait until nothing lives; `resend` is sent again and again to what is born meanwhile."""
        end = time.monotonic() + seconds
        while self.left():
            if time.monotonic() >= end:
                return False
            if resend is not None:
                self.signal(resend)
            select.select([self._wake], [], [], 0.05)
            _drain(self._wake)
        return True


def _descendants(root: int) -> list[int]:
    """Living processes whose chain of parents leads to `root`, from /proc/PID/stat (proc(5)); zombies left out."""
    parents: dict[int, int] = {}
    dead = set()
    for name in os.listdir("/proc"):
        if name.isdigit():
            with suppress(OSError), open(f"/proc/{name}/stat", "rb") as file:
                state, parent = file.read().rpartition(b")")[2].split()[:2]
                parents[int(name)] = int(parent)
                if state in (b"Z", b"X"):
                    dead.add(int(name))
    found, frontier = [], {root}
    while frontier:
        frontier = {pid for pid, parent in parents.items() if parent in frontier}
        found += [pid for pid in frontier if pid not in dead]
    return found


def _drain(fd: int) -> None:
    with suppress(BlockingIOError):
        while os.read(fd, 512):
            pass


class _Control:
    """The lines of JSON that come through the control pipe."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.early: list[dict[str, Any]] = []
        """What came together with the first line."""
        self._rest = b""

    def receive(self) -> list[dict[str, Any]] | None:
        """What a single read completes, after waiting for data; None when the pipe is closed."""
        chunk = os.read(self.fd, 65536)
        if not chunk:
            return None
        *lines, self._rest = (self._rest + chunk).split(b"\n")
        return [json.loads(line) for line in lines]

    def order(self) -> dict[str, Any] | None:
        """The first line; None if the pipe is closed before it came."""
        while (received := self.receive()) is not None:
            if received:
                order, *self.early = received
                return order
        return None


def _start(order: dict[str, Any], prctl: Callable[[int, int], object] | None) -> tuple[int, str, int]:
    """Fork, confine and execute; the command's process id, and what prevented it (`failed`, `unconfined`) by what
    errno, or 0."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            signal.set_wakeup_fd(-1)
            for each in (
                signal.SIGTERM,
                signal.SIGINT,
                signal.SIGQUIT,
                signal.SIGHUP,
                signal.SIGCHLD,
                signal.SIGPIPE,
                signal.SIGXFSZ,
            ):
                signal.signal(each, signal.SIG_DFL)
            os.setsid()
            if prctl is not None:
                prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
            os.chdir(order["directory"])
            if order["confinement"] is not None:
                try:
                    _confine(order["confinement"])
                except OSError as error:
                    os.write(writer, f"unconfined {error.errno or errno.EINVAL}".encode())
                    os._exit(127)
            os.execve(order["program"], order["command"], order["environment"])  # noqa: S606 -- its purpose
        except OSError as error:
            os.write(writer, f"failed {error.errno or errno.EINVAL}".encode())
        except ValueError:
            os.write(writer, f"failed {errno.EINVAL}".encode())
        finally:
            os._exit(127)
    os.close(writer)
    what, _, number = os.read(reader, 32).decode().partition(" ")
    os.close(reader)
    return pid, what, int(number or 0)


def _write_files(files: dict[str, str]) -> None:
    for path, content in files.items():
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(content.encode("utf-8", "surrogateescape"))


def _replace_files(files: dict[str, str]) -> int:
    """Each file at once: whoever opens it finds the old content or the new. Returns 0, or the errno of the failure."""
    try:
        for path, content in files.items():
            _write_files({f"{path}.new": content})
            os.replace(f"{path}.new", path)
    except OSError as error:
        return error.errno or errno.EIO
    return 0


def remove_private(directories: list[str], files: list[str]) -> None:
    """Overwrite and remove credential files, then remove the directories with all that is in them."""
    for path in files:
        with suppress(OSError):
            with open(os.open(path, os.O_WRONLY | os.O_NOFOLLOW), "wb") as file:
                file.write(b"\0" * os.fstat(file.fileno()).st_size)
                file.flush()
                os.fsync(file.fileno())
            os.unlink(path)
    for directory in directories:
        if os.path.isdir(directory):
            import shutil

            shutil.rmtree(directory, ignore_errors=True)


def _supervise(order: dict[str, Any], control: _Control, report: Callable[[str, int], None]) -> None:
    prctl = _prctl()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if prctl is not None:
        prctl(_PR_SET_DUMPABLE, 0)
        prctl(_PR_SET_CHILD_SUBREAPER, 1)
    wake, waker = os.pipe()
    for fd in (wake, waker):
        os.set_blocking(fd, False)
    signal.set_wakeup_fd(waker, warn_on_full_buffer=False)
    stopped = []
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda number, _frame: stopped.append(number))
    signal.signal(signal.SIGCHLD, lambda _number, _frame: None)
    _write_files(order["files"])
    pid, prevented, problem = _start(order, prctl)
    if problem:
        report(prevented, problem)
    nowhere = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(nowhere, fd)
    for message in control.early:
        report("replaced", _replace_files(message["replace"]))
    tree = _Tree(pid, wake, adopts=prctl is not None)
    tree.reap()
    while tree.status is None and not stopped:
        ready, _, _ = select.select([control.fd, wake], [], [])
        if control.fd in ready:
            received = control.receive()
            if received is None:
                break
            for message in received:
                report("replaced", _replace_files(message["replace"]))
        _drain(wake)
        tree.reap()
    if tree.left():
        tree.signal(signal.SIGTERM)
        tree.signal(signal.SIGCONT)
        if not tree.wait_until_gone(order["grace"]):
            tree.wait_until_gone(_KILL_LIMIT, resend=signal.SIGKILL)
    remaining = tree.left()
    if tree.status is not None and not problem:
        code = os.waitstatus_to_exitcode(tree.status)
        report(*(("exit", code) if code >= 0 else ("signal", -code)))
    report("left", remaining)


def main() -> None:
    """Entry point; the arguments are the numbers of the control and of the status descriptor, and of locks to keep."""
    control, status, *locks = map(int, sys.argv[1:])
    for fd in (control, status, *locks):
        os.set_inheritable(fd, False)

    def report(what: str, value: int) -> None:
        with suppress(BrokenPipeError):
            os.write(status, json.dumps({what: value}).encode() + b"\n")

    pipe = _Control(control)
    order = pipe.order()
    if order is None:
        return
    try:
        _supervise(order, pipe, report)
    finally:
        remove_private(order["remove"], list(order["files"]))


if __name__ == "__main__":
    main()
