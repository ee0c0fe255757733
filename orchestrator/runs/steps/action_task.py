"""A step's action at work, in a task of its own: whatever it raises, and however it takes being stopped.

An action is code of anybody. It may raise what would end the event loop (SystemExit), be cancelled without
anybody of ours cancelling it, and go on although it was told to stop. None of that may keep its step from ending.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any, TypeVar

from orchestrator.errors import OrchestratorError, StepFailed
from orchestrator.redaction.redactor import Redactor, redact_exception

T = TypeVar("T")

STOP_SECONDS = 30.0
"""How long an action may take to stop. The longest that those of ours take, for a process that ignores SIGTERM,
is shorter."""

_left_behind: set[asyncio.Task[Any]] = set()


@dataclass(slots=True)
class ActionTask:
    """One use of an action, up to its checked output.

    After it was stopped, `error` is what it raised on purpose meanwhile, and `note` tells of anything else that
    it did instead of stopping.
    """

    redactor: Redactor
    error: OrchestratorError | None = field(default=None, init=False)
    note: str = field(default="", init=False)

    async def run(self, work: Callable[[], Coroutine[Any, Any, T]], *, name: str) -> T:
        """What the work gives. Raises what it raises, as StepFailed where that is no Exception.

        When the caller is cancelled the work is, and it has ended or was given up when CancelledError is raised.
        """
        task = asyncio.create_task(self._contained(work), name=name)
        try:
            await asyncio.wait({task})
        except asyncio.CancelledError:
            await self._stop(task)
            raise
        if task.cancelled():
            raise StepFailed("the action was cancelled, and not by this run", hint="see what it waits for")
        return task.result()

    async def _contained(self, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
        try:
            return await work()
        except (Exception, asyncio.CancelledError, KeyboardInterrupt):
            raise
        except BaseException as error:  # noqa: BLE001 -- SystemExit and its like end the step, not the process
            raise StepFailed(redact_exception(error, self.redactor)) from None

    async def _stop(self, task: asyncio.Task[Any]) -> None:
        loop = asyncio.get_running_loop()
        until = loop.time() + STOP_SECONDS
        task.cancel()
        while not task.done() and (left := until - loop.time()) > 0:
            try:
                await asyncio.wait({task}, timeout=left)
            except asyncio.CancelledError:
                continue  # it is being stopped already
        if not task.done():
            self.note = f"the action went on for {STOP_SECONDS:g}s after it was told to stop, and was left behind"
            _leave_behind(task)
        elif not task.cancelled() and (error := task.exception()) is not None:
            if isinstance(error, OrchestratorError):
                self.error = error
            else:
                self.note = f"told to stop, the action raised {redact_exception(error, self.redactor)}"


def _leave_behind(task: asyncio.Task[Any]) -> None:
    """Go on without it. The event loop must not wait for it at its end either, which it would do for ever."""
    _left_behind.add(task)
    task.add_done_callback(_left_behind.discard)
    task.add_done_callback(lambda ended: None if ended.cancelled() else ended.exception())
    asyncio._unregister_task(task)
    task._log_destroy_pending = False  # type: ignore[attr-defined]  # known to be pending: it was just given up
