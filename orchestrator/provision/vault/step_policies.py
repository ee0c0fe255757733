"""From the grants of the workflows to what one step may have in Vault: a policy, and a token role that gives it.

The policy opens exactly the paths of the step's own grants. The token role gives a child token this one policy, and
a life that ends with the step's longest attempt, whatever the runtime asks for: so a stolen runtime can have the
credentials of the steps, but none that is wider or lives longer.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from orchestrator.errors import UsageError
from orchestrator.grants.certificate import MADE, sent
from orchestrator.grants.policy_names import (
    BROKER_DUTIES,
    duty_policy_name,
    duty_role_name,
    step_policy_name,
    token_role_name,
)
from orchestrator.grants.scope import STEP_TOKEN_MARGIN, Scope
from orchestrator.issuers.declared import DeclaredIssuer
from orchestrator.planning.requests import scopes_of
from orchestrator.provision.vault.issuer_access import rules_of
from orchestrator.provision.vault.objects import DUTY_TTL, VaultObject
from orchestrator.provision.vault.parameters import parameters_rule
from orchestrator.workflow.models.workflow import Workflow

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
_EXECUTING = """\
path "{path}" {{
  capabilities = ["update"]
  allowed_parameters = {{
    "jti" = []
    "seconds" = []
  }}
}}
"""


@dataclass(frozen=True, slots=True)
class StepAccess:
    """What one step, or one duty of the broker, may have in Vault. `ttl` in seconds: its token's longest life."""

    name: str
    policy: str
    ttl: int

    def objects(self, bound_cidrs: Sequence[str] = ()) -> tuple[VaultObject, VaultObject]:
        """The policy, and the token role that gives it (Vault API, `POST /auth/token/roles/:role_name`).

        The CIDRs are said again here because a child token does not inherit those of its parent.
        """
        role = {
            "allowed_policies": [self.name],
            "allowed_policies_glob": [],
            "disallowed_policies": [],
            "disallowed_policies_glob": [],
            "allowed_entity_aliases": [],
            "token_explicit_max_ttl": self.ttl,
            "token_period": 0,
            "token_bound_cidrs": list(bound_cidrs),
            "token_no_default_policy": True,
            "token_num_uses": 0,
            "token_type": "service",
            "orphan": False,
            "renewable": False,
            "path_suffix": "",
        }
        return (
            VaultObject(f"sys/policies/acl/{self.name}", {"policy": self.policy}),
            VaultObject(f"auth/token/roles/{token_role_name(self.name)}", role),
        )


def step_policy(scopes: Sequence[Scope], issuers: Mapping[str, DeclaredIssuer] | None = None) -> str:
    """The policy, as HCL, that lets a child token reach the paths of these scopes and nothing else.

    `issuers` are those that are not Vault; of them it is what shows who asks. Raises UsageError for a path that would
    mean more than itself (`*`, `+`, a quote), and for an issuer that is not declared.
    """
    rules: set[str] = set()
    asked: dict[str, str] = {}
    for scope in (form for whole in scopes for form in (whole, *map(whole.narrowed, whole.narrower))):
        if scope.outside:
            rules |= set(rules_of(_declared(scope, issuers or {})))
            continue
        if not _PATH.fullmatch(scope.resource):
            raise UsageError(f"the path `{scope.resource}` of grant `{scope.name}` cannot stand in a Vault policy")
        if scope.kind == "token" and scope.profile != "identity":
            rules.add((_SIGNING if scope.profile == "transit" else _EXECUTING).format(path=scope.resource))
        else:
            rule = _asking(scope)
            if asked.setdefault(scope.resource, rule) != rule:
                raise UsageError(
                    f"another grant asks at the path `{scope.resource}` of grant `{scope.name}` with other parameters",
                    hint="Vault would allow either those of the other: make two steps of it",
                )
            rules.add(rule)
    return HEADER + "".join(sorted(rules))


def _asking(scope: Scope) -> str:
    """What the path that a grant comes from takes: nothing, what it is sent, or a certificate to sign."""
    path, sent_there = scope.resource, scope.parameters
    if sent_there is not None and scope.kind == "certificate":
        return parameters_rule(path, sent(sent_there), made=MADE[str(sent_there["form"])])
    if sent_there is not None:
        return parameters_rule(path, sent_there)
    return f'path "{path}" {{\n  capabilities = ["read"]\n}}\n'


def _declared(scope: Scope, issuers: Mapping[str, DeclaredIssuer]) -> DeclaredIssuer:
    if (issuer := issuers.get(scope.issuer or "")) is None:
        raise UsageError(f"the issuer `{scope.issuer}` of grant `{scope.name}` is not declared")
    return issuer


def step_access(
    workflows: Iterable[Workflow], connections: Iterable[str], issuers: Mapping[str, DeclaredIssuer] | None = None
) -> list[StepAccess]:
    """That of all steps that have grants, and of the broker's duties in each connection, by name.

    Raises UsageError where two steps would have one policy: the later would silently take the place of the earlier.
    """
    found: dict[str, StepAccess] = {}
    for workflow in workflows:
        for step_id, step in workflow.parts.items():
            if not step.grants:
                continue
            scopes = scopes_of(workflow, step_id)
            name = step_policy_name(workflow.name, step_id)
            if name in found:
                raise UsageError(
                    f"two steps would have the policy `{name}`", hint="give one of the workflows another name"
                )
            ttl = max([step.timeout + STEP_TOKEN_MARGIN, *(scope.ttl for scope in scopes if not scope.outside)])
            found[name] = StepAccess(name, step_policy(scopes, issuers), ttl)
    for connection in connections:
        for duty in BROKER_DUTIES:
            role = Scope(duty, "database", f"database/creds/{duty_role_name(duty, connection)}", DUTY_TTL)
            name = duty_policy_name(duty, connection)
            found[name] = StepAccess(name, step_policy([role]), DUTY_TTL)
    return [found[name] for name in sorted(found)]
