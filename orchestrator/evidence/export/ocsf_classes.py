"""Which event of ours is which event of OCSF's (schema 1.5.0, https://schema.ocsf.io/1.5.0), as a table.

What an agent may do for a while, from the request to its end, is User Access Management: it knows giving and taking
back. A policy's answer about an attempt is Authorize Session. Runs and tasks begin and end as applications do. What
people are asked for, logins that nobody wanted any more, and values whose retention is over, are entities that are
managed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum

from orchestrator.ledger.reading.history import ChainEvent


class Status(IntEnum):
    """`status_id`."""

    UNKNOWN = 0
    SUCCESS = 1
    FAILURE = 2


@dataclass(frozen=True, slots=True)
class EventClass:
    """A class of the schema."""

    uid: int
    name: str
    category_uid: int
    category: str
    profiles: tuple[str, ...] = ()
    """What adds attributes to it that we need."""


_IAM = (3, "Identity & Access Management")
AUTHORIZE_SESSION = EventClass(3003, "Authorize Session", *_IAM)
ENTITY_MANAGEMENT = EventClass(3004, "Entity Management", *_IAM)
USER_ACCESS = EventClass(3005, "User Access Management", *_IAM)
APPLICATION_LIFECYCLE = EventClass(6002, "Application Lifecycle", 6, "Application Activity", ("host",))
"""It has an actor by the profile `host` alone."""

OTHER = 99


@dataclass(frozen=True, slots=True)
class Meaning:
    """What an event is there. `activity` is the caption of `activity_id`, our own where that is 99."""

    event_class: EventClass
    activity_id: int
    activity: str
    status: Status | None = Status.SUCCESS
    """None: the event itself says how it went."""


_ASSIGN, _REVOKE = (USER_ACCESS, 1, "Assign Privileges"), (USER_ACCESS, 2, "Revoke Privileges")
_START, _STOP = (APPLICATION_LIFECYCLE, 3, "Start"), (APPLICATION_LIFECYCLE, 4, "Stop")

MEANINGS: Mapping[str, Meaning] = {
    "lease.requested": Meaning(USER_ACCESS, OTHER, "Request Privileges", Status.UNKNOWN),
    "lease.denied": Meaning(*_ASSIGN, Status.FAILURE),
    "lease.failed": Meaning(*_ASSIGN, Status.FAILURE),
    "lease.issued": Meaning(*_ASSIGN),
    "lease.renewed": Meaning(USER_ACCESS, OTHER, "Renew Privileges"),
    "lease.revocation_failed": Meaning(*_REVOKE, Status.FAILURE),
    "lease.revoked": Meaning(*_REVOKE),
    "lease.expired": Meaning(*_REVOKE),
    "lease.ended": Meaning(USER_ACCESS, OTHER, "End Use"),
    "decision": Meaning(AUTHORIZE_SESSION, 1, "Assign Privileges", None),
    "approval.requested": Meaning(ENTITY_MANAGEMENT, 1, "Create", Status.UNKNOWN),
    "approval.voted": Meaning(ENTITY_MANAGEMENT, 3, "Update"),
    "approval.ended": Meaning(ENTITY_MANAGEMENT, 3, "Update", None),
    "orphans.swept": Meaning(ENTITY_MANAGEMENT, 4, "Delete"),
    "values.dropped": Meaning(ENTITY_MANAGEMENT, 4, "Delete"),
    "log.restarted": Meaning(ENTITY_MANAGEMENT, 3, "Update"),
    "run.started": Meaning(*_START),
    "run.resumed": Meaning(*_START),
    "run.finished": Meaning(*_STOP, None),
    "task.opened": Meaning(*_START),
    "task.closed": Meaning(*_STOP),
}
"""Everything else is how the orchestrator works, or told by these: it becomes no event."""


def meaning(event: ChainEvent) -> Meaning | None:
    """What an event is; None where it is none for OCSF, such as a sweep that found nothing."""
    if event.kind == "orphans.swept" and not event.data.get("roles"):
        return None
    return MEANINGS.get(event.kind)


def status(event: ChainEvent, known: Meaning) -> Status:
    """How it went."""
    if known.status is not None:
        return known.status
    data = event.data
    went_well = data.get("allow") is True or data.get("outcome") == "approved" or data.get("state") == "succeeded"
    return Status.SUCCESS if went_well else Status.FAILURE
