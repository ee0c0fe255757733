"""`exec`: a program of the author's own, in an empty environment, with the step's credentials and nothing else."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, PrivateAttr, ValidationInfo, model_validator
from pydantic import JsonValue as Json

from orchestrator.actions.base import GrantRef, LocalPath, OutputType, Params, StepContext
from orchestrator.actions.handover import Handover
from orchestrator.actions.process.confined import ConfinedParams
from orchestrator.actions.process.loader_variables import refused_variables
from orchestrator.actions.process.programs import Program, check_unchanged, resolve_program
from orchestrator.actions.process.supervised import (
    DECLARE,
    SAFE_PATH,
    Command,
    Finished,
    Running,
    Written,
    run_process,
)
from orchestrator.actions.references import (
    credential_of,
    postgres_environment,
    redacted,
    secret_of,
    too_long,
    within_deadline,
)
from orchestrator.errors import OutputRefused, StepFailed
from orchestrator.grants.credential import Credential
from orchestrator.jsontypes import JsonObject, JsonValue
from orchestrator.secret import Secret

_STDOUT_SHOWN, _STDERR_SHOWN = 1000, 2000
"""Characters of the end of each that the error of a step has."""
_SEARCHED = 128 * 1024
"""Bytes of the end of each that are searched for secrets, to tell the end of that."""
Variable = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]
Text = Annotated[str, Field(pattern=r"^[^\x00]*$")]
KINDS = ("database", "secret", "dynamic", "token", "oauth2", "aws", "certificate")
"""Kinds of grants that a program may have: all."""
FileRef = Annotated[str, GrantRef(*KINDS, anew=True), Field(pattern=r"^[^.]+(\.[^.]+)?$")]
FieldRef = Annotated[str, GrantRef(*KINDS), Field(pattern=r"^[^.]+\.[^.]+$")]


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


class ExecParams(ConfinedParams):
    """A program, and where it finds the step's credentials: in variables, or in files that only it can read."""

    output_types: ClassVar[Mapping[str, OutputType]] = {"exit_code": "int", "stdout": "string", "base64": "string"}
    output_descriptions: ClassVar[Mapping[str, str]] = {
        "exit_code": "The exit status of the program: 0, since any other fails the step.",
        "stdout": "What it wrote to its standard output, as text.",
        "json": "What it wrote there, read as JSON.",
        "base64": "What it wrote there, whatever bytes they are, in base64.",
    }
    fixed: ClassVar[frozenset[str]] = ConfinedParams.fixed | {"command", "cwd"}

    command: Annotated[list[Text], Field(min_length=1)] = Field(
        description="The program and its arguments; there is no shell. A name alone is looked for in the system's "
        "folders, a relative path in `cwd`, or else in the folder of the workflow's file. Expressions never see "
        "credentials, so no argument can hold one."
    )
    stdin: Json = Field(default=None, description="Text as it is; anything else as JSON.")
    environment: dict[Variable, Text] = Field(
        default_factory=dict,
        description=f"The whole environment, except that PATH defaults to {SAFE_PATH}, TMPDIR to a private folder, and "
        "that variables of libpq (PGSSLMODE, PGSSLROOTCERT, PGREQUIREAUTH) say how the step's databases are connected "
        "to; another PATH needs a program with its full path. What makes a program load or start something else (LD_*, "
        "PYTHON*, ENV, ...) is refused.",
    )
    credentials: ExecCredentials = Field(
        default_factory=ExecCredentials, description="Which credentials the program finds, and where."
    )
    cwd: LocalPath | None = Field(
        default=None,
        description="Where it is started, and what it may read; a relative path begins in the folder of the workflow's "
        "file. Default: a fresh private folder, removed afterwards.",
    )
    output: Literal["text", "json", "base64", "none"] = Field(
        default="text",
        description="What the standard output is: `text` and `json` are UTF-8, `base64` keeps bytes as they are.",
    )
    max_bytes: Annotated[int, Field(gt=0)] = Field(default=5_000_000, description="The longest standard output.")

    @model_validator(mode="after")
    def _names_are_unique(self) -> ExecParams:
        names = [*self.environment, *self.credentials.env, *self.credentials.files]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"set more than once: {', '.join(twice)}")
        if refused := refused_variables(names):
            raise ValueError(f"would make the program load or start something else: {', '.join(refused)}")
        if "PATH" in names and not self.command[0].startswith("/"):
            raise ValueError("a PATH of your own needs a program with its full path")
        return self

    @classmethod
    def output_keys(cls, given: Mapping[str, Any]) -> frozenset[str]:
        """`exit_code`, and what `output` says that the standard output is."""
        key = {"text": {"stdout"}, "json": {"json"}, "base64": {"base64"}, "none": set[str]()}
        return frozenset({"exit_code"} | key.get(str(given.get("output", "text")), {"stdout", "json", "base64"}))

    def implied(self) -> tuple[Path, ...]:
        """Where it works."""
        return () if self.cwd is None else (self.cwd,)

    _program: Program | None = PrivateAttr(default=None)
    _directory: str = PrivateAttr(default="")

    @model_validator(mode="after")
    def _is_of_a_file(self, info: ValidationInfo) -> ExecParams:
        self._directory = (info.context or {}).get("directory", "")
        return self

    @property
    def program(self) -> Program:
        """The file that is run: looked for once, so that it is the one that policies were shown. Raises StepFailed."""
        if self._program is None:
            name = self.command[0]
            if "/" in name and self.cwd is None:
                name = os.path.join(self._directory, name)
            self._program = resolve_program(name, search=SAFE_PATH, directory=self.cwd)
        return self._program


