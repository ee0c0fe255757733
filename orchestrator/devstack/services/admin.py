"""The back door of the sample services, for tests and the demo: look at their state, make the next calls fail."""

from __future__ import annotations

import hmac
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from pydantic import BaseModel, ValidationError
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route


@dataclass(frozen=True)
class PlannedFailure:
    """How one call shall fail. `retry_after` is the header's text."""

    status: int
    retry_after: str | None = None

    def response(self) -> Response:
        """The answer of a service that has no form of its own for failures."""
        headers = {"Retry-After": self.retry_after} if self.retry_after else {}
        return JSONResponse({"error": "planned failure"}, self.status, headers=headers)


class _Plan(BaseModel):
    status: int
    times: int = 1
    retry_after: int | None = None


@dataclass
class Backdoor:
    """Guarded by a token in the header `X-Admin-Token`; to everybody else it does not exist."""

    token: str
    planned: deque[PlannedFailure] = field(default_factory=deque)

    def planned_failure(self) -> PlannedFailure | None:
        """The failure that somebody asked for, each at most once."""
        return self.planned.popleft() if self.planned else None

    def routes(self, state: Callable[[], Any]) -> list[Route]:
        """`GET /_admin/state` and `POST /_admin/fail-next {"status", "times", "retry_after"}`."""

        async def show(request: Request) -> Response:
            return JSONResponse(state()) if self._known(request) else Response(status_code=404)

        async def plan(request: Request) -> Response:
            if not self._known(request):
                return Response(status_code=404)
            try:
                wish = _Plan.model_validate_json(await request.body())
            except ValidationError as error:
                return Response(str(error), status_code=400)
            retry_after = None if wish.retry_after is None else str(wish.retry_after)
            self.planned.extend([PlannedFailure(wish.status, retry_after)] * wish.times)
            return Response(status_code=204)

        return [Route("/_admin/state", show), Route("/_admin/fail-next", plan, methods=["POST"])]

    def _known(self, request: Request) -> bool:
        return hmac.compare_digest(request.headers.get("X-Admin-Token", "").encode(), self.token.encode())
