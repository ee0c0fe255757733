"""A workflow that is given something about somebody, and gives something."""

from __future__ import annotations

PERSON = "Maria-Muster-4711"
ANSWER = "sensitive answer 0815"
WORKFLOW = f"""
version: 1
name: personal
agent: tester
inputs:
  customer: {{ type: string }}
steps:
  one:
    action: postgres.query
    grants: {{ db: {{ kind: database, connection: support, role: feedback-read }} }}
    with:
      sql: "SELECT reverse('{ANSWER[::-1]}') || length(%(who)s) AS said"
      parameters: {{ who: "${{{{ inputs.customer }}}}" }}
    outputs: [rows]
"""
