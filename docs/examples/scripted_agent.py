"""An agent without a model: it lists the tools of a task, calls one, is denied, and adapts.

    python docs/examples/scripted_agent.py orchestrator mcp complaint.yaml --input customer_id=1234 --agent me

Where a language model would choose, a few lines do: what they are told is what a model would be told. It needs the
package `mcp`, and nothing of this one.
"""

from __future__ import annotations

import asyncio
import os
import sys
from typing import Any

from mcp.client.client import Client
from mcp.client.stdio import StdioServerParameters
from mcp_types import CallToolResult, TextContent, Tool


def first_try(tool: Tool) -> dict[str, Any]:
    """What a model that wants everything would ask for: the most that the schema lets it have."""
    return {
        name: argument.get("maximum", argument.get("default"))
        for name, argument in tool.input_schema["properties"].items()
    }


def less(arguments: dict[str, Any]) -> dict[str, Any]:
    """What it asks for next: half of each number."""
    return {name: value // 2 if isinstance(value, int) else value for name, value in arguments.items()}


def words(result: CallToolResult) -> str:
    """What a model reads of a result."""
    return "\n".join(part.text for part in result.content if isinstance(part, TextContent))


async def converse(client: Client) -> int:
    """Call the first tool with less and less, until it is allowed. The number of calls that this took."""
    tools = (await client.list_tools()).tools
    print("tools:", ", ".join(tool.name for tool in tools))
    tool = tools[0]
    arguments, calls = first_try(tool), 0
    while calls < 10:
        calls += 1
        result = await client.call_tool(tool.name, arguments)
        print(f"{tool.name} {arguments} ->", words(result)[:160])
        if not result.is_error:
            return calls
        if "Denied" not in words(result) or less(arguments) == arguments:
            raise SystemExit("there is nothing that could be tried instead")
        arguments = less(arguments)
    raise SystemExit("it is denied however little is asked for")


async def main(command: str, *arguments: str) -> None:
    """Start the server, and leave: that closes the task."""
    server = StdioServerParameters(command=command, args=list(arguments), env=dict(os.environ))
    async with Client(server) as client:
        print("allowed at call", await converse(client))


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
