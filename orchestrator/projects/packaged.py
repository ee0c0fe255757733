"""The samples and what an admin declares for them: in a checkout where they are, in a wheel beside this module."""

from __future__ import annotations

from pathlib import Path

_IN_A_WHEEL = Path(__file__).with_name("repository")
"""`tool.hatch.build.targets.wheel.force-include` in pyproject.toml puts the folders there."""


def repository() -> Path:
    """The folder that has `workflows` and `vault`, to be read only."""
    return _IN_A_WHEEL if _IN_A_WHEEL.is_dir() else Path(__file__).parents[2]
