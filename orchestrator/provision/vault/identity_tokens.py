"""Access tokens by Vault's own identity engine: a role for each grant that asks for it fixes audience, scope and life.

Other than a workflow of OpenBao's it is there on every Vault, and says less: the token has no `typ` and no id of its
own, its `sub` is the id of the runtime's entity, and its life is always the whole one (Vault API, `/identity/oidc`).
So services that take one look at `aud`, `scope` and `agent`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable

from orchestrator.provision.vault.objects import VaultObject
from orchestrator.provision.vault.token_workflows import token_grants
from orchestrator.workflow.models.workflow import Workflow

KEY = "orchestrator"
"""The identity engine's key that signs for all of these roles; it is rotated daily."""

_DAY = 86400


def identity_tokens(workflows: Iterable[Workflow]) -> list[VaultObject]:
    """The key, and one role for each grant of the profile `identity`."""
    found = []
    for workflow, _, grant, scope in token_grants(workflows, "identity"):
        claims = {"scope": " ".join(scope.scopes), "agent": workflow.agent, "client_id": workflow.name}
        role = {"key": KEY, "client_id": grant.audience, "ttl": scope.ttl, "template": _template(claims)}
        found.append(VaultObject(scope.resource.replace("/token/", "/role/", 1), role))
    key = {"algorithm": "ES256", "allowed_client_ids": ["*"], "rotation_period": _DAY, "verification_ttl": _DAY}
    return [VaultObject(f"identity/oidc/key/{KEY}", key), *found] if found else []


def _template(claims: dict[str, str]) -> str:
    """JSON in which nothing is a directive, whatever the claims hold."""
    return "{" + json.dumps(claims)[1:-1].replace("{", "\\u007b").replace("}", "\\u007d") + "}"
