"""When a request to Vault, or another issuer, is tried again: a decision over the error and the time left."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import TypeVar

from tenacity import AsyncRetrying, RetryCallState, retry_if_exception, wait_exponential_jitter

from orchestrator.clock import Clock
from orchestrator.vault.faults import Outcome, Unserved

T = TypeVar("T")

_log = logging.getLogger(__name__)

_TELL_AFTER = 1.0
"""Seconds of trying in vain after which a person is told what is being waited for."""

_BACKOFF = wait_exponential_jitter(multiplier=0.1, max=5.0, jitter=0.1)


def is_retryable(error: BaseException, *, repeatable: bool) -> bool:
    """Whether to try again. What is not `repeatable` is only tried again if it was certainly not done."""
    if not isinstance(error, Unserved):
        return False
    return error.outcome is Outcome.NOT_DONE or repeatable


def wait_before_retry(state: RetryCallState) -> float:
    """Seconds to wait: exponential with jitter, capped, and never less than the server's own `Retry-After`."""
    error = state.outcome.exception() if state.outcome else None
    asked = error.retry_after if isinstance(error, Unserved) else None
    return max(_BACKOFF(state), asked or 0.0)


async def retrying(
    call: Callable[[], Awaitable[T]],
    *,
    clock: Clock,
    deadline: float,
    repeatable: bool,
    stop: asyncio.Event | None = None,
) -> T:
    """Call until it succeeds, is refused, would outlast `deadline` (monotonic seconds), or `stop` is set.

    Raises the last error. A call that runs is never interrupted from here.
    """
    begun = clock.monotonic()
    try:
        return await call()
    except Unserved as error:
        failed = error
    return await _again(failed, call, begun, clock=clock, deadline=deadline, repeatable=repeatable, stop=stop)


async def _again(
    failed: Unserved,
    call: Callable[[], Awaitable[T]],
    begun: float,
    *,
    clock: Clock,
    deadline: float,
    repeatable: bool,
    stop: asyncio.Event | None,
) -> T:
    """What follows when the first call has failed: only then is there something to decide."""

    def exhausted(state: RetryCallState) -> bool:
        return (stop is not None and stop.is_set()) or clock.monotonic() + state.upcoming_sleep >= deadline

    async def pause(seconds: float) -> None:
        if stop is None:
            await asyncio.sleep(seconds)
            return
        try:
            async with asyncio.timeout(seconds):
                await stop.wait()
        except TimeoutError:
            pass

    told = False

    def tell(state: RetryCallState) -> None:
        nonlocal told
        now, error = clock.monotonic(), state.outcome.exception() if state.outcome else None
        if not told and isinstance(error, Unserved) and now - begun >= _TELL_AFTER:
            told = True
            _log.warning("%s; trying again for up to %.0fs", error.message, deadline - now)

    async for attempt in AsyncRetrying(
        retry=retry_if_exception(lambda error: is_retryable(error, repeatable=repeatable)),
        wait=wait_before_retry,
        stop=exhausted,
        sleep=pause,
        before_sleep=tell,
        reraise=True,
    ):
        with attempt:
            if attempt.retry_state.attempt_number == 1:
                raise failed
            return await call()
    raise AssertionError("unreachable: the last error is raised again")
