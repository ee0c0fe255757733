"""What is sent, within bounds of size and time."""

from __future__ import annotations

import asyncio

from starlette.requests import Request

from orchestrator.server.api.problems import Kind, Problem

MOST_BYTES = 1 << 16
"""Of a request's body."""

BODY_SECONDS = 15.0
"""How long it may take to arrive."""


async def received(request: Request) -> bytes:
    """The body. Raises Problem."""
    body = bytearray()
    try:
        async with asyncio.timeout(BODY_SECONDS):
            async for chunk in request.stream():
                body += chunk
                if len(body) > MOST_BYTES:
                    raise Problem(Kind.TOO_LARGE, f"the body is larger than {MOST_BYTES} bytes")
    except TimeoutError:
        raise Problem(Kind.MALFORMED, f"the body did not arrive within {BODY_SECONDS:g} s") from None
    return bytes(body)
