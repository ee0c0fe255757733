"""A plain ASGI middleware: only requests with a verified token get to the application behind it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any
from urllib.parse import quote

from orchestrator.pep.access import AccessToken
from orchestrator.pep.challenges import AccessRefused, Answer
from orchestrator.pep.jwt.proofs import Presented
from orchestrator.pep.protection import Protection

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

STATE = "access_token"
"""The name in `scope["state"]` under which the application finds the token; Starlette: `request.state.access_token`."""

_POLICY_VIOLATION = 1008
"""RFC 6455, 7.4.1."""


class BearerAuthentication:
    """Authenticates each HTTP request, and answers in the place of the application where one may not pass.

    The application demands by `protection.require` what an operation needs; the AccessRefused that this raises becomes
    an answer here, if nothing has been sent yet. Lifespan events pass; a WebSocket is refused, since browsers cannot
    send a token with it; what is neither is not passed on.
    """

    def __init__(self, app: App, protection: Protection) -> None:
        self._app = app
        self._protection = protection

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One connection. Raises RuntimeError for one of a type that is not known."""
        match scope["type"]:
            case "http":
                await self._http(scope, receive, send)
            case "lifespan":
                await self._app(scope, receive, send)
            case "websocket":
                await receive()
                await send({"type": "websocket.close", "code": _POLICY_VIOLATION, "reason": "not served here"})
            case other:
                raise RuntimeError(f"a connection of type {other} is not let through without a token")

    async def _http(self, scope: Scope, receive: Receive, send: Send) -> None:
        began = False

        async def noticed(message: Message) -> None:
            nonlocal began
            began = True
            await send(message)

        try:
            sent = [value for name, value in scope["headers"] if name.lower() == b"authorization"]
            presented = self._presented(scope)
            token = await self._protection.authenticate(sent, scope.get("query_string", b""), presented)
            state = {**scope.get("state", {}), STATE: token}
            await self._app({**scope, "state": state}, receive, noticed)
        except AccessRefused as refused:
            if began:
                raise
            await respond(refused.answer, send)

    def _presented(self, scope: Scope) -> Presented | None:
        possession = self._protection.possession
        if possession is None:
            return None
        path = (scope.get("raw_path") or quote(scope["path"]).encode()).partition(b"?")[0].decode("latin-1")
        proofs = [value for name, value in scope["headers"] if name.lower() == b"dpop"]
        return Presented(proofs, scope["method"], possession.at + path)


async def respond(answer: Answer, send: Send) -> None:
    """Send an answer as ASGI has it."""
    headers = [(name.encode(), value.encode()) for name, value in answer.headers]
    await send({"type": "http.response.start", "status": answer.status, "headers": headers})
    await send({"type": "http.response.body", "body": answer.body})


def token_of(scope: Scope) -> AccessToken:
    """The token that was verified for this request. Raises LookupError where the middleware is not before it."""
    token = scope.get("state", {}).get(STATE)
    if not isinstance(token, AccessToken):
        raise LookupError("BearerAuthentication is not before this application")
    return token
