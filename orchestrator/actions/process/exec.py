"""`exec`: a program of the author's own, in an empty environment, with the step's credentials and nothing else."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator
from pydantic import JsonValue as Json

from orchestrator.actions.base import GrantRef, Params, StepContext
from orchestrator.actions.handover import Handover
from orchestrator.actions.process.supervised import SAFE_PATH, Command, Finished, Running, run_process
from orchestrator.actions.references import (
    credential_of,
    postgres_environment,
    redactor_for,
    secret_of,
    within_deadline,
)
from orchestrator.errors import OutputRefused, StepFailed
from orchestrator.grants.credential import Credential
from orchestrator.jsontypes import JsonObject, JsonValue
from orchestrator.redaction.redactor import Redactor
from orchestrator.secret import Secret

_STDERR_SHOWN = 2000
Variable = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]
Text = Annotated[str, Field(pattern=r"^[^\x00]*$")]
FileRef = Annotated[
    str, GrantRef("database", "secret", "dynamic", "token", anew=True), Field(pattern=r"^[^.]+(\.[^.]+)?$")
]
FieldRef = Annotated[str, GrantRef("database", "secret", "dynamic", "token"), Field(pattern=r"^[^.]+\.[^.]+$")]


class ExecCredentials(Params):
    """How credentials reach the program, as `VARIABLE: grant.field`, or a whole one as `VARIABLE: grant`."""

    env: dict[Variable, FieldRef] = Field(
        default_factory=dict,
        description="Variables that hold the secret itself. They can be read in /proc/PID/environ of the program, by "
        "the same user, as long as it lives; prefer `files`.",
    )
    files: dict[Variable, FileRef] = Field(
        default_factory=dict,
        description="Variables that hold the path of a file (mode 0600, in memory) with the secret; it goes when the "
        'program does. `grant` without a field is all of it, as JSON: `{"version": 1, "fields": {...}}`; if it is '
        "issued anew another file takes the place of this one, with the next version.",
    )


class ExecParams(Params):
    """A program, and where it finds the step's credentials: in variables, or in files that only it can read."""

    command: Annotated[list[Text], Field(min_length=1)] = Field(
        description="The program and its arguments; there is no shell. Expressions never see credentials, so no "
        "argument can hold one."
    )
    stdin: Json = Field(default=None, description="Text as it is; anything else as JSON.")
    environment: dict[Variable, Text] = Field(
        default_factory=dict,
        description=f"The whole environment, except that PATH defaults to {SAFE_PATH}, and that "
        "variables of libpq (PGSSLMODE, PGSSLROOTCERT, PGREQUIREAUTH) say how the step's databases are connected to.",
    )
    credentials: ExecCredentials = Field(default_factory=ExecCredentials)
    cwd: Path | None = Field(default=None, description="Default: a fresh private directory, removed afterwards.")
    output: Literal["text", "json", "none"] = Field(default="text", description="What the standard output is.")
    max_bytes: Annotated[int, Field(gt=0)] = Field(default=5_000_000, description="The longest standard output.")

    @model_validator(mode="after")
    def _names_are_unique(self) -> ExecParams:
        names = [*self.environment, *self.credentials.env, *self.credentials.files]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"set more than once: {', '.join(twice)}")
        return self


class Exec:
    """Output: `{"exit_code": 0}` with `stdout` (text) or `json` (parsed). Kinds: `exit_status`, `timeout`, `output`."""

    summary: ClassVar[str] = "Run a program without a shell, in an empty environment."
    params: ClassVar[type[Params]] = ExecParams

    def view(self, params: ExecParams) -> JsonObject:
        """The program's name; its arguments are contents."""
        return {"program": params.command[0], "arguments": len(params.command) - 1}

    async def run(self, params: ExecParams, context: StepContext) -> JsonValue:
        """Run it until it ends, or kill it with all its descendants at the deadline. Raises StepFailed."""
        command = Command(
            arguments=params.command,
            environment={"PATH": SAFE_PATH, **postgres_environment(context), **params.environment},
            secrets={name: secret_of(context, ref) for name, ref in params.credentials.env.items()},
            files={name: _content(context, ref) for name, ref in params.credentials.files.items()},
            directory=params.cwd,
            stdin=_stdin(params.stdin),
            max_bytes=params.max_bytes,
            started=partial(_take_anew, params, context.handover) if context.handover else None,
        )
        async with within_deadline(context, "the command"):
            finished = await run_process(command)
        if finished.exit_code != 0:
            raise failure(finished, redactor_for(context))
        return _output(finished, params.output)


def _content(context: StepContext, reference: str) -> Secret:
    """What the file holds: one field as it is, or the whole credential."""
    return secret_of(context, reference) if "." in reference else _whole(credential_of(context, reference))


def _whole(credential: Credential) -> Secret:
    """All fields in one document, so that a program never reads the name of one login and the password of another."""
    fields = {name: secret.reveal() for name, secret in credential.fields.items()}
    return Secret(json.dumps({"version": credential.version, "fields": fields}))


def _take_anew(params: ExecParams, handover: Handover, running: Running) -> None:
    async def receive(credential: Credential) -> None:
        names = [name for name, reference in params.credentials.files.items() if reference == credential.grant]
        await running.replace_files(dict.fromkeys(names, _whole(credential)))

    handover.take(receive)


def failure(finished: Finished, redactor: Redactor) -> StepFailed:
    """The error for a command that did not end with exit code 0, with the redacted end of its stderr."""
    code = finished.exit_code
    how = f"ended with exit code {code}" if code > 0 else f"was killed by signal {-code}"
    shown = redactor.redact(finished.stderr.decode(errors="replace"))
    if finished.stderr_cut:
        shown = shown[redactor.reach :]
    shown = shown.strip()[-_STDERR_SHOWN:]
    return StepFailed(
        f"the command {how}" + (f"; the end of its stderr:\n{shown}" if shown else ""),
        kind="exit_status",
        hint="read what the program says; its environment is empty except for what the step declares",
    )


def _stdin(value: Json) -> bytes:
    if value is None:
        return b""
    return (value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)).encode()


def _output(finished: Finished, form: str) -> JsonValue:
    output: dict[str, JsonValue] = {"exit_code": finished.exit_code}
    if form == "text":
        output["stdout"] = finished.stdout.decode(errors="replace")
    elif form == "json":
        try:
            output["json"] = json.loads(finished.stdout)
        except (ValueError, RecursionError):
            raise OutputRefused(
                f"the command's standard output ({len(finished.stdout)} bytes) is not JSON",
                hint="write nothing but one JSON document to stdout, or set `output: text`",
            ) from None
    return output
