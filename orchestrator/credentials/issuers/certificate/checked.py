"""What a signed certificate turned out to be, compared with what was asked for."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from orchestrator.secret import Secret

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Unfit:
    """Why a certificate is refused, and what to do about it."""

    what: str
    hint: str


@dataclass(frozen=True, slots=True)
class Checked:
    """A certificate: the fields that a step gets beside the key, its serial number, and when it ends.

    Where it is `unfit` the others say what could be read of it.
    """

    fields: Mapping[str, str]
    subject: str
    not_after: datetime
    unfit: Unfit | None = None
    not_before: datetime = field(default=_EPOCH)


@dataclass(frozen=True, slots=True)
class Prepared:
    """A key, what Vault is asked with for it, and how the answer (the certificate, and its chain) is looked at."""

    key: Secret
    wish: Mapping[str, Any]
    check: Callable[[str, Sequence[str]], Checked]


def differs(what: str, *, found: object, asked: object) -> Unfit:
    """It says something else than was asked for."""
    hint = "see what the role in Vault adds: `orchestrator provision check`"
    return Unfit(f"its {what} is {found}, not {asked}", hint)


def unreadable(ends: datetime) -> Checked:
    """Vault's answer holds no certificate that could be read."""
    return Checked({}, "", ends, Unfit("what Vault signed cannot be read", "is it a role of the right engine?"))
