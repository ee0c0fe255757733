"""What a step's parameters refer to: its credentials, its endpoints, its deadline."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from orchestrator.actions.base import StepContext
from orchestrator.errors import StepFailed
from orchestrator.grants.credential import Credential
from orchestrator.redaction.redactor import Redactor
from orchestrator.secret import Secret


def credential_of(context: StepContext, grant: str) -> Credential:
    """The credential that was issued for this grant of the step."""
    credential = context.credentials.get(grant)
    if credential is None:
        raise StepFailed(
            f"the step holds no credential for a grant `{grant}`",
            hint=f"declare it in `grants`; there is: {', '.join(sorted(context.credentials)) or 'none'}",
        )
    return credential


def secret_of(context: StepContext, reference: str, *, default: str = "token") -> Secret:
    """The secret that `grant.field` names, or `grant` with the default field."""
    grant, _, field = reference.partition(".")
    return field_of(credential_of(context, grant), field or default)


def field_of(credential: Credential, field: str) -> Secret:
    """One field of what was issued."""
    secret = credential.fields.get(field)
    if secret is None:
        raise StepFailed(
            f"the credential of grant `{credential.grant}` has no field `{field}`",
            hint=f"there is: {', '.join(sorted(credential.fields)) or 'nothing'}; write `grant.field`",
        )
    return secret


def redactor_for(context: StepContext) -> Redactor:
    """A redactor that knows all that this step has held until now, for messages that come from outside."""
    anew = context.handover.delivered if context.handover else []
    held = [*context.credentials.values(), *anew]
    return Redactor(secret for credential in held for secret in credential.fields.values())


def redacted(context: StepContext, text: str, *, begins_anywhere: bool = False) -> str:
    """A text from outside, without what this step has held, and without the orchestrator's own secrets.

    `begins_anywhere`: it was cut, so that what it begins with may be the rest of a secret, and is left out, too.
    """
    known = (redactor_for(context), context.own)
    reach = max(each.reach for each in known) if begins_anywhere else 0
    for each in known:
        text = each.redact(text)
    return text[reach:]


def postgres_environment(context: StepContext) -> dict[str, str]:
    """Variables with which a program of the step connects to its databases as carefully as we do."""
    held = {each.connection or "" for each in context.credentials.values() if each.kind == "database"}
    if not held:
        return {}
    from orchestrator.network.postgres import environment

    return environment(context.endpoints[name] for name in sorted(held & context.endpoints.keys()))


@asynccontextmanager
async def within_deadline(context: StepContext, what: str) -> AsyncIterator[None]:
    """Stop the block at the step's deadline with StepFailed `timeout`. `what` is the subject of the message."""
    try:
        async with asyncio.timeout(context.remaining()):
            yield
    except TimeoutError:
        raise too_long(what) from None


def too_long(what: str) -> StepFailed:
    """The error of something that was stopped at the step's deadline."""
    return StepFailed(
        f"{what} took longer than the step may",
        kind="timeout",
        hint="raise `timeout` of the step, or do less in it",
    )
