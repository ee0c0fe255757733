"""The tools of a task as an MCP server offers them."""

from __future__ import annotations

from mcp_types import Tool

from orchestrator.jsontypes import counted
from orchestrator.workflow.models import tools
from orchestrator.workflow.models.workflow import Workflow
from orchestrator.workflow.tools.arguments import arguments_schema

GIVE_BACK = "give-back"
"""The tool that ends a credential which was handed over. No file can declare one of this name, for its hyphen."""

_GIVE_BACK = Tool(
    name=GIVE_BACK,
    description="Give a credential back that another tool has handed over, as soon as it is needed no more.",
    input_schema={
        "type": "object",
        "properties": {"lease": {"type": "string", "description": "The `id` of its `lease`."}},
        "required": ["lease"],
        "additionalProperties": False,
    },
)


def offered(workflow: Workflow, *, hand_over: bool) -> dict[str, Tool]:
    """What may be called, by name. Without `hand_over` no credential comes to where a model sees it."""
    found = {
        name: Tool(name=name, description=_description(tool), input_schema=arguments_schema(tool))
        for name, tool in workflow.tools.items()
        if hand_over or tool.hand_over is None
    }
    if any(workflow.tools[name].hand_over is not None for name in found):
        found[GIVE_BACK] = _GIVE_BACK
    return found


def _description(tool: tools.Tool) -> str:
    limits = [
        *([f"{counted(tool.max_calls, 'call')} in a task"] if tool.max_calls is not None else []),
        *([f"{tool.max_open} at the same time"] if tool.max_open is not None else []),
    ]
    return tool.description + (f"\nAt most {', '.join(limits)}." if limits else "")
