"""Grants on procedures, functions, aggregates and window functions: installed, proven, called, and taken away."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from database_kinds import KINDS
from sites import Site, opened

from orchestrator.devstack.openbao import OpenBao
from orchestrator.devstack.postgres import Postgres
from orchestrator.errors import ExitCode, ProvisionError

ROUTINES = """
CREATE SCHEMA lib;
CREATE TABLE lib.told (what text);
CREATE PROCEDURE lib.tell(what text) LANGUAGE sql SECURITY DEFINER AS 'INSERT INTO lib.told VALUES (what)';
CREATE PROCEDURE lib.tell(what integer) LANGUAGE sql SECURITY DEFINER AS 'INSERT INTO lib.told VALUES (what::text)';
CREATE PROCEDURE lib.tell() LANGUAGE sql SECURITY DEFINER AS 'INSERT INTO lib.told VALUES (NULL)';
CREATE PROCEDURE lib.count(IN add bigint, OUT n bigint) LANGUAGE sql SECURITY DEFINER
    AS 'SELECT count(*) + add FROM lib.told';
CREATE PROCEDURE lib."Add up"(INOUT total int, VARIADIC parts int[]) LANGUAGE plpgsql
    AS $$ BEGIN total := total + (SELECT sum(part) FROM unnest(parts) part); END $$;
CREATE FUNCTION lib.twice(n int) RETURNS int LANGUAGE sql AS 'SELECT 2 * n';
CREATE FUNCTION lib.twice(n text) RETURNS text LANGUAGE sql AS 'SELECT n || n';
CREATE FUNCTION lib.keep(so_far int, n int) RETURNS int LANGUAGE sql AS 'SELECT coalesce(so_far, 0) + n';
CREATE AGGREGATE lib.total(int) (SFUNC = lib.keep, STYPE = int);
CREATE DOMAIN lib."Odd type" AS text;
CREATE FUNCTION lib.odd(lib."Odd type", timestamp with time zone) RETURNS int LANGUAGE sql AS 'SELECT 1';
REVOKE EXECUTE ON ALL ROUTINES IN SCHEMA lib FROM PUBLIC;
"""

OF_SUPERUSER = """
CREATE SCHEMA win AUTHORIZATION pg_database_owner;
CREATE FUNCTION win.place() RETURNS bigint LANGUAGE internal WINDOW AS 'window_row_number';
ALTER FUNCTION win.place() OWNER TO pg_database_owner;
REVOKE EXECUTE ON FUNCTION win.place() FROM PUBLIC;
"""
"""What only a superuser can make, and whoever owns the database may give."""

CALLED: dict[str, tuple[str, str]] = {
    "a procedure": ("lib.tell(text)", "CALL lib.tell('a')"),
    "its overload": ("lib.tell(integer)", "CALL lib.tell(1)"),
    "one without arguments": ("lib.tell()", "CALL lib.tell()"),
    "one with an OUT argument": ("lib.count(bigint)", "CALL lib.count(1, NULL)"),
    "one with INOUT and VARIADIC": ('lib."Add up"(integer, integer[])', 'CALL lib."Add up"(1, 2, 3)'),
    "a function": ("lib.twice(int)", "SELECT lib.twice(1)"),
    "its overload of texts": ("lib.twice(text)", "SELECT lib.twice('a')"),
    "a window function": ("win.place()", "SELECT win.place() OVER ()"),
    "types with names of their own": (
        'lib.odd(lib."Odd type", timestamp with time zone)',
        "SELECT lib.odd('a', now())",
    ),
}


def workflow(privileges: str, call: str) -> str:
    action = "postgres.execute" if call.startswith("CALL") else "postgres.query"
    return f"""
version: 1
name: matrix
agent: tester
steps:
  call:
    action: {action}
    grants: {{ db: {{ kind: database, connection: matrix, privileges: {privileges} }} }}
    with: {{ sql: {quoted(call)} }}
"""


def quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


@pytest.fixture(params=["ordinary", "an administrator without superuser"])
def site(request: pytest.FixtureRequest, bare_servers: tuple[Postgres, OpenBao], tmp_path: Path) -> Iterator[Site]:
    with opened(replace(KINDS[request.param], prepare=OF_SUPERUSER, tables=ROUTINES), bare_servers, tmp_path) as site:
        yield site
        site.assert_nothing_left()


@pytest.mark.parametrize(("signature", "call"), CALLED.values(), ids=CALLED)
def test_it_is_called_by_the_step_and_nothing_else_is(site: Site, signature: str, call: str) -> None:
    before = site.roles()
    text = workflow(f"[ {{ execute: {quoted(signature)} }} ]", call)
    site.apply(text)
    assert site.plan(text) == []
    outcome = site.run(text)
    assert outcome.exit_code is ExitCode.DONE, outcome.errors["call"].message
    proof = site.prove(text)
    assert [each.as_json() for each in proof.grants if not each.holds] == []
    held = "SELECT count(*) FROM pg_proc, aclexplode(proacl) a WHERE a.grantee::regrole::text ~ '^orchestrator_scope'"
    assert site.sql(held) == [1], "no overload of it"
    site.take_down()
    assert site.roles() == before


def test_an_aggregate_needs_what_it_is_made_of_no_more_than_itself(site: Site) -> None:
    privileges = "[ { execute: lib.total(int) }, { execute: 'lib.keep(int, int)' } ]"
    text = workflow(privileges, "SELECT lib.total(n) FROM generate_series(1, 3) n")
    site.apply(text)
    assert site.run(text).exit_code is ExitCode.DONE
    proof = site.prove(text)
    assert [each.as_json() for each in proof.grants if not each.holds] == []


def test_one_granted_by_hand_is_drift_and_taken_back(site: Site) -> None:
    text = workflow("[ { execute: lib.tell(text) } ]", "CALL lib.tell('a')")
    site.apply(text)
    (scope,) = site.sql("SELECT rolname FROM pg_roles WHERE rolname ~ '^orchestrator_scope'")
    site.sql(f"GRANT EXECUTE ON PROCEDURE lib.tell(integer) TO {scope}", site.dsn)
    site.sql(f"REVOKE EXECUTE ON PROCEDURE lib.tell(text) FROM {scope}", site.dsn)
    assert site.plan(text) == [f"database matrix privileges of {scope}"]
    site.apply(text)
    assert site.plan(text) == []
    assert site.run(text).exit_code is ExitCode.DONE


def test_one_that_is_not_there_is_named_by_what_it_might_be(site: Site) -> None:
    with pytest.raises(ProvisionError, match=r"there is no function or procedure lib\.tell\(date\)"):
        site.apply(workflow("[ { execute: lib.tell(date) } ]", "CALL lib.tell('a')"))


def test_a_login_may_call_no_procedure_that_was_not_granted(site: Site) -> None:
    text = workflow("[ { execute: lib.tell(text) } ]", "CALL lib.tell(1)")
    site.apply(text)
    outcome = site.run(text)
    assert (outcome.exit_code, "permission denied" in outcome.errors["call"].message) == (ExitCode.STEP_FAILED, True)