class Exec:
    """Output: `{"exit_code": 0}` with `stdout` (text), `json` (parsed) or `base64`.

    Kinds: `exit_status`, `timeout`, `output`.
    """

    summary: ClassVar[str] = "Run a program without a shell, in an empty environment."
    params: ClassVar[type[Params]] = ExecParams

    def view(self, params: ExecParams) -> JsonObject:
        """The file that is run, how it is called, and the names of its variables; arguments are contents.

        Raises StepFailed where there is no such program.
        """
        program, variables = params.program, params.environment
        view: dict[str, JsonValue] = {
            "program": program.file,
            "called": params.command[0],
            "arguments": len(params.command) - 1,
            "environment": sorted({*variables, *params.credentials.env, *params.credentials.files}),
            **params.reach_view(),
        }
        if program.sha256 is not None:
            view["sha256"] = program.sha256
        if program.directory is not None:
            view["cwd"] = program.directory
        if "PATH" in variables:
            view["path"] = variables["PATH"].split(":")
        return view

    async def run(self, params: ExecParams, context: StepContext) -> JsonValue:
        """Run it until it ends, or kill it with all its descendants at the deadline. Raises StepFailed."""
        await asyncio.to_thread(check_unchanged, params.program)
        directory = params.program.directory
        command = Command(
            arguments=params.command,
            program=params.program.start,
            environment={"PATH": SAFE_PATH, **postgres_environment(context), **params.environment},
            secrets={name: secret_of(context, ref) for name, ref in params.credentials.env.items()},
            files={name: content_of(context, ref) for name, ref in params.credentials.files.items()},
            directory=None if directory is None else Path(directory),
            stdin=_stdin(params.stdin),
            max_bytes=params.max_bytes,
            started=partial(_take_anew, params, context.handover) if context.handover else None,
            confinement=context.confinement,
            reach=params.reach(context),
            printed=context.printed,
        )
        written = Written()
        async with telling_what_was_written(written, context, "the command"):
            finished = await run_process(command, written)
            if finished.exit_code != 0:
                raise failure(finished, written, context)
            return _output(finished, params.output, context.kept)


def content_of(context: StepContext, reference: str) -> Secret:
    """What the file holds: one field as it is, or the whole credential."""
    return secret_of(context, reference) if "." in reference else whole(credential_of(context, reference))


def whole(credential: Credential) -> Secret:
    """All fields in one document, so that a program never reads the name of one login and the password of another."""
    fields = {name: secret.reveal() for name, secret in credential.fields.items()}
    return Secret(json.dumps({"version": credential.version, "fields": fields}))


def _take_anew(params: ExecParams, handover: Handover, running: Running) -> None:
    async def receive(credential: Credential) -> None:
        names = [name for name, reference in params.credentials.files.items() if reference == credential.grant]
        await running.replace_files(dict.fromkeys(names, whole(credential)))

    handover.take(receive)


