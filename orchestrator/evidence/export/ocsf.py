"""One event of OCSF's a line, for a SIEM or a lake that reads these. Needs the extra `ocsf`.

The objects are made, and so checked, by the models of `py-ocsf-models`. That package knows classes of findings and none
of those that are needed here, whose own attributes are written beside what it has of every event (`BaseEvent`).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import Any

from py_ocsf_models.events.base_event import BaseEvent
from py_ocsf_models.objects.account import Account
from py_ocsf_models.objects.account import TypeID as AccountType
from py_ocsf_models.objects.metadata import Metadata
from py_ocsf_models.objects.policy import Policy
from py_ocsf_models.objects.product import Product
from py_ocsf_models.objects.resource_details import ResourceDetails
from py_ocsf_models.objects.user import User

from orchestrator.evidence.export.lease_rows import LeaseRow, LeaseRows
from orchestrator.evidence.export.ocsf_classes import (
    APPLICATION_LIFECYCLE,
    AUTHORIZE_SESSION,
    ENTITY_MANAGEMENT,
    OTHER,
    Meaning,
    Status,
    meaning,
    status,
)
from orchestrator.evidence.export.stream import Tally, content, passed, utc
from orchestrator.ledger.events import LogRestarted, ValuesDropped
from orchestrator.ledger.reading.history import ChainEvent, Chapter, RunHead
from orchestrator.version import __version__

SCHEMA = "1.5.0"
"""Of which schema the classes and captions are; that of the models may go on."""

PRODUCT = Product(name="credential-orchestrator", vendor_name="credential-orchestrator", version=__version__)

_CAPTIONS = {Status.UNKNOWN: "Unknown", Status.SUCCESS: "Success", Status.FAILURE: "Failure"}
_SEVERITIES = {1: "Informational", 3: "Medium", 4: "High"}


def ocsf(
    chapters: Iterable[Chapter], tally: Tally, *, resource: str | None = None, with_values: bool = False
) -> Iterator[str]:
    """The lines. The last, `{"end": true, ...}`, is no event: it has no `class_uid`."""
    rows = LeaseRows()
    for chapter in tally.chapters(chapters):
        for run, event in passed([chapter]):
            row = rows.after(run, event)
            known = meaning(event)
            if known is None or (resource is not None and (row is None or not row.resource.startswith(resource))):
                continue
            tally.written += 1
            yield json.dumps(ocsf_event(run, event, known, row, with_values=with_values)) + "\n"
        if chapter.last:
            rows.left()
    yield json.dumps(tally.mark("events")) + "\n"


def ocsf_event(
    run: RunHead, event: ChainEvent, known: Meaning, row: LeaseRow | None, *, with_values: bool = False
) -> dict[str, Any]:
    """An event as its class has it; `row` is the lease that it is about. Raises pydantic's ValidationError."""
    went = status(event, known)
    severity = 4 if event.kind == "lease.revocation_failed" else 3 if went is Status.FAILURE else 1
    base = BaseEvent(
        message=_message(event, row),
        metadata=Metadata(
            version=SCHEMA,
            product=PRODUCT,
            uid=f"{event.run_id}/{event.seq}",
            correlation_uid=event.run_id,
            sequence=event.seq,
            event_code=event.kind,
            original_time=utc(event.time),
            log_name="ledger",
            profiles=list(known.event_class.profiles) or None,
        ),
        severity_id=severity,
        severity=_SEVERITIES[severity],
        status_id=int(went),
        status=_CAPTIONS[went],
        status_detail=_reason(event),
        unmapped=content(event, with_values=with_values),
    )
    return {
        **base.model_dump(mode="json", exclude_none=True),
        "class_uid": known.event_class.uid,
        "class_name": known.event_class.name,
        "category_uid": known.event_class.category_uid,
        "category_name": known.event_class.category,
        "activity_id": known.activity_id,
        "activity_name": known.activity,
        "type_uid": known.event_class.uid * 100 + known.activity_id,
        "type_name": f"{known.event_class.name}: {'Other' if known.activity_id == OTHER else known.activity}",
        "time": int(event.time.timestamp() * 1000),
        "actor": _actor(run, event),
        **_of_class(run, event, known, row),
    }


