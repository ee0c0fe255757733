"""A stand-in for Slack's Web API: the real slack-sdk talks to it through its `base_url`.

Shapes and error codes: api.slack.com, methods `chat.postMessage` and `auth.test`, "Rate limits".
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from orchestrator.devstack.services.admin import Backdoor

CHANNELS = {"#support": "C0SUPPORT", "#general": "C0GENERAL", "#finance": "C0FINANCE"}


@dataclass(frozen=True)
class Bot:
    """A bot user: what its token may do, and the channels it is a member of."""

    name: str
    scopes: frozenset[str]
    channels: frozenset[str]


def slack_app(bots: Mapping[str, Bot], backdoor: Backdoor) -> Starlette:
    """`bots` by token."""
    messages: list[dict[str, Any]] = []
    clock = itertools.count(1)

    def problem(error: str, **more: str) -> Response:
        return JSONResponse({"ok": False, "error": error, **more})

    async def authenticated(request: Request) -> tuple[Bot | None, Response | None, dict[str, Any]]:
        if (failure := backdoor.planned_failure()) is not None:
            limited = JSONResponse({"ok": False, "error": "ratelimited"}, failure.status_code)
            if "Retry-After" in failure.headers:
                limited.headers["Retry-After"] = failure.headers["Retry-After"]
            return None, limited, {}
        body = await _body(request)
        token = request.headers.get("Authorization", "").removeprefix("Bearer ") or body.get("token", "")
        if not token:
            return None, problem("not_authed"), body
        bot = bots.get(token)
        return (bot, None, body) if bot else (None, problem("invalid_auth"), body)

    async def post_message(request: Request) -> Response:
        bot, failure, body = await authenticated(request)
        if bot is None:
            assert failure is not None
            return failure
        if "chat:write" not in bot.scopes:
            return problem("missing_scope", needed="chat:write", provided=",".join(sorted(bot.scopes)))
        name = _channel_name(str(body.get("channel", "")))
        if name is None:
            return problem("channel_not_found")
        if name not in bot.channels:
            return problem("not_in_channel")
        if not body.get("text") and not body.get("blocks"):
            return problem("no_text")
        stamp = f"{1700000000 + next(clock)}.000100"
        message = {"bot": bot.name, "channel": name, "text": body.get("text", ""), "ts": stamp}
        messages.append(message)
        return JSONResponse(
            {
                "ok": True,
                "channel": CHANNELS[name],
                "ts": stamp,
                "message": {"type": "message", "text": message["text"]},
            }
        )

    async def auth_test(request: Request) -> Response:
        bot, failure, _ = await authenticated(request)
        if bot is None:
            assert failure is not None
            return failure
        return JSONResponse({"ok": True, "user": bot.name, "team": "Sample", "bot_id": "B0" + bot.name.upper()})

    return Starlette(
        routes=[
            Route("/api/chat.postMessage", post_message, methods=["POST"]),
            Route("/api/auth.test", auth_test, methods=["POST", "GET"]),
            *backdoor.routes(lambda: {"messages": messages}),
        ]
    )


async def _body(request: Request) -> dict[str, Any]:
    """slack-sdk sends JSON or a form, by method and version."""
    if request.headers.get("Content-Type", "").startswith("application/json"):
        return dict(json.loads(await request.body() or b"{}"))
    from urllib.parse import parse_qsl

    return dict(parse_qsl((await request.body()).decode()))


def _channel_name(given: str) -> str | None:
    by_id = {number: name for name, number in CHANNELS.items()}
    if given in by_id:
        return by_id[given]
    name = given if given.startswith("#") else f"#{given}"
    return name if name in CHANNELS else None
