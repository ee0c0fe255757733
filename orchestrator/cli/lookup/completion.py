"""What the shell offers when somebody asks it to complete an id or a name: from the ledger, at once, or nothing.

Whoever types asks for no errors: where there is no ledger, or it cannot be read, nothing is offered.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from orchestrator.ledger.states import IdKind

if TYPE_CHECKING:
    from orchestrator.ledger.types import LedgerReader

_OFFERED = 50


def run_ids(incomplete: str) -> list[str]:
    """Runs that begin so; without a beginning the newest ones."""
    return _offered(lambda reader: _runs(reader, incomplete))


def task_ids(incomplete: str) -> list[str]:
    """Tasks that begin so; without a beginning the newest ones."""
    return _offered(
        lambda reader: _ids(reader, IdKind.TASK, incomplete, [each.task_id for each in reader.tasks(limit=_OFFERED)])
    )


def lease_ids(incomplete: str) -> list[str]:
    """Leases that begin so; without a beginning the newest ones."""
    return _offered(lambda reader: _leases(reader, incomplete))


def workflow_names(incomplete: str) -> list[str]:
    """Workflows of which there are runs."""
    return _offered(
        lambda reader: [name for name in reader.workflows(_OFFERED * 20) if name.startswith(incomplete)][:_OFFERED]
    )


def _runs(reader: LedgerReader, incomplete: str) -> Sequence[str]:
    newest = [each.run_id for each in reader.runs(limit=_OFFERED)]
    return _ids(reader, IdKind.RUN, incomplete, newest)


def _leases(reader: LedgerReader, incomplete: str) -> Sequence[str]:
    from orchestrator.ledger.types import LeaseFilter

    newest = [each.lease_id for each in reader.leases(LeaseFilter(limit=_OFFERED))]
    return _ids(reader, IdKind.LEASE, incomplete, newest)


def _ids(reader: LedgerReader, kind: IdKind, incomplete: str, newest: Sequence[str]) -> Sequence[str]:
    """Newest first as far as they are new, for shells keep the order or sort by themselves."""
    from orchestrator.ledger.reading.id_lookup import beginnings

    if not incomplete:
        return newest
    starts = (incomplete, *beginnings(kind, incomplete, shortest=1))
    recent = [each for each in newest if each.startswith(starts)]
    return list(dict.fromkeys([*recent, *reader.ids(kind, list(dict.fromkeys(starts)), _OFFERED)]))[:_OFFERED]


def _offered(find: Callable[[LedgerReader], Sequence[str]]) -> list[str]:
    """Reads a ledger that is there, and makes none."""
    from orchestrator.cli.connect import ledger_reader, ledger_url
    from orchestrator.ledger.location import locate

    disabled = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        path = locate(ledger_url()).path
        if path is not None and not path.exists():
            return []
        with ledger_reader() as reader:
            return list(find(reader))
    except Exception:  # noqa: BLE001 -- nobody can be told while they type
        return []
    finally:
        logging.disable(disabled)
