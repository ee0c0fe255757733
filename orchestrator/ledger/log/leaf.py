"""What one entry of the log says: that the history of a run was this when it was logged."""

from __future__ import annotations

import json
from dataclasses import dataclass

from orchestrator.ledger.storage.chain import Head
from orchestrator.ledger.storage.codec import canonical_json


@dataclass(frozen=True, slots=True)
class Leaf:
    """A run, or task, and where its chain ended. A run that is added to after its end has several."""

    run_id: str
    head: Head

    def data(self) -> bytes:
        """The entry of the log: canonical JSON."""
        return canonical_json({"head": self.head.digest, "run": self.run_id, "seq": self.head.seq}).encode()

    @classmethod
    def of(cls, data: bytes) -> Leaf:
        """The leaf of an entry. Raises ValueError for anything that is not exactly one."""
        try:
            said = json.loads(data)
            leaf = cls(said["run"], Head(said["seq"], said["head"]))
            exact = leaf.data() == data and type(leaf.head.seq) is int
        except (ValueError, KeyError, TypeError):
            exact = False
        if not exact:
            raise ValueError("this is no entry of a log of histories")
        return leaf
