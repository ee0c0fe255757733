"""What SECURITY.md says that holds names tests that are there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "SECURITY.md").read_text()


def claims() -> list[tuple[str, str]]:
    """Each line of a table under `holds`: what is said, and by which tests."""
    rows = re.findall(r"^\| (.+?) \| (.+) \|$", TEXT, re.MULTILINE)
    return [(what, tests) for what, tests in rows if what not in ("holds", "---")]


@pytest.mark.parametrize(("what", "tests"), claims(), ids=[what for what, _ in claims()])
def test_what_holds_is_held_by_tests(what: str, tests: str) -> None:
    named = re.findall(r"`(tests/[\w/]+\.py)`", tests)
    assert named
    for name in named:
        assert re.search(r"^(    )?(async )?def test_", (ROOT / name).read_text(), re.MULTILINE), name


def test_every_standing_says_what_holds() -> None:
    parts = re.split(r"^### ", TEXT, flags=re.MULTILINE)[1:]
    assert len(parts) >= 9
    for part in parts:
        assert "`tests/" in part, part.splitlines()[0]
        for name in re.findall(r"`(tests/[\w/]+\.py)`", part):
            assert (ROOT / name).exists(), name


def test_what_it_points_to_in_the_documentation_is_there() -> None:
    for file, heading in re.findall(r"\]\((docs/[\w-]+\.md)#([\w-]+)\)", TEXT):
        headings = re.findall(r"^#+ (.+)$", (ROOT / file).read_text(), re.MULTILINE)
        anchors = {re.sub(r"[^\w -]", "", each.lower()).replace(" ", "-") for each in headings}
        assert heading in anchors, heading
