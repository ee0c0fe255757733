"""A session that begins while its login is being dropped ends with it."""

from __future__ import annotations

import threading
import time

import psycopg
import pytest
from bench import Bench

BLOCKED = "SELECT pid FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE '%orchestrator.revoke%'"


def test_a_session_that_began_after_the_first_look_does_not_outlive_its_role(bench: Bench) -> None:
    issued = bench.vault.read("database/creds/feedback-read")
    login, password = issued["data"]["username"], issued["data"]["password"]
    dsn = bench.info.support_dsn.reveal()
    with psycopg.connect(dsn) as holding, psycopg.connect(dsn, autocommit=True) as revoking:
        holding.execute(f'COMMENT ON ROLE "{login}" IS $$held$$')  # type: ignore[arg-type]
        revoke = threading.Thread(target=revoking.execute, args=["SELECT orchestrator.revoke(%s)", [login]])
        revoke.start()
        until = time.monotonic() + 4
        while not bench.sql(BLOCKED):
            assert time.monotonic() < until, "the drop does not wait"
            time.sleep(0.01)
        with psycopg.connect(bench.info.support_endpoint, user=login, password=password, autocommit=True) as session:
            session.execute("SELECT 1")
            holding.rollback()
            revoke.join()
            assert bench.logins() == []
            with pytest.raises(psycopg.OperationalError):
                session.execute("SELECT 1")
    bench.vault.write_data("sys/leases/revoke", data={"lease_id": issued["lease_id"], "sync": True})
