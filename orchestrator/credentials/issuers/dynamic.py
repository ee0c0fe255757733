"""Credentials from any Vault path that answers with a lease."""

from __future__ import annotations

from orchestrator.credentials.types import Issued, IssueRequest
from orchestrator.errors import GrantRefused
from orchestrator.grants.credential import Credential
from orchestrator.secret import Secret
from orchestrator.vault.fields import seconds, section, text


class DynamicIssuer:
    """Reads the path, or writes its parameters there; every text in `data` becomes a field of the credential."""

    async def issue(self, request: IssueRequest) -> Issued:
        """Ask once.

        Raises VaultRefused, VaultUnavailable, or GrantRefused for an answer that could not be revoked.
        """
        scope = request.scope
        body = await request.vault.request(
            "get" if scope.parameters is None else "post",
            scope.resource,
            payload=scope.parameters,
            token=request.token,
            deadline=request.attempt.deadline,
            repeatable=False,
            stop=request.stop,
        )
        data = section(body, "data", scope.resource) if body.get("data") is not None else {}
        fields = {key: Secret(value) for key, value in data.items() if isinstance(value, str)}
        for secret in fields.values():
            request.remember(secret)
        if not body.get("lease_id"):
            raise GrantRefused(
                f"`{scope.resource}` answered without a lease, so it could not be revoked",
                grant=scope.name,
                path=scope.resource,
                by="orchestrator",
                hint="for a static secret declare a grant of kind `secret`",
            )
        ttl, lease_id = seconds(body, "lease_duration", scope.resource), text(body, "lease_id", scope.resource)
        return Issued(Credential(scope.name, scope.kind, ttl, fields=fields), ttl, vault_lease_id=lease_id)
