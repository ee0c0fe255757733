"""Posting decision log events to a collector, as OPA does: gzip-compressed JSON arrays."""

from __future__ import annotations

import gzip
import json
import ssl
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator.errors import Unreachable, UsageError

if TYPE_CHECKING:
    import httpx

EVENTS_AT_ONCE = 500
BYTES_AT_ONCE = 1 << 20
"""Of JSON, before it is compressed, unless one event alone is longer."""

_PAUSES = (1.0, 2.0, 4.0)
"""Seconds between the tries; one more than there are pauses."""

_SECONDS = 30.0
"""How long one request may take."""


def post(
    events: Iterable[Mapping[str, Any]], url: str, *, token_file: Path | None = None, ca_file: Path | None = None
) -> Iterator[int]:
    """Send all of them; yields after each request how many were taken so far.

    A URL without a path gets `/logs`, OPA's default. The token is read again for each request. Raises Unreachable where
    the collector does not take them, and UsageError where the token or the authorities cannot be read.
    """
    import httpx

    address = httpx.URL(url)
    if address.path in ("", "/"):
        address = address.copy_with(path="/logs")
    try:
        trust = ssl.create_default_context(cafile=str(ca_file) if ca_file else None)
    except OSError as error:
        raise UsageError(f"{ca_file}: the certificate authorities cannot be read: {error.strerror or error}") from None
    done = 0
    with httpx.Client(trust_env=False, verify=trust, timeout=_SECONDS, follow_redirects=False) as client:
        for body, count in _bodies(events):
            _send(client, address, body, token_file, done)
            done += count
            yield done


def _bodies(events: Iterable[Mapping[str, Any]]) -> Iterator[tuple[bytes, int]]:
    waiting: list[str] = []
    size = 0
    for event in events:
        text = json.dumps(event, ensure_ascii=True, allow_nan=False)
        if waiting and (len(waiting) >= EVENTS_AT_ONCE or size + len(text) > BYTES_AT_ONCE):
            yield _compressed(waiting), len(waiting)
            waiting, size = [], 0
        waiting.append(text)
        size += len(text)
    if waiting:
        yield _compressed(waiting), len(waiting)


def _compressed(events: list[str]) -> bytes:
    return gzip.compress(f"[{','.join(events)}]".encode(), mtime=0)


def _send(client: httpx.Client, url: httpx.URL, body: bytes, token_file: Path | None, done: int) -> None:
    import httpx

    problem = ""
    for pause in (*_PAUSES, None):
        try:
            with client.stream("POST", url, content=body, headers=_headers(token_file)) as response:
                if response.is_success:
                    return
                problem = f"it answered {response.status_code}"
                if response.status_code != 429 and response.status_code < 500:
                    break
        except httpx.TransportError as error:
            problem = f"no answer ({type(error).__name__})"
        if pause is not None:
            time.sleep(pause)
    raise Unreachable(
        f"the collector at {url.host} did not take the decisions: {problem}",
        hint=f"{done} were taken; send the others again later: who reads them knows them by `decision_id`",
    )


def _headers(token_file: Path | None) -> dict[str, str]:
    headers = {"content-type": "application/json", "content-encoding": "gzip"}
    if token_file is not None:
        try:
            token = token_file.read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError):
            raise UsageError(f"{token_file}: the token cannot be read") from None
        if not token.isascii() or not token.isprintable() or " " in token or not token:
            raise UsageError(f"{token_file}: this cannot be a bearer token") from None
        headers["authorization"] = f"Bearer {token}"
    return headers
