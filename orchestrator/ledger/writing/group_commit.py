"""One writer thread, and the queue in front of it: whatever waits is committed together, with one fsync.

Nothing is delayed to make a batch: while one transaction is being committed the next batch gathers.
"""

from __future__ import annotations

import asyncio
import threading
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from queue import Empty, SimpleQueue

from orchestrator.errors import LedgerError
from orchestrator.ledger.writing.committer import Committer, Outcome
from orchestrator.ledger.writing.jobs import Job

MAX_BATCH = 256
"""Jobs in one transaction, so that other processes get their turn."""


@dataclass(frozen=True, slots=True, eq=False)
class Ticket:
    """A job with the future that its caller awaits."""

    job: Job
    loop: asyncio.AbstractEventLoop
    future: asyncio.Future[int]


class GroupCommit:
    """Takes jobs from any event loop. A job that was taken is done even if its caller is cancelled."""

    def __init__(self, committer: Committer) -> None:
        self._committer = committer
        self._queue: SimpleQueue[Ticket | None] = SimpleQueue()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._closed = False

    @property
    def has_begun(self) -> bool:
        """Whether anything was ever given to it."""
        return self._thread is not None

    async def submit(self, job: Job) -> int:
        """Wait until the job is durable and return the run's fence. Raises what the job raises, or LedgerError."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[int] = loop.create_future()
        with self._lock:
            if self._closed:
                raise LedgerError("the ledger is closed", hint="Open it again with open_ledger.")
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="ledger-writer", daemon=True)
                self._thread.start()
            self._queue.put(Ticket(job, loop, future))
        return await future

    def close(self) -> None:
        """Finish what was taken, then close the connection. Takes nothing from now on."""
        with self._lock:
            if not self._closed:
                self._closed = True
                self._queue.put(None)
        if self._thread is not None:
            self._thread.join()

    def _work(self) -> None:
        try:
            while tickets := self._next_batch():
                self._commit(tickets)
        finally:
            self._committer.close()

    def _next_batch(self) -> Sequence[Ticket]:
        """What waits, at least one ticket; empty at the end."""
        first = self._queue.get()
        batch = [] if first is None else [first]
        while batch and len(batch) < MAX_BATCH:
            try:
                ticket = self._queue.get_nowait()
            except Empty:
                break
            if ticket is None:
                self._queue.put(None)  # it is the last: end after this batch
                break
            batch.append(ticket)
        return batch

    def _commit(self, tickets: Sequence[Ticket]) -> None:
        results: Iterable[Outcome | BaseException]
        try:
            results = self._committer.commit([ticket.job for ticket in tickets])
        except BaseException as error:  # noqa: BLE001 (not swallowed: every caller that waits is given it)
            results = [error] * len(tickets)
        by_loop: dict[asyncio.AbstractEventLoop, list[tuple[Ticket, Outcome | BaseException]]] = defaultdict(list)
        for ticket, result in zip(tickets, results, strict=True):
            by_loop[ticket.loop].append((ticket, result))
        for loop, settled in by_loop.items():
            try:
                loop.call_soon_threadsafe(_settle, settled)
            except RuntimeError:
                pass  # the loop is closed, so nobody waits there any more


def _settle(settled: Sequence[tuple[Ticket, Outcome | BaseException]]) -> None:
    for ticket, result in settled:
        error = result if isinstance(result, BaseException) else result.error
        if ticket.future.done():
            continue  # its caller was cancelled
        if error is not None:
            ticket.future.set_exception(error)
        elif isinstance(result, Outcome):
            ticket.future.set_result(result.fence)
