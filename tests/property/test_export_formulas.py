"""No field of an exported table is a formula to a spreadsheet, and every field comes back as it was."""

from __future__ import annotations

import csv
import io

from hypothesis import example, given
from hypothesis import strategies as st

from orchestrator.evidence.export.spreadsheet import _row, harmless

FIELDS = st.text() | st.builds(
    str.__add__, st.sampled_from(["=", "+", "-", "@", "\t", "\r", "\n", " =", "＝"]), st.text()
)


@given(st.lists(FIELDS, min_size=1, max_size=5))
@example(["=HYPERLINK(1)", "+1", "-1", "@SUM(1)", "\t=1"])
@example(["\r=1", 'a","=1', "a\r\n=1,2", " =1", "\0"])
@example(["\ud800", "", "'", '"'])
def test_no_field_begins_as_a_formula_and_none_is_lost(values: list[str]) -> None:
    text = _row(values)
    text.encode()
    (read,) = csv.reader(io.StringIO(text, newline=""))
    assert len(read) == len(values)
    for field, value in zip(read, values, strict=True):
        assert field.lstrip(" \u00a0")[:1] not in set("=+-@\t\r\n＝＋－＠")
        assert (
            field.removeprefix("'" if not value.startswith("'") else "")
            == value.replace("\0", "\\x00").encode("utf-8", "backslashreplace").decode()
        )


@given(st.text(alphabet=st.characters(whitelist_categories=["L", "N"]), min_size=1))
def test_a_harmless_field_stays_as_it_is(value: str) -> None:
    assert harmless(value) == value
