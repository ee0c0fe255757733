"""This process's sign of life in the ledger, and what comes back along it.

While it beats nobody touches the runs of this process. If it is taken for dead all the same (it was
stopped, or cut off from the ledger), it learns so with its next beat and ends its runs; the fence
keeps it from writing or issuing anything in between. Requests to cancel a run, or to renew what one has handed over,
arrive the same way.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

from orchestrator.clock import Clock, SystemClock
from orchestrator.errors import LedgerError
from orchestrator.ledger.coordination.runners import Pulse, RunnerStore
from orchestrator.runs.processes import describe_self, new_runner_id

log = logging.getLogger(__name__)

BEAT_SECONDS = 1.0
"""Between two signs of life, along which others' wishes come: who is silent for `dead_after` has missed several."""

Cancel = Callable[[str], None]
"""Called in the event loop with the reason."""

Renew = Callable[[str], None]
"""Called in the event loop with the run whose credential somebody at another process wants renewed."""


class Heartbeat:
    """Beats from a thread of its own, so that a busy event loop is not taken for a dead one."""

    def __init__(
        self,
        store: RunnerStore,
        *,
        runner_id: str | None = None,
        seconds: float = BEAT_SECONDS,
        role: str = "run",
        max_runs: int | None = None,
        clock: Clock | None = None,
    ) -> None:
        """`role` and `max_runs` are what people see of a process: what it is, and how many runs it carries out."""
        self.store = store
        self.runner_id = runner_id or new_runner_id()
        self.is_lost = False
        """Whether others have taken this process for dead: what it begins from then on is nobody's."""
        self._seconds = seconds
        self._described = describe_self(role, max_runs)
        self._clock = clock or SystemClock()
        self._runs: dict[str, Cancel] = {}
        self._renew: Renew | None = None
        self._over = threading.Event()
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._entering = threading.Lock()

    def begin(self, run_id: str, *, digest: str, text: str | None) -> bool:
        """Enter this process if it is not yet, and a run that it is about to begin; False if the id is taken.

        Without a text none is kept, for a run that is only to be ended.
        """
        self.enter()
        return self.store.own(run_id, self.runner_id, digest=digest, text=text)

    @property
    def is_entered(self) -> bool:
        """Whether this process is in the ledger, and beats."""
        return self._thread is not None

    def enter(self) -> None:
        """Enter this process in the ledger and start to beat, once. Raises LedgerError."""
        with self._entering:
            if self._thread is None:
                self.store.register(self.runner_id, self._described, self._clock.now())
                self._thread = threading.Thread(target=self._beat, name="heartbeat", daemon=True)
                self._thread.start()

    @contextmanager
    def watched(self, run_id: str, cancel: Cancel) -> Iterator[None]:
        """While inside, `cancel` is called if the run is to be cancelled, or is not ours any more."""
        self._loop = asyncio.get_running_loop()
        self._runs[run_id] = cancel
        try:
            yield
        finally:
            self._runs.pop(run_id, None)

    def on_renewal(self, renew: Renew) -> None:
        """Say who renews what runs of this process have handed over."""
        self._renew = renew

    def tell(self, run_id: str, reason: str) -> bool:
        """Have a run of this process cancelled, from its event loop; False where there is none."""
        cancel = self._runs.get(run_id)
        if cancel is None:
            return False
        cancel(reason)
        return True

    def remember_token(self, accessor: str) -> None:
        """Note a Vault token of this process before anything hangs from it. Raises LedgerError."""
        self.enter()
        self.store.remember_token(self.runner_id, accessor)

    def close(self, *, clean: bool = True) -> None:
        """Stop beating and leave. What is unfinished is then free to be taken over at once.

        Not `clean`: a Vault token of this process may still live, so its accessor stays on record.
        """
        self._over.set()
        if self._thread is not None:
            self._thread.join()
            try:
                self.store.retire(self.runner_id, clean=clean)
            except LedgerError as error:
                log.warning("this process could not be taken out of the ledger: %s", error.message)

    def _beat(self) -> None:
        while not self._over.wait(self._seconds):
            try:
                pulse = self.store.beat(self.runner_id, self._clock.now())
            except LedgerError as error:
                log.warning("no sign of life could be given: %s", error.message)
                continue
            self._obey(pulse)

    def _obey(self, pulse: Pulse) -> None:
        if not pulse.alive:
            self.is_lost = True
            self._tell(
                [(run, "another process took this one for dead and went on with its runs") for run in self._runs]
            )
        self._tell(list(pulse.cancellations))
        if self._renew is not None:
            self._in_loop([partial(self._renew, run_id) for run_id in pulse.renewals])

    def _tell(self, wanted: list[tuple[str, str]]) -> None:
        known = [(self._runs.get(run_id), reason) for run_id, reason in wanted]
        self._in_loop([partial(cancel, reason) for cancel, reason in known if cancel is not None])

    def _in_loop(self, calls: list[Callable[[], None]]) -> None:
        for call in calls:
            if self._loop is not None:
                try:
                    self._loop.call_soon_threadsafe(call)
                except RuntimeError:
                    return  # the loop is closed: nothing runs any more
