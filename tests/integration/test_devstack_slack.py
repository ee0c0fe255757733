"""The Slack stand-in, spoken to by the real slack-sdk."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from slack_sdk import WebClient
from slack_sdk.errors import SlackApiError

from orchestrator.devstack.sample_services import SampleServices, SlackBot
from orchestrator.secret import Secret

_ADMIN = Secret("admin-of-the-tests")
_POSTER = SlackBot("support-bot", Secret("token-of-the-poster"))
_READER = SlackBot("reader", Secret("token-of-the-reader"), scopes=("channels:read", "users:read"))


@pytest.fixture(scope="module")
def services(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SampleServices]:
    with SampleServices(
        directory=tmp_path_factory.mktemp("services"),
        vault_address="http://127.0.0.1:9",
        vault_token=Secret("unused"),
        key="unused",
        audience="unused",
        admin_token=_ADMIN,
        bots=(_POSTER, _READER),
    ) as running:
        yield running


def _client(services: SampleServices, token: str | None) -> WebClient:
    return WebClient(token=token, base_url=f"{services.url('slack')}/api/", retry_handlers=[])


@pytest.fixture
def poster(services: SampleServices) -> WebClient:
    return _client(services, _POSTER.token.reveal())


@pytest.fixture
def reader(services: SampleServices) -> WebClient:
    return _client(services, _READER.token.reveal())


def _messages(services: SampleServices) -> list[dict[str, str]]:
    answer = httpx.get(
        f"{services.url('slack')}/_admin/state", headers={"X-Admin-Token": _ADMIN.reveal()}, trust_env=False
    )
    messages: list[dict[str, str]] = answer.raise_for_status().json()["messages"]
    return messages


@pytest.mark.parametrize("channel", ["#support", "support", "C0SUPPORT"])
def test_a_bot_posts_to_a_channel_that_it_is_a_member_of(
    services: SampleServices, poster: WebClient, channel: str
) -> None:
    answer = poster.chat_postMessage(channel=channel, text=f"hello {channel}")
    assert answer["ok"] is True
    assert answer["channel"] == "C0SUPPORT"
    last = _messages(services)[-1]
    assert (last["bot"], last["channel"], last["text"], last["ts"]) == (
        "support-bot",
        "#support",
        f"hello {channel}",
        answer["ts"],
    )


def test_messages_have_stamps_of_their_own(poster: WebClient) -> None:
    stamps = {poster.chat_postMessage(channel="#support", text="again")["ts"] for _ in range(3)}
    assert len(stamps) == 3


def test_a_form_is_understood_as_json_is(services: SampleServices) -> None:
    form = {"token": _POSTER.token.reveal(), "channel": "#support", "text": "ขอบคุณ"}
    answer = httpx.post(f"{services.url('slack')}/api/chat.postMessage", data=form, trust_env=False)
    assert answer.json()["message"]["text"] == "ขอบคุณ"


@pytest.mark.parametrize("token", [None, ""])
def test_no_token_is_not_authed(services: SampleServices, token: str | None) -> None:
    with pytest.raises(SlackApiError) as refused:
        _client(services, token).chat_postMessage(channel="#support", text="hello")
    assert refused.value.response["error"] == "not_authed"


def test_an_unknown_token_is_invalid_auth(services: SampleServices) -> None:
    with pytest.raises(SlackApiError) as refused:
        _client(services, "token-of-nobody").auth_test()
    assert refused.value.response["error"] == "invalid_auth"


def test_a_missing_scope_is_named_with_those_that_are_there(services: SampleServices, reader: WebClient) -> None:
    before = _messages(services)
    with pytest.raises(SlackApiError) as refused:
        reader.chat_postMessage(channel="#support", text="hello")
    assert refused.value.response["error"] == "missing_scope"
    assert refused.value.response["needed"] == "chat:write"
    assert refused.value.response["provided"] == "channels:read,users:read"
    assert _messages(services) == before


@pytest.mark.parametrize(
    ("channel", "error"), [("#finance", "not_in_channel"), ("#nowhere", "channel_not_found"), ("", "channel_not_found")]
)
def test_other_channels_are_refused(services: SampleServices, poster: WebClient, channel: str, error: str) -> None:
    before = _messages(services)
    with pytest.raises(SlackApiError) as refused:
        poster.chat_postMessage(channel=channel, text="hello")
    assert refused.value.response["error"] == error
    assert _messages(services) == before


def test_an_empty_message_is_no_text(poster: WebClient) -> None:
    with pytest.raises(SlackApiError) as refused:
        poster.chat_postMessage(channel="#support", text="")
    assert refused.value.response["error"] == "no_text"


@pytest.mark.parametrize(("status", "error", "retry_after"), [(429, "ratelimited", "3"), (500, "internal_error", None)])
def test_a_planned_failure_comes_once_and_a_rate_limit_says_when_to_retry(
    services: SampleServices, poster: WebClient, status: int, error: str, retry_after: str | None
) -> None:
    httpx.post(
        f"{services.url('slack')}/_admin/fail-next",
        json={"status": status, "retry_after": retry_after},
        headers={"X-Admin-Token": _ADMIN.reveal()},
        trust_env=False,
    ).raise_for_status()
    with pytest.raises(SlackApiError) as limited:
        poster.chat_postMessage(channel="#support", text="hello")
    assert limited.value.response.status_code == status
    assert limited.value.response["error"] == error
    assert limited.value.response.headers.get("Retry-After") == retry_after
    assert poster.chat_postMessage(channel="#support", text="hello")["ok"] is True


def test_a_token_says_whose_it_is(poster: WebClient) -> None:
    assert poster.auth_test()["user"] == "support-bot"


def test_channels_are_listed_with_membership_to_those_who_may(reader: WebClient, poster: WebClient) -> None:
    channels = reader.conversations_list()["channels"]
    assert {channel["name"]: channel["is_member"] for channel in channels} == {
        "support": True,
        "general": False,
        "finance": False,
    }
    with pytest.raises(SlackApiError) as refused:
        poster.conversations_list()
    assert refused.value.response["needed"] == "channels:read"


def test_a_body_that_is_not_json_is_told_so(services: SampleServices) -> None:
    answer = httpx.post(
        f"{services.url('slack')}/api/chat.postMessage",
        content=b"{",
        headers={"Content-Type": "application/json", "Authorization": f"Bearer {_POSTER.token.reveal()}"},
        trust_env=False,
    )
    assert answer.json() == {"ok": False, "error": "invalid_json"}


def test_tokens_are_in_no_argument_and_no_log_of_the_services(services: SampleServices) -> None:
    arguments = Path("/proc", str(services.pid), "cmdline").read_bytes()
    environment = Path("/proc", str(services.pid), "environ").read_bytes()
    for token in (_ADMIN, _POSTER.token, _READER.token):
        for place in (arguments, environment, services.log.read_bytes()):
            assert token.reveal().encode() not in place


def test_while_vault_is_away_the_issuer_answers_that_it_cannot_serve(services: SampleServices) -> None:
    assert httpx.get(f"{services.url('issuer')}/.well-known/jwks.json", trust_env=False).status_code == 503
    refused = httpx.post(
        f"{services.url('translation')}/v1/translate",
        json={"messages": []},
        headers={"Authorization": "Bearer eyJhbGciOiJFUzI1NiIsImtpZCI6ImEiLCJ0eXAiOiJhdCtqd3QifQ.e30.AAAA"},
        trust_env=False,
    )
    assert refused.status_code == 503
