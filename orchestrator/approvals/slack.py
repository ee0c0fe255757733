"""Requests for approval as Slack messages with two buttons, and what comes back when somebody presses one.

Slack proves that a request is its own by a signature over time and body ("Verifying requests from Slack"). The signing
secret stays in Vault's transit engine, where it was imported as an HMAC key. A request counts once, and not when it
is older or newer than five minutes; who pressed is the user whom Slack names, as `slack:USER_ID`.
"""

from __future__ import annotations

import base64
import json
import logging
import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs

from orchestrator.approvals.desk import Standing
from orchestrator.approvals.people import Person, Unproven
from orchestrator.approvals.votes import Verdict
from orchestrator.errors import OrchestratorError
from orchestrator.ledger.coordination.approvals import ApprovalRecord
from orchestrator.ledger.states import ApprovalState
from orchestrator.network.slack import SLACK, slack_client
from orchestrator.vault.fields import section
from orchestrator.vault.login_request import read_secret
from orchestrator.vault.session import VaultSession

if TYPE_CHECKING:
    from slack_sdk.web.async_client import AsyncWebClient

log = logging.getLogger(__name__)

SIGNING_KEY = "orchestrator-slack"
"""The transit key that Slack's signing secret was imported as."""

MAX_AGE = 300
"""Seconds by which a request's time may differ from ours (Slack's own advice)."""

MAX_BODY_BYTES = 1 << 18

_SECONDS = 10.0
_SIGNATURE = re.compile(r"v0=([0-9a-f]{64})")
_STAMP = re.compile(r"[0-9]{1,12}")
_USER = re.compile(r"[UW][A-Z0-9]{2,20}")


@dataclass(frozen=True, slots=True)
class Pressed:
    """A button that somebody has pressed, and the message it is in."""

    by: Person
    verdict: Verdict
    approval_id: str
    channel: str
    message: str


@dataclass(frozen=True, slots=True)
class SlackApprovals:
    """Where requests are posted, and with what token. `api` is the address of the Web API, ending with a slash."""

    channel: str
    token_file: Path
    api: str = SLACK

    async def announce(self, record: ApprovalRecord) -> None:
        """Post the request (`chat.postMessage`)."""
        await self._call(
            record.approval_id,
            lambda slack: slack.chat_postMessage(channel=self.channel, text=_summary(record), blocks=_blocks(record)),
        )

    async def conclude(self, pressed: Pressed, standing: Standing) -> None:
        """Say in the message how the request stands (`chat.update`); the buttons go when it is closed."""
        blocks = [_text(_summary(standing.record)), _text(_said(standing))]
        if standing.state is ApprovalState.OPEN:
            blocks.append(_buttons(standing.record))
        summary = _summary(standing.record)
        await self._call(
            standing.record.approval_id,
            lambda slack: slack.chat_update(channel=pressed.channel, ts=pressed.message, text=summary, blocks=blocks),
        )

    async def refuse(self, pressed: Pressed, reason: str) -> None:
        """Tell the one who pressed, and nobody else, why that does not count (`chat.postEphemeral`)."""
        user = pressed.by.name.partition(":")[2]
        await self._call(
            pressed.approval_id,
            lambda slack: slack.chat_postEphemeral(channel=pressed.channel, user=user, text=_escaped(reason)),
        )

    async def _call(self, approval_id: str, method: Callable[[AsyncWebClient], Awaitable[object]]) -> None:
        """That Slack shows nothing is logged: the request stands as it does, and can be seen elsewhere."""
        try:
            token = read_secret(self.token_file, "Slack token file")
            async with slack_client(token, self.api, seconds=_SECONDS) as client:
                await method(client)
        except Exception as error:  # noqa: BLE001 -- whatever the SDK raises
            why = error.message if isinstance(error, OrchestratorError) else type(error).__name__
            log.warning("Slack shows nothing of %s: %s", approval_id, why)


