"""Proofs that a request is of whoever has a key (RFC 9449). Needs joserfc, and not before a key is made."""

from __future__ import annotations

import base64
import hashlib
import json
import uuid
from typing import TYPE_CHECKING, Protocol, Self

from orchestrator.clock import Clock, SystemClock
from orchestrator.secret import Secret

if TYPE_CHECKING:
    from joserfc.jwk import ECKey


class Prover(Protocol):
    """Whoever has a key that tokens can be bound to: a `ProofKey`, or what signs with one that is kept elsewhere."""

    def proof(self, method: str, url: str, *, token: str = "", nonce: str = "") -> str:
        """The header `DPoP` of one request; `token` goes with it, `nonce` is what the server wants in it."""
        ...


class ProofKey:
    """A key of the agent's own (ES256), made for as long as the process lives: it is of use to nobody else."""

    def __init__(self, key: ECKey, clock: Clock | None = None) -> None:
        self._key = key
        self._clock = clock or SystemClock()
        self._public = {name: key.as_dict(private=False)[name] for name in ("kty", "crv", "x", "y")}

    def __repr__(self) -> str:
        return f"<ProofKey {self.thumbprint}>"

    @classmethod
    def generate(cls, clock: Clock | None = None) -> Self:
        """A new one."""
        from joserfc.jwk import ECKey

        return cls(ECKey.generate_key("P-256"), clock)

    @classmethod
    def from_jwk(cls, private: Secret, clock: Clock | None = None) -> Self:
        """The key of `private_jwk`. Raises ValueError for what is none."""
        from joserfc.errors import JoseError
        from joserfc.jwk import ECKey

        try:
            return cls(ECKey.import_key(json.loads(private.reveal())), clock)
        except (JoseError, TypeError, KeyError, AttributeError):
            raise ValueError("it is no private key in the form of a JWK") from None

    @property
    def private_jwk(self) -> Secret:
        """The key itself (RFC 7517, as JSON), for whoever is given the token that is bound to it."""
        jwk = self._key.as_dict(private=True)
        return Secret(json.dumps({name: jwk[name] for name in ("kty", "crv", "x", "y", "d")}, sort_keys=True))

    @property
    def thumbprint(self) -> str:
        """By which tokens name it (RFC 7638). Not secret."""
        return self._key.thumbprint()

    def proof(self, method: str, url: str, *, token: str = "", nonce: str = "") -> str:
        """A new proof, which counts once (RFC 9449, 4.2)."""
        from joserfc.jws import JWSRegistry

        claims = {
            "jti": str(uuid.uuid4()),
            "htm": method,
            "htu": url.partition("#")[0].partition("?")[0],
            "iat": int(self._clock.now().timestamp()),
            **({"ath": _encoded(hashlib.sha256(token.encode()).digest())} if token else {}),
            **({"nonce": nonce} if nonce else {}),
        }
        head = {"typ": "dpop+jwt", "alg": "ES256", "jwk": self._public}
        signed = f"{_encoded(json.dumps(head).encode())}.{_encoded(json.dumps(claims).encode())}"
        signature = JWSRegistry(algorithms=["ES256"]).get_alg("ES256").sign(signed.encode(), self._key)
        return f"{signed}.{_encoded(signature)}"


def _encoded(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()
