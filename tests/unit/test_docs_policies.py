"""What the documentation says of the two documents of a decision is what the program knows of them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from orchestrator.policy.documents import DECISION_EXAMPLE, REQUEST_EXAMPLE, decision_schema, request_schema
from orchestrator.policy.obligations import SUPPORTED

DOCS = Path(__file__).parents[2] / "docs"
TEXT = (DOCS / "policy-documents.md").read_text()


def members(schema: Any, definitions: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, str]]:
    """Every member that has a description, as `grants[].name`, with that."""
    for name, part in schema.get("properties", {}).items():
        place = f"{path}{name}"
        inner = part
        if "$ref" in part:
            inner = definitions[part["$ref"].rpartition("/")[2]]
        elif "$ref" in part.get("items", {}):
            inner, place = definitions[part["items"]["$ref"].rpartition("/")[2]], f"{place}[]"
        if said := part.get("description"):
            yield place, said
        if not place.startswith("grants[].narrower[].privileges"):
            yield from members(inner, definitions, f"{place}.")


def test_each_member_is_described_in_the_same_words() -> None:
    for schema in (request_schema(), decision_schema()):
        found = dict(members(schema, schema["$defs"]))  # type: ignore[arg-type]
        assert len(found) > 10
        for place, said in found.items():
            assert f"| `{place}` | {said} |" in TEXT, place


def test_the_examples_are_those_that_the_schemas_are_held_to() -> None:
    shown = [json.loads(each) for each in re.findall(r"```json\n(.*?)```", TEXT, re.DOTALL)]
    assert shown == [json.loads(json.dumps(each)) for each in (REQUEST_EXAMPLE, DECISION_EXAMPLE)]


def test_each_obligation_says_what_is_done_and_when_it_is_a_denial() -> None:
    rows = re.findall(r"^\| `(\w+)` \| [^|]+ \| [^|]+ \|$", TEXT.partition("## Obligations")[2], re.MULTILINE)
    assert rows == list(SUPPORTED)
