"""Sending one HTTP request and following its redirects without carrying a credential or a body to a stranger."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from orchestrator.actions.http.auth import Private
from orchestrator.errors import StepFailed
from orchestrator.network.decoding import Decoder, Undecodable
from orchestrator.network.origins import origin

if TYPE_CHECKING:
    import httpx

MAX_REDIRECTS = 5
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_UNAUTHORIZED, _CHALLENGE, _WANTS_NONCE = 401, "www-authenticate", "use_dpop_nonce"
_HARMLESS = frozenset({"accept", "accept-language", "user-agent"})
"""Headers of the author that another origin may see."""


@dataclass(frozen=True, slots=True)
class Outgoing:
    """A request as it will be sent. `private` is for the origin of `url` only, and nothing of it is in there."""

    method: str
    url: str
    headers: Mapping[str, str] = field(default_factory=dict)
    content: bytes | None = None
    private: Private | None = None


@dataclass(frozen=True, slots=True)
class Incoming:
    """A response with its whole body."""

    status: int
    headers: httpx.Headers
    body: bytes
    url: str


async def transfer(
    client: httpx.AsyncClient,
    request: Outgoing,
    *,
    redirects: int,
    max_bytes: int,
    origins: Collection[str] = (),
    elsewhere: httpx.AsyncClient,
) -> Incoming:
    """The response, after at most this many redirects, all of them to the request's own origin or to one of `origins`.

    `client` is for the request's own origin and trusts whom it trusts; once another origin was asked, `elsewhere`
    is used, even where that leads back. Raises StepFailed `output` or `http_status`.
    """
    own = origin(request.url)
    allowed = {own, *origins}
    for _ in range(redirects + 1):
        response = await _send(client, request, max_bytes)
        target = response.headers.get("location")
        if redirects == 0 or response.status not in _REDIRECTS or target is None:
            return response
        request = redirected(request, response.status, target)
        if (there := origin(request.url)) not in allowed:
            raise StepFailed(
                f"{origin(response.url)} redirects to {there}, where this step does not go",
                kind="http_status",
                hint="name that origin in `redirect_origins` if it is to be trusted, so that policies can decide on it",
            )
        if there != own:
            client = elsewhere
    raise StepFailed(
        f"more than {redirects} redirects from {origin(request.url)}",
        kind="http_status",
        hint="name the final URL in `url`",
    )


async def _send(client: httpx.AsyncClient, request: Outgoing, max_bytes: int) -> Incoming:
    """Once; and once more with the nonce that the server wants in the proof (RFC 9449, 9): it did nothing yet."""
    response = await _sent(client, request, max_bytes)
    nonce = response.headers.get("dpop-nonce", "")
    bound = request.private is not None and request.private.key is not None
    if bound and nonce and response.status == _UNAUTHORIZED and _WANTS_NONCE in response.headers.get(_CHALLENGE, ""):
        return await _sent(client, request, max_bytes, nonce=nonce)
    return response


async def _sent(client: httpx.AsyncClient, request: Outgoing, max_bytes: int, *, nonce: str = "") -> Incoming:
    import httpx

    headers, extensions = {"accept-encoding": "identity", **request.headers}, {}
    if request.private is not None:
        headers |= {name: value.reveal() for name, value in request.private.headers.items()}
        headers |= request.private.proof(request.method, request.url, nonce)
        if request.private.query is not None:  # beside the URL, so that httpx has it neither to log nor to tell
            extensions["target"] = request.private.target(httpx.URL(request.url).raw_path)
    client.cookies.clear()
    async with client.stream(
        request.method, request.url, headers=headers, content=request.content, extensions=extensions
    ) as response:
        try:
            body = await _body(response, request, max_bytes)
        except Undecodable as error:
            raise StepFailed(
                f"{origin(request.url)} answered {response.status_code} with a body that cannot be read: {error}",
                kind="output",
                hint="name `gzip` or `deflate` in the header `accept-encoding` if the service insists on it",
            ) from None
    return Incoming(response.status_code, response.headers, body, request.url)


async def _body(response: httpx.Response, request: Outgoing, max_bytes: int) -> bytes:
    """The body as it is meant, of which never more is made than may be kept."""
    decoder = Decoder(
        response.headers.get("content-encoding", ""), accepted=response.request.headers["accept-encoding"]
    )
    body = bytearray()
    async for chunk in response.aiter_raw():
        for piece in decoder.pieces(chunk):
            body += piece
            if len(body) > max_bytes:
                raise StepFailed(
                    f"{origin(request.url)} answered with more than {max_bytes} bytes",
                    kind="output",
                    hint="ask for less, or raise `max_bytes`",
                )
            await asyncio.sleep(0)
    decoder.end()
    return bytes(body)


def redirected(request: Outgoing, status: int, location: str) -> Outgoing:
    """The request that a redirect asks for (RFC 9110, 15.4).

    To another origin (scheme, host or port) it takes neither the credential nor headers of the author, and it is
    refused if it would take the body (307 and 308). A credential that was left behind does not come back, and an
    address that repeats one is refused, but for the part of the query that is sent anyway.
    """
    import httpx

    try:
        url = str(httpx.URL(request.url).join(location).copy_with(fragment=None))
        same = origin(url) == origin(request.url)
    except (ValueError, httpx.InvalidURL) as error:
        raise StepFailed(f"redirected to a bad address: {error}", kind="http_status", hint=_HINT) from None
    if (private := request.private) is not None:
        url = private.without(url) if same else url
        if private.is_in(url) or (not same and private.without(url) != url):
            raise StepFailed(
                f"{origin(request.url)} redirects to an address that holds the credential of the request",
                kind="http_status",
                hint="the service repeats what it is sent: name the final URL in `url`",
            )
    following = replace(request, url=url)
    if (status == 303 and request.method != "HEAD") or (status in (301, 302) and request.method == "POST"):
        headers = {name: value for name, value in request.headers.items() if not name.lower().startswith("content-")}
        following = replace(following, method="GET", content=None, headers=headers)
    if same:
        return following
    if following.content is not None:
        raise StepFailed(
            f"{origin(request.url)} redirects the request with its body to {origin(url)}",
            kind="http_status",
            hint=_HINT,
        )
    headers = {name: value for name, value in following.headers.items() if name.lower() in _HARMLESS}
    return replace(following, headers=headers, private=None)


_HINT = "name the final URL in `url` if it is to be trusted"
