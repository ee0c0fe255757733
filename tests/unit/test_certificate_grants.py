"""The language of certificate grants, what policies see of them, and what the step's policy lets be signed."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError
from ruamel.yaml import YAML

from orchestrator.actions.catalog import catalog
from orchestrator.errors import InvalidExpression
from orchestrator.grants.certificate import checked_certificate
from orchestrator.grants.scope import Scope, scope_from_json
from orchestrator.planning.lint import lint
from orchestrator.planning.requests import bind, is_bound, scopes_of
from orchestrator.provision.certificates import CertificateRoles, check_certificates
from orchestrator.provision.declarations import Declarations
from orchestrator.provision.vault.step_policies import step_policy
from orchestrator.workflow.loader import LoadedWorkflow, load_text
from orchestrator.workflow.problems import InvalidWorkflow

ROOT = Path(__file__).parents[2]
DOCUMENT = ROOT / "docs" / "certificates.md"
FILES = "{ command: [/bin/true], credentials: { files: { C: tls.certificate, K: tls.key } } }"


def loaded(grant: str, *, action: str = "exec", given: str = FILES) -> LoadedWorkflow:
    text = f"""\
version: 1
name: w
agent: a
inputs: {{ host: {{ type: string }} }}
steps:
  one:
    action: {action}
    timeout: 60s
    grants:
      tls: {{ kind: certificate, role: client, {grant} }}
    with: {given}
