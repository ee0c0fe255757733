"""Certificate grants against the real pki and ssh engines: what is signed, who gets it, and that it is revoked."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import re
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import hvac
import pytest
from bench import Bench
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from desks import AGENT, loaded_task, open_desk
from pki import Pki, pki_of
from tls_server import Demanding, demanding
from waiting import wait_for

from orchestrator.credentials.issuers.certificate import ssh as of_ssh
from orchestrator.credentials.issuers.certificate import x509 as of_tls
from orchestrator.errors import ExitCode
from orchestrator.ledger.lease import LeaseState
from orchestrator.ledger.types import LeaseRecord
from orchestrator.policy.engines.allow_all import AllowAllEngine
from orchestrator.policy.types import Decision, PolicyRequest
from orchestrator.runs.types import RunOutcome

HOST = "a.orders.example"
CLIENT = f"common_name: {HOST}, names: [{HOST}], uris: ['spiffe://orders/client'], ttl: 90s"
ROLE = {"allowed_uri_sans": ["spiffe://orders/*"], "require_cn": False}


@pytest.fixture
def pki(bench: Bench) -> Iterator[Pki]:
    with pki_of(bench.vault) as made:
        made.role("client", **ROLE)
        yield made
        assert made.leases() == []


@pytest.fixture
def server(pki: Pki, tmp_path: Path) -> Iterator[Demanding]:
    directory = tmp_path / "server"
    directory.mkdir()
    with demanding(pki, directory) as started:
        yield started


@pytest.fixture
def key(monkeypatch: pytest.MonkeyPatch) -> ec.EllipticCurvePrivateKey:
    """The key that the next certificate is for, so that the test knows it."""
    made = ec.generate_private_key(ec.SECP256R1())
    monkeypatch.setattr(of_tls, "new_key", lambda kind: made)
    return made


def pem(key: Any, form: PrivateFormat = PrivateFormat.PKCS8) -> bytes:
    found: bytes = key.private_bytes(Encoding.PEM, form, NoEncryption())
    return found


def workflow(pki: Pki, step: str, grant: str = CLIENT, *, role: str = "client", timeout: str = "60s") -> str:
    return f"""\
version: 1
name: certificates
agent: tester
inputs: {{ host: {{ type: string, default: a }} }}
steps:
  one:
    timeout: {timeout}
    grants:
      tls: {{ kind: certificate, mount: {pki.mount}, role: {role}, {grant} }}
{step}
"""


def asking(server: Demanding, more: str = "") -> str:
    return f"""\
    action: http.request
    with: {{ url: "{server.url}/", ca: "{server.ca}", certificate: tls {more} }}
    outputs: [body]
"""


def program(*command: str) -> str:
    files = "CERTIFICATE: tls.certificate, KEY: tls.key, CA: tls.ca"
    return f"""\
    action: exec
    with: {{ command: {json.dumps(command)}, credentials: {{ files: {{ {files} }} }} }}
    outputs: [stdout]
"""


def lease_of(bench: Bench, outcome: RunOutcome) -> LeaseRecord:
    (found,) = [each for each in bench.history(outcome.run_id) if each.grant_kind == "certificate"]
    return found


def assert_revoked(bench: Bench, pki: Pki, outcome: RunOutcome) -> None:
    """By the ledger, by Vault's own list, and by the list that servers fetch."""
    (serial,) = pki.serials()
    lease = lease_of(bench, outcome)
    assert (lease.state, lease.subject) == (LeaseState.REVOKED, serial)
    assert pki.revoked() == [serial]
    assert pki.revocation_time(serial) > 0
    assert [each.serial_number for each in pki.crl()] == [int(serial.replace(":", ""), 16)]


