"""`slack.post_message`: one message to one channel, with a bot token that only this step holds."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Field
from pydantic import JsonValue as Json

from orchestrator.actions.base import GrantRef, OutputType, Params, StepContext
from orchestrator.actions.http.answer import retry_after
from orchestrator.actions.references import redactor_for, secret_of, within_deadline
from orchestrator.errors import StepFailed
from orchestrator.jsontypes import JsonObject, JsonValue
from orchestrator.network.origins import is_confidential, origin
from orchestrator.network.slack import SLACK, slack_client
from orchestrator.redaction.redactor import redact_exception

if TYPE_CHECKING:
    from slack_sdk.errors import SlackApiError

_CODE = re.compile(r"[a-z0-9_]{1,64}")
_PERMISSION = frozenset(
    [
        "access_denied",
        "account_inactive",
        "channel_not_found",
        "ekm_access_denied",
        "enterprise_is_restricted",
        "invalid_auth",
        "is_archived",
        "missing_scope",
        "no_permission",
        "not_allowed_token_type",
        "not_authed",
        "not_in_channel",
        "org_login_required",
        "restricted_action",
        "team_access_not_granted",
        "token_expired",
        "token_revoked",
        "two_factor_setup_required",
    ]
)
_UNAVAILABLE = frozenset(
    ["fatal_error", "internal_error", "request_timeout", "service_unavailable", "team_added_to_org"]
)


_RATE_LIMITED = frozenset(["rate_limited", "ratelimited"])
"""Slack's reference names both, and says them with status 200 too."""


class PostMessageParams(Params):
    """A message, where it goes, and the bot token that sends it; lengths and formats are Slack's to judge."""

    output_types: ClassVar[Mapping[str, OutputType]] = {"ok": "bool", "channel": "string", "ts": "string"}
    output_descriptions: ClassVar[Mapping[str, str]] = {
        "ok": "Always true: anything else fails the step.",
        "channel": "The id of the channel.",
        "ts": "The message's timestamp, which is its id in the channel; for `thread_ts`.",
    }

    token: Annotated[str, GrantRef("secret", "dynamic", "oauth2"), Field(pattern=r"^[^.]+\.[^.]+$")] = Field(
        description="`grant.field` that holds the bot token."
    )
    channel: Annotated[str, Field(min_length=1)] = Field(description="`#name` or an id.")
    text: str = Field(description="The message; with `blocks`, what notifications show.")
    blocks: list[dict[str, Json]] | None = Field(default=None, description="Block Kit blocks.")
    thread_ts: str | None = Field(default=None, description="The message to reply to.")

    @classmethod
    def output_keys(cls, given: Mapping[str, Any]) -> frozenset[str]:
        """Those of `output_types`."""
        return frozenset(cls.output_types)


class PostMessage:
    """Output: `{"ok": true, "channel", "ts"}`. Posting is not idempotent, so nothing is retried in here.

    The endpoint `slack`, if there is one, replaces Slack's own address. Kinds: `permission`, `rate_limited`,
    `connection`, `timeout`, `error`.
    """

    summary: ClassVar[str] = "Post a message to a Slack channel."
    params: ClassVar[type[Params]] = PostMessageParams

    def view(self, params: PostMessageParams) -> JsonObject:
        """The channel."""
        return {"channel": params.channel}

    async def run(self, params: PostMessageParams, context: StepContext) -> JsonValue:
        """Post it (Web API `chat.postMessage`) and return channel and timestamp.

        Sent once: a 429 is StepFailed `rate_limited` with Slack's `Retry-After`, for the step's `retry` to wait.
        """
        import aiohttp
        from slack_sdk.errors import SlackApiError

        token = secret_of(context, params.token)
        address = _address(context)
        async with (
            within_deadline(context, "Slack"),
            slack_client(token, address, seconds=context.remaining()) as client,
        ):
            try:
                answer = await client.chat_postMessage(
                    channel=params.channel, text=params.text, blocks=params.blocks, thread_ts=params.thread_ts
                )
            except SlackApiError as error:
                raise failure(error) from None
            except aiohttp.ClientError as error:
                raise StepFailed(
                    f"no answer from {origin(address)}: {redact_exception(error, redactor_for(context))}",
                    kind="connection",
                    hint="is Slack reachable from here?",
                ) from None
        return {"ok": True, "channel": answer.get("channel"), "ts": answer.get("ts")}


def _address(context: StepContext) -> str:
    address = context.endpoints.get("slack", SLACK).rstrip("/") + "/"
    try:
        safe = is_confidential(address)
    except ValueError as error:
        raise StepFailed(
            f"the endpoint `slack` is wrong: {error}", hint="write it like https://slack.com/api/"
        ) from None
    if not safe:
        raise StepFailed(
            "the token is not sent to the endpoint `slack` over plain http",
            hint="use https, or a service on this machine",
        )
    return address


def failure(error: SlackApiError) -> StepFailed:
    """What Slack's answer means for the step. Of the answer only its error code and a needed scope are told."""
    response: Any = error.response
    status = getattr(response, "status_code", None) or getattr(response, "status", None)
    data = getattr(response, "data", None)
    data = data if isinstance(data, dict) else {}
    code = str(data.get("error", ""))
    if not _CODE.fullmatch(code):
        code = "unknown_error"
    headers = {name.lower(): value for name, value in dict(getattr(response, "headers", None) or {}).items()}
    if code in _RATE_LIMITED or status == 429:
        return StepFailed(
            f"Slack answered {code if code in _RATE_LIMITED else 'ratelimited'}",
            kind="rate_limited",
            retry_after=retry_after(headers, now=datetime.now(UTC)),
            hint="retry with `retry: { on: [rate_limited] }`",
        )
    if code in _PERMISSION:
        needed = str(data.get("needed", ""))
        wanted = f" (needs {needed})" if re.fullmatch(r"[a-z:._,-]{1,100}", needed) else ""
        return StepFailed(f"Slack answered {code}{wanted}", kind="permission", hint=_PERMISSION_HINT)
    if code in _UNAVAILABLE or (isinstance(status, int) and status >= 500):
        return StepFailed(f"Slack answered {code} with status {status}", kind="connection", hint="try again later")
    return StepFailed(f"Slack answered {code}", hint="see chat.postMessage in Slack's API reference")


_PERMISSION_HINT = "invite the bot to the channel, or give the token the scope it needs"
