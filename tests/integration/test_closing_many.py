"""Closing what a dead process left for many steps: several step keys at once, each in its own order."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace

import pytest
from bench import Bench

from orchestrator.actions.catalog import catalog
from orchestrator.assembly import open_services
from orchestrator.credentials.duties import DatabaseDuties
from orchestrator.credentials.types import SWEEP_GRANT, Attempt
from orchestrator.errors import FenceLost
from orchestrator.grants.policy_names import step_policy_name
from orchestrator.grants.scope import normalise
from orchestrator.ledger.events import (
    AttemptStarted,
    Event,
    LeaseRequested,
    LeaseRevoked,
    LeaseRevoking,
    LeaseVaultRevoked,
    RunStarted,
)
from orchestrator.ledger.ids import new_run_id, new_step_key
from orchestrator.ledger.lease import OPEN
from orchestrator.ledger.types import LeaseFilter, LeaseRecord, LedgerWriter
from orchestrator.recovery.open_leases import close_leases
from orchestrator.redaction.redactor import Redactor
from orchestrator.runs.types import Services
from orchestrator.workflow.loader import load_text

STEPS = 10
WORKFLOW = "\n".join(
    [
        *("version: 1", "name: closing_many", "agent: tester", "steps:"),
        *(
            f"  s{number}: {{ action: exec, with: {{ command: [/bin/true] }}, grants: {{ db: "
            "{ kind: database, connection: support, role: feedback-read } } }"
            for number in range(STEPS)
        ),
    ]
)


@dataclass
class Watched:
    """A ledger that notes what is appended, in the order of asking, and refuses what is said of one lease."""

    ledger: LedgerWriter
    refused: str = ""
    batches: list[Sequence[Event]] = field(default_factory=list)

    async def append(self, run_id: str, fence: int, events: Sequence[Event]) -> None:
        self.batches.append(events)
        if any(getattr(event, "lease_id", "") == self.refused for event in events):
            raise FenceLost("another process has taken the run over")
        await self.ledger.append(run_id, fence, events)

    async def begin_run(self, run_id: str, started: RunStarted, also: Sequence[Event] = ()) -> int:
        return await self.ledger.begin_run(run_id, started, also)

    async def take_over(self, run_id: str, *, ended: bool = False) -> int:
        return await self.ledger.take_over(run_id, ended=ended)

    async def aclose(self) -> None:
        await self.ledger.aclose()


@dataclass(frozen=True)
class Left:
    """A run of ten attempts, each with a step token and a login that nobody has closed."""

    services: Services
    run_id: str
    fence: int

    def leases(self) -> list[LeaseRecord]:
        return list(self.services.reader.leases(LeaseFilter(run=self.run_id, states=OPEN)))


@asynccontextmanager
async def left_open(bench: Bench) -> AsyncIterator[Left]:
    workflow = load_text(WORKFLOW, filename="test.yaml", actions=catalog).workflow
    bench.install(workflow)
    async with open_services(bench.config(), redactor=Redactor()) as services:
        run_id = new_run_id()
        started = RunStarted(
            workflow=workflow.name, digest="d", agent="tester", trigger="manual", inputs={}, steps=tuple(workflow.steps)
        )
        fence = await services.ledger.begin_run(run_id, started)
        for step_id, step in workflow.steps.items():
            key = new_step_key(step_id)
            attempt = Attempt(
                run_id=run_id,
                fence=fence,
                workflow=workflow.name,
                step=step_id,
                number=1,
                agent="tester",
                step_key=key,
                scopes=(normalise("db", step.grants["db"], step_timeout=step.timeout),),
                policy=step_policy_name(workflow.name, step_id),
                deadline=services.clock.monotonic() + step.timeout,
            )
            begun = AttemptStarted(step=step_id, attempt=1, step_key=key, action="exec", timeout=step.timeout)
            await services.broker.open(attempt, prelude=[begun]).__aenter__()
        yield Left(services, run_id, fence)


async def test_several_step_keys_are_closed_at_once_and_each_is_begun_before_it_ends(bench: Bench) -> None:
    async with left_open(bench) as left:
        assert len(bench.logins()) == STEPS
        watched = Watched(left.services.ledger)
        leases = left.leases()
        broker = replace(left.services.broker, ledger=watched)
        broker = replace(broker, duties=DatabaseDuties(replace(broker, duties=None), left.services.endpoints))
        services = replace(left.services, ledger=watched, broker=broker)
        closed = await close_leases(services, left.fence, leases, "left")
        assert len(closed) == len(leases) == 2 * STEPS
        assert all(each.confirmed for each in closed)
        assert bench.logins() == []
        assert left.leases() == []
    key_of = {lease.lease_id: lease.step_key for lease in leases}
    appended: dict[str, list[frozenset[type[Event]]]] = {}
    for batch in watched.batches:
        keys = {key_of.get(getattr(event, "lease_id", "")) for event in batch}
        if keys != {None}:  # of what was left, and not of the look into the database
            (key,) = keys
            assert key is not None
            appended.setdefault(key, []).append(frozenset(type(event) for event in batch))
    begun, over = frozenset({LeaseRevoking}), frozenset({LeaseVaultRevoked, LeaseRevoked})
    assert list(appended.values()) == [[begun, over]] * STEPS
    looked = [event for batch in watched.batches for event in batch if isinstance(event, LeaseRequested)]
    assert [event.grant for event in looked if event.grant_kind == "database"] == [SWEEP_GRANT], "once for all of them"


async def test_what_cannot_be_recorded_for_one_step_key_hinders_no_other(bench: Bench) -> None:
    async with left_open(bench) as left:
        leases = left.leases()
        watched = Watched(left.services.ledger, refused=leases[-1].lease_id)
        with pytest.raises(FenceLost):
            await close_leases(replace(left.services, ledger=watched), left.fence, leases, "left")
        assert {lease.step_key for lease in left.leases()} == {leases[-1].step_key}
        assert len(bench.logins()) == 1
        await close_leases(left.services, left.fence, left.leases(), "left")
        assert bench.logins() == []
