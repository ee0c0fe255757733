"""The pages as routes. Whoever asks gets a page, also where something is wrong, and never what an error said inside.

What is answered may come from anywhere and be read in a browser, so that every answer forbids it everything but our own
script, style and data. Without a login the pages answer only to names of this machine: else any site could have its
visitors' browsers read them under a name of its own (DNS rebinding).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from urllib.parse import urlencode

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response, StreamingResponse
from starlette.routing import BaseRoute, Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from orchestrator.network.loopback import is_loopback
from orchestrator.server.pages.answers import ROOT, Asked, Download, Elsewhere, NotThere, Page
from orchestrator.server.pages.live import Live
from orchestrator.server.pages.login.door import Door
from orchestrator.server.pages.login.inside import Inside
from orchestrator.server.pages.rendering import FOLDER, rendered
from orchestrator.server.pages.sessions import Session
from orchestrator.server.pages.sources import Sources
from orchestrator.server.pages.troubles import problem, troubled
from orchestrator.server.pages.views import (
    approvals,
    decisions,
    exposure,
    home,
    leases,
    receipts,
    runs,
    services,
    tasks,
)

log = logging.getLogger(__name__)

Make = Callable[[Sources, Asked], Page | Download]
Endpoint = Callable[[Request], Awaitable[Response]]

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "form-action 'self'; frame-ancestors 'none'; base-uri 'none'"
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    # With `no-referrer` browsers say `Origin: null` of our own forms, too (Fetch, "append a request `Origin` header").
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}

PAGES: tuple[tuple[str, Make], ...] = (
    ("/", home.home),
    ("/search", home.search),
    ("/runs", runs.list_runs),
    ("/runs/{run}", runs.show_run),
    ("/leases", leases.list_leases),
    ("/leases.csv", leases.download_leases),
    ("/leases/{lease}", leases.show_lease),
    ("/leases/{lease}/receipt", receipts.show_receipt),
    ("/leases/{lease}/receipt.json", receipts.download_receipt),
    ("/decisions/{run}/{step:path}/{attempt}", decisions.show_decision),
    ("/tasks", tasks.list_tasks),
    ("/tasks/{task}", tasks.show_task),
    ("/approvals", approvals.list_approvals),
    ("/approvals/{approval}", approvals.show_approval),
    ("/exposure", exposure.show_exposure),
    ("/schedules", services.list_schedules),
    ("/workers", services.list_workers),
)


def page_routes(sources: Sources, live: Live, inside: Inside | None = None) -> list[BaseRoute]:
    """Everything under `/ui/`; without `inside` for everybody on this machine, and to be read only."""
    app = Starlette(
        routes=[
            *(inside.routes() if inside is not None else ()),
            *(Route(path, _answering(sources, make), methods=["GET"]) for path, make in PAGES),
            Route("/live/runs/{run}", _following(live, inside), methods=["GET"]),
            Mount("/static", StaticFiles(directory=FOLDER / "static")),
        ],
        exception_handlers={HTTPException: _elsewhere},
    )
    return [Mount(ROOT, app=_Guarded(app, inside.door if inside is not None else None))]


def _answering(sources: Sources, make: Make) -> Endpoint:
    async def endpoint(request: Request) -> Response:
        names = {name: str(value) for name, value in request.path_params.items()}
        session = request.scope.get("orchestrator.session")
        asked = Asked(request.scope["path"], names, dict(request.query_params), sources.clock.now(), session)
        if any("\0" in name for name in names.values()):
            nothing = NotThere("Nothing has such a name.", hint="Begin at the overview.")
            return await asyncio.to_thread(troubled, nothing, session)
        try:
            return await asyncio.to_thread(_made, make, sources, asked)
        except Elsewhere as other:
            return RedirectResponse(other.url, 303)
        except Exception as error:  # noqa: BLE001 -- whatever it is, people get a page and no text of it
            return await asyncio.to_thread(troubled, error, session)

    return endpoint


def _made(make: Make, sources: Sources, asked: Asked) -> Response:
    answer = make(sources, asked)
    if isinstance(answer, Page):
        return HTMLResponse(rendered(answer, asked.session), answer.status)
    headers = {"Content-Disposition": f'attachment; filename="{answer.name}"'}
    return StreamingResponse(_in_threads(answer.parts), media_type=answer.media_type, headers=headers)


async def _in_threads(parts: Iterator[bytes]) -> AsyncIterator[bytes]:
    while (part := await asyncio.to_thread(next, parts, None)) is not None:
        yield part


async def _elsewhere(request: Request, error: Exception) -> Response:
    status = getattr(error, "status_code", 404)
    hint = "Begin at the overview, or look for an id with the search box."
    return problem(status, "There is no such page.", hint, request.scope.get("orchestrator.session"))


def _following(live: Live, inside: Inside | None) -> Endpoint:
    async def endpoint(request: Request) -> Response:
        run = str(request.path_params["run"])
        if inside is None:
            return live.stream(run)
        session: Session = request.scope["orchestrator.session"]  # strangers do not come here
        return live.stream(run, lambda: inside.door.sessions.lasts(session))

    return endpoint


class _Guarded:
    """Refuses foreign names, and whoever has not logged in, and puts the headers on every answer."""

    def __init__(self, app: ASGIApp, door: Door | None) -> None:
        self._app = app
        self._door = door

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def sent(message: Message) -> None:
            if message["type"] == "http.response.start":
                kept = [(name, value) for name, value in message["headers"] if name.lower() not in _LOWER]
                message = {**message, "headers": [*kept, *_ENCODED]}
            await send(message)

        host, app = _host(scope), self._app
        if self._door is None:
            app = app if is_loopback(host) else _foreign
        elif not is_loopback(host) and host.lower() != self._door.host:
            app = _foreign
        else:
            session = self._door.session_of(_header(scope, b"cookie"))
            if session is None and not scope["path"].startswith(_FOR_ALL):
                app = _stranger
            scope = {**scope, "orchestrator.session": session}
        await app(scope, receive, sent)


def _host(scope: Scope) -> str:
    """The name under which we were asked, without the port; empty where none was said, or several."""
    said: list[str] = [value.decode("latin-1") for name, value in scope["headers"] if name == b"host"]
    if len(said) != 1:
        return ""
    return said[0].partition("]")[0] + "]" if said[0].startswith("[") else said[0].partition(":")[0]


def _header(scope: Scope, name: bytes) -> str:
    return "; ".join(value.decode("latin-1") for key, value in scope["headers"] if key == name)


_FOR_ALL = (f"{ROOT}/login", f"{ROOT}/static/")


async def _stranger(scope: Scope, receive: Receive, send: Send) -> None:
    """Whoever wants to look at a page is asked to log in, and comes back to it; nothing else is answered."""
    if scope["method"] == "GET" and not scope["path"].startswith(f"{ROOT}/live/"):
        query = scope["query_string"].decode("latin-1")
        then = scope["path"] + (f"?{query}" if query else "")
        answer: Response = RedirectResponse(f"{ROOT}/login?{urlencode({'then': then})}", 303)
    else:
        page = scope["path"].removesuffix("/cancel")  # on which the form was
        answer = problem(
            401, "Nobody is logged in here any more.", "Nothing was done. Log in, and do it again.", login=page
        )
    await answer(scope, receive, send)


_ENCODED = [(name.lower().encode(), value.encode()) for name, value in HEADERS.items()]
_LOWER = frozenset(name for name, _ in _ENCODED)


async def _foreign(scope: Scope, receive: Receive, send: Send) -> None:
    hint = "Use 127.0.0.1, [::1] or localhost, as without a login only people on this machine may look."
    await problem(400, "These pages do not answer under this name.", hint)(scope, receive, send)
