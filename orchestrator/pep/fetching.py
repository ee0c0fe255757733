"""One JSON object from another server: no redirect, no more bytes and no more time than is said, no surprises."""

from __future__ import annotations

import asyncio
import ssl
from dataclasses import dataclass, field
from urllib.parse import urlsplit

import httpx

from orchestrator.jsontypes import JsonObject
from orchestrator.network.http_client import ClosingTransport
from orchestrator.network.origins import is_confidential
from orchestrator.pep.errors import IssuerUnreachable, TokenRefused
from orchestrator.pep.jwt import strict

_STATUS_OK = 200


@dataclass(frozen=True, slots=True)
class Answer:
    """A JSON object, and for how many seconds it may be kept by its `Cache-Control` (None: it does not say)."""

    document: JsonObject = field(repr=False)
    max_age: int | None


def confidential(url: str) -> str:
    """The URL, if nobody on the way to it can read or change anything: https, or http to this machine only.

    Raises ValueError otherwise, and for one that is read in two ways.
    """
    if not is_confidential(url):
        raise ValueError("an issuer is asked over https, or over http on this machine only")
    try:
        asked = httpx.URL(url)
    except httpx.InvalidURL as error:
        raise ValueError("the URL of an issuer is not one") from error
    if (asked.scheme, asked.host) != (urlsplit(url).scheme, urlsplit(url).hostname):
        raise ValueError("the URL of an issuer can be read in two ways")
    return url


def client(tls: ssl.SSLContext | None, seconds: float) -> httpx.AsyncClient:
    """A client that takes nothing from the environment, no proxy either. `tls`: whom to trust, None for the usual."""
    transport = ClosingTransport(verify=tls or True, trust_env=False)
    return httpx.AsyncClient(transport=transport, trust_env=False, timeout=seconds)


async def json_object(http: httpx.AsyncClient, request: httpx.Request, *, most_bytes: int, seconds: float) -> Answer:
    """What the server answers. Raises IssuerUnreachable for whatever is not a JSON object with status 200.

    `seconds` is for all of it: a server that answers drop by drop is as good as none.
    """
    where = request.url.host
    request.headers["accept"] = "application/json"
    request.headers["accept-encoding"] = "identity"
    try:
        async with asyncio.timeout(seconds):
            response = await http.send(request, stream=True, follow_redirects=False)
            try:
                if response.status_code != _STATUS_OK:
                    raise IssuerUnreachable(f"{where} answered {response.status_code}", status=response.status_code)
                if response.headers.get("content-encoding", "identity") != "identity":
                    raise IssuerUnreachable(f"{where} answered in an encoding that was not asked for")
                body = await _bounded(response, most_bytes)
            finally:
                await response.aclose()
    except (httpx.HTTPError, httpx.InvalidURL, TimeoutError, OSError) as error:
        raise IssuerUnreachable(f"{where} did not answer ({type(error).__name__})") from error
    try:
        return Answer(strict.json_object(body), _max_age(response.headers.get("cache-control", "")))
    except TokenRefused as error:
        raise IssuerUnreachable(f"{where} did not answer with a JSON object: {error.message}") from None


async def _bounded(response: httpx.Response, most_bytes: int) -> bytes:
    body = bytearray()
    async for piece in response.aiter_raw():
        body += piece
        if len(body) > most_bytes:
            raise IssuerUnreachable(f"{response.request.url.host} answered with more than {most_bytes} bytes")
    return bytes(body)


def _max_age(cache_control: str) -> int | None:
    """Seconds (RFC 9111, 5.2.2); 0 for what is not to be kept."""
    directives = [each.strip().lower() for each in cache_control.split(",")]
    if "no-store" in directives or "no-cache" in directives:
        return 0
    for each in directives:
        name, _, value = each.partition("=")
        if name == "max-age" and value.isascii() and value.isdecimal() and len(value) < 10:
            return int(value)
    return None
