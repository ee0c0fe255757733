"""Whoever can write the whole ledger, and knows how it is computed, cannot change what was signed without being found.

Each row is one way of changing a ledger of real runs. It is looked for offline: no Vault, no database, the public key.
"""

from __future__ import annotations

import base64
import json
import shutil
import sqlite3
import subprocess
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from bench import Bench, surroundings
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from fork_server import ForkServer
from signed_ledger import Hand, SignedLedger, signed_ledger

from orchestrator.errors import ExitCode
from orchestrator.evidence.log.checkpoint import Checkpoint
from orchestrator.evidence.log.note import NoteKey, signed_note

VERIFY = ("history", "verify", "--key", "{key}")
AGAINST = (*VERIFY, "--against", "{published}")


@pytest.fixture(scope="module")
def original(prepared: Bench, tmp_path_factory: pytest.TempPathFactory) -> SignedLedger:
    folder = tmp_path_factory.mktemp("signed")
    return signed_ledger(replace(prepared, directory=folder, events=[]), folder)


@pytest.fixture
def copy(original: SignedLedger, tmp_path: Path) -> Iterator[SignedLedger]:
    with original.copied(tmp_path) as copy:
        yield copy


def command(ledger: SignedLedger, *words: str) -> subprocess.CompletedProcess[str]:
    """In a process that knows of no Vault and of no database."""
    given = [word.format(key=ledger.key, published=ledger.published) for word in words]
    environment = {**surroundings(), "ORCHESTRATOR_LEDGER_URL": f"sqlite:///{ledger.path}"}
    return ForkServer.of_session.command(*given, environment=environment)


def test_what_nobody_has_touched_is_as_it_was_signed(copy: SignedLedger) -> None:
    done = command(copy, *AGAINST)
    assert done.returncode == ExitCode.DONE, done.stdout + done.stderr
    assert "everything is as it was signed" in done.stdout
    assert "published checkpoint" in done.stdout
    assert command(copy, "runs", "verify").returncode == ExitCode.DONE


@dataclass(frozen=True)
class Row:
    """What somebody does, and what finds it with which words."""

    change: Callable[[Hand, SignedLedger], None]
    says: str
    by: tuple[str, ...] = VERIFY


def changed_event(hand: Hand, ledger: SignedLedger) -> None:
    hand.change_data(ledger.runs[0], "lease.issued", subject="orc_somebody-else_AAAAAAAA")


def rewritten_run(hand: Hand, ledger: SignedLedger) -> None:
    changed_event(hand, ledger)
    hand.sql("UPDATE lease SET subject = 'orc_somebody-else_AAAAAAAA' WHERE run_id = ?", (ledger.runs[0],))
    hand.rechain(ledger.runs[0])


def rewritten_run_and_entry(hand: Hand, ledger: SignedLedger) -> None:
    rewritten_run(hand, ledger)
    hand.relog(ledger.runs[0])


def rewritten_everything(hand: Hand, ledger: SignedLedger) -> None:
    rewritten_run_and_entry(hand, ledger)
    hand.regrow()


def rewritten_everything_unsigned(hand: Hand, ledger: SignedLedger) -> None:
    rewritten_everything(hand, ledger)
    hand.sql("DELETE FROM log_checkpoint")


def swapped_events(hand: Hand, ledger: SignedLedger) -> None:
    run = ledger.runs[0]
    hand.sql("UPDATE event SET seq = -3 WHERE run_id = ? AND seq = 3", (run,))
    hand.sql("UPDATE event SET seq = 3 WHERE run_id = ? AND seq = 4", (run,))
    hand.sql("UPDATE event SET seq = 4 WHERE run_id = ? AND seq = -3", (run,))


def removed_event(hand: Hand, ledger: SignedLedger) -> None:
    hand.sql("DELETE FROM event WHERE run_id = ? AND kind = 'decision'", (ledger.runs[0],))


def removed_event_rechained(hand: Hand, ledger: SignedLedger) -> None:
    removed_event(hand, ledger)
    hand.rechain(ledger.runs[0])


def cut_tail(hand: Hand, ledger: SignedLedger) -> None:
    run = ledger.runs[0]
    hand.sql("DELETE FROM event WHERE run_id = ? AND kind = 'run.finished'", (run,))


