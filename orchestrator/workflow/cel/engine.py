"""The engine of expressions as this process uses it: another process, which may be killed.

Google's CEL is native code. It bounds the depth of an expression and the rounds of its loops, but neither the memory
nor the time that they take (a text doubled in each of 25 loops is a terabyte), it holds the interpreter's lock
meanwhile, and its Python binding gives away references to None until the interpreter aborts. So it runs in one
child process for each process that needs it, under limits of the kernel. What only names a value needs no engine
(see `expressions.evaluate`).
"""

from __future__ import annotations

import atexit
import json
import os
import select
import signal
import struct
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from orchestrator.errors import InvalidExpression
from orchestrator.workflow.cel.failures import reason, wrong
from orchestrator.workflow.cel.syntax import check_size

SECONDS = 2.0
"""Processor time of all expressions of one value, such as the `with` of a step.

A `map` or `filter` over 5,000 rows takes half a second, growing by the square."""

MEMORY = 1 << 30
"""Address space of the child, in bytes."""

MAX_DATA = 16 << 20
"""Bytes of JSON that one expression may look at, and that it may give."""

_SPENT = 256 << 20
"""A child that once used so many bytes ends after its answer, so that memory is not held for ever."""

_WALL_SECONDS = 60
"""When a child that gives no answer is killed: it may wait for a processor longer than it may use one."""


_SECONDS_OF_A_CHECK = 0.02
"""Given to a file for each of its expressions; the largest takes about half of it to compile."""

_HEAD = struct.Struct("!Id")
"""Of an answer: its length, and the seconds that it took."""


@dataclass(slots=True)
class Budget:
    """Processor time that is left, in seconds."""

    left: float = SECONDS


@dataclass(frozen=True, slots=True)
class Checked:
    """What the engine says of an expression: the type of its result (`INT`, `DYN`, `LIST<...>`), or what is wrong."""

    type: str = ""
    message: str = ""
    hint: str = ""


def check(expressions: Sequence[str], types: Mapping[str, str]) -> list[Checked]:
    """Each expression compiled, where paths such as `inputs.limit` have the given types. All must be of legal size.

    Raises InvalidExpression where the engine gives no answer.
    """
    for cel in expressions:
        check_size(cel)
    time = Budget(SECONDS + _SECONDS_OF_A_CHECK * len(expressions))
    answers = _engine.ask({"check": list(expressions), "types": dict(types)}, time, "an expression")["checked"]
    return [
        Checked(answer["type"]) if "type" in answer else Checked("", *wrong(answer["wrong"], cel))
        for cel, answer in zip(expressions, answers, strict=True)
    ]


def execute(cel: str, data: Mapping[str, Any], time: Budget) -> Any:
    """The result of an expression as JSON, and `time` is less by what it took.

    Raises InvalidExpression, which says why and never shows a value.
    """
    check_size(cel)
    answer = _engine.ask({"evaluate": cel, "data": data}, time, f"`{cel}`")
    if "large" in answer:
        raise InvalidExpression(
            f"`{cel}` gives {answer['large']} bytes of JSON; the limit is {MAX_DATA}", hint=_LET_IT_BE_DONE_BEFORE
        )
    if "refused" in answer:
        kind = answer["refused"]
        number = kind.removeprefix("-") in ("nan", "inf")
        raise InvalidExpression(
            f"`{cel}` gives {kind}, which is not JSON", hint="look for a division by 0.0" if number else None
        )
    if "fault" in answer:
        why, hint = reason(answer["fault"], cel)
        raise InvalidExpression(f"`{cel}` cannot be evaluated: {why}", hint=hint)
    return answer["value"]


_LET_IT_BE_DONE_BEFORE = (
    "let SQL or the service pick and shape the rows, or compute it in a step of the action `python`"
)


class _Ended(Exception):
    """The child is gone, with the exit status that `subprocess` gives."""

    def __init__(self, status: int) -> None:
        super().__init__()
        self.status = status


