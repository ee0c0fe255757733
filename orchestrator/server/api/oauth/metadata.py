"""Where everything is (RFC 8414), and the keys that our tokens are signed with (RFC 7517): for everybody who asks."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from orchestrator.grants.models import TOKEN_KEY
from orchestrator.pep.errors import IssuerUnreachable
from orchestrator.pep.jwt.proofs import ALGORITHMS
from orchestrator.server.api.oauth.exchange import DETAILS_TYPE, GRANT_TYPE
from orchestrator.server.api.oauth.operations import INTROSPECT, REVOKE, TOKEN
from orchestrator.server.api.problems import Kind, Problem, problem_of
from orchestrator.tasks.signing_keys import KEYS_SECONDS, SigningKeys
from orchestrator.vault.jwks import issuer_of

WELL_KNOWN = "/.well-known/oauth-authorization-server"
KEY_SET = "/.well-known/jwks.json"

_KEPT = {"Cache-Control": f"max-age={KEYS_SECONDS:.0f}"}


@dataclass(frozen=True, slots=True)
class Metadata:
    """What is published. `issuer` is ORCHESTRATOR_TOKEN_ISSUER, and `url` how others reach this API; where either is
    not known there is nothing to publish. `signing` are the transit keys of the declared tokens: each but the usual one
    is of an issuer of its own, whose path is that key. `certificates`: agents may show theirs."""

    issuer: str | None
    url: str | None
    keys: SigningKeys
    signing: Callable[[], Collection[str]]
    certificates: bool

    def routes(self) -> Sequence[Route]:
        """`/.well-known/...` stands before the path of an issuer (RFC 8414, 3.1), and its keys are below that."""
        return (
            Route(WELL_KNOWN, self.metadata),
            Route(WELL_KNOWN + "{path:path}", self.metadata),
            Route(KEY_SET, self.key_set),
            Route("/{path:path}" + KEY_SET, self.key_set),
        )

    async def metadata(self, request: Request) -> Response:
        """RFC 8414, 2."""
        name = self._key_at(request.path_params.get("path", ""))
        if name is None or self.issuer is None or self.url is None:
            return _nothing()
        issuer = issuer_of(self.issuer, name)
        certificates = ["tls_client_auth"] if self.certificates else []
        return JSONResponse(
            {
                "issuer": issuer,
                "token_endpoint": self.url + TOKEN,
                "token_endpoint_auth_methods_supported": ["none", *certificates],
                "introspection_endpoint": self.url + INTROSPECT,
                "introspection_endpoint_auth_methods_supported": ["Bearer", *certificates],
                "revocation_endpoint": self.url + REVOKE,
                "revocation_endpoint_auth_methods_supported": ["Bearer", *certificates],
                "jwks_uri": self.url + _path_of(issuer) + KEY_SET,
                "response_types_supported": [],
                "grant_types_supported": [GRANT_TYPE],
                "authorization_details_types_supported": [DETAILS_TYPE],
                "dpop_signing_alg_values_supported": list(ALGORITHMS),
            },
            headers=_KEPT,
        )

    async def key_set(self, request: Request) -> Response:
        """The public keys of one issuer."""
        path = request.path_params.get("path", "")
        name = self._key_at(f"/{path}" if path else "")
        if name is None:
            return _nothing()
        key = self.keys.named(name)
        self.keys.keep(key)
        try:
            document = await key.document()
        except IssuerUnreachable as error:
            return problem_of(error).response()
        return JSONResponse(dict(document), media_type="application/jwk-set+json", headers=_KEPT)

    def _key_at(self, path: str) -> str | None:
        """The key whose issuer has this path."""
        if self.issuer is None:
            return None
        issuer = self.issuer
        known = {TOKEN_KEY, *self.signing()}
        return next((name for name in sorted(known) if _path_of(issuer_of(issuer, name)) == path), None)


def _path_of(issuer: str) -> str:
    return urlsplit(issuer).path.rstrip("/")


def _nothing() -> Response:
    hint = "ORCHESTRATOR_TOKEN_ISSUER and --api-url say what there is"
    return Problem(Kind.NOT_FOUND, "there is no such issuer here", hint).response()
