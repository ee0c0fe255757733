"""What may leave a step: JSON, not too large, and free of every issued secret."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping

from orchestrator.errors import OutputRefused
from orchestrator.jsontypes import JsonValue
from orchestrator.redaction.redactor import Redactor

_DEPTH = 100
_KINDS = {list: "a list", str: "a text", bool: "a truth value", int: "a number", float: "a number", type(None): "null"}
_PLAIN_KEY = re.compile(r"[A-Za-z_][A-Za-z0-9_-]{0,63}")


def check_output(value: object, *, redactor: Redactor, limit_bytes: int, own: Redactor | None = None) -> JsonValue:
    """The output as plain lists, dicts and scalars, or OutputRefused with the place in it that is wrong.

    `redactor` knows what was issued to the run, `own` the orchestrator's own secrets. `limit_bytes` bounds the
    output's JSON text in UTF-8. The value itself is never part of the error.
    """
    plain = _plain(value, "output", 0)
    size = len(json.dumps(plain, ensure_ascii=False, separators=(",", ":")).encode())
    if size > limit_bytes:
        raise OutputRefused(
            f"the output of the step is {size} bytes of JSON; the limit is {limit_bytes}",
            hint="return less: a LIMIT, fewer columns, or a reference to where the data is",
        )
    for known, whose in ((redactor, "a secret that was issued to this run"), (own, "a secret of the orchestrator")):
        if known is not None and known.contains(plain):
            raise OutputRefused(
                f"{known.redact(_secret_at(plain, known, 'output'))} contains {whose}",
                hint="a step must not return its credentials, in any encoding; return only what dependents need",
            )
    return plain


def keep(value: JsonValue, keys: Iterable[str]) -> dict[str, JsonValue]:
    """The declared `outputs:` of an output; OutputRefused when one of them is not there."""
    wanted = list(keys)
    if not wanted:
        return {}
    if not isinstance(value, Mapping):
        kind = _KINDS.get(type(value), "a scalar")
        raise OutputRefused(
            f"`outputs` names {', '.join(wanted)}, and the output is {kind}, which has no keys",
            hint=f"return an object with what is to be kept, such as `{{{json.dumps(wanted[0])}: ...}}`",
        )
    if missing := [key for key in wanted if key not in value]:
        there = ", ".join(sorted(key for key in value if _PLAIN_KEY.fullmatch(key))) or "nothing"
        raise OutputRefused(f"the output has no {', '.join(missing)}", hint=f"there is: {there}")
    return {key: value[key] for key in wanted}


def _plain(value: object, path: str, depth: int) -> JsonValue:
    if depth > _DEPTH:
        raise OutputRefused(f"the output is nested deeper than {_DEPTH} levels", hint="return a flatter structure")
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                raise OutputRefused(f"a key of {path} is a {type(key).__name__}, not a string", hint=_HINT)
            _check_text(key, f"a key of {path}")
        return {key: _plain(item, _below(path, key), depth + 1) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item, f"{path}[{index}]", depth + 1) for index, item in enumerate(value)]
    if isinstance(value, str):
        return _check_text(str(value), path)
    if isinstance(value, float) and not math.isfinite(value):
        raise OutputRefused(f"{path} is not a finite number", hint=_HINT)
    if value is None or type(value) in (bool, int, float):
        return value  # type: ignore[return-value]  # narrowed by the line above
    raise OutputRefused(f"{path} is a {type(value).__name__}, which JSON cannot hold", hint=_HINT)


_HINT = "return only objects with string keys, lists, strings, finite numbers, booleans and null"


def _check_text(text: str, path: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise OutputRefused(f"{path} is not valid Unicode", hint="encode binary data as base64") from None
    return text


def _below(path: str, key: str) -> str:
    return f"{path}.{key}" if _PLAIN_KEY.fullmatch(key) else f"{path}[...]"


def _secret_at(value: JsonValue, redactor: Redactor, path: str) -> str:
    """Where the first secret is. A key that is one is not named."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            if redactor.find(key):
                return f"a key of {path}"
            if redactor.contains(item):
                return _secret_at(item, redactor, _below(path, key))
    elif isinstance(value, list):
        for index, item in enumerate(value):
            if redactor.contains(item):
                return _secret_at(item, redactor, f"{path}[{index}]")
    return path
