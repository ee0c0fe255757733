"""Ephemeral logins made and swept by hand, and a step that holds one for as long as a test likes."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import psycopg
from bench import Bench

from orchestrator.runs.types import RunOutcome

WAITS = """
version: 1
name: owner
agent: tester
steps:
  work:
    action: postgres.query
    grants:
      db:
        kind: database
        connection: support
        privileges: [ {{ select: public.customer_feedback, columns: [id] }} ]
        {more}
    with: {{ sql: SELECT pg_advisory_lock_shared(4711)::text AS held }}
    timeout: 60s
"""


@dataclass
class Working:
    """A step that is waiting in its query: its login, and how its run came out once it is over."""

    login: str
    outcomes: list[RunOutcome] = field(default_factory=list)

    @property
    def step_key(self) -> str:
        return self.login.removeprefix("orc_").rpartition("_")[0]

    @property
    def outcome(self) -> RunOutcome:
        return self.outcomes[0]


@contextmanager
def working(bench: Bench, more: str = "", *, text: str = WAITS, **changes: Any) -> Iterator[Working]:
    """While inside, a step waits with an open session; leaving lets it end. `more` belongs to its grant."""
    outcomes: list[RunOutcome] = []
    run = threading.Thread(target=lambda: outcomes.append(bench.run(text.format(more=more), **changes)))
    with psycopg.connect(bench.info.support_dsn.reveal(), autocommit=True) as gate:
        gate.execute("SELECT pg_advisory_lock(4711)")
        run.start()
        waiting = "SELECT usename FROM pg_stat_activity WHERE usename LIKE 'orc\\_work-%' AND wait_event = 'advisory'"
        while not (found := gate.execute(waiting).fetchall()):
            assert run.is_alive()
            time.sleep(0.01)
        yield Working(str(found[0][0]), outcomes)
    run.join(60)
    assert not run.is_alive()


def created(bench: Bench, login: str, *, valid: str | None = None, more: str = "") -> str:
    """A login as Vault makes one, whose `VALID UNTIL` is this interval from now; without one it has no end."""
    until = bench.sql(f"SELECT quote_literal(now() + interval '{valid}')")[0] if valid else "'infinity'"
    bench.sql(
        f'SET ROLE orchestrator_vault; CREATE ROLE "{login}" LOGIN VALID UNTIL {until};'
        f' GRANT {bench.sample_grant("read").scope_role} TO "{login}" WITH INHERIT TRUE, SET FALSE; {more}'
    )
    return login


def swept(bench: Bench, call: str) -> list[tuple[str, str | None]]:
    """What a function of the sweeper answers: each login, and why it is still there."""
    with psycopg.connect(bench.info.support_dsn.reveal(), autocommit=True) as session:
        session.execute("SET ROLE orchestrator_sweeper")
        return session.execute(f"SELECT login, problem FROM orchestrator.{call}").fetchall()  # type: ignore[arg-type]


def assert_useless(bench: Bench, login: str) -> None:
    """It is there, but nobody can log in with it, and it may do nothing."""
    assert bench.sql("SELECT rolcanlogin FROM pg_roles WHERE rolname = %s", [login]) == [False]
    assert bench.sql("SELECT roleid FROM pg_auth_members WHERE member = %s::regrole", [f'"{login}"']) == []
    assert bench.sessions() == []