def cut_tail_rechained(hand: Hand, ledger: SignedLedger) -> None:
    cut_tail(hand, ledger)
    hand.rechain(ledger.runs[0])
    hand.sql(
        "UPDATE run SET state = 'running', finished_at = NULL, exit_code = NULL WHERE run_id = ?", (ledger.runs[0],)
    )


def inserted_event(hand: Hand, ledger: SignedLedger) -> None:
    run = ledger.runs[0]
    at, last = hand.events(run)[-1][1], len(hand.events(run))
    data = '{"error":"","text":"all is well","to":"ops"}'
    hand.sql("INSERT INTO event VALUES (?, ?, ?, 'run.notified', ?, '', NULL)", (run, last + 1, at, data))
    hand.rechain(run)


def removed_run(hand: Hand, ledger: SignedLedger) -> None:
    hand.remove_run(ledger.runs[1])


def removed_run_and_entry(hand: Hand, ledger: SignedLedger) -> None:
    removed_run(hand, ledger)
    hand.sql("DELETE FROM log_leaf WHERE run_id = ?", (ledger.runs[1],))


def removed_run_and_all_traces(hand: Hand, ledger: SignedLedger) -> None:
    removed_run_and_entry(hand, ledger)
    hand.renumber_log()
    hand.regrow()


def removed_last_run_and_checkpoint(hand: Hand, ledger: SignedLedger) -> None:
    run = ledger.runs[-1]
    hand.remove_run(run)
    hand.sql("DELETE FROM log_leaf WHERE run_id = ?", (run,))
    hand.sql("DELETE FROM log_checkpoint WHERE size = (SELECT max(size) FROM log_checkpoint)")


def removed_last_run(hand: Hand, ledger: SignedLedger) -> None:
    hand.remove_run(ledger.runs[-1])
    hand.sql("DELETE FROM log_leaf WHERE run_id = ?", (ledger.runs[-1],))


def forged_run(hand: Hand, ledger: SignedLedger) -> None:
    """A run that never was, with a whole chain, said to be in the log."""
    source = ledger.runs[0]
    columns = [row[1] for row in hand.sql("PRAGMA table_info(run)").fetchall() if row[1] != "run_id"]
    quoted = ", ".join(f'"{name}"' for name in columns)
    hand.sql(f"INSERT INTO run (run_id, {quoted}) SELECT 'run_forged', {quoted} FROM run WHERE run_id = ?", (source,))
    hand.sql(
        "INSERT INTO event SELECT 'run_forged', seq, time, kind, data, digest, kept FROM event WHERE run_id = ?",
        (source,),
    )
    hand.rechain("run_forged")


def swapped_entries(hand: Hand, ledger: SignedLedger) -> None:
    hand.sql("UPDATE log_leaf SET position = -1 WHERE position = 5")
    hand.sql("UPDATE log_leaf SET position = 5 WHERE position = 6")
    hand.sql("UPDATE log_leaf SET position = 6 WHERE position = -1")


def changed_checkpoint(hand: Hand, ledger: SignedLedger) -> None:
    size, note = hand.newest()
    lines = note.split("\n")
    lines[2] = base64.b64encode(b"\7" * 32).decode()
    hand.sql("UPDATE log_checkpoint SET note = ? WHERE size = ?", ("\n".join(lines), size))


def older_checkpoint_as_newest(hand: Hand, ledger: SignedLedger) -> None:
    size, _ = hand.newest()
    hand.sql(
        "UPDATE log_checkpoint SET note = (SELECT note FROM log_checkpoint WHERE size = 1) WHERE size = ?", (size,)
    )


def signed_by_another_key(hand: Hand, ledger: SignedLedger) -> None:
    """All is rewritten, and signed anew: by a key of one's own, under the same name."""
    rewritten_everything(hand, ledger)
    hand.sql("DELETE FROM log_checkpoint")
    origin, tree, private = origin_of(hand), hand.regrow(), Ed25519PrivateKey.generate()
    key = NoteKey(origin, private.public_key().public_bytes_raw())
    text = Checkpoint(origin, tree.size, tree.root).text()
    note = signed_note(text, key, private.sign(text.encode()))
    at = "2026-01-01T00:00:00.000000Z"
    hand.sql("INSERT INTO log_checkpoint VALUES (?, ?, ?, '')", (tree.size, note, at))
    known = json.dumps({"1": base64.b64encode(key.public).decode()})
    hand.sql("UPDATE log SET public_keys = ?", (known,))


