"""The process that a `python` step runs in: one request on standard input, one answer on standard output.

The request is one line of JSON. Lines that follow it bring credentials that are issued anew.
The function itself finds an empty standard input, and whatever it (or a program that it starts) prints goes
to standard error, so that it cannot corrupt the answer.
"""

from __future__ import annotations

import asyncio
import importlib
import inspect
import json
import os
import sys
import threading
from collections.abc import Iterator
from typing import Any

from orchestrator.actions.process.python_credentials import Credentials
from orchestrator.actions.process.python_modules import ModuleFile, hold_imports


def main() -> None:
    """Read, call, answer."""
    lines = _lines(os.dup(0))
    request = json.loads(next(lines))
    request["credentials"] = credentials = Credentials(request["credentials"])
    # A thread that blocks in a read and nothing else: it ends with the process, whatever it waits for.
    threading.Thread(target=_take_anew, args=(lines, credentials), daemon=True).start()
    answers = os.dup(1)
    os.dup2(2, 1)
    nowhere = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nowhere, 0)
    os.close(nowhere)
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]  # somebody may follow what it prints
    answer = _answer(request)
    sys.stdout.flush()
    with open(answers, "wb") as stream:
        stream.write(answer)


def _lines(fd: int) -> Iterator[bytes]:
    data = b""
    while chunk := os.read(fd, 65536):
        *whole, data = (data + chunk).split(b"\n")
        yield from whole


def _take_anew(lines: Iterator[bytes], credentials: Credentials) -> None:
    for line in lines:
        credentials.take(**json.loads(line))


def _answer(request: dict[str, Any]) -> bytes:
    try:
        value = _call(request)
    except Exception as error:  # noqa: BLE001 -- becomes the answer; the parent redacts and raises it
        hint = None
        if isinstance(error, ImportError | AttributeError):
            hint = "is the module in one of the directories of `path`, or installed where the orchestrator is?"
        return _problem("error", error, hint)
    try:
        return json.dumps({"value": value}, allow_nan=False).encode()
    except (TypeError, ValueError, RecursionError) as error:
        return _problem("output", error, None)


def _call(request: dict[str, Any]) -> Any:
    module, _, name = request["callable"].partition(":")
    hold_imports(module, request["path"], [ModuleFile(**shown) for shown in request["modules"]])
    sys.path[:0] = request["path"]
    function: Any = importlib.import_module(module)
    for part in name.split("."):
        function = getattr(function, part)
    arguments = dict(request["arguments"])
    accepted = inspect.signature(function).parameters
    for offered in ("credentials", "context"):
        if offered in accepted:
            arguments[offered] = request[offered]
    result = function(**arguments)
    return asyncio.run(_awaited(result)) if inspect.isawaitable(result) else result


async def _awaited(result: Any) -> Any:
    return await result


def _problem(kind: str, error: BaseException, hint: str | None) -> bytes:
    # As it is: what is cut or folded here could not be recognised as a secret any more.
    text = str(error)
    message = f"{type(error).__name__}: {text}" if text else type(error).__name__
    return json.dumps({"kind": kind, "message": message, "hint": hint}).encode()


if __name__ == "__main__":
    main()
