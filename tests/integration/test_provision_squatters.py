"""Nothing that is in the database already is taken for ours: whoever owned it would own every login."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import psycopg
import pytest
from bench import ROOT, Bench

from orchestrator.errors import ProvisionError
from orchestrator.provision.database.side import DatabaseSide
from orchestrator.provision.declarations import Connection
from orchestrator.provision.service import compiled_grants, load_workflows
from orchestrator.secret import Secret

DEVELOPER, PASSWORD = "squatting_developer", "of-the-test"


@dataclass
class Database:
    """A database of the test's own, with the sample's tables, and a developer who may create in it."""

    name: str
    admin: str

    def sql(self, *statements: str, developer: bool = False) -> list[Any]:
        dsn = self.admin
        if developer:
            rest = dsn.rpartition("@")[2]
            dsn = f"postgresql://{DEVELOPER}:{PASSWORD}@{rest}"
        with psycopg.connect(dsn, autocommit=True) as session:
            for statement in statements:
                cursor = session.execute(statement)  # type: ignore[arg-type]
            return [row[0] for row in cursor.fetchall()] if cursor.description else []

    def side(self, admin: str | None = None) -> DatabaseSide:
        grants = compiled_grants(load_workflows(ROOT / "workflows"), {"support"})
        return DatabaseSide("support", Connection(), Secret(admin or self.admin), grants, prune=False)


@pytest.fixture
def database(bench: Bench) -> Iterator[Database]:
    bench.sql("CREATE DATABASE squatted TEMPLATE template0")
    admin = bench.info.support_dsn.reveal().replace("/support", "/squatted", 1)
    made = Database("squatted", admin)
    tables = "CREATE TABLE customer_feedback (comment text, id int, kind text, customer_id int, city text,"
    made.sql(
        f"{tables} loyalty_tier text, created_at timestamptz)",
        "CREATE TABLE feedback_translation (feedback_id int, language text, run_id text, translation text)",
        "CREATE TABLE ticket (id int, customer_id int, subject text, messages text)",
        "CREATE TABLE mail_category (task_id text, message_id text, mailbox text, category text)",
        f"CREATE ROLE {DEVELOPER} LOGIN PASSWORD '{PASSWORD}'",
        f"GRANT CONNECT, CREATE ON DATABASE squatted TO {DEVELOPER}",
    )
    yield made
    made.sql(f"REASSIGN OWNED BY {DEVELOPER} TO CURRENT_USER; DROP OWNED BY {DEVELOPER}")
    bench.sql("DROP DATABASE squatted WITH (FORCE)")
    bench.sql(f"DROP ROLE {DEVELOPER}")


SCHEMA = "CREATE SCHEMA orchestrator"
TABLE = (
    "CREATE TABLE orchestrator.binding (login name NOT NULL, number integer NOT NULL, value text NOT NULL,"
    " PRIMARY KEY (login, number))"
)
SQUATTED = {
    "an empty schema": [SCHEMA],
    "schema and table": [SCHEMA, TABLE],
    "a revoke of their own": [
        SCHEMA,
        "CREATE FUNCTION orchestrator.revoke(login name) RETURNS void LANGUAGE sql AS ''",
    ],
}


@pytest.mark.parametrize("statements", SQUATTED.values(), ids=SQUATTED)
def test_a_schema_that_somebody_else_made_is_refused_and_told(database: Database, statements: list[str]) -> None:
    database.sql(*statements, developer=True)
    side = database.side()
    told = [change.resource for change in side.changes() if change.kind == "undeclared"]
    assert f"database support schema orchestrator belongs to {DEVELOPER}" in told
    with pytest.raises(ProvisionError) as refused:
        side.apply()
    side.close()
    assert DEVELOPER in str(refused.value)
    assert database.sql("SELECT 1 FROM pg_proc WHERE pronamespace = 'orchestrator'::regnamespace AND prosecdef") == []


BEFORE_IT_WAS_CLOSED = {
    "an overload that a text would rather call": (
        "CREATE FUNCTION orchestrator.revoke(text) RETURNS void LANGUAGE sql AS ''"
    ),
    "a function of our name": ("CREATE FUNCTION orchestrator.revoke(login name) RETURNS void LANGUAGE sql AS ''"),
    "a table of our name": TABLE,
    "a view of our table's name": "CREATE VIEW orchestrator.binding AS SELECT ''::name AS login, 1 AS number, '' value",
    "a type": "CREATE TYPE orchestrator.name AS (a text)",
}


@pytest.mark.parametrize("statement", BEFORE_IT_WAS_CLOSED.values(), ids=BEFORE_IT_WAS_CLOSED)
def test_what_somebody_put_into_a_schema_of_the_administrators_is_refused(database: Database, statement: str) -> None:
    database.sql(SCHEMA, f"GRANT USAGE, CREATE ON SCHEMA orchestrator TO {DEVELOPER}")
    database.sql(statement, developer=True)
    side = database.side()
    assert [change.resource for change in side.changes() if change.kind == "undeclared"]
    with pytest.raises(ProvisionError, match="provisioning did not make"):
        side.apply()
    side.close()


def test_what_is_made_between_the_look_and_the_change_is_refused_too(database: Database) -> None:
    side = database.side()
    assert [change for change in side.changes() if change.kind == "undeclared"] == []
    database.sql(SCHEMA, developer=True)
    with pytest.raises(ProvisionError, match=DEVELOPER):
        side.apply()
    side.close()


def test_a_schema_that_is_being_made_at_that_moment_is_refused(database: Database) -> None:
    """The other one's transaction is not over when ours looks: nothing is seen, and the names meet."""
    rest = database.admin.rpartition("@")[2]
    other = psycopg.connect(f"postgresql://{DEVELOPER}:{PASSWORD}@{rest}")
    other.execute(SCHEMA)
    failed: list[BaseException] = []

    def apply() -> None:
        side = database.side()
        try:
            side.apply()
        except ProvisionError as error:
            failed.append(error)
        finally:
            side.close()

    ours = threading.Thread(target=apply)
    ours.start()
    waiting = "SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE 'CREATE SCHEMA%'"
    while ours.is_alive() and not database.sql(waiting):
        pass
    other.commit()
    other.close()
    ours.join()
    assert len(failed) == 1
    assert database.sql("SELECT nspowner::regrole::text FROM pg_namespace WHERE nspname = 'orchestrator'") == [
        DEVELOPER
    ]


def test_roles_of_our_names_lose_whoever_holds_them(bench: Bench, database: Database) -> None:
    database.sql(f"GRANT orchestrator_binder TO {DEVELOPER} WITH INHERIT TRUE, SET TRUE")
    side = database.side()
    assert "database support members of orchestrator_binder" in [change.resource for change in side.changes()]
    side.apply()
    side.close()
    member = f"SELECT pg_has_role('{DEVELOPER}', 'orchestrator_binder', 'MEMBER')"
    assert database.sql(member) == [False]
