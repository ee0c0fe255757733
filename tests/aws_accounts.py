"""An AWS account beside the stack: a user whose secret access key is in Vault alone, and what is declared of it."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aws_server import EXTERNAL_ID, REGION, ROLE, AwsServer, UserKey
from bench import Bench

from orchestrator.actions.catalog import catalog
from orchestrator.clock import SystemClock
from orchestrator.issuers.aws import AwsAccount
from orchestrator.issuers.declared import DeclaredIssuer
from orchestrator.network.aws.query import QueryApi
from orchestrator.network.aws.sigv4 import SigningKey, day_key
from orchestrator.provision.vault.admin import VaultAdmin
from orchestrator.provision.vault.key_import import import_key, material
from orchestrator.provision.vault.step_policies import step_access
from orchestrator.runs.types import RunOutcome
from orchestrator.secret import Secret
from orchestrator.workflow.loader import load_text

ISSUER = "aws-test"

WORKFLOW = """
version: 1
name: {name}
agent: reader
inputs:
  customer: {{ type: string, default: "42" }}
steps:
  fetch:
    action: aws.call
    timeout: {timeout}
    grants:
      s3:
        kind: aws
        issuer: aws-test
        role: reporter
        actions: {actions}
        resources: {resources}
        {more}
    with:
      service: s3
      operation: {operation}
      region: us-east-1
      endpoint: aws
      grant: s3
      parameters: {parameters}
    outputs: [result]
"""
OF_CUSTOMER = '["arn:aws:s3:::reports/${{ inputs.customer }}/*"]'


@dataclass
class Account:
    """The server, the user's key there and in Vault, and runs with sessions of it."""

    bench: Bench
    server: AwsServer
    user: UserKey
    key: str
    changes: dict[str, Any] = field(default_factory=dict)

    @property
    def declared(self) -> AwsAccount:
        return AwsAccount.model_validate(
            {
                "kind": "aws",
                "region": REGION,
                "access_key": {"id": self.user.id, "key": self.key},
                "roles": {"reporter": ROLE},
                "external_id": EXTERNAL_ID,
                "endpoint": self.server.endpoint,
                "iam_endpoint": self.server.endpoint,
                **self.changes,
            }
        )

    @property
    def issuers(self) -> Mapping[str, DeclaredIssuer]:
        return {ISSUER: self.declared}

    def text(
        self,
        *,
        actions: str = '["s3:GetObject"]',
        resources: str = OF_CUSTOMER,
        operation: str = "GetObject",
        parameters: str = '{ Bucket: reports, Key: "${{ inputs.customer }}/may.csv" }',
        timeout: str = "20s",
        more: str = "",
        name: str = "aws_reader",
    ) -> str:
        return WORKFLOW.format(
            name=name,
            actions=actions,
            resources=resources,
            operation=operation,
            parameters=parameters,
            timeout=timeout,
            more=more,
        )

    def install(self, text: str) -> None:
        workflow = load_text(text, filename="test.yaml", actions=catalog).workflow
        for each in step_access([workflow], (), self.issuers):
            for wanted in each.objects():
                self.bench.vault.write_data(wanted.path, data=dict(wanted.payload))

    def session(self, *, seconds: int) -> dict[str, Secret]:
        """A session that the user asks for himself."""

        async def signer(day: str) -> SigningKey:
            return SigningKey(self.user.id, day, day_key(self.user.secret, day))

        sts = QueryApi("sts", REGION, self.server.endpoint, now=SystemClock().now)
        asked = {"RoleArn": ROLE, "RoleSessionName": "by-hand", "DurationSeconds": str(seconds)}
        given = asyncio.run(sts.call("AssumeRole", {**asked, "ExternalId": EXTERNAL_ID}, signer=signer, seconds=10))
        names = {
            "access_key_id": "AccessKeyId",
            "secret_access_key": "SecretAccessKey",
            "session_token": "SessionToken",
        }
        return {name: Secret(given[f"Credentials/{theirs}"]) for name, theirs in names.items()}

    def run(
        self,
        text: str | None = None,
        *,
        inputs: Mapping[str, Any] | None = None,
        install: bool = True,
        **changes: Any,
    ) -> RunOutcome:
        """One run, with what it needs installed."""
        text = self.text() if text is None else text
        if install:
            self.install(text)
        endpoints = {**self.bench.config().endpoints, "aws": self.server.endpoint}
        return self.bench.run(
            text, inputs=inputs, install=False, **{"issuers": self.issuers, "endpoints": endpoints, **changes}
        )


@contextmanager
def transit_key(bench: Bench, text: str) -> Iterator[str]:
    """A secret access key, imported for a while under a name of its own."""
    name = f"aws-{secrets.token_hex(4)}"
    admin = VaultAdmin(bench.provisioned.admin_config(), bench.info.root_token)
    try:
        import_key(admin, "transit", name, material(text, "aws"), rotate=False)
        yield name
        admin.write(f"transit/keys/{name}/config", {"deletion_allowed": True})
        admin.delete(f"transit/keys/{name}")
    finally:
        admin.close()


@contextmanager
def aws_server(directory: Path) -> Iterator[AwsServer]:
    """The server with a user `orchestrator`, the role that he may assume, and objects of two customers."""
    with AwsServer(directory) as server:
        server.role("orchestrator", actions=["s3:*", "iam:GetRole"], external_id=EXTERNAL_ID)
        server.fill()
        yield server