class TestX509:
    def test_a_request_shows_it_and_when_the_step_is_over_the_server_refuses_it(
        self, bench: Bench, pki: Pki, server: Demanding, key: ec.EllipticCurvePrivateKey
    ) -> None:
        outcome = bench.run(workflow(pki, asking(server)))
        assert outcome.exit_code is ExitCode.DONE, outcome
        shown: Any = outcome.outputs["one"]["body"]
        assert shown["subject"] == [[["commonName", HOST]]]
        assert sorted(shown["names"]) == [["DNS", HOST], ["URI", "spiffe://orders/client"]]
        assert_revoked(bench, pki, outcome)
        (serial,) = pki.serials()
        both = pem(key) + pki.certificate(serial).public_bytes(Encoding.PEM)
        assert HOST in server.verdict(both), "it would do, as long as the server does not know"
        server.learn_what_is_revoked()
        assert "revoked" in server.verdict(both)

    def test_without_it_the_server_answers_nobody(self, bench: Bench, pki: Pki, server: Demanding) -> None:
        outcome = bench.run(workflow(pki, asking(server).replace(", certificate: tls", "")))
        assert outcome.exit_code is ExitCode.STEP_FAILED
        assert "certificate required" in outcome.errors["one"].message
        assert_revoked(bench, pki, outcome)

    def test_one_that_has_run_out_is_refused(
        self, bench: Bench, pki: Pki, server: Demanding, key: ec.EllipticCurvePrivateKey
    ) -> None:
        pki.role("client", **ROLE, generate_lease=False)
        signed = pki.vault.write_data(
            f"{pki.mount}/sign/client",
            data={**of_tls.prepare(PLAIN, 1).wish, "ttl": "1s"},
        )["data"]
        both = pem(key) + signed["certificate"].encode()
        wait_for(lambda: "expired" in server.verdict(both), "the certificate to run out")

    def test_its_files_are_the_steps_alone_and_gone_with_it(self, bench: Bench, pki: Pki) -> None:
        look = (
            'for f in "$CERTIFICATE" "$KEY" "$CA"; do stat -c "%a %n" "$f"; head -1 "$f"; done; stat -c %a "${KEY%/*}"'
        )
        outcome = bench.run(workflow(pki, program("/bin/sh", "-c", look)))
        assert outcome.exit_code is ExitCode.DONE, outcome
        lines = str(outcome.outputs["one"]["stdout"]).splitlines()
        assert [line.split()[0] for line in lines[:6:2]] == ["600"] * 3
        assert lines[1:6:2] == [
            "-----BEGIN CERTIFICATE-----",
            "-----BEGIN PRIVATE KEY-----",
            "-----BEGIN CERTIFICATE-----",
        ]
        assert lines[6] == "700"
        paths = [Path(line.split()[1]) for line in lines[:6:2]]
        assert not [path for path in (*paths, paths[0].parent) if path.exists()]
        assert_revoked(bench, pki, outcome)

    def test_certificate_key_and_authority_belong_together(self, bench: Bench, pki: Pki) -> None:
        check = (
            'openssl verify -CAfile "$CA" "$CERTIFICATE" && '
            'test "$(openssl pkey -in "$KEY" -pubout)" = "$(openssl x509 -in "$CERTIFICATE" -noout -pubkey)" '
            "&& echo same"
        )
        outcome = bench.run(workflow(pki, program("/bin/sh", "-c", check)))
        assert str(outcome.outputs["one"]["stdout"]).endswith("OK\nsame\n"), outcome

    def test_a_function_gets_it_as_files_and_as_values(
        self, bench: Bench, pki: Pki, server: Demanding, tmp_path: Path
    ) -> None:
        (tmp_path / "asks.py").write_text(
            "import os, ssl, urllib.request\n"
            "def ask(url, credentials):\n"
            "    context = ssl.create_default_context(cafile=os.environ['CA'])\n"
            "    context.load_cert_chain(os.environ['CERTIFICATE'], os.environ['KEY'])\n"
            "    body = urllib.request.urlopen(url, context=context).read().decode()\n"
            "    return {'same': open(os.environ['KEY']).read() == credentials['tls']['key'], 'body': body}\n"
        )
        step = f"""\
    action: python
    with:
      callable: asks:ask
      path: ["{tmp_path}"]
      arguments: {{ url: "{server.url}/" }}
      files: {{ CERTIFICATE: tls.certificate, KEY: tls.key, CA: tls.ca }}
      connect: [server]
    outputs: [same, body]
"""
        outcome = bench.run(workflow(pki, step), endpoints={**bench.info.endpoints, "server": server.url})
        assert outcome.exit_code is ExitCode.DONE, outcome
        assert outcome.outputs["one"]["same"] is True
        assert HOST in str(outcome.outputs["one"]["body"])
        assert_revoked(bench, pki, outcome)

    def test_its_names_are_bound_for_the_run_and_seen_by_policies(self, bench: Bench, pki: Pki) -> None:
        asked: list[PolicyRequest] = []

        class Watching(AllowAllEngine):
            async def decide(self, request: PolicyRequest) -> Decision:
                asked.append(request)
                return await super().decide(request)

        grant = "names: ['${{ inputs.host }}.orders.example'], usage: [client], ttl: 90s"
        outcome = bench.run(workflow(pki, program("/bin/true"), grant), inputs={"host": "bound"}, policy=Watching())
        assert outcome.exit_code is ExitCode.DONE, outcome
        wanted = {"form": "x509", "names": ["bound.orders.example"], "usage": ["client"], "key": "ecdsa-p256"}
        assert asked[0].as_json()["grants"][0]["parameters"] == wanted  # type: ignore[index,call-overload]
        assert lease_of(bench, outcome).scope["parameters"] == wanted
        assert_revoked(bench, pki, outcome)

    @pytest.mark.parametrize("host", ["*", "a.evil", "a,b", "A", "", "a b"])
    def test_a_value_that_makes_no_name_is_refused_before_anything_is_asked(
        self, bench: Bench, pki: Pki, host: str
    ) -> None:
        grant = "names: ['${{ inputs.host }}'], ttl: 90s"
        outcome = bench.run(workflow(pki, program("/bin/true"), grant), inputs={"host": host})
        assert outcome.exit_code in (ExitCode.STEP_FAILED, ExitCode.REFUSED)
        assert pki.serials() == []
        if host != "a.evil":
            assert "names" in outcome.errors["one"].message
            assert bench.history(outcome.run_id) == []

    def test_a_name_that_the_role_does_not_allow_is_refused_and_nothing_is_signed(self, bench: Bench, pki: Pki) -> None:
        outcome = bench.run(workflow(pki, program("/bin/true"), "names: [a.evil.example], ttl: 90s"))
        assert outcome.exit_code is ExitCode.REFUSED
        assert "a.evil.example not allowed by this role" in outcome.errors["one"].message
        assert lease_of(bench, outcome).state is LeaseState.DENIED
        assert pki.serials() == []

    @pytest.mark.parametrize(
        ("role", "why"),
        [
            ({"server_flag": True}, "usage"),
            ({"client_flag": False}, "usage"),
            ({"code_signing_flag": True}, "usage"),
            ({"key_usage": ["CertSign", "DigitalSignature"]}, "could sign certificates itself"),
            ({"key_usage": []}, "could sign certificates itself"),
            ({"not_after": "9999-12-31T23:59:59Z"}, "Both should not be provided"),
            ({"max_ttl": "20s"}, "issued for"),
            ({"allow_token_displayname": True, "allow_any_name": True}, None),
        ],
    )
    def test_one_that_is_not_as_declared_is_given_to_nobody_and_revoked(
        self, bench: Bench, pki: Pki, role: dict[str, Any], why: str | None
    ) -> None:
        pki.role("client", **{**ROLE, **role})
        outcome = bench.run(workflow(pki, program("/bin/sh", "-c", "exit 9")))
        if why is None:
            assert outcome.exit_code is ExitCode.STEP_FAILED, "what a role adds to no certificate makes no difference"
        else:
            assert outcome.exit_code is ExitCode.REFUSED, outcome
            assert why in outcome.errors["one"].message
        if "not_after" in role:
            assert pki.serials() == []
        else:
            assert_revoked(bench, pki, outcome)

    def test_one_without_a_lease_is_given_to_nobody_and_not_called_revoked(self, bench: Bench, pki: Pki) -> None:
        pki.role("client", **ROLE, generate_lease=False)
        outcome = bench.run(workflow(pki, program("/bin/true")))
        assert outcome.exit_code is ExitCode.REFUSED
        assert "without a lease" in outcome.errors["one"].message
        lease = lease_of(bench, outcome)
        assert lease.state is LeaseState.ENDED
        assert pki.revoked() == []

    def test_a_step_may_have_what_it_declares_signed_and_nothing_else(self, bench: Bench, pki: Pki) -> None:
        from orchestrator.grants.scope import Scope
        from orchestrator.provision.vault.step_policies import step_policy

        said = {**PLAIN, "names": [HOST, "b.orders.example"]}
        scope = Scope("tls", "certificate", f"{pki.mount}/sign/client", 90, parameters=said)
        bench.vault.sys.create_or_update_policy("certificate-under-test", step_policy([scope]))
        made = bench.vault.auth.token.create(policies=["certificate-under-test"], no_default_policy=True, ttl="60s")
        token = hvac.Client(bench.info.vault_address, token=made["auth"]["client_token"])

        def status(path: str, **changes: Any) -> int:
            wish = {**of_tls.prepare(said, 60).wish, **changes}
            wish = {name: value for name, value in wish.items() if value is not None}
            where = f"{token.url}/v1/{pki.mount}/{path}"
            return httpx.post(where, json=wish, headers={"X-Vault-Token": token.token}).status_code

        assert status("sign/client") == 200
        for changes in (
            {"common_name": "c.orders.example"},
            {"alt_names": "c.orders.example"},
            {"uri_sans": "spiffe://orders/other"},
            {"ip_sans": "127.0.0.1"},
            {"exclude_cn_from_sans": False},
            {"other_sans": "1.2.3;UTF8:x"},
            {"alt_names": None},
        ):
            assert status("sign/client", **changes) == 403, changes
        for path in ("issue/client", "sign-verbatim/client", "revoke", "root/sign-intermediate"):
            assert status(path) == 403, path
        bench.vault.sys.revoke_prefix(f"{pki.mount}/")

    def test_one_that_ends_before_its_step_is_issued_anew_and_both_are_revoked(self, bench: Bench, pki: Pki) -> None:
        grant = CLIENT.replace("ttl: 90s", "ttl: 12s, on_expiry: reissue, overlap: 1s")
        new = '[ "$(cat "$TLS")" = "$old" ] || { echo new; exit 0; }'
        wait = f'old=$(cat "$TLS"); for i in $(seq 300); do {new}; sleep 0.1; done'
        step = f"""\
    action: exec
    with: {{ command: {json.dumps(["/bin/sh", "-c", wait])}, credentials: {{ files: {{ TLS: tls }} }} }}
    outputs: [stdout]
"""
        outcome = bench.run(workflow(pki, step, grant))
        assert outcome.exit_code is ExitCode.DONE, outcome
        assert outcome.outputs["one"]["stdout"] == "new\n"
        assert len(pki.serials()) == 2
        assert sorted(pki.revoked()) == sorted(pki.serials())

    def test_one_in_its_last_seconds_is_not_called_revoked_since_vault_revokes_it_no_more(
        self, bench: Bench, pki: Pki
    ) -> None:
        outcome = bench.run(workflow(pki, program("/bin/sleep", "30"), CLIENT.replace("90s", "3s")))
        assert outcome.exit_code is ExitCode.STEP_FAILED
        assert "ends before the step does" in outcome.errors["one"].message
        lease, (serial,) = lease_of(bench, outcome), pki.serials()
        assert (lease.state, pki.revocation_time(serial)) == (LeaseState.ENDED, 0)
        assert lease.expires_at is not None
        assert abs(lease.expires_at - pki.certificate(serial).not_valid_after_utc) < timedelta(seconds=3)

    @pytest.mark.parametrize("kind", ["rsa-2048", "rsa-3072"])
    def test_a_key_of_rsa(self, bench: Bench, pki: Pki, kind: str) -> None:
        outcome = bench.run(workflow(pki, program("/bin/true"), f"{CLIENT}, key: {kind}"))
        assert outcome.exit_code is ExitCode.DONE, outcome
        (serial,) = pki.serials()
        found: Any = pki.certificate(serial).public_key()
        assert f"rsa-{found.key_size}" == kind

    def test_the_key_is_nowhere_but_with_the_step(
        self, bench: Bench, pki: Pki, server: Demanding, key: ec.EllipticCurvePrivateKey
    ) -> None:
        for step in (asking(server), program("/bin/sh", "-c", "test -s $KEY"), program("/bin/sh", "-c", "exit 3")):
            bench.run(workflow(pki, step))
        leaked = bench.run(workflow(pki, program("/bin/sh", "-c", "cat $KEY >&2; exit 3")))
        told = leaked.errors["one"].message
        returned = bench.run(workflow(pki, program("/bin/sh", "-c", "base64 -w0 $KEY")))
        assert "contains a secret" in returned.errors["one"].message
        ours = f"orchestrator-private-{os.getpid()}-"  # other sessions on this machine have folders there, too
        assert [name for name in os.listdir("/dev/shm") if name.startswith(ours)] == []
        assert found_in(bench, key, told) == []
        (bench.directory / "escaped").write_text(base64.b64encode(pem(key)).decode())
        assert len(found_in(bench, key, pem(key).decode())) == 2, "what looks for it finds it"


