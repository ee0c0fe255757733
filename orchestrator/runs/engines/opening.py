"""How the engine that the settings name is opened. DBOS is imported only where it was chosen."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from orchestrator.errors import UsageError
from orchestrator.ledger.location import locate
from orchestrator.ledger.types import LedgerReader
from orchestrator.runs.engines.local import LocalEngine
from orchestrator.runs.engines.types import Engine, EngineName


@asynccontextmanager
async def open_engine(
    name: EngineName, *, ledger_url: str, reader: LedgerReader, runner_id: str
) -> AsyncIterator[Engine]:
    """The engine of this process. Raises UsageError where it cannot work with this ledger or is not installed."""
    if name == "local":
        yield LocalEngine()
        return
    location = locate(ledger_url)
    if location.path is not None:
        raise UsageError(
            "the engine `dbos` needs a ledger in PostgreSQL: DBOS keeps its own tables beside it, "
            "and calls its SQLite backend one for development",
            hint="set ORCHESTRATOR_LEDGER_URL to postgresql://..., or use the engine `local`",
        )
    try:
        from orchestrator.runs.engines.dbos import DbosEngine
    except ModuleNotFoundError as error:
        raise UsageError(
            f"the engine `dbos` needs the package {error.name}",
            hint="pip install 'credential-orchestrator[dbos]', or use the engine `local`",
        ) from error
    engine = DbosEngine(location, reader=reader, runner_id=runner_id)
    try:
        yield engine
    finally:
        await engine.aclose()
