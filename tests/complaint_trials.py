"""What two agents try about one customer's complaints, and what comes of it on the real servers, as rows of a table."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import astuple, dataclass, field
from typing import Any

import httpx
import psycopg
from bench import ROOT, Bench
from desks import loaded_task, open_desk

from orchestrator.agents.authentication import Caller
from orchestrator.credentials.types import Attempt
from orchestrator.errors import BudgetSpent, ExitCode, GrantRefused, PolicyDenied, TaskEnded, UnknownTask, UsageError
from orchestrator.grants.credential import Credential
from orchestrator.grants.policy_names import step_policy_name
from orchestrator.jsontypes import JsonValue
from orchestrator.ledger.events import RunFinished, RunStarted
from orchestrator.ledger.ids import new_run_id, new_step_key
from orchestrator.ledger.states import RunState
from orchestrator.ledger.types import LeaseFilter
from orchestrator.planning.requests import bind, scopes_of
from orchestrator.policy.engines.rego.engine import RegoEngine
from orchestrator.policy.types import PolicyEngine
from orchestrator.tasks.desk import TaskDesk
from orchestrator.tasks.errors import UnknownTool
from orchestrator.tasks.opened import OpenedTask
from orchestrator.tasks.results import CallResult
from orchestrator.vault.config import VaultConfig

WRITER_FILE, READER_FILE = (
    (ROOT / "workflows" / f"{name}.yaml").read_text() for name in ("complaint_writer", "complaint_reader")
)
POLICY = RegoEngine.from_directory(ROOT / "workflows" / "policies")
WRITER = Caller("complaint-writer", "vault", "entity-1")
READER = Caller("complaint-reader", "vault", "entity-2")
CUSTOMER, OTHER = 1234, 1235


@dataclass(frozen=True)
class Row:
    """Who tries what, what comes of it, and by whom it is refused."""

    who: str
    what: str
    outcome: str = "done"
    by: str = ""


@dataclass
class World:
    """Both agents at one desk, and the servers behind it. A trial finds what those before it have left."""

    bench: Bench
    desk: TaskDesk
    http: httpx.AsyncClient
    tasks: dict[str, OpenedTask] = field(default_factory=dict)
    token: str = ""
    _keys: Iterator[int] = field(default_factory=itertools.count)

    async def call(self, caller: Caller, tool: str, task: str = "", **arguments: JsonValue) -> CallResult:
        task_id = self.tasks[task or caller.agent].task_id
        return await self.desk.call(caller, task_id, tool, arguments, f"k{next(self._keys)}")

    async def crm(self, method: str, customer: int, token: str) -> httpx.Response:
        """What the CRM answers to whoever sends this token: a ticket is written, or tickets are read."""
        wish = {"json": {"subject": "by a client of its own"}} if method == "POST" else {}
        url = f"{self.bench.info.crm_url}/customers/{customer}/tickets"
        return await self.http.request(method, url, headers={"Authorization": f"Bearer {token}"}, **wish)

    async def tickets(self) -> dict[str, list[dict[str, Any]]]:
        """What the CRM really has, by its back door."""
        admin = {"X-Admin-Token": self.bench.info.admin_token.reveal()}
        answer = await self.http.get(f"{self.bench.info.crm_url}/_admin/state", headers=admin)
        found: dict[str, list[dict[str, Any]]] = answer.raise_for_status().json()["tickets"]
        return found

    def issued(self) -> int:
        """How many credentials of tools were asked for, as the ledger has it."""
        leases = self.desk.services.reader.leases(LeaseFilter(limit=10_000))
        return len([each for each in leases if each.grant in ("bot", "crm", "db")])

    @asynccontextmanager
    async def got_hold_of(self, caller: Caller, text: str, tool: str, grant: str) -> AsyncIterator[Credential]:
        """The credential of a tool that hands none over, as somebody would have it who could read our memory."""
        services, workflow = self.desk.services, loaded_task(text).workflow
        run_id = new_run_id()
        started = RunStarted(
            workflow=workflow.name, digest="sha256:0", agent=caller.agent, trigger="test", inputs={}, steps=(tool,)
        )
        attempt = Attempt(
            run_id=run_id,
            fence=await services.ledger.begin_run(run_id, started),
            workflow=workflow.name,
            step=tool,
            number=1,
            agent=caller.agent,
            step_key=new_step_key(tool),
            scopes=bind(scopes_of(workflow, tool), {"inputs": {"customer_id": CUSTOMER}}),
            policy=step_policy_name(workflow.name, tool),
            deadline=services.clock.monotonic() + 30,
        )
        async with services.broker.open(attempt) as credentials:
            yield credentials[grant]
        finished = RunFinished(state=RunState.SUCCEEDED, exit_code=ExitCode.DONE)
        await services.ledger.append(run_id, attempt.fence, [finished])


@dataclass(frozen=True)
class Trial:
    """What is expected, and the attempt, which returns an answer or raises."""

    expected: Row
    attempt: Callable[[World], Awaitable[object]]


REFUSALS: dict[type[Exception], tuple[str, str]] = {
    PolicyDenied: ("denied", "policy"),
    UnknownTool: ("no such tool", "broker"),
    UnknownTask: ("no such task of its own", "broker"),
    TaskEnded: ("the task is over", "broker"),
    BudgetSpent: ("as many as may be are open", "broker"),
    UsageError: ("not as the file declares", "broker"),
    GrantRefused: ("not granted", "Vault"),
    psycopg.errors.InsufficientPrivilege: ("permission denied", "database"),
    psycopg.OperationalError: ("no such login", "database"),
}
"""By the nearest class."""


async def seen(attempt: Awaitable[object], services: Mapping[str, str]) -> tuple[str, str]:
    """What really came of it, and who refused. `services` are those that answer over HTTP, by host and port."""
    try:
        answer = await attempt
        if isinstance(answer, CallResult) and answer.error is not None:
            raise answer.error
    except tuple(REFUSALS) as error:
        return next(REFUSALS[each] for each in type(error).mro() if each in REFUSALS)
    if isinstance(answer, httpx.Response) and answer.is_error:
        code = answer.headers.get("WWW-Authenticate", "").partition('error="')[2].partition('"')[0]
        return f"{answer.status_code} `{code}`" if code else str(answer.status_code), services[
            answer.url.netloc.decode()
        ]
    return "done", ""


async def carried_out(
    bench: Bench, trials: Sequence[Trial], *texts: str, policy: PolicyEngine = POLICY, vault: VaultConfig | None = None
) -> list[Row]:
    """Try everything, in this order, and tell what came of it. What is refused has changed nothing.

    `texts` are the files of the tasks, and `vault` is whoever the runtime is there: those of the samples where nothing
    is said.
    """
    services = {
        bench.info.crm_url.removeprefix("http://"): "CRM",
        bench.info.translation_url.removeprefix("http://"): "translation API",
        bench.info.vault_address.removeprefix("http://"): "Vault",
    }
    rows = []
    config = {"policy": policy, "vault": vault or bench.provisioned.vault_config()}
    async with (
        open_desk(bench, *(texts or (WRITER_FILE, READER_FILE)), **config) as desk,
        httpx.AsyncClient(trust_env=False) as http,
    ):
        world = World(bench, desk, http)
        for trial in trials:
            before, issued = await world.tickets(), world.issued()
            outcome, by = await seen(trial.attempt(world), services)
            rows.append(Row(trial.expected.who, trial.expected.what, outcome, by))
            if by:
                assert await world.tickets() == before, rows[-1]
            if by in ("policy", "broker"):
                assert world.issued() == issued, rows[-1]
    return rows


def table(rows: Sequence[Row], first: str = "agent") -> str:
    """As it stands in the document."""
    return grid((first, "tries to", "outcome", "refused by"), list(map(astuple, rows)))


def grid(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of Markdown."""
    cells = [head, ("---",) * len(head), *rows]
    return "".join(f"| {' | '.join(each)} |\n".replace("|  |", "| |") for each in cells)
