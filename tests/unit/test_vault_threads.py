"""Threads that stay for the next call: how many there are, what becomes of a call, and when they end."""

from __future__ import annotations

import asyncio
import gc
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Iterator

import pytest

from orchestrator.vault.threads import Threads

NAME = "calls-of-a-test"


def alive() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == NAME]


@pytest.fixture
def threads() -> Iterator[Threads]:
    threads = Threads(3, NAME)
    yield threads
    threads.close()
    assert ended()


def ended() -> bool:
    until = time.monotonic() + 20
    while alive() and time.monotonic() < until:
        time.sleep(0.001)
    return not alive()


async def free(threads: Threads) -> None:
    """Until every thread waits for work: a thread tells its result before it waits again."""
    while len(threads._free) < len(alive()):
        await asyncio.sleep(0.001)


async def test_calls_one_after_another_are_made_by_one_thread(threads: Threads) -> None:
    made_by = set()
    for _ in range(20):
        made_by.add(await threads.run(threading.get_ident))
        await free(threads)
    assert len(made_by) == 1


async def test_calls_side_by_side_take_a_thread_each_up_to_the_limit(threads: Threads) -> None:
    gate, running, most = threading.Event(), 0, 0
    lock = threading.Lock()

    def call() -> None:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        gate.wait(20)
        with lock:
            running -= 1

    calls = [asyncio.create_task(threads.run(call)) for _ in range(10)]
    while running < 3:
        await asyncio.sleep(0.001)
    assert len(alive()) == 3
    gate.set()
    await asyncio.gather(*calls)
    assert most == 3


async def test_waiting_calls_are_made_in_their_order() -> None:
    one, made, gate = Threads(1, NAME), [], threading.Event()
    first = asyncio.create_task(one.run(lambda: gate.wait(20)))
    calls = [asyncio.create_task(one.run(lambda number=number: made.append(number))) for number in range(5)]
    await asyncio.sleep(0)
    gate.set()
    await asyncio.gather(first, *calls)
    assert made == [0, 1, 2, 3, 4]
    one.close()
    assert ended()


async def test_what_a_call_raises_is_raised_where_it_is_awaited(threads: Threads) -> None:
    def call() -> None:
        raise LookupError("gone")

    with pytest.raises(LookupError, match="gone"):
        await threads.run(call)
    assert await threads.run(lambda: 1) == 1, "the thread goes on"


async def test_a_call_that_runs_goes_on_when_nobody_waits_any_more(threads: Threads) -> None:
    begun, gate, done = threading.Event(), threading.Event(), threading.Event()

    def call() -> None:
        begun.set()
        gate.wait(20)
        done.set()

    task = asyncio.create_task(threads.run(call))
    while not begun.is_set():
        await asyncio.sleep(0.001)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    gate.set()
    assert done.wait(20)


async def test_a_call_that_waits_for_its_turn_is_not_made_when_nobody_waits_any_more() -> None:
    one, gate, made = Threads(1, NAME), threading.Event(), []
    first = asyncio.create_task(one.run(lambda: gate.wait(20)))
    second = asyncio.create_task(one.run(lambda: made.append(2)))
    await asyncio.sleep(0)
    second.cancel()
    await asyncio.gather(second, return_exceptions=True)
    gate.set()
    await first
    assert await one.run(lambda: made.append(3)) is None
    assert made == [3]
    one.close()
    assert ended()


async def test_threads_without_work_end_and_others_take_their_place() -> None:
    short = Threads(3, NAME, idle=0.01)
    for _ in range(3):
        assert await short.run(lambda: 1) == 1
        assert await asyncio.to_thread(ended)


async def test_no_call_is_lost_while_threads_come_and_go() -> None:
    """The idle time is as short as a call, so that calls are handed over while a thread gives up waiting."""
    nervous = Threads(4, NAME, idle=0.0002)

    async def caller(number: int) -> int:
        total = 0
        for turn in range(150):
            total += await nervous.run(lambda: 1)
            if turn % 3 == number % 3:
                await asyncio.sleep(0.0003)
        return total

    assert sum(await asyncio.wait_for(asyncio.gather(*map(caller, range(6))), 60)) == 6 * 150
    assert await asyncio.to_thread(ended)
    assert (nervous._alive, nervous._free) == (0, [])


async def test_closing_ends_what_is_idle_and_leaves_a_call_to_its_end() -> None:
    threads, gate = Threads(2, NAME), threading.Event()
    running = asyncio.create_task(threads.run(lambda: gate.wait(20)))
    await threads.run(lambda: None)
    threads.close()
    while len(alive()) > 1:
        await asyncio.sleep(0.001)
    assert await threads.run(lambda: 1) == 1, "what is asked for all the same is done"
    gate.set()
    assert await running
    assert await asyncio.to_thread(ended)


async def test_an_idle_thread_holds_nothing_of_its_last_call(threads: Threads) -> None:
    class Held:
        pass

    held = Held()
    gone = weakref.ref(held)
    await threads.run(lambda held=held: held)
    del held
    await free(threads)
    await asyncio.sleep(0)  # the loop itself holds what has just woken us up
    gc.collect()
    assert gone() is None


@pytest.mark.parametrize("call", ["gate.wait", "lambda: 1"], ids=["busy", "idle"])
def test_the_process_ends_whatever_its_threads_do(call: str) -> None:
    code = f"""
import asyncio, threading
from orchestrator.vault.threads import Threads
gate, threads = threading.Event(), Threads(2, "calls")
async def main():
    try:
        await asyncio.wait_for(threads.run({call}), 0.2)
    except TimeoutError:
        pass
asyncio.run(main())
print("over")
"""
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "over\n", "")
