"""What is sent as a form (RFC 6749, 3.2): every parameter once, nothing in the address, nothing that is half read."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import parse_qsl

from starlette.requests import Request

from orchestrator.server.api.bodies import received
from orchestrator.server.api.oauth.errors import Code, OAuthError

MOST_PARAMETERS = 40

MEDIA_TYPE = "application/x-www-form-urlencoded"

_HALF_ESCAPED = re.compile(rb"%(?![0-9A-Fa-f]{2})")


@dataclass(frozen=True, slots=True)
class Form:
    """The parameters that have a value. It shows none of them: some are tokens."""

    values: Mapping[str, tuple[str, ...]] = field(repr=False)

    def one(self, name: str) -> str | None:
        """A parameter that may be there once. Raises OAuthError (RFC 6749, 3.1)."""
        given = self.values.get(name, ())
        if len(given) > 1:
            raise OAuthError(Code.INVALID_REQUEST, f"the parameter {name} is there more than once")
        return given[0] if given else None

    def needed(self, name: str) -> str:
        """A parameter that has to be there. Raises OAuthError."""
        value = self.one(name)
        if value is None:
            raise OAuthError(Code.INVALID_REQUEST, f"the parameter {name} is missing")
        return value

    def several(self, name: str) -> tuple[str, ...]:
        """A parameter that may be there several times (RFC 8693, 2.1)."""
        return self.values.get(name, ())


async def received_form(request: Request, *, several: frozenset[str] = frozenset()) -> Form:
    """The parameters of a request. `several`: those that may be repeated. Raises OAuthError and Problem."""
    sent = request.headers.getlist("content-type")
    if len(sent) != 1 or sent[0].partition(";")[0].strip().lower() != MEDIA_TYPE:
        raise OAuthError(Code.INVALID_REQUEST, f"the parameters are to be sent as {MEDIA_TYPE}")
    if request.scope.get("query_string"):
        raise OAuthError(Code.INVALID_REQUEST, "parameters are sent in the body, and none in the address")
    return parsed(await received(request), several=several)


def parsed(body: bytes, *, several: frozenset[str] = frozenset()) -> Form:
    """The parameters of a body. What has no value is as if it were not there (RFC 6749, 3.2). Raises OAuthError."""
    try:
        if _HALF_ESCAPED.search(body):
            raise ValueError
        pairs = parse_qsl(body.decode("ascii"), keep_blank_values=True, max_num_fields=MOST_PARAMETERS, errors="strict")
    except ValueError:  # it quotes the body
        raise OAuthError(Code.INVALID_REQUEST, f"the body is no {MEDIA_TYPE}") from None
    values: dict[str, tuple[str, ...]] = {}
    for name, value in pairs:
        if name in values and name not in several:
            shown = name if name.isascii() and name.isidentifier() and len(name) < 40 else "of one name"
            raise OAuthError(Code.INVALID_REQUEST, f"the parameter {shown} is there more than once")
        values[name] = (*values.get(name, ()), value)
    return Form({name: kept for name, given in values.items() if (kept := tuple(each for each in given if each))})
