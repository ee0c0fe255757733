"""A ledger of real runs whose history is signed by a real Vault, and the hand of somebody who may write all of it."""

from __future__ import annotations

import asyncio
import base64
import json
import shutil
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from bench import Bench

from orchestrator.assembly import open_services
from orchestrator.clock import SystemClock
from orchestrator.evidence.log.note import NoteKey
from orchestrator.ledger.events import RunFinished, RunStarted
from orchestrator.ledger.log.leaf import Leaf
from orchestrator.ledger.log.tree import Growing, leaf_hash
from orchestrator.ledger.opening import open_ledger
from orchestrator.ledger.states import RunState
from orchestrator.ledger.storage.chain import Head, genesis, link
from orchestrator.redaction.redactor import Redactor
from orchestrator.runs.types import Services
from orchestrator.secret import Secret

STEP = """
version: 1
name: one_step
agent: tester
steps:
  one:
    action: postgres.query
    grants: { db: { kind: database, connection: support, role: feedback-read } }
    with: { sql: SELECT 1 AS one }
"""

SMALL = 260
"""Runs without steps: with them the log is large enough to have stored hashes."""


def public_keys(bench: Bench, origin: str) -> Sequence[NoteKey]:
    """As an auditor has them: from Vault's administrator."""
    versions = bench.vault.read("transit/keys/orchestrator-history")["data"]["keys"]
    return [NoteKey(origin, base64.b64decode(each["public_key"])) for each in versions.values()]


@dataclass(frozen=True)
class SignedLedger:
    """A ledger file, with the key of its log in a file and the checkpoints that were published."""

    path: Path
    runs: Sequence[str]
    """Those that were really carried out; the last one ended after the small ones."""
    key: Path
    published: Path
    old: Path
    """A copy from before the last run."""

    @contextmanager
    def copied(self, folder: Path) -> Iterator[SignedLedger]:
        """One to change, without the triggers that refuse to."""
        copy = folder / "ledger.db"
        shutil.copyfile(self.path, copy)
        with closing(sqlite3.connect(copy)) as connection:
            for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'").fetchall():
                connection.execute(f"DROP TRIGGER {name}")
            connection.commit()
        yield replace(self, path=copy)


def signed_ledger(bench: Bench, folder: Path) -> SignedLedger:
    """Carry out runs, and have all of it signed and published."""
    url, published = f"sqlite:///{folder / 'signed.db'}", folder / "published.checkpoints"
    told = {"ledger_url": url, "history_publish": {"elsewhere": Secret(f"file://{published}")}}
    runs = [bench.run(STEP, **told).run_id, bench.run(STEP, **told).run_id]
    asyncio.run(_small_runs(bench, told))
    _settle(folder / "signed.db")
    old = folder / "old.db"
    shutil.copyfile(folder / "signed.db", old)
    runs.append(bench.run(STEP, **told).run_id)
    _settle(folder / "signed.db")
    with open_ledger(url, clock=SystemClock()) as ledger:
        key = folder / "history.vkey"
        key.write_text("".join(f"{each}\n" for each in public_keys(bench, ledger.log.origin())))
    return SignedLedger(folder / "signed.db", runs, key, published, old)


async def _small_runs(bench: Bench, told: dict[str, object]) -> None:
    async with open_services(bench.config(**told), redactor=Redactor()) as services:
        await asyncio.gather(*(small_run(services, f"small_{number:04}") for number in range(SMALL)))


async def small_run(services: Services, run_id: str) -> None:
    """One without steps."""
    started = RunStarted(workflow="small", digest="d", agent="a", trigger="manual", inputs={}, steps=())
    fence = await services.ledger.begin_run(run_id, started)
    await services.ledger.append(run_id, fence, [RunFinished(state=RunState.SUCCEEDED, exit_code=0)])


def _settle(path: Path) -> None:
    """Have all of it in the one file."""
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")


class Hand:
    """Somebody with full access to the database, who knows how everything in it is computed."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self.sql = connection.execute

    def events(self, run: str) -> list[tuple[int, str, str, str, str | None]]:
        return self.sql(
            "SELECT seq, time, kind, data, kept FROM event WHERE run_id = ? ORDER BY seq", (run,)
        ).fetchall()

    def change_data(self, run: str, kind: str, **changes: object) -> None:
        seq, data = self.sql("SELECT seq, data FROM event WHERE run_id = ? AND kind = ?", (run, kind)).fetchone()
        text = json.dumps({**json.loads(data), **changes}, sort_keys=True, separators=(",", ":"))
        assert text != data
        self.sql("UPDATE event SET data = ? WHERE run_id = ? AND seq = ?", (text, run, seq))

    def rechain(self, run: str) -> None:
        """Make the chain whole again, from the first event to the head."""
        head = genesis(run)
        renumbered = enumerate(self.events(run), 1)
        rows = []
        for seq, (_, time, kind, data, kept) in renumbered:
            head = Head(seq, link(head.digest, run_id=run, seq=seq, time=time, kind=kind, data=data))
            rows.append((run, seq, time, kind, data, head.digest, kept))
        self.sql("DELETE FROM event WHERE run_id = ?", (run,))
        for row in rows:
            self.sql("INSERT INTO event VALUES (?, ?, ?, ?, ?, ?, ?)", row)
        self.sql(
            "UPDATE run SET seq = ?, head = ?, logged = ? WHERE run_id = ?", (head.seq, head.digest, head.seq, run)
        )

    def remove_run(self, run: str) -> None:
        for table in ("lease", "step", "event", "run"):
            self.sql(f"DELETE FROM {table} WHERE run_id = ?", (run,))

    def relog(self, run: str) -> None:
        """Have the entry of a run say what the run is now."""
        self.sql(
            "UPDATE log_leaf SET (seq, head) = (SELECT seq, head FROM run WHERE run.run_id = log_leaf.run_id) "
            "WHERE run_id = ?",
            (run,),
        )

    def renumber_log(self) -> None:
        """Close the gaps."""
        leaves = self.sql("SELECT run_id, seq, head FROM log_leaf ORDER BY position").fetchall()
        self.sql("DELETE FROM log_leaf")
        for position, leaf in enumerate(leaves):
            self.sql("INSERT INTO log_leaf VALUES (?, ?, ?, ?)", (position, *leaf))

    def regrow(self) -> Growing:
        """Compute all stored hashes of the tree anew."""
        tree = Growing()
        self.sql("DELETE FROM log_node")
        for run, seq, head in self.sql("SELECT run_id, seq, head FROM log_leaf ORDER BY position").fetchall():
            for level, position, found in tree.add(leaf_hash(Leaf(run, Head(seq, head)).data())):
                self.sql("INSERT INTO log_node VALUES (?, ?, ?)", (level, position, found.hex()))
        return tree

    def newest(self) -> tuple[int, str]:
        size, note = self.sql("SELECT size, note FROM log_checkpoint ORDER BY size DESC LIMIT 1").fetchone()
        return size, note
