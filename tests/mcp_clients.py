"""Clients of the official MCP SDK, over stdio and HTTP, and what they are told."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx2
from apis import Apis, Process
from bench import Bench
from desks import TASK, loaded_task
from escaped import holds_secret
from fork_server import ForkServer
from mcp.client.client import Client
from mcp.client.stdio import StdioServerParameters, stdio_client
from mcp.client.streamable_http import streamable_http_client
from mcp_types import CallToolResult, TextContent

MODES = ("auto", "legacy")
"""2026-07-28, and the handshake of before."""

META = "credential-orchestrator/"

APPROVAL = """
default decision := {"allow": true, "obligations": {"approval": {"approvers": ["vault:userpass-alice"]}}}
"""
DENIAL = """
default decision := {"allow": false, "reasons": ["no more than 5 at once"]}
decision := {"allow": true} if input.task.call.limit <= 5
"""


def policy(directory: Path, rules: str) -> dict[str, str]:
    """The settings of a process whose policy has these rules."""
    folder = directory / "policy"
    folder.mkdir(exist_ok=True)
    (folder / "p.rego").write_text(f"package orchestrator\nimport rego.v1\n{rules}\n")
    return {"ORCHESTRATOR_POLICY": "rego", "ORCHESTRATOR_POLICY_PATH": str(folder)}


class Stdio:
    """`orchestrator mcp` on a bench's servers."""

    def __init__(self, bench: Bench, children: ForkServer, text: str = TASK) -> None:
        bench.install(loaded_task(text).workflow)
        self.bench = bench
        self.children = children
        self.file = bench.directory / "desk.yaml"
        self.file.write_text(text)
        self.log = bench.directory / "stderr"
        self.more: dict[str, str] = {}

    def words(self, *options: str) -> list[str]:
        """What follows `orchestrator`."""
        return ["mcp", str(self.file), "--input", "customer=1234", "--agent", "complaint-agent", *options]

    def environment(self) -> dict[str, str]:
        ledger_url = self.bench.config().ledger_url
        ours = {
            "ORCHESTRATOR_LEDGER_URL": ledger_url,
            "ORCHESTRATOR_POLICY": "allow-all",
            "ORCHESTRATOR_DEAD_AFTER": "4",
        }
        return self.bench.environment(**{**ours, **self.more})

    @asynccontextmanager
    async def client(self, mode: str, *options: str) -> AsyncIterator[Client]:
        command, *arguments = [*self.children.command_line(), *self.words(*options)]
        server = StdioServerParameters(command=command, args=arguments, env=self.environment())
        with self.log.open("a") as errors:
            async with Client(stdio_client(server, errlog=errors), mode=mode) as client:  # type: ignore[arg-type]
                yield client
        assert "Traceback" not in self.log.read_text(), self.log.read_text()


@asynccontextmanager
async def http_client(
    apis: Apis,
    mode: str,
    query: str = "customer=1234",
    *,
    process: Process | None = None,
    task: str = "complaint_desk",
    sub: str = "complaint",
    **claims: Any,
) -> AsyncIterator[Client]:
    url = f"{(process or apis.processes[0]).url}/mcp/{task}?{query}"
    headers = {"Authorization": f"Bearer {apis.token(sub, **claims)}"}
    async with (
        httpx2.AsyncClient(headers=headers, trust_env=False, timeout=60) as http,
        Client(streamable_http_client(url, http_client=http), mode=mode) as client,  # type: ignore[arg-type]
    ):
        yield client


async def done(client: Client, tool: str, arguments: dict[str, Any] | None = None) -> dict[str, Any]:
    """What a call has given, as data and as text."""
    result = await client.call_tool(tool, arguments or {})
    assert not result.is_error, words(result)
    assert isinstance(result.structured_content, dict)
    assert json.loads(words(result)) == result.structured_content
    return result.structured_content


async def refused(client: Client, tool: str, arguments: dict[str, Any] | None = None) -> str:
    """What a model is told of a call that came to nothing."""
    result = await client.call_tool(tool, arguments or {})
    assert result.is_error, words(result)
    assert result.structured_content is None
    return words(result)


def words(result: CallToolResult) -> str:
    """Its text, in which there is no secret and nothing of the inside."""
    assert not holds_secret(result.model_dump_json().encode())
    (content,) = result.content
    assert isinstance(content, TextContent)
    for never in ("Traceback", "Error(", "orchestrator/", "/tmp/", "sqlite"):
        assert never not in content.text
    return content.text
