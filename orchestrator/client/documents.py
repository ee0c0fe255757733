"""What a broker answers, as data. What is secret in it shows in no repr."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any, TypeVar

import httpx

from orchestrator.client.errors import BrokerError
from orchestrator.secret import Secret

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Tool:
    """A tool that may be called while the task is open. `arguments` is the JSON Schema (2020-12) of what it takes."""

    name: str
    description: str
    arguments: Mapping[str, Any]
    hands_over: bool
    """Whether the agent gets a credential (`Task.credential`), and not an output (`Task.call`)."""
    max_calls: int | None
    max_open: int | None


@dataclass(frozen=True, slots=True)
class Opened:
    """A task as it was opened. Times are those of the broker."""

    id: str
    type: str
    agent: str
    on_behalf_of: str
    opened_at: datetime
    deadline: datetime
    context: Mapping[str, Any]
    tools: tuple[Tool, ...]


@dataclass(frozen=True, slots=True)
class Credential:
    """A credential that the agent holds. `fields` are all its secrets; the usual ones have names of their own here."""

    kind: str
    ttl: int
    """Seconds, from when it was issued."""
    expires_at: datetime
    lease_id: str
    scope: Mapping[str, Any]
    """What it may do, in normalised form. Not secret."""
    subject: str
    """Who it is: a database role, the `jti` of a token. Not secret."""
    address: str | None
    """Where the database is that it is for; there are no secrets in it."""
    fields: Mapping[str, Secret]
    token_type: str = "Bearer"  # noqa: S105 -- a name, no password
    """How a token is sent: `DPoP` where it is bound to a key, and goes with a proof."""

    @property
    def username(self) -> str:
        """The name of a login, in plain text. Raises AttributeError where it has none."""
        return self._plain("username")

    @property
    def password(self) -> str:
        """The password of a login, in plain text. Raises AttributeError where it has none."""
        return self._plain("password")

    @property
    def token(self) -> str:
        """A bearer token, in plain text. Raises AttributeError where it has none."""
        return self._plain("token")

    def _plain(self, name: str) -> str:
        if name not in self.fields:
            raise AttributeError(f"this credential has no {name}; it has {', '.join(self.fields)}")
        return self.fields[name].reveal()


def opened(document: Mapping[str, Any]) -> Opened:
    """From the answer of `openTask`."""
    return Opened(
        id=document["id"],
        type=document["type"],
        agent=document["agent"],
        on_behalf_of=document["on_behalf_of"],
        opened_at=datetime.fromisoformat(document["opened_at"]),
        deadline=datetime.fromisoformat(document["deadline"]),
        context=document["context"],
        tools=tuple(
            Tool(
                name=each["name"],
                description=each["description"],
                arguments=each["arguments"],
                hands_over=each["hands_over"],
                max_calls=each["max_calls"],
                max_open=each["max_open"],
            )
            for each in document["tools"]
        ),
    )


def credential(document: Mapping[str, Any]) -> Credential:
    """From the answer of `callTool` that hands one over."""
    told, lease = document["credential"], document["lease"]
    return Credential(
        kind=told["kind"],
        ttl=told["ttl"],
        expires_at=datetime.fromisoformat(lease["expires_at"]),
        lease_id=lease["id"],
        scope=lease["scope"],
        subject=lease["subject"],
        address=told.get("address"),
        fields={name: Secret(value) for name, value in told["fields"].items()},
    )


def exchanged(document: Mapping[str, Any], at: datetime) -> Credential:
    """From the answer of `exchangeToken` (RFC 8693, 2.2.1), which says nothing of a lease: it came `at` this time."""
    ttl = int(document["expires_in"])
    if document["token_type"] not in ("Bearer", "DPoP"):
        raise ValueError
    return Credential(
        kind="token",
        ttl=ttl,
        expires_at=at + timedelta(seconds=ttl),
        lease_id="",
        scope={"scopes": document["scope"].split(), "details": document["authorization_details"]},
        subject="",
        address=None,
        fields={"token": Secret(document["access_token"])},
        token_type=document["token_type"],
    )


def renewed(held: Credential, document: Mapping[str, Any]) -> Credential:
    """What is held, from the answer of `renew`."""
    return replace(held, expires_at=datetime.fromisoformat(document["expires_at"]))


def understood(response: httpx.Response, parse: Callable[[Mapping[str, Any]], T]) -> T:
    """The answer, parsed. Raises BrokerError, which holds nothing of what was answered."""
    try:
        return parse(response.json())
    except (ValueError, TypeError, KeyError, AttributeError):
        pass  # raised below: the error at hand may hold the answer, and would stay the context of the new one
    raise BrokerError(
        f"{response.url.host} did not answer as a broker does",
        hint="is the URL that of a broker, and is the broker of a version that this client knows?",
        status=response.status_code,
    )
