"""A server of the official SDK whose tools are those of a task. Where the task comes from is for the transport to say.

The SDK checks neither names nor arguments, and tells older clients the text of exceptions: both is done here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any, Protocol

from mcp.server.caching import CacheHint
from mcp.server.context import ServerRequestContext
from mcp.server.lowlevel.server import Server
from mcp.shared.exceptions import MCPError
from mcp_types import INVALID_PARAMS, CallToolRequestParams, CallToolResult, ListToolsResult, PaginatedRequestParams

from orchestrator.agents.authentication import Caller
from orchestrator.errors import TaskEnded, UsageError
from orchestrator.jsontypes import JsonValue
from orchestrator.server.mcp.answers import answer, told, told_error
from orchestrator.server.mcp.tools import GIVE_BACK, offered
from orchestrator.tasks.desk import Leaving, TaskDesk
from orchestrator.tasks.results import CallResult
from orchestrator.workflow.models.workflow import Workflow
from orchestrator.workflow.problems import suggestion
from orchestrator.workflow.tools.arguments import bind_arguments

Context = ServerRequestContext[Any, Any]

INSTRUCTIONS = (
    "Each tool is called with a credential of its own, which is made for the call and gone after it. You never see it. "
    "What may be called, with which arguments and how often, is fixed for the task; a policy decides on each call. "
    "Where a call is denied, needs an approval or has spent its budget, the result says so and what to do next."
)


@dataclass(frozen=True, slots=True)
class Place:
    """Where a request belongs: who calls, in which task, from which address, and how a call is named once and for all.

    `lasting`: the task is not another one for the next request, so that an ended one is told and not replaced.
    """

    caller: Caller
    task_id: str
    address: str
    key: str
    lasting: bool


class Tasks(Protocol):
    """Where the task of a request comes from."""

    @property
    def over(self) -> str:
        """What can be done where it has ended, for the model."""
        ...

    def workflow(self, context: Context) -> Workflow:
        """The file that declares the tools. Raises MCPError."""
        ...

    async def place(self, context: Context, *, ended: str = "") -> Place:
        """The task, opened if it is not yet; another one than that which has `ended`. Raises what opening raises."""
        ...


@dataclass(frozen=True, slots=True)
class Door:
    """What an MCP server does. With `hand_over` credentials are handed over, too, which the model then sees."""

    desk: TaskDesk
    tasks: Tasks
    hand_over: bool = False

    def server(self, **more: Any) -> Server[Any]:
        """The server. `more` are further handlers."""
        return Server(
            "credential-orchestrator",
            version=version("credential-orchestrator"),
            instructions=INSTRUCTIONS,
            cache_hints={"tools/list": CacheHint(ttl_ms=0, scope="private")},
            on_list_tools=self.list_tools,
            on_call_tool=self.call_tool,
            **more,
        )

    async def list_tools(self, context: Context, params: PaginatedRequestParams | None) -> ListToolsResult:
        """`tools/list`."""
        return ListToolsResult(tools=list(offered(self.tasks.workflow(context), hand_over=self.hand_over).values()))

    async def call_tool(self, context: Context, params: CallToolRequestParams) -> CallToolResult:
        """`tools/call`. A tool that is not offered is an error of the protocol; all else is told as a result."""
        task_id = ""
        try:
            workflow = self.tasks.workflow(context)
            tools = offered(workflow, hand_over=self.hand_over)
            if params.name not in tools:
                raise MCPError(
                    INVALID_PARAMS, f"there is no tool `{params.name[:64]}`; {suggestion(params.name, tools)}"
                )
            arguments = params.arguments or {}
            if params.name == GIVE_BACK:
                return await self._give_back(context, arguments)
            bind_arguments(params.name, workflow.tools[params.name], arguments)
            place = await self.tasks.place(context)
            task_id = place.task_id
            try:
                result = await self._called(place, params.name, arguments)
            except TaskEnded:
                if place.lasting:
                    raise
                place = await self.tasks.place(context, ended=place.task_id)
                task_id = place.task_id
                result = await self._called(place, params.name, arguments)
            connection = result.handed.credential.connection if result.handed else None
            return told(result, task_id, self.desk.services.endpoints.get(connection or ""))
        except MCPError:
            raise
        except Exception as error:  # noqa: BLE001 -- whatever it is, the client gets words of ours and no text of it
            return told_error(error, task_id, over=self.tasks.over)

    async def _called(self, place: Place, tool: str, arguments: Mapping[str, JsonValue]) -> CallResult:
        """A request that is cancelled ends its call at once. Who waits for an approval asks by calling again."""
        how: dict[str, Any] = {"address": place.address, "leaving": Leaving.CANCELS}
        again = await self.desk.ask_again(place.caller, place.task_id, tool, arguments, **how)
        if again is not None:
            return again
        return await self.desk.call(place.caller, place.task_id, tool, arguments, place.key, **how)

    async def _give_back(self, context: Context, arguments: Mapping[str, JsonValue]) -> CallToolResult:
        lease = arguments.get("lease")
        if len(arguments) != 1 or not isinstance(lease, str):
            raise UsageError("give the one argument `lease`, a text")
        place = await self.tasks.place(context)
        return answer({"confirmed": await self.desk.give_back(place.caller, lease)})
