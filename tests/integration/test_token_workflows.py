"""Tokens whose claims the server itself fixes: nobody, not even the runtime, can have other ones signed."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import hvac
import hvac.exceptions
import pytest
from bench import Bench
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from joserfc import jwt
from joserfc.jwk import KeySet

from orchestrator.actions.catalog import catalog
from orchestrator.errors import ExitCode, UsageError
from orchestrator.ledger.ids import new_lease_id
from orchestrator.ledger.lease import LeaseState
from orchestrator.planning.requests import scopes_of
from orchestrator.proof.examine import other_paths
from orchestrator.provision.declarations import TransitKey
from orchestrator.provision.vault.token_workflows import signer_name, token_workflows
from orchestrator.vault.jwks import jwks_from_transit
from orchestrator.workflow.loader import load_text
from orchestrator.workflow.models.workflow import Workflow

AGENT = 'triage "the \\first" ${x} %{y} Zoë 🔑 \' {{z}}'

TEXT = """
version: 1
name: {name}
agent: {agent}
steps:
  call:
    action: http.request
    grants:
      api: {{ kind: token, profile: workflow, audience: {audience}, scope: [translate] }}
    with:
      method: POST
      url: {url}/v1/translate
      bearer: api
      json: {{ target: en, messages: [ {{ id: 1, kind: complaint, comment: 'Guten Tag' }} ] }}
    outputs: [status]
    timeout: 20s
"""
TTL = 50
"""Of the step's token: its time-out and the margin."""


def text_of(bench: Bench, name: str = "signed_inside", *, agent: str = AGENT, audience: str = "translation-api") -> str:
    agent = json.dumps(agent, ensure_ascii=False)
    return TEXT.format(name=name, agent=agent, url=bench.info.translation_url, audience=audience)


def workflow_of(text: str) -> Workflow:
    return load_text(text, filename="test.yaml", actions=catalog).workflow


@contextmanager
def provisioned(bench: Bench, *texts: str) -> Iterator[None]:
    with bench.provisioning([workflow_of(text) for text in texts]) as work:
        work.apply(work.plan())
        assert work.plan() == []
    yield


def child(bench: Bench, name: str = "signed_inside") -> hvac.Client:
    """What a stolen runtime can have: the token of the step, with a login of the runtime's own."""
    runtime = hvac.Client(bench.info.vault_address)
    runtime.auth.approle.login(bench.provisioned.role_id, bench.provisioned.secret_id.reveal())
    made = runtime.adapter.post(f"/v1/auth/token/create/step.{name}.call", json={"ttl": "60s"})
    return hvac.Client(bench.info.vault_address, token=made["auth"]["client_token"])


def execute(client: hvac.Client, wish: dict[str, Any], name: str = "signed_inside") -> dict[str, Any]:
    answer = client.adapter.post(f"/v1/sys/workflows/execute/step/{name}/call/api", json=wish)
    data: dict[str, Any] = answer["data"]
    return data


def verified(bench: Bench, data: dict[str, Any]) -> dict[str, Any]:
    """The claims, after the signature was checked with the public key."""
    keys = jwks_from_transit("orchestrator-token", bench.vault.read("transit/keys/orchestrator-token"))
    token = f"{data['input']}.{data['signature'].rpartition(':')[2]}"
    decoded = jwt.decode(token, KeySet.import_key_set(keys), algorithms=["ES256"])  # type: ignore[arg-type]
    assert decoded.header["typ"] == "at+jwt"
    return dict(decoded.claims)


def test_a_run_is_served_with_one_and_the_lease_ends_with_the_step(bench: Bench) -> None:
    text = text_of(bench)
    with provisioned(bench, text):
        outcome = bench.run(text, install=False)
    assert outcome.exit_code is ExitCode.DONE, outcome.reason
    (lease,) = [each for each in bench.history(outcome.run_id) if each.grant == "api"]
    assert (lease.state, lease.resource) == (LeaseState.ENDED, "sys/workflows/execute/step/signed_inside/call/api")
    assert lease.ttl <= 20, "no longer than the attempt, though the server would give more"


