"""Processes that run workflows: their signs of life, their runs, and handing these over.

Synchronous and safe for threads; every method may raise LedgerError. Nothing here is history: what
happened to a run is in its events.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Engine, Select, and_, delete, func, insert, select, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import SQLAlchemyError

from orchestrator.ledger.faults import ledger_error
from orchestrator.ledger.ids import new_run_id
from orchestrator.ledger.reading.newest_first import unindexed
from orchestrator.ledger.storage.connect import BEGIN
from orchestrator.ledger.storage.tables import (
    IS_RUNNING,
    IS_WANTED,
    fire,
    lease_waiter,
    run,
    run_owner,
    runner,
    runner_token,
    workflow_text,
)
from orchestrator.ledger.storage.times import text_to_time, time_to_text

INSERT: dict[str, Any] = {"postgresql": postgresql.insert, "sqlite": sqlite.insert}
"""How rows are inserted that may be there, by dialect."""


NOBODY = ""
"""Who drives a run that was given up by a recovery and is for whoever the queue hands it to."""


GAP_SECONDS = 3.0
"""Whoever looks once a second is not always punctual."""


@dataclass(frozen=True, slots=True)
class RunnerRecord:
    """A process. `process` is what `orchestrator.runs.processes` says of it; `beat` grows while it lives."""

    runner_id: str
    process: str
    beat: int
    gone: bool
    beat_at: datetime | None = None
    """When it last gave a sign of life, by its own clock."""


@dataclass(slots=True)
class Steady:
    """Since when somebody has looked without a gap, by a monotonic clock: half of `dead_after` seconds, or GAP_SECONDS.

    Whoever could not look, such as while the ledger was away, knows nothing of the signs of life that others could not
    give at that time.
    """

    dead_after: float
    _since: float = 0.0
    _last: float | None = None

    def look(self, now: float) -> float:
        """Look now; since when without a gap."""
        if self._last is None or now - self._last > max(self.dead_after / 2, GAP_SECONDS):
            self._since = now
        self._last = now
        return self._since


@dataclass(frozen=True, slots=True)
class Pulse:
    """What a process learns when it gives a sign of life."""

    alive: bool
    """False: others have taken it for dead, and its runs with it."""
    cancellations: tuple[tuple[str, str], ...] = ()
    """Run ids that somebody wants cancelled, with the reason."""
    renewals: tuple[str, ...] = ()
    """Runs whose credential somebody wants renewed."""


class RunnerStore:
    """The tables `runner`, `runner_token`, `run_owner`, `fire` and `workflow_text` of a ledger."""

    def __init__(self, engine: Engine, label: str) -> None:
        self._engine = engine
        self._label = label

    def register(self, runner_id: str, process: str, at: datetime | None = None) -> None:
        """Enter a process. `at` is now, by its own clock."""
        entry = {"runner_id": runner_id, "process": process, "beat_at": _moment(at)}
        with self._writing() as connection:
            connection.execute(insert(runner).values(beat=0, gone=0, **entry))

    def beat(self, runner_id: str, at: datetime | None = None) -> Pulse:
        """Give a sign of life and learn what others want. `at` is now, by its own clock."""
        with self._writing() as connection:
            mine = (runner.c.runner_id == runner_id) & (runner.c.gone == 0)
            lives = update(runner).where(mine).values(beat=runner.c.beat + 1, beat_at=_moment(at))
            if connection.execute(lives).rowcount != 1:
                return Pulse(alive=False)
            wanted = [row._mapping for row in connection.execute(_wanted(runner_id))]
            return Pulse(
                True,
                tuple((str(row["run_id"]), str(row["cancel"])) for row in wanted if row["cancel"] is not None),
                tuple(str(row["run_id"]) for row in wanted if row["renewal"] == ""),
            )

    def retire(self, runner_id: str, *, clean: bool = True) -> None:
        """Take a process out that ended. Where it leaves an unfinished run, or is not `clean`, it stays as gone."""
        with self._writing() as connection:
            if not clean or connection.execute(_unfinished(runner_id)).first() is not None:
                connection.execute(update(runner).where(runner.c.runner_id == runner_id).values(gone=1))
                return
            _take_out(connection, runner_id)

    def remember_token(self, runner_id: str, accessor: str) -> None:
        """Note the accessor of a Vault token that the process logged in for."""
        with self._writing() as connection:
            connection.execute(insert(runner_token).values(runner_id=runner_id, accessor=accessor))

    def tokens(self, runner_id: str) -> Sequence[str]:
        """The accessors noted for a process."""
        with self._reading() as connection:
            rows = connection.execute(select(runner_token.c.accessor).where(runner_token.c.runner_id == runner_id))
            return [str(row[0]) for row in rows]

    def all(self) -> Sequence[RunnerRecord]:
        """Every process that is entered, dead ones with unfinished runs included."""
        with self._reading() as connection:
            return [
                RunnerRecord(
                    str(row.runner_id),
                    str(row.process),
                    int(row.beat),
                    bool(row.gone),
                    text_to_time(row.beat_at) if row.beat_at else None,
                )
                for row in connection.execute(select(runner).order_by(runner.c.runner_id))
            ]

    def declare_gone(self, seen: RunnerRecord) -> bool:
        """Take a process for dead, unless it has given a sign of life since it was seen.

        From then on it can record nothing of its runs: else, if it lives, it would end them as it learns of this.
        """
        with self._writing() as connection:
            same = (runner.c.runner_id == seen.runner_id) & (runner.c.beat == seen.beat)
            if connection.execute(update(runner).where(same).values(gone=1)).rowcount != 1:
                return False
            if runs := [row[0] for row in connection.execute(_unfinished(seen.runner_id))]:
                connection.execute(update(run).where(run.c.run_id.in_(runs)).values(fence=run.c.fence + 1))
            return True

    def claim(self, dead: str, recoverer: str) -> bool:
        """Become the one process that recovers a dead one; True also if it is already.

        False while another one that is not dead has the claim, and for a process that is itself taken for dead.
        """
        with self._writing() as connection:
            row = connection.execute(select(runner.c.recovered_by).where(_gone(dead)).with_for_update()).first()
            if row is None or not _lives(connection, recoverer):
                return False
            if row[0] not in (None, recoverer) and _lives(connection, str(row[0])):
                return False
            connection.execute(update(runner).where(_gone(dead)).values(recovered_by=recoverer))
            return True

    def bury(self, dead: str, recoverer: str) -> bool:
        """Take a dead process out, if nothing of it is unfinished and the claim to recover it is still ours."""
        with self._writing() as connection:
            ours = _gone(dead) & (runner.c.recovered_by == recoverer)
            if connection.execute(select(runner.c.runner_id).where(ours).with_for_update()).first() is None:
                return False
            if connection.execute(_unfinished(dead)).first() is not None:
                return False
            _take_out(connection, dead)
            return True

    def unfinished(self, runner_id: str) -> Sequence[str]:
        """The runs of a process that have not ended, by id."""
        with self._reading() as connection:
            return [str(row[0]) for row in connection.execute(_unfinished(runner_id))]

    def own(self, run_id: str, runner_id: str, *, digest: str, text: str | None) -> bool:
        """Become the one who drives a run that is about to begin; False if somebody was there before.

        Whoever failed to begin it, or died before it had begun, is nobody.
        """
        with self._writing() as connection:
            this = run_owner.c.run_id == run_id
            owner = connection.execute(select(run_owner.c.runner_id).where(this)).scalar()
            living = (runner.c.runner_id == owner) & (runner.c.gone == 0)
            if owner not in (None, runner_id) and connection.execute(select(runner.c.beat).where(living)).first():
                return False
            if connection.execute(select(run.c.run_id).where(run.c.run_id == run_id)).first() is not None:
                return False
            if text is not None:
                keep_text(connection, digest, text)
            if owner is None:
                connection.execute(insert(run_owner).values(run_id=run_id, runner_id=runner_id))
            else:
                connection.execute(update(run_owner).where(this).values(runner_id=runner_id))
            return True

    def take(self, run_id: str, runner_id: str, *, dead: str) -> bool:
        """Become the one who drives a run of a dead process; False if another one was faster."""
        with self._writing() as connection:
            theirs = (run_owner.c.run_id == run_id) & (run_owner.c.runner_id == dead)
            return connection.execute(update(run_owner).where(theirs).values(runner_id=runner_id)).rowcount == 1

    def release(self, run_id: str, *, dead: str) -> bool:
        """Let a run of a dead process be nobody's, for whoever it is handed to; False where another one has it."""
        return self.take(run_id, NOBODY, dead=dead)

    def adopt(self, run_id: str, runner_id: str) -> bool:
        """Become the one who drives a run that is nobody's; False where it is somebody's."""
        return self.take(run_id, runner_id, dead=NOBODY)

    def driven(self) -> Mapping[str, int]:
        """How many runs that have not ended each process drives."""
        with self._reading() as connection:
            query = (
                select(run_owner.c.runner_id, func.count())
                .join(run, run.c.run_id == run_owner.c.run_id)
                .where(IS_RUNNING)
                .group_by(run_owner.c.runner_id)
            )
            return {str(row[0]): int(row[1]) for row in connection.execute(query)}

    def owner(self, run_id: str) -> str | None:
        """The process that drives a run, or drove it."""
        with self._reading() as connection:
            row = connection.execute(select(run_owner.c.runner_id).where(run_owner.c.run_id == run_id)).first()
            return None if row is None or row[0] == NOBODY else str(row[0])

    def driver(self, run_id: str) -> RunnerRecord | None:
        """That process, where it is still entered."""
        owner = self.owner(run_id)
        return next((each for each in self.all() if each.runner_id == owner), None)

    def cancellation(self, run_id: str) -> str | None:
        """Why somebody wants the run cancelled, or None."""
        with self._reading() as connection:
            row = connection.execute(select(run_owner.c.cancel).where(run_owner.c.run_id == run_id)).first()
            return None if row is None or row[0] is None else str(row[0])

    def request_cancel(self, run_id: str, reason: str) -> bool:
        """Ask the process that drives a run to cancel it; False if nobody drives it."""
        with self._writing() as connection:
            this = run_owner.c.run_id == run_id
            return connection.execute(update(run_owner).where(this).values(cancel=reason)).rowcount == 1

    def request_renewal(self, run_id: str) -> bool:
        """Ask the process that drives a run to renew what the run has handed over; False if nobody drives it."""
        return self.answer_renewal(run_id, "")

    def answer_renewal(self, run_id: str, why_not: str | None) -> bool:
        """Say that it was renewed (None), or why it was not; False if nobody drives the run."""
        with self._writing() as connection:
            this = run_owner.c.run_id == run_id
            return connection.execute(update(run_owner).where(this).values(renewal=why_not)).rowcount == 1

    def renewal(self, run_id: str) -> str | None:
        """Empty while somebody wants it renewed, else why it was not; None where it was, or nobody wanted it."""
        with self._reading() as connection:
            row = connection.execute(select(run_owner.c.renewal).where(run_owner.c.run_id == run_id)).first()
            return None if row is None or row[0] is None else str(row[0])

    def run_of_fire(self, workflow: str, trigger: str, at: datetime, *, instead_of: str | None = None) -> str:
        """The id of the run that is to be at a nominal time: the same for every process, and known to nobody before.

        `instead_of` is the one given before, where somebody else has taken it: then there is another, once for all.
        """
        key = {"workflow": workflow, "trigger": trigger, "at": time_to_text(at)}
        drawn = new_run_id(now_ms=lambda: round(at.timestamp() * 1000))
        this = and_(*(fire.c[name] == value for name, value in key.items()))
        with self._writing() as connection:
            connection.execute(
                INSERT[connection.dialect.name](fire).values(run_id=drawn, **key).on_conflict_do_nothing()
            )
            if instead_of is not None:
                connection.execute(update(fire).where(this, fire.c.run_id == instead_of).values(run_id=drawn))
            return str(connection.execute(select(fire.c.run_id).where(this)).scalar_one())

    def keep_text(self, digest: str, text: str) -> None:
        """Keep the text of a workflow that is about to be used."""
        with self._writing() as connection:
            keep_text(connection, digest, text)

    def text(self, digest: str) -> str | None:
        """The text of a workflow that was run."""
        with self._reading() as connection:
            row = connection.execute(select(workflow_text.c.text).where(workflow_text.c.digest == digest)).first()
            return None if row is None else str(row[0])

    @contextmanager
    def _writing(self) -> Iterator[Connection]:
        with self._connection({BEGIN: "BEGIN IMMEDIATE"}) as connection, connection.begin():
            yield connection

    @contextmanager
    def _reading(self) -> Iterator[Connection]:
        with self._connection({}) as connection:
            yield connection

    @contextmanager
    def _connection(self, options: dict[str, Any]) -> Iterator[Connection]:
        try:
            with self._engine.connect().execution_options(**options) as connection:
                yield connection
        except SQLAlchemyError as error:
            raise ledger_error(error, self._label) from error


