"""The sample database and the whole stack: what is there, and who may see it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator

import psycopg
import pytest
from psycopg import sql

from orchestrator.devstack.admin import VaultAdmin
from orchestrator.devstack.postgres import Postgres
from orchestrator.devstack.sampledb import DATABASE, create_sample_database, sample_rows
from orchestrator.devstack.stack import StackInfo
from orchestrator.samples.place import samples
from orchestrator.secret import Secret

SAMPLE_DATA = samples() / "workflows" / "data" / "customer_feedback.csv"
_TABLES = ["customer_feedback", "employee", "feedback_translation", "mail_category", "payment_card", "ticket"]


@pytest.fixture
def owner(stack: StackInfo) -> Iterator[psycopg.Connection]:
    with psycopg.connect(stack.support_dsn.reveal(), autocommit=True) as session:
        yield session


@pytest.fixture
def anybody(stack: StackInfo, owner: psycopg.Connection) -> Iterator[psycopg.Connection]:
    """A login that nothing was ever granted to."""
    owner.execute("CREATE ROLE anybody LOGIN PASSWORD 'anybody'")
    owner.execute(f"GRANT CONNECT ON DATABASE {DATABASE} TO anybody")
    try:
        with psycopg.connect(
            host=stack.postgres_host,
            port=stack.postgres_port,
            user="anybody",
            password="anybody",
            dbname=DATABASE,
            autocommit=True,
        ) as session:
            yield session
    finally:
        owner.execute("DROP OWNED BY anybody; DROP ROLE anybody")


def test_every_real_message_is_there_unchanged(owner: psycopg.Connection) -> None:
    rows = owner.execute("SELECT id, kind, comment FROM customer_feedback ORDER BY id").fetchall()
    assert len(rows) == 1974
    assert rows == sorted(row[:3] for row in sample_rows(SAMPLE_DATA))
    assert {kind for _, kind, _ in rows} == {"question", "complaint", "praise"}


def test_messages_stand_among_generated_columns(owner: psycopg.Connection) -> None:
    columns = owner.execute(
        "SELECT column_name FROM information_schema.columns WHERE table_name = 'customer_feedback'"
        " ORDER BY ordinal_position"
    ).fetchall()
    assert [name for (name,) in columns] == [
        *("id", "kind", "comment", "customer_id", "customer_name", "email", "phone", "address", "city", "birth_date"),
        *("account_balance", "loyalty_tier", "created_at", "channel", "internal_note"),
    ]


def test_generated_data_is_the_same_every_time_and_belongs_to_nobody(owner: psycopg.Connection) -> None:
    assert list(sample_rows(SAMPLE_DATA)) == list(sample_rows(SAMPLE_DATA))
    others = owner.execute("SELECT count(*) FROM customer_feedback WHERE email NOT LIKE '%@example.org'").fetchone()
    assert others == (0,)
    real_cards = owner.execute("SELECT count(*) FROM payment_card WHERE number NOT LIKE '0000-0000-0000-%'").fetchone()
    assert real_cards == (0,)


def test_the_customers_of_the_examples_have_written_something(owner: psycopg.Connection) -> None:
    found = owner.execute(
        "SELECT DISTINCT customer_id FROM customer_feedback WHERE customer_id IN (1234, 1235) ORDER BY 1"
    ).fetchall()
    assert found == [(1234,), (1235,)]


def test_the_user_of_former_days_cannot_log_in_and_may_do_what_such_users_may(owner: psycopg.Connection) -> None:
    login = owner.execute(
        "SELECT rolcanlogin, rolsuper, rolcreaterole FROM pg_roles WHERE rolname = 'feedback_app'"
    ).fetchone()
    assert login == (False, False, False)
    held = owner.execute(
        "SELECT relname, string_agg(privilege_type, ' ' ORDER BY privilege_type) FROM pg_class, aclexplode(relacl) a"
        " WHERE a.grantee = 'feedback_app'::regrole GROUP BY 1 ORDER BY 1"
    ).fetchall()
    assert held == [(table, "DELETE INSERT SELECT UPDATE") for table in _TABLES]
    members = owner.execute("SELECT FROM pg_auth_members WHERE roleid = 'feedback_app'::regrole").fetchall()
    assert members == []


def test_there_is_data_that_no_step_has_business_with(owner: psycopg.Connection) -> None:
    for table in ("payment_card", "employee"):
        count = owner.execute(sql.SQL("SELECT count(*) FROM {}").format(sql.Identifier(table))).fetchone()
        assert count is not None
        assert count[0] > 0


def test_an_insert_into_the_translations_needs_no_sequence(owner: psycopg.Connection) -> None:
    assert owner.execute("SELECT relname FROM pg_class WHERE relkind = 'S'").fetchall() == []


def test_the_tables_belong_to_a_role_that_cannot_log_in(owner: psycopg.Connection) -> None:
    owners = owner.execute(
        "SELECT tablename, tableowner FROM pg_tables WHERE schemaname = 'public' ORDER BY 1"
    ).fetchall()
    assert owners == [(table, "support_owner") for table in _TABLES]
    login = owner.execute("SELECT rolcanlogin, rolsuper FROM pg_roles WHERE rolname = 'support_owner'").fetchone()
    assert login == (False, False)


@pytest.mark.parametrize(
    "statement",
    [
        *(f"SELECT FROM {table}" for table in _TABLES),
        *(f"DELETE FROM {table}" for table in _TABLES),
        "INSERT INTO feedback_translation (feedback_id, language, translation, run_id) VALUES (1, 'en', '', '')",
        "CREATE TABLE public.mine (id integer)",
        "CREATE TEMPORARY TABLE mine (id integer)",
        "CREATE SCHEMA mine",
        "SET ROLE support_owner",
    ],
)
def test_a_login_with_no_grants_can_do_nothing(anybody: psycopg.Connection, statement: str) -> None:
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        anybody.execute(statement.encode())


def test_the_sample_database_can_be_made_on_any_empty_server(postgres_server: Callable[..., Postgres]) -> None:
    server = postgres_server(durable=True)
    create_sample_database(server.dsn(), server.dsn(DATABASE), SAMPLE_DATA)
    with psycopg.connect(server.dsn(DATABASE).reveal()) as session:
        assert session.execute("SELECT count(*) FROM customer_feedback").fetchone() == (1974,)


def test_the_bot_token_waits_in_vault(stack: StackInfo) -> None:
    answer = VaultAdmin(stack.vault_address, stack.root_token).request("GET", "secret/data/slack/support-bot")
    assert answer["data"]["data"] == {"token": stack.slack_token.reveal()}


def test_what_a_user_exports_names_every_endpoint_and_holds_no_secret(stack: StackInfo) -> None:
    environment = stack.environment()
    assert environment == {
        "VAULT_ADDR": stack.vault_address,
        "ORCHESTRATOR_TOKEN_ISSUER": stack.issuer_url,
        "ORCHESTRATOR_ENDPOINTS__SUPPORT": f"postgresql://{stack.postgres_host}:{stack.postgres_port}/support",
        "ORCHESTRATOR_ENDPOINTS__TRANSLATION": stack.translation_url,
        "ORCHESTRATOR_ENDPOINTS__CRM": stack.crm_url,
        "ORCHESTRATOR_ENDPOINTS__SLACK": f"{stack.slack_url}/api/",
    }
    values = [getattr(stack, field.name) for field in dataclasses.fields(stack)]
    secrets = [value.reveal() for value in values if isinstance(value, Secret)]
    assert len(secrets) == 5
    for secret in secrets:
        assert secret not in " ".join(environment.values())
        assert secret not in repr(stack)
