"""Offline inference never claims what the database does not say: over the same statements, on the real server."""

from __future__ import annotations

import pytest
from test_inference_statements import STATEMENTS, inference, server  # noqa: F401 -- fixtures

from orchestrator.grants.privileges import ALL_COLUMNS
from orchestrator.inference.live import Inference
from orchestrator.inference.offline import certain, missing, superfluous


@pytest.mark.parametrize("statement", STATEMENTS.values(), ids=STATEMENTS.keys())
def test_what_is_certain_offline_is_what_the_database_says(
    inference: Inference,  # noqa: F811 -- the fixture
    statement: str,
) -> None:
    offline = certain(statement, placeholders="%" in statement)
    assert offline is not None
    live = inference.of(statement, placeholders="%" in statement).privileges
    assert missing(live, offline.privileges) == [], "a lint error would be false"
    full = [each for each in live if each.columns != ALL_COLUMNS]
    assert superfluous(full, offline) == [], "a lint warning would be false"
