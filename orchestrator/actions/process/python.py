"""`python`: a function of the author's own, in a fresh process that holds the step's credentials and nothing else."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Annotated, ClassVar

from pydantic import Field, PrivateAttr
from pydantic import JsonValue as Json

from orchestrator.actions.base import LocalPath, Params, Printed, StepContext
from orchestrator.actions.handover import Handover
from orchestrator.actions.process.confined import ConfinedParams
from orchestrator.actions.process.exec import (
    FileRef,
    Variable,
    content_of,
    failure,
    seems_confined,
    telling_what_was_written,
    whole,
)
from orchestrator.actions.process.python_modules import ModuleFile, find_modules
from orchestrator.actions.process.rules import Reach, virtual_environment
from orchestrator.actions.process.supervised import (
    DECLARE,
    SAFE_PATH,
    Command,
    Finished,
    Running,
    Written,
    run_process,
)
from orchestrator.actions.references import postgres_environment, redacted
from orchestrator.errors import OutputRefused, StepFailed
from orchestrator.grants.credential import Credential
from orchestrator.jsontypes import JsonObject, JsonValue

_MESSAGE_SHOWN = 500
_IDENTIFIER = r"[A-Za-z_]\w*"
_RESULT_ALLOWANCE = 1000
"""Bytes that the envelope of a result or a short error may take besides the value."""


class PythonParams(ConfinedParams):
    """A function by the name under which it is imported, its arguments, and where its module is looked for."""

    takes_new_credentials: ClassVar[bool] = True
    output_descriptions: ClassVar[Mapping[str, str]] = {
        "*": "What the function returns, as JSON. Where `outputs` names keys of it, that is a dictionary with these.",
    }
    fixed: ClassVar[frozenset[str]] = ConfinedParams.fixed | {"callable", "path"}

    callable: Annotated[str, Field(pattern=rf"^{_IDENTIFIER}(\.{_IDENTIFIER})*:{_IDENTIFIER}(\.{_IDENTIFIER})*$")] = (
        Field(
            description="`package.module:function`, plain or async. Besides `arguments` it may take `credentials` (a "
            "mapping of grant to field to text, which always holds what was issued last) and `context` (the ids of "
            "run, step and attempt, idempotency_key)."
        )
    )
    arguments: dict[str, Json] = Field(default_factory=dict, description="Keyword arguments, as JSON.")
    files: dict[Variable, FileRef] = Field(
        default_factory=dict,
        description="Environment variables that hold the path of a file (mode 0600, in memory) with a credential, for "
        "libraries that take nothing else: `grant.field` as it is, `grant` all of it as JSON; it goes when the process "
        "does.",
    )
    path: list[LocalPath] = Field(
        default_factory=list,
        description="Directories that modules are looked for in first; relative ones begin in the folder of the "
        "workflow's file.",
    )
    max_bytes: Annotated[int, Field(gt=0)] = Field(default=5_000_000, description="The longest result, as JSON.")
    _modules: list[ModuleFile] | None = PrivateAttr(default=None)

    @property
    def folders(self) -> list[str]:
        """`path`, absolute and without links."""
        return [os.path.realpath(folder) for folder in self.path]

    @property
    def modules(self) -> list[ModuleFile]:
        """What importing the callable's module runs, the module itself last; looked for once. Raises StepFailed."""
        if self._modules is None:
            module = self.callable.partition(":")[0]
            try:
                self._modules = find_modules(module, self.folders)
            except (ImportError, OSError) as error:
                raise StepFailed(
                    f"`{self.callable}` cannot be imported: {error}",
                    kind="error",
                    hint="is the module in one of the directories of `path`, or installed where the orchestrator is?",
                ) from error
        return self._modules

    def implied(self) -> tuple[Path, ...]:
        """Where modules are looked for."""
        return tuple(self.path)


