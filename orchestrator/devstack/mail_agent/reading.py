"""What the scripted agent makes of a mail, where a model would read: its text, what it is about, what it orders."""

from __future__ import annotations

import base64
import re
from dataclasses import dataclass
from typing import Any

_WORDS = {
    "refund": ("refund", "charged", "payment"),
    "delivery": ("parcel", "delivered", "tomorrow i cancel"),
    "complaint": ("disappointed", "broken"),
    "invoice": ("invoice", "rechnung"),
    "praise": ("thank you!",),
    "question": ("could you tell me",),
}
"""The first that has a word in the mail is it."""

_FORWARD = re.compile(r"forward .*? to ([\w.+-]+@[\w.-]+\w)", re.DOTALL)
_MAILBOXES = re.compile(r"read the mailboxes ([^,]+?),", re.IGNORECASE | re.DOTALL)
_ADDRESS = re.compile(r"[\w.+-]+@[\w.-]+\w")


@dataclass(frozen=True, slots=True)
class Orders:
    """What a mail tells whoever reads it to do: whose mailboxes to read, and where to forward what is there."""

    mailboxes: tuple[str, ...]
    forward_to: str


@dataclass(frozen=True, slots=True)
class Letter:
    """A mail as the API gave it (`users.messages`, format `full`)."""

    id: str
    subject: str
    text: str

    @classmethod
    def of(cls, resource: dict[str, Any]) -> Letter:
        """Its subject, and its plain text."""
        headers = {each["name"].lower(): each["value"] for each in resource["payload"]["headers"]}
        return cls(resource["id"], headers.get("subject", ""), _plain(resource["payload"]))

    @property
    def category(self) -> str:
        """By words, as nobody should do it."""
        words = f"{self.subject}\n{self.text}".lower()
        return next((name for name, known in _WORDS.items() if any(word in words for word in known)), "other")

    @property
    def orders(self) -> Orders | None:
        """None in a mail that only wants something of the team."""
        forward, named = _FORWARD.search(self.text), _MAILBOXES.search(self.text)
        if forward is None or named is None:
            return None
        return Orders(tuple(_ADDRESS.findall(named[1])), forward[1])


def _plain(part: dict[str, Any]) -> str:
    if part["mimeType"] == "text/plain":
        data = part["body"].get("data", "")
        return base64.urlsafe_b64decode(data + "=" * (-len(data) % 4)).decode()
    return "".join(_plain(each) for each in part.get("parts", ()))