def origin_of(hand: Hand) -> str:
    (origin,) = hand.sql("SELECT origin FROM log").fetchone()
    return str(origin)


def another_origin(hand: Hand, ledger: SignedLedger) -> None:
    hand.sql("UPDATE log SET origin = 'credential-orchestrator/ledger/another'")


def sql(statement: str) -> Callable[[Hand, SignedLedger], None]:
    """One statement; `{run}` is the first run."""

    def change(hand: Hand, ledger: SignedLedger) -> None:
        changed = hand.sql(statement.format(run=ledger.runs[0])).rowcount
        assert changed, "it has changed something"

    return change


def ended_is_denied(hand: Hand, ledger: SignedLedger) -> None:
    """A run that has ended is said not to have."""
    hand.sql("UPDATE run SET finished_at = NULL WHERE run_id = ?", (ledger.runs[0],))


ROWS = {
    "an event changed": Row(changed_event, "the history is broken from event"),
    "an event changed, seen without the log": Row(changed_event, "first_broken_event", ("runs", "verify")),
    "an event's time changed": Row(
        sql("UPDATE event SET time = '2020-01-01T00:00:00.000000Z' WHERE run_id = '{run}' AND seq = 2"),
        "from event 2 on",
    ),
    "an event's kind changed": Row(
        sql("UPDATE event SET kind = 'lease.denied' WHERE run_id = '{run}' AND kind = 'lease.revoked'"), "is broken"
    ),
    "an event's digest changed": Row(
        sql("UPDATE event SET digest = lower(hex(randomblob(32))) WHERE run_id = '{run}' AND seq = 1"),
        "from event 1 on",
    ),
    "events reordered": Row(swapped_events, "from event 3 on"),
    "an event removed": Row(removed_event, "is broken from event"),
    "an event removed, and the heads recomputed": Row(removed_event_rechained, "is not what was logged"),
    "the last event removed": Row(cut_tail, "is broken from event"),
    "the last event removed, and the heads recomputed": Row(cut_tail_rechained, "is not what was logged"),
    "an event inserted, and the heads recomputed": Row(inserted_event, "it is said to be in the log, and is not"),
    "a run rewritten, and its heads recomputed": Row(rewritten_run, "is not what was logged"),
    "a run and its entry rewritten": Row(rewritten_run_and_entry, "are not those that were signed"),
    "a run, its entry and all hashes rewritten": Row(rewritten_everything, "are not those that were signed"),
    "everything rewritten, and the checkpoints removed": Row(
        rewritten_everything_unsigned, "are not those that were signed", AGAINST
    ),
    "everything rewritten, and signed by another key": Row(signed_by_another_key, "by a key that is trusted here"),
    "a run removed": Row(removed_run, "and is gone"),
    "a run and its entry removed": Row(removed_run_and_entry, "entry 1 of the log is missing"),
    "a run and all traces of it removed": Row(removed_run_and_all_traces, "are not those that were signed"),
    "the last run and its entry removed": Row(removed_last_run, "it was set back, or entries were removed"),
    "the last run, its entry and its checkpoint removed": Row(
        removed_last_run_and_checkpoint, "it was set back, or entries were removed", AGAINST
    ),
    "a run forged": Row(forged_run, "run_forged: it is said to be in the log, and is not"),
    "a run that ended is said to go on": Row(ended_is_denied, "changed: finished_at"),
    "entries reordered": Row(swapped_entries, "are not those that were signed"),
    "an entry changed": Row(sql("UPDATE log_leaf SET seq = seq - 1 WHERE position = 0"), "is not what was logged"),
    "an entry removed": Row(sql("DELETE FROM log_leaf WHERE position = 100"), "entry 100 of the log is missing"),
    "a stored hash changed": Row(
        sql("UPDATE log_node SET hash = lower(hex(randomblob(32)))"), "the stored hash of the entries before 256"
    ),
    "a stored hash removed": Row(sql("DELETE FROM log_node"), "the stored hash of the entries before 256"),
    "a stored hash added": Row(
        sql("INSERT INTO log_node VALUES (8, 7, lower(hex(randomblob(32))))"), "of entries that are not there"
    ),
    "a stored hash that is none": Row(sql("UPDATE log_node SET hash = 'beef'"), "a hash that is none"),
    "a checkpoint changed": Row(changed_checkpoint, "is not of this text"),
    "an older checkpoint in the place of the newest": Row(older_checkpoint_as_newest, "it is one of 1"),
    "a checkpoint made unreadable": Row(sql("UPDATE log_checkpoint SET note = 'x' WHERE size = 1"), "no signed note"),
    "the log under another name": Row(another_origin, "another ledger"),
    "a lease shown in another state": Row(
        sql("UPDATE lease SET state = 'revoking' WHERE run_id = '{run}' AND \"grant\" = 'db'"), "changed: state"
    ),
    "a lease removed from the lists": Row(
        sql("DELETE FROM lease WHERE run_id = '{run}' AND \"grant\" = 'db'"), "missing"
    ),
    "a step shown as skipped": Row(sql("UPDATE step SET state = 'skipped' WHERE run_id = '{run}'"), "changed: state"),
    "a run shown as another agent's": Row(
        sql("UPDATE run SET agent = 'nobody' WHERE run_id = '{run}'"), "changed: agent"
    ),
}


