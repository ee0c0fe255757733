"""One difference between what is declared and what is installed."""

from __future__ import annotations

from dataclasses import dataclass
from difflib import unified_diff
from typing import Literal


@dataclass(frozen=True, slots=True)
class Change:
    """What will be created, changed or deleted, or is left to a person: what nobody declared, and keys to be imported.

    `before` and `after` are readable text: HCL, SQL or `key = value`.
    """

    kind: Literal["create", "change", "delete", "undeclared", "import"]
    resource: str
    before: str
    after: str

    def render(self) -> str:
        """The change as a diff under a line that names it."""
        mark = {"create": "+", "change": "~", "delete": "-", "undeclared": "!", "import": "<"}[self.kind]
        lines = unified_diff(self.before.splitlines(), self.after.splitlines(), lineterm="", n=1)
        body = [line for line in lines if not line.startswith(("---", "+++", "@@"))]
        return "\n".join([f"{mark} {self.kind} {self.resource}", *(f"{line[:1]}   {line[1:]}" for line in body)])


def difference(resource: str, before: str | None, after: str | None) -> Change | None:
    """The change that leads from one text to the other, or None. None as text: it is not there."""
    if before == after:
        return None
    if before is None:
        return Change("create", resource, "", after or "")
    if after is None:
        return Change("delete", resource, before, "")
    return Change("change", resource, before, after)
