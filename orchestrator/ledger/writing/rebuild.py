"""Makes the current-state rows of a run anew from its events."""

from __future__ import annotations

from sqlalchemy import Connection, Engine, RowMapping, delete, insert, update

from orchestrator.errors import LedgerError, UnknownRun
from orchestrator.ledger.reading.queries import events_of, run_by_id
from orchestrator.ledger.reading.records import event_record
from orchestrator.ledger.storage.chain import Head, StoredEvent, first_break
from orchestrator.ledger.storage.codec import event_from_json
from orchestrator.ledger.storage.connect import BEGIN
from orchestrator.ledger.storage.projections import RunRows, project
from orchestrator.ledger.storage.tables import lease, run, step


def rebuild(engine: Engine, run_id: str) -> None:
    """Replace what `run`, `step` and `lease` say of the run by what its events say; fence and head stay.

    Raises UnknownRun, or LedgerError if the chain is broken: changed events must not become the present state.
    """
    with engine.connect().execution_options(**{BEGIN: "BEGIN IMMEDIATE"}) as connection, connection.begin():
        head = connection.execute(run_by_id(run_id).with_for_update()).mappings().first()
        if head is None:
            raise UnknownRun(f"no run {run_id} is in this ledger")
        rows = _replayed(connection, head)
        for table in (lease, step):
            connection.execute(delete(table).where(table.c.run_id == run_id))
        connection.execute(update(run).where(run.c.run_id == run_id).values(dict(rows.run)))
        for table, found in ((step, rows.steps), (lease, rows.leases)):
            if found:
                connection.execute(insert(table), [{"run_id": run_id, **row} for row in found.values()])


def _replayed(connection: Connection, head: RowMapping) -> RunRows:
    run_id = head["run_id"]
    stored = [StoredEvent._make(row) for row in connection.execute(*events_of(run_id)).all()]
    broken = first_break(run_id, stored, Head(head["seq"], head["head"]))
    if broken is not None:
        raise LedgerError(
            f"run {run_id} is not rebuilt: its history is broken at event {broken}",
            hint="See `orchestrator runs verify`; restore the ledger from a backup.",
        )
    rows = RunRows()
    for each in stored:
        record = event_record(each)
        rows.merge(project(rows, [(each.time, event_from_json(record.kind, record.data))]))
    return rows
