"""Reading base64url and JSON without tolerance: what could be read in two ways is not read (RFC 8725, 2.5).

Everything here raises TokenRefused, whatever the text comes from; who reads something else than a token translates it.
"""

from __future__ import annotations

import base64
import json
import math
import re
from collections.abc import Mapping
from typing import Any

from orchestrator.jsontypes import JsonValue
from orchestrator.pep.errors import Reason, TokenRefused

DEEPEST = 16
"""Levels of arrays and objects within each other."""

_TEXTS = re.compile(r'"(?:[^"\\]|\\.)*+"?', re.DOTALL)
"""Also one that never ends, which a parser will refuse: looking for its end from each of its quotes would take long."""
_NO_BRACKETS = re.compile(r"[^\[\]{}]+")


def base64url(text: str) -> bytes:
    """The bytes of base64url without padding (RFC 7515, 2), written in the one way in which they are to be written."""
    try:
        value = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))  # it skips what is not of the alphabet
    except ValueError:
        value = None
    if value is None or base64.urlsafe_b64encode(value).rstrip(b"=").decode() != text:
        raise TokenRefused(Reason.NOT_BASE64URL, "a part of it is not base64url without padding")
    return value


def json_object(raw: bytes) -> Mapping[str, JsonValue]:
    """A JSON object (RFC 8259) in UTF-8: each member once, numbers finite, no half characters, not deep."""
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError:
        raise TokenRefused(Reason.NOT_JSON, "a part of it is not UTF-8") from None
    if _depth(text) > DEEPEST:
        raise TokenRefused(Reason.TOO_DEEP, f"a part of it is nested more than {DEEPEST} levels deep")
    try:
        value = json.loads(text, object_pairs_hook=_once, parse_constant=_no_constant, parse_float=_finite)
        json.dumps(value, ensure_ascii=False).encode("utf-8")
    except (ValueError, RecursionError):
        raise TokenRefused(Reason.NOT_JSON, "a part of it is not JSON") from None
    if not isinstance(value, dict):
        raise TokenRefused(Reason.NOT_AN_OBJECT, "a part of it is not a JSON object")
    return value


def _depth(text: str) -> int:
    """How deep brackets nest outside of texts. Asked before it is parsed: a parser descends as deep as it is led."""
    deepest = depth = 0
    for bracket in _NO_BRACKETS.sub("", _TEXTS.sub("", text)):
        depth += 1 if bracket in "[{" else -1
        deepest = max(deepest, depth)
    return deepest


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise TokenRefused(Reason.DUPLICATE_MEMBER, "an object in it has two members of one name")
    return members


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is not JSON")


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError("a number is too large")
    return number