def failure(finished: Finished, written: Written, context: StepContext) -> StepFailed:
    """The error for a command that did not end with exit code 0, without what it wrote."""
    code = finished.exit_code
    how = f"ended with exit code {code}" if code > 0 else f"was killed by signal {-code}"
    hint = "read what the program says; its environment is empty except for what the step declares"
    confined = context.confinement and seems_confined(written.stderr.decode(errors="replace"))
    return StepFailed(f"the command {how}", kind="exit_status", hint=f"{hint}. {DECLARE}" if confined else hint)


@asynccontextmanager
async def telling_what_was_written(
    written: Written, context: StepContext, what: str, *, stdout: bool = True
) -> AsyncIterator[None]:
    """Hold the block to the step's deadline, and add to its error the redacted end of what the command wrote.

    `stdout`: also that of its standard output; else all that it prints is in its standard error.
    """
    try:
        async with within_deadline(context, what):
            yield
        return
    except asyncio.CancelledError:
        if time.monotonic() < context.deadline:
            raise
        failed: StepFailed = too_long(what)  # whoever stops the action at the deadline was quicker
    except StepFailed as error:
        failed = error
    failed.message += _ends(written, context, stdout=stdout)
    failed.args = (failed.message,)
    raise failed


def _ends(written: Written, context: StepContext, *, stdout: bool) -> str:
    """`; the end of its stdout:` and `the end of its stderr:`, each where there is any."""
    parts = []
    if stdout and (shown := _end(written.stdout, context, _STDOUT_SHOWN)):
        parts.append(f"the end of its stdout:\n{shown}")
    if shown := _end(written.stderr, context, _STDERR_SHOWN, cut=written.stderr_cut):
        parts.append(f"the end of {'its stderr' if stdout else 'what it printed'}:\n{shown}")
    return f"; {chr(10).join(parts)}" if parts else ""


def _end(data: bytearray, context: StepContext, most: int, *, cut: bool = False) -> str:
    """The last lines, of so many characters together; of a longer line its end."""
    cut = cut or len(data) > _SEARCHED
    text = bytes(data[-_SEARCHED:]).decode(errors="replace")
    text = redacted(context, text, begins_anywhere=cut).strip()
    if len(text) <= most:
        return text
    last, _, lines = text[-most:].partition("\n")
    return lines if lines.strip() else last


def seems_confined(text: str) -> bool:
    """Whether a program complains as one that its confinement refuses something; it may be another reason."""
    return any(word in text for word in ("ermission denied", "PermissionError", "EACCES", "peration not permitted"))


def _stdin(value: Json) -> bytes:
    if value is None:
        return b""
    return (value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)).encode()


def _output(finished: Finished, form: str, kept: Sequence[str] | None) -> JsonValue:
    output: dict[str, JsonValue] = {"exit_code": finished.exit_code}
    if form == "text" and kept is not None and "stdout" not in kept:
        output["stdout"] = finished.stdout.decode(errors="replace")  # nobody sees it, but it is searched for secrets
    elif form == "text":
        output["stdout"] = _text(finished.stdout)
    elif form == "json":
        output["json"] = _json(finished.stdout)
    elif form == "base64":
        output["base64"] = base64.b64encode(finished.stdout).decode()
    return output


def _text(stdout: bytes) -> str:
    try:
        return stdout.decode()
    except UnicodeDecodeError as error:
        raise OutputRefused(
            f"the command's standard output ({len(stdout)} bytes) is not UTF-8, first at byte {error.start}",
            hint="set `output: base64` where it is binary, or `output: none`; else let the program write UTF-8",
        ) from None


def _json(stdout: bytes) -> JsonValue:
    """RFC 8259: in UTF-8 (section 8.1), where a byte order mark may be ignored."""
    text = _text(stdout).removeprefix("\ufeff")
    try:
        value: JsonValue = json.loads(text)
    except (ValueError, RecursionError):
        raise OutputRefused(
            f"the command's standard output ({len(stdout)} bytes) is not JSON",
            hint="write nothing but one JSON document to stdout, or set `output: text`",
        ) from None
    return value
