"""One JSON object a line: every event as its chain has it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator

from orchestrator.evidence.export.stream import Tally, content, passed, utc
from orchestrator.ledger.reading.history import ChainEvent, Chapter, RunHead


def jsonl(
    chapters: Iterable[Chapter], tally: Tally, *, resource: str | None = None, with_values: bool = False
) -> Iterator[str]:
    """The lines, the last of them `{"end": true, ...}`. In ASCII: no reader has to know of an encoding."""
    for run, event in passed(tally.chapters(chapters), resource):
        tally.written += 1
        yield json.dumps(_line(run, event, with_values=with_values)) + "\n"
    yield json.dumps(tally.mark("events")) + "\n"


def _line(run: RunHead, event: ChainEvent, *, with_values: bool) -> dict[str, object]:
    return {
        "run_id": event.run_id,
        "seq": event.seq,
        "time": utc(event.time),
        "kind": event.kind,
        "workflow": run.workflow,
        "agent": run.agent,
        **content(event, with_values=with_values),
    }
