"""Vault's own login in a database, whose password somebody changed: found, told, and put right."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import hvac
import pytest
from database_kinds import KINDS
from database_servers import listening
from sites import Site, opened

from orchestrator.cli.main import main
from orchestrator.devstack.openbao import OpenBao
from orchestrator.devstack.ports import free_port
from orchestrator.devstack.postgres import Postgres
from orchestrator.errors import ExitCode, ProvisionError
from orchestrator.secret import Secret

KIND = KINDS["ordinary"]
TEXT = KIND.workflow()
PASSWORD = "database matrix password of orchestrator_vault"


@pytest.fixture(params=["ordinary", "an administrator without superuser"])
def site(request: pytest.FixtureRequest, bare_servers: tuple[Postgres, OpenBao], tmp_path: Path) -> Iterator[Site]:
    with opened(KINDS[request.param], bare_servers, tmp_path) as site:
        site.apply(TEXT)
        yield site
        site.assert_nothing_left()


def leases(site: Site) -> list[str]:
    found = site.client.list("sys/leases/lookup/database/creds")
    return [] if found is None else list(found["data"]["keys"])


STALE: dict[str, str] = {
    "another password": "ALTER ROLE orchestrator_vault PASSWORD 'of the backup'",
    "no password": "ALTER ROLE orchestrator_vault PASSWORD NULL",
    "a login that was made anew": "SELECT 1",
}


@pytest.mark.parametrize("statement", STALE.values(), ids=STALE)
def test_a_password_that_does_not_fit_is_a_difference_and_apply_repairs_it(site: Site, statement: str) -> None:
    assert site.run(TEXT).exit_code is ExitCode.DONE, "Vault has an open session, which goes on working"
    if statement == "SELECT 1":
        site.sql("ALTER ROLE orchestrator_vault RENAME TO before; CREATE ROLE orchestrator_vault LOGIN CREATEROLE")
        site.sql("REASSIGN OWNED BY before TO orchestrator_vault; DROP OWNED BY before; DROP ROLE before")
        if not site.is_superuser():
            site.sql("GRANT orchestrator_vault TO managed_admin WITH ADMIN TRUE, INHERIT FALSE, SET FALSE")
    site.sql(statement)
    with site.provisioning(TEXT) as work:
        found = {change.resource: change for change in work.check().changes}
        assert "password authentication failed" in found[PASSWORD].before
        assert (site.roles_of_steps(), leases(site)) == ([], []), "nothing was issued to find out"
        work.apply(work.plan())
        assert list(work.check().changes) == []
    assert site.run(TEXT).exit_code is ExitCode.DONE


def test_the_command_tells_it_and_ends_with_drift(
    site: Site, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    site.sql("ALTER ROLE orchestrator_vault PASSWORD 'of the backup'")
    command = site.command(monkeypatch, TEXT)
    assert main(["provision", "check", "--json", *command]) == ExitCode.STEP_FAILED
    (change,) = json.loads(capsys.readouterr().out)["changes"]
    assert (change["kind"], change["resource"]) == ("change", PASSWORD)
    assert "SQLSTATE 28P01" in change["before"]
    assert main(["provision", "apply", *command]) == ExitCode.DONE
    assert "1 changed" in capsys.readouterr().out
    assert main(["provision", "check", *command]) == ExitCode.DONE


def test_a_run_that_meets_it_is_told_what_repairs_it(site: Site) -> None:
    text = TEXT.replace("    outputs: [rows]\n", "    outputs: [rows]\n    timeout: 3s\n")
    site.apply(text)
    site.sql("ALTER ROLE orchestrator_vault PASSWORD 'of the backup'")
    site.sql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'orchestrator_vault'")
    outcome = site.run(text)
    assert outcome.exit_code is ExitCode.UNREACHABLE
    assert "`orchestrator provision check`" in str(outcome.errors["read"].hint)
    assert "`provision apply`" in str(outcome.errors["read"].hint)


class Repair(logging.Handler):
    """Repairs when a run says that it tries again."""

    def __init__(self, site: Site) -> None:
        super().__init__(logging.WARNING)
        self.site = site
        self.heard: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.heard.append(record.getMessage())
        assert self.site.apply(TEXT) == [PASSWORD]


def test_a_run_that_waits_goes_on_when_it_is_repaired(site: Site) -> None:
    site.sql("ALTER ROLE orchestrator_vault PASSWORD 'of the backup'")
    site.sql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'orchestrator_vault'")
    repair, where = Repair(site), logging.getLogger("orchestrator.vault.retry")
    where.addHandler(repair)
    try:
        outcome = site.run(TEXT)
    finally:
        where.removeHandler(repair)
    assert outcome.exit_code is ExitCode.DONE
    assert ["28P01" in message for message in repair.heard] == [True], "it is said once"


def test_a_second_vault_is_told_whose_password_it_would_take_before_it_does(site: Site) -> None:
    second = replace(site, namespace=f"{site.namespace}-second")
    root = hvac.Client(site.vault.address, token=site.vault.root_token.reveal())
    root.write_data(f"sys/namespaces/{second.namespace}", data={})
    with second.provisioning(TEXT) as work:
        change = next(change for change in work.plan() if change.resource == PASSWORD)
    assert (change.kind, "another Vault or namespace" in change.before) == ("change", True)
    assert site.plan(TEXT) == [], "a plan takes nothing"
    assert site.run(TEXT).exit_code is ExitCode.DONE

    assert PASSWORD in second.apply(TEXT)
    assert second.plan(TEXT) == []
    assert second.run(TEXT).exit_code is ExitCode.DONE
    assert site.plan(TEXT) == [PASSWORD], "the first one is told at its next check"
    root.delete(f"sys/namespaces/{second.namespace}")


def test_a_first_installation_takes_no_password_from_anybody(
    bare_servers: tuple[Postgres, OpenBao], tmp_path: Path
) -> None:
    with opened(KIND, bare_servers, tmp_path) as site:
        assert PASSWORD not in site.plan(TEXT)
        site.sql("CREATE ROLE orchestrator_vault LOGIN CREATEROLE")
        assert PASSWORD not in site.plan(TEXT), "a login without a password is nobody's yet"


ANOTHER_NAME = {
    "renamed": "ALTER ROLE orchestrator_vault RENAME TO orchestrator_vault_2",
    "beside the old one, which still works": "DROP OWNED BY orchestrator_vault CASCADE;"
    " GRANT CONNECT ON DATABASE matrix TO orchestrator_vault",
}


@pytest.mark.parametrize("statement", ANOTHER_NAME.values(), ids=ANOTHER_NAME)
def test_another_name_of_the_login_comes_with_a_password(site: Site, statement: str) -> None:
    renamed = replace(site, login="orchestrator_vault_2")
    site.sql(statement)
    assert "database matrix password of orchestrator_vault_2" in renamed.apply(TEXT)
    assert renamed.plan(TEXT) == []
    assert renamed.run(TEXT).exit_code is ExitCode.DONE


@pytest.mark.parametrize("attribute", ["NOLOGIN", "CONNECTION LIMIT 0", "VALID UNTIL '2020-01-01'"])
def test_a_login_that_may_not_log_in_is_a_difference_of_the_database(site: Site, attribute: str) -> None:
    site.sql(f"ALTER ROLE orchestrator_vault {attribute}")
    assert "database matrix role orchestrator_vault" in site.plan(TEXT)
    site.apply(TEXT)
    assert site.plan(TEXT) == []
    assert site.run(TEXT).exit_code is ExitCode.DONE


def test_an_address_that_leads_nowhere_any_more_is_changed_whatever_password_vault_has(site: Site) -> None:
    site.client.write_data(
        "database/config/matrix",
        data={
            "connection_url": f"postgresql://{{{{username}}}}:{{{{password}}}}@127.0.0.1:{free_port()}/matrix",
            "username": "orchestrator_vault",
            "password": "x",
            "verify_connection": False,
        },
    )
    assert site.plan(TEXT) == ["vault database/config/matrix", PASSWORD]
    site.apply(TEXT)
    assert site.plan(TEXT) == []
    assert site.run(TEXT).exit_code is ExitCode.DONE


def test_an_address_at_which_nobody_answers_keeps_nobody_from_changing_it(site: Site) -> None:
    over = threading.Event()
    with listening(lambda connection: bool(over.wait(60))) as port:
        site.client.write_data(
            "database/config/matrix",
            data={
                "connection_url": f"postgresql://{{{{username}}}}:{{{{password}}}}@127.0.0.1:{port}/matrix",
                "verify_connection": False,
            },
        )
        assert replace(site, patience=2.0).plan(TEXT) == ["vault database/config/matrix", PASSWORD]
        replace(site, patience=2.0).apply(TEXT)
        over.set()
    assert site.plan(TEXT) == []
    assert site.run(TEXT).exit_code is ExitCode.DONE


def test_a_database_that_vault_cannot_reach_is_left_to_a_person(site: Site) -> None:
    unreachable = replace(site, endpoint=f"postgresql://127.0.0.1:{free_port()}/matrix")
    site.client.write_data(
        "database/config/matrix",
        data={
            "connection_url": unreachable.endpoint.replace("://", "://{{username}}:{{password}}@"),
            "verify_connection": False,
        },
    )
    with unreachable.provisioning(TEXT) as work:
        (change,) = work.plan()
    assert (change.kind, change.resource) == ("undeclared", "vault database/config/matrix")
    assert change.before.startswith("Vault cannot connect with it: ")
    assert "refused" in change.before
    unreachable.apply(TEXT)
    assert unreachable.plan(TEXT) == ["vault database/config/matrix"], "no password helps, and none was set"


def test_a_token_that_may_not_try_it_is_a_note(site: Site) -> None:
    site.client.sys.create_or_update_policy(
        "lesser",
        'path "*" { capabilities = ["create", "read", "update", "delete", "list", "sudo", "scan"] }\n'
        'path "database/reset/*" { capabilities = ["deny"] }',
    )
    token = site.client.auth.token.create(policies=["lesser"])["auth"]["client_token"]
    with replace(site, admin_token=Secret(token)).provisioning(TEXT) as work:
        found = work.check()
    assert list(found.changes) == []
    untried = "whether Vault can connect to the database matrix was not tried: "
    assert any(note.startswith(untried) for note in found.notes)


def test_an_administrator_who_did_not_make_the_login_cannot_repair_it_and_is_told(site: Site) -> None:
    site.sql("CREATE ROLE app_admin LOGIN CREATEROLE SUPERUSER PASSWORD 'app'")
    other = replace(site, dsn=site.as_login("app_admin", "app"))
    site.sql("ALTER ROLE orchestrator_vault PASSWORD 'of the backup'")
    with other.provisioning(TEXT) as work:
        changes = work.plan()
        site.sql("ALTER ROLE app_admin NOSUPERUSER")
        with pytest.raises(ProvisionError, match="refused a new password for `orchestrator_vault`"):
            work.apply([change for change in changes if change.resource == PASSWORD])
    site.apply(TEXT)
