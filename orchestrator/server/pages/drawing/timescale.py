"""Where moments stand on a line, when long times without anything are cut out of it.

A run that waits for an hour and works for two seconds would be one line and a dot. So the times between two things that
happened are looked at from the shortest on: one that is much longer than all shorter ones together is cut, and all that
are longer with it. A cut has a small part of the line, whatever its length.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from operator import attrgetter

WIDTH = 100.0
"""The line, in percent."""

CUT_WIDTH = 5.0
"""What a cut has of it."""

MANY_TIMES = 4.0
"""How much longer than all shorter ones together a time is that is cut."""

SHORTEST_CUT = 1.0
"""Seconds that are never cut."""

MOST_CUTS = 6
"""With more of them the longest are cut."""


@dataclass(frozen=True, slots=True)
class Stretch:
    """A part of the line, in seconds from its beginning and in percent of its width."""

    start: float
    end: float
    left: float
    right: float
    cut: bool

    @property
    def seconds(self) -> float:
        """How long it is in truth."""
        return self.end - self.start


@dataclass(frozen=True, slots=True)
class Timescale:
    """The stretches from the beginning to the end, without holes between them."""

    stretches: Sequence[Stretch]

    def place(self, second: float) -> float:
        """Where a moment stands, in percent; what is outside stands at the nearer end."""
        index = bisect_right(self.stretches, second, key=attrgetter("start")) - 1
        stretch = self.stretches[max(0, index)]
        share = (second - stretch.start) / stretch.seconds if stretch.seconds else 0.0
        return stretch.left + (stretch.right - stretch.left) * min(1.0, max(0.0, share))

    @property
    def cuts(self) -> Sequence[Stretch]:
        """What is left out."""
        return [each for each in self.stretches if each.cut]


def timescale(moments: Iterable[float]) -> Timescale:
    """The scale of everything that happened, in seconds from the beginning."""
    known = sorted(set(moments)) or [0.0]
    gaps = list(pairwise(known))
    cut = _cut(gaps)
    shown = sum(end - start for start, end in gaps if (start, end) not in cut)
    scale = (WIDTH - CUT_WIDTH * len(cut)) / shown if shown else 0.0
    stretches: list[Stretch] = []
    left = 0.0
    for start, end in gaps:
        is_cut = (start, end) in cut
        right = left + (CUT_WIDTH if is_cut else (end - start) * scale)
        if stretches and not is_cut and not stretches[-1].cut:
            start, left = stretches[-1].start, stretches.pop().left
        stretches.append(Stretch(start, end, left, right, is_cut))
        left = right
    return Timescale(stretches or [Stretch(known[0], known[0], 0.0, WIDTH, cut=False)])


def _cut(gaps: Sequence[tuple[float, float]]) -> set[tuple[float, float]]:
    """The gaps that are left out."""
    by_length = sorted(gaps, key=lambda gap: gap[1] - gap[0])
    shorter = 0.0
    for number, (start, end) in enumerate(by_length):
        length = end - start
        if shorter and length > max(SHORTEST_CUT, MANY_TIMES * shorter):
            return set(by_length[number:][-MOST_CUTS:])
        shorter += length
    return set()
