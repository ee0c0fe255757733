"""Steps that take longer than the TTL of their credential."""

from __future__ import annotations

import sys

from bench import Bench

from orchestrator.actions.catalog import catalog
from orchestrator.errors import ExitCode
from orchestrator.grants.scope import normalise
from orchestrator.ledger.events import LeaseRenewed
from orchestrator.ledger.lease import LeaseState
from orchestrator.workflow.loader import load_text

LONG = """
version: 1
name: {name}
agent: tester
steps:
  work:
    action: postgres.query
    grants:
      db:
        kind: database
        connection: support
        ttl: 3s
        privileges:
          - select: customer_feedback
            columns: [id]
    with: {{ sql: "SELECT pg_sleep(0.5), (SELECT max(id) FROM customer_feedback) FROM generate_series(1, {halves})" }}
    timeout: 20s
"""

LATE = """
version: 1
name: renewed_login
agent: tester
steps:
  work:
    action: exec
    grants:
      db:
        kind: database
        connection: support
        ttl: 3s
        privileges:
          - select: customer_feedback
            columns: [id]
    with:
      command:
        - {python}
        - -c
        - |
          import os, time, psycopg
          time.sleep(5)
          with psycopg.connect("{dsn}", user=os.environ["PGUSER"], password=os.environ["PGPASSWORD"]) as late:
              print(late.execute("SELECT count(id) > 0 FROM customer_feedback").fetchone()[0])
      credentials: {{ env: {{ PGUSER: db.username, PGPASSWORD: db.password }} }}
    timeout: 20s
"""


def test_a_lease_is_renewed_while_its_step_runs(bench: Bench) -> None:
    outcome = bench.run(LONG.format(name="renewed", halves=12))
    assert outcome.exit_code is ExitCode.DONE, outcome.reason
    renewed = [event for event in bench.events if isinstance(event, LeaseRenewed)]
    assert len(renewed) >= 2
    assert {lease.state for lease in bench.history(outcome.run_id)} == {LeaseState.REVOKED}


def test_a_renewed_login_can_log_in_after_its_first_ttl(bench: Bench) -> None:
    text = LATE.format(python=sys.executable, dsn=bench.info.support_endpoint)
    outcome = bench.run(text)
    assert outcome.exit_code is ExitCode.DONE, outcome.reason


def test_a_step_is_ended_before_its_credential_where_the_maximum_is_reached(bench: Bench) -> None:
    text = LONG.format(name="at_the_maximum", halves=30)
    assert bench.run(text.replace("1, 30", "1, 1")).exit_code is ExitCode.DONE
    step = load_text(text, filename="x", actions=catalog).workflow.steps["work"]
    role = normalise("db", step.grants["db"], step_timeout=step.timeout).role
    bench.vault.write_data(f"database/roles/{role}", data={"max_ttl": 5})
    outcome = bench.run(text, install=False)
    assert outcome.exit_code is ExitCode.STEP_FAILED
    assert "ends before the step does: the maximum TTL" in outcome.reason
    assert {lease.state for lease in bench.history(outcome.run_id)} == {LeaseState.REVOKED}
    bench.assert_nothing_left()
