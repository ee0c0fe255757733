"""The state behind the API: mailboxes, their labels, what was sent and to whom."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from email.message import EmailMessage
from typing import Any

from orchestrator.devstack.services.mail import search
from orchestrator.devstack.services.mail.errors import invalid, not_found
from orchestrator.devstack.services.mail.messages import Mail, addresses

SYSTEM_LABELS = ("INBOX", "SENT", "DRAFT", "SPAM", "TRASH", "UNREAD", "STARRED", "IMPORTANT")
_FIXED = frozenset({"SENT", "DRAFT"})
"""Set by what is done to a mail, never by hand."""


@dataclass
class Mailbox:
    """Of one address. `labels`: names of the user's own, by id."""

    address: str
    labels: Mapping[str, str] = field(default_factory=dict)
    mails: dict[str, Mail] = field(default_factory=dict)

    def mail(self, key: str) -> Mail:
        """By its id. Raises ApiError."""
        try:
            int(key, 16)
        except ValueError:
            raise invalid("Invalid id value") from None
        if key not in self.mails:
            raise not_found()
        return self.mails[key]

    def found(self, query: str, labels: Collection[str], *, hidden: bool) -> list[Mail]:
        """Newest first. `hidden`: spam and trash, too. Raises ApiError."""
        self._check(labels)
        wanted = search.terms(query)
        everything = hidden or search.shows_hidden(wanted) or bool({"SPAM", "TRASH"} & set(labels))
        names = {name.lower(): key for key, name in self._known().items()}
        mails = [
            mail
            for mail in self.mails.values()
            if (everything or not search.is_hidden(mail))
            and set(labels) <= set(mail.labels)
            and search.matches(mail, wanted, names)
        ]
        return sorted(mails, key=lambda mail: (mail.received, mail.id), reverse=True)

    def relabel(self, key: str, add: Collection[str], remove: Collection[str], history: int) -> Mail:
        """Put labels on a mail and take others off. Raises ApiError."""
        mail = self.mail(key)
        self._check([*add, *remove])
        for label in (*add, *remove):
            if label in _FIXED:
                raise invalid(f"Invalid label: {label}")
        self.mails[key] = mail.labelled(add, remove, history)
        return self.mails[key]

    def label_resources(self) -> list[dict[str, str]]:
        """All labels, as `users.labels.list` gives them."""
        shown = {"messageListVisibility": "show", "labelListVisibility": "labelShow"}
        system: list[dict[str, str]] = [{"id": name, "name": name, "type": "system"} for name in SYSTEM_LABELS]
        own = [{"id": key, "name": name, **shown, "type": "user"} for key, name in self.labels.items()]
        return system + own

    def _known(self) -> dict[str, str]:
        return {**{name: name for name in SYSTEM_LABELS}, **self.labels}

    def _check(self, labels: Collection[str]) -> None:
        for label in labels:
            if label not in self._known():
                raise invalid(f"Invalid label: {label}")


@dataclass
class MailSystem:
    """All mailboxes. `sent` is what left: sender, recipients, subject, and by which client."""

    boxes: dict[str, Mailbox]
    sent: list[dict[str, Any]] = field(default_factory=list)
    _numbers: Iterator[int] = field(default_factory=lambda: itertools.count(1))

    def next_history(self) -> int:
        """Every change has a higher number."""
        return 100_000 + next(self._numbers)

    def send(self, box: Mailbox, mail: EmailMessage, thread: str | None, *, client_id: str, now: int) -> Mail:
        """Out of this mailbox, and into those of the recipients that there are. Raises ApiError.

        As Gmail does it, the sender is the mailbox, whatever the mail says.
        """
        recipients = list(dict.fromkeys(addresses(mail, "To", "Cc", "Bcc")))
        if not recipients:
            raise invalid("Recipient address required")
        if thread is not None and thread not in {each.thread_id for each in box.mails.values()}:
            raise not_found()
        del mail["From"], mail["Bcc"]
        mail["From"] = box.address
        raw = mail.as_bytes()
        kept = self._deliver(box, raw, thread, ("SENT",), now)
        for address in recipients:
            if address in self.boxes:
                self._deliver(self.boxes[address], raw, None, ("INBOX", "UNREAD"), now)
        entry = {"from": box.address, "to": recipients, "subject": str(mail.get("Subject", "")), "client_id": client_id}
        self.sent.append({**entry, "id": kept.id})
        return kept

    def _deliver(self, box: Mailbox, raw: bytes, thread: str | None, labels: tuple[str, ...], now: int) -> Mail:
        history = self.next_history()
        key = f"19ac{history:012x}"
        box.mails[key] = Mail(key, thread or key, raw, now, tuple(sorted(labels)), history)
        return box.mails[key]
