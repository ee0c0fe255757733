"""What a token of another issuer says of itself, held against its grant."""

from __future__ import annotations

from orchestrator.credentials.issuers.oauth2.answer import claims_of
from orchestrator.grants.credential import Credential
from orchestrator.grants.scope import Scope
from orchestrator.proof.forbidden import Trial, Verdict
from orchestrator.proof.report import GrantProof


def examine_access_token(step: str, scope: Scope, credential: Credential) -> GrantProof:
    """Look into a JWT for what was not asked for. An opaque token says nothing: of that the issuer's answer told."""
    claims = claims_of(credential.fields["token"].reveal())
    trials = [_trial("live longer than its grant", credential.ttl <= scope.ttl, f"{credential.ttl}s of {scope.ttl}s")]
    told = "the issuer said so, and the token itself says nothing"
    if scope.scopes and isinstance(said := claims.get("scope", claims.get("scp")), str | list):
        held = set(said.split() if isinstance(said, str) else map(str, said))
        trials.append(_trial("hold another scope than was declared", held == set(scope.scopes), " ".join(sorted(held))))
    elif scope.scopes:
        trials.append(Trial("hold another scope than was declared", Verdict.REFUSED, told))
    if scope.audience is not None and claims:
        one = claims.get("aud") in (scope.audience, [scope.audience])
        trials.append(_trial("serve as a token for another service", one, f"it is for {scope.audience}"))
    if scope.proof is not None:
        bound = "cnf" in claims or not claims
        trials.append(_trial("be of use without its key", bound, "the token is bound to a key" if claims else told))
    return GrantProof(step=step, grant=scope.name, declared=scope.describe(), trials=tuple(trials))


def _trial(what: str, as_declared: bool, told: str) -> Trial:
    return Trial(what, Verdict.REFUSED if as_declared else Verdict.ALLOWED, told)
