"""The enforcement point of one service: who calls, by which token, and may they do this?"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from urllib.parse import parse_qsl

from orchestrator.clock import Clock, SystemClock
from orchestrator.pep.access import AccessToken, Shortfall, shortfall
from orchestrator.pep.challenges import AccessRefused, Code, Scheme, Schemes, checked_scope, quoted, told
from orchestrator.pep.details import Operation
from orchestrator.pep.errors import IssuerUnreachable, ProofRefused, Reason, TokenRefused
from orchestrator.pep.introspection import Introspection
from orchestrator.pep.jwt.claims import Expected
from orchestrator.pep.jwt.proofs import ALGORITHMS, Presented
from orchestrator.pep.possession import Possession, bound_to
from orchestrator.pep.sources import KeySource, verify_by

_TOKEN = re.compile(r"[A-Za-z0-9._~+/-]+=*")
"""`b64token` (RFC 6750, 2.1)."""


@dataclass(frozen=True)
class Protection:
    """Verifies the tokens of one issuer for one service, `realm`. Raises ValueError for a realm that cannot be quoted.

    Where `introspection` is given, each token is also asked about, after everything else was right. Tokens that are
    bound to a key are taken where `possession` says how, with a proof for each request, and never without one.
    """

    expected: Expected
    keys: KeySource
    realm: str
    introspection: Introspection | None = None
    clock: Clock = field(default_factory=SystemClock, repr=False)
    possession: Possession | None = None

    def __post_init__(self) -> None:
        quoted(self.realm)

    async def authenticate(
        self,
        authorization: Sequence[str | bytes],
        query: str | bytes = "",
        presented: Presented | None = None,
    ) -> AccessToken:
        """The verified token of a request. Raises AccessRefused, nothing else.

        `authorization`: the value of each header `Authorization` that came, so that two of them are noticed.
        `query`: what stands behind the `?`, where tokens must not be (RFC 6750, 2.3; RFC 9700, 4.3.2).
        `presented`: what proves that the sender has the key that a token is bound to.
        """
        scheme, token = self._sent(authorization, query)
        try:
            access = AccessToken.of(await verify_by(token, self.keys, self.expected, self.clock))
            await self._check_possession(scheme, access, token, presented)
            return access if self.introspection is None else await self.introspection.confirm(token, access)
        except ProofRefused as error:
            wanted = Code.NONCE_WANTED if error.reason is Reason.NONCE else Code.INVALID_PROOF
            raise self._refused(wanted, told(error), used=scheme) from error
        except TokenRefused as error:
            raise self._refused(Code.INVALID_TOKEN, told(error), used=scheme) from error
        except IssuerUnreachable as error:
            raise AccessRefused(
                Code.UNAVAILABLE,
                "the issuer of the tokens cannot be asked",
                realm=self.realm,
                retry_after=error.retry_after,
            ) from error

    def require(self, token: AccessToken, *, scope: str | None = None, operation: Operation | None = None) -> None:
        """Demand what one operation needs. Raises AccessRefused with 403, ValueError where nothing is demanded."""
        needed = None if scope is None else checked_scope(scope)
        used = Scheme.DPOP if "cnf" in token.claims else Scheme.BEARER
        match shortfall(token, scope=needed, operation=operation):
            case Shortfall.SCOPE:
                raise self._refused(Code.INSUFFICIENT_SCOPE, f"this needs the scope {needed}", needed, used)
            case Shortfall.DETAILS:
                description = "the token's authorization_details do not permit this"
                raise self._refused(Code.INSUFFICIENT_SCOPE, description, needed, used)

    async def aclose(self) -> None:
        """Close what is open to the issuer."""
        if self.introspection is not None:
            await self.introspection.aclose()

    async def _check_possession(
        self, scheme: Scheme, access: AccessToken, token: str, presented: Presented | None
    ) -> None:
        """Raises TokenRefused where a bound token comes as if it were not, or one that is not as if it were."""
        bound = bound_to(access)
        if scheme is Scheme.BEARER and bound is None:
            return
        if scheme is Scheme.BEARER or bound is None or self.possession is None or presented is None:
            raise TokenRefused(Reason.CONFIRMATION, "it is not sent as it is to be", claim="cnf")
        await self.possession.check(access, token, presented, self.clock.now().timestamp())

    def _sent(self, authorization: Sequence[str | bytes], query: str | bytes) -> tuple[Scheme, str]:
        """The token that was sent, in the one way that is taken (RFC 6750, 2)."""
        if _has_token(query):
            raise self._refused(Code.INVALID_REQUEST, "a token is sent in the header Authorization only")
        if len(authorization) > 1:
            raise self._refused(Code.INVALID_REQUEST, "there is more than one header Authorization")
        value = authorization[0] if authorization else ""
        named, blank, token = (value.decode("latin-1") if isinstance(value, bytes) else value).partition(" ")
        taken = [Scheme.BEARER, *([Scheme.DPOP] if self.possession else [])]
        scheme = next((each for each in taken if each.lower() == named.lower()), None)
        if scheme is None:
            raise self._refused(Code.UNAUTHORIZED, "")
        token = token.lstrip(" ")
        if not blank or not token:
            raise self._refused(Code.INVALID_REQUEST, "there is no token in the header Authorization", used=scheme)
        if not _TOKEN.fullmatch(token):
            error = TokenRefused(Reason.NOT_COMPACT, "it is not written as a token is")
            raise self._refused(Code.INVALID_TOKEN, told(error), used=scheme) from error
        return scheme, token

    def _refused(
        self, code: Code, description: str, scope: str | None = None, used: Scheme = Scheme.BEARER
    ) -> AccessRefused:
        schemes = None
        if self.possession is not None:
            nonces = self.possession.nonces if code is Code.NONCE_WANTED else None
            nonce = None if nonces is None else nonces.fresh(self.clock.now().timestamp())
            schemes = Schemes(ALGORITHMS, used, nonce)
        return AccessRefused(code, description, realm=self.realm, scope=scope, schemes=schemes)


def _has_token(query: str | bytes) -> bool:
    text = query.decode("latin-1") if isinstance(query, bytes) else query
    return any(name == "access_token" for name, _ in parse_qsl(text, keep_blank_values=True))
