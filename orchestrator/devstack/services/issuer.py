"""The token issuer's public face: its metadata (RFC 8414) and the public keys out of Vault's transit engine."""

from __future__ import annotations

import httpx
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from orchestrator.vault.jwks import jwks_from_transit


def issuer_app(issuer: str, vault_address: str, vault_token: str, key: str) -> Starlette:
    """`vault_token` may read the transit key's public part and nothing else."""

    async def metadata(request: Request) -> Response:
        return JSONResponse(
            {"issuer": issuer, "jwks_uri": f"{issuer}/.well-known/jwks.json", "response_types_supported": []}
        )

    async def jwks(request: Request) -> Response:
        try:
            async with httpx.AsyncClient(trust_env=False, timeout=5) as client:
                answer = await client.get(
                    f"{vault_address}/v1/transit/keys/{key}", headers={"X-Vault-Token": vault_token}
                )
            answer.raise_for_status()
        except httpx.HTTPError:
            return JSONResponse({"error": "the keys cannot be read from Vault"}, 503)
        return JSONResponse(jwks_from_transit(key, answer.json()), headers={"Cache-Control": "max-age=60"})

    return Starlette(
        routes=[
            Route("/.well-known/oauth-authorization-server", metadata),
            Route("/.well-known/jwks.json", jwks),
        ]
    )