"""
    return load_text(text, filename="w.yaml", actions=catalog)


def scope_of(grant: str) -> Scope:
    return scopes_of(loaded(grant).workflow, "one")[0]


def messages(grant: str, **more: str) -> str:
    with pytest.raises(InvalidWorkflow) as caught:
        loaded(grant, **more)
    return "\n".join(f"{each.line}:{each.column} {each.message}" for each in caught.value.problems)


def test_what_it_says_is_the_same_however_it_was_written() -> None:
    scope = scope_of("common_name: a.example, names: [b.example, a.example, b.example], uris: ['spiffe://x/y']")
    assert scope.resource == "pki/sign/client"
    assert scope.parameters == {
        "form": "x509",
        "common_name": "a.example",
        "names": ["a.example", "b.example"],
        "uris": ["spiffe://x/y"],
        "usage": ["client"],
        "key": "ecdsa-p256",
    }
    assert scope_from_json(json.loads(json.dumps(scope.as_json()))) == scope
    assert 'names ["a.example", "b.example"]' in scope.describe()
    ssh = scope_of("principals: [ops, deploy], mount: ssh-prod")
    assert (ssh.resource, ssh.parameters) == (
        "ssh-prod/sign/client",
        {"form": "ssh", "principals": ["deploy", "ops"], "extensions": []},
    )
    assert scope_of("principals: [ops]").resource == "ssh/sign/client"


@pytest.mark.parametrize(
    ("grant", "message"),
    [
        ("ttl: 90s", "a certificate says who it is for"),
        ("names: ['*.example']", "without `*`"),
        ("names: [A.example]", "small letters"),
        ("names: [a..example]", "host name"),
        ("names: ['a,b.example']", "host name"),
        ("names: [größe.example]", "xn--"),
        ("common_name: 'a,b'", "common name"),
        ("common_name: '*'", "common name"),
        ("uris: [orders]", "absolute"),
        ("uris: ['spiffe://a,spiffe://b']", "commas"),
        ("principals: ['a,root']", "principal"),
        ("principals: ['*']", "principal"),
        ("principals: [a], names: [a.example]", "these belong to X.509, not to `principals`: `names`"),
        ("principals: [a], on_expiry: reissue", "no lease"),
        ("names: [a.example], extensions: [permit-pty]", "belong to `principals`"),
        ("names: [a.example], usage: []", "at least 1"),
        ("names: [a.example], usage: [signing]", "client"),
        ("names: [a.example], key: rsa-1024", "ecdsa-p256"),
        ("names: ['${{ inputs.nothing }}']", "there is no input `nothing`"),
        ("names: [a.example], mount: '${{ inputs.host }}'", "an expression has no effect here"),
    ],
)
def test_what_is_wrong_is_told_at_its_place(grant: str, message: str) -> None:
    found = messages(grant)
    assert message in found
    assert "10:" in found


@pytest.mark.parametrize(
    ("action", "given"),
    [
        ("exec", FILES),
        ("exec", "{ command: [/bin/true], credentials: { env: { K: tls.key } } }"),
        ("python", "{ callable: 'json:dumps', files: { K: tls.key } }"),
        ("http.request", "{ url: 'https://a.example', certificate: tls }"),
    ],
)
def test_actions_that_take_it(action: str, given: str) -> None:
    assert lint(loaded("names: [a.example]", action=action, given=given)) == []


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("{ url: 'https://a.example', bearer: tls }", "is of kind certificate"),
        ("{ url: 'https://a.example', auth: { header: X-A, value: tls.key } }", "is of kind certificate"),
        ("{ url: 'https://a.example', certificate: other }", "no grant `other`"),
        ("{ url: 'https://a.example', certificate: '${{ inputs.host }}' }", "takes no expression"),
        ("{ url: 'http://localhost', certificate: tls }", "`certificate` belongs to https"),
    ],
)
def test_a_request_takes_it_as_a_certificate_only(given: str, message: str) -> None:
    assert message in messages("names: [a.example]", action="http.request", given=given)


def test_a_short_life_needs_another_one_in_its_place() -> None:
    assert any("may end after 20s" in each.message for each in lint(loaded("names: [a.example], ttl: 20s")))
    whole = "{ command: [/bin/true], credentials: { files: { C: tls } } }"
    assert lint(loaded("names: [a.example], ttl: 20s, on_expiry: reissue", given=whole)) == []


def test_values_are_bound_and_looked_at_once_more() -> None:
    declared = scopes_of(loaded("names: ['${{ inputs.host }}.example', a.example]").workflow, "one")
    assert is_bound(declared)
    (bound,) = bind(declared, {"inputs": {"host": "b"}})
    assert bound.parameters is not None
    assert bound.parameters["names"] == ["a.example", "b.example"]
    for host in ("*", "b,c", "B", "b c", "b\n", "", None, ["b"], "b" * 300):
        with pytest.raises(InvalidExpression):
            bind(declared, {"inputs": {"host": host}})


@pytest.mark.parametrize("member", ["common_name", "names", "uris", "principals"])
@given(text=st.text(max_size=30))
def test_no_value_becomes_two_or_a_pattern(member: str, text: str) -> None:
    said: dict[str, Any] = {member: text if member == "common_name" else [text]}
    try:
        found = checked_certificate(said)
    except ValueError:
        return
    assert found == said
    assert not set(text) & set(",*\n\r\0\"'\\$ \t") - ({" "} if member == "common_name" else {"*", "$", "'"})


def test_the_policy_pins_what_is_said_and_leaves_open_what_is_made() -> None:
    policy = step_policy(
        [scope_of("common_name: a.example, names: [a.example, b.example], uris: ['x://${{ inputs.host }}']")]
    )
    assert policy.partition("\n")[2] == (
        'path "pki/sign/client" {\n'
        '  capabilities = ["update"]\n'
        '  required_parameters = ["format", "exclude_cn_from_sans", "common_name", "alt_names", "uri_sans", '
        '"csr", "ttl"]\n'
        "  allowed_parameters = {\n"
        '    "format" = ["pem"]\n'
        '    "exclude_cn_from_sans" = [true]\n'
        '    "common_name" = ["a.example"]\n'
        '    "alt_names" = ["a.example,b.example"]\n'
        '    "uri_sans" = []\n'
        '    "csr" = []\n'
        '    "ttl" = []\n'
        "  }\n"
        "}\n"
    )
    ssh = step_policy([scope_of("principals: [deploy]")])
    assert '"valid_principals" = ["deploy"]' in ssh
    assert '"cert_type" = ["user"]' in ssh


def test_the_workflows_and_declarations_of_the_page_are_valid() -> None:
    found = re.findall(r"```yaml\n(.*?)```", DOCUMENT.read_text(), re.DOTALL)
    workflows = [text for text in found if text.startswith("version")]
    (declared,) = [text for text in found if text not in workflows]
    parsed = YAML(typ="safe", pure=True).load(declared)
    base = YAML(typ="safe", pure=True).load((ROOT / "vault" / "declarations.yaml").read_text())
    roles = Declarations.model_validate(
        {**base, "certificates": parsed["certificates"], "mounts": {**base["mounts"], **parsed["mounts"]}}
    ).certificates
    for text in workflows:
        check_certificates([load_text(text, filename="w.yaml", actions=catalog).workflow], roles)
    assert workflows


def test_a_role_that_is_declared_with_an_unknown_word_is_told() -> None:
    adapter: TypeAdapter[Any] = TypeAdapter(CertificateRoles)
    for wrong in ({"wildcards": True}, {"principals": []}, {"principals": ["a"], "domains": ["b"]}, {"usage": []}):
        with pytest.raises(ValidationError):
            adapter.validate_python({"client": wrong})
    assert adapter.validate_python({"client": {}})["client"].payload()["allowed_domains"] == []
