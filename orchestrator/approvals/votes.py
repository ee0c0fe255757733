"""What somebody says to a request for approval, signed by a key that never leaves Vault.

The signature is made by the process that has seen who they are, and looked at again by the one that opens credentials:
so whoever can only write into the ledger's tables approves nothing, and the ledger can prove who did.
"""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from orchestrator.approvals.people import Person
from orchestrator.ledger.coordination.approvals import VoteRecord
from orchestrator.ledger.storage.codec import canonical_json
from orchestrator.ledger.storage.times import text_to_time, time_to_text
from orchestrator.vault.faults import VaultRefused
from orchestrator.vault.fields import section, text
from orchestrator.vault.session import VaultSession

KEY = "orchestrator-approvals"
"""The transit key that signs, an ed25519 one."""


class Verdict(StrEnum):
    """What somebody says."""

    APPROVE = "approve"
    DENY = "deny"


@dataclass(frozen=True, slots=True)
class Vote:
    """A statement of one person about one request; `subject` is what exactly is agreed to."""

    approval_id: str
    subject: str
    verdict: Verdict
    by: Person
    at: datetime
    comment: str = ""

    def statement(self) -> str:
        """What is signed: canonical JSON."""
        return canonical_json(
            {
                "approval": self.approval_id,
                "subject": self.subject,
                "verdict": self.verdict.value,
                "by": self.by.as_json(),
                "at": time_to_text(self.at),
                "comment": self.comment,
            }
        )

    @classmethod
    def of(cls, statement: str) -> Vote:
        """The vote of a statement. Raises ValueError, KeyError or TypeError for anything else."""
        said = json.loads(statement)
        return cls(
            str(said["approval"]),
            str(said["subject"]),
            Verdict(said["verdict"]),
            Person.from_json(said["by"]),
            text_to_time(said["at"]),
            str(said["comment"]),
        )


async def signed(vault: VaultSession, vote: Vote, *, deadline: float) -> VoteRecord:
    """The vote as it is recorded. Raises VaultRefused and VaultUnavailable."""
    statement = vote.statement()
    return VoteRecord(
        approval_id=vote.approval_id,
        voter=vote.by.key,
        verdict=vote.verdict.value,
        at=vote.at,
        statement=statement,
        signature=await sign(vault, statement, deadline=deadline),
    )


async def verified(vault: VaultSession, record: VoteRecord, *, deadline: float) -> Vote | None:
    """The vote of a record, None if it is not what Vault has signed. Raises VaultRefused and VaultUnavailable."""
    try:
        vote = Vote.of(record.statement)
    except (ValueError, KeyError, TypeError):
        return None
    if vote.approval_id != record.approval_id:
        return None
    return vote if await is_signed(vault, record.statement, record.signature, deadline=deadline) else None


async def sign(vault: VaultSession, statement: str, *, deadline: float) -> str:
    """What Vault makes of it (Vault API, `POST /transit/sign/:name`). Raises VaultRefused and VaultUnavailable."""
    path = f"transit/sign/{KEY}"
    try:
        body = await vault.runtime_request("post", path, deadline=deadline, payload={"input": _base64(statement)})
    except VaultRefused as error:
        raise _not_provisioned(error) from error
    return text(section(body, "data", path), "signature", path)


async def is_signed(vault: VaultSession, statement: str, signature: str, *, deadline: float) -> bool:
    """Whether Vault made the signature of it (`POST /transit/verify/:name`). Raises VaultRefused, VaultUnavailable."""
    path, payload = f"transit/verify/{KEY}", {"input": _base64(statement), "signature": signature}
    try:
        body = await vault.runtime_request("post", path, deadline=deadline, payload=payload)
    except VaultRefused as error:
        if error.status == 400:  # a signature that is none
            return False
        raise _not_provisioned(error) from error
    return section(body, "data", path).get("valid") is True


def _not_provisioned(error: VaultRefused) -> VaultRefused:
    return VaultRefused(
        f"approvals cannot be signed or verified: {error.message}",
        status=error.status,
        path=error.path,
        hint=f"the transit key `{KEY}` and the runtime's rights to it are installed by `orchestrator provision apply`",
    )


def _base64(statement: str) -> str:
    return base64.b64encode(statement.encode()).decode()
