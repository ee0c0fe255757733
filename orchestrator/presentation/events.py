"""Events in words, for the lines of a run and for its history."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, tzinfo
from typing import TYPE_CHECKING

from orchestrator.jsontypes import JsonObject, JsonValue
from orchestrator.presentation.terms import scope_words

if TYPE_CHECKING:
    from orchestrator.ledger.types import EventRecord


def _text(value: JsonValue) -> str:
    return "" if value is None else str(value)


def _list(value: JsonValue, separator: str) -> str:
    return separator.join(map(str, value)) if isinstance(value, list | tuple) else _text(value)


def _with_reason(words: str, reason: JsonValue) -> str:
    return f"{words}: {reason}" if reason else words


def _step(data: JsonObject) -> str:
    attempt = data.get("attempt", 1)
    return f"{data['step']}" + (f" (attempt {attempt})" if attempt != 1 else "")


def _decision(data: JsonObject) -> str:
    verb = "allowed" if data["allow"] else "denied"
    demands = data.get("obligations")
    demanded = f", demands {', '.join(demands)}" if isinstance(demands, Mapping) and demands else ""
    return _with_reason(f"{_step(data)} {verb} by {data['engine']}{demanded}", _list(data.get("reasons"), "; "))


def _notice(data: JsonObject) -> str:
    told = "could not be told" if data.get("error") else "was told"
    return _with_reason(f"{_step(data)} {data['to']} {told}", data.get("error"))


def _asked(data: JsonObject) -> str:
    return f"{_step(data)} {data['approval_id']}: {data['count']} of {_list(data.get('approvers'), ', ')}"


def _requested(data: JsonObject) -> str:
    scope = data.get("scope")
    what = scope_words(scope) if isinstance(scope, Mapping) else _text(data.get("resource"))
    return f"{_step(data)} {data['grant']}: {what}"


def _attempt_finished(data: JsonObject) -> str:
    again = f"; tried again at {data['retry_at']}" if data.get("retry_at") else ""
    return _with_reason(f"{_step(data)} {data['state']}", data.get("reason")) + again


def _ended(data: JsonObject) -> str:
    until = data.get("valid_until")
    return f"access ended; the secret stays valid until {until}" if until else "access ended; the secret stays valid"


def _swept(data: JsonObject) -> str:
    roles = _list(data.get("roles"), ", ") or "none found"
    return f"{data['step_key']} in {data['connection']}: {roles}"


def _tried(data: JsonObject) -> str:
    where = f" at {data['server']}" if data.get("server") else ""
    match data["refused"]:
        case True:
            return f"its password is refused{where} ({_text(data.get('sqlstate')) or data.get('reason')})"
        case False:
            return f"its password STILL WORKS{where}"
    return _with_reason(f"whether its password works{where} is not known", data.get("reason"))


def _revoked(data: JsonObject, zone: tzinfo | None = None) -> str:
    return f"confirmed by {_by_database(data, zone) or data['confirmed_by']}"


@dataclass(frozen=True, slots=True)
class DatabaseWord:
    """What a database said of an absent login: which one it is, what it said, who asked, and when by its own clock."""

    where: str
    said: Sequence[str]
    asked_by: str
    at: datetime | None


def database_word(witness: JsonValue) -> DatabaseWord | None:
    """Of `LeaseRevoked.witness`; None where nothing of that is on record."""
    if not isinstance(witness, Mapping) or not witness:
        return None
    server, unknown = witness.get("server"), witness.get("unknown")
    known, missing = (dict(each) if isinstance(each, Mapping) else {} for each in (server, unknown))
    sessions, others = witness.get("sessions"), witness.get("sessions_of_dropped_roles")
    if others:
        missing["sessions"] = f"{others} of dropped roles, whose ones nothing tells"
    where = f"{known['database']} at {known['address']}" if known.get("address") else ""
    system = f"(system {known['system']})" if known.get("system") else ""
    said = (
        f"role {witness['role']}",
        f"{sessions} sessions" if sessions is not None else "",
        *(f"{name} not known ({why})" for name, why in missing.items()),
    )
    return DatabaseWord(
        " ".join(filter(None, (where, system))),
        [each for each in said if each],
        str(witness["asked_by"]),
        datetime.fromisoformat(str(witness["at"])) if witness.get("at") else None,
    )


def _by_database(data: JsonObject, zone: tzinfo | None) -> str:
    word = database_word(data.get("witness"))
    if word is None:
        return ""
    said = (*word.said, f"asked by {word.asked_by}", *([_clock(word.at, zone)] if word.at else ()))
    return f"{' '.join(filter(None, ('database', word.where)))}: {', '.join(said)}"


def gone(events: Iterable[EventRecord], zone: tzinfo | None = None) -> list[str]:
    """Who says of a lease that it is gone, and of a login whether its password was tried; nothing where nobody does.

    Without a zone, times are local ones.
    """
    last = {event.kind: event for event in events}
    vault, tried, revoked = (last.get(f"lease.{kind}") for kind in ("vault_revoked", "login_tried", "revoked"))
    said = [f"Vault {_clock(vault.time, zone)}"] if vault is not None else []
    by_database = _by_database(revoked.data, zone) if revoked is not None else ""
    if revoked is not None:
        alone = {"vault": "Vault alone", "issuer": "its issuer"}.get(str(revoked.data["confirmed_by"]), "its database")
        said.append(by_database or f"{alone} {_clock(revoked.time, zone)}")
    if tried is not None:
        said.append(_tried(tried.data))
    elif revoked is not None and by_database:
        witness = revoked.data["witness"]
        held = witness.get("password") if isinstance(witness, Mapping) else None
        said.append(_with_reason("its password was not tried", held))
    return said


def _clock(moment: datetime, zone: tzinfo | None) -> str:
    return moment.astimezone(zone).strftime("%H:%M:%S")


def _issued(data: JsonObject) -> str:
    said = " ".join(filter(None, (_text(data.get("subject")), f"for {data['ttl']}s")))
    return "; ".join(filter(None, (said, not_looked_for(data.get("not_looked_for")))))


def _started(data: JsonObject) -> str:
    said = f"{data['workflow']} for {data['agent']}, trigger {data['trigger']}"
    if data.get("retry_of"):
        said += f", goes on from {data['retry_of']}"
    return "; ".join(filter(None, (said, not_looked_for(data.get("not_looked_for")))))


def not_looked_for(names: JsonValue) -> str:
    """That these secrets do not keep an output from being accepted, so that nobody relies on it."""
    quoted = _list([f"`{name}`" for name in names] if isinstance(names, list | tuple) else None, ", ")
    return f"{quoted} too short or too common to be looked for in outputs" if quoted else ""


_WORDS: Mapping[str, Callable[[JsonObject], str]] = {
    "run.started": _started,
    "run.finished": lambda data: _with_reason(f"{data['state']}, exit code {data['exit_code']}", data.get("reason")),
    "run.taken_over": lambda data: _with_reason(f"by {data['runner']}", data.get("reason")),
    "run.notified": lambda data: _with_reason(
        f"{data['to']} {'could not be told' if data.get('error') else 'was told of the end'}", data.get("error")
    ),
    "run.resumed": lambda data: _with_reason(f"by {data['runner']}", data.get("reason")),
    "attempt.started": lambda data: f"{_step(data)} {data['action']}",
    "decision": _decision,
    "notice": _notice,
    "approval.requested": _asked,
    "approval.voted": lambda data: _with_reason(
        f"{data['step']} {data['verdict']} by {data['by']}", data.get("comment")
    ),
    "approval.ended": lambda data: f"{data['step']} {data['outcome']} ({data['approval_id']})",
    "attempt.finished": _attempt_finished,
    "step.finished": lambda data: _with_reason(f"{data['step']} {data['state']}", data.get("reason")),
    "lease.requested": _requested,
    "lease.denied": lambda data: _text(data.get("reason")),
    "lease.failed": lambda data: _text(data.get("reason")),
    "lease.issued": _issued,
    "lease.renewed": lambda data: f"for {data['ttl']}s",
    "lease.revoking": lambda data: _text(data.get("reason")),
    "lease.revocation_failed": lambda data: _text(data.get("error")),
    "lease.vault_revoked": lambda data: "by Vault; its database is yet to be asked",
    "lease.login_tried": _tried,
    "lease.expired": lambda data: "",
    "lease.ended": _ended,
    "orphans.swept": _swept,
    "log.restarted": lambda data: f"{data.get('before')} ends with {data.get('size')} entries: {data.get('reason')}",
    "values.dropped": lambda data: _with_reason(_list(data.get("values"), " and "), data.get("reason")),
}


def words(kind: str, data: JsonObject, zone: tzinfo | None = None) -> str:
    """What an event says besides its kind; a kind that is not known here is shown as it was recorded.

    Without a zone, times are local ones.
    """
    if kind == "lease.revoked":
        return _revoked(data, zone)
    known = _WORDS.get(kind)
    return known(data) if known else ", ".join(f"{name}={value}" for name, value in data.items())
