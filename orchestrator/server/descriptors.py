"""How many files and connections this process may have open, and how many of them the runs can count on."""

from __future__ import annotations

import logging
import resource

log = logging.getLogger(__name__)

MOST_DESCRIPTORS = 65_536
"""The soft limit is not raised beyond: steps inherit it, and some programs close every descriptor up to it."""


def raise_descriptor_limit() -> int:
    """Use as many descriptors as this process may (`ulimit -Hn`), and say how many that is."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = MOST_DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, MOST_DESCRIPTORS)
    if soft == resource.RLIM_INFINITY or soft >= most:
        return int(soft) if soft != resource.RLIM_INFINITY else MOST_DESCRIPTORS
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
    except (OSError, ValueError) as error:
        log.warning("the limit of %d open files stays as it is: %s", soft, error)
        return soft
    return most


def reserve_of(limit: int) -> int:
    """How many of so many descriptors the listener leaves to the runs: a quarter of them, and 512 are enough."""
    return min(limit // 4, 512)
