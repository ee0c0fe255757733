"""The operations of the API: one table, from which both the routes and the OpenAPI document are made."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from pydantic import BaseModel, ValidationError
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from orchestrator.agents.authentication import Caller
from orchestrator.errors import PolicyDenied, Refused
from orchestrator.pep.errors import TokenRefused
from orchestrator.pep.jwt.strict import json_object
from orchestrator.server.api.bodies import received
from orchestrator.server.api.callers import Callers
from orchestrator.server.api.documents import (
    CallDocument,
    CallRequest,
    CloseRequest,
    EndDocument,
    LeaseDocument,
    OpenRequest,
    TaskDocument,
    call_document,
    lease_document,
    task_document,
)
from orchestrator.server.api.problems import Kind, Problem
from orchestrator.tasks.desk import TaskDesk
from orchestrator.tasks.opened import OpenedTask, unknown
from orchestrator.tasks.results import CallState
from orchestrator.workflow.problems import suggestion

KEY = re.compile(r"[\x21-\x7e]{1,128}")
"""An Idempotency-Key; quotes around it, as the header's draft has them, belong to it."""

REQUEST_ID = "X-Request-ID"
LONGEST_REQUEST_ID = 200

_OF_ALL = (Kind.UNAUTHENTICATED, Kind.CUT_OFF, Kind.TOO_MANY, Kind.UNAVAILABLE, Kind.DRAINING, Kind.DEFECT)

Model = TypeVar("Model", bound=BaseModel)
Doors = TypeVar("Doors")


@dataclass(frozen=True, slots=True)
class Operation(Generic[Doors]):
    """One operation. `answers` are the models by status; `problems` those besides what any operation may answer.

    `errors` are models by status in the place of problems, where a standard has errors of its own; `known_by_body` says
    that who calls is told by the body; `headers` are those that it takes besides.
    `links`: what may follow, by name, with its parameters as expressions of the answer (OpenAPI 3.1, Link Object).
    """

    method: str
    path: str
    name: str
    summary: str
    description: str
    handler: Callable[[Doors, Request], Awaitable[Response]]
    answers: Mapping[int, tuple[str, type[BaseModel]]]
    body: type[BaseModel] | None = None
    body_required: bool = False
    body_type: str = "application/json"
    needs_key: bool = False
    may_have_key: bool = False
    headers: tuple[str, ...] = ()
    known_by_body: bool = False
    echoes_request_id: bool = False
    problems: tuple[Kind, ...] = ()
    errors: Mapping[int, tuple[str, type[BaseModel]]] = field(default_factory=dict)
    links: Mapping[str, Mapping[str, str]] = field(default_factory=dict)

    @property
    def all_problems(self) -> tuple[Kind, ...]:
        """Every problem that it may answer with."""
        return () if self.errors else (*self.problems, *_OF_ALL)