def keep_text(connection: Connection, digest: str, text: str) -> None:
    """Keep the text of a workflow; another process may be about to keep the same."""
    known = select(workflow_text.c.digest).where(workflow_text.c.digest == digest)
    if connection.execute(known).first() is None:
        values = INSERT[connection.dialect.name](workflow_text).values(digest=digest, text=text)
        connection.execute(values.on_conflict_do_nothing())


def _moment(at: datetime | None) -> str:
    return "" if at is None else time_to_text(at)


def _gone(runner_id: str) -> Any:
    return (runner.c.runner_id == runner_id) & (runner.c.gone == 1)


def _lives(connection: Connection, runner_id: str) -> bool:
    """Whether a process is entered and nobody has taken it for dead."""
    living = (runner.c.runner_id == runner_id) & (runner.c.gone == 0)
    return connection.execute(select(runner.c.runner_id).where(living)).first() is not None


def _take_out(connection: Connection, runner_id: str) -> None:
    for table in (lease_waiter, run_owner, runner_token, runner):
        connection.execute(delete(table).where(table.c.runner_id == runner_id))


def _unfinished(runner_id: str) -> Select[tuple[object, ...]]:
    """Out of what runs now, which is little: a process that lives long has driven far more."""
    return (
        select(run_owner.c.run_id)
        .join(run, run.c.run_id == run_owner.c.run_id)
        .where(unindexed(run_owner.c.runner_id) == runner_id, IS_RUNNING)
        .order_by(run_owner.c.run_id)
    )


def _wanted(runner_id: str) -> Select[tuple[object, ...]]:
    columns = (run_owner.c.run_id, run_owner.c.cancel, run_owner.c.renewal)
    return select(*columns).where(run_owner.c.runner_id == runner_id, IS_WANTED)
