"""`docs/api.md` says of each problem and operation what the program has."""

from __future__ import annotations

import re
from pathlib import Path

from orchestrator.server.api.inquiries import INQUIRIES
from orchestrator.server.api.oauth.errors import _OF_KINDS, _OWN_STATUS, Code
from orchestrator.server.api.oauth.operations import OAUTH
from orchestrator.server.api.operations import OPERATIONS
from orchestrator.server.api.problems import PREFIX, STATUS, Kind

OAUTH_TEXT = (Path(__file__).parents[2] / "docs" / "token-endpoint.md").read_text()
TEXT = (Path(__file__).parents[2] / "docs" / "api.md").read_text()


def test_each_problem_is_there_with_its_status() -> None:
    rows = re.findall(r"^\| `([a-z-]+)` \| (\d{3}) \|", TEXT, re.MULTILINE)
    assert {name: int(status) for name, status in rows} == {kind.value: STATUS[kind] for kind in Kind}
    assert f"`{PREFIX}`" in TEXT


def test_each_operation_is_there() -> None:
    shown = re.sub(r"\{\w*id\}", "{id}", TEXT)
    for each in (*OPERATIONS, *INQUIRIES, *OAUTH):
        path = re.sub(r"\{\w*id\}", "{id}", each.path)
        assert f"`{each.method} {path}`" in shown, each.path


def test_each_error_of_oauth_is_there_with_its_statuses() -> None:
    rows = re.findall(r"^\| (`[a-z_`, ]+`) \| ([\d, ]+) \|", OAUTH_TEXT, re.MULTILINE)
    shown = {
        name: set(map(int, statuses.split(", "))) for names, statuses in rows for name in re.findall(r"[a-z_]+", names)
    }
    assert set(shown) == {code.value for code in Code}
    for kind, code in _OF_KINDS.items():
        assert (STATUS[kind] if kind in _OWN_STATUS else 400) in shown[code.value], kind


def test_each_endpoint_is_in_its_own_table() -> None:
    for each in OAUTH:
        assert f"| `{each.method} {each.path}` |" in OAUTH_TEXT
