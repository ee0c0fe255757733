"""A receipt in two sentences: who got what, why, from when to when, and who says that it is over. As HTML."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from html import escape

from orchestrator.jsontypes import JsonObject, JsonValue
from orchestrator.ledger.events import WHOLE_RUN
from orchestrator.ledger.lease import LeaseState
from orchestrator.presentation.document import moment
from orchestrator.presentation.terms import lasting, scope_or_json

EXACT = "%Y-%m-%d %H:%M:%S"


def part(document: JsonObject, name: str) -> JsonObject:
    """An object in a document; an empty one where there is none."""
    found = document.get(name)
    return found if isinstance(found, Mapping) else {}


def parts(document: JsonObject, name: str) -> Sequence[JsonObject]:
    """The objects of a list in a document."""
    found = document.get(name)
    return [each for each in found if isinstance(each, Mapping)] if isinstance(found, list | tuple) else []


def text(value: JsonValue) -> str:
    """Escaped; empty for nothing."""
    return "" if value is None else escape(str(value))


def at(value: JsonValue, shape: str = EXACT) -> str:
    """A time as it is recorded, as HTML; empty for nothing."""
    return moment(datetime.fromisoformat(str(value)), shape) if value else ""


def listing(words: Sequence[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    return " and ".join(filter(None, (", ".join(words[:-1]), *words[-1:])))


def last_of(receipt: JsonObject, kind: str) -> JsonObject:
    """The last event of the lease of this kind; an empty object where there is none."""
    return next((each for each in reversed(parts(receipt, "history")) if each["kind"] == kind), {})


def story(receipt: JsonObject) -> str:
    """The sentences."""
    return f"{_given(receipt)}; {_decided(receipt)}. {_over(receipt)}."


def what(receipt: JsonObject) -> str:
    """What was asked for, in words."""
    lease = part(receipt, "lease")
    scope = part(lease, "scope")
    return text(scope_or_json(scope) if scope else lease.get("resource"))


def _given(receipt: JsonObject) -> str:
    lease, run = part(receipt, "lease"), part(receipt, "run")
    behalf = part(run, "caller").get("on_behalf_of")
    who = f"<strong>{text(run.get('agent'))}</strong>" + (f" (on behalf of {text(behalf)})" if behalf else "")
    if receipt.get("issued_at"):
        got = "was given"
    elif receipt.get("state") in (LeaseState.DENIED, LeaseState.FAILED):
        got = "asked for, and did not get,"
    else:
        got = "asked for, and may have got,"
    return f"{who} {got} <strong>{what(receipt)}</strong> for {_place(lease, run)}"


def _place(lease: JsonObject, run: JsonObject) -> str:
    of_run = f"the run <code>{text(run.get('id'))}</code> of <strong>{text(run.get('workflow'))}</strong>"
    task = f", a call in the task <code>{text(run['task'])}</code>" if run.get("task") else ""
    if lease.get("step") == WHOLE_RUN:
        return of_run + task
    again = f", attempt {text(lease.get('attempt'))}," if lease.get("attempt") != 1 else ""
    return f"the step <strong>{text(lease.get('step'))}</strong>{again} of {of_run}{task}"


def _decided(receipt: JsonObject) -> str:
    decision = part(receipt, "decision")
    if not decision:
        return "no decision of a policy about it is on record"
    verb = "allowed" if decision.get("allow") else "denied"
    votes = parts(receipt, "approvals")
    agreed = [text(each.get("by")) for each in votes if each.get("verdict") == "approve"]
    refused = [text(each.get("by")) for each in votes if each.get("verdict") != "approve"]
    people = [f"{listing(names)} {word}" for names, word in ((agreed, "agreed"), (refused, "refused")) if names]
    return ", and ".join([f"the policy ({text(decision.get('engine'))}) {verb} it", *people])


def _over(receipt: JsonObject) -> str:
    state, issued, over = (receipt.get(name) for name in ("state", "issued_at", "over_at"))
    if state in (LeaseState.DENIED, LeaseState.FAILED):
        why = last_of(receipt, f"lease.{state}").get("reason")
        return f"There was no credential: that was certain on {at(over)}" + (f" ({text(why)})" if why else "")
    seconds = receipt.get("held_seconds")
    if not issued or not isinstance(seconds, int | float):
        return f"Whether it was issued is not known; on {at(over)} {_end(receipt)}"
    return f"It was held for {lasting(timedelta(seconds=seconds))}, from {at(issued)} to {at(over)}; {_end(receipt)}"


def _end(receipt: JsonObject) -> str:
    """Who says that it is over, from `It was held ...; ` on."""
    match receipt.get("state"):
        case LeaseState.EXPIRED:
            return "it had run out by itself before it could be taken back"
        case LeaseState.ENDED:
            until = last_of(receipt, "lease.ended").get("valid_until")
            stays = f"until {at(until)}" if until else "until its owner changes it"
            return f"then the step had it no more, but the secret <strong>stays valid {stays}</strong>"
    who = confirming(receipt)
    alone = " alone" if len(who) == 1 else ""
    return f"{listing([f'<strong>{each}</strong>' for each in who])}{alone} confirmed that it is gone{_tried(receipt)}"


def confirming(receipt: JsonObject) -> Sequence[str]:
    """Who has confirmed that a revoked lease is gone."""
    by = last_of(receipt, "lease.revoked").get("confirmed_by")
    first = ["Vault"] if by == "vault" or last_of(receipt, "lease.vault_revoked") else []
    second = {"database": "its database", "issuer": "its issuer"}.get(str(by))
    return [*first, *([second] if second else [])]


def _tried(receipt: JsonObject) -> str:
    match last_of(receipt, "lease.login_tried").get("refused"):
        case True:
            return ", and its own password was refused when it was tried"
        case False:
            return ", after <strong>its own password had still worked</strong> when it was tried"
    return ""
