"""A standby of an embedded PostgreSQL server, made with pg_basebackup, whose lag a test chooses."""

from __future__ import annotations

import time
from dataclasses import dataclass

import psycopg

from orchestrator.devstack.postgres import Postgres
from orchestrator.devstack.postgres_user import binary, reachable, server_user
from orchestrator.devstack.process import last_lines, start
from orchestrator.errors import Unreachable


@dataclass
class Standby(Postgres):
    """It has the passwords of its primary. `lag` says how much later than there a commit is seen here."""

    primary: Postgres | None = None

    def _initialise(self) -> None:
        assert self.primary is not None
        self.password = self.primary.password
        user = server_user()
        with reachable(self.directory, user) as (folder, inherit):
            process = start(
                [
                    *(str(binary("pg_basebackup")), "-D", f"{folder}/pgdata", "-h", "127.0.0.1"),
                    *("-p", str(self.primary.port), "-U", "postgres", "-X", "stream", "-c", "fast", "-R", "--no-sync"),
                ],
                log=self.log,
                environment={**self._environment(), "PGPASSWORD": self.password.reveal()},
                user=user,
                inherit=inherit,
            )
            if process.wait() != 0:
                raise Unreachable(f"pg_basebackup failed; its log ends:\n{last_lines(self.log)}")

    def lag(self, milliseconds: int) -> None:
        """Commits are replayed so much later from now on; what was held back before is not."""
        with psycopg.connect(self.dsn().reveal(), autocommit=True) as session:
            session.execute(f"ALTER SYSTEM SET recovery_min_apply_delay = '{milliseconds}ms'")
            session.execute("SELECT pg_reload_conf()")

    def pause(self) -> None:
        """Nothing is replayed any more, from before this returns until `resume`."""
        with psycopg.connect(self.dsn().reveal(), autocommit=True) as session:
            session.execute("SELECT pg_wal_replay_pause()")
            until = time.monotonic() + 30
            while session.execute("SELECT pg_get_wal_replay_pause_state()").fetchone() != ("paused",):
                assert time.monotonic() < until, "replay does not pause"
                time.sleep(0.01)

    def resume(self) -> None:
        """Replay what was held back, and go on."""
        with psycopg.connect(self.dsn().reveal(), autocommit=True) as session:
            session.execute("SELECT pg_wal_replay_resume()")

    def has_replayed(self) -> bool:
        """Whether it has all that its primary has."""
        assert self.primary is not None
        with psycopg.connect(self.primary.dsn().reveal()) as session:
            row = session.execute("SELECT pg_current_wal_flush_lsn()").fetchone()
        with psycopg.connect(self.dsn().reveal()) as session:
            row = session.execute("SELECT pg_last_wal_replay_lsn() >= %s::pg_lsn", row).fetchone()
        return bool(row and row[0])
