"""In which of DBOS's queues a run waits.

There is one for each combination of limits that workflows declare, partitioned by workflow: the limits of a DBOS queue
hold for each of its partitions, and a queue costs each worker a thread, a workflow does not.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from orchestrator.workflow.models.workflow import Workflow

MOST = 10_000
"""More than any worker carries out at once. How much room it really has a worker tells DBOS each time it looks."""

_LANE = re.compile(r"runs(?:-max-(?P<most>[0-9]+))?(?:-(?P<begun>[0-9]+)-in-(?P<seconds>[0-9]+)s)?")


@dataclass(frozen=True, slots=True)
class Limits:
    """Over all workers: how many runs of a workflow may go on at once, and how many begin in so many seconds."""

    most: int | None = None
    begun: int | None = None
    seconds: int = 0

    @property
    def lane(self) -> str:
        """The name of the DBOS queue with these limits."""
        most = "" if self.most is None else f"-max-{self.most}"
        rate = "" if self.begun is None else f"-{self.begun}-in-{self.seconds}s"
        return f"runs{most}{rate}"

    @property
    def in_one_worker(self) -> int:
        """How many runs of one workflow may go on at once in one worker."""
        return MOST if self.most is None else min(self.most, MOST)


def limits_of(workflow: Workflow) -> Limits:
    """The limits that a workflow declares."""
    rate = workflow.rate_limit
    return Limits(workflow.max_runs) if rate is None else Limits(workflow.max_runs, rate.runs, rate.per)


def limits_by(lane: str) -> Limits | None:
    """The limits of a DBOS queue by its name; None where it is not one of ours."""
    found = _LANE.fullmatch(lane)
    if found is None:
        return None
    most, begun = found["most"], found["begun"]
    limits = Limits(int(most) if most else None, int(begun) if begun else None, int(found["seconds"] or 0))
    return limits if limits.lane == lane else None
