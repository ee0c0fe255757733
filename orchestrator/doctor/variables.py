"""Variables of ours that nothing reads, and those that a shell cannot have."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from orchestrator.doctor.findings import Finding, fine, warning
from orchestrator.environment import REMOVED, unknown_variables, unset_by_shells

AREA = "settings"


def variables(names: Iterable[str]) -> Iterator[Finding]:
    """What is odd about the names of the environment's variables."""
    given = sorted(names)
    unknown = dict(unknown_variables(given))
    for name, near in unknown.items():
        meant = (
            f"did you mean {near}? else unset it"
            if near
            else REMOVED.get(name.upper(), "unset it: `docs/reference/settings.md` lists those that there are")
        )
        yield warning(AREA, f"{name} is no setting, and nothing reads it", meant)
    for name in given:
        if name not in unknown and unset_by_shells(name):
            yield warning(
                AREA,
                f"{name} is read, and no shell can export such a name",
                "a shell in between loses it: write it into the file that ORCHESTRATOR_CONFIG names",
            )
    if not unknown:
        yield fine(AREA, "readable, and every variable is known")
