"""Examples for the reference: pieces of the samples in `workflows/`, as they stand there."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

WORKFLOWS = Path(__file__).parents[2] / "workflows"


def sample(name: str) -> str:
    """The text of a sample."""
    return (WORKFLOWS / f"{name}.yaml").read_text()


def step_with(action: str) -> str:
    """The first step or tool of the samples with this action, as it stands in its file; empty where there is none."""
    return next((text for text, part in _parts() if part.get("action") == action), "")


def grant_of(kind: str) -> str:
    """The first grant of this kind, as it stands in its file; empty where there is none."""
    for text, part in _parts():
        for name, grant in (part.get("grants") or {}).items():
            if grant.get("kind") == kind:
                return _lines(text.splitlines(), name)
    return ""


def _parts() -> Iterator[tuple[str, Any]]:
    for file in sorted(WORKFLOWS.glob("*.yaml")):
        text = file.read_text()
        data = YAML(typ="safe", pure=True).load(text)
        for name, part in ((data.get("steps") or {}) | (data.get("tools") or {})).items():
            yield _lines(text.splitlines(), name), part


def _lines(lines: list[str], key: str) -> str:
    """The block of a key: its line, and those below that are indented further."""
    start = next(index for index, line in enumerate(lines) if line.strip().startswith(f"{key}:") and line[0] == " ")
    depth = len(lines[start]) - len(lines[start].lstrip())
    end = start + 1
    while end < len(lines) and (not lines[end].strip() or len(lines[end]) - len(lines[end].lstrip()) > depth):
        end += 1
    return textwrap.dedent("\n".join(lines[start:end])).rstrip()