async def verified_request(
    vault: VaultSession, headers: Mapping[str, str], body: bytes, *, now: datetime, deadline: float
) -> str:
    """The signature of a request that Slack has really sent, by which it is known again. Raises Unproven.

    Raises VaultRefused and VaultUnavailable where Vault does not look at it.
    """
    stamp, given = headers.get("x-slack-request-timestamp", ""), headers.get("x-slack-signature", "")
    signature = _SIGNATURE.fullmatch(given)
    if signature is None or not _STAMP.fullmatch(stamp):
        raise Unproven("it is not signed by Slack")
    if abs(now.timestamp() - int(stamp)) > MAX_AGE:
        raise Unproven("it is too old, or from the future")
    digest = base64.b64encode(bytes.fromhex(signature[1])).decode()
    path = f"transit/verify/{SIGNING_KEY}/sha2-256"
    wish = {"input": base64.b64encode(b"v0:" + stamp.encode() + b":" + body).decode(), "hmac": f"vault:v1:{digest}"}
    answer = await vault.runtime_request("post", path, deadline=deadline, payload=wish)
    if section(answer, "data", path).get("valid") is not True:
        raise Unproven("it is not signed by Slack")
    return f"slack {stamp} {signature[1]}"


def pressed_button(body: bytes) -> Pressed:
    """What was pressed, by a request of the type `block_actions`. Raises ValueError for anything else."""
    fields = parse_qs(body.decode("utf-8"), strict_parsing=True, max_num_fields=10)
    payload = json.loads(fields["payload"][0])
    if payload.get("type") != "block_actions":
        raise ValueError("it is not a button")
    (action,) = payload["actions"]
    user = payload["user"]["id"]
    if not isinstance(user, str) or not _USER.fullmatch(user):
        raise ValueError("it names no user")
    return Pressed(
        by=Person(f"slack:{user}"),
        verdict=Verdict(action["action_id"]),
        approval_id=str(action["value"]),
        channel=str(payload["container"]["channel_id"]),
        message=str(payload["container"]["message_ts"]),
    )


def _summary(record: ApprovalRecord) -> str:
    agent = record.question.get("agent")
    return _escaped(f"{agent} asks for {record.workflow}/{record.step} ({record.approval_id})")


def _blocks(record: ApprovalRecord) -> list[dict[str, Any]]:
    question = record.question
    run = question.get("run")
    reason = run.get("reason") if isinstance(run, dict) else ""
    lines = [f"*{_summary(record)}*", *([f"because: {_escaped(str(reason))}"] if reason else [])]
    grants = question.get("grants")
    for grant in grants if isinstance(grants, list) else ():
        lines.append(f"• {_escaped(_grant(grant))}")
    wanted = ", ".join(map(str, _list(record.demand.get("approvers"))))
    lines.append(_escaped(f"{record.demand.get('count')} of {wanted}, until {record.expires_at:%Y-%m-%d %H:%M} UTC"))
    return [_text("\n".join(lines)), _buttons(record)]


def _grant(grant: Any) -> str:
    privileges = _list(grant.get("privileges"))
    words = [f"{each.get('verb')} {_words(each.get('columns'))} on {each.get('object')}" for each in privileges]
    opened = [*words, *map(str, _list(grant.get("scopes"))), *map(str, _list(grant.get("keys")))]
    return f"{grant.get('name')}: {grant.get('kind')} {grant.get('connection') or grant.get('audience') or ''} " + (
        "; ".join(opened) or str(grant.get("resource"))
    )


def _words(columns: object) -> str:
    return f"({', '.join(map(str, columns))})" if isinstance(columns, list) else str(columns or "")


def _said(standing: Standing) -> str:
    said = [f"{vote.verdict.value} by {vote.by.name}" for _, vote in standing.votes]
    return _escaped(f"{standing.state.value}: {', '.join(said) or 'nobody has said anything'}")


def _text(words: str) -> dict[str, Any]:
    return {"type": "section", "text": {"type": "mrkdwn", "text": words[:2900]}}


def _buttons(record: ApprovalRecord) -> dict[str, Any]:
    def button(verdict: Verdict, words: str, style: str) -> dict[str, Any]:
        label = {"type": "plain_text", "text": words}
        return {
            "type": "button",
            "text": label,
            "style": style,
            "action_id": verdict.value,
            "value": record.approval_id,
        }

    return {
        "type": "actions",
        "elements": [button(Verdict.APPROVE, "Approve", "primary"), button(Verdict.DENY, "Deny", "danger")],
    }


def _escaped(text: str) -> str:
    """Slack's three characters ("Formatting text"), so that no name becomes a mention or a link."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _list(value: object) -> list[Any]:
    return value if isinstance(value, list) else []
