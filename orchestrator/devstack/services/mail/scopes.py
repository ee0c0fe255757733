"""The scopes of the Gmail API, and the methods that they permit."""

from __future__ import annotations

AUDIENCE = "https://gmail.googleapis.com/"
"""Of the tokens that it takes, and the resource indicator (RFC 8707) that they are asked for with."""

FULL = "https://mail.google.com/"
READONLY = "https://www.googleapis.com/auth/gmail.readonly"
MODIFY = "https://www.googleapis.com/auth/gmail.modify"
SEND = "https://www.googleapis.com/auth/gmail.send"
COMPOSE = "https://www.googleapis.com/auth/gmail.compose"
METADATA = "https://www.googleapis.com/auth/gmail.metadata"
LABELS = "https://www.googleapis.com/auth/gmail.labels"
SCOPES = (FULL, READONLY, MODIFY, SEND, COMPOSE, METADATA, LABELS)

_READERS = (FULL, MODIFY, READONLY, METADATA)
NEEDS = {
    "ListMessages": _READERS,
    "GetMessage": _READERS,
    "ListLabels": (*_READERS, LABELS),
    "SendMessage": (FULL, MODIFY, COMPOSE, SEND),
    "ModifyMessage": (FULL, MODIFY),
}
"""One of these scopes, by method (Gmail API reference, "Authorization scopes" of each)."""
