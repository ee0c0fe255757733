"""Whether a step can be given a new credential while it runs, where a grant says `on_expiry: reissue`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from orchestrator.workflow.parameters import GrantReference
from orchestrator.workflow.source import Path, Source

_HINT = (
    "an `exec` step takes it as one file (`credentials: { files: { NAME: GRANT } }`), a `python` step as "
    "`credentials`; else leave `on_expiry` out: then the step is ended before its credential"
)


def check_reissue(
    source: Source, base: Path, step: Mapping[str, Any], used: Sequence[GrantReference], *, otherwise: bool
) -> None:
    """Report every grant of a step that is to be issued anew and cannot be handed to the action under way.

    `otherwise` says what holds for grants that no parameter names.
    """
    grants = step.get("grants")
    for name, grant in grants.items() if isinstance(grants, dict) else ():
        if not isinstance(grant, dict) or grant.get("on_expiry") != "reissue":
            continue
        own = [reference for reference in used if reference.grant == name]
        once = [reference for reference in own if not reference.anew]
        place: Path = (*base, "grants", name, "on_expiry")
        if once:
            where = ".".join(str(part) for part in ("with", *once[0].path))
            source.report(place, f"`{where}` takes `{once[0].text}` once, when the step begins", _HINT)
        elif not own and not otherwise:
            source.report(place, f"{step.get('action')} takes `{name}` once, when the step begins", _HINT)
