"""The pages of a ledger, in this process, at an address of their own."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from orchestrator.clock import SystemClock
from orchestrator.ledger.coordination.schedules import open_schedules
from orchestrator.ledger.opening import open_ledger
from orchestrator.scheduling.overview import Scheduled
from orchestrator.server.listener import bind, listener_app, listening
from orchestrator.server.pages.serving import Pages
from orchestrator.server.pages.sources import Sources
from orchestrator.telemetry.metrics import Metrics


@contextmanager
def sources_on(ledger_url: str, workflows: Mapping[str, Scheduled] | None = None) -> Iterator[Sources]:
    """What pages of this ledger are made of."""
    with open_ledger(ledger_url, clock=SystemClock()) as ledger, open_schedules(ledger_url) as schedules:
        yield Sources(
            reader=ledger,
            log=ledger.log,
            approvals=ledger.approvals,
            runners=ledger.runners,
            schedules=schedules,
            clock=SystemClock(),
            workflows=lambda: workflows or {},
        )


@contextmanager
def pages_on(ledger_url: str, workflows: Mapping[str, Scheduled] | None = None) -> Iterator[str]:
    """The pages as `serve --ui` shows them; the address without a path."""
    bound = bind("127.0.0.1:0")
    over, up = threading.Event(), threading.Event()
    with sources_on(ledger_url, workflows) as sources:
        thread = threading.Thread(target=lambda: asyncio.run(_serve(sources, bound, up, over)))
        thread.start()
        try:
            assert up.wait(20)
            yield f"http://127.0.0.1:{bound.getsockname()[1]}"
        finally:
            over.set()
            thread.join(20)
            bound.close()


async def _serve(sources: Sources, bound: object, up: threading.Event, over: threading.Event) -> None:
    async def well() -> Mapping[str, str]:
        return {}

    pages = Pages(sources)
    app = listener_app(health=well, readiness=well, metrics=Metrics(), routes=pages.routes)
    async with listening(app, bound, protocol=pages.protocol):  # type: ignore[arg-type]
        up.set()
        await asyncio.to_thread(over.wait)
        await pages.aclose()
