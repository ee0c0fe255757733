"""The action of a tool that gives its credential to the agent, and holds it open until the agent gives it back."""

from __future__ import annotations

from typing import Annotated, ClassVar

from orchestrator.actions.base import GrantRef, Params, StepContext
from orchestrator.errors import StepFailed
from orchestrator.jsontypes import JsonObject, JsonValue

GIVEN_BACK = "given back"
"""Why a call ends whose credential the agent needs no more, in the words of the ledger."""


class HandOverParams(Params):
    """Which grant."""

    grant: Annotated[str, GrantRef("database", "secret", "token", "dynamic", "oauth2", "aws", "certificate")]


class HandOver:
    """Gives the credential to whoever called. The call goes on until it is given back, or its time is over."""

    summary: ClassVar[str] = "Give the credential to the agent"
    params: ClassVar[type[Params]] = HandOverParams

    def view(self, params: HandOverParams) -> JsonObject:
        """Which grant."""
        return {"grant": params.grant}

    async def run(self, params: HandOverParams, context: StepContext) -> JsonValue:
        """Raises StepFailed where nobody waits for it."""
        if context.recipient is None:
            raise StepFailed("nobody is there to take the credential", hint="call the tool again")
        context.recipient.give(context.credentials[params.grant])
        back = await context.recipient.until_given_back(context.deadline)
        return {"given_back": back}
