"""`python`: a function of the author's own, in a fresh process that holds the step's credentials and nothing else."""

from __future__ import annotations

import json
import sys
from functools import partial
from pathlib import Path
from typing import Annotated, ClassVar

from pydantic import Field
from pydantic import JsonValue as Json

from orchestrator.actions.base import Params, StepContext
from orchestrator.actions.handover import Handover
from orchestrator.actions.process.exec import failure
from orchestrator.actions.process.supervised import SAFE_PATH, Command, Finished, Running, run_process
from orchestrator.actions.references import postgres_environment, redactor_for, within_deadline
from orchestrator.errors import OutputRefused, StepFailed
from orchestrator.grants.credential import Credential
from orchestrator.jsontypes import JsonObject, JsonValue
from orchestrator.redaction.redactor import Redactor

_MESSAGE_SHOWN = 500
_IDENTIFIER = r"[A-Za-z_]\w*"
_RESULT_ALLOWANCE = 1000
"""Bytes that the envelope of a result or a short error may take besides the value."""


class PythonParams(Params):
    """A function by the name under which it is imported, its arguments, and where its module is looked for."""

    takes_new_credentials: ClassVar[bool] = True
    callable: Annotated[str, Field(pattern=rf"^{_IDENTIFIER}(\.{_IDENTIFIER})*:{_IDENTIFIER}(\.{_IDENTIFIER})*$")] = (
        Field(
            description="`package.module:function`, plain or async. Besides `arguments` it may take `credentials` (a "
            "mapping of grant to field to text, which always holds what was issued last) and `context` (the ids of "
            "run, step and attempt, idempotency_key)."
        )
    )
    arguments: dict[str, Json] = Field(default_factory=dict, description="Keyword arguments, as JSON.")
    path: list[Path] = Field(default_factory=list, description="Directories that modules are looked for in first.")
    max_bytes: Annotated[int, Field(gt=0)] = Field(default=5_000_000, description="The longest result, as JSON.")


class Python:
    """Output: what the function returns. Kinds: `error` (it raised), `exit_status`, `timeout`, `output`."""

    summary: ClassVar[str] = "Call a Python function in a process of its own."
    params: ClassVar[type[Params]] = PythonParams

    def view(self, params: PythonParams) -> JsonObject:
        """The function's name and the names of its arguments."""
        return {"callable": params.callable, "arguments": sorted(params.arguments)}

    async def run(self, params: PythonParams, context: StepContext) -> JsonValue:
        """Call it in a new interpreter (`python -I`) and return its result, which must be JSON.

        The credentials reach the child through its standard input. Raises StepFailed.
        """
        command = Command(
            arguments=[sys.executable, "-I", "-m", "orchestrator.actions.process.python_child"],
            environment={"PATH": SAFE_PATH, **postgres_environment(context)},
            stdin=_request(params, context),
            max_bytes=params.max_bytes + _RESULT_ALLOWANCE,
            started=partial(_take_anew, context.handover) if context.handover else None,
        )
        async with within_deadline(context, "the function"):
            finished = await run_process(command)
        return _result(finished, params, redactor_for(context))


def _request(params: PythonParams, context: StepContext) -> bytes:
    """What the child reads first from its standard input; only here the credentials are together in plain text."""
    request = {
        "callable": params.callable,
        "path": [str(path.absolute()) for path in params.path],
        "arguments": params.arguments,
        "credentials": {
            name: {field: secret.reveal() for field, secret in credential.fields.items()}
            for name, credential in context.credentials.items()
        },
        "context": {
            "run_id": context.run_id,
            "workflow": context.workflow,
            "step": context.step,
            "attempt": context.attempt,
            "agent": context.agent,
            "idempotency_key": context.idempotency_key,
        },
    }
    return json.dumps(request).encode() + b"\n"


def _take_anew(handover: Handover, running: Running) -> None:
    """Each new credential is one more line on the child's standard input."""

    async def receive(credential: Credential) -> None:
        fields = {name: secret.reveal() for name, secret in credential.fields.items()}
        message = {"grant": credential.grant, "version": credential.version, "fields": fields}
        running.write(json.dumps(message).encode() + b"\n")

    handover.take(receive)


def _result(finished: Finished, params: PythonParams, redactor: Redactor) -> JsonValue:
    if finished.exit_code != 0:
        raise failure(finished, redactor)
    try:
        answer = json.loads(finished.stdout)
    except ValueError:
        raise StepFailed(
            f"`{params.callable}` ended its process without a result",
            hint="return from the function instead of exiting",
        ) from None
    if "value" in answer:
        value: JsonValue = answer["value"]
        return value
    problem = " ".join(redactor.redact(str(answer["message"])).split())[:_MESSAGE_SHOWN]
    if answer["kind"] == "output":
        raise OutputRefused(f"`{params.callable}` did not return JSON: {problem}", hint="return plain JSON values")
    raise StepFailed(f"`{params.callable}` raised {problem}", kind="error", hint=answer.get("hint"))
