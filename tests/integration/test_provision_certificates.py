"""Roles that sign certificates: installed as declared, found when somebody changes them, and no wider than they say."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import hvac
import pytest
from bench import Bench
from hvac.exceptions import InvalidRequest

from orchestrator.actions.catalog import catalog
from orchestrator.credentials.issuers.certificate import ssh, x509
from orchestrator.errors import ExitCode, UsageError
from orchestrator.workflow.loader import load_text
from orchestrator.workflow.models.workflow import Workflow

DECLARED = """
certificates:
  orders-client:
    mount: pki-declared
    domains: [orders.example]
    subdomains: true
    uris: ["spiffe://orders/*"]
    organization: [Orders]
    max_ttl: 10m
  deploy:
    mount: ssh-declared
    principals: [deploy, ops]
    extensions: [permit-pty]
  plain:
    mount: ssh-declared
    principals: [deploy]
    max_ttl: 2m
"""
TEXT = """\
version: 1
name: provisioned-certificates
agent: tester
steps:
  tls:
    action: exec
    timeout: 30s
    grants: { tls: { kind: certificate, mount: pki-declared, role: orders-client, names: [a.orders.example] } }
    with: { command: [/bin/true], credentials: { files: { C: tls.certificate } } }
  ssh:
    action: exec
    timeout: 30s
    grants: { login: { kind: certificate, mount: ssh-declared, role: deploy, principals: [deploy] } }
    with:
      command: [/bin/sh, -c, 'ssh-keygen -L -f "$C"']
      credentials: { files: { C: login.certificate } }
    outputs: [stdout]
"""


def workflow(text: str = TEXT) -> Workflow:
    return load_text(text, filename="w.yaml", actions=catalog).workflow


@pytest.fixture
def declared(bench: Bench, tmp_path: Path) -> Iterator[Bench]:
    """The bench with these roles declared; the authorities are an admin's, and made when the mounts are there."""
    folder = tmp_path / "declared"
    shutil.copytree(bench.declarations, folder)
    file = folder / "declarations.yaml"
    mounts = "mounts:\n  pki-declared: { type: pki }\n  ssh-declared: { type: ssh }\n"
    file.write_text(file.read_text().replace("mounts:\n", mounts, 1) + DECLARED)
    changed = replace(bench, declarations=folder)
    yield changed
    with bench.provisioning() as work:
        work.apply(work.plan())
    for mount in ("pki-declared", "ssh-declared"):
        bench.vault.sys.disable_secrets_engine(mount)


def install(bench: Bench, text: str = TEXT) -> None:
    with bench.provisioning([workflow(text)]) as work:
        work.apply(work.plan())
    vault = bench.vault
    vault.write_data("pki-declared/root/generate/internal", data={"common_name": "CA", "ttl": "700h", "key_type": "ec"})
    vault.write_data("ssh-declared/config/ca", data={"generate_signing_key": True, "key_type": "ed25519"})


def drift(bench: Bench) -> list[str]:
    with bench.provisioning([workflow()]) as work:
        return [change.resource for change in work.check().changes if "-declared/" in change.resource]


def test_what_was_installed_needs_nothing_more_and_serves(declared: Bench) -> None:
    install(declared)
    assert drift(declared) == []
    outcome = declared.run(TEXT, install=False)
    assert outcome.exit_code is ExitCode.DONE, outcome
    told = str(outcome.outputs["ssh"]["stdout"])
    assert 'Key ID: "token-ssh-' in told, "what sshd logs names the step"
    assert "permit-pty" not in told


@pytest.mark.parametrize(
    ("path", "change"),
    [
        *(
            ("pki-declared/roles/orders-client", change)
            for change in (
                {"allow_any_name": True},
                {"allowed_domains": ["orders.example", "evil.example"]},
                {"allow_wildcard_certificates": True},
                {"allow_ip_sans": True},
                {"allowed_uri_sans": ["*"]},
                {"server_flag": True},
                {"key_usage": ["DigitalSignature", "CertSign"]},
                {"generate_lease": False},
                {"max_ttl": "10h"},
                {"use_csr_sans": True},
                {"enforce_hostnames": False},
            )
        ),
        *(
            ("ssh-declared/roles/deploy", change)
            for change in (
                {"allowed_users": "*"},
                {"allowed_extensions": "*"},
                {"default_extensions": {"permit-port-forwarding": ""}},
                {"allow_host_certificates": True},
                {"allow_user_key_ids": True},
                {"max_ttl": "10h"},
            )
        ),
    ],
)
def test_what_somebody_changes_is_found_and_mended(declared: Bench, path: str, change: dict[str, Any]) -> None:
    install(declared)
    vault = declared.vault
    before = vault.read(path)["data"]
    vault.write_data(path, data={**before, **change})
    assert drift(declared) == [f"vault {path}"]
    with declared.provisioning([workflow()]) as work:
        work.apply(work.plan())
    assert drift(declared) == []
    assert vault.read(path)["data"] == before


