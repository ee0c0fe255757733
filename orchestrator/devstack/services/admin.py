"""The back door of the sample services, for tests and the demo: look at their state, make the next calls fail."""

from __future__ import annotations

import hmac
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route


@dataclass
class Backdoor:
    """Guarded by a token in the header `X-Admin-Token`."""

    token: str
    planned: deque[tuple[int, str | None]] = field(default_factory=deque)

    def planned_failure(self) -> Response | None:
        """The failure that somebody asked for, at most once each: a status, and a `Retry-After`."""
        if not self.planned:
            return None
        status, retry_after = self.planned.popleft()
        headers = {"Retry-After": retry_after} if retry_after else {}
        return JSONResponse({"error": "planned failure"}, status, headers=headers)

    def routes(self, state: Callable[[], Any]) -> list[Route]:
        """`GET /_admin/state` and `POST /_admin/fail-next {"status", "times", "retry_after"}`."""

        async def show(request: Request) -> Response:
            return JSONResponse(state()) if self._known(request) else Response(status_code=404)

        async def plan(request: Request) -> Response:
            if not self._known(request):
                return Response(status_code=404)
            wish = await request.json()
            retry_after = wish.get("retry_after")
            for _ in range(int(wish.get("times", 1))):
                self.planned.append((int(wish["status"]), None if retry_after is None else str(retry_after)))
            return Response(status_code=204)

        return [Route("/_admin/state", show), Route("/_admin/fail-next", plan, methods=["POST"])]

    def _known(self, request: Request) -> bool:
        return hmac.compare_digest(request.headers.get("X-Admin-Token", ""), self.token)