def test_every_claim_is_the_declared_one_whatever_the_texts_hold(bench: Bench) -> None:
    with provisioned(bench, text_of(bench)):
        client, jti = child(bench), new_lease_id()
        before = int(time.time())
        claims = verified(bench, execute(client, {"jti": jti, "seconds": 9}))
    times = {name: claims.pop(name) for name in ("iat", "nbf", "exp")}
    assert claims == {
        "iss": bench.info.issuer_url,
        "sub": AGENT,
        "aud": "translation-api",
        "client_id": "signed_inside",
        "scope": "translate",
        "jti": jti,
    }
    assert before - 1 <= times["iat"] <= time.time() + 1
    assert (times["exp"] - times["iat"], times["iat"] - times["nbf"]) == (9, 5)


@pytest.mark.parametrize("seconds", [0, -1, TTL + 1, 10**9, 2**62, "315360000"])
def test_nobody_has_one_signed_for_longer(bench: Bench, seconds: Any) -> None:
    with provisioned(bench, text_of(bench)):
        claims = verified(bench, execute(child(bench), {"jti": new_lease_id(), "seconds": seconds}))
    assert claims["exp"] - claims["iat"] == TTL


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    wish=st.fixed_dictionaries(
        {"jti": st.one_of(st.text(), st.just('x","aud":"evil'), st.integers(), st.lists(st.text()), st.none())},
        optional={"seconds": st.one_of(st.integers(), st.floats(), st.text(), st.lists(st.integers()))},
    )
)
def test_no_other_id_and_no_other_kind_of_value_is_taken(bench: Bench, wish: dict[str, Any]) -> None:
    with provisioned(bench, text_of(bench)), pytest.raises(hvac.exceptions.VaultError):
        execute(child(bench), json.loads(json.dumps(wish, allow_nan=True).replace("NaN", "0").replace("Infinity", "0")))


def test_neither_the_step_nor_the_runtime_reaches_what_signs(bench: Bench) -> None:
    with provisioned(bench, text_of(bench), text_of(bench, "other_one", audience="billing-api")):
        step = child(bench)
        runtime = hvac.Client(bench.info.vault_address)
        runtime.auth.approle.login(bench.provisioned.role_id, bench.provisioned.secret_id.reveal())
        signer = signer_name("orchestrator-token")
        assert bench.vault.read(f"auth/approle/role/{signer}")["data"]["token_policies"] == ["sign/orchestrator-token"]
        for client in (step, runtime):
            for method, path in (
                ("post", "transit/sign/orchestrator-token"),
                ("post", "transit/sign/orchestrator-token/sha2-256"),
                ("get", "sys/workflows/manage/step/signed_inside/call/api"),
                ("post", "sys/workflows/manage/step/signed_inside/call/api"),
                ("post", "sys/workflows/trace/step/signed_inside/call/api"),
                ("post", "sys/workflows/execute/step/other_one/call/api"),
                ("post", f"auth/approle/role/{signer}/secret-id"),
                ("get", f"auth/approle/role/{signer}"),
                ("post", f"auth/token/create/{signer}"),
            ):
                with pytest.raises(hvac.exceptions.Forbidden):
                    client.adapter.request(method, f"/v1/{path}", json={"jti": new_lease_id(), "seconds": 5})
        for more in ({"aud": "billing-api"}, {"scope": "admin"}, {"exp": 1}):
            with pytest.raises(hvac.exceptions.Forbidden):
                execute(step, {"jti": new_lease_id(), "seconds": 5, **more})


def test_a_token_of_what_was_installed_for_an_earlier_workflow_is_refused(bench: Bench) -> None:
    with provisioned(bench, text_of(bench)):
        outcome = bench.run(text_of(bench, agent="somebody-else"), install=False)
    assert outcome.exit_code is ExitCode.REFUSED
    assert "another `sub` than is declared" in outcome.reason


def test_what_is_not_installed_is_refused_at_once(bench: Bench) -> None:
    text = text_of(bench, "not_signed_inside")
    bench.install(workflow_of(text))  # the policy and the token role alone
    outcome = bench.run(text, install=False)
    assert outcome.exit_code is ExitCode.REFUSED, outcome.reason


