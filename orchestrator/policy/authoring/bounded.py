"""Rules evaluated in a process of their own, within a time and a memory.

regorus knows no limit of either, and holds the interpreter's lock while it evaluates: nothing here could interrupt it.
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from orchestrator.errors import UsageError
from orchestrator.jsontypes import JsonValue
from orchestrator.policy.authoring.child import UNDEFINED
from orchestrator.policy.engines.rego.folder import PolicySource

MEMORY = 1 << 30
"""Address space of the child, in bytes."""

_SPARE_SECONDS = 5
"""Processor time of the child beyond its deadline: it is ended by us, unless we are not there any more."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What became of one rule: its value, or an error; `covered` are the lines of each file that it went through."""

    rule: str
    value: JsonValue = None
    is_undefined: bool = False
    error: str = ""
    covered: Mapping[str, Sequence[int]] = field(default_factory=dict, repr=False)


def evaluate(
    modules: Sequence[PolicySource], data: PolicySource | None, rules: Sequence[str], *, seconds: float
) -> Iterator[Answer]:
    """The answer of each rule, as they come. Rules that there is no time for any more have none.

    A rule at which the evaluator dies has an error, and those behind it are evaluated all the same.
    """
    deadline = time.monotonic() + seconds
    left = list(rules)
    request = {"modules": [(source.name, source.text) for source in modules], "data": data.text if data else None}
    while left:
        with _child({**request, "rules": left}, seconds) as child:
            for line in _lines(child, deadline):
                left.pop(0)
                yield _answer(json.loads(line))
            if not left:
                return
            if time.monotonic() >= deadline:
                yield Answer(left[0], error=f"has no answer yet after {seconds:g} s, the time of the whole run")
                return
        yield Answer(left.pop(0), error=_died(child.returncode))


def _answer(raw: Mapping[str, Any]) -> Answer:
    value = raw.get("value")
    return Answer(raw["rule"], value, value == UNDEFINED, raw.get("error", ""), raw["covered"])


@contextmanager
def _child(request: Mapping[str, Any], seconds: float) -> Iterator[subprocess.Popen[bytes]]:
    """A child that has read a request, without our environment and our terminal's signals; killed at the end."""
    spec = find_spec("regorus")
    if spec is None or spec.origin is None:
        raise UsageError("the evaluator of Rego is not installed", hint="install the package gordon-to-regorus")
    folder = Path(spec.origin).parent.parent
    limits = [str(MEMORY), str(int(seconds) + _SPARE_SECONDS)]
    child = subprocess.Popen(  # noqa: S603 -- our own file
        [sys.executable, "-I", "-S", str(Path(__file__).with_name("child.py")), str(folder), *limits],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={"TZ": "UTC"},
        cwd="/",
        start_new_session=True,
        bufsize=0,
    )
    assert child.stdin is not None
    assert child.stdout is not None
    try:
        with child.stdin, child.stdout:
            try:
                child.stdin.write(json.dumps(request).encode())
                child.stdin.close()
            except BrokenPipeError:
                pass  # it died, as will be seen
            yield child
    finally:
        if child.poll() is None:
            _end(child)
        child.wait()


def _end(child: subprocess.Popen[bytes]) -> None:
    try:
        child.wait(timeout=0.5)  # at the end of its output it ends by itself
    except subprocess.TimeoutExpired:
        child.kill()


def _lines(child: subprocess.Popen[bytes], deadline: float) -> Iterator[bytes]:
    """The lines of its output until it ends, or the time does."""
    assert child.stdout is not None
    readable = select.poll()
    readable.register(child.stdout, select.POLLIN)
    rest = b""
    while (left := deadline - time.monotonic()) > 0:
        if not readable.poll(left * 1000):
            return
        part = os.read(child.stdout.fileno(), 1 << 20)
        if not part:
            return
        *lines, rest = (rest + part).split(b"\n")
        yield from lines


def _died(status: int) -> str:
    if status < 0:
        return f"the evaluator died of it ({signal.Signals(-status).name}): it may take {MEMORY >> 20} MiB of memory"
    return f"the evaluator ended over it with exit status {status}"
