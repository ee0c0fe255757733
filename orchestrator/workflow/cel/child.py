"""The process in which CEL is compiled and evaluated: native code, bounded by the kernel and not by its good will.

It is started by path, imports nothing of this package, and speaks frames of JSON over its standard input and output,
each with its length before it; an answer also with the processor time that it took. A request that takes more time
than it is given ends the process by SIGPROF, one that takes more memory by an abort or a MemoryError; whoever asked
sees the end of the stream. When its standard input ends, it ends.
"""

from __future__ import annotations

import json
import math
import resource
import signal
import struct
import sys
from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any, BinaryIO

_COMPILED = 2_000
"""How many expressions are kept compiled."""

_ROOTS = ("inputs", "steps", "run", "endpoints", "context", "call", "task", "workflow", "step", "item")


class _Refused(Exception):
    """What the result is, where it is not JSON."""


class Evaluator:
    """The engine, with the expressions that were compiled before."""

    def __init__(self) -> None:
        from cel_expr_python import cel

        self._cel = cel
        self._kinds = {
            "string": cel.Type.STRING,
            "int": cel.Type.INT,
            "double": cel.Type.DOUBLE,
            "bool": cel.Type.BOOL,
            "list": cel.Type.List(cel.Type.DYN),
            "map": cel.Type.Map(cel.Type.STRING, cel.Type.DYN),
            "maps": cel.Type.List(cel.Type.Map(cel.Type.STRING, cel.Type.DYN)),
        }
        self._env = self._environment({})
        self._compiled: dict[str, Any] = {}

    def _environment(self, types: Mapping[str, str]) -> Any:
        """Where whole paths such as `inputs.limit` have the types that are known, and all else is dynamic."""
        known = {path: self._kinds[kind] for path, kind in types.items()}
        return self._cel.NewEnv(variables={**dict.fromkeys(_ROOTS, self._cel.Type.DYN), **known})

    def check(self, expressions: list[str], types: Mapping[str, str]) -> list[dict[str, str]]:
        """For each expression `{"type": name}` of its result, or `{"wrong": words}`."""
        environment = self._environment(types)
        answers = []
        for expression in expressions:
            try:
                answers.append({"type": environment.compile(expression).return_type().name()})
            except Exception as error:  # noqa: BLE001 -- whatever it is, the expression is not right
                answers.append({"wrong": str(error)})
        return answers

    def evaluate(self, expression: str, data: dict[str, Any]) -> dict[str, Any]:
        """`{"value": JSON}`, `{"refused": kind}` for what is not JSON, or `{"fault": words}`."""
        try:
            compiled = self._compiled.get(expression)
            if compiled is None:
                if len(self._compiled) >= _COMPILED:
                    self._compiled.clear()
                compiled = self._compiled[expression] = self._env.compile(expression)
            return {"value": self._plain(compiled.eval(data={root: data.get(root, {}) for root in _ROOTS}))}
        except _Refused as refused:
            return {"refused": str(refused)}
        except Exception as error:  # noqa: BLE001 -- whatever it is, it is the expression that failed
            return {"fault": str(error) or type(error).__name__}

    def _plain(self, value: Any) -> Any:
        """A result as JSON. Null is never fetched: the binding gives away a reference to None that it does not own."""
        kind = value.type()
        if kind == self._cel.Type.NULL:
            return None
        found = value.value()
        if kind == self._cel.Type.ERROR:
            raise RuntimeError(found)
        if isinstance(found, float) and not math.isfinite(found):
            raise _Refused(str(found))
        if isinstance(found, str | int | float):
            return found
        if isinstance(found, list):
            return [self._plain(item) for item in found]
        if isinstance(found, dict):
            return {str(key): self._plain(item) for key, item in found.items()}
        if isinstance(found, datetime):
            return found.isoformat()
        if isinstance(found, timedelta):
            return found.total_seconds()
        raise _Refused("bytes" if isinstance(found, bytes | bytearray) else kind.name().lower())


def serve(source: BinaryIO, sink: BinaryIO, *, most_bytes: int, spent_bytes: int) -> None:
    """Answer each request until the input ends; end as well once more than `spent_bytes` of memory were used."""
    evaluator = Evaluator()
    while len(head := source.read(4)) == 4:
        asked = json.loads(source.read(int.from_bytes(head, "big")))
        signal.setitimer(signal.ITIMER_PROF, asked["seconds"])
        try:
            if "check" in asked:
                answer: Any = {"checked": evaluator.check(asked["check"], asked["types"])}
            else:
                answer = evaluator.evaluate(asked["evaluate"], asked["data"])
        except MemoryError:
            answer = {"fault": "out of memory"}
        answer["last"] = _memory_used() > spent_bytes
        text = json.dumps(answer).encode()
        left, _ = signal.setitimer(signal.ITIMER_PROF, 0)
        if len(text) > most_bytes:
            text = json.dumps({"large": len(text), "last": answer["last"]}).encode()
        sink.write(struct.pack("!Id", len(text), asked["seconds"] - left) + text)
        sink.flush()
        if answer["last"]:
            return


def _memory_used() -> int:
    """The most bytes of memory that this process has had.

    Linux counts in `ru_maxrss` what the process was before it became this program (a copy of the one that started
    it), so there it is asked for `VmHWM` (proc_pid_status(5)).
    """
    try:
        with open("/proc/self/status", "rb") as status:
            found = next(line for line in status if line.startswith(b"VmHWM:"))
        return int(found.split()[1]) * 1024
    except (OSError, StopIteration):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def main(arguments: list[str]) -> None:
    """`child.py FOLDER_OF_THE_ENGINE MEMORY MOST_BYTES SPENT_BYTES`."""
    folder, memory, most, spent = arguments
    sys.path.append(folder)
    for limit, most_of_it in ((resource.RLIMIT_CORE, 0), (resource.RLIMIT_AS, int(memory))):
        try:
            resource.setrlimit(limit, (most_of_it, most_of_it))
        except (OSError, ValueError):  # macOS knows the one of memory and does not obey it
            continue
    serve(sys.stdin.buffer, sys.stdout.buffer, most_bytes=int(most), spent_bytes=int(spent))


if __name__ == "__main__":
    main(sys.argv[1:])