class Python:
    """Output: what the function returns. Kinds: `error` (it raised), `exit_status`, `timeout`, `output`."""

    summary: ClassVar[str] = "Call a Python function in a process of its own."
    params: ClassVar[type[Params]] = PythonParams

    def view(self, params: PythonParams) -> JsonObject:
        """The function's name, the names of its arguments, and the files that its import runs.

        `file` and `sha256` are of the module, `packages` of those around it. Raises StepFailed where there is none.
        """
        *packages, module = params.modules
        return {
            "callable": params.callable,
            "arguments": sorted(params.arguments),
            "file": module.file,
            "sha256": module.sha256,
            "packages": [{"file": package.file, "sha256": package.sha256} for package in packages],
            "path": list[JsonValue](params.folders),
            **({"environment": sorted(params.files)} if params.files else {}),
            **params.reach_view(),
        }

    async def run(self, params: PythonParams, context: StepContext) -> JsonValue:
        """Call it in a new interpreter (`python -I`) and return its result, which must be JSON.

        The credentials reach the child through its standard input. Raises StepFailed.
        """
        command = Command(
            arguments=[sys.executable, "-I", "-m", "orchestrator.actions.process.python_child"],
            environment={"PATH": SAFE_PATH, **postgres_environment(context)},
            files={name: content_of(context, reference) for name, reference in params.files.items()},
            stdin=_request(params, context),
            max_bytes=params.max_bytes + _RESULT_ALLOWANCE,
            started=partial(_take_anew, params, context.handover) if context.handover else None,
            confinement=context.confinement,
            reach=_with_interpreter(params.reach(context)),
            printed=None if context.printed is None else partial(_what_it_prints, context.printed),
        )
        written = Written()
        async with telling_what_was_written(written, context, "the function", stdout=False):
            return _result(await run_process(command, written), written, params, context)


def _what_it_prints(printed: Printed, descriptor: int, data: bytes) -> None:
    """The function's own words; the other stream is the answer."""
    if descriptor == 2:
        printed(descriptor, data)


def _with_interpreter(reach: Reach) -> Reach:
    """And what this interpreter has installed. This package may be installed from elsewhere, in a checkout say."""
    prefixes = {Path(sys.prefix), Path(sys.base_prefix), Path(sys.base_exec_prefix)} - {Path("/")}
    origins = [Path(entry) for entry in sys.path if (Path(entry) / "orchestrator" / "__init__.py").is_file()]
    return replace(
        reach,
        read=(
            *reach.read,
            *sorted(prefixes),
            *virtual_environment(Path(sys.prefix)),
            *(origin.absolute() / "orchestrator" for origin in origins),
        ),
        listed=tuple(origin.absolute() for origin in origins),
    )


def _request(params: PythonParams, context: StepContext) -> bytes:
    """What the child reads first from its standard input; only here the credentials are together in plain text."""
    request = {
        "callable": params.callable,
        "path": params.folders,
        "modules": [asdict(module) for module in params.modules],
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


def _take_anew(params: PythonParams, handover: Handover, running: Running) -> None:
    """Each new credential is one more line on the child's standard input, and first in its files."""

    async def receive(credential: Credential) -> None:
        if names := [name for name, reference in params.files.items() if reference == credential.grant]:
            await running.replace_files(dict.fromkeys(names, whole(credential)))
        fields = {name: secret.reveal() for name, secret in credential.fields.items()}
        message = {"grant": credential.grant, "version": credential.version, "fields": fields}
        running.write(json.dumps(message).encode() + b"\n")

    handover.take(receive)


def _result(finished: Finished, written: Written, params: PythonParams, context: StepContext) -> JsonValue:
    if finished.exit_code != 0:
        raise failure(finished, written, context)
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
    problem = " ".join(redacted(context, str(answer["message"])).split())[:_MESSAGE_SHOWN]
    if answer["kind"] == "output":
        raise OutputRefused(f"`{params.callable}` did not return JSON: {problem}", hint="return plain JSON values")
    hint = answer.get("hint")
    if context.confinement and (hint or seems_confined(problem)):
        hint = f"{hint} {DECLARE}" if hint else DECLARE
    raise StepFailed(f"`{params.callable}` raised {problem}", kind="error", hint=hint)