@dataclass(slots=True)
class Operations:
    """What the operations work with. While `draining` is set nothing new begins."""

    desk: TaskDesk
    callers: Callers
    draining: asyncio.Event = field(default_factory=asyncio.Event)

    async def open(self, request: Request) -> Response:
        """`POST /v1/tasks`."""
        caller = await self._caller(request)
        self.not_draining()
        wanted = await _body(request, OpenRequest)
        allowed = [name for name in self.desk.types if self.callers.authentication.may_open(caller, name)]
        if wanted.type not in allowed:  # nobody is told what there is for others
            hint = suggestion(wanted.type, allowed, otherwise="there is none that it may open")
            raise Problem(Kind.NOT_ALLOWED, f"`{caller.agent}` may not open tasks of the type `{wanted.type}`", hint)
        opened = await self.desk.open(
            caller, wanted.type, wanted.inputs, reason=wanted.reason, address=address_of(request)
        )
        document = await self._task_document(opened)
        return _answer(201, document, {"Location": f"/v1/tasks/{opened.task_id}"})

    async def show(self, request: Request) -> Response:
        """`GET /v1/tasks/{task_id}`."""
        opened = await self._task(request)
        return _answer(200, await self._task_document(opened))

    async def close(self, request: Request) -> Response:
        """`DELETE /v1/tasks/{task_id}`."""
        caller = await self._caller(request)
        wanted = await _body(request, CloseRequest)
        confirmed = await self.desk.close(caller, request.path_params["task_id"], wanted.reason)
        return _answer(200 if confirmed else 202, EndDocument(confirmed=confirmed))

    async def call(self, request: Request) -> Response:
        """`POST /v1/tasks/{task_id}/tools/{tool}`."""
        caller = await self._caller(request)
        self.not_draining()
        keys = request.headers.getlist("idempotency-key")
        if len(keys) != 1 or not KEY.fullmatch(keys[0]):
            raise Problem(
                Kind.MALFORMED,
                "give the call one Idempotency-Key of 1 to 128 printable ASCII characters",
                "such as a UUID; asking again with the same key tells what came of the call, and never repeats it",
            )
        wanted = await _body(request, CallRequest)
        task_id = request.path_params["task_id"]
        result = await self.desk.call(
            caller, task_id, request.path_params["tool"], wanted.arguments, keys[0], address=address_of(request)
        )
        if result.state is CallState.REFUSED:
            raise refused(result.error, result.reason, result.call_id)
        connection = result.handed.credential.connection if result.handed else None
        address = self.desk.services.endpoints.get(connection or "")
        document = call_document(result, task_id, address)
        return _answer(202 if result.state in (CallState.RUNNING, CallState.WAITING) else 200, document)

    async def give_back(self, request: Request) -> Response:
        """`DELETE /v1/leases/{lease_id}`."""
        caller = await self._caller(request)
        confirmed = await self.desk.give_back(caller, request.path_params["lease_id"])
        return _answer(200 if confirmed else 202, EndDocument(confirmed=confirmed))

    async def renew(self, request: Request) -> Response:
        """`POST /v1/leases/{lease_id}/renew`."""
        caller = await self._caller(request)
        self.not_draining()
        lease = await self.desk.renew(caller, request.path_params["lease_id"])
        assert lease.expires_at is not None
        return _answer(200, lease_document(lease, lease.expires_at))

    async def _caller(self, request: Request) -> Caller:
        return await self.callers.caller(request)

    def not_draining(self) -> None:
        """Raises Problem where nothing new begins in this process."""
        if self.draining.is_set():
            elsewhere = {"Retry-After": "1", "Connection": "close"}  # a balancer may choose another process then
            raise Problem(Kind.DRAINING, "this process is about to end", headers=elsewhere)

    async def _task(self, request: Request) -> OpenedTask:
        return await self.desk.task(await self._caller(request), request.path_params["task_id"])

    async def _task_document(self, opened: OpenedTask) -> TaskDocument:
        reader = self.desk.services.reader
        record = await asyncio.to_thread(reader.task, opened.task_id)
        if record is None:
            raise unknown(opened.task_id)
        calls = await asyncio.to_thread(reader.calls, opened.task_id)
        return task_document(opened, record, list(calls))


def refused(error: Exception | None, reason: str, call_id: str) -> Problem:
    """Somebody who may say no has said no to a call."""
    by = error.by if isinstance(error, Refused) else "policy"
    reasons = list(error.reasons) if isinstance(error, PolicyDenied) else []
    hint = error.hint if isinstance(error, Refused) else None
    return Problem(Kind.DENIED, reason, hint, {"by": by, "reasons": reasons, "call": call_id})


async def _body(request: Request, model: type[Model]) -> Model:
    """What was sent, checked. Nothing at all is an empty object. Raises Problem, which repeats no value."""
    raw = await received(request)
    if raw and request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise Problem(Kind.MALFORMED, "the body is to be application/json")
    try:
        given = json_object(raw) if raw else {}
    except TokenRefused:
        raise Problem(
            Kind.MALFORMED, "the body is not one JSON object in UTF-8, with each member once and not too deep"
        ) from None
    try:
        return model.model_validate(given)
    except ValidationError as error:
        found = error.errors(include_input=False, include_context=False, include_url=False)
        wrong = "; ".join(f"`{'.'.join(str(part)[:40] for part in each['loc'])}`: {each['msg']}" for each in found[:5])
        raise Problem(Kind.INVALID, wrong) from None