PLAIN: dict[str, Any] = {
    "form": "x509",
    "usage": ["client"],
    "key": "ecdsa-p256",
    "common_name": HOST,
    "names": [HOST],
    "uris": ["spiffe://orders/client"],
}


def found_in(bench: Bench, key: Any, *texts: str, form: PrivateFormat = PrivateFormat.PKCS8) -> list[str]:
    """Where the key is, in any form: in what was written below the test's and the servers' folders, and in texts."""
    der = pem(key, form)
    body = b"".join(der.splitlines()[1:-1])
    raw = base64.b64decode(body)
    secret = raw[36:68] if form is PrivateFormat.PKCS8 else key.private_bytes_raw()
    forms = [*der.splitlines()[1:-1], body, raw, secret, secret.hex().encode(), base64.b64encode(der)[:100]]
    found = [text for text in texts if any(each in text.encode() for each in forms)]
    for folder in (bench.directory, bench.info.directory):
        for file in Path(folder).rglob("*"):
            if file.is_file() and "pgdata" not in file.parts and any(each in file.read_bytes() for each in forms):
                found.append(str(file))
    return found


TOOL = """\
version: 1
name: certificates_handed_over
task: { duration: 10m }
tools:
  identity:
    description: A client certificate of the task's own.
    call: { host: { type: string, pattern: "[a-z]{1,9}" } }
    grants:
      tls:
        kind: certificate
        mount: MOUNT
        role: client
        common_name: "${{ call.host }}.orders.example"
        names: ["${{ call.host }}.orders.example"]
        ttl: 60s
    hand_over: tls
"""


