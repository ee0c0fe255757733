"""Slack's own client, held to what is ours to bound: time, the length of an answer, no proxies, and no log."""

from __future__ import annotations

import logging
import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from orchestrator.network.charsets import character_set
from orchestrator.secret import Secret

if TYPE_CHECKING:
    from aiohttp import ClientResponse
    from slack_sdk.web.async_client import AsyncWebClient

SLACK = "https://slack.com/api/"

_LONGEST_ANSWER = 1 << 20
"""Bytes. The methods answer with the message that was posted, which has 40,000 characters at most."""


@asynccontextmanager
async def slack_client(token: Secret, address: str, *, seconds: float) -> AsyncIterator[AsyncWebClient]:
    """A client of the Web API at `address` (ending with a slash), for calls that take so many seconds at most."""
    import aiohttp
    from slack_sdk.web.async_client import AsyncWebClient

    # At DEBUG the SDK logs what it sends; this logger belongs to nobody and shows nothing.
    silent = logging.Logger("slack", level=logging.CRITICAL + 1)
    silent.addHandler(logging.NullHandler())
    async with aiohttp.ClientSession(
        timeout=aiohttp.ClientTimeout(total=seconds),
        trust_env=False,
        response_class=_response_class(),
        auto_decompress=False,
        headers={"accept-encoding": "identity"},
    ) as session:
        client = AsyncWebClient(
            token=token.reveal(),
            base_url=address,
            session=session,
            timeout=math.ceil(seconds),
            logger=silent,
            retry_handlers=[],
        )
        client.proxy = None  # the SDK takes it from the environment
        yield client


def _response_class() -> type[ClientResponse]:
    import aiohttp

    class Response(aiohttp.ClientResponse):
        """What the label of a character set says is not believed where it names none: the message is posted by now.

        An answer is bounded while it arrives, and is as it was asked for: not compressed.
        """

        async def read(self) -> bytes:
            try:
                return await self._bounded()
            except BaseException:
                self.close()
                raise

        async def _bounded(self) -> bytes:
            if self._body is None:
                encoding = self.headers.get("content-encoding", "identity").strip().lower()
                if encoding not in ("", "identity"):
                    raise aiohttp.ClientPayloadError("the answer has an encoding that was not asked for")
                body = bytearray()
                async for chunk in self.content.iter_any():
                    body += chunk
                    if len(body) > _LONGEST_ANSWER:
                        raise aiohttp.ClientPayloadError(f"the answer is longer than {_LONGEST_ANSWER} bytes")
                self._body = bytes(body)
            return self._body

        def get_encoding(self) -> str:
            return character_set(self.charset or "utf-8")

        async def text(self, encoding: str | None = None, errors: str = "replace") -> str:
            return await super().text(encoding, errors)

    return Response
