"""What an operation gave, as JSON."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from datetime import datetime
from decimal import Decimal
from typing import Any

from orchestrator.actions.aws.operations import Outcome
from orchestrator.errors import OutputRefused
from orchestrator.jsontypes import JsonValue


def output_of(outcome: Outcome) -> dict[str, JsonValue]:
    """`status`, `request_id` and `result`. Raises OutputRefused for what AWS marks as sensitive, and for streams."""
    about = outcome.result.get("ResponseMetadata", {})
    rest = {name: value for name, value in outcome.result.items() if name != "ResponseMetadata"}
    return {
        "status": int(about.get("HTTPStatusCode", 0)),
        "request_id": str(about.get("RequestId", "")),
        "result": _plain(rest, outcome.shape, ""),
    }


def _plain(value: Any, shape: Any, path: str) -> JsonValue:
    if value is not None and getattr(shape, "metadata", {}).get("sensitive"):
        raise OutputRefused(
            f"the answer has a secret in it: AWS marks `{path}` as sensitive",
            hint="a secret is no output of a step: let a program of the step ask for it and use it",
        )
    if isinstance(value, Mapping):
        return {
            str(name): _plain(each, _below(shape, name), f"{path}.{name}".lstrip(".")) for name, each in value.items()
        }
    if isinstance(value, list | tuple):
        member = getattr(shape, "member", None) if getattr(shape, "type_name", "") == "list" else None
        return [_plain(each, member, f"{path}[]") for each in value]
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, bytes | bytearray):
        return _text(bytes(value))
    if isinstance(value, Decimal):
        return int(value) if value == value.to_integral_value() else float(value)
    if value is None or isinstance(value, str | bool | int | float):
        return value
    if hasattr(value, "read"):
        return _text(value.read())
    raise OutputRefused(f"`{path}` is a stream of events, which cannot be an output", hint="use a program for it")


def _below(shape: Any, name: object) -> Any:
    kind = getattr(shape, "type_name", "")
    if kind == "structure":
        return shape.members.get(name)
    return shape.value if kind == "map" else None


def _text(value: bytes) -> JsonValue:
    try:
        return value.decode()
    except UnicodeDecodeError:
        return {"base64": base64.b64encode(value).decode()}
