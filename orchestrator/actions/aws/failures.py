"""What AWS's errors mean for a step."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from orchestrator.errors import StepFailed

_CODE = re.compile(r"[A-Za-z0-9._:/#-]{1,100}")
_PARAMETER = re.compile(r"parameter (?:in input: \")?([\w.\[\]]{1,80})|parameter in ([\w.\[\]]{1,80})")
_SLOW_DOWN = ("throttl", "slowdown", "requestlimitexceeded", "toomanyrequests", "provisionedthroughput", "bandwidth")
_PERMISSION = (
    *("accessdenied", "unauthorized", "notauthorized", "forbidden", "signaturedoesnotmatch"),
    *("expiredtoken", "invalidaccesskey", "invalidclienttoken", "invalidtoken", "requestexpired", "unrecognizedclient"),
)


def failed(what: str, error: Mapping[str, Any], redact: Callable[[str], str]) -> StepFailed:
    """The failure for an answer of AWS's that is an error. Its words are foreign, so they are cut and redacted."""
    said, about = error.get("Error", {}), error.get("ResponseMetadata", {})
    status = int(about.get("HTTPStatusCode", 0))
    code = str(said.get("Code", ""))
    code = code if _CODE.fullmatch(code) else "UnknownError"
    told = redact(" ".join(str(said.get("Message", "")).split()))[:500]
    text = f"{what}: AWS answered {status} {code}" + (f": {told}" if told else "")
    plain = code.lower()
    if status == 429 or any(word in plain for word in _SLOW_DOWN):
        return StepFailed(text, kind="rate_limited", hint="retry with `retry: { on: [rate_limited] }`")
    if status in (401, 403) or any(word in plain for word in _PERMISSION):
        return StepFailed(
            text,
            kind="permission",
            hint="a session may do what its role and the grant's `actions` and `resources` both allow, until it ends",
        )
    if status == 404 or "notfound" in plain or plain.startswith("nosuch"):
        return StepFailed(text, kind="not_found")
    return StepFailed(text, kind="connection" if status >= 500 else "error")


def refused_parameters(operation: str, report: str) -> StepFailed:
    """The failure for parameters that the operation does not have. Their values are not told."""
    found = _PARAMETER.search(report)
    named = next((each for each in found.groups() if each), "") if found else ""
    return StepFailed(
        f"{operation} does not take these parameters" + (f": look at `{named}`" if named else ""),
        kind="parameters",
        hint="as the API reference has them, with its spelling",
    )