@pytest.mark.parametrize("name", ROWS)
def test_it_is_found_offline(copy: SignedLedger, name: str) -> None:
    row = ROWS[name]
    with closing(sqlite3.connect(copy.path)) as connection:
        connection.execute("PRAGMA foreign_keys = OFF")
        row.change(Hand(connection), copy)
        connection.commit()
    done = command(copy, *row.by, "--json")
    assert done.returncode == ExitCode.STEP_FAILED, done.stdout + done.stderr
    assert json.loads(done.stdout)["whole"] is False
    assert row.says in done.stdout


def test_a_ledger_that_was_set_back_is_found_by_what_was_published(copy: SignedLedger, original: SignedLedger) -> None:
    shutil.copyfile(original.old, copy.path)
    assert command(copy, *VERIFY).returncode == ExitCode.DONE, "by itself it is whole"
    done = command(copy, *AGAINST)
    assert done.returncode == ExitCode.STEP_FAILED
    assert "it was set back, or entries were removed" in done.stdout


@pytest.fixture(scope="module")
def another(prepared: Bench, tmp_path_factory: pytest.TempPathFactory) -> SignedLedger:
    folder = tmp_path_factory.mktemp("another")
    return signed_ledger(replace(prepared, directory=folder, events=[]), folder)


def test_the_checkpoints_and_the_key_of_another_ledger_are_told_apart(
    copy: SignedLedger, another: SignedLedger
) -> None:
    done = command(replace(copy, published=another.published), *AGAINST)
    assert done.returncode == ExitCode.STEP_FAILED
    assert "it is not signed by a key that is trusted here" in done.stdout
    both = copy.path.parent / "both.vkey"
    both.write_text(copy.key.read_text() + another.key.read_text())
    done = command(replace(copy, published=another.published, key=both), *AGAINST)
    assert done.returncode == ExitCode.STEP_FAILED
    assert "it is of another log" in done.stdout
    done = command(replace(copy, key=another.key), *VERIFY)
    assert done.returncode == ExitCode.STEP_FAILED
    assert "another ledger" in done.stdout


def test_a_checkpoint_of_another_ledger_in_the_place_of_ours_is_found(
    copy: SignedLedger, another: SignedLedger
) -> None:
    with closing(sqlite3.connect(another.path)) as connection:
        size, note = Hand(connection).newest()
    with closing(sqlite3.connect(copy.path)) as connection:
        connection.execute("UPDATE log_checkpoint SET note = ? WHERE size = ?", (note, size))
        connection.commit()
    both = copy.path.parent / "both.vkey"
    both.write_text(copy.key.read_text() + another.key.read_text())
    done = command(replace(copy, key=both), *VERIFY)
    assert done.returncode == ExitCode.STEP_FAILED
    assert "it is of another log" in done.stdout


