"""A hostile expression fails its own step: nothing is issued for it, and the process goes on with other runs."""

from __future__ import annotations

import pytest
from bench import Bench

from orchestrator.errors import ExitCode

ROWS = "[" + ", ".join(str(number) for number in range(90)) + "]"
TWICE = "['a']" + ".map(s, [s, s])" * 25

HOSTILE = {
    "a text doubled again and again": "size(['" + "a" * 900 + "']" + ".map(s, s + s)" * 25 + "[0])",
    "a list that holds itself twice": f"{TWICE} == {TWICE}",
    "loops in loops": f"size({ROWS}.map(a, {ROWS}.map(b, {ROWS}.filter(c, a + b + c < 0))))",
    "a search in what was made": f"size({ROWS}.map(a, ['{'a' * 900}']{'.map(s, s + s)' * 14}[0].matches('(a|aa)*b')))",
}


def workflow(name: str, cel: str) -> str:
    return f"""\
version: 1
name: {name}
agent: tester
steps:
  bad:
    action: postgres.query
    grants:
      db: {{ kind: database, connection: support, privileges: [ {{ select: customer_feedback, columns: [id] }} ] }}
    with:
      sql: SELECT %(n)s::text AS n, id FROM customer_feedback LIMIT 1
      parameters: {{ n: "${{{{ string({cel} == 'x') }}}}" }}
    outputs: [rows]
  good:
    action: postgres.query
    grants:
      db: {{ kind: database, connection: support, privileges: [ {{ select: customer_feedback, columns: [id] }} ] }}
    with:
      sql: SELECT %(n)s::text AS n, id FROM customer_feedback LIMIT 1
      parameters: {{ n: "${{{{ 'n' + string(1 + 1) }}}}" }}
    outputs: [rows]
"""


@pytest.mark.parametrize("kind", HOSTILE)
def test_the_step_fails_and_the_others_go_on(bench: Bench, kind: str) -> None:
    outcome = bench.run(workflow("hostile_expression", f"dyn({HOSTILE[kind]})"))
    assert outcome.exit_code is ExitCode.STEP_FAILED
    assert "`with.parameters.n`" in outcome.errors["bad"].message
    assert set(outcome.errors) == {"bad"}
    assert "bad" not in {lease.step for lease in bench.history(outcome.run_id)}
    bench.assert_nothing_left()
