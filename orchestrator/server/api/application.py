"""The operations as an application of ASGI."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import cache
from typing import Any, TypeVar

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route

from orchestrator.server.api.inquiries import INQUIRIES, Inquiries
from orchestrator.server.api.oauth.endpoints import OAuth
from orchestrator.server.api.oauth.operations import OAUTH
from orchestrator.server.api.openapi import openapi
from orchestrator.server.api.operations import LONGEST_REQUEST_ID, OPERATIONS, REQUEST_ID, Operation, Operations
from orchestrator.server.api.problems import Kind, Problem, problem_of

Door = TypeVar("Door")
Endpoint = Callable[[Request], Awaitable[Response]]


def application(
    operations: Operations, inquiries: Inquiries, oauth: OAuth, more: Sequence[BaseRoute] = ()
) -> Starlette:
    """The operations, what services may ask, the endpoints of OAuth, `/v1/openapi.json`, `/healthz`, and what other
    doors answer."""
    paths: dict[str, dict[str, Endpoint]] = {}
    for each in OPERATIONS:
        paths.setdefault(each.path, {})[each.method] = _answering(operations, each)
    for inquiry in INQUIRIES:
        paths.setdefault(inquiry.path, {})[inquiry.method] = _answering(inquiries, inquiry)
    for endpoint in OAUTH:
        paths.setdefault(endpoint.path, {})[endpoint.method] = _answering(oauth, endpoint)
    return Starlette(
        routes=[
            *(Route(path, _by_method(endpoints), methods=list(endpoints)) for path, endpoints in paths.items()),
            Route("/.well-known/authzen-configuration", inquiries.metadata),
            Route("/v1/openapi.json", _openapi),
            Route("/healthz", _health),
            *more,
        ],
        exception_handlers={HTTPException: _elsewhere},
    )


def _by_method(endpoints: Mapping[str, Endpoint]) -> Endpoint:
    """All of a path, as one route: `Allow` of another method names every one of them (RFC 9110, 10.2.1)."""

    async def handler(request: Request) -> Response:
        return await endpoints["GET" if request.method == "HEAD" else request.method](request)

    return handler


def _answering(door: Door, operation: Operation[Door]) -> Endpoint:
    async def handler(request: Request) -> Response:
        try:
            answer = await operation.handler(door, request)
        except Exception as error:  # noqa: BLE001 -- whatever it is, the caller gets a problem and no text of it
            answer = problem_of(error).response()
        given = request.headers.get(REQUEST_ID, "")
        if operation.echoes_request_id and 0 < len(given) <= LONGEST_REQUEST_ID:
            answer.headers[REQUEST_ID] = given
        return answer

    return handler


async def _elsewhere(request: Request, error: Exception) -> Response:
    """There is no such operation."""
    status = getattr(error, "status_code", 404)
    kind = Kind.NO_SUCH_METHOD if status == 405 else Kind.NOT_FOUND if status == 404 else Kind.MALFORMED
    headers = getattr(error, "headers", None)
    return Problem(kind, "see /v1/openapi.json", headers=headers).response()


@cache
def _document() -> dict[str, Any]:
    return openapi()


async def _openapi(request: Request) -> Response:
    return JSONResponse(_document())


async def _health(request: Request) -> Response:
    return JSONResponse({"ok": True})
