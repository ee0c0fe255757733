"""Which logins a line of PostgreSQL's log makes and drops, whatever stands around it."""

from __future__ import annotations

import csv
import gzip
import io
import tracemalloc
from pathlib import Path

import pytest

from orchestrator.evidence.reconciliation import log_files
from orchestrator.evidence.reconciliation.findings import Kind
from orchestrator.evidence.reconciliation.log_files import lines_of
from orchestrator.evidence.reconciliation.logins import LoginComparison
from orchestrator.evidence.reconciliation.postgres_log import LoginFacts, read_postgres
from orchestrator.grants.sql.logins import LoginChanges, login_changes

LOGIN = "orc_read-kvlffyiloyju_sKi6iCBb"


def read(*lines: str | None) -> LoginFacts:
    return read_postgres((Path("x"), line) for line in lines)


@pytest.mark.parametrize(
    ("sql", "created", "dropped", "given"),
    [
        (f"CREATE ROLE \"{LOGIN}\" LOGIN PASSWORD 'x'", (LOGIN,), (), ()),
        ("create user orc_A_b; DROP ROLE IF EXISTS orc_b, orc_c", ("orc_a_b",), ("orc_b", "orc_c"), ()),
        ('ALTER ROLE somebody RENAME TO "orc_x"', ("orc_x",), ("somebody",), ()),
        (f"SELECT orchestrator.revoke('{LOGIN}')", (), (), (LOGIN,)),
        (f"SELECT elsewhere.revoke('{LOGIN}'), revoke('{LOGIN}'), orchestrator.bind('{LOGIN}')", (), (), ()),
        (f"SELECT 'CREATE ROLE \"{LOGIN}\"'", (), (), ()),
        ("ALTER TABLE a RENAME TO orc_x", (), (), ()),
    ],
)
def test_statements_are_told_apart(
    sql: str, created: tuple[str, ...], dropped: tuple[str, ...], given: tuple[str, ...]
) -> None:
    assert login_changes(sql) == LoginChanges(created, dropped, given)


@pytest.mark.parametrize(
    "prefix",
    ["", "2026-11-28 23:53:57.137 UTC [15471] ", "[7]: LOG nothing ", "user=a,db=b,app=c: d ", "1764372837.1 vault@b "],
)
@pytest.mark.parametrize("said", ["statement: ", "execute <unnamed>: ", "duration: 0.3 ms  statement: ", "Anweisung: "])
def test_any_prefix_and_language_of_the_text_form_is_read(prefix: str, said: str) -> None:
    facts = read(f"{prefix}LOG:  {said}CREATE ROLE", f"\t\"{LOGIN}\" PASSWORD 'x'", f"{prefix}LOG:  checkpoint done")
    assert set(facts.created) == {LOGIN}
    assert (facts.coverage.broken, facts.coverage.entries) == (0, 2)


@pytest.mark.parametrize(
    ("time", "told"),
    [
        ("2026-11-28 23:53:57.137 UTC", "2026-11-28T23:53:57.137000+00:00"),
        ("2026-11-28 23:53:57 +0530", "2026-11-28T18:23:57+00:00"),
        ("2026-11-28 23:53:57-03", "2026-11-29T02:53:57+00:00"),
        ("2026-11-28 23:53:57 CET", None),
        ("2026-13-28 23:53:57 UTC", None),
    ],
)
def test_times_are_read_where_they_are_certain(time: str, told: str | None) -> None:
    first = read(f"{time} [1] LOG:  ready").coverage.first
    assert (None if first is None else first.isoformat()) == told


def test_a_login_that_could_not_be_made_was_not_made() -> None:
    made = f'LOG:  statement: CREATE ROLE "{LOGIN}"'
    failed = ["ERROR:  it is there", f'STATEMENT:  CREATE ROLE "{LOGIN}"']
    assert read(made, *failed).created == {}
    assert set(read(made, made, *failed).created) == {LOGIN}
    assert set(read(made, "WARNING:  careful", failed[1]).created) == {LOGIN}


def test_what_the_parser_does_not_take_may_hide_a_login() -> None:
    facts = read(f'LOG:  statement: CREATE ROLE "{LOGIN}" PASSWORD \'abc', "no entry", None)
    assert (facts.created, facts.unreadable, facts.coverage.broken) == ({}, [None], 2)
    padded = read(f"2026-11-28 23:53:57 UTC LOG:  statement: /*{' ' * 200_000}*/ CREATE ROLE orc_a")
    nested = read(f"LOG:  statement: CREATE ROLE orc_a; SELECT {'(' * 100_000}1{')' * 100_000}")
    for made, time in ((padded, padded.coverage.first), (nested, None)):
        (found,) = LoginComparison(made).compare([]).findings
        assert (found.kind, found.what, found.time) == (Kind.STATEMENT_UNREADABLE, "", time)
    assert padded.coverage.first is not None
    assert read(f"LOG:  statement: INSERT INTO files VALUES ('orc_a', '{'x' * 200_000}')").unreadable == []


def test_a_long_message_does_not_hide_that_a_log_is_csv() -> None:
    limit = csv.field_size_limit(131_072)
    try:
        before = ["2026-11-28 23:53:57 UTC", *[""] * 10, "LOG", ""]
        rows = [[*before, said, *[""] * 9] for said in ("x" * 200_000, f'statement: CREATE ROLE "{LOGIN}"')]
        text = io.StringIO()
        csv.writer(text).writerows(rows)
        facts = read(*text.getvalue().splitlines())
    finally:
        csv.field_size_limit(limit)
    assert set(facts.created) == {LOGIN}
    assert (facts.coverage.entries, facts.coverage.broken) == (2, 0)


def test_a_line_without_end_is_one_broken_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_files, "LONGEST_LINE", 100_000)
    file = tmp_path / "pg.log"
    entry = f'LOG:  statement: CREATE ROLE "{LOGIN}"\n'.encode()
    for beyond in (-1, 0, 1, 5):
        file.write_bytes(b"x" * (100_000 + beyond) + b"\n" + entry)
        facts = read_postgres(lines_of([file]))
        assert (facts.coverage.broken, set(facts.created)) == (1, {LOGIN}), beyond
    file.write_bytes(gzip.compress(b"x" * 20_000_000))
    tracemalloc.start()
    try:
        assert [line for _, line in lines_of([file])] == [None]
        assert tracemalloc.get_traced_memory()[1] < 2_000_000
    finally:
        tracemalloc.stop()
