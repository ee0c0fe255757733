"""What an action is: the contract of the entry point group `orchestrator.actions`.

An action is a class with the attributes of `Action`. It is found by name through entry points, so
that a package of somebody else's adds one without touching this repository.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Protocol, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationInfo
from pydantic.config import JsonDict

from orchestrator.actions.confinement import available_parts
from orchestrator.actions.handover import Handover, Recipient
from orchestrator.grants.credential import Credential
from orchestrator.jsontypes import JsonObject, JsonValue
from orchestrator.redaction.redactor import Redactor

OutputType = Literal["string", "int", "double", "bool", "list", "map", "maps"]
"""A key of an output, as expressions see it; `maps` is a list of maps."""


Finding = tuple[tuple[str | int, ...], str, str]
"""Something that is wrong with a step: where in the step, such as `("with", "sql")`, a message, and what to do."""

LITERAL: JsonDict = {"$comment": "no expressions"}
"""Marks, in a JSON Schema, a model in which no expression may be."""

Printed = Callable[[int, bytes], None]
"""Told what a program writes as it does, secrets and all: the descriptor (1 or 2) and the bytes, none at its end."""

_REFERENCE = re.compile(r"[a-z][a-z0-9_-]{0,62}\.[^.\s]+")


def _local(path: Path, info: ValidationInfo) -> Path:
    directory = (info.context or {}).get("directory", "")
    return Path(directory) / path if directory else path


LocalPath = Annotated[Path, AfterValidator(_local)]
"""A path of a parameter: a relative one begins in the folder of the workflow's file, where that is known."""


class Params(BaseModel):
    """Base of every action's parameters: unknown keys are refused."""

    takes_new_credentials: ClassVar[bool] = False
    """Whether the action passes on what is issued anew while it runs, of grants that no parameter names."""

    output_types: ClassVar[Mapping[str, OutputType]] = {}
    """What is known of the output's keys; `validate` holds expressions against it. The others may be anything."""

    output_descriptions: ClassVar[Mapping[str, str]] = {}
    """What each key of the output is, for the reference; `*` where the output may be anything."""

    fixed: ClassVar[frozenset[str]] = frozenset()
    """Parameters that say what is done, or are read as a language (SQL, a program's name): nothing that an agent
    chooses when it calls a tool may be in them. All others take such values as data."""

    endpoints: ClassVar[frozenset[str]] = frozenset()
    """Parameters that name endpoints of the settings, one or a list: they must be there before the run begins."""

    literal: ClassVar[frozenset[str]] = frozenset()
    """Parameters in which no expression may be."""

    urls: ClassVar[frozenset[str]] = frozenset()
    """Parameters in which they are percent-encoded, as a part of the path or of the query."""

    model_config = ConfigDict(extra="forbid", frozen=True, arbitrary_types_allowed=True, hide_input_in_errors=True)

    @classmethod
    def output_keys(cls, given: Mapping[str, Any]) -> frozenset[str] | None:
        """Every key that the output can have with what a step gives (`with`, before expressions are evaluated).

        None: it may have any. `validate` holds `outputs` against it.
        """
        return None

    @classmethod
    def certainly_wrong(cls, step: Mapping[str, Any]) -> Iterator[Finding]:
        """What cannot work in a step (as it is in the file, of any shape), beyond what the types of the fields say.

        Only what is wrong whatever the expressions come to: a workflow with such a step is not loaded.
        """
        yield from ()

    def held_to_rows(self, most: int) -> Self | None:
        """The same parameters, with which more rows than that are an error; None: the action cannot be held to it."""
        return None


@dataclass(frozen=True, slots=True)
class GrantRef:
    """Marks a parameter that names a grant of the step (`Annotated[str, GrantRef("token")]`).

    `kinds` are the kinds it may be of. Where a parameter may name one field of the grant it is
    written `grant.field`. `anew`: where it names the whole grant, the action passes on what is issued
    anew for it while it runs (see `StepContext.handover`). `or_text`: what is not written `grant.field`
    is a constant text.
    """

    kinds: tuple[str, ...]
    anew: bool
    or_text: bool

    def __init__(self, *kinds: str, anew: bool = False, or_text: bool = False) -> None:
        object.__setattr__(self, "kinds", kinds)
        object.__setattr__(self, "anew", anew)
        object.__setattr__(self, "or_text", or_text)

    @staticmethod
    def is_reference(text: str) -> bool:
        """Whether a text is written as `grant.field`."""
        return _REFERENCE.fullmatch(text) is not None

    def refers(self, text: str) -> bool:
        """Whether a value of the parameter names a grant."""
        return not self.or_text or self.is_reference(text)


@dataclass(frozen=True, slots=True)
class StepContext:
    """What an action is told besides its parameters: its own credentials, and nothing of anybody else's.

    `idempotency_key` is the same for every attempt of one step of one run. `deadline` is a value of
    the monotonic clock, in seconds. `endpoints` are addresses without secrets, by name. `handover`
    brings credentials that are issued anew; None if no grant of the step may be. `own` knows the orchestrator's own
    secrets, to take them out of what comes from outside. `confinement` are the parts of PARTS
    (`orchestrator.actions.confinement`) that programs of the step are held to. `recipient` is who waits for the
    credential of a tool that hands it over. `kept` are the keys of the output that the step keeps; None: all.
    `printed` is told what programs of the step write, where somebody follows it.
    """

    run_id: str
    workflow: str
    step: str
    attempt: int
    agent: str
    idempotency_key: str
    deadline: float
    credentials: Mapping[str, Credential] = field(default_factory=dict)
    endpoints: Mapping[str, str] = field(default_factory=dict)
    handover: Handover | None = None
    own: Redactor = field(default_factory=Redactor)
    confinement: tuple[str, ...] = field(default_factory=available_parts)
    recipient: Recipient | None = None
    kept: tuple[str, ...] | None = None
    printed: Printed | None = None

    def remaining(self) -> float:
        """Seconds until the deadline, never below a tenth of one."""
        return max(0.1, self.deadline - time.monotonic())


class Action(Protocol):
    """One thing that a step can do.

    `run` returns JSON, usually an object. It raises `StepFailed` with a stable `kind`. It is
    cancelled at the deadline, and must leave nothing running when it is.
    """

    summary: ClassVar[str]
    params: ClassVar[type[Params]]

    def view(self, params: Any) -> JsonObject:
        """What policies and people may see of these parameters; never contents, never secrets.

        It names what decides: the file that runs, the address that is asked. Raises StepFailed where that is not there.
        """
        ...

    async def run(self, params: Any, context: StepContext) -> JsonValue:
        """Do it and return JSON. Raises StepFailed; anything else that it raises fails the step as `error`.

        `params` is an instance of the action's own model. A cancellation comes at `context.deadline`.
        """
        ...
