"""A decision as it was recorded, wherever it was recorded."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime

from orchestrator.jsontypes import JsonObject, JsonValue
from orchestrator.policy.types import Question


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordedDecision:
    """One decision with the whole question. `input` is empty where it is not on record, or not any more."""

    run: str
    workflow: str
    step: str
    attempt: int
    time: datetime
    question: Question
    input: JsonObject
    input_digest: str
    allow: bool
    reasons: tuple[str, ...]
    engine: str
    revision: str
    answer: JsonValue = None
    obligations: JsonObject = field(default_factory=dict)
    decision_id: str = ""

    @property
    def key(self) -> str:
        """Where it is in the history: `RUN/STEP/ATTEMPT`."""
        return f"{self.run}/{self.step}/{self.attempt}"
