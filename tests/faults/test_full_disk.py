"""The disk of the ledger is full before, between or after the records of a run: nothing is issued without a record.

The limit is SQLite's own (`max_page_count`): the more room there is, the further the run comes before it is met.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any
from urllib.parse import urlsplit

import pytest
from bench import LEDGER_FILES, Bench
from proxy import Proxy
from sqlalchemy import Engine, event

from orchestrator.actions.catalog import catalog
from orchestrator.assembly import open_services
from orchestrator.clock import SystemClock
from orchestrator.errors import ExitCode, LedgerError
from orchestrator.ledger.events import LeaseRequested
from orchestrator.ledger.ids import new_run_id
from orchestrator.ledger.lease import FINAL
from orchestrator.ledger.opening import open_ledger
from orchestrator.ledger.types import LeaseFilter
from orchestrator.recovery.open_leases import close_left_over, left_over
from orchestrator.recovery.takeover import Recovery
from orchestrator.redaction.redactor import Redactor
from orchestrator.workflow.loader import load_text

TEXT = """
version: 1
name: full
agent: tester
steps:
  work:
    action: postgres.query
    grants:
      db: { kind: database, connection: support, role: feedback-read }
    with: { sql: SELECT 1 AS one }
"""
ISSUANCE = "/database/creds/feedback-read"


@dataclass
class Disk:
    """The ledger's, in small pages. Whoever opens the ledger while the disk is `small` finds so many of them free."""

    free: int | None = None

    def opened(self, connection: Any, _record: object) -> None:
        connection.execute("PRAGMA page_size = 512")
        if self.free is not None:
            (pages,) = connection.execute("PRAGMA page_count").fetchone()
            connection.execute(f"PRAGMA max_page_count = {pages + self.free}")

    @contextmanager
    def small(self, pages: int) -> Iterator[None]:
        self.free = pages
        try:
            yield
        finally:
            self.free = None


@pytest.fixture
def disk() -> Iterator[Disk]:
    disk = Disk()
    event.listen(Engine, "connect", disk.opened)
    yield disk
    event.remove(Engine, "connect", disk.opened)


@dataclass
class Watch:
    """Looks at the database's catalog again and again while a run goes on."""

    bench: Bench
    seen: set[str] = field(default_factory=set)

    @contextmanager
    def watching(self) -> Iterator[None]:
        over = threading.Event()

        def watch() -> None:
            while not over.wait(0.01):
                self.seen |= set(self.bench.logins())

        thread = threading.Thread(target=watch)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()


def kinds(ledger_url: str, run_id: str) -> list[str]:
    """What the ledger holds of the run, in order."""
    with open_ledger(ledger_url, clock=SystemClock()) as ledger:
        return [record.kind for record in ledger.events(run_id)]


def recover(bench: Bench, ledger_url: str) -> None:
    """What a later process does when there is room again."""

    async def go() -> None:
        config = bench.config(ledger_url=ledger_url, settle=-600.0)
        async with open_services(config, redactor=Redactor()) as services:
            await Recovery(services, dead_after=0.1).until_decided()
            await close_left_over(services, left_over(services.reader))

    asyncio.run(go())


def test_a_run_that_meets_the_end_of_the_disk_issues_nothing_that_is_not_on_record(bench: Bench, disk: Disk) -> None:
    bench.install(load_text(TEXT, filename="full.yaml", actions=catalog).workflow)
    at = urlsplit(bench.info.vault_address)
    assert at.hostname
    assert at.port
    met: set[tuple[ExitCode, str, bool]] = set()
    with Proxy((at.hostname, at.port), http=True) as proxy:
        vault = replace(bench.provisioned.vault_config(), address=proxy.address)
        for free in range(0, 72, 4):
            url, run_id = f"sqlite:///{bench.directory / f'ledger-{free}.db'}", new_run_id()
            open_ledger(url, clock=SystemClock()).close()
            asked_before, watch = len(proxy.requests), Watch(bench)
            with disk.small(free), watch.watching():
                try:
                    code = bench.run(TEXT, install=False, run_id=run_id, ledger_url=url, vault=vault).exit_code
                except LedgerError as error:
                    code = error.exit_code
                    assert "Free disk space" in str(error.hint)
            asked = [line for line in proxy.requests[asked_before:] if ISSUANCE in line]
            recorded = kinds(url, run_id)
            # Unconfirmed: there was no room for asking the database, and just enough for saying so.
            assert code in (ExitCode.DONE, ExitCode.UNREACHABLE, ExitCode.UNCONFIRMED)
            if LeaseRequested.kind not in recorded:
                assert (asked, watch.seen) == ([], set())
            assert bench.logins() == []
            met.add((code, recorded[-1] if recorded else "", bool(asked)))
            recover(bench, url)
            with open_ledger(url, clock=SystemClock()) as ledger:
                assert {lease.state for lease in ledger.leases(LeaseFilter(run=run_id))} <= FINAL
            bench.assert_nothing_left()
    assert any(code is ExitCode.UNREACHABLE and not asked for code, _, asked in met), "before anything is issued"
    assert any(code is ExitCode.UNREACHABLE and asked for code, _, asked in met), "after it was issued"
    assert any(code is ExitCode.DONE for code, _, _ in met), "with room enough"


CHILD = """
import sys
from sqlalchemy import Engine, event

def limit(connection, _record):
    (pages,) = connection.execute("PRAGMA page_count").fetchone()
    connection.execute(f"PRAGMA max_page_count = {pages + int(sys.argv[1])}")

event.listen(Engine, "connect", limit)
from orchestrator.cli.main import main
sys.exit(main(sys.argv[2:]))
"""


@pytest.mark.parametrize("free", [2, 10, 16])
@pytest.mark.usefixtures("disk")
def test_the_command_line_answers_5_and_says_what_to_do(bench: Bench, free: int) -> None:
    bench.install(load_text(TEXT, filename="full.yaml", actions=catalog).workflow)
    file = bench.directory / "full.yaml"
    file.write_text(TEXT)
    url = bench.config().ledger_url
    (bench.directory / LEDGER_FILES[0]).unlink()  # it is made anew, in small pages
    open_ledger(url, clock=SystemClock()).close()
    environment = {
        **bench.environment(),
        "ORCHESTRATOR_POLICY": "allow-all",
    }
    words = [sys.executable, "-c", CHILD, str(free), "run", str(file)]
    ended = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=90)
    assert ended.returncode == ExitCode.UNREACHABLE, ended.stdout + ended.stderr
    assert "full" in ended.stderr
    assert "Free disk space, then run again. Nothing is issued that cannot be recorded." in ended.stderr
    assert bench.logins() == []
    recover(bench, url)