def test_the_secret_of_the_signer_is_shown_nowhere_and_stays_the_same(bench: Bench) -> None:
    def secret() -> str:
        stored = bench.vault.read("sys/workflows/manage/step/signed_inside/call/api")["data"]["workflow"]
        return str(stored.partition('secret_id = "')[2].partition('"')[0])

    with provisioned(bench, text_of(bench)):
        first = secret()
    changed = text_of(bench, agent="another-agent")
    with bench.provisioning([workflow_of(changed)]) as work:
        (change,) = work.plan()
        assert change.resource == "vault sys/workflows/manage/step/signed_inside/call/api"
        assert len(first) == 36
        assert first not in change.render()
        work.apply([change])
        assert work.plan() == []
    assert secret() == first


def test_what_is_provisioned_for_one_key_leaves_those_of_others_as_they_are(bench: Bench) -> None:
    file = bench.declarations / "declarations.yaml"
    text = file.read_text()
    other = text_of(bench, "other_key").replace("profile: workflow", "profile: workflow, key: orders")
    jti = new_lease_id()
    file.write_text(text.replace("transit_keys:\n", "transit_keys:\n  orders: { type: ecdsa-p256 }\n"))
    try:
        with provisioned(bench, text_of(bench)), provisioned(bench, other):
            assert verified(bench, execute(child(bench), {"jti": jti, "seconds": 9}))["jti"] == jti
            assert "signature" in execute(child(bench, "other_key"), {"jti": jti, "seconds": 9}, "other_key")
            signed = bench.vault.read("sys/policies/acl/sign/orders")["data"]["policy"]
            assert "sign/orders/" in signed
            assert "orchestrator-token" not in signed
    finally:
        file.write_text(text)


def test_a_signer_that_no_workflow_needs_any_more_is_told_and_taken_away_on_request(bench: Bench) -> None:
    login, policy = "auth/approle/role/sign.orchestrator-token", "sys/policies/acl/sign/orchestrator-token"
    with provisioned(bench, text_of(bench)):
        pass
    bench.vault.write_data("auth/approle/role/other", data={"token_policies": ["sign/orchestrator-token"]})
    try:
        with bench.provisioning() as work:
            found = {change.resource: change.kind for change in work.check().changes}
        assert {found[f"vault {path}"] for path in (login, policy, "auth/approle/role/other")} == {"undeclared"}
        with bench.provisioning(prune=True) as work:
            changes = {change.resource: change for change in work.check().changes}
            assert changes["vault auth/approle/role/other"].kind == "undeclared", "somebody made it, a person looks"
            work.apply([changes[f"vault {path}"] for path in (login, policy)])
        assert bench.vault.read(login) is None
        with pytest.raises(hvac.exceptions.VaultError):
            execute(child(bench), {"jti": new_lease_id(), "seconds": 9})
    finally:
        bench.vault.delete("auth/approle/role/other")
    with provisioned(bench, text_of(bench)):
        assert execute(child(bench), {"jti": new_lease_id(), "seconds": 9})


def test_a_workflow_whose_signer_was_locked_out_is_drift_and_mended(bench: Bench) -> None:
    role = "auth/approle/role/sign.orchestrator-token"
    with provisioned(bench, text_of(bench)):
        for accessor in bench.vault.list(f"{role}/secret-id")["data"]["keys"]:
            bench.vault.write_data(f"{role}/secret-id-accessor/destroy", data={"secret_id_accessor": accessor})
    with bench.provisioning([workflow_of(text_of(bench))]) as work:
        (change,) = work.plan()
        assert (change.kind, change.resource) == ("change", "vault sys/workflows/manage/step/signed_inside/call/api")
        assert "does not accept" in change.render()
    with provisioned(bench, text_of(bench)):
        assert execute(child(bench), {"jti": new_lease_id(), "seconds": 9})


def test_a_workflow_that_somebody_changed_or_added_is_drift(bench: Bench) -> None:
    path = "sys/workflows/manage/step/signed_inside/call/api"
    with provisioned(bench, text_of(bench)):
        stored = bench.vault.read(path)["data"]["workflow"]
    bench.vault.write_data(path, data={"workflow": stored.replace("translate", "admin")})
    bench.vault.write_data("sys/workflows/manage/step/evil", data={"workflow": stored})
    try:
        with bench.provisioning([workflow_of(text_of(bench))]) as work:
            found = {change.resource: change.kind for change in work.check().changes}
            assert found[f"vault {path}"] == "change"
            assert found["vault sys/workflows/manage/step/evil"] == "undeclared"
            work.apply(work.plan())
            assert work.plan() == []
    finally:
        bench.vault.delete("sys/workflows/manage/step/evil")


