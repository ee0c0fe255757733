"""What may be declared of a value that comes from outside, and whether one is that."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator
from pydantic_core import SchemaError

from orchestrator.jsontypes import counted

Scalar = str | int | float | bool | None

WORDS = {
    "string": "a text",
    "integer": "a whole number",
    "number": "a number",
    "boolean": "true or false",
    "array": "a JSON list",
    "object": "a JSON object",
}
"""What a type is called in messages."""

MOST_CHARACTERS = 10_000
"""Of a text that an agent chooses, where its tool says nothing else."""

_OF_NUMBERS = ("minimum", "maximum")
_OF_TEXTS = ("max_length", "pattern")
_WHOLE_NUMBERS = range(-(2**63), 2**63)
"""Those that expressions and databases can hold."""


class Part(BaseModel):
    """Base of everything in a workflow file: unknown keys are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=False)


class Declared(Part):
    """The type of a value and its bounds."""

    type: Literal["string", "integer", "number", "boolean"] = Field(default="string", description="What it is.")
    description: str = Field(default="", description="What it is for; agents and people read it.")
    default: Any = Field(
        default=None, description="Used when the value is not given. Without it the value is required."
    )
    enum: Annotated[list[Scalar], Field(min_length=1)] | None = Field(
        default=None, description="The only values allowed."
    )
    minimum: int | float | None = Field(default=None, description="The least that a number may be.")
    maximum: int | float | None = Field(default=None, description="The most that a number may be.")
    max_length: Annotated[int, Field(ge=0)] | None = Field(
        default=None, alias="maxLength", description="The most characters that a text may have."
    )
    pattern: str | None = Field(
        default=None,
        description="A regular expression that is found in the text; `^...$` where it must be all of it. It takes time "
        "in proportion to the text, so it has neither look-around nor back-references.",
    )

    @property
    def required(self) -> bool:
        """Whether the value must be given."""
        return "default" not in self.model_fields_set

    @model_validator(mode="after")
    def _bounds_of_the_type(self) -> Self:
        given = [name for name in (*_OF_NUMBERS, *_OF_TEXTS) if getattr(self, name) is not None]
        fitting = {"integer": _OF_NUMBERS, "number": _OF_NUMBERS, "string": _OF_TEXTS}.get(self.type, ())
        if other := [name for name in given if name not in fitting and name in self.model_fields_set]:
            alias = type(self).model_fields[other[0]].alias or other[0]
            raise ValueError(f"`{alias}` says nothing of {WORDS[self.type]}")
        if self.pattern is not None:
            try:
                _matcher(self.pattern)
            except SchemaError:
                raise ValueError(f"`pattern` is no regular expression that can be used: {self.pattern}") from None
        for allowed in self.enum or ():
            if not is_of_type(self.type, allowed):
                raise ValueError(f"`enum` has {allowed!r}, which is not {WORDS[self.type]}")
        return self


class Input(Declared):
    """One typed input of a workflow, given with `run --input name=value`, or by whoever opens a task."""

    type: Literal["string", "integer", "number", "boolean", "array", "object"] = Field(  # type: ignore[assignment]
        default="string", description="What it is."
    )
    secret: bool = Field(
        default=False, description="Never shown, logged or recorded; may only be passed on whole, never computed with."
    )


class Argument(Declared):
    """One thing that an agent chooses when it calls a tool."""

    max_length: Annotated[int, Field(ge=0)] | None = Field(
        default=MOST_CHARACTERS, alias="maxLength", description="The most characters that a text may have."
    )


def is_of_type(kind: str, value: Any) -> bool:
    """Whether a JSON value is of a declared type; true and false are no numbers."""
    match kind:
        case "string":
            return isinstance(value, str)
        case "integer":
            return isinstance(value, int) and not isinstance(value, bool)
        case "number":
            return isinstance(value, int | float) and not isinstance(value, bool)
        case "boolean":
            return isinstance(value, bool)
        case "array":
            return isinstance(value, list)
        case "object":
            return isinstance(value, dict)
    return False


def wrong_value(declared: Declared, value: Any) -> str:
    """What is wrong with a value, or an empty text. The value itself is not shown."""
    if not is_of_type(declared.type, value):
        return f"expected {WORDS[declared.type]}"
    if declared.enum is not None and value not in declared.enum:
        return f"it is one of {', '.join(str(each) for each in declared.enum)}"
    if isinstance(value, str):
        return _wrong_text(declared, value)
    if isinstance(value, int | float) and not isinstance(value, bool):
        return _wrong_number(declared, value)
    return ""


def _wrong_text(declared: Declared, value: str) -> str:
    if declared.max_length is not None and len(value) > declared.max_length:
        return f"it has {counted(len(value), 'character')}, and may have {declared.max_length}"
    if declared.pattern is not None:
        try:
            _matcher(declared.pattern).validate_python(value)
        except ValidationError:
            return f"it must match {declared.pattern}"
    return ""


def _wrong_number(declared: Declared, value: int | float) -> str:
    if isinstance(value, int) and value not in _WHOLE_NUMBERS:
        return "it is out of the range of 64 bits"
    if not math.isfinite(value):
        return "it is not a finite number"
    if declared.minimum is not None and value < declared.minimum:
        return f"it is at least {declared.minimum}"
    if declared.maximum is not None and value > declared.maximum:
        return f"it is at most {declared.maximum}"
    return ""


@lru_cache(maxsize=256)
def _matcher(pattern: str) -> TypeAdapter[str]:
    """By pydantic's own engine, which cannot be made to take long. Raises SchemaError."""
    return TypeAdapter(Annotated[str, Field(pattern=pattern)])
