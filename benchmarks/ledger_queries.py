"""Every documented question to the ledger, with values as they occur in it, as they occur no more, and as never did."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import timedelta

from ledger_rows import DEAD, GIVEN_UP, KINDS, RETIRED, SELDOM, STEP_NAMES, YEARS, Filled

from orchestrator.ledger.lease import OPEN, LeaseState
from orchestrator.ledger.states import RunState
from orchestrator.ledger.types import LeaseFilter
from orchestrator.ledger.writing.store import Ledger

Question = Callable[[], object]

PREFIXES = ("database/", "database/creds/support-3", "kv/data/services/slack", "aws/creds/", "auth/", "nothing/")

COMBINATIONS: Sequence[tuple[str, ...]] = (
    ("run",),
    ("workflow",),
    ("step",),
    ("agent",),
    ("state",),
    ("resource",),
    ("kind",),
    ("since",),
    ("until",),
    ("step_key",),
    ("vault_lease_id",),
    ("since", "until"),
    ("run", "state"),
    ("run", "step"),
    ("workflow", "state"),
    ("workflow", "step"),
    ("workflow", "step", "state"),
    ("workflow", "kind"),
    ("workflow", "agent"),
    ("workflow", "resource"),
    ("workflow", "since", "until"),
    ("step", "state"),
    ("step", "kind"),
    ("step", "agent"),
    ("agent", "state"),
    ("agent", "kind"),
    ("agent", "resource"),
    ("agent", "resource", "state"),
    ("agent", "state", "since"),
    ("resource", "state"),
    ("resource", "since", "until"),
    ("kind", "state"),
    ("kind", "state", "since"),
    ("kind", "resource"),
    ("state", "since", "until"),
)
"""What `leases list` and the ledger's own callers ask for together."""


class Values:
    """Values of each filter, drawn at random."""

    def __init__(self, filled: Filled, chance: random.Random) -> None:
        self._filled = filled
        self._chance = chance

    def draw(self, names: Sequence[str]) -> LeaseFilter:
        """A filter with a value for each name. `since` comes before `until`, a few days to many months."""
        chance, filled = self._chance, self._filled
        usual = chance.choice(filled.workflows)
        agents = sorted({workflow.agent for workflow in filled.workflows})
        since = filled.newest - timedelta(days=chance.choice((1, 30, 365, 700)))
        drawn: Mapping[str, Mapping[str, object]] = {
            "run": {"run": chance.choice((*filled.some_runs, "run_unknown"))},
            "workflow": {"workflow": chance.choice((usual.name, usual.name, GIVEN_UP, SELDOM, "unknown"))},
            "step": {"step": chance.choice((*STEP_NAMES, chance.choice(usual.steps).name, "unknown"))},
            "agent": {"agent": chance.choice((*agents, RETIRED, "unknown"))},
            "state": {"states": chance.choice((*(frozenset({each}) for each in LeaseState), OPEN))},
            "resource": {"resource": chance.choice(PREFIXES)},
            "kind": {"grant_kind": chance.choice((*KINDS, "step-token", "unknown"))},
            "since": {"since": since},
            "until": {"until": since + YEARS * chance.choice((0.001, 0.1, 0.5))},
            "step_key": {"step_key": chance.choice((*filled.some_step_keys, "unknown"))},
            "vault_lease_id": {"vault_lease_id": chance.choice((*filled.some_vault_leases, "unknown"))},
        }
        given: dict[str, object] = {}
        for name in names:
            given |= drawn[name]
        return LeaseFilter(**given)  # type: ignore[arg-type] # each value is of the field that it is named after


def questions(ledger: Ledger, filled: Filled, times: int, *, seed: int = 2) -> Iterator[tuple[str, list[Question]]]:
    """Names of what is asked, each with `times` questions."""
    chance = random.Random(seed)
    values = Values(filled, chance)
    names = [workflow.name for workflow in filled.workflows] + ["unknown", "(sweep)"]
    yield "recovery's look", [lambda: ledger.leases_of_ended_runs(dead=[DEAD])] * times
    yield "open leases", [lambda: ledger.leases(LeaseFilter(states=OPEN, limit=100_000))] * times
    yield "count by state", [ledger.open_lease_counts] * times
    yield "unfinished runs", [lambda: ledger.runners.unfinished("runner_living")] * times
    yield "heartbeat", [lambda: ledger.runners.beat("runner_living")] * times
    yield "runs", [ledger.runs] * times
    yield "runs: workflow", [_runs(ledger, chance.choice(names), None) for _ in range(times)]
    yield "runs: state", [_runs(ledger, None, chance.choice(list(RunState))) for _ in range(times)]
    yield (
        "runs: workflow, state",
        [_runs(ledger, chance.choice(names), chance.choice(list(RunState))) for _ in range(times)],
    )
    yield "no filter", [lambda: ledger.leases(LeaseFilter())] * times
    for combination in COMBINATIONS:
        yield ", ".join(combination), [_leases(ledger, values.draw(combination)) for _ in range(times)]


def _leases(ledger: Ledger, wanted: LeaseFilter) -> Question:
    return lambda: ledger.leases(wanted)


def _runs(ledger: Ledger, workflow: str | None, state: RunState | None) -> Question:
    return lambda: ledger.runs(workflow=workflow, state=state)
