"""The workflow that `orchestrator init` writes: small, commented, and valid as it stands."""

STARTER = """\
# A workflow: steps over several services, each with credentials of its own that end with it.
# Check it with `orchestrator validate FILE`, see what each step may do with `orchestrator plan FILE`.
version: 1
name: my_workflow
description: Read something from a database and send it to a service.

# The identity that this work is done for. Policies decide by it, and access tokens carry it as `sub`.
agent: feedback-assistant

# Typed inputs: `orchestrator run FILE --input limit=10`. A `secret: true` input is never shown or recorded.
inputs:
  limit:
    type: integer
    default: 10

steps:
  read:
    action: postgres.query
    # The only credentials that this step will hold. Vault issues them when it starts; they are gone when it ends.
    grants:
      db:
        kind: database
        connection: support
        # What the login may do, and nothing else; `orchestrator grants infer FILE` finds it from the SQL.
        # `orchestrator provision apply` installs it.
        privileges:
          - select: customer_feedback
            columns: [comment, id]
    with:
      sql: SELECT id, comment FROM customer_feedback ORDER BY id LIMIT %(limit)s
      # Values are bound as parameters, never put into the text of the statement.
      parameters: { limit: "${{ inputs.limit }}" }
    # What later steps may use of the output. Nothing else is kept.
    outputs: [rows]
    timeout: 30s

  send:
    action: http.request
    grants:
      # A short-lived access token for one audience with one scope, signed inside Vault.
      api: { kind: token, audience: translation-api, scope: [translate] }
    # Expressions are CEL. Referring to `read` makes this step wait for it.
    if: size(steps.read.output.rows) > 0
    with:
      method: POST
      url: ${{ endpoints.translation }}/v1/translate
      bearer: api
      json:
        target: en
        messages: ${{ steps.read.output.rows }}
    timeout: 30s
    retry: { attempts: 3, on: [connection, rate_limited, timeout] }
"""
