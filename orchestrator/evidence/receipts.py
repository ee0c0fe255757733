"""Receipts: one lease in one document that proves itself, from the decision to its end.

What a receipt says first is made from the events that it holds, so whoever verifies it makes that again: the events are
a run's chain, the chain ends as an entry of the log says, and the log is signed.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from orchestrator.errors import EvidenceRejected, UnknownRun, UsageError
from orchestrator.evidence.log.checkpoint import Checkpoint
from orchestrator.evidence.log.note import NoteKey
from orchestrator.evidence.log.proof import Proof
from orchestrator.evidence.log.run_evidence import RunEvidence, event_documents, verified_events
from orchestrator.jsontypes import JsonObject, JsonValue
from orchestrator.ledger.lease import OPEN
from orchestrator.ledger.lease_events import LeaseEvent
from orchestrator.ledger.log.leaf import Leaf
from orchestrator.ledger.log.reader import LogReader
from orchestrator.ledger.storage.codec import EVENT_TYPES, canonical_json, with_values
from orchestrator.ledger.types import LedgerReader

FORMAT = "credential-orchestrator/receipt/v1"
SUFFIX = ".receipt.json"

_OF_RUN = ("workflow", "digest", "agent", "trigger", "reason", "task", "caller", "retry_of")
_OF_REQUEST = ("step", "attempt", "grant", "grant_kind", "resource", "scope", "ttl", "step_key")
_OF_ISSUANCE = ("subject", "expires_at", "vault_lease_id", "accessor")


@dataclass(frozen=True, slots=True)
class ProvenReceipt:
    """A receipt that was verified: what it says, the entry of the log that it hangs from, and the log's checkpoint."""

    said: JsonObject
    leaf: Leaf
    checkpoint: Checkpoint


def receipt(reader: LedgerReader, store: LogReader, lease_id: str, *, values: bool = False) -> JsonObject:
    """The receipt of a lease that is over, by the newest checkpoint; with inputs and outputs only on demand.

    Raises UnknownRun for no lease, and where its end is not signed yet; UsageError for one that is open.
    """
    record = reader.lease(lease_id)
    if record is None:
        raise UnknownRun(f"no lease {lease_id} is in this ledger")
    if record.state in OPEN:
        raise UsageError(
            f"{lease_id} is {record.state.value}: there is a receipt when it is over",
            hint=f"`orchestrator leases show {lease_id}` tells what it waits for",
        )
    evidence = RunEvidence.of(store, record.run_id)
    events = store.stored_events(record.run_id, last=evidence.leaf.head.seq)
    chain = list(event_documents(events, values=values))
    said = summary(chain, lease_id)
    if said["state"] in OPEN:
        raise UnknownRun(
            f"the end of {lease_id} is not signed yet", hint="`orchestrator history checkpoint` signs what has ended"
        )
    return {**said, "chain": chain, "proof": evidence.proof.text()}


def verified_receipt(text: str, keys: Sequence[NoteKey]) -> ProvenReceipt:
    """The receipt of a document, where everything in it is what was signed. Raises EvidenceRejected."""
    try:
        document = json.loads(text)
        chain, proof, lease_id = document.pop("chain"), document.pop("proof"), document["lease"]["id"]
        lines = [json.dumps(event) for event in chain]
    except (ValueError, KeyError, TypeError, AttributeError):
        raise EvidenceRejected("this is no receipt of a lease") from None
    if document.get("format") != FORMAT or not isinstance(proof, str):
        raise EvidenceRejected(f"this is no receipt of the form {FORMAT}")
    leaf, checkpoint = Proof.parse(proof).verified(keys)
    verified_events(lines, leaf)
    try:
        said = summary(chain, str(lease_id))
    except UnknownRun as error:
        raise EvidenceRejected(error.message) from None
    if said != document:
        differing = sorted(name for name in said.keys() | document.keys() if said.get(name) != document.get(name))
        raise EvidenceRejected(f"the receipt says something else than its events: {', '.join(differing)}")
    return ProvenReceipt(said, leaf, checkpoint)


def summary(chain: Iterable[Mapping[str, JsonValue]], lease_id: str) -> JsonObject:
    """What the events of a run say of one lease. Raises UnknownRun where they know nothing of it."""
    started: Mapping[str, JsonValue] = {}
    run_id: JsonValue = None
    decisions: dict[tuple[JsonValue, JsonValue], Mapping[str, JsonValue]] = {}
    votes: list[JsonObject] = []
    history: list[JsonObject] = []
    for event in chain:
        kind, data = event["kind"], event["data"]
        assert isinstance(data, dict)
        if kind in ("run.started", "task.opened"):
            started, run_id = _opened(event), event["run"]
        elif kind == "decision":
            decisions[data.get("step"), data.get("attempt")] = event
        elif kind == "approval.voted":
            votes.append(_opened(event))
        elif data.get("lease_id") == lease_id:
            history.append(_opened(event))
    if not history or history[0]["kind"] != "lease.requested":
        raise UnknownRun(f"the events know of no lease {lease_id}")
    wanted = history[0]
    issued = next((each for each in history if each["kind"] == "lease.issued"), None)
    last = EVENT_TYPES[str(history[-1]["kind"])]
    assert issubclass(last, LeaseEvent)
    decision = decisions.get((wanted.get("step"), wanted.get("attempt")))
    return {
        "format": FORMAT,
        "lease": {
            "id": lease_id,
            **{name: wanted.get(name) for name in _OF_REQUEST},
            **{name: None if issued is None else issued.get(name) for name in _OF_ISSUANCE},
        },
        "state": last.to.value,
        "requested_at": wanted["time"],
        "issued_at": None if issued is None else issued["time"],
        "over_at": history[-1]["time"],
        "held_seconds": None if issued is None else _seconds(str(issued["time"]), str(history[-1]["time"])),
        "run": {"id": run_id, **{name: started.get(name) for name in _OF_RUN}},
        "decision": None if decision is None else _opened(decision),
        "approvals": [vote for vote in votes if vote.get("step") == wanted.get("step")],
        "history": history,
    }


def _opened(event: Mapping[str, JsonValue]) -> JsonObject:
    """What an event says, with the values beside it as far as the receipt has them."""
    data = event["data"]
    assert isinstance(data, dict)
    said, _ = with_values(data, canonical_json(event["kept"]) if "kept" in event else None)
    return {"seq": event["seq"], "time": event["time"], "kind": event["kind"], **said}


def _seconds(begin: str, end: str) -> float:
    return (datetime.fromisoformat(end) - datetime.fromisoformat(begin)).total_seconds()
