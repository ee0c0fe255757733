"""What a proof found, as data: one entry for each grant of each step."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from orchestrator.jsontypes import being
from orchestrator.proof.comparison import Comparison
from orchestrator.proof.forbidden import Trial, Verdict
from orchestrator.proof.holdings import Share


@dataclass(frozen=True, slots=True, kw_only=True)
class GrantProof:
    """One grant: what was declared in words, what was found, and what was tried."""

    step: str
    grant: str
    declared: str
    comparison: Comparison | None = None
    """None for what is not a database login."""
    trials: tuple[Trial, ...] = ()
    former: str = ""
    """The login that was used before, if one was named."""
    before: Share | None = None
    """Its share."""
    after: Share | None = None
    notes: tuple[str, ...] = ()
    """What is no fault of the credential, and should be known of what it shows."""
    refused: str = ""
    """Why the credential was not issued at all; then nothing is proven."""

    @property
    def examined(self) -> bool:
        """Whether there was anything to hold the credential to; a foreign one can only be issued and taken back."""
        return self.comparison is not None or bool(self.trials)

    @property
    def holds(self) -> bool:
        """Whether it was issued, is exact, and no trial was allowed; an inconclusive one is not held against it."""
        exact = self.comparison is None or self.comparison.exact
        return not self.refused and exact and all(trial.verdict is not Verdict.ALLOWED for trial in self.trials)

    def as_json(self) -> dict[str, Any]:
        """A JSON object; `refused` and `notes` are there only where there are any."""
        found: dict[str, Any] = {
            "step": self.step,
            "grant": self.grant,
            "declared": self.declared,
            "examined": self.examined,
            "holds": self.holds,
        }
        if self.refused:
            found["refused"] = self.refused
        if self.comparison is not None:
            found["held"] = [str(each) for each in self.comparison.held]
            found["missing"] = [str(each) for each in self.comparison.missing]
            found["excess"] = [
                {"privilege": str(each.holding), "via": each.via, "tolerated": each.tolerated}
                for each in self.comparison.excess
            ]
        if self.former:
            found["former"] = self.former
        for name, share in (("before", self.before), ("after", self.after)):
            if share is not None:
                found[name] = {"held": share.held, "of": share.total, "percent": round(share.percent, 3)}
        if self.notes:
            found["notes"] = list(self.notes)
        found["tried"] = [{"what": t.what, "verdict": t.verdict.value, "answer": t.answer} for t in self.trials]
        return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Proof:
    """All grants of a workflow, or of one of its steps. `run_id` is where the ledger has the leases."""

    workflow: str
    digest: str
    run_id: str
    agent: str
    """Whose credentials they are."""
    made: datetime
    """When, in UTC."""
    grants: tuple[GrantProof, ...] = field(default=())
    unconfirmed: int = 0
    """Leases whose revocation is not confirmed yet."""

    @property
    def holds(self) -> bool:
        """Whether every grant holds."""
        return all(each.holds for each in self.grants)

    def as_json(self) -> dict[str, Any]:
        """A JSON object; `unconfirmed` counts leases whose end is not confirmed."""
        return {
            "workflow": self.workflow,
            "digest": self.digest,
            "run": self.run_id,
            "agent": self.agent,
            "made": self.made.isoformat(timespec="seconds"),
            "holds": self.holds,
            "unconfirmed": self.unconfirmed,
            "grants": [each.as_json() for each in self.grants],
        }


def proven_words(proof: Proof) -> str:
    """How many of the credentials that could be held to anything, or were not issued, were proven."""
    examined = [grant for grant in proof.grants if grant.examined or grant.refused]
    if examined:
        return f"{sum(grant.holds for grant in examined)} of {len(examined)} proven"
    return "nothing to prove: " + (
        "there is nothing to hold these credentials to" if proof.grants else "no step has a credential"
    )


def revoked_words(proof: Proof) -> str:
    """What became of the credentials that were examined."""
    if proof.unconfirmed:
        return f"{being(proof.unconfirmed, 'revocation')} not confirmed yet"
    return "everything issued was revoked"
