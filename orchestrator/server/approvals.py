"""Approvals over HTTP: what waits, saying something to it, and Slack's buttons. Needs the extra `serve`.

Whoever asks shows a Vault token of their own (`X-Vault-Token`), which is looked up with itself; what Slack sends is
verified by its signature. Without either there is nothing to see.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from orchestrator.approvals.people import Person, Unproven, owner_of
from orchestrator.approvals.slack import (
    MAX_BODY_BYTES,
    SlackApprovals,
    pressed_button,
    verified_request,
)
from orchestrator.approvals.views import approval_json, standing_json
from orchestrator.approvals.votes import Verdict
from orchestrator.errors import ExitCode, OrchestratorError, Refused, UnknownRun, UsageError
from orchestrator.ledger.states import ApprovalState
from orchestrator.runs.types import Services
from orchestrator.secret import Secret
from orchestrator.vault.faults import VaultRefused

log = logging.getLogger(__name__)

_SECONDS = 20.0
_MOST = 200


def approval_routes(services: Services, slack: SlackApprovals | None) -> list[Route]:
    """`GET /v1/approvals`, `GET` and `POST /v1/approvals/ID`, and Slack's request URL where Slack is set up."""
    door = _Door(services, slack)
    routes = [
        Route("/v1/approvals", _told(door.list), methods=["GET"]),
        Route("/v1/approvals/{approval_id}", _told(door.show), methods=["GET"]),
        Route("/v1/approvals/{approval_id}", _told(door.vote), methods=["POST"]),
    ]
    if slack is not None:
        routes.append(Route("/v1/slack/interactions", _told(door.pressed), methods=["POST"]))
    return routes


class _Door:
    def __init__(self, services: Services, slack: SlackApprovals | None) -> None:
        self._services = services
        self._slack = slack
        self._telling: set[asyncio.Task[None]] = set()

    async def list(self, request: Request) -> Response:
        """Requests, newest first; `state` and `run` limit them."""
        await self._person(request)
        state = request.query_params.get("state")
        store, now = self._services.approvals.store, self._services.clock.now()
        wanted = ApprovalState(state) if state else None
        found = await asyncio.to_thread(
            lambda: store.all(state=wanted, run=request.query_params.get("run"), limit=_MOST)
        )
        return JSONResponse({"approvals": [approval_json(each, now) for each in found]})

    async def show(self, request: Request) -> Response:
        """One request, whole."""
        await self._person(request)
        standing = await self._services.approvals.look(request.path_params["approval_id"])
        return JSONResponse(standing_json(standing))

    async def vote(self, request: Request) -> Response:
        """`{"verdict": "approve" | "deny", "comment": "..."}` by the owner of the token."""
        person = await self._person(request)
        said = json.loads(await _body(request, 1 << 14))
        if not isinstance(said, dict) or set(said) - {"verdict", "comment"}:
            raise ValueError("not a vote")
        verdict, comment = Verdict(said["verdict"]), said.get("comment", "")
        if not isinstance(comment, str):
            raise ValueError("not a comment")
        standing = await self._services.approvals.vote(request.path_params["approval_id"], person, verdict, comment)
        return JSONResponse(standing_json(standing))

    async def pressed(self, request: Request) -> Response:
        """A button of Slack's. Answered at once, as Slack wants it; what there is to show is shown afterwards."""
        services, slack = self._services, self._slack
        assert slack is not None
        body, now = await _body(request, MAX_BODY_BYTES), services.clock.now()
        deadline = services.clock.monotonic() + _SECONDS
        known = await verified_request(services.broker.vault, request.headers, body, now=now, deadline=deadline)
        if not await asyncio.to_thread(lambda: services.approvals.store.first_time(known, now=now)):
            raise Unproven("it came before")
        pressed = pressed_button(body)
        try:
            standing = await services.approvals.vote(pressed.approval_id, pressed.by, pressed.verdict)
        except (Refused, UsageError) as error:
            self._later(slack.refuse(pressed, error.message))
        else:
            self._later(slack.conclude(pressed, standing))
        return Response(status_code=200)

    def _later(self, work: Awaitable[None]) -> None:
        task = asyncio.ensure_future(work)
        self._telling.add(task)
        task.add_done_callback(self._telling.discard)

    async def _person(self, request: Request) -> Person:
        given = request.headers.get("x-vault-token", "")
        if not given or not given.isascii() or not given.isprintable():
            raise Unproven("show a Vault token of your own in the header X-Vault-Token")
        token = Secret(given)
        self._services.own_secrets.remember_token(token)
        deadline = self._services.clock.monotonic() + _SECONDS
        try:
            return await owner_of(self._services.broker.vault, token, deadline=deadline)
        except VaultRefused:
            raise Unproven("Vault does not know this token") from None


async def _body(request: Request, limit: int) -> bytes:
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > limit:
            raise ValueError("too long")
    return bytes(body)


def _told(answer: Callable[[Request], Awaitable[Response]]) -> Callable[[Request], Awaitable[Response]]:
    """Errors as RFC 9457 problems; what is not ours to explain says no more than that it is wrong."""

    async def handler(request: Request) -> Response:
        try:
            return await answer(request)
        except UnknownRun as error:
            return _problem(404, error.message)
        except Unproven as error:
            return _problem(401, error.message)
        except VaultRefused as error:
            return _problem(503, error.message)
        except Refused as error:
            return _problem(403, error.message)
        except UsageError as error:
            return _problem(409, error.message)
        except OrchestratorError as error:
            return _problem(503 if error.exit_code is ExitCode.UNREACHABLE else 500, error.message)
        except (ValueError, KeyError, TypeError, UnicodeError):
            return _problem(400, "the request is not understood")

    return handler


def _problem(status: int, detail: str) -> Response:
    return JSONResponse(
        {"type": "about:blank", "status": status, "detail": detail},
        status_code=status,
        media_type="application/problem+json",
    )
