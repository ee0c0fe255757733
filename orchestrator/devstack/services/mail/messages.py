"""One mail: kept as the text that was sent (RFC 5322), shown as the Gmail API shows it (`users.messages`)."""

from __future__ import annotations

import base64
import binascii
import html
from collections.abc import Collection
from dataclasses import dataclass, replace
from email import message_from_bytes, policy
from email.message import EmailMessage
from email.utils import getaddresses
from enum import StrEnum
from typing import Any

_SNIPPET = 150


class Format(StrEnum):
    """How much of a message is shown."""

    MINIMAL = "minimal"
    FULL = "full"
    RAW = "raw"
    METADATA = "metadata"


@dataclass(frozen=True, slots=True)
class Mail:
    """In one mailbox. `received` in milliseconds since 1970; `labels` are ids, sorted."""

    id: str
    thread_id: str
    raw: bytes
    received: int
    labels: tuple[str, ...]
    history: int

    @property
    def parsed(self) -> EmailMessage:
        """The mail with its headers and parts."""
        return parse(self.raw)

    @property
    def text(self) -> str:
        """What a person reads of it."""
        body = self.parsed.get_body(("plain", "html"))
        return body.get_content() if body is not None else ""

    def labelled(self, add: Collection[str], remove: Collection[str], history: int) -> Mail:
        """With other labels."""
        return replace(self, labels=tuple(sorted((set(self.labels) - set(remove)) | set(add))), history=history)

    def named(self) -> dict[str, str]:
        """As in a list: `id` and `threadId`."""
        return {"id": self.id, "threadId": self.thread_id}

    def shown(self, form: Format, headers: Collection[str] = ()) -> dict[str, Any]:
        """The resource. `headers`: only these are shown of the metadata, if any are named."""
        resource: dict[str, Any] = {
            **self.named(),
            "labelIds": list(self.labels),
            "snippet": html.escape(" ".join(self.text.split())[:_SNIPPET], quote=True),
            "sizeEstimate": len(self.raw),
            "historyId": str(self.history),
            "internalDate": str(self.received),
        }
        if form is Format.RAW:
            resource["raw"] = encoded(self.raw)
        elif form is Format.METADATA:
            wanted = {name.lower() for name in headers}
            listed = [each for each in _headers(self.parsed) if not wanted or each["name"].lower() in wanted]
            resource["payload"] = {"mimeType": self.parsed.get_content_type(), "headers": listed}
        elif form is Format.FULL:
            resource["payload"] = _part(self.parsed, "")
        return resource


def parse(raw: bytes) -> EmailMessage:
    """A mail out of its text. Whatever is no mail is one without headers."""
    parsed = message_from_bytes(raw, policy=policy.default)
    assert isinstance(parsed, EmailMessage)
    return parsed


def addresses(mail: EmailMessage, *names: str) -> list[str]:
    """The addresses in these headers, in small letters."""
    values = [str(value) for name in names for value in mail.get_all(name, [])]
    return [address.lower() for _, address in getaddresses(values) if address]


def encoded(data: bytes) -> str:
    """As Google writes bytes: base64url with its padding."""
    return base64.urlsafe_b64encode(data).decode()


def decoded(text: str) -> bytes:
    """Raises ValueError for what is not base64url."""
    try:
        return base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
    except binascii.Error as error:
        raise ValueError("it is not base64url") from error


def _headers(part: EmailMessage) -> list[dict[str, str]]:
    return [{"name": name, "value": str(value)} for name, value in part.items()]


def _part(part: EmailMessage, number: str) -> dict[str, Any]:
    """`MessagePart`."""
    resource: dict[str, Any] = {
        "partId": number,
        "mimeType": part.get_content_type(),
        "filename": part.get_filename() or "",
        "headers": _headers(part),
    }
    if part.is_multipart():
        below = [each for each in part.iter_parts() if isinstance(each, EmailMessage)]
        prefix = f"{number}." if number else ""
        return {
            **resource,
            "body": {"size": 0},
            "parts": [_part(each, f"{prefix}{index}") for index, each in enumerate(below)],
        }
    payload = part.get_payload(decode=True)
    data = payload if isinstance(payload, bytes) else b""
    return {**resource, "body": {"size": len(data), "data": encoded(data)}}
