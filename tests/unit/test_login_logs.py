"""Which logins a line of PostgreSQL's log makes and drops, whatever stands around it."""

from __future__ import annotations

from pathlib import Path

import pytest

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


def test_what_the_parser_does_not_take_is_counted_and_not_told() -> None:
    facts = read(f'LOG:  statement: CREATE ROLE "{LOGIN}" PASSWORD \'abc', "no entry", None)
    assert (facts.created, facts.unreadable, facts.coverage.broken) == ({}, 1, 2)
