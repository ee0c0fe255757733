"""Two agents for a person at a terminal: what they may do while a task is open, and who refuses the rest."""

from __future__ import annotations

import itertools
from collections.abc import Awaitable, Iterator, Sequence
from dataclasses import dataclass, field
from urllib.request import parse_http_list, parse_keqv_list

import httpx

from orchestrator.actions.catalog import catalog
from orchestrator.agents.authentication import Caller
from orchestrator.assembly import RunnerConfig, interruptible_services
from orchestrator.devstack.provisioned import Provisioned
from orchestrator.errors import PolicyDenied, UsageError
from orchestrator.jsontypes import JsonValue
from orchestrator.redaction.redactor import Redactor
from orchestrator.tasks.desk import TaskDesk
from orchestrator.tasks.opened import OpenedTask
from orchestrator.tasks.results import CallResult
from orchestrator.uninterrupted import to_the_end
from orchestrator.workflow.loader import load

TASK = "complaint_writer"
"""The type of the tasks, one of the sample workflows."""

_WRITER, _READER = (Caller(name, "", "") for name in ("complaint-writer", "complaint-reader"))
_CUSTOMER, _OTHER = 1234, 1235


@dataclass(frozen=True, slots=True)
class Attempt:
    """What an agent tried, and what it was told. `by` has refused it; where that is empty it was done."""

    agent: str
    tries: str
    told: str
    by: str = ""


async def attempts(provisioned: Provisioned, config: RunnerConfig, *, redactor: Redactor) -> Sequence[Attempt]:
    """Let both try, on the servers of this stack, and take back what they got. Obeys SIGINT and SIGTERM."""
    async with (
        interruptible_services(config, redactor=redactor) as (services, interruptions),
        httpx.AsyncClient(base_url=provisioned.info.crm_url, trust_env=False) as crm,
    ):
        file = provisioned.policies.parent / f"{TASK}.yaml"
        agents = _Agents(TaskDesk(services, {TASK: load(file, actions=catalog)}), crm)
        await interruptions.carry_out(agents.try_everything())
        return agents.attempts


@dataclass(slots=True)
class _Agents:
    desk: TaskDesk
    crm: httpx.AsyncClient
    attempts: list[Attempt] = field(default_factory=list)
    _opened: list[OpenedTask] = field(default_factory=list)
    _keys: Iterator[int] = field(default_factory=itertools.count)

    async def try_everything(self) -> None:
        try:
            await self._writer()
            await self._tell(_READER, f"open {TASK} for customer {_CUSTOMER}", self._open(_READER, _CUSTOMER))
        finally:
            await to_the_end(self._close())

    async def _writer(self) -> None:
        await self._tell(_WRITER, f"open {TASK} for customer {_CUSTOMER}", self._open(_WRITER, _CUSTOMER))
        await self._tell(_WRITER, "read_messages limit=50", self._messages(50))
        token = await self._token()
        await self._tell(_WRITER, f"its ticket_token for customer {_CUSTOMER}", self._ticket(_CUSTOMER, token))
        await self._tell(_WRITER, f"the same token for customer {_OTHER}", self._ticket(_OTHER, token))
        await self._tell(_WRITER, "read_messages limit=51", self._messages(51))
        await self._open(_WRITER, _OTHER)
        await self._tell(_WRITER, f"read_messages in a task for customer {_OTHER}", self._messages(50))

    async def _tell(self, caller: Caller, tries: str, work: Awaitable[str | httpx.Response]) -> None:
        """Keep what came of it. Whatever is no refusal of the policy, the broker or the CRM is raised."""
        by = ""
        try:
            answer = await work
        except PolicyDenied as error:
            by, told = "policy", "; ".join(error.reasons)
        except UsageError as error:
            by, told = "broker", error.message
        else:
            told = answer if isinstance(answer, str) else _told(answer)
            by = "CRM" if isinstance(answer, httpx.Response) and answer.is_error else ""
        self.attempts.append(Attempt(caller.agent, tries, told, by))

    async def _open(self, caller: Caller, customer: int) -> str:
        self._opened.append(await self.desk.open(caller, TASK, {"customer_id": customer}))
        return ", ".join(self._opened[-1].workflow.tools)

    async def _call(self, tool: str, **arguments: JsonValue) -> CallResult:
        """In the newest task."""
        result = await self.desk.call(_WRITER, self._opened[-1].task_id, tool, arguments, f"demo-{next(self._keys)}")
        if result.error is not None:
            raise result.error
        return result

    async def _messages(self, limit: int) -> str:
        output = (await self._call("read_messages", limit=limit)).output
        assert output is not None
        rows = output["rows"]
        assert isinstance(rows, list)
        return f"{len(rows)} messages: {', '.join(str(row['id']) for row in rows if isinstance(row, dict))}"

    async def _token(self) -> str:
        handed = (await self._call("ticket_token")).handed
        assert handed is not None
        return handed.credential.fields["token"].reveal()

    async def _ticket(self, customer: int, token: str) -> httpx.Response:
        """As a client of the agent's own writes it with a token that it was given."""
        headers = {"Authorization": f"Bearer {token}"}
        return await self.crm.post(f"/customers/{customer}/tickets", json={"subject": "Call back"}, headers=headers)

    async def _close(self) -> None:
        for task in self._opened:
            await self.desk.close(_WRITER, task.task_id)
        await self.desk.aclose("the demonstration is over", seconds=0)


def _told(answer: httpx.Response) -> str:
    """The ticket that was written, or why none was (RFC 6750)."""
    if answer.is_success:
        return f"{answer.status_code} {answer.json()['id']}"
    parts = parse_keqv_list(parse_http_list(answer.headers["WWW-Authenticate"].removeprefix("Bearer ")))
    return f"{answer.status_code} {parts['error']}: {parts['error_description']}"