def identity_text(bench: Bench, *, agent: str = AGENT) -> str:
    return text_of(bench, "by_identity", agent=agent).replace("profile: workflow", "profile: identity")


def identity_token(bench: Bench, client: hvac.Client) -> dict[str, Any]:
    """The claims of one, after its signature was checked with the keys that Vault publishes."""
    made = client.adapter.get("/v1/identity/oidc/token/step.by_identity.call.api")["data"]["token"]
    keys = bench.vault.adapter.get("/v1/identity/oidc/.well-known/keys")
    return dict(jwt.decode(made, KeySet.import_key_set(keys), algorithms=["ES256"]).claims)


def test_vaults_identity_engine_fixes_audience_scope_agent_and_life(bench: Bench) -> None:
    with provisioned(bench, identity_text(bench)):
        client = child(bench, "by_identity")
        claims = identity_token(bench, client)
        assert {name: claims[name] for name in ("aud", "scope", "agent", "client_id")} == {
            "aud": "translation-api",
            "scope": "translate",
            "agent": AGENT,
            "client_id": "by_identity",
        }
        assert claims["exp"] - claims["iat"] == TTL
        for method, path in other_paths(
            scopes_of(workflow_of(identity_text(bench)), "call"), "step/by_identity/call", ()
        ):
            with pytest.raises(hvac.exceptions.Forbidden):
                client.adapter.request(method, f"/v1/{path}", json={} if method != "get" else None)
        outcome = bench.run(identity_text(bench), install=False)
    assert outcome.exit_code is ExitCode.STEP_FAILED, "the sample service trusts another issuer"
    (lease,) = [each for each in bench.history(outcome.run_id) if each.grant == "api"]
    assert lease.state is LeaseState.ENDED


def test_an_identity_token_of_an_earlier_workflow_is_refused(bench: Bench) -> None:
    with provisioned(bench, identity_text(bench)):
        outcome = bench.run(identity_text(bench, agent="somebody-else"), install=False)
    assert outcome.exit_code is ExitCode.REFUSED
    assert "another `agent` than is declared" in outcome.reason


def test_a_role_of_the_identity_engine_with_a_name_of_ours_is_told(bench: Bench) -> None:
    with provisioned(bench, identity_text(bench)):
        pass
    bench.vault.write_data("identity/oidc/role/step.evil", data={"key": "orchestrator", "client_id": "x"})
    try:
        with bench.provisioning([workflow_of(identity_text(bench))]) as work:
            assert "vault identity/oidc/role/step.evil" in {change.resource for change in work.check().changes}
    finally:
        bench.vault.delete("identity/oidc/role/step.evil")


def test_an_audience_with_a_key_of_its_own_has_an_issuer_of_its_own(bench: Bench) -> None:
    text = text_of(bench).replace("profile: workflow", "profile: workflow, key: orders")
    workflow = workflow_of(text)
    *_, last = token_workflows([workflow], {"orders": TransitKey()}, "https://i")
    assert "https://i/orders" in last.payload["workflow"]
    with pytest.raises(UsageError, match="not declared"):
        token_workflows([workflow], {}, "https://i")
    elsewhere = text_of(bench).replace("profile: workflow", "profile: workflow, key: orders, mount: mine")
    with pytest.raises(UsageError, match="`orders` of `mine`"):
        token_workflows([workflow_of(elsewhere)], {"orders": TransitKey()}, "https://i")
    with pytest.raises(UsageError, match="is not known"):
        token_workflows([workflow], {"orders": TransitKey()}, None)


def test_the_proof_tries_what_the_step_must_not_sign(bench: Bench) -> None:
    ways = other_paths(scopes_of(workflow_of(text_of(bench)), "call"), "step/signed_inside/call", ())
    with provisioned(bench, text_of(bench)):
        client = child(bench)
        for method, path in ways:
            with pytest.raises(hvac.exceptions.Forbidden):
                client.adapter.request(method, f"/v1/{path}", json={})
    assert ("post", "sys/workflows/trace/step/signed_inside/call/api") in ways
