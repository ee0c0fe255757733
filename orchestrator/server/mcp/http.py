"""MCP over streamable HTTP, beside the API: the same listener, the same callers, the same tasks.

Of 2026-07-28 each request stands for itself, and its address for the task. In the older versions a session has a task
of its own, in this process, which ends with the session.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Coroutine, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, TypeGuard
from uuid import uuid4

from mcp.server.auth.middleware.bearer_auth import AuthenticatedUser
from mcp.server.auth.provider import AccessToken
from mcp.server.streamable_http_manager import StreamableHTTPSessionManager
from mcp.server.subscriptions import InMemorySubscriptionBus, ListenHandler
from mcp_types import SubscriptionsListenRequestParams, SubscriptionsListenResult
from mcp_types.version import MODERN_PROTOCOL_VERSIONS
from starlette.requests import Request
from starlette.routing import BaseRoute, Route
from starlette.types import Message, Receive, Scope, Send

from orchestrator.errors import OrchestratorError
from orchestrator.server.api.bodies import MOST_BYTES
from orchestrator.server.api.operations import Operations
from orchestrator.server.mcp.door import Context, Door, Place
from orchestrator.server.mcp.handles import Handles, Wanted
from orchestrator.server.mcp.visits import METADATA_PATH, PATH, Visits, refused, replayed
from orchestrator.tasks.opened import OpenedTask
from orchestrator.workflow.models.workflow import Workflow

log = logging.getLogger(__name__)

SESSION_SECONDS = 300.0
"""Without a request after which a session of an older client ends."""

MOST_SESSIONS = 256
"""Of older clients, and subscriptions of newer ones: each may hold a connection of the 1024 that the API has."""

_WANTED = "orchestrator.wanted"
"""The name in an ASGI scope of what the request wants."""


@dataclass(slots=True)
class HttpTasks:
    """The tasks of requests. Belongs to one event loop."""

    handles: Handles
    over: str = "Call it again: that opens a new one, unless you are in a session, which has to be begun anew."
    _sessions: dict[str, asyncio.Task[OpenedTask]] = field(default_factory=dict)
    """The opening of the task of each session in which a tool was called."""
    _subscribed: dict[str, int] = field(default_factory=dict)
    _ending: set[asyncio.Task[None]] = field(default_factory=set)
    _leaving: bool = False

    def workflow(self, context: Context) -> Workflow:
        """The file as it is now; in a session as it was when its task was opened."""
        opening = self._sessions.get(_session_id(context))
        return opening.result().workflow if _has_opened(opening) else _wanted(context).loaded.workflow

    async def place(self, context: Context, *, ended: str = "") -> Place:
        """The task that the address stands for, or that of the session."""
        wanted = _wanted(context)
        if session_id := _session_id(context):
            opened = await self._of_session(context, session_id, wanted)
            key = f"mcp {context.request_id!r}"  # unique in a session, and the task is the session's own
            return Place(wanted.caller, opened.task_id, wanted.address, key, lasting=True)
        opened = await self.handles.opened(wanted, ended=ended)
        return Place(wanted.caller, opened.task_id, wanted.address, str(uuid4()), lasting=bool(ended))

    async def _of_session(self, context: Context, session_id: str, wanted: Wanted) -> OpenedTask:
        if session_id not in self._sessions:
            # The SDK has no public way to the end of a session; its own words are that clean-up belongs here.
            context.session._connection.exit_stack.callback(self._session_ended, session_id, wanted)
        opening = self._sessions.get(session_id)
        if opening is None or (opening.done() and not _has_opened(opening)):
            opening = self._sessions[session_id] = asyncio.create_task(self.handles.of_session(wanted))
        return await asyncio.shield(opening)

    def _session_ended(self, session_id: str, wanted: Wanted) -> None:
        self._end(self._close_opened(wanted, self._sessions.pop(session_id)))

    async def _close_opened(self, wanted: Wanted, opening: asyncio.Task[OpenedTask]) -> None:
        await asyncio.wait({opening})
        if _has_opened(opening):
            await self._close(wanted, opening.result(), "the session has ended")

    @asynccontextmanager
    async def subscribed(self, context: Context) -> AsyncIterator[None]:
        """While a subscription of a newer client is held. When its last one in this process ends, so does the task."""
        wanted = _wanted(context)
        name = wanted.name
        self._subscribed[name] = self._subscribed.get(name, 0) + 1
        try:
            yield
        finally:
            self._subscribed[name] -= 1
            if not self._subscribed[name]:
                del self._subscribed[name]
                if not self._leaving:
                    self._end(self._close_found(wanted))

    async def _close_found(self, wanted: Wanted) -> None:
        if (opened := await self.handles.found(wanted)) is not None:
            await self._close(wanted, opened, "the subscription has ended")

    async def _close(self, wanted: Wanted, opened: OpenedTask, reason: str) -> None:
        try:
            await self.handles.desk.close(wanted.caller, opened.task_id, reason)
        except OrchestratorError as error:  # its deadline closes it
            log.error("task %s could not be closed: %s", opened.task_id, error.message, extra={"task": opened.task_id})

    def _end(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._ending.add(task)
        task.add_done_callback(self._ending.discard)

    def leave(self) -> None:
        """This process is about to end: what its subscribers have opened goes on at others."""
        self._leaving = True

    async def ended(self) -> None:
        """Wait until the tasks are closed whose sessions have ended."""
        while self._ending:
            await asyncio.wait(self._ending)


@dataclass(frozen=True, slots=True)
class Endpoint:
    """`/mcp/TASK`, as an application of ASGI: first it is told who calls, then the SDK answers."""

    visits: Visits
    manager: StreamableHTTPSessionManager

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        request, begun = Request(scope, receive), False

        async def sent(message: Message) -> None:
            nonlocal begun
            begun = True
            await send(message)

        try:
            wanted = await self.visits.wanted(request)
            if request.method == "POST":
                self.visits.operations.not_draining()
                receive = replayed(await self.visits.body(request), receive)
            known = {**scope, _WANTED: wanted, "user": _principal(wanted)}
            await self.manager.handle_request(known, receive, sent)
        except Exception as error:  # noqa: BLE001 -- whatever it is, the caller gets a problem and no text of it
            response = refused(error, request)
            if not begun:
                await response(scope, receive, send)


@asynccontextmanager
async def mcp_door(operations: Operations, *, hand_over: bool = False) -> AsyncIterator[Sequence[BaseRoute]]:
    """The routes, while their context is open. Leaving it ends all sessions, and closes their tasks."""
    tasks = HttpTasks(Handles(operations.desk))
    listen = ListenHandler(InMemorySubscriptionBus(), max_subscriptions=MOST_SESSIONS)

    async def subscribe(context: Context, params: SubscriptionsListenRequestParams) -> SubscriptionsListenResult:
        async with tasks.subscribed(context):
            return await listen(context, params)

    manager = StreamableHTTPSessionManager(
        Door(operations.desk, tasks, hand_over).server(on_subscriptions_listen=subscribe),
        session_idle_timeout=SESSION_SECONDS,
        max_sessions=MOST_SESSIONS,
        max_request_body_size=MOST_BYTES,
    )
    visits = Visits(operations)
    async with manager.run():
        try:
            yield [Route(PATH, Endpoint(visits, manager)), Route(METADATA_PATH, visits.metadata)]
        finally:
            tasks.leave()
            listen.close()
    await tasks.ended()


def _has_opened(opening: asyncio.Task[OpenedTask] | None) -> TypeGuard[asyncio.Task[OpenedTask]]:
    return opening is not None and opening.done() and not opening.cancelled() and opening.exception() is None


def _wanted(context: Context) -> Wanted:
    assert context.request is not None
    wanted = context.request.scope[_WANTED]
    assert isinstance(wanted, Wanted)
    return wanted


def _session_id(context: Context) -> str:
    """Of an older client. A newer one has none, whatever it sends."""
    assert context.request is not None
    modern = context.protocol_version in MODERN_PROTOCOL_VERSIONS
    return "" if modern else context.request.headers.get("mcp-session-id", "")


def _principal(wanted: Wanted) -> AuthenticatedUser:
    """Whose a session is: of this caller, for this task. The SDK answers anybody else that there is none."""
    return AuthenticatedUser(AccessToken(token="", client_id=wanted.name, scopes=[]))