def test_a_wrong_key_verifies_nothing(copy: SignedLedger, tmp_path: Path) -> None:
    origin = copy.key.read_text().partition("+")[0]
    wrong = tmp_path / "wrong.vkey"
    wrong.write_text(str(NoteKey(origin, Ed25519PrivateKey.generate().public_key().public_bytes_raw())))
    done = command(replace(copy, key=wrong), *VERIFY)
    assert done.returncode == ExitCode.STEP_FAILED
    assert "it is not signed by a key that is trusted here" in done.stdout
    wrong.write_text(copy.key.read_text().replace("+", "+0", 1))
    assert command(replace(copy, key=wrong), *VERIFY).returncode == ExitCode.STEP_FAILED


def test_published_checkpoints_that_were_changed_or_cut_off_are_no_evidence(copy: SignedLedger, tmp_path: Path) -> None:
    told = copy.published.read_text()
    changed = tmp_path / "changed.checkpoints"
    changed.write_text(told.replace(told.split("\n")[2], base64.b64encode(b"\7" * 32).decode()))
    done = command(replace(copy, published=changed), *AGAINST)
    assert done.returncode == ExitCode.STEP_FAILED
    assert "is not of this text" in done.stdout
    changed.write_text(told[:-20])
    done = command(replace(copy, published=changed), *AGAINST)
    assert done.returncode == ExitCode.STEP_FAILED
    changed.write_text("")
    assert command(replace(copy, published=changed), *AGAINST).returncode == ExitCode.STEP_FAILED


PROOFS: dict[str, tuple[Callable[[str, str], tuple[str, str]], str]] = {
    "an event changed": (lambda proof, events: (proof, events.replace("feedback-read", "feedback-all")), "from event"),
    "an event removed": (lambda proof, events: (proof, "".join(events.splitlines(True)[1:])), "from event 1 on"),
    "the last event removed": (lambda proof, events: (proof, "".join(events.splitlines(True)[:-1])), "from event"),
    "an event twice": (lambda proof, events: (proof, events + events.splitlines(True)[-1]), "from event"),
    "events reordered": (lambda proof, events: (proof, "".join(events.splitlines(True)[::-1])), "from event 1 on"),
    "an event of another run": (
        lambda proof, events: (proof, events.replace('"run":"run_', '"run":"run_X', 1)),
        "and there is an event of",
    ),
    "no event at all": (lambda proof, events: (proof, ""), "from event 1 on"),
    "no JSON": (lambda proof, events: (proof, events + "{"), "no events of a run"),
    "another place": (
        lambda proof, events: (proof.replace("index 0\n", "index 1\n"), events),
        "does not lead to the root",
    ),
    "a hash of the path changed": (
        lambda proof, events: (
            proof.replace("index 0\n", f"index 0\n{base64.b64encode(bytes(32)).decode()}\n"),
            events,
        ),
        "does not lead to the root",
    ),
    "another entry": (
        lambda proof, events: (proof.replace("extra ", "extra e30="), events),
        "",
    ),
    "a root changed": (
        lambda proof, events: (
            "\n".join(
                base64.b64encode(bytes(32)).decode() if number == proof.split("\n").index("") + 3 else line
                for number, line in enumerate(proof.split("\n"))
            ),
            events,
        ),
        "is not of this text",
    ),
    "no proof": (lambda proof, events: ("hello\n\nworld", events), "this is no proof of a log"),
}


@pytest.mark.parametrize("name", PROOFS)
def test_a_proof_and_its_events_stand_for_themselves(copy: SignedLedger, tmp_path: Path, name: str) -> None:
    run = copy.runs[0]
    written = command(copy, "history", "prove", run, "--output", str(tmp_path / "out"), "--json")
    assert written.returncode == ExitCode.DONE, written.stderr
    said = json.loads(written.stdout)
    nowhere = replace(copy, path=tmp_path / "nothing.db")
    done = command(nowhere, "history", "verify", "--key", "{key}", said["proof"])
    assert done.returncode == ExitCode.DONE, done.stdout
    assert f"{run} with {said['last_event']} events is in the log" in done.stdout
    proof, events = Path(said["proof"]), Path(said["events"])
    change, says = PROOFS[name]
    changed = change(proof.read_text(), events.read_text())
    assert changed != (proof.read_text(), events.read_text())
    proof.write_text(changed[0])
    events.write_text(changed[1])
    done = command(nowhere, "history", "verify", "--key", "{key}", said["proof"])
    assert done.returncode == ExitCode.STEP_FAILED, done.stdout
    assert says in done.stdout
    assert not nowhere.path.exists(), "no ledger is needed, or made"
