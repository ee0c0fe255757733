"""Assertions by whoever may sign with the key in Vault, and what the issuer answers to them."""

from __future__ import annotations

import secrets
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from orchestrator.credentials.issuers.oauth2.requests import JWT_BEARER
from orchestrator.credentials.issuers.oauth2.signing import TransitSigner
from orchestrator.devstack.mail_agent.servers import MailServers
from orchestrator.provision.vault.admin import VaultAdmin

if TYPE_CHECKING:
    import httpx


async def asked_for(
    http: httpx.AsyncClient, servers: MailServers, subject: str, *scopes: str, **more: str
) -> httpx.Response:
    """Ask for a token by the key itself, past the orchestrator, with any claims. Raises httpx.HTTPError."""
    assertion = await signed(servers, sub=subject, scope=" ".join(scopes))
    form = {"grant_type": JWT_BEARER, "assertion": assertion, "client_id": servers.issuer.client.id, **more}
    return await http.post(servers.authorization.token_endpoint, data=form)


async def signed(servers: MailServers, **claims: Any) -> str:
    """A JWT that is good for once, signed as an admin of Vault may."""
    info, now = servers.provisioned.info, int(time.time())
    times = {"iat": now, "exp": now + 60, "jti": secrets.token_urlsafe(16)}
    ours = {"iss": servers.issuer.client.id, "aud": servers.authorization.issuer, **times}
    admin = VaultAdmin(servers.provisioned.admin_config(), info.root_token)

    async def ask(method: str, path: str, payload: Mapping[str, Any] | None) -> Mapping[str, Any]:
        return {"data": admin.read(path)} if method == "get" else admin.write(path, payload or {})

    try:
        return await TransitSigner().jwt(ask, servers.key, {**ours, **claims})
    finally:
        admin.close()
