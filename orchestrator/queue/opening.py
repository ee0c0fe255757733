"""How the shared queue is opened. DBOS is imported only by those who use it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from orchestrator.errors import UsageError
from orchestrator.ledger.location import locate

if TYPE_CHECKING:
    from orchestrator.ledger.coordination.queue import RunQueue
    from orchestrator.queue.shared import SharedQueue


def check_ledger(ledger_url: str) -> None:
    """Raise UsageError where there can be no shared queue: by the ledger, or by what is installed."""
    if locate(ledger_url).path is not None:
        raise UsageError(
            "the shared queue needs a ledger in PostgreSQL: an SQLite file is for one machine, where "
            "`orchestrator run` and `orchestrator serve` carry out their runs themselves",
            hint="set ORCHESTRATOR_LEDGER_URL to postgresql://...",
        )
    try:
        import dbos  # noqa: F401 -- only whether it is there
    except ModuleNotFoundError as error:
        raise UsageError(
            f"the shared queue needs the package {error.name}", hint="pip install 'credential-orchestrator[dbos]'"
        ) from error


@contextmanager
def shared_queue(ledger_url: str, requests: RunQueue) -> Iterator[SharedQueue]:
    """The shared queue of a ledger. Raises UsageError and LedgerError."""
    check_ledger(ledger_url)
    from orchestrator.queue.shared import SharedQueue

    queue = SharedQueue(locate(ledger_url), requests)
    try:
        yield queue
    finally:
        queue.close()
