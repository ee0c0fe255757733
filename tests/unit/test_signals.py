"""A signal is heard of however busy the event loop is."""

from __future__ import annotations

import asyncio
import os
import signal

import pytest

from orchestrator.signals import EXIT_CODES, handled

WAKINGS = 5000
"""More than the pipe holds through which a loop is woken."""


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # the signal's own byte has no place
@pytest.mark.parametrize("number", EXIT_CODES, ids=lambda number: number.name)
def test_a_signal_among_very_many_wakings_is_not_lost(number: signal.Signals) -> None:
    async def go() -> list[signal.Signals]:
        came: list[signal.Signals] = []
        loop = asyncio.get_running_loop()
        with handled(came.append):
            for _ in range(WAKINGS):
                loop.call_soon_threadsafe(lambda: None)
            os.kill(os.getpid(), number)
            async with asyncio.timeout(10):
                while not came:
                    await asyncio.sleep(0.01)
        return came

    assert asyncio.run(go()) == [number]


@pytest.mark.parametrize("number", EXIT_CODES, ids=lambda number: number.name)
def test_a_signal_wakes_a_loop_that_waits(number: signal.Signals) -> None:
    async def go() -> signal.Signals:
        came: asyncio.Future[signal.Signals] = asyncio.get_running_loop().create_future()
        with handled(came.set_result):
            killer = await asyncio.create_subprocess_exec("/bin/sh", "-c", f"sleep 0.2; kill -{number} {os.getpid()}")
            async with asyncio.timeout(10):
                found = await came
            await killer.wait()
        return found

    assert asyncio.run(go()) == number


def test_who_had_the_signals_before_has_them_again() -> None:
    heard: list[int] = []
    before = {number: signal.signal(number, lambda given, frame: heard.append(given)) for number in EXIT_CODES}
    try:
        asyncio.run(_nothing_happens())
        for number in EXIT_CODES:
            os.kill(os.getpid(), number)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    assert heard == list(EXIT_CODES)


async def _nothing_happens() -> None:
    with handled(lambda number: None):
        await asyncio.sleep(0)
