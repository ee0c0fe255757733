"""Database logins from Vault's database secrets engine."""

from __future__ import annotations

from orchestrator.credentials.types import Issued, IssueRequest
from orchestrator.grants.credential import Credential
from orchestrator.secret import Secret
from orchestrator.vault.fields import seconds, section, text


class DatabaseIssuer:
    """Reads `MOUNT/creds/ROLE`; the login's name is the credential's subject."""

    async def issue(self, request: IssueRequest) -> Issued:
        """Have Vault create the login (Vault API, `GET /database/creds/:name`).

        Raises VaultRefused; or VaultUnavailable, after which there may be a login without a known lease.
        """
        scope = request.scope
        body = await request.vault.request(
            "get",
            scope.resource,
            token=request.token,
            deadline=request.attempt.deadline,
            repeatable=False,
            stop=request.stop,
        )
        data = section(body, "data", scope.resource)
        password = Secret(text(data, "password", scope.resource))
        request.remember(password)
        username, ttl = text(data, "username", scope.resource), seconds(body, "lease_duration", scope.resource)
        credential = Credential(
            scope.name, scope.kind, ttl, scope.connection, {"username": Secret(username), "password": password}
        )
        return Issued(credential, ttl, subject=username, vault_lease_id=text(body, "lease_id", scope.resource))
