"""Chosen keys of a secret in Vault's KV version 2 engine."""

from __future__ import annotations

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

        Raises VaultRefused, VaultUnavailable, or GrantRefused where a declared key is missing or no text.
        """
        scope = request.scope
        body = await request.vault.request(
            "get", scope.resource, token=request.token, deadline=request.attempt.deadline, stop=request.stop
        )
        version_read = section(body, "data", scope.resource)
        data = section(version_read, "data", scope.resource)
        missing = [key for key in scope.keys if not isinstance(data.get(key), str)]
        if missing:
            raise GrantRefused(
                f"the secret `{scope.resource}` has no text under {', '.join(f'`{key}`' for key in missing)}",
                grant=scope.name,
                path=scope.resource,
                hint="correct `keys` of the grant, or store the key in Vault",
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
