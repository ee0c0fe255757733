"""slack.post_message against a real HTTP server that speaks the part of Slack's Web API that is used."""

from __future__ import annotations

import asyncio
import json
import logging
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs

import pytest

from orchestrator.actions.base import StepContext
from orchestrator.actions.slack import PostMessage, PostMessageParams
from orchestrator.errors import StepFailed
from orchestrator.grants.credential import Credential
from orchestrator.secret import Secret

TOKEN = "xoxb-canary-7f3a9-token"


@dataclass
class Slack:
    url: str = ""
    status: int = 200
    hangs_up: bool = False
    headers: dict[str, str] = field(default_factory=dict)
    answer: Any = field(default_factory=lambda: {"ok": True, "channel": "C1", "ts": "1.2", "message": {"text": "hi"}})
    received: list[tuple[str, str | None, dict[str, Any]]] = field(default_factory=list)
    hold: threading.Event = field(default_factory=threading.Event)


@pytest.fixture
def slack() -> Iterator[Slack]:
    state = Slack()
    state.hold.set()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            raw = self.rfile.read(int(self.headers.get("content-length", 0))).decode()
            form = "form" in (self.headers.get("content-type") or "")
            body = {name: values[0] for name, values in parse_qs(raw).items()} if form else json.loads(raw)
            state.received.append((self.path, self.headers.get("authorization"), body))
            state.hold.wait(60)
            if state.hangs_up:
                return
            self.send_response(state.status)
            for name, value in {"content-type": "application/json", **state.headers}.items():
                self.send_header(name, value)
            self.end_headers()
            content = state.answer if isinstance(state.answer, str) else json.dumps(state.answer)
            self.wfile.write(content.encode())

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    state.url = f"http://127.0.0.1:{server.server_address[1]}/api"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield state
    finally:
        state.hold.set()
        server.shutdown()
        thread.join()
        server.server_close()


def context(url: str, seconds: float = 30) -> StepContext:
    bot = Credential("bot", "secret", 60, fields={"token": Secret(TOKEN)})
    deadline = time.monotonic() + seconds
    return StepContext("r", "w", "s", 1, "a", "k", deadline, credentials={"bot": bot}, endpoints={"slack": url})


async def post(slack: Slack, seconds: float = 30, **more: Any) -> Any:
    params = PostMessageParams.model_validate({"token": "bot.token", "channel": "#support", "text": "hi", **more})
    return await PostMessage().run(params, context(slack.url, seconds))


async def failure(slack: Slack, seconds: float = 30) -> StepFailed:
    with pytest.raises(StepFailed) as caught:
        await post(slack, seconds)
    assert TOKEN not in str(caught.value)
    return caught.value


async def test_the_message_arrives_with_the_token_in_the_header_only(slack: Slack) -> None:
    assert await post(slack, thread_ts="9.9", blocks=[{"type": "divider"}]) == {
        "ok": True,
        "channel": "C1",
        "ts": "1.2",
    }
    ((path, authorization, body),) = slack.received
    assert (path, authorization) == ("/api/chat.postMessage", f"Bearer {TOKEN}")
    assert (body["channel"], body["text"], body["thread_ts"]) == ("#support", "hi", "9.9")
    assert TOKEN not in str(body)


@pytest.mark.parametrize("code", ["missing_scope", "not_in_channel", "channel_not_found", "invalid_auth"])
async def test_what_the_token_may_not_do_is_a_permission_error(slack: Slack, code: str) -> None:
    slack.answer = {"ok": False, "error": code, "needed": "chat:write", "provided": "private"}
    error = await failure(slack)
    assert (error.kind, error.message) == ("permission", f"Slack answered {code} (needs chat:write)")


async def test_a_rate_limit_says_how_long_to_wait_and_is_not_retried_here(slack: Slack) -> None:
    slack.status, slack.headers, slack.answer = 429, {"Retry-After": "30"}, {"ok": False, "error": "ratelimited"}
    error = await failure(slack)
    assert (error.kind, error.retry_after) == ("rate_limited", 30.0)
    assert len(slack.received) == 1


@pytest.mark.parametrize("code", ["ratelimited", "rate_limited"])
@pytest.mark.parametrize("status", [200, 429])
async def test_both_words_for_a_rate_limit_are_one_whatever_the_status(slack: Slack, code: str, status: int) -> None:
    slack.status, slack.headers, slack.answer = status, {"Retry-After": "9" * 400}, {"ok": False, "error": code}
    error = await failure(slack)
    assert (error.kind, error.message) == ("rate_limited", f"Slack answered {code}")
    assert error.retry_after is not None
    assert error.retry_after > 1e18


@pytest.mark.parametrize("label", ["undefined", "idna", "rot13", "utf-7", "nonsense"])
async def test_a_label_that_names_no_character_set_does_not_fail_what_was_posted(slack: Slack, label: str) -> None:
    slack.headers = {"content-type": f"application/json; charset={label}"}
    assert (await post(slack))["ok"] is True


async def test_a_broken_slack_is_a_connection_error(slack: Slack) -> None:
    slack.status, slack.answer = 500, "<html>oops</html>"
    assert (await failure(slack)).kind == "connection"
    slack.status, slack.answer = 200, {"ok": False, "error": "internal_error"}
    assert (await failure(slack)).kind == "connection"


async def test_a_message_whose_answer_is_lost_is_not_posted_twice(slack: Slack) -> None:
    slack.hangs_up = True
    assert (await failure(slack)).kind == "connection"
    assert len(slack.received) == 1


async def test_other_errors_tell_only_the_code(slack: Slack) -> None:
    slack.answer = {"ok": False, "error": "invalid_blocks"}
    assert (await failure(slack)).message == "Slack answered invalid_blocks"
    slack.answer = {"ok": False, "error": f"strange {TOKEN}"}
    assert (await failure(slack)).message == "Slack answered unknown_error"


async def test_silence_is_a_timeout(slack: Slack) -> None:
    slack.hold.clear()
    assert (await failure(slack, seconds=0.5)).kind == "timeout"


async def test_cancellation_leaves_no_task_behind(slack: Slack) -> None:
    slack.hold.clear()
    task = asyncio.create_task(post(slack))
    async with asyncio.timeout(30):
        while not slack.received:
            await asyncio.sleep(0.02)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_an_address_that_refuses_is_a_connection_error(slack: Slack) -> None:
    slack.url = "http://127.0.0.1:1/api"
    assert (await failure(slack)).kind == "connection"


async def test_the_token_does_not_leave_this_machine_in_plain_text(slack: Slack) -> None:
    slack.url = "http://slack.example/api"
    assert "over plain http" in (await failure(slack)).message


async def test_a_proxy_of_the_environment_is_ignored(slack: Slack, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "https_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    assert (await post(slack))["ok"]


async def test_nothing_that_is_logged_contains_the_token(slack: Slack, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    logging.getLogger("slack_sdk").setLevel(logging.DEBUG)
    slack.answer = {"ok": False, "error": "invalid_auth", "echo": TOKEN}
    await failure(slack)
    assert TOKEN not in caplog.text


def test_the_view_shows_the_channel_only() -> None:
    params = PostMessageParams(token="bot.token", channel="#support", text="private")
    assert PostMessage().view(params) == {"channel": "#support"}
