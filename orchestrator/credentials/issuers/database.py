"""Database logins from Vault's database secrets engine."""

from __future__ import annotations

from orchestrator.credentials.types import Issued, IssueRequest
from orchestrator.grants.credential import Credential
from orchestrator.secret import Secret


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
        password = Secret(body["data"]["password"])
        request.remember(password)
        username, ttl = body["data"]["username"], int(body["lease_duration"])
        credential = Credential(
            scope.name, scope.kind, ttl, scope.connection, {"username": Secret(username), "password": password}
        )
        return Issued(credential, ttl, subject=username, vault_lease_id=body["lease_id"])
