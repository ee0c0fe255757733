"""No field of an exported table is a formula to a spreadsheet, or leaves its line, and what it says stays in it."""

from __future__ import annotations

import csv
import io
import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from orchestrator.evidence.export.spreadsheet import csv_row, harmless

SIGNS = "=+-@＝＋－＠"
FIELDS = st.text() | st.builds(
    str.__add__,
    st.sampled_from(["=", "+", "-", "@", "\t", "\r", "\n", " =", "＝", ";", "a;", '"', "'"]),
    st.text(alphabet="=+-@ ;'\"\n\t\ra\u202e\x1b"),
)


@given(st.lists(FIELDS, min_size=1, max_size=5))
@example(["=HYPERLINK(1)", "+1", "-1", "@SUM(1)", "\t=1"])
@example(["\r=1", 'a","=1', "a\r\n=1,2", " =1", "\0"])
@example(["\ud800", "", "'", '"'])
def test_no_field_begins_as_a_formula_whatever_separates_fields(values: list[str]) -> None:
    text = csv_row(values)
    text.encode()
    assert text.endswith("\r\n")
    assert text[:-2].replace("\u00a0", " ").isprintable() or not set(text[:-2]) & set(map(chr, range(32)))
    (read,) = csv.reader(io.StringIO(text, newline=""))
    assert len(read) == len(values)
    for field, value in zip(read, values, strict=True):
        for part in field.split(";"):
            assert part.lstrip(' \u00a0"')[:1] not in set(SIGNS)
        escaped = re.sub(r"[\x00-\x1f\x7f-\x9f]", lambda unseen: unseen[0].encode("unicode_escape").decode(), value)
        if not set(value) & set("'\ud800"):
            assert [each for each in field if each != "'"] == [
                each for each in _without_turns(escaped).encode("utf-8", "backslashreplace").decode() if each != "'"
            ]


def _without_turns(text: str) -> str:
    turning = "\u061c\u200e\u200f\u2028\u2029\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
    return "".join(each.encode("unicode_escape").decode() if each in turning else each for each in text)


@pytest.mark.parametrize(
    ("value", "written"),
    [
        ("a;=1+1", "a;'=1+1"),
        ('a ; "@SUM(1)', "a ;' \"@SUM(1)"),
        ("a\n=1", "a\\n=1"),
        ("\n=1", "\\n=1"),
        ("\x1b[31mred", "\\x1b[31mred"),
        ("agent\u202egpj.exe", "agent\\u202egpj.exe"),
        ("a,=1", "a,=1"),
        ("'=1", "''=1"),
        ("a-b", "a-b"),
    ],
)
def test_what_is_dangerous_is_made_harmless_and_nothing_else_is_touched(value: str, written: str) -> None:
    assert harmless(value) == written


@given(st.text(alphabet=st.characters(whitelist_categories=["L", "N"]), min_size=1))
def test_a_harmless_field_stays_as_it_is(value: str) -> None:
    assert harmless(value) in (value, f"'{value}")
    assert harmless(value) == value or value[0] in SIGNS
