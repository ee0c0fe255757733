"""Telling people something through the webhooks of their chats and mailboxes.

A destination is a name in the settings and the URL of a webhook there; the URL counts as a secret, since many services
know their callers by nothing else. The message is JSON with `text`, which is what Slack, Mattermost, Google Chat and
others show, beside members that say what it is about.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from orchestrator.environment import how_to_set
from orchestrator.errors import Unreachable
from orchestrator.jsontypes import JsonObject
from orchestrator.secret import Secret

_SECONDS = 10.0
"""How long delivering one message may take, all tries included."""

_PAUSES = (0.5, 1.0, 2.0)
"""Seconds between the tries; one more than there are pauses."""


@dataclass(frozen=True, slots=True)
class Webhooks:
    """Delivers messages to the destinations of the settings, by their names."""

    destinations: Mapping[str, Secret] = field(default_factory=dict)

    async def deliver(self, to: str, text: str, about: JsonObject) -> None:
        """Post the message until it is taken (any 2xx). Raises Unreachable, without the URL.

        It may arrive twice where an answer was lost: `about` carries an `id` by which that can be seen.
        """
        url = self.destinations.get(to)
        if url is None:
            raise Unreachable(
                f"the settings know no destination `{to}`",
                hint=how_to_set("notify", to, "to the URL of a webhook"),
            )
        problem = "no answer in time"
        try:
            async with asyncio.timeout(_SECONDS):
                for pause in (*_PAUSES, None):
                    problem, again = await _post(url, {"text": text, **about})
                    if not problem:
                        return
                    if not again or pause is None:
                        break
                    await asyncio.sleep(pause)
        except TimeoutError:
            pass
        raise Unreachable(f"`{to}` could not be told: {problem}")


async def _post(url: Secret, message: JsonObject) -> tuple[str, bool]:
    """What went wrong, or an empty text; and whether trying again may help."""
    import httpx

    from orchestrator.network.http_client import http_client

    try:
        async with (
            http_client(_SECONDS) as client,
            client.stream("POST", url.reveal(), json=message) as response,
        ):
            if response.is_success:
                return "", False
            return f"it answered {response.status_code}", response.status_code == 429 or response.status_code >= 500
    except (httpx.HTTPError, httpx.InvalidURL, OSError, ValueError) as error:
        return f"{_host(url)} did not take it ({type(error).__name__})", isinstance(error, httpx.TransportError)


def _host(url: Secret) -> str:
    return urlsplit(url.reveal()).hostname or "its address"
