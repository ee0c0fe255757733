"""Proofs that whoever uses a token has its key (RFC 9449)."""

from __future__ import annotations

import base64
import hashlib
import json
import secrets
from dataclasses import dataclass
from datetime import datetime
from urllib.parse import urlsplit

from orchestrator.secret import Secret


@dataclass(frozen=True, slots=True)
class ProofKey:
    """A P-256 key that is made for one token and known to nobody else. `private` is its JWK, as JSON."""

    private: Secret

    @classmethod
    def new(cls) -> ProofKey:
        """A key that nobody has had before."""
        from joserfc.jwk import ECKey

        key = ECKey.generate_key("P-256", private=True)
        return cls(Secret(json.dumps(key.as_dict(private=True), separators=(",", ":"), sort_keys=True)))

    def proof(
        self, method: str, url: str, now: datetime, *, token: Secret | None = None, nonce: str | None = None
    ) -> Secret:
        """A proof for one request (RFC 9449, 4.2); with the token that it goes along with where there is one."""
        from joserfc import jwt
        from joserfc.jwk import ECKey

        key = ECKey.import_key(json.loads(self.private.reveal()))
        parts = urlsplit(url)
        claims: dict[str, object] = {
            "jti": secrets.token_urlsafe(16),
            "htm": method,
            "htu": f"{parts.scheme}://{parts.netloc}{parts.path}",
            "iat": int(now.timestamp()),
        }
        if token is not None:
            digest = hashlib.sha256(token.reveal().encode("ascii")).digest()
            claims["ath"] = base64.urlsafe_b64encode(digest).rstrip(b"=").decode()
        if nonce is not None:
            claims["nonce"] = nonce
        public = {name: value for name, value in key.as_dict(private=False).items() if name in ("kty", "crv", "x", "y")}
        header = {"typ": "dpop+jwt", "alg": "ES256", "jwk": public}
        return Secret(jwt.encode(header, claims, key, algorithms=["ES256"]))

    def thumbprint(self) -> str:
        """What a token that is bound to it says in `cnf.jkt` (RFC 7638)."""
        from joserfc.jwk import ECKey

        return ECKey.import_key(json.loads(self.private.reveal())).thumbprint()
