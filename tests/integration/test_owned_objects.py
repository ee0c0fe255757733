"""What becomes of objects that a login owns when it goes, and of a login that cannot go because of them."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import hvac
import hvac.exceptions
import psycopg
import pytest
from bench import Bench
from ephemeral import Working, assert_useless, created, swept, working

from orchestrator.assembly import open_services
from orchestrator.devstack.stack import DevStack
from orchestrator.errors import ExitCode
from orchestrator.ledger.ids import new_step_key
from orchestrator.ledger.lease import LeaseState
from orchestrator.recovery.closing_pass import Leftover
from orchestrator.recovery.open_leases import close_left_over, left_over
from orchestrator.redaction.redactor import Redactor


def in_database(bench: Bench, name: str, statement: str) -> list[Any]:
    dsn = bench.info.support_dsn.reveal().replace("/support", f"/{name}", 1)
    with psycopg.connect(dsn, autocommit=True) as session:
        cursor = session.execute(statement)  # type: ignore[arg-type]
        return [row[0] for row in cursor.fetchall()] if cursor.description else []


def owns_a_table(bench: Bench, login: str) -> None:
    bench.sql(f'CREATE TABLE left_behind (id integer); ALTER TABLE left_behind OWNER TO "{login}"')


OWNER = "SELECT tableowner FROM pg_tables WHERE tablename = 'left_behind'"


@pytest.fixture
def table(bench: Bench) -> Iterator[None]:
    yield
    bench.sql("DROP TABLE IF EXISTS left_behind")


@pytest.mark.usefixtures("table")
class TestInTheSameDatabase:
    def test_objects_go_with_the_login_unless_the_grant_says_otherwise(self, bench: Bench) -> None:
        with working(bench) as work:
            owns_a_table(bench, work.login)
        assert work.outcome.exit_code is ExitCode.DONE
        assert bench.sql(OWNER) == []
        bench.assert_nothing_left()

    def test_kept_objects_belong_to_vaults_login_and_to_no_later_step(self, bench: Bench) -> None:
        with working(bench, "owned_objects: keep") as work:
            owns_a_table(bench, work.login)
        assert work.outcome.exit_code is ExitCode.DONE
        assert bench.sql(OWNER) == ["orchestrator_vault"]
        members = "SELECT member::regrole::text FROM pg_auth_members WHERE roleid = 'orchestrator_vault'::regrole"
        assert bench.sql(members) == [], "nobody has what Vault's login owns"
        bench.assert_nothing_left()

    def test_a_sweep_keeps_them_too_although_it_knows_only_the_name(self, bench: Bench) -> None:
        with working(bench, "owned_objects: keep") as work:
            owns_a_table(bench, work.login)
            assert swept(bench, f"sweep('{work.step_key}')") == [(work.login, None)]
        assert bench.sql(OWNER) == ["orchestrator_vault"]

    def test_a_login_cannot_change_what_becomes_of_its_objects(self, bench: Bench) -> None:
        with working(bench) as work:
            bench.sql(f"ALTER ROLE \"{work.login}\" PASSWORD 'chosen-by-the-test'")
            with psycopg.connect(
                bench.provisioned.endpoints["support"], user=work.login, password="chosen-by-the-test", autocommit=True
            ) as session:
                for mark in ("'orchestrator: keep owned objects'", "NULL"):
                    with pytest.raises(psycopg.errors.InsufficientPrivilege):
                        session.execute(f'COMMENT ON ROLE "{work.login}" IS {mark}')  # type: ignore[arg-type]
                session.execute("SELECT lo_create(4712)")
        assert bench.sql("SELECT oid::int FROM pg_largeobject_metadata WHERE oid = 4712") == []

    def test_what_another_role_built_on_a_dropped_object_keeps_the_login_but_disabled(self, bench: Bench) -> None:
        with working(bench) as work:
            owns_a_table(bench, work.login)
            bench.sql(
                "CREATE VIEW built_on_it AS SELECT * FROM left_behind; ALTER VIEW built_on_it OWNER TO support_owner"
            )
        assert work.outcome.exit_code is ExitCode.UNCONFIRMED
        assert "view public.built_on_it depends on table" in reason(bench, work)
        assert_useless(bench, work.login)
        bench.sql("DROP VIEW built_on_it")
        assert [each.confirmed for each in close(bench)] == [True]
        bench.assert_nothing_left()

    def test_an_object_that_somebody_holds_locked_is_not_waited_for_longer_than_a_moment(self, bench: Bench) -> None:
        created(bench, "orc_locked-aaaaaaaaaaaa_00000001")
        created(bench, "orc_locked-aaaaaaaaaaaa_00000002")
        owns_a_table(bench, "orc_locked-aaaaaaaaaaaa_00000001")
        with psycopg.connect(bench.info.support_dsn.reveal()) as holder:
            holder.execute("LOCK TABLE left_behind IN ACCESS SHARE MODE")
            (locked, problem), (_, none) = swept(bench, "sweep('locked-aaaaaaaaaaaa')")
            assert (problem, none) == ("canceling statement due to lock timeout", None)
            assert_useless(bench, locked)
        assert swept(bench, "sweep('locked-aaaaaaaaaaaa')") == [(locked, None)]

    def test_a_privilege_that_a_person_gave_a_login_keeps_it_disabled_and_is_named(self, bench: Bench) -> None:
        with working(bench) as work:
            bench.sql(f'GRANT SELECT ON employee TO "{work.login}"')
        assert work.outcome.exit_code is ExitCode.UNCONFIRMED
        assert "privileges for table public.employee" in reason(bench, work)
        assert_useless(bench, work.login)
        bench.sql(f'REVOKE SELECT ON employee FROM "{work.login}"')
        assert [each.confirmed for each in close(bench)] == [True]
        bench.assert_nothing_left()


class TestInAnotherDatabase:
    @pytest.fixture(autouse=True)
    def second(self, bench: Bench) -> Iterator[None]:
        bench.sql("CREATE DATABASE second")
        yield
        bench.sql("DROP DATABASE second WITH (FORCE)")

    def test_the_lease_stays_revoking_with_the_reason_and_the_login_is_disabled(self, bench: Bench) -> None:
        with working(bench) as work:
            in_database(
                bench, "second", f'CREATE TABLE left_behind (id int); ALTER TABLE left_behind OWNER TO "{work.login}"'
            )
        assert (work.outcome.exit_code, bench.logins()) == (ExitCode.UNCONFIRMED, [work.login])
        assert "another database (second)" in reason(bench, work)
        assert_useless(bench, work.login)
        (again,) = close(bench)
        assert not again.confirmed
        assert "another database (second)" in again.detail
        in_database(bench, "second", f'DROP OWNED BY "{work.login}"')
        (gone,) = close(bench)
        assert (gone.confirmed, gone.state, gone.detail) == (True, LeaseState.REVOKED, "revoked, and confirmed gone")
        assert {lease.state for lease in bench.history(work.outcome.run_id)} == {LeaseState.REVOKED}
        bench.assert_nothing_left()

    def test_one_that_cannot_go_does_not_keep_the_others(self, bench: Bench) -> None:
        names = [f"orc_mixed-aaaaaaaaaaaa_0000000{n}" for n in range(3)]
        for name in names:
            created(bench, name)
        in_database(
            bench, "second", f'CREATE TABLE left_behind (id int); ALTER TABLE left_behind OWNER TO "{names[1]}"'
        )
        rows = swept(bench, "sweep('mixed-aaaaaaaaaaaa')")
        assert [name for name, problem in rows if problem is None] == [names[0], names[2]]
        assert bench.logins() == [names[1]]
        assert_useless(bench, names[1])
        in_database(bench, "second", "DROP TABLE left_behind")
        assert swept(bench, "sweep('mixed-aaaaaaaaaaaa')") == [(names[1], None)]


class TestVaultAlone:
    """What an operator has who takes leases back without the orchestrator: what is left can do nothing."""

    @pytest.fixture(autouse=True)
    def second(self, bench: Bench) -> Iterator[None]:
        bench.sql("CREATE DATABASE second")
        yield
        bench.sql("DROP DATABASE second WITH (FORCE)")

    @pytest.fixture
    def issued(self, bench: Bench) -> Iterator[tuple[str, str, str]]:
        """Login, password and lease of a credential that Vault made."""
        role, key = "auth/token/create/step.customer_feedback.read", new_step_key("alone")
        token = bench.vault.write_data(role, data={"display_name": key})["auth"]
        client = hvac.Client(bench.info.vault_address, token=token["client_token"])
        made = client.read(f"database/creds/{bench.sample_grant('read').vault_role}")
        yield made["data"]["username"], made["data"]["password"], made["lease_id"]
        bench.vault.auth.token.revoke_accessor(token["accessor"])

    @pytest.mark.parametrize(
        "statement",
        [
            'CREATE TABLE left_behind (id int); ALTER TABLE left_behind OWNER TO "LOGIN"',
            'SELECT lo_create(4713); ALTER LARGE OBJECT 4713 OWNER TO "LOGIN"',
            'CREATE SCHEMA left_behind AUTHORIZATION "LOGIN"',
            'GRANT CREATE ON SCHEMA public TO "LOGIN"',
        ],
        ids=["table", "large object", "schema", "privilege"],
    )
    def test_a_login_with_something_elsewhere_is_disabled_and_its_sessions_end(
        self, bench: Bench, issued: tuple[str, str, str], statement: str
    ) -> None:
        login, password, lease = issued
        in_database(bench, "second", statement.replace("LOGIN", login))
        with psycopg.connect(bench.provisioned.endpoints["support"], user=login, password=password) as session:
            assert session.execute("SELECT count(*) FROM (SELECT id FROM customer_feedback LIMIT 1) AS f").fetchone()
            bench.vault.write_data("sys/leases/revoke", data={"lease_id": lease, "sync": True})
            with pytest.raises(psycopg.OperationalError):
                session.execute("SELECT id FROM customer_feedback LIMIT 1")
        assert_useless(bench, login)
        with pytest.raises(psycopg.OperationalError, match="not permitted to log in"):
            psycopg.connect(bench.provisioned.endpoints["support"], user=login, password=password)
        in_database(bench, "second", f'DROP OWNED BY "{login}"')
        assert swept(bench, f"sweep('{login.removeprefix('orc_').rpartition('_')[0]}')") == [(login, None)]

    def test_one_that_cannot_even_be_disabled_is_no_success_for_vault(
        self, bench: Bench, issued: tuple[str, str, str]
    ) -> None:
        login, _, lease = issued
        in_database(bench, "second", f'GRANT CREATE ON SCHEMA public TO "{login}"')
        bench.sql(f'REVOKE "{login}" FROM orchestrator_vault CASCADE')
        with pytest.raises(hvac.exceptions.VaultError, match="another database"):
            bench.vault.write_data("sys/leases/revoke", data={"lease_id": lease, "sync": True})
        bench.sql(f'GRANT "{login}" TO orchestrator_vault WITH ADMIN TRUE')
        in_database(bench, "second", f'DROP OWNED BY "{login}"')
        bench.vault.write_data("sys/leases/revoke", data={"lease_id": lease, "sync": True})
        assert bench.logins() == []


class TestPreparedTransactions:
    """They outlive their session and keep their locks; no login but its own, or a superuser, may end one."""

    @pytest.fixture
    def prepared(self, own_bench: tuple[DevStack, Bench]) -> Bench:
        stack, bench = own_bench
        bench.sql("ALTER SYSTEM SET max_prepared_transactions = 5")
        stack.postgres.stop()
        stack.postgres.start()
        return bench

    @pytest.mark.parametrize("database", ["support", "second"])
    def test_the_lease_stays_revoking_and_names_the_transaction(self, prepared: Bench, database: str) -> None:
        bench = prepared
        bench.sql("CREATE DATABASE second")
        with working(bench) as work:
            bench.sql(f"ALTER ROLE \"{work.login}\" PASSWORD 'chosen-by-the-test' CONNECTION LIMIT 5")
            address = bench.provisioned.endpoints["support"].replace("/support", f"/{database}", 1)
            with psycopg.connect(address, user=work.login, password="chosen-by-the-test") as session:
                session.execute("SELECT pg_advisory_xact_lock(1)")
                session.execute("PREPARE TRANSACTION 'left-behind'")
        assert (work.outcome.exit_code, bench.logins()) == (ExitCode.UNCONFIRMED, [work.login])
        assert f"'left-behind' in {database}" in reason(bench, work)
        assert_useless(bench, work.login)
        in_database(bench, database, "ROLLBACK PREPARED 'left-behind'")
        assert [each.confirmed for each in close(bench)] == [True]
        bench.assert_nothing_left()

    def test_check_says_that_they_are_possible(self, prepared: Bench) -> None:
        with prepared.provisioning() as work:
            assert [note for note in work.check().notes if "max_prepared_transactions is 5" in note]


def reason(bench: Bench, work: Working) -> str:
    """Why the lease is still there, by the ledger."""
    (lease,) = [each for each in bench.history(work.outcome.run_id) if each.state is LeaseState.REVOKING]
    assert lease.subject == work.login
    return lease.reason


def close(bench: Bench) -> list[Leftover]:
    """What `leases sweep` does with leases of ended runs."""

    async def go() -> list[Leftover]:
        async with open_services(bench.config(), redactor=Redactor()) as services:
            return await close_left_over(services, left_over(services.reader))

    return asyncio.run(go())
