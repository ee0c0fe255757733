"""A receipt says who held what, why, and that it is gone, and proves all of it to somebody without the ledger."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from aics_tlog import parse_note, parse_vkey, verify_checkpoint, verify_leaf_inclusion
from bench import Bench, Setup, surroundings
from escaped import escaped_secrets
from fork_server import ForkServer
from signed_ledger import STEP, public_keys

from orchestrator.assembly import open_services
from orchestrator.clock import SystemClock
from orchestrator.errors import ExitCode, UnknownRun, UsageError
from orchestrator.evidence.log.checkpoint import Checkpoint
from orchestrator.evidence.log.proof import Proof
from orchestrator.evidence.receipts import receipt
from orchestrator.ledger.events import LeaseEnded, LeaseRequested, LeaseRevoking, RunFinished, RunStarted
from orchestrator.ledger.opening import open_ledger
from orchestrator.ledger.states import RunState
from orchestrator.ledger.storage.chain import genesis, link
from orchestrator.ledger.storage.codec import canonical_json
from orchestrator.redaction.redactor import Redactor


class Written:
    """A receipt in a file, and the key in another."""

    def __init__(self, bench: Bench, children: ForkServer, folder: Path) -> None:
        self.children, self.folder = children, folder
        self.run = bench.run(STEP).run_id
        (self.lease,) = [each for each in bench.history(self.run) if each.grant == "db"]
        self.file, self.key = folder / "one.receipt.json", folder / "history.vkey"
        answer = children.command(
            "leases", "receipt", self.lease.lease_id[:12], "-o", str(self.file), environment=bench.environment()
        )
        assert answer.returncode == ExitCode.DONE, answer.stderr
        with open_ledger(bench.config().ledger_url, clock=SystemClock()) as ledger:
            self.keys = public_keys(bench, ledger.log.origin())
        self.key.write_text("".join(f"{each}\n" for each in self.keys))

    @property
    def document(self) -> Any:
        return json.loads(self.file.read_text())

    def verified(self) -> Any:
        """By a process that has neither ledger nor Vault."""
        environment = {**surroundings(), "ORCHESTRATOR_LEDGER_URL": f"sqlite:///{self.folder / 'nothing.db'}"}
        answer = self.children.command(
            "history", "verify", "--key", str(self.key), str(self.file), "--json", environment=environment
        )
        (said,) = json.loads(answer.stdout)
        assert (answer.returncode == ExitCode.DONE) is said["verified"]
        return said


@pytest.fixture
def written(bench: Bench, children: ForkServer, tmp_path: Path) -> Written:
    return Written(bench, children, tmp_path)


def test_a_receipt_says_who_held_what_why_and_who_confirmed_its_end(written: Written) -> None:
    said = written.verified()
    assert said["verified"], said
    assert (said["lease"], said["run"], said["state"]) == (written.lease.lease_id, written.run, "revoked")
    document = written.document
    assert document["lease"]["subject"] == written.lease.subject
    assert document["lease"]["resource"] == "database/creds/feedback-read"
    assert document["run"]["agent"] == "tester"
    assert document["decision"]["allow"] is True
    assert document["decision"]["step"] == "one"
    assert [each["kind"] for each in document["history"]][:2] == ["lease.requested", "lease.issued"]
    assert [each["kind"] for each in document["history"]][-3:] == [
        "lease.vault_revoked",
        "lease.login_tried",
        "lease.revoked",
    ]
    *_, tried, revoked = document["history"]
    assert (tried["refused"], tried["sqlstate"]) == (True, "28P01")
    assert (revoked["confirmed_by"], revoked["witness"]["role"]) == ("database", "absent")
    assert revoked["witness"]["asked_by"].startswith("orc_sweep-")
    assert 0 < document["held_seconds"] < 120
    assert escaped_secrets([written.folder]) == []


def test_it_is_verified_without_this_program(written: Written) -> None:
    document = written.document
    digest = genesis(written.run).digest
    for event in document["chain"]:
        data = canonical_json(event["data"])
        digest = link(digest, run_id=event["run"], seq=event["seq"], time=event["time"], kind=event["kind"], data=data)
    proof = Proof.parse(document["proof"])
    note = parse_note(proof.checkpoint)
    assert verify_checkpoint(note, parse_vkey(str(written.keys[0]))).log_ok
    signed = Checkpoint.of_text(note.text)
    entry = json.dumps(
        {"head": digest, "run": written.run, "seq": len(document["chain"])}, sort_keys=True, separators=(",", ":")
    ).encode()
    assert verify_leaf_inclusion(entry, proof.index, signed.size, list(proof.path), signed.root)


def of_the_lease(document: Any) -> Any:
    return next(each for each in document["chain"] if each["kind"] == "lease.issued")


CHANGES: dict[str, tuple[Callable[[Any], None], str]] = {
    "another subject": (lambda document: document["lease"].update(subject="orc_other_AAAAAAAA"), "lease"),
    "another state": (lambda document: document.update(state="expired"), "state"),
    "a shorter time": (lambda document: document.update(held_seconds=0.1), "held_seconds"),
    "another agent": (lambda document: document["run"].update(agent="somebody"), "run"),
    "another decision": (lambda document: document["decision"].update(allow=False), "decision"),
    "an approval that nobody gave": (lambda document: document["approvals"].append({"by": "me"}), "approvals"),
    "an event of it left out": (lambda document: document["history"].pop(1), "history"),
    "something added": (lambda document: document.update(remark="all is well"), "remark"),
    "another lease": (lambda document: document["lease"].update(id="lease_other"), "know of no lease"),
    "an event changed": (lambda document: of_the_lease(document)["data"].update(subject="x"), "from event"),
    "an event removed": (lambda document: document["chain"].pop(), "from event"),
    "no events": (lambda document: document["chain"].clear(), "from event 1 on"),
    "another proof": (lambda document: document.update(proof=document["proof"].replace("index 0", "index 1")), "root"),
    "no proof": (lambda document: document.update(proof=None), "no receipt of the form"),
    "another form": (lambda document: document.update(format="x/v9"), "no receipt of the form"),
    "no chain": (lambda document: document.pop("chain"), "no receipt of a lease"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_receipt_that_was_changed_is_refused(written: Written, name: str) -> None:
    change, says = CHANGES[name]
    document = written.document
    change(document)
    assert document != written.document
    written.file.write_text(json.dumps(document))
    said = written.verified()
    assert not said["verified"]
    assert says in said["problem"]


def test_there_is_none_of_what_is_not_over_not_signed_or_not_there(bench: Bench, setup: Setup) -> None:
    async def go() -> None:
        async with open_services(bench.config(ledger_url=setup.ledger_url), redactor=Redactor()) as services:
            started = RunStarted(workflow="w", digest="d", agent="a", trigger="manual", inputs={}, steps=("s",))
            fence = await services.ledger.begin_run("run_1", started)
            asked = LeaseRequested(
                lease_id="lease_1", step="s", attempt=1, grant="g", grant_kind="secret", resource="r", scope={}, ttl=9
            )
            revoking = LeaseRevoking(lease_id="lease_1", reason="step ended")
            finished = RunFinished(state=RunState.FAILED, exit_code=4)
            await services.ledger.append("run_1", fence, [asked, revoking, finished])
            reader, store = services.reader, services.checkpointing.store
            await services.checkpointing.make()
            with pytest.raises(UsageError, match="is revoking: there is a receipt when it is over"):
                receipt(reader, store, "lease_1")
            await services.ledger.append("run_1", fence, [LeaseEnded(lease_id="lease_1", valid_until=None)])
            with pytest.raises(UnknownRun, match="the end of lease_1 is not signed yet"):
                receipt(reader, store, "lease_1")
            await services.checkpointing.make()
            assert receipt(reader, store, "lease_1")["state"] == "ended"
            with pytest.raises(UnknownRun, match="no lease lease_2"):
                receipt(reader, store, "lease_2")

    asyncio.run(go())
