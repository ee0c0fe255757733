"""What a step is called: by its name in the workflow, or, for one item of its list, `notify[3]`."""

from __future__ import annotations


def instance_of(step: str, index: int) -> str:
    """What a step is called for one item of its list, counted from 0: `notify[3]`."""
    return f"{step}[{index}]"


def declared_step(name: str) -> str:
    """The step as the workflow declares it, of one that may be for an item."""
    return name.partition("[")[0]


def index_of(name: str) -> int | None:
    """For which item, of a step that is for one."""
    _, bracket, index = name.partition("[")
    return int(index[:-1]) if bracket else None
