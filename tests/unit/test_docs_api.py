"""`docs/api.md` says of each problem and operation what the program has."""

from __future__ import annotations

import re
from pathlib import Path

from orchestrator.server.api.inquiries import INQUIRIES
from orchestrator.server.api.operations import OPERATIONS
from orchestrator.server.api.problems import PREFIX, STATUS, Kind

TEXT = (Path(__file__).parents[2] / "docs" / "api.md").read_text()


def test_each_problem_is_there_with_its_status() -> None:
    rows = re.findall(r"^\| `([a-z-]+)` \| (\d{3}) \|", TEXT, re.MULTILINE)
    assert {name: int(status) for name, status in rows} == {kind.value: STATUS[kind] for kind in Kind}
    assert f"`{PREFIX}`" in TEXT


def test_each_operation_is_there() -> None:
    shown = re.sub(r"\{\w*id\}", "{id}", TEXT)
    for each in (*OPERATIONS, *INQUIRIES):
        path = re.sub(r"\{\w*id\}", "{id}", each.path)
        assert f"`{each.method} {path}`" in shown, each.path
