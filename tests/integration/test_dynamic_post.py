"""`dynamic` grants that are asked for with POST, on a real engine that issues leases so."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import hvac
import pytest
from bench import Bench
from pki import Pki, pki_of

from orchestrator.errors import ExitCode
from orchestrator.ledger.lease import LeaseState
from orchestrator.provision.vault.parameters import parameters_rule

HOST = "a.orders.example"


@pytest.fixture
def pki(bench: Bench) -> Iterator[Pki]:
    with pki_of(bench.vault) as made:
        made.role("issue", key_type="ec", key_bits=256)
        yield made


def workflow(pki: Pki, parameters: str, *, command: str = '["/bin/true"]') -> str:
    return f"""\
version: 1
name: dynamic-parameters
agent: tester
inputs: {{ host: {{ type: string, default: a }} }}
steps:
  one:
    action: exec
    timeout: 60s
    grants:
      tls: {{ kind: dynamic, path: {pki.mount}/issue/issue, ttl: 90s, parameters: {parameters} }}
    with:
      command: {command}
      credentials: {{ files: {{ CERTIFICATE: tls.certificate }} }}
      output: text
    outputs: [stdout]
"""


def child(bench: Bench, policy: str) -> hvac.Client:
    """A token that has this policy alone."""
    bench.vault.sys.create_or_update_policy("parameters-under-test", policy)
    made = bench.vault.auth.token.create(policies=["parameters-under-test"], no_default_policy=True, ttl="60s")
    return hvac.Client(bench.info.vault_address, token=made["auth"]["client_token"])


def status(client: hvac.Client, path: str, **given: Any) -> int:
    answer = httpx.post(f"{client.url}/v1/{path}", json=given, headers={"X-Vault-Token": client.token})
    return answer.status_code


def test_what_is_issued_with_parameters_is_what_was_asked_and_is_revoked(bench: Bench, pki: Pki) -> None:
    parameters = "{ common_name: '${{ inputs.host }}.orders.example', ttl: 90s, exclude_cn_from_sans: true }"
    outcome = bench.run(workflow(pki, parameters, command="['/bin/sh', '-c', 'grep -c BEGIN $CERTIFICATE']"))
    assert outcome.exit_code is ExitCode.DONE, outcome
    (serial,) = pki.serials()
    lease, _ = sorted(bench.history(outcome.run_id), key=lambda each: each.grant == "(step token)")
    assert lease.state is LeaseState.REVOKED
    assert lease.scope["parameters"] == {"common_name": HOST, "ttl": "90s", "exclude_cn_from_sans": True}
    assert outcome.outputs["one"]["stdout"] == "1\n"
    assert pki.certificate(serial).subject.rfc4514_string() == f"CN={HOST}"
    assert pki.revoked() == [serial]
    assert pki.leases() == []


def test_a_refusal_of_the_engine_is_told_and_nothing_is_issued(bench: Bench, pki: Pki) -> None:
    outcome = bench.run(workflow(pki, "{ common_name: a.evil.example, ttl: 90s }"))
    assert outcome.exit_code is ExitCode.REFUSED
    assert "not allowed by this role" in outcome.errors["one"].message
    assert pki.serials() == []


def test_the_steps_token_may_send_the_declared_parameters_and_nothing_else(bench: Bench, pki: Pki) -> None:
    path = f"{pki.mount}/issue/issue"
    declared = {"common_name": HOST, "ttl": "90s", "exclude_cn_from_sans": True, "alt_names": "${{ inputs.host }}"}
    token = child(bench, parameters_rule(path, declared))
    sent = {**declared, "alt_names": "b.orders.example"}
    assert status(token, path, **sent) == 200
    for change in (
        {"common_name": "b.orders.example"},
        {"ttl": "3600s"},
        {"exclude_cn_from_sans": False},
        {"other_sans": "1.2;UTF8:x"},
        {"ttl": None},
    ):
        assert status(token, path, **{**sent, **change}) == 403, change
    for missing in sent:
        assert status(token, path, **{name: value for name, value in sent.items() if name != missing}) == 403, missing
    assert status(token, f"{pki.mount}/sign/issue", **sent) == 403
    bench.vault.sys.revoke_prefix(f"{pki.mount}/")  # what the test itself asked for


@pytest.mark.parametrize(
    "text",
    [
        'a"b',
        "a\\b",
        "a\\nb",
        "a\nb",
        "größe",
        "a'b",
        "a b",
        "${",
        '${ "} ]',
        "a${b}",
        "{{identity.entity.id}}",
        "[x]",
        "#",
        "//",
        "\t",
        "a*b",
        "\u2028",
        "𝄞",
        "",
    ],
)
def test_any_constant_is_compared_as_it_is(bench: Bench, text: str) -> None:
    rule = parameters_rule("cubbyhole/x", {"a": text})
    token = child(bench, rule.replace('["update"]', '["create", "update"]'))
    assert status(token, "cubbyhole/x", a=text) == 204
    if "${" not in text:
        assert status(token, "cubbyhole/x", a=f"{text}x") == 403
    assert status(token, "cubbyhole/x", b=text) == 403
