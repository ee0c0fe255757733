"""Vault's audit log, as its file device writes it: what was issued, what was taken back, and by whom.

Measured with OpenBao 2.7, whose form is Vault's: of a response that issues, `response.secret.lease_id` is as it is,
and the accessor in `response.auth` is hashed, as `hmac_accessor` is on by default; of requests that revoke, lease id
and accessor are hashed. Paths, and the metadata of the token that asked, are never hashed. With `log_raw` nothing is.
What ends by itself, or hangs from a token that is revoked, leaves no entry of its own.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from orchestrator.evidence.reconciliation.findings import Coverage

HASHED = "hmac-"

TOKEN_CREATE = "auth/token/create"  # noqa: S105 -- a path

_REVOKES_LEASE = ("sys/leases/revoke", "sys/revoke")
_REVOKES_PREFIX = ("sys/leases/revoke-prefix/", "sys/leases/revoke-force/", "sys/revoke-prefix/", "sys/revoke-force/")
_REVOKING = ("sys/leases/revoke", "sys/revoke", "auth/token/revoke")
_REVOKES_TOKEN = ("auth/token/revoke", "auth/token/revoke-orphan")


@dataclass(frozen=True, slots=True)
class Issued:
    """A lease or a token that Vault gave. `token` is the accessor of what asked for it, plain or hashed."""

    path: str
    time: datetime | None
    by: str
    run: str
    token: str
    is_token: bool


@dataclass(frozen=True, slots=True)
class TakenBack:
    """A revocation that Vault carried out, or took on. `time` is when it was asked for: until it is answered the
    database may have ended the login, and the step have failed of that."""

    time: datetime | None
    by: str


@dataclass(slots=True)
class AuditFacts:
    """What a log says, by handle: a lease id or an accessor, as it stands there, plain or hashed."""

    coverage: Coverage = field(default_factory=Coverage)
    issued: dict[str, Issued] = field(default_factory=dict)
    revoked: dict[str, TakenBack] = field(default_factory=dict)
    prefixes: list[tuple[str, TakenBack]] = field(default_factory=list)
    _accessors: dict[str, str] = field(default_factory=dict)
    """Of tokens, as they stand there."""
    _asked: dict[str, datetime] = field(default_factory=dict)
    """When revocations were asked for that are not answered yet, by the id of the request."""

    def read(self, line: str | None) -> None:
        """One line; a broken one is counted."""
        if line is not None and not line.strip():
            return
        entry = _entry(line)
        if entry is None:
            self.coverage.broken += 1
            return
        moment = moment_of(entry.get("time"))
        self.coverage.saw(moment)
        request = entry["request"]
        path, number = str(request.get("path", "")), str(request.get("id", ""))
        if entry["type"] == "request" and path.startswith(_REVOKING) and moment is not None:
            self._asked[number] = moment
        elif entry["type"] == "response":
            asked = self._asked.pop(number, moment)
            if not entry.get("error"):
                self._response(entry, request, path, moment, asked)

    def _response(
        self,
        entry: Mapping[str, Any],
        request: Mapping[str, Any],
        path: str,
        moment: datetime | None,
        asked: datetime | None,
    ) -> None:
        auth, response = _part(entry, "auth"), _part(entry, "response")
        by = _who(auth, request)
        lease_id = str(_part(response, "secret").get("lease_id") or "")
        given = _part(response, "auth")
        asked_by = str(auth.get("accessor") or "")
        run = str(_part(auth, "metadata").get("run") or _part(given, "metadata").get("run") or "")
        if path.startswith(_REVOKING):
            self._taken_back(path, auth, request, TakenBack(asked, by))
        elif path.startswith("sys/"):
            return  # a renewal names its lease, too
        elif lease_id:
            self.issued.setdefault(lease_id, Issued(path, moment, by, run, asked_by, is_token=False))
        elif path.startswith(TOKEN_CREATE) and given.get("accessor"):
            accessor = str(given["accessor"])
            self.issued.setdefault(accessor, Issued(path, moment, by, run, asked_by, is_token=True))
            self._accessors[str(given.get("client_token", ""))] = accessor

    def _taken_back(self, path: str, auth: Mapping[str, Any], request: Mapping[str, Any], done: TakenBack) -> None:
        data = _part(request, "data")
        for prefix in _REVOKES_PREFIX:
            if path.startswith(prefix):
                self.prefixes.append((path.removeprefix(prefix), done))
                return
        handle = ""
        if path in _REVOKES_LEASE:
            handle = str(data.get("lease_id") or "")
        elif path.startswith(tuple(f"{each}/" for each in _REVOKES_LEASE)):
            handle = path.removeprefix("sys/leases/revoke/").removeprefix("sys/revoke/")
        elif path == "auth/token/revoke-accessor":
            handle = str(data.get("accessor") or "")
        elif path == "auth/token/revoke-self":
            handle = str(auth.get("accessor") or "")
            handle = handle if handle in self.issued else ""  # a login's, and no token of a step
        elif path in _REVOKES_TOKEN:
            handle = self._accessors.get(str(data.get("token") or ""), "")
        if handle:
            self.revoked[handle] = min(self.revoked.get(handle, done), done, key=_when)

    def revocation(self, handles: Iterable[str]) -> TakenBack | None:
        """The first that is there of a lease: of itself, of the token that it hangs from, or of all below a path."""
        known = [handle for handle in handles if handle]
        found = [self.revoked[handle] for handle in known if handle in self.revoked]
        found += [done for prefix, done in self.prefixes if any(handle.startswith(prefix) for handle in known)]
        tokens = [self.issued[handle].token for handle in known if handle in self.issued]
        found += [self.revoked[token] for token in tokens if token in self.revoked and token]
        return min(found, key=_when, default=None)


def _when(done: TakenBack) -> float:
    return done.time.timestamp() if done.time else 0.0


def read_audit(lines: Iterable[str | None]) -> AuditFacts:
    """What all these lines say together."""
    facts = AuditFacts()
    for line in lines:
        facts.read(line)
    return facts


def _entry(line: str | None) -> dict[str, Any] | None:
    """A line as the device writes them; None for anything else."""
    try:
        entry = json.loads(line or "")
    except (ValueError, RecursionError):
        return None
    if not isinstance(entry, dict) or entry.get("type") not in ("request", "response"):
        return None
    return entry if isinstance(entry.get("request"), dict) else None


def moment_of(text: object) -> datetime | None:
    """RFC 3339, with as many digits of a second as there are; None for anything else, or a time without a zone."""
    if not isinstance(text, str):
        return None
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return None
    return moment if moment.tzinfo is not None else None


def _part(whole: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    part = whole.get(name)
    return part if isinstance(part, dict) else {}


def _who(auth: Mapping[str, Any], request: Mapping[str, Any]) -> str:
    name, address = str(auth.get("display_name") or ""), str(request.get("remote_address") or "")
    return f"{name} from {address}" if name and address else name or address
