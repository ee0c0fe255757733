"""The operations as an application of ASGI."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from functools import cache
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route

from orchestrator.server.api.inquiries import Inquiries
from orchestrator.server.api.openapi import openapi
from orchestrator.server.api.operations import OPERATIONS, Operation, Operations
from orchestrator.server.api.problems import Kind, Problem, problem_of


def application(operations: Operations, inquiries: Inquiries, more: Sequence[BaseRoute] = ()) -> Starlette:
    """The operations, what services may ask, `/v1/openapi.json`, `/healthz`, and what other doors answer."""
    return Starlette(
        routes=[
            *(Route(each.path, _answering(operations, each), methods=[each.method]) for each in OPERATIONS),
            *inquiries.routes(),
            Route("/v1/openapi.json", _openapi),
            Route("/healthz", _health),
            *more,
        ],
        exception_handlers={HTTPException: _elsewhere},
    )


def _answering(operations: Operations, operation: Operation) -> Callable[[Request], Awaitable[Response]]:
    async def handler(request: Request) -> Response:
        try:
            return await operation.handler(operations, request)
        except Exception as error:  # noqa: BLE001 -- whatever it is, the caller gets a problem and no text of it
            return problem_of(error).response()

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
