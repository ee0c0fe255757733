"""A stand-in for Slack's Web API: the real slack-sdk talks to it through its `base_url`.

Shapes and error codes: api.slack.com, methods `chat.postMessage`, `conversations.list` and
`auth.test`, and "Rate limits".
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from orchestrator.devstack.services.admin import Backdoor

CHANNELS = {"#support": "C0SUPPORT", "#general": "C0GENERAL", "#finance": "C0FINANCE"}
_FIRST_STAMP = 1_700_000_000


@dataclass(frozen=True)
class Bot:
    """A bot user: what its token may do, and the channels it is a member of."""

    name: str
    scopes: frozenset[str]
    channels: frozenset[str]


class SlackProblem(Exception):
    """The call failed. Slack says so with `ok: false`, and with status 200 unless it limits the rate."""

    def __init__(self, error: str, *, status: int = 200, retry_after: str | None = None, **details: str) -> None:
        super().__init__(error)
        headers = {"Retry-After": retry_after} if retry_after else {}
        self.response = JSONResponse({"ok": False, "error": error, **details}, status, headers=headers)


@dataclass
class Workspace:
    """The state behind the API. `bots` are by token."""

    bots: Mapping[str, Bot]
    backdoor: Backdoor
    messages: list[dict[str, Any]] = field(default_factory=list)
    _clock: itertools.count[int] = field(default_factory=lambda: itertools.count(_FIRST_STAMP))

    async def post_message(self, request: Request) -> Response:
        """`chat.postMessage`: to a channel that exists and in which the bot is; scope `chat:write`."""
        bot, arguments = await self._authenticated(request, "chat:write")
        name = _channel_name(str(arguments.get("channel", "")))
        if name is None:
            raise SlackProblem("channel_not_found")
        if name not in bot.channels:
            raise SlackProblem("not_in_channel")
        text = arguments.get("text", "")
        if not text and not arguments.get("blocks"):
            raise SlackProblem("no_text")
        stamp = f"{next(self._clock)}.000100"
        self.messages.append({"bot": bot.name, "channel": name, "text": text, "ts": stamp})
        message = {"type": "message", "text": text, "ts": stamp}
        return JSONResponse({"ok": True, "channel": CHANNELS[name], "ts": stamp, "message": message})

    async def list_conversations(self, request: Request) -> Response:
        """`conversations.list`: all channels on one page; scope `channels:read`."""
        bot, _ = await self._authenticated(request, "channels:read")
        channels = [
            {"id": number, "name": name.removeprefix("#"), "is_channel": True, "is_member": name in bot.channels}
            for name, number in CHANNELS.items()
        ]
        return JSONResponse({"ok": True, "channels": channels, "response_metadata": {"next_cursor": ""}})

    async def test_auth(self, request: Request) -> Response:
        """`auth.test`: who the token is; no scope."""
        bot, _ = await self._authenticated(request, None)
        return JSONResponse({"ok": True, "user": bot.name, "team": "Sample", "bot_id": "B0" + bot.name.upper()})

    async def _authenticated(self, request: Request, scope: str | None) -> tuple[Bot, dict[str, Any]]:
        """The bot whose token came with the call, and the arguments. Raises SlackProblem."""
        if (failure := self.backdoor.planned_failure()) is not None:
            error = "ratelimited" if failure.status == 429 else "internal_error"
            raise SlackProblem(error, status=failure.status, retry_after=failure.retry_after)
        arguments = await _arguments(request)
        token = request.headers.get("Authorization", "").removeprefix("Bearer ") or str(arguments.get("token", ""))
        if not token:
            raise SlackProblem("not_authed")
        bot = self.bots.get(token)
        if bot is None:
            raise SlackProblem("invalid_auth")
        if scope is not None and scope not in bot.scopes:
            raise SlackProblem("missing_scope", needed=scope, provided=",".join(sorted(bot.scopes)))
        return bot, arguments


def slack_app(bots: Mapping[str, Bot], backdoor: Backdoor) -> Starlette:
    """`bots` by token."""
    workspace = Workspace(bots, backdoor)
    return Starlette(
        routes=[
            Route("/api/chat.postMessage", workspace.post_message, methods=["POST"]),
            Route("/api/conversations.list", workspace.list_conversations, methods=["GET", "POST"]),
            Route("/api/auth.test", workspace.test_auth, methods=["GET", "POST"]),
            *backdoor.routes(lambda: {"messages": workspace.messages}),
        ],
        exception_handlers={SlackProblem: _answer},
    )


async def _answer(request: Request, error: Exception) -> Response:
    assert isinstance(error, SlackProblem)
    return error.response


async def _arguments(request: Request) -> dict[str, Any]:
    """slack-sdk sends JSON, a form or a query, by method and version."""
    body = await request.body()
    if not request.headers.get("Content-Type", "").startswith("application/json"):
        return dict(request.query_params) | dict(parse_qsl(body.decode(errors="replace")))
    try:
        arguments = json.loads(body or b"{}")
    except ValueError as error:
        raise SlackProblem("invalid_json") from error
    if not isinstance(arguments, dict):
        raise SlackProblem("json_not_object")
    return arguments


def _channel_name(given: str) -> str | None:
    by_id = {number: name for name, number in CHANNELS.items()}
    name = by_id.get(given, given if given.startswith("#") else f"#{given}")
    return name if name in CHANNELS else None