def _of_class(run: RunHead, event: ChainEvent, known: Meaning, row: LeaseRow | None) -> dict[str, Any]:
    """The attributes that a class has of its own."""
    if known.event_class is APPLICATION_LIFECYCLE:
        return {"app": _plain(Product(name=run.workflow, vendor_name=PRODUCT.name, uid=run.workflow))}
    if known.event_class is ENTITY_MANAGEMENT:
        return {"entity": _entity(event), **({"comment": event.data["comment"]} if event.data.get("comment") else {})}
    if known.event_class is AUTHORIZE_SESSION:
        session = {"uid": f"{event.run_id}/{event.data.get('step')}/{event.data.get('attempt')}"}
        return {"user": _plain(_agent(run)), "session": session, "privileges": _asked(event)}
    resource = row.resource if row else ""
    held_in = Account(name=resource, type=row.grant_kind if row else "", type_id=AccountType.Other, uid=resource)
    lease_id = str(event.data.get("lease_id", ""))
    user = User(
        account=held_in,
        name=(row.subject if row else "") or run.agent,
        type="Ephemeral credential",
        type_id=OTHER,
        uid=lease_id,
        credential_uid=lease_id,
    )
    return {
        "user": _plain(user),
        "privileges": [row.scope] if row and row.scope else [resource],
        "resources": [_plain(ResourceDetails(name=resource, uid=resource, type=row.grant_kind if row else None))],
    }


def _actor(run: RunHead, event: ChainEvent) -> dict[str, Any]:
    """For whom it happened: the agent; for a vote who voted; nobody where it is done for all by itself."""
    if event.kind == ValuesDropped.kind:
        return {"app_name": PRODUCT.name}
    by = event.data.get("by") if event.kind in ("approval.voted", "task.closed", LogRestarted.kind) else None
    user = _agent(run) if not by else _agent(run).model_copy(update={"name": str(by), "uid": str(by), "type": "Person"})
    actor: dict[str, Any] = {"user": _plain(user), "session": {"uid": event.run_id}, "app_name": PRODUCT.name}
    if event.kind == "decision":
        policy = Policy(name=str(event.data.get("engine", "")), version=str(event.data.get("revision", "")))
        said = "allowed" if event.data.get("allow") is True else "denied"
        actor["authorizations"] = [{"decision": said, "policy": _plain(policy)}]
    return actor


def _agent(run: RunHead) -> User:
    account = Account(name=run.workflow, type="Workflow", type_id=AccountType.Other, uid=run.workflow)
    return User(account=account, name=run.agent, type="Agent", type_id=OTHER, uid=run.agent)


def _entity(event: ChainEvent) -> dict[str, Any]:
    if event.kind == "orphans.swept":
        roles = event.data.get("roles")
        names = ", ".join(map(str, roles)) if isinstance(roles, list | tuple) else ""
        return {"name": names, "uid": str(event.data.get("step_key", "")), "type": "Database logins", "type_id": OTHER}
    if event.kind == ValuesDropped.kind:
        values = event.data.get("values")
        names = ", ".join(map(str, values)) if isinstance(values, list | tuple) else ""
        return {"name": names, "uid": event.run_id, "type": "Values of a run", "type_id": OTHER}
    if event.kind == LogRestarted.kind:
        before, log = str(event.data.get("before", "")), str(event.data.get("log", ""))
        return {"name": log, "uid": before, "type": "Signed log", "type_id": OTHER}
    approval = str(event.data.get("approval_id", ""))
    return {"name": str(event.data.get("step", "")), "uid": approval, "type": "Approval", "type_id": OTHER}


def _asked(event: ChainEvent) -> list[str]:
    """What the policy was asked for: the step, whose grants are in the leases that follow."""
    return [f"step {event.data.get('step')}, attempt {event.data.get('attempt')}"]


def _reason(event: ChainEvent) -> str | None:
    reasons = event.data.get("reasons")
    if isinstance(reasons, list | tuple) and reasons:
        return "; ".join(map(str, reasons))
    said = event.data.get("reason") or event.data.get("error") or event.data.get("outcome")
    confirmed = event.data.get("confirmed_by")
    return str(said) if said else f"confirmed by {confirmed}" if confirmed else None


def _message(event: ChainEvent, row: LeaseRow | None) -> str:
    if row is not None:
        return f"{event.kind}: {row.scope or row.resource} for {row.agent}, {row.workflow}/{row.step}/{row.attempt}"
    return f"{event.kind} {event.data.get('step') or ''}".strip()


def _plain(model: Any) -> dict[str, Any]:
    return dict(model.model_dump(mode="json", exclude_none=True))
