"""Carrying work to its end although whoever waits for it is cancelled, and telling who is."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


async def to_the_end(work: Coroutine[Any, Any, T]) -> T:
    """What the work gives. A cancellation of the caller waits for its end and is raised then."""
    result, cancelled = await completed(work)
    if cancelled is not None:
        raise cancelled
    return result


async def completed(work: Coroutine[Any, Any, T]) -> tuple[T, asyncio.CancelledError | None]:
    """What the work gives, and the cancellation that came meanwhile. Raises what the work raises."""
    task = asyncio.ensure_future(work)
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.wait({task})
        except asyncio.CancelledError as error:
            cancelled = error
    return task.result(), cancelled


def is_cancelled() -> bool:
    """Whether somebody has cancelled the present task. A CancelledError alone does not tell: anything may raise one."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
