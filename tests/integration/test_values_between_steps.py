"""What one step gives is what the next one gets: digits are not lost, and bytes that are no text are not replaced."""

from __future__ import annotations

import sys

from bench import Bench

from orchestrator.errors import ExitCode
from orchestrator.ledger.states import StepState

WORKFLOW = f"""
version: 1
name: values
agent: tester
on_failure: continue
steps:
  read:
    action: postgres.query
    grants:
      db: {{ kind: database, connection: support, role: feedback-read }}
    with: {{ sql: "SELECT 0.10 AS price, 12345678901234567890.50 AS long, 9007199254740993::int8 AS id" }}
    outputs: [rows]
  say:
    action: exec
    with:
      command:
        - /bin/echo
        - "${{{{ steps.read.output.rows[0].price }}}}"
        - "${{{{ steps.read.output.rows[0].long }}}}"
        - "${{{{ steps.read.output.rows[0].id }}}}"
        - "${{{{ double(steps.read.output.rows[0].price) < 0.2 }}}}"
    outputs: [stdout]
  bytes:
    action: exec
    with: &binary {{ command: [{sys.executable}, -I, -c, "import os; os.write(1, b'\\\\xff\\\\xfe')"] }}
  kept:
    action: exec
    with: *binary
    outputs: [stdout]
  encoded:
    action: exec
    with: {{ command: [{sys.executable}, -I, -c, "import os; os.write(1, b'\\\\xff\\\\xfe')"], output: base64 }}
    outputs: [base64]
"""


def test_numbers_keep_their_digits_and_only_bytes_that_are_kept_as_text_fail_a_step(bench: Bench) -> None:
    outcome = bench.run(WORKFLOW)
    assert outcome.exit_code is ExitCode.STEP_FAILED
    assert outcome.outputs["read"] == {
        "rows": [{"price": "0.10", "long": "12345678901234567890.50", "id": 9007199254740993}]
    }
    assert outcome.outputs["say"] == {"stdout": "0.10 12345678901234567890.50 9007199254740993 true\n"}
    assert outcome.outputs["encoded"] == {"base64": "//4="}
    failed = {name for name, state in outcome.steps.items() if state is not StepState.SUCCEEDED}
    assert failed == {"kept"}
    assert "is not UTF-8, first at byte 0" in outcome.errors["kept"].message
    bench.assert_nothing_left()
