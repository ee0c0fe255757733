"""Chosen keys of a secret in Vault's KV version 2 engine."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from orchestrator.credentials.types import Issued, IssueRequest
from orchestrator.errors import GrantRefused
from orchestrator.grants.credential import Credential
from orchestrator.secret import Secret
from orchestrator.vault.fields import section


class SecretIssuer:
    """Reads the secret and passes on only the declared keys. It cannot be revoked, only its access ended.

    What else the secret holds goes no further than this module, so that nobody has to look for it: it is often no
    secret at all but settings beside one.
    """

    async def issue(self, request: IssueRequest) -> Issued:
        """Read the newest version (Vault API, KV version 2).

        Raises VaultRefused, VaultUnavailable, or GrantRefused where a declared key is missing, empty, or no text.
        """
        scope = request.scope
        body = await request.vault.request(
            "get", scope.resource, token=request.token, deadline=request.attempt.deadline, stop=request.stop
        )
        version_read = section(body, "data", scope.resource)
        data = section(version_read, "data", scope.resource)
        if wrong := [f"{what} under `{key}`" for key in scope.keys if (what := _instead_of_text(data, key))]:
            raise GrantRefused(
                f"the secret `{scope.resource}` has {' and '.join(wrong)}",
                grant=scope.name,
                path=scope.resource,
                hint="correct `keys` of the grant, or store a text there: what a step is given is never empty, and "
                'numbers are written in quotes (over HTTP: `{"port": "5432"}`)',
            )
        metadata = version_read.get("metadata")
        version = metadata.get("version") if isinstance(metadata, dict) else None
        fields = {key: Secret(data[key]) for key in scope.keys}
        for secret in fields.values():
            request.remember(secret)
        return Issued(
            Credential(scope.name, scope.kind, scope.ttl, fields=fields),
            scope.ttl,
            subject=f"version {version if isinstance(version, int) else None}",
        )


def _instead_of_text(data: Mapping[str, Any], key: str) -> str:
    """What is stored in the place of a text that can be handed over, or an empty text."""
    value = data.get(key)
    if isinstance(value, str):
        return "" if value else "an empty text"
    return "nothing" if value is None else _KINDS.get(type(value), "no text")


_KINDS = {bool: "a truth value", int: "a number", float: "a number", list: "a list", dict: "a map"}
