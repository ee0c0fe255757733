"""Provisioning as who administers a managed PostgreSQL: no superuser, and nothing is weaker than what one installs."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import psycopg
import pytest
from database_kinds import KINDS, TABLES, as_login
from sites import Site, opened

from orchestrator.assembly import open_services
from orchestrator.credentials.types import Attempt
from orchestrator.devstack.openbao import OpenBao
from orchestrator.devstack.postgres import Postgres
from orchestrator.errors import ExitCode, ProvisionError
from orchestrator.ledger.events import RunStarted
from orchestrator.ledger.ids import new_run_id, new_step_key
from orchestrator.redaction.redactor import Redactor

MANAGED = KINDS["an administrator without superuser"]
TEXT = MANAGED.workflow()
ADMIN = "managed_admin"


@pytest.fixture
def site(bare_servers: tuple[Postgres, OpenBao], tmp_path: Path) -> Iterator[Site]:
    with opened(MANAGED, bare_servers, tmp_path) as site:
        yield site


INSTALLED = {
    "roles": "SELECT to_jsonb(r) - '{oid,rolpassword}'::text[] FROM pg_roles r WHERE rolname ~ '^orchestrator_'",
    "memberships": "SELECT concat_ws(' ', roleid::regrole, member::regrole, admin_option, inherit_option, set_option)"
    " FROM pg_auth_members WHERE roleid::regrole::text ~ '^orchestrator_' OR member::regrole::text ~ '^orchestrator_'",
    "functions": "SELECT concat_ws(' ', proname, proowner::regrole, prosecdef, proconfig, proacl, md5(prosrc))"
    " FROM pg_proc WHERE pronamespace = 'orchestrator'::regnamespace",
    "relations": "SELECT concat_ws(' ', relname, relowner::regrole, relacl) FROM pg_class"
    " WHERE relnamespace = 'orchestrator'::regnamespace",
    "schema": "SELECT nspacl::text FROM pg_namespace WHERE nspname = 'orchestrator'",
    "granted": "SELECT concat_ws(' ', relname, relacl) FROM pg_class WHERE relnamespace = 'public'::regnamespace",
    "columns": "SELECT concat_ws(' ', attrelid::regclass, attname, attacl) FROM pg_attribute WHERE attacl IS NOT NULL"
    " AND attrelid::regclass::text = 'note'",
    "policies": "SELECT concat_ws(' ', polname, polpermissive, polcmd, polroles::regrole[],"
    " pg_get_expr(polqual, polrelid)) FROM pg_policy",
}


def installed(site: Site) -> dict[str, list[str]]:
    """All that the catalog has of ours, whoever the administrator is."""
    names = (ADMIN, "postgres")
    found = {}
    for what, statement in INSTALLED.items():
        lines = [str(row) for row in site.sql(statement)]
        for name in names:
            lines = [line.replace(name, "ADMINISTRATOR") for line in lines]
        # That who made a role may hand it out is PostgreSQL's own rule for administrators; see the next test.
        found[what] = sorted(line for line in lines if not line.endswith(" ADMINISTRATOR t f f"))
    return found


def test_what_is_installed_is_what_a_superuser_installs(bare_servers: tuple[Postgres, OpenBao], tmp_path: Path) -> None:
    found = []
    for kind in (KINDS["ordinary"], MANAGED):
        with opened(kind, bare_servers, tmp_path) as site:
            site.apply(TEXT)
            found.append(installed(site))
    assert all(found[0].values())
    assert found[1] == found[0]


def test_the_administrator_may_hand_out_what_it_made_and_is_member_of_nothing(site: Site) -> None:
    site.apply(TEXT)
    options = site.sql(
        "SELECT DISTINCT concat_ws(' ', admin_option, inherit_option, set_option) FROM pg_auth_members"
        f" WHERE member = '{ADMIN}'::regrole AND roleid <> 'pg_signal_backend'::regrole"
    )
    assert options == ["t f f"]
    for statement in ("SET ROLE orchestrator_vault", "SELECT * FROM orchestrator.binding"):
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            site.sql(statement, site.dsn)


def test_a_session_whose_new_roles_are_its_own_installs_no_more(site: Site) -> None:
    site.sql(f"ALTER ROLE {ADMIN} SET createrole_self_grant = 'set, inherit'")
    site.apply(TEXT)
    assert site.plan(TEXT) == []
    members = f"pg_auth_members WHERE member = '{ADMIN}'::regrole AND roleid::regrole::text ~ '^orchestrator_'"
    assert site.sql(f"SELECT 1 FROM {members} AND (set_option OR inherit_option)") == []


def test_a_login_with_a_session_is_swept_and_its_session_ended(site: Site) -> None:
    site.apply(TEXT)
    key = new_step_key("lost")
    login = f"orc_{key}_Ab3dEf6h"
    site.sql(f"SET ROLE orchestrator_vault; CREATE ROLE \"{login}\" LOGIN PASSWORD 'of-the-lost-one'")
    site.sql(f'SET ROLE orchestrator_vault; GRANT orchestrator_binder TO "{login}" WITH INHERIT TRUE, SET FALSE')

    async def sweep() -> tuple[str, ...]:
        async with open_services(site.config(), redactor=Redactor()) as services:
            started = RunStarted(workflow="w", digest="", agent="a", trigger="test", inputs={}, steps=("lost",))
            run_id = new_run_id()
            fence = await services.ledger.begin_run(run_id, started)
            until = time.monotonic() + 30
            attempt = Attempt(run_id, fence, "w", "lost", 1, "a", key, (), "", until)
            assert services.broker.duties is not None
            return (await services.broker.duties.sweep(attempt, "matrix", [key], deadline=until)).dropped

    with psycopg.connect(as_login(site.server, site.database, login, "of-the-lost-one").reveal()) as session:
        assert asyncio.run(sweep()) == (login,)
        with pytest.raises(psycopg.OperationalError):
            session.execute("SELECT 1")
    site.assert_nothing_left()


DRIFT: dict[str, str] = {
    "a privilege": "GRANT DELETE ON note TO SCOPE",
    "a column": "GRANT SELECT (stamp) ON note TO SCOPE",
    "a limit taken away": "DROP POLICY POLICY ON note",
    "a role that may log in": "ALTER ROLE SCOPE LOGIN",
    "a setting of a role": "ALTER ROLE SCOPE SET work_mem = '1GB'",
    "what Vault's login may hand out": "REVOKE SCOPE FROM orchestrator_vault",
    "another member": "CREATE ROLE app_other; GRANT SCOPE TO app_other",
}


@pytest.mark.parametrize("statement", DRIFT.values(), ids=DRIFT)
def test_drift_that_it_made_is_found_and_put_right_by_it(site: Site, statement: str) -> None:
    site.apply(TEXT)
    (policy,) = site.sql("SELECT polname FROM pg_policy WHERE NOT polpermissive")
    (scope,) = site.sql("SELECT DISTINCT unnest(polroles)::regrole::text FROM pg_policy WHERE NOT polpermissive")
    site.sql(statement.replace("POLICY POLICY", f'POLICY "{policy}"').replace("SCOPE", scope), site.dsn)
    assert site.plan(TEXT)
    site.apply(TEXT)
    assert site.plan(TEXT) == []
    site.sql("DROP ROLE IF EXISTS app_other")


def test_what_no_workflow_needs_any_more_is_pruned_by_it(site: Site) -> None:
    site.apply(TEXT)
    assert site.sql("SELECT 1 FROM pg_roles WHERE rolname ~ '^orchestrator_scope_'")
    site.apply(prune=True)
    assert site.sql("SELECT 1 FROM pg_roles WHERE rolname ~ '^orchestrator_scope_'") == []
    assert site.sql("SELECT 1 FROM pg_policy") == []
    assert site.sql("SELECT relrowsecurity FROM pg_class WHERE relname = 'note'") == [False]


def test_a_superuser_who_takes_over_leaves_a_login_at_work_its_privileges(site: Site) -> None:
    site.apply(TEXT)
    (scope,) = site.sql("SELECT DISTINCT unnest(polroles)::regrole::text FROM pg_policy WHERE NOT polpermissive")
    login = f"orc_{new_step_key('read')}_Ab3dEf6h"
    site.sql(f'SET ROLE orchestrator_vault; CREATE ROLE "{login}" LOGIN')
    site.sql(f'SET ROLE orchestrator_vault; GRANT {scope} TO "{login}" WITH INHERIT TRUE, SET FALSE')
    held = "pg_auth_members WHERE member = quote_ident('%s')::regrole AND inherit_option AND NOT set_option"
    theirs = replace(site, dsn=KINDS["ordinary"].administrator(site.server, site.database))
    # The schema is that of the one who was here before, which is said: nothing is taken over in silence.
    with pytest.raises(ProvisionError, match=f"schema orchestrator belongs to {ADMIN}"):
        theirs.apply(TEXT)
    site.sql("ALTER SCHEMA orchestrator OWNER TO postgres")
    theirs.apply(TEXT)
    assert theirs.plan(TEXT) == []
    assert site.sql(f"SELECT 1 FROM {held}" % login) == [1]
    site.sql(f'DROP ROLE "{login}"')


Spoil = Callable[[Site], object]

OBSTACLES: dict[str, tuple[Spoil, str]] = {
    "who may not make roles": (
        lambda site: site.sql(f"ALTER ROLE {ADMIN} NOCREATEROLE"),
        "make roles",
    ),
    "who may not give what ends sessions": (
        lambda site: site.sql(f"REVOKE pg_signal_backend FROM {ADMIN}"),
        "give pg_signal_backend to orchestrator_vault, which ends sessions with it",
    ),
    "who does not own a table": (
        lambda site: site.sql("ALTER TABLE note OWNER TO postgres; GRANT ALL ON note TO PUBLIC"),
        "give SELECT (id) ON TABLE public.note, which belongs to postgres",
    ),
    "who does not own a procedure": (
        lambda site: site.sql("ALTER PROCEDURE close_day(date) OWNER TO postgres"),
        "give EXECUTE ON ROUTINE public.close_day(date), which belongs to postgres",
    ),
    "who does not own a schema": (
        lambda site: site.sql("ALTER SCHEMA public OWNER TO postgres; GRANT USAGE ON SCHEMA public TO PUBLIC"),
        "give USAGE ON SCHEMA public, which belongs to postgres",
    ),
    "who does not own the database": (
        lambda site: site.sql(f"ALTER DATABASE matrix OWNER TO postgres; GRANT CONNECT ON DATABASE matrix TO {ADMIN}"),
        "make the schema orchestrator",
    ),
    "a login of another administrator": (
        lambda site: site.sql("CREATE ROLE orchestrator_vault LOGIN CREATEROLE"),
        "change the role orchestrator_vault or hand it out: another administrator made it",
    ),
    "a role of another administrator": (
        lambda site: site.sql("CREATE ROLE orchestrator_sweeper"),
        "change the role orchestrator_sweeper or hand it out: another administrator made it",
    ),
    "a schema of a superuser": (
        lambda site: site.sql("CREATE SCHEMA orchestrator"),
        "change the schema orchestrator, which belongs to postgres",
    ),
}


LATER: dict[str, tuple[str, str]] = {
    "a member by a superuser": (
        "CREATE ROLE app_other; GRANT SCOPE TO app_other",
        "end the membership of app_other in SCOPE, which postgres gave",
    ),
    "a membership by a superuser": (
        "GRANT pg_read_all_data TO orchestrator_vault",
        "end the membership of orchestrator_vault in pg_read_all_data, which postgres gave",
    ),
    "one of a scope role": (
        "GRANT pg_read_all_data TO SCOPE",
        "end the membership of SCOPE in pg_read_all_data, which postgres gave",
    ),
    "an attribute": ("ALTER ROLE SCOPE BYPASSRLS REPLICATION", "take BYPASSRLS, REPLICATION from the role SCOPE"),
}


@pytest.mark.parametrize(("statement", "what"), LATER.values(), ids=LATER)
def test_what_a_superuser_did_meanwhile_is_told_if_it_cannot_undo_it(site: Site, statement: str, what: str) -> None:
    site.apply(TEXT)
    (scope,) = site.sql("SELECT DISTINCT unnest(polroles)::regrole::text FROM pg_policy WHERE NOT polpermissive")
    site.sql(statement.replace("SCOPE", scope))
    with pytest.raises(ProvisionError) as refused:
        site.apply(TEXT)
    assert f"- {what.replace('SCOPE', scope)}" in refused.value.message
    for remedy in str(refused.value.hint).partition("settings: ")[2].split("; "):
        site.sql(remedy)
    assert site.plan(TEXT) == []
    site.sql("DROP ROLE IF EXISTS app_other")


@pytest.mark.parametrize(("spoil", "what"), OBSTACLES.values(), ids=OBSTACLES)
def test_what_it_may_not_do_is_said_before_anything_is_changed_and_with_what_helps(
    site: Site, spoil: Spoil, what: str
) -> None:
    spoil(site)
    roles, schemas = site.roles(), site.sql("SELECT nspname FROM pg_namespace ORDER BY 1")
    assert what in told_by_plan(site)
    with pytest.raises(ProvisionError) as refused:
        site.apply(TEXT)
    assert f"- {what}" in refused.value.message
    assert "is no superuser" in refused.value.message
    assert (site.roles(), site.sql("SELECT nspname FROM pg_namespace ORDER BY 1")) == (roles, schemas)
    assert site.client.read("database/config/matrix") is None

    hint = str(refused.value.hint)
    assert hint.startswith("nothing was changed; ")
    for remedy in hint.partition("settings: ")[2].split("; "):
        site.sql(remedy)
    site.apply(TEXT)
    assert site.plan(TEXT) == []
    assert site.run(TEXT).exit_code is ExitCode.DONE
    site.assert_nothing_left()


def test_what_it_has_through_a_role_that_it_inherits_is_enough(site: Site) -> None:
    site.sql("CREATE ROLE app_superuser; GRANT pg_signal_backend TO app_superuser WITH ADMIN TRUE")
    site.sql(f"REVOKE pg_signal_backend FROM {ADMIN}; GRANT app_superuser TO {ADMIN}")
    site.sql("ALTER DATABASE matrix OWNER TO app_superuser")
    site.sql("ALTER TABLE note OWNER TO app_superuser; ALTER PROCEDURE close_day(date) OWNER TO app_superuser")
    before = site.roles()
    assert site.notes(TEXT) == []
    site.apply(TEXT)
    assert site.plan(TEXT) == []
    assert [each.as_json() for each in site.prove(TEXT).grants if not each.holds] == []
    assert site.run(TEXT).exit_code is ExitCode.DONE
    site.assert_nothing_left()
    site.take_down()
    assert site.roles() == before


def test_what_it_has_through_a_role_that_it_does_not_inherit_is_not(site: Site) -> None:
    site.sql("CREATE ROLE app_superuser; GRANT pg_signal_backend TO app_superuser WITH ADMIN TRUE")
    site.sql(f"REVOKE pg_signal_backend FROM {ADMIN}; GRANT app_superuser TO {ADMIN} WITH INHERIT FALSE")
    with pytest.raises(ProvisionError, match="give pg_signal_backend to orchestrator_vault"):
        site.apply(TEXT)


def told_by_plan(site: Site) -> str:
    """In a note, or as the reason why there is no plan: who may not even compare."""
    try:
        return " ".join(site.notes(TEXT))
    except ProvisionError as error:
        return error.message


def test_a_superuser_has_no_obstacles(bare_servers: tuple[Postgres, OpenBao], tmp_path: Path) -> None:
    kind = replace(KINDS["ordinary"], tables=f"CREATE ROLE app_owner; {TABLES} ALTER TABLE note OWNER TO app_owner")
    with opened(kind, bare_servers, tmp_path) as site:
        assert site.notes(TEXT) == []
        assert site.apply(TEXT)