def said(**changes: Any) -> dict[str, Any]:
    return {"form": "x509", "usage": ["client"], "key": "ecdsa-p256", **changes}


@pytest.mark.parametrize(
    "asked",
    [
        {"names": ["a.evil.example"]},
        {"names": ["orders.example.evil"]},
        {"uris": ["spiffe://evil/x"]},
        {"common_name": "root"},
        {"names": ["*.orders.example"]},
        {"names": ["localhost"]},
    ],
)
def test_a_declared_role_signs_nothing_else(declared: Bench, asked: dict[str, Any]) -> None:
    install(declared)
    wish = x509.prepare(said(**{"names": [], **asked}), 60).wish
    with pytest.raises(InvalidRequest):
        declared.vault.write_data("pki-declared/sign/orders-client", data=dict(wish))


def test_a_declared_role_signs_no_addresses_and_no_keys_of_other_kinds(declared: Bench) -> None:
    install(declared)
    vault: hvac.Client = declared.vault
    wish = dict(x509.prepare(said(names=["a.orders.example"]), 60).wish)
    for more in ({"ip_sans": "127.0.0.1"}, {"other_sans": "1.2.3.4;UTF8:x"}, {"serial_number": "x"}):
        with pytest.raises(InvalidRequest):
            vault.write_data("pki-declared/sign/orders-client", data={**wish, **more})
    rsa = dict(x509.prepare(said(names=["a.orders.example"], key="rsa-2048"), 60).wish)
    with pytest.raises(InvalidRequest):
        vault.write_data("pki-declared/sign/orders-client", data=rsa)


@pytest.mark.parametrize(
    ("role", "changes"),
    [
        ("deploy", {"valid_principals": "root"}),
        ("deploy", {"extensions": {"permit-port-forwarding": ""}}),
        ("plain", {"extensions": {"permit-pty": ""}}),
        ("plain", {"valid_principals": "ops"}),
        ("deploy", {"cert_type": "host"}),
        ("deploy", {"key_id": "somebody else"}),
    ],
)
def test_a_declared_role_of_ssh_signs_nothing_else(declared: Bench, role: str, changes: dict[str, Any]) -> None:
    install(declared)
    wish = ssh.prepare({"form": "ssh", "principals": ["deploy"], "extensions": []}, 60).wish
    assert declared.vault.write_data(f"ssh-declared/sign/{role}", data=dict(wish))
    with pytest.raises(InvalidRequest):
        declared.vault.write_data(f"ssh-declared/sign/{role}", data={**wish, **changes})


@pytest.mark.parametrize(
    ("grant", "problem"),
    [
        ("role: orders-client, names: [a.orders.example], ttl: 20m", "signs for 600s at most, not for 1200s"),
        ("role: orders-client, names: [a.orders.example], usage: [server]", "signs for the usage client"),
        ("role: orders-client, names: [a.orders.example], key: rsa-2048", "signs keys of ecdsa-p256"),
        ("role: orders-client, principals: [deploy]", "signs X.509"),
    ],
)
def test_a_grant_that_its_role_could_never_give_is_told_before_anything_is_installed(
    declared: Bench, grant: str, problem: str
) -> None:
    text = TEXT.replace("role: orders-client, names: [a.orders.example]", grant)
    with pytest.raises(UsageError, match="orders-client") as caught, declared.provisioning([workflow(text)]):
        pass
    assert problem in caught.value.message
    install(declared)


def test_what_is_declared_wrongly_is_told(declared: Bench) -> None:
    file = declared.declarations / "declarations.yaml"
    install(declared)
    good = file.read_text()
    for wrong in (
        "usage: []",
        "usage: [signing]",
        "key: rsa-1024",
        "wildcards: true",
        json.dumps({"principals": []})[1:-1],
    ):
        file.write_text(good.replace("    organization: [Orders]\n", f"    {wrong}\n"))
        with pytest.raises(UsageError, match="certificates"), declared.provisioning([workflow()]):
            pass
    file.write_text(good)