class Engine:
    """The child process, started when it is first needed. Threads take turns; after a fork there is a new one."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._child: subprocess.Popen[bytes] | None = None
        self._owner = 0

    def ask(self, request: Mapping[str, Any], time: Budget, shown: str) -> dict[str, Any]:
        """The answer to a request. Raises InvalidExpression, which shows `shown`, where the child ends over it."""
        frame = json.dumps({**request, "seconds": max(time.left, 0.01)}).encode()
        if len(frame) > MAX_DATA:
            raise InvalidExpression(
                f"{shown} looks at {len(frame)} bytes of JSON; the limit is {MAX_DATA}", hint=_LET_IT_BE_DONE_BEFORE
            )
        with self._lock:
            child = self._running()
            try:
                _write(child, frame)
                size, spent = _HEAD.unpack(_exactly(child, _HEAD.size))
                time.left -= spent
                answer = json.loads(_exactly(child, size))
            except _Ended as ended:
                self._forget()
                raise _too_much(ended.status, shown) from None
            except BaseException:
                child.kill()  # between two frames: nobody could tell the answer from the next one
                self._forget()
                raise
            if answer["last"]:
                self._forget()
        found: dict[str, Any] = answer
        return found

    def close(self) -> None:
        """End the child, if there is one; the next request starts another."""
        with self._lock:
            if self._owner == os.getpid():
                self._forget()

    def _running(self) -> subprocess.Popen[bytes]:
        if self._owner != os.getpid():
            self._child = None
        if self._child is not None and self._child.poll() is not None:
            self._forget()
        if self._child is None:
            self._child, self._owner = _started(), os.getpid()
            atexit.register(self.close)  # for tidiness: the child ends by itself when its input does
        return self._child

    def _forget(self) -> None:
        child, self._child = self._child, None
        if child is not None:
            _close(child)


def _started() -> subprocess.Popen[bytes]:
    """A new child: without our environment, our folder, our terminal's signals and our descriptors."""
    spec = find_spec("cel_expr_python")
    if spec is None or not spec.submodule_search_locations:
        raise InvalidExpression(
            "the engine of expressions is not installed", hint="install the package cel-expr-python"
        )
    folder = Path(next(iter(spec.submodule_search_locations))).parent
    limits = [str(each) for each in (MEMORY, MAX_DATA, _SPENT)]
    try:
        return subprocess.Popen(  # noqa: S603 -- our own file
            [sys.executable, "-I", "-S", str(Path(__file__).with_name("child.py")), str(folder), *limits],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={"TZ": "UTC"},
            cwd="/",
            start_new_session=True,
            bufsize=0,
        )
    except OSError as error:
        raise InvalidExpression(
            f"the engine of expressions cannot be started: {error.strerror}", hint="look at the limits of the process"
        ) from error


def _close(child: subprocess.Popen[bytes]) -> int:
    for pipe in (child.stdin, child.stdout):
        if pipe is not None:
            pipe.close()
    try:
        return child.wait(timeout=_WALL_SECONDS)
    except subprocess.TimeoutExpired:
        child.kill()
        return child.wait()


def _write(child: subprocess.Popen[bytes], frame: bytes) -> None:
    assert child.stdin is not None
    rest = memoryview(len(frame).to_bytes(4, "big") + frame)
    try:
        while rest:
            rest = rest[os.write(child.stdin.fileno(), rest) :]
    except BrokenPipeError:
        raise _Ended(_close(child)) from None


def _exactly(child: subprocess.Popen[bytes], size: int) -> bytes:
    assert child.stdout is not None
    parts: list[bytes] = []
    answered = select.poll()
    answered.register(child.stdout, select.POLLIN)
    while size:
        if not answered.poll(_WALL_SECONDS * 1000):
            child.kill()
        part = os.read(child.stdout.fileno(), min(size, 1 << 20))
        if not part:
            raise _Ended(_close(child))
        parts.append(part)
        size -= len(part)
    return b"".join(parts)


def _too_much(status: int, shown: str) -> InvalidExpression:
    if -status in (signal.SIGPROF, signal.SIGKILL):
        why = f"takes too long: the expressions of one value have {SECONDS:g} s of processor time"
    else:
        why = f"takes more than {MEMORY >> 20} MiB of memory, or more than its engine can bear"
    return InvalidExpression(f"{shown} {why}", hint=f"{_LET_IT_BE_DONE_BEFORE}; or write it more simply")


_engine = Engine()
