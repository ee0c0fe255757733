"""An agent that is known by a token of Vault's own identity engine, whose keys are found by its discovery document."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import hvac
import pytest
from bench import Bench

from orchestrator.agents.authentication import Authentication, CallerRefused
from orchestrator.agents.declared import load_agents
from orchestrator.pep.errors import IssuerUnreachable, Reason, TokenRefused

POLICY = 'path "identity/oidc/token/agents" { capabilities = ["read"] }'


@pytest.fixture
def agent(bench: Bench) -> Iterator[hvac.Client]:
    """Somebody whom Vault knows as an entity, and who may have tokens of the role `agents`."""
    vault = bench.vault
    vault.write_data("identity/oidc/key/agents", data={"algorithm": "ES256", "allowed_client_ids": ["*"]})
    role = {
        "key": "agents",
        "client_id": "orchestrator",
        "ttl": "10m",
        "template": '{"name": {{identity.entity.name}}}',
    }
    vault.write_data("identity/oidc/role/agents", data=role)
    vault.sys.create_or_update_policy("agents-of-vault", POLICY)
    vault.sys.enable_auth_method("approle", path="agents-of-vault")
    vault.write_data(
        "auth/agents-of-vault/role/complaint",
        data={
            "token_policies": ["agents-of-vault"],
            "bind_secret_id": False,
            "secret_id_bound_cidrs": [],
            "token_bound_cidrs": ["127.0.0.1/32"],
        },
    )
    role_id = vault.read("auth/agents-of-vault/role/complaint/role-id")["data"]["role_id"]
    accessor = vault.sys.list_auth_methods()["data"]["agents-of-vault/"]["accessor"]
    entity = vault.secrets.identity.create_or_update_entity(name="complaint-agent")["data"]["id"]
    vault.secrets.identity.create_or_update_entity_alias(name=role_id, canonical_id=entity, mount_accessor=accessor)
    client = hvac.Client(bench.info.vault_address)
    client.token = vault.adapter.post("/v1/auth/agents-of-vault/login", json={"role_id": role_id})["auth"][
        "client_token"
    ]
    yield client
    vault.sys.disable_auth_method("agents-of-vault")
    vault.secrets.identity.delete_entity(entity)
    vault.sys.delete_policy("agents-of-vault")
    vault.delete("identity/oidc/role/agents")
    vault.delete("identity/oidc/key/agents")


async def test_vaults_own_tokens_tell_who_calls(bench: Bench, agent: hvac.Client, tmp_path: Path) -> None:
    issuer = f"{bench.info.vault_address}/v1/identity/oidc"
    file = tmp_path / "agents.yaml"
    file.write_text(
        f"""
version: 1
issuers:
  vault: {{ issuer: "{issuer}", audience: [orchestrator], discovery: oidc, algorithms: [ES256] }}
agents:
  complaint-agent:
    may_open: [customer_complaint]
    identities: [ {{ issuer: vault, claims: {{ name: complaint-agent }} }} ]
"""
    )
    known = Authentication(load_agents(file), tmp_path)
    sent = agent.read("identity/oidc/token/agents")["data"]["token"]
    caller = await known.by_token(sent)
    assert (caller.agent, caller.issuer, caller.on_behalf_of) == ("complaint-agent", "vault", "")
    head, body, signature = sent.split(".")
    with pytest.raises(TokenRefused) as caught:
        await known.by_token(f"{head}.{body}.{signature[:-4]}AAAA")
    assert caught.value.reason is Reason.SIGNATURE
    file.write_text(file.read_text().replace("name: complaint-agent", "name: somebody-else"))
    with pytest.raises(CallerRefused):
        await Authentication(load_agents(file), tmp_path).by_token(sent)


async def test_an_issuer_that_cannot_be_asked_is_no_reason_to_believe_anybody(bench: Bench, tmp_path: Path) -> None:
    file = tmp_path / "agents.yaml"
    file.write_text(
        """
version: 1
issuers:
  away: { issuer: "http://127.0.0.1:1/x", audience: [orchestrator], discovery: oauth }
agents:
  a: { may_open: [t], identities: [ { issuer: away, claims: { sub: a } } ] }
"""
    )
    known = Authentication(load_agents(file), tmp_path)
    head, body = "eyJhbGciOiJFUzI1NiJ9", "eyJpc3MiOiJodHRwOi8vMTI3LjAuMC4xOjEveCJ9"
    with pytest.raises(IssuerUnreachable):
        await known.by_token(f"{head}.{body}.AAAA")
