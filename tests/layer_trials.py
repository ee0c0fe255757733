"""The sample task with some of its three layers taken away, and what comes of the same wishes then, as a table."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

import httpx
from bench import Bench
from complaint_trials import POLICY, READER_FILE, WRITER_FILE, Trial, World, carried_out
from desks import loaded_task
from transit_signer import claims_of, encode, jws_of

from orchestrator.devstack.stack import TOKEN_KEY
from orchestrator.policy.engines.allow_all import AllowAllEngine
from orchestrator.vault.config import AppRoleAuth, TokenAuth, VaultConfig
from orchestrator.vault.jwks import algorithm_of, key_id

WIDE_FILE = """\
version: 1
name: complaint_writer
context: { task: "crm:write_ticket", customer_id: "${{ inputs.customer_id }}" }
inputs: { customer_id: { type: integer } }
tools:
  read_messages:
    description: Whose messages, and how many, the agent says.
    call:
      limit: { type: integer, default: 10 }
      customer_id: { type: integer, default: 1234 }
    grants:
      db:
        kind: database
        connection: support
        read_only: true
        privileges:
          - select: customer_feedback
            columns: [comment, created_at, id]
            where: { customer_id: "${{ call.customer_id }}" }
    action: postgres.query
    with:
      sql: SELECT id, comment, created_at FROM customer_feedback ORDER BY created_at DESC LIMIT %(limit)s
      parameters: { limit: "${{ call.limit }}" }
    outputs: [rows]
    timeout: 30s
  write_ticket:
    description: For whom, the agent says.
    call:
      subject: { type: string }
      customer_id: { type: integer, default: 1234 }
    grants:
      crm:
        kind: token
        audience: crm
        scope: [crm:write_ticket]
        details: [ { type: crm_record, actions: [write_ticket], identifier: "${{ call.customer_id }}" } ]
    action: http.request
    with:
      method: POST
      url: ${{ endpoints.crm }}/customers/${{ call.customer_id }}/tickets
      bearer: crm
      json: { subject: "${{ call.subject }}" }
    outputs: [body]
  ticket_token:
    description: As many as the agent likes.
    grants:
      crm:
        kind: token
        ttl: 60s
        audience: crm
        scope: [crm:write_ticket]
        details: [ { type: crm_record, actions: [write_ticket], identifier: "${{ inputs.customer_id }}" } ]
    hand_over: crm
  read_emails:
    description: Those of everybody.
    grants:
      db:
        kind: database
        connection: support
        privileges: [ { select: customer_feedback, columns: [email, id] } ]
    action: postgres.query
    with: { sql: "SELECT id, email FROM customer_feedback ORDER BY id LIMIT 5" }
    outputs: [rows]
  read_cards:
    description: Those of everybody.
    grants:
      db:
        kind: database
        connection: support
        privileges: [ { select: payment_card, columns: [number] } ]
    action: postgres.query
    with: { sql: SELECT number FROM payment_card ORDER BY number LIMIT 5 }
    outputs: [rows]
  change_messages:
    description: What the customer wrote is written anew.
    grants:
      db:
        kind: database
        connection: support
        privileges:
          - { select: customer_feedback, columns: [customer_id] }
          - { update: customer_feedback, columns: [comment] }
    action: postgres.execute
    with: { sql: UPDATE customer_feedback SET comment = 'All is well' WHERE customer_id = 1234 }
  slack_token:
    description: The bot's own.
    grants: { bot: { kind: secret, path: slack/support-bot, keys: [token], ttl: 60s } }
    hand_over: bot
"""
"""`complaint_writer` without the file's limits: the agent says who and how much, and there are tools for anything."""


@dataclass(frozen=True)
class Layers:
    """Which of the three are there. What is not lets everything pass."""

    name: str
    policy: bool = False
    tools: bool = False
    vault: bool = False


COLUMNS = (
    Layers("Vault alone", vault=True),
    Layers("the tools alone", tools=True),
    Layers("all three", policy=True, tools=True, vault=True),
    Layers("the policy alone", policy=True),
    Layers("none of them"),
)
"""In this order: from the fourth one on everything that the wide file declares is provisioned."""


def vaults_root(bench: Bench) -> VaultConfig:
    """A runtime that is Vault's root."""
    return VaultConfig(bench.info.vault_address, TokenAuth(bench.info.root_token))


async def column(bench: Bench, layers: Layers, trials: Sequence[Trial]) -> list[str]:
    """What comes of each with these layers alone. Where Vault is to let all pass, all that is declared is installed."""
    text = WRITER_FILE if layers.tools else WIDE_FILE
    if not layers.vault:
        bench.install(loaded_task(text).workflow)
    rows = await carried_out(
        bench,
        trials,
        text,
        READER_FILE,
        policy=POLICY if layers.policy else AllowAllEngine(),
        vault=None if layers.vault else vaults_root(bench),
    )
    bench.assert_nothing_left()
    return [f"{row.by}: {row.outcome}" if row.by else row.outcome for row in rows]


@dataclass(frozen=True)
class Holder:
    """Whoever has a token of Vault's, and asks Vault itself."""

    world: World
    token: str

    async def ask(self, method: str, path: str, **payload: object) -> httpx.Response:
        url, headers = f"{self.world.bench.info.vault_address}/v1/{path}", {"X-Vault-Token": self.token}
        return await self.world.http.request(method, url, headers=headers, json=payload or None)

    async def child(self, role: str, **payload: object) -> Holder:
        """Of a step's own token. Raises where there is none."""
        answer = await self.ask("POST", f"auth/token/create/{role}", **payload)
        return Holder(self.world, answer.raise_for_status().json()["auth"]["client_token"])

    async def signed_for(self, customer: int) -> str:
        """A token for tickets of any customer, signed with what `write_ticket` gets."""
        key = (await self.ask("GET", f"transit/keys/{TOKEN_KEY}")).raise_for_status().json()
        header = {"alg": algorithm_of(key), "typ": "at+jwt", "kid": key_id(TOKEN_KEY, key["data"]["latest_version"])}
        details = [{"type": "crm_record", "actions": ["write_ticket"], "identifier": str(customer)}]
        claims = claims_of(
            self.world.bench.info.issuer_url, aud="crm", scope="crm:write_ticket", authorization_details=details
        )
        signed = f"{encode(header)}.{encode(claims)}"
        child = await self.child("step.complaint_writer.write_ticket")
        answer = await child.ask("POST", f"transit/sign/{TOKEN_KEY}", **jws_of(signed))
        return f"{signed}.{answer.raise_for_status().json()['data']['signature'].split(':', 2)[2]}"


@asynccontextmanager
async def runtimes_token(world: World) -> AsyncIterator[Holder]:
    """The runtime's own, as whoever has its secret id gets it. What hangs from it is gone at the end."""
    auth = world.bench.provisioned.vault_config().auth
    assert isinstance(auth, AppRoleAuth)
    nobody = Holder(world, "")
    answer = await nobody.ask("POST", "auth/approle/login", role_id=auth.role_id, secret_id=auth.secret_id.reveal())
    holder = Holder(world, answer.raise_for_status().json()["auth"]["client_token"])
    try:
        yield holder
    finally:
        (await holder.ask("POST", "auth/token/revoke-self")).raise_for_status()
