"""From the grants of the workflows to one Vault policy per step: exactly the paths of its own grants."""

from __future__ import annotations

import re
from collections.abc import Sequence

from orchestrator.errors import UsageError
from orchestrator.grants.policy_names import BROKER_DUTIES, duty_policy_name, duty_role_name, step_policy_name
from orchestrator.grants.scope import Scope, normalise
from orchestrator.workflow.models import Workflow

HEADER = "# Managed by the credential orchestrator: compiled from the grants of a workflow's step.\n"
_PATH = re.compile(r"[\w\-./@:]+")
_SIGNING = """\
path "{path}" {{
  capabilities = ["update"]
  allowed_parameters = {{
    "input" = []
    "hash_algorithm" = ["sha2-256"]
    "marshaling_algorithm" = ["jws"]
  }}
}}
"""


def step_policy(scopes: Sequence[Scope]) -> str:
    """The policy, as HCL, that lets a child token reach the paths of these scopes and nothing else.

    Raises UsageError for a path that would mean more than itself (`*`, `+`, a quote).
    """
    rules = set()
    for scope in scopes:
        if not _PATH.fullmatch(scope.resource):
            raise UsageError(f"the path `{scope.resource}` of grant `{scope.name}` cannot stand in a Vault policy")
        if scope.kind == "token":
            rules.add(_SIGNING.format(path=scope.resource))
        else:
            rules.add(f'path "{scope.resource}" {{\n  capabilities = ["read"]\n}}\n')
    return HEADER + "".join(sorted(rules))


def step_policies(workflows: Sequence[Workflow], connections: Sequence[str]) -> dict[str, str]:
    """The policies of all steps that have grants, and of the broker's duties in each connection, by name."""
    policies = {
        step_policy_name(workflow.name, step_id): step_policy(
            [normalise(name, grant, step_timeout=step.timeout) for name, grant in step.grants.items()]
        )
        for workflow in workflows
        for step_id, step in workflow.steps.items()
        if step.grants
    }
    for connection in connections:
        for duty in BROKER_DUTIES:
            role = Scope(duty, "database", f"database/creds/{duty_role_name(duty, connection)}", 60)
            policies[duty_policy_name(duty, connection)] = step_policy([role])
    return policies
