"""What an HTTP response means for the step. Pure functions over what came back."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, NoReturn

from orchestrator.actions.http.auth import Private
from orchestrator.actions.http.transfer import Incoming
from orchestrator.errors import OutputRefused, StepFailed
from orchestrator.jsontypes import JsonValue
from orchestrator.network.charsets import character_set
from orchestrator.network.origins import origin, parse

SHOWN_HEADERS = ("content-type", "location", "retry-after", "x-request-id")
_AUTH_ERROR = re.compile(r'\berror="?([A-Za-z0-9_.-]{1,64})\b')
_UNAVAILABLE = frozenset({502, 503, 504})
_SAID = 300
"""Characters of a body that a message has at most."""

_TOLD_IN = ("title", "detail", "error", "error_description", "message", "errors", "reason", "description")
_CHARSET = re.compile(r'charset="?([\w.:-]+)', re.IGNORECASE)


def output_of(response: Incoming, private: Private | None = None) -> dict[str, JsonValue]:
    """`status`, the harmless `headers`, and `body`: JSON where the response says that it is, else text.

    A `location` in which a service repeats the credential is shown without it.
    """
    headers: dict[str, JsonValue] = {name: response.headers[name] for name in SHOWN_HEADERS if name in response.headers}
    if private is not None and "location" in headers:
        headers["location"] = private.masked(str(headers["location"]))
    return {"status": response.status, "headers": headers, "body": body_of(response)}


def body_of(response: Incoming) -> JsonValue:
    """The body. JSON without content is None. Raises OutputRefused for JSON that is none."""
    content_type = response.headers.get("content-type", "")
    media = content_type.partition(";")[0].strip().lower()
    if media == "application/json" or media.endswith("+json"):
        if not response.body:
            return None
        try:
            value: JsonValue = json.loads(response.body, parse_constant=_refuse_constant)
        except (ValueError, RecursionError):
            raise OutputRefused(
                f"{origin(response.url)} answered {response.status} with a body that is not the JSON it claims",
                hint="look at the service; nothing of the body is shown here",
            ) from None
        return value
    charset = _CHARSET.search(content_type)
    return response.body.decode(character_set(charset.group(1)) if charset else "utf-8", errors="replace")


def check_status(
    response: Incoming,
    method: str,
    expect: Collection[int] | None,
    *,
    now: datetime,
    redact: Callable[[str], str],
) -> None:
    """Raise StepFailed unless the status is expected (default: any 2xx): `rate_limited` (429, and 503 with a wish to be
    asked later), `unavailable` (502, 503, 504), else `http_status`.

    The message has the beginning of what the body says, after `redact`.
    """
    status = response.status
    if status in expect if expect is not None else 200 <= status < 300:
        return
    wait = retry_after(response.headers, now=now)
    where = f"{method} {origin(response.url)}{parse(response.url).path}"
    because = f": {said}" if (said := _said(response, redact)) else ""
    if status == 429 or (status == 503 and wait is not None):
        raise StepFailed(
            f"{where} answered {status}: too many requests" + (f" ({said})" if said else ""),
            kind="rate_limited",
            retry_after=wait,
            hint="retry with `retry: { on: [rate_limited] }`, or run less often",
        )
    if status in _UNAVAILABLE:
        raise StepFailed(
            f"{where} answered {status}{because}",
            kind="unavailable",
            retry_after=wait,
            hint="the service is not available now; a step with `retry` tries again",
        )
    told = ""
    if status in (401, 403) and (match := _AUTH_ERROR.search(response.headers.get("www-authenticate", ""))):
        told = f" ({match.group(1)})"
    hint = (
        "is the token for this audience, and does its scope suffice?"
        if status in (401, 403)
        else "name the status in `expect` if it is what you want"
    )
    raise StepFailed(f"{where} answered {status}{told}{because}", kind="http_status", retry_after=wait, hint=hint)


def _said(response: Incoming, redact: Callable[[str], str]) -> str:
    """What the body says is wrong, on one line: members of JSON that are meant for that, or the beginning of a text.

    Nothing of a page for browsers, nor of what is no text.
    """
    media = response.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media == "application/json" or media.endswith("+json"):
        try:
            text = "; ".join(_reasons(json.loads(response.body), depth=3))
        except (ValueError, RecursionError):
            return ""
    elif media == "text/plain":
        text = response.body[: 4 * _SAID].decode("utf-8", errors="replace")
    else:
        return ""
    line = " ".join("".join(each if each.isprintable() else " " for each in redact(text)).split())
    return line if len(line) <= _SAID else line[: _SAID - 1] + "\N{HORIZONTAL ELLIPSIS}"


def _reasons(value: JsonValue, *, depth: int) -> Iterator[str]:
    """The texts of an error's members: those of RFC 9457, of OAuth (RFC 6749, 5.2), and what others call them."""
    if isinstance(value, str):
        yield value
    elif depth and isinstance(value, list):
        for each in value[:3]:
            yield from _reasons(each, depth=depth - 1)
    elif depth and isinstance(value, dict):
        for name in _TOLD_IN:
            if name in value:
                yield from _reasons(value[name], depth=depth - 1)


def retry_after(headers: Mapping[str, Any], *, now: datetime) -> float | None:
    """Seconds to wait according to Retry-After, given in seconds or as a date (RFC 9110, 10.2.3).

    A date is compared with the answer's own `Date`, so that our clock does not matter; without one with `now`.
    """
    value = str(headers.get("retry-after", "")).strip()
    if value.isascii() and value.isdigit():
        return float(value[:20])  # 3 * 10**12 years; whoever waits says what is too long
    until = _date(value)
    return None if until is None else max(0.0, (until - (_date(headers.get("date")) or now)).total_seconds())


def _date(value: object) -> datetime | None:
    try:
        date = parsedate_to_datetime(str(value))
    except (ValueError, TypeError, ArithmeticError, IndexError):
        return None
    return date if date.tzinfo else date.replace(tzinfo=UTC)


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")
