"""What those who have logged in may do: agree to something or refuse it, and cancel a run."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from orchestrator.approvals.desk import ApprovalDesk
from orchestrator.approvals.people import Unproven
from orchestrator.approvals.votes import Verdict
from orchestrator.errors import Refused, UsageError
from orchestrator.ledger.coordination.runners import RunnerStore
from orchestrator.ledger.states import RunState
from orchestrator.ledger.types import LedgerReader
from orchestrator.server.pages.answers import address
from orchestrator.server.pages.login.door import Door
from orchestrator.server.pages.sessions import Role, Session
from orchestrator.server.pages.troubles import troubled


@dataclass(frozen=True, slots=True)
class Inside:
    """Behind the door: the desk where approvals are given, and the processes that are asked to cancel."""

    door: Door
    desk: ApprovalDesk
    runners: RunnerStore
    reader: LedgerReader

    def routes(self) -> list[Route]:
        """Those of the door, and what is posted."""
        return [
            *self.door.routes(),
            Route("/approvals/{approval}", _told(self._vote), methods=["POST"]),
            Route("/runs/{run}/cancel", _told(self._cancel), methods=["POST"]),
        ]

    async def _vote(self, request: Request) -> Response:
        session = self._session(request, Role.APPROVER)
        given = await self.door.form(request, session)
        try:
            verdict = Verdict(given.get("verdict", ""))
        except ValueError:
            raise UsageError("nothing was said", hint="press one of the two buttons") from None
        approval = str(request.path_params["approval"])
        await self.desk.vote(approval, session.person, verdict, given.get("comment", "").strip())
        return RedirectResponse(address("approvals", approval), 303)

    async def _cancel(self, request: Request) -> Response:
        session = self._session(request, Role.OPERATOR)
        await self.door.form(request, session)
        run = str(request.path_params["run"])
        record = await asyncio.to_thread(self.reader.run, run)
        if record is None or record.state is not RunState.RUNNING:
            raise UsageError(f"run {run} does not go on", hint="there is nothing to cancel")
        reason = f"cancelled by {session.person.name} on the page"
        if not await asyncio.to_thread(self.runners.request_cancel, run, reason):
            raise UsageError(
                f"nobody drives run {run}", hint="it may have ended meanwhile; recovery closes what is left"
            )
        return RedirectResponse(address("runs", run), 303)

    def _session(self, request: Request, role: Role) -> Session:
        session = request.scope.get("orchestrator.session")
        if not isinstance(session, Session):
            raise Unproven("nobody is logged in here")
        if not session.may(role):
            raise Refused(f"{session.shown} is no {role.value} here", by="orchestrator")
        return session


def _told(act: Callable[[Request], Awaitable[Response]]) -> Callable[[Request], Awaitable[Response]]:
    async def endpoint(request: Request) -> Response:
        try:
            return await act(request)
        except Exception as error:  # noqa: BLE001 -- whatever it is, people get a page and no text of it
            return await asyncio.to_thread(troubled, error, request.scope.get("orchestrator.session"))

    return endpoint