def address_of(request: Request) -> str:
    """Where a request came from, for the record."""
    return request.client.host if request.client else ""


def _answer(status: int, document: BaseModel, headers: Mapping[str, str] | None = None) -> JSONResponse:
    body = document.model_dump(mode="json", exclude_none=isinstance(document, CallDocument))
    return JSONResponse(body, status_code=status, headers={"Cache-Control": "no-store", **(headers or {})})


_OF_TASK = {"task_id": "$response.body#/id"}
_OF_LEASE = {"lease_id": "$response.body#/lease/id"}

OPERATIONS = (
    Operation(
        "POST",
        "/v1/tasks",
        "openTask",
        "Open a task",
        "The agent is who the token, or the certificate, says. What may be called in it is in `tools`.",
        Operations.open,
        {201: ("It is open", TaskDocument)},
        body=OpenRequest,
        body_required=True,
        problems=(Kind.MALFORMED, Kind.INVALID, Kind.NOT_ALLOWED, Kind.TOO_LARGE),
        links={"showTask": _OF_TASK, "callTool": _OF_TASK, "closeTask": _OF_TASK},
    ),
    Operation(
        "GET",
        "/v1/tasks/{task_id}",
        "showTask",
        "How a task stands",
        "One of the agent's own; any other is not found.",
        Operations.show,
        {200: ("The task", TaskDocument)},
        problems=(Kind.NOT_FOUND,),
    ),
    Operation(
        "DELETE",
        "/v1/tasks/{task_id}",
        "closeTask",
        "Close a task",
        "What is under way in it ends, and every credential is taken back. It may be closed again.",
        Operations.close,
        {
            200: ("It is closed, and everything is gone for certain", EndDocument),
            202: ("It is closed; not everything is confirmed gone yet", EndDocument),
        },
        body=CloseRequest,
        problems=(Kind.MALFORMED, Kind.INVALID, Kind.NOT_FOUND, Kind.TOO_LARGE),
    ),
    Operation(
        "POST",
        "/v1/tasks/{task_id}/tools/{tool}",
        "callTool",
        "Call a tool",
        "The same Idempotency-Key is the same call: it is told, and never repeated. A credential is told once.",
        Operations.call,
        {
            200: ("The call has ended, or its credential is handed over", CallDocument),
            202: ("It is under way, or waits for somebody to agree", CallDocument),
        },
        body=CallRequest,
        needs_key=True,
        problems=(
            Kind.MALFORMED,
            Kind.INVALID,
            Kind.NOT_FOUND,
            Kind.DENIED,
            Kind.TASK_ENDED,
            Kind.BUDGET_SPENT,
            Kind.KEY_USED,
            Kind.TOO_LARGE,
        ),
        links={"renew": _OF_LEASE, "giveBack": _OF_LEASE},
    ),
    Operation(
        "DELETE",
        "/v1/leases/{lease_id}",
        "giveBack",
        "Give a credential back",
        "At any process, whichever has handed it over. It may be given back again.",
        Operations.give_back,
        {
            200: ("It is gone for certain", EndDocument),
            202: ("Its end is not confirmed yet", EndDocument),
        },
        problems=(Kind.NOT_FOUND,),
    ),
    Operation(
        "POST",
        "/v1/leases/{lease_id}/renew",
        "renew",
        "Have a credential for longer",
        "For its `ttl` from now, and no longer than the `timeout` of its tool, the task, the policy and Vault let it. "
        "At any process.",
        Operations.renew,
        {200: ("When it ends now", LeaseDocument)},
        problems=(Kind.NOT_FOUND, Kind.DENIED, Kind.NOT_RENEWED),
    ),
)
