"""Requests to `/mcp/TASK?name=value`: who calls, for which task. And where callers learn how to be known (RFC 9728)."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import Message, Receive

from orchestrator.errors import UsageError
from orchestrator.pep.errors import TokenRefused
from orchestrator.pep.jwt.strict import json_object
from orchestrator.server.api.bodies import received
from orchestrator.server.api.operations import Operations, address_of
from orchestrator.server.api.problems import Kind, Problem, problem_of
from orchestrator.server.mcp.handles import Wanted
from orchestrator.workflow.inputs import bind_inputs

PATH = "/mcp/{task}"
METADATA_PATH = "/.well-known/oauth-protected-resource/mcp/{task}"
"""RFC 9728, 3.1: between host and path of the resource."""

_HOST = re.compile(r"[A-Za-z0-9._-]{1,253}(:\d{1,5})?|\[[0-9A-Fa-f:.]{2,45}\](:\d{1,5})?")
_TASK = re.compile(r"[a-z][a-z0-9_-]{0,62}")


@dataclass(frozen=True, slots=True)
class Visits:
    """Tells of each request who calls and what is wanted, as the API does."""

    operations: Operations

    async def wanted(self, request: Request) -> Wanted:
        """Raises Problem, and what tells of a caller that is not known: nothing else is looked at before."""
        caller = await self.operations.callers.caller(request)
        if "origin" in request.headers:  # DNS rebinding: no page of a browser has anything to say here
            raise Problem(Kind.NOT_ALLOWED, "requests of web pages are not answered")
        name = request.path_params["task"]
        loaded = self.operations.desk.types.get(name)
        if loaded is None:
            raise Problem(Kind.NOT_FOUND, f"there is no task `{name[:64]}`")
        if not self.operations.callers.authentication.may_open(caller, name):
            raise Problem(Kind.NOT_ALLOWED, f"`{caller.agent}` may not open tasks of the type `{name}`")
        given = request.query_params.multi_items()
        hint = f"the address is /mcp/{name}?NAME=VALUE&..., with each input once"
        if len(given) != len(dict(given)):
            raise Problem(Kind.INVALID, "an input is given twice", hint)
        try:
            inputs = bind_inputs(loaded.workflow, dict(given), from_text=True)
        except UsageError as error:
            raise Problem(Kind.INVALID, error.message, hint) from None
        return Wanted(caller, loaded, inputs, address_of(request))

    async def body(self, request: Request) -> bytes:
        """One JSON object, bounded and strict: the SDK reads it again, and less strictly. Raises Problem."""
        raw = await received(request)
        try:
            json_object(raw)
        except TokenRefused:
            wrong = "the body is not one JSON object in UTF-8, with each member once and not too deep"
            raise Problem(Kind.MALFORMED, wrong) from None
        return raw

    async def metadata(self, request: Request) -> Response:
        """The document of RFC 9728. It says of every name the same, so that it does not tell which tasks there are."""
        try:
            resource = resource_of(request)
        except Problem as problem:
            return problem.response()
        issuers = self.operations.callers.authentication.agents.issuers.values()
        return JSONResponse(
            {
                "resource": resource,
                "authorization_servers": [
                    each.issuer for each in issuers if each.issuer.startswith(("https:", "http:"))
                ],
                "bearer_methods_supported": ["header"],
                "resource_name": "Credential orchestrator",
            }
        )


def refused(error: Exception, request: Request) -> Response:
    """The problem; to a caller that is not known with the address of the metadata (RFC 9728, 5.1)."""
    problem = problem_of(error)
    challenge = (problem.headers or {}).get("WWW-Authenticate")
    if challenge is not None:
        try:
            metadata = resource_of(request).replace("/mcp/", METADATA_PATH.replace("{task}", ""), 1)
        except Problem as unnamed:
            return unnamed.response()
        joined = f'{challenge}, resource_metadata="{metadata}"'
        problem = replace(problem, headers={**(problem.headers or {}), "WWW-Authenticate": joined})
    return problem.response()


def resource_of(request: Request) -> str:
    """What a token is for: the address without its query, as the caller has written it. Raises Problem."""
    host, task = request.headers.get("host", ""), request.path_params["task"]
    if not _HOST.fullmatch(host) or not _TASK.fullmatch(task):
        raise Problem(Kind.NOT_FOUND, "there is nothing at this address")
    return f"{request.url.scheme}://{host}/mcp/{task}"


def replayed(body: bytes, receive: Receive) -> Receive:
    """What was read already, and then what comes: the end of the connection."""
    left: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def again() -> Message:
        return left.pop() if left else await receive()

    return again
