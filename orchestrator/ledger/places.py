"""Who may have places at connections whose open leases are limited, and who waits for them: pure data and one rule.

A place is what one open lease takes up of a connection's limit. An attempt gets all of its places at once, or none.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from orchestrator.ledger.events import AttemptWaits

KEPT_AFTER = timedelta(seconds=10)
"""How long an attempt that waits for several connections may be overtaken at one that is not the reason why it waits.

Long enough that a place which others can use now is not left empty for a wait that is over in a moment, since most
steps hold a lease for some seconds; short against the timeout of a step (60 s by default), within which it has to
get its places.
"""

AttemptKey = tuple[str, str, int]
"""Run, step and number of an attempt."""


@dataclass(frozen=True, slots=True)
class PlacesWanted:
    """What an attempt, of the process `runner_id`, wants at once: leases by connection, and how many may be open."""

    step: str
    attempt: int
    runner_id: str
    leases: Mapping[str, int]
    limits: Mapping[str, int]
    known: bool = False
    """Whether it is on record already that it waits."""


@dataclass(frozen=True, slots=True)
class Blocked:
    """Why an attempt has no places yet. `recorded` is what its run's history says of it since this moment, if new."""

    connection: str
    reason: str
    recorded: AttemptWaits | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Waiter:
    """An attempt in line. A lower ticket came earlier; `process` is how its process described itself."""

    ticket: int
    run_id: str
    step: str
    attempt: int
    leases: Mapping[str, int]
    limits: Mapping[str, int]
    """As its own process has them."""
    since: datetime
    workflow: str
    agent: str
    task: str | None
    runner_id: str
    process: str
    beat: int

    @property
    def key(self) -> AttemptKey:
        """Which attempt it is."""
        return self.run_id, self.step, self.attempt


@dataclass(frozen=True, slots=True)
class Places:
    """What is held of connections, by their names, and who waits, those first who came first. As of one moment."""

    held: Mapping[str, int]
    line: Sequence[Waiter]

    def next(self, limits: Mapping[str, int], now: datetime) -> frozenset[AttemptKey]:
        """Those in line who may have their places now. `limits` are ours, and win over theirs."""
        claims = [_claim(each, now) for each in self.line]
        going = granted(self.held, known_limits(self.line, limits), claims)
        return frozenset(each.key for each, goes in zip(self.line, going, strict=True) if goes)

    def blocked(self, key: AttemptKey, wanted: PlacesWanted, now: datetime) -> Blocked | None:
        """Why an attempt may not have its places now; None if it may. Who is not in line comes after all who are."""
        ahead = []
        for each in self.line:
            if each.key == key:
                break
            ahead.append(each)
        limits = known_limits(self.line, wanted.limits)
        claims = [*(_claim(each, now) for each in ahead), Claim(wanted.leases)]
        if granted(self.held, limits, claims)[-1]:
            return None
        for name, leases in wanted.leases.items():
            held, most = self.held.get(name, 0), limits[name]
            if held + leases > most:
                return Blocked(name, _full(name, held, leases, most))
        others = [name for name in wanted.leases if any(name in each.leases for each in ahead)]
        return Blocked(others[0], f"others have waited longer for leases of `{others[0]}`")

    def in_line(self) -> Iterator[tuple[Waiter, str, int]]:
        """Who waits for which connection, and the place in its line; 1 is the next."""
        count = Counter[str]()
        for each in self.line:
            for name in sorted(each.leases):
                count[name] += 1
                yield each, name, count[name]


@dataclass(frozen=True, slots=True)
class Claim:
    """What one in line wants of each connection; `kept` once its places are kept for it wherever they become free."""

    leases: Mapping[str, int] = field(default_factory=dict)
    kept: bool = False


def granted(held: Mapping[str, int], limits: Mapping[str, int], line: Sequence[Claim]) -> list[bool]:
    """The rule: which of those in line may have their places now, by their order.

    One may if on each of its connections what is held, what it wants, and what those ahead are owed there, come to
    the limit at most. Who may go is owed what it wants. Who may not is owed it at a connection if only that one is
    why it waits; where it waits for another one as well, or instead, others may use the place meanwhile, until its
    places are kept. So who waits for one connection alone is never overtaken there, and whoever waits for several
    comes to the head of the line with all places kept, which it gets since nobody takes them any more.
    """
    owed = Counter(held)
    answers = []
    for claim in line:
        short = {name for name, leases in claim.leases.items() if owed[name] + leases > limits.get(name, _NO_LIMIT)}
        answers.append(not short)
        owed.update({name: n for name, n in claim.leases.items() if claim.kept or short <= {name}})
    return answers


_NO_LIMIT = 1 << 62


def known_limits(line: Sequence[Waiter], ours: Mapping[str, int]) -> dict[str, int]:
    """Our limits, and of connections that have none here those that others in line keep to."""
    return {name: most for each in line for name, most in each.limits.items()} | dict(ours)


def _claim(waiter: Waiter, now: datetime) -> Claim:
    return Claim(waiter.leases, kept=now - waiter.since >= KEPT_AFTER)


def _full(name: str, held: int, leases: int, most: int) -> str:
    open_now = f"1 lease of `{name}` is open" if held == 1 else f"{held} leases of `{name}` are open"
    if leases == 1:
        return f"{open_now}, and no more may be"
    return f"{open_now}, {leases} more are wanted at once, and no more than {most} may be"
