"""Another authority says when a checkpoint was there; who trusts it verifies that with its root alone."""

from __future__ import annotations

import base64
import json
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from bench import Bench
from fork_server import ForkServer
from signed_ledger import STEP
from tsa import Authority, authority

from orchestrator.clock import SystemClock
from orchestrator.errors import EvidenceRejected, ExitCode
from orchestrator.evidence.log.time_stamps import authorities, stamped_at
from orchestrator.ledger.log.reader import StoredCheckpoint
from orchestrator.ledger.opening import open_ledger


@pytest.fixture
def tsa(tmp_path: Path) -> Iterator[Authority]:
    with authority(tmp_path / "tsa") as tsa:
        yield tsa


def newest(bench: Bench) -> StoredCheckpoint:
    with open_ledger(bench.config().ledger_url, clock=SystemClock()) as ledger:
        found = ledger.log.newest_checkpoint()
        assert found is not None
        return found


def test_a_checkpoint_is_stamped_once_and_verified_by_the_root(
    bench: Bench, children: ForkServer, tsa: Authority, tmp_path: Path
) -> None:
    bench.run(STEP)
    begun = datetime.now(UTC) - timedelta(seconds=1)
    for _ in range(2):
        done = children.command("history", "checkpoint", "--time-stamp", tsa.address, environment=bench.environment())
        assert done.returncode == ExitCode.DONE, done.stderr
    assert len(tsa.asked) == 1
    stored = newest(bench)
    at = stamped_at(stored.stamp, stored.note, authorities(tsa.root.read_bytes()))
    assert begun <= at.astimezone(UTC) <= datetime.now(UTC) + timedelta(seconds=1)
    (tmp_path / "stored.tsr").write_bytes(base64.b64decode(stored.stamp))
    (tmp_path / "note").write_text(stored.note)
    tsa.openssl(
        "ts", "-verify", "-in", str(tmp_path / "stored.tsr"), "-data", str(tmp_path / "note"), "-CAfile", "root.pem"
    )
    words = ("history", "verify", "--tsa", str(tsa.root))
    verified = children.command(*words, environment=bench.environment())
    assert verified.returncode == ExitCode.DONE, verified.stdout
    assert "1 time stamp: everything is as it was signed" in verified.stdout


def test_a_stamp_of_another_checkpoint_or_authority_is_found(
    bench: Bench, children: ForkServer, tsa: Authority, tmp_path: Path
) -> None:
    for _ in range(2):
        bench.run(STEP)
        stamping = children.command(
            "history", "checkpoint", "--time-stamp", tsa.address, environment=bench.environment()
        )
        assert stamping.returncode == ExitCode.DONE
    with authority(tmp_path / "other", "Another") as other:
        done = children.command(
            "history", "verify", "--tsa", str(other.root), "--json", environment=bench.environment()
        )
    assert done.returncode == ExitCode.STEP_FAILED
    assert len(json.loads(done.stdout)["problems"]) == 2
    path = bench.config().ledger_url.removeprefix("sqlite:///")
    with closing(sqlite3.connect(path)) as connection:
        connection.execute(
            "UPDATE log_checkpoint SET stamp = (SELECT stamp FROM log_checkpoint WHERE size = 1) WHERE size = 2"
        )
        connection.commit()
    done = children.command("history", "verify", "--tsa", str(tsa.root), environment=bench.environment())
    assert done.returncode == ExitCode.STEP_FAILED
    assert "the checkpoint of 2 entries: its time stamp is not of it" in done.stdout
    with pytest.raises(EvidenceRejected):
        stamped_at("bm8gc3RhbXA=", "note", authorities(tsa.root.read_bytes()))


@pytest.mark.parametrize("answer", [b"", b"hello", b"x" * (1 << 21)], ids=["503", "no stamp", "far too long"])
def test_an_authority_that_gives_none_is_told(
    bench: Bench, children: ForkServer, tsa: Authority, answer: bytes
) -> None:
    bench.run(STEP)
    tsa.answer = answer
    done = children.command("history", "checkpoint", "--time-stamp", tsa.address, environment=bench.environment())
    assert done.returncode == ExitCode.UNREACHABLE
    assert "time-stamping authority" in done.stderr
    assert newest(bench).stamp == ""


def test_a_stamp_that_was_recorded_before_is_no_answer(bench: Bench, children: ForkServer, tsa: Authority) -> None:
    """It is over something else, and with another nonce."""
    bench.run(STEP)
    words = ("history", "checkpoint", "--time-stamp", tsa.address)
    assert children.command(*words, environment=bench.environment()).returncode == ExitCode.DONE
    tsa.answer = base64.b64decode(newest(bench).stamp)
    bench.run(STEP)
    done = children.command(*words, environment=bench.environment())
    assert done.returncode == ExitCode.UNREACHABLE
    assert "has stamped something else" in done.stderr


def test_an_authority_has_an_address_and_a_file_has_certificates(
    bench: Bench, children: ForkServer, tmp_path: Path
) -> None:
    bench.run(STEP)
    done = children.command("history", "checkpoint", "--time-stamp", "tsa", environment=bench.environment())
    assert done.returncode == ExitCode.INVALID
    empty = tmp_path / "none.pem"
    empty.write_text("")
    done = children.command("history", "verify", "--tsa", str(empty), environment=bench.environment())
    assert done.returncode == ExitCode.INVALID
    assert "no certificate" in done.stderr


@pytest.mark.parametrize("option", ["--tsa", "--against"])
def test_what_is_held_against_the_ledger_is_not_taken_with_files(
    bench: Bench, children: ForkServer, tmp_path: Path, option: str
) -> None:
    file = tmp_path / "x.receipt.json"
    file.write_text("{}")
    words = ("history", "verify", str(file), "--key", "x+00000000+AAAA", option, str(file))
    done = children.command(*words, environment=bench.environment())
    assert done.returncode == ExitCode.INVALID
    assert "ledger" in done.stderr.partition("hint:")[0]
    assert "leave " in done.stderr