async def test_an_agent_that_is_handed_one_can_show_it_until_it_gives_it_back(
    bench: Bench, pki: Pki, server: Demanding
) -> None:
    text = TOOL.replace("MOUNT", pki.mount)
    bench.install(loaded_task(text).workflow)
    async with open_desk(bench, text) as desk:
        task = await desk.open(AGENT, "certificates_handed_over", {})
        got = (await desk.call(AGENT, task.task_id, "identity", {"host": "agent"}, "k1")).handed
        assert got is not None
        fields = {name: value.reveal() for name, value in got.credential.fields.items()}
        assert set(fields) == {"certificate", "key", "ca", "serial"}
        both = (fields["key"] + fields["certificate"]).encode()
        assert "agent.orders.example" in await asyncio.to_thread(server.verdict, both)
        assert got.credential.ttl <= 60
        assert pki.revoked() == []
        assert await desk.give_back(AGENT, got.lease.lease_id)
        assert pki.revoked() == [fields["serial"]]
        server.learn_what_is_revoked()
        assert "revoked" in await asyncio.to_thread(server.verdict, both)


class TestSsh:
    @pytest.fixture
    def mount(self, bench: Bench) -> Iterator[str]:
        name = f"ssh-{os.urandom(3).hex()}"
        vault = bench.vault
        vault.sys.enable_secrets_engine("ssh", path=name)
        vault.write_data(f"{name}/config/ca", data={"generate_signing_key": True, "key_type": "ed25519"})
        self.role(bench, name)
        yield name
        vault.sys.disable_secrets_engine(name)

    def role(self, bench: Bench, mount: str, **changes: Any) -> None:
        wanted = {
            "key_type": "ca",
            "allow_user_certificates": True,
            "allowed_users": "deploy,ops",
            "allowed_extensions": "permit-pty",
            "default_extensions": {},
            "max_ttl": "1h",
        }
        bench.vault.write_data(f"{mount}/roles/login", data={**wanted, **changes})

    def text(
        self, mount: str, command: str, more: str = "principals: [deploy], extensions: [permit-pty], ttl: 90s"
    ) -> str:
        return f"""\
version: 1
name: ssh-certificates
agent: tester
steps:
  one:
    action: exec
    grants:
      login: {{ kind: certificate, mount: {mount}, role: login, {more} }}
    with:
      command: {json.dumps(["/bin/sh", "-c", command])}
      credentials: {{ files: {{ KEY: login.key, CERTIFICATE: login.certificate }} }}
    outputs: [stdout]
"""

    def test_it_says_what_is_declared_and_ends_by_itself(self, bench: Bench, mount: str) -> None:
        look = 'ssh-keygen -L -f "$CERTIFICATE"; ssh-keygen -y -P "" -f "$KEY"'
        outcome = bench.run(self.text(mount, look))
        assert outcome.exit_code is ExitCode.DONE, outcome
        told = str(outcome.outputs["one"]["stdout"])
        assert "user certificate" in told
        assert re.search(r"Principals: *\n *deploy\n", told)
        assert re.search(r"Critical Options: \(none\)\n *Extensions: *\n *permit-pty\n", told)
        lease = lease_of(bench, outcome)
        assert lease.state is LeaseState.ENDED, "nobody can revoke it, so nobody says so"
        assert lease.expires_at is not None
        assert lease.subject.startswith("serial ")

    @pytest.mark.parametrize(
        ("grant", "why"),
        [
            ("principals: [root], ttl: 90s", "root is not a valid value"),
            ("principals: [ops], extensions: [permit-x], ttl: 90s", "permit-x"),
            ("principals: [ops], ttl: 90s, __", "larger than maximum"),
        ],
    )
    def test_what_the_role_does_not_allow_is_refused(self, bench: Bench, mount: str, grant: str, why: str) -> None:
        if grant.endswith("__"):
            self.role(bench, mount, max_ttl="20s")
            grant = grant.removesuffix(", __")
        outcome = bench.run(self.text(mount, "true", grant))
        assert outcome.exit_code is ExitCode.REFUSED
        assert why in outcome.errors["one"].message
        assert lease_of(bench, outcome).state is LeaseState.DENIED

    @pytest.mark.parametrize(
        ("role", "why"),
        [
            ({"default_extensions": {"permit-pty": "", "permit-port-forwarding": ""}}, "extensions"),
            ({"default_critical_options": {"force-command": "date"}}, None),
        ],
    )
    def test_one_that_is_not_as_declared_is_given_to_nobody(
        self, bench: Bench, mount: str, role: dict[str, Any], why: str | None
    ) -> None:
        self.role(bench, mount, **role)
        outcome = bench.run(self.text(mount, "exit 9", "principals: [deploy], ttl: 90s"))
        if why is None:
            assert outcome.exit_code is ExitCode.STEP_FAILED, "a role may limit it further"
        else:
            assert outcome.exit_code is ExitCode.REFUSED, outcome
            assert why in outcome.errors["one"].message
        assert lease_of(bench, outcome).state is LeaseState.ENDED

    def test_the_key_is_nowhere_but_with_the_step(
        self, bench: Bench, mount: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        key = Ed25519PrivateKey.generate()
        monkeypatch.setattr(of_ssh, "new_key", lambda: key)
        outcome = bench.run(self.text(mount, "cat $KEY >&2; exit 3"))
        assert outcome.exit_code is ExitCode.STEP_FAILED
        assert found_in(bench, key, outcome.errors["one"].message, form=PrivateFormat.OpenSSH) == []
