"""What is tried with the mails of a team, what comes of it on the real servers, and what is on record, as rows."""

from __future__ import annotations

import asyncio
import itertools
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx
from bench import ROOT, Bench
from complaint_trials import POLICY, grid
from desks import open_desk

from orchestrator.agents.authentication import Caller
from orchestrator.devstack.mail_agent.record import end
from orchestrator.devstack.mail_agent.servers import MailServers
from orchestrator.devstack.sample_services import MailService
from orchestrator.devstack.services.mail.samples import PERSONS, SUPPORT
from orchestrator.errors import (
    AgentBlocked,
    BudgetSpent,
    PolicyDenied,
    Refused,
    StepFailed,
    TaskEnded,
    UnknownTask,
    UsageError,
)
from orchestrator.issuers.oauth2 import OAuth2Server
from orchestrator.jsontypes import JsonValue
from orchestrator.ledger.types import LeaseFilter
from orchestrator.policy.types import PolicyEngine
from orchestrator.tasks.desk import TaskDesk
from orchestrator.tasks.opened import OpenedTask
from orchestrator.tasks.results import CallResult

FILE = (ROOT / "workflows" / "mail_agent.yaml").read_text()
READER, WRITER = Caller("mail-agent", "vault", "entity-1"), Caller("complaint-writer", "vault", "entity-2")
ANNA = PERSONS[0]


@dataclass(frozen=True)
class Row:
    """Who tries what, what comes of it, by whom it is refused, and what is on record afterwards."""

    who: str
    what: str
    outcome: str
    by: str
    record: str


@dataclass
class World:
    """One desk and the servers behind it. A trial finds what those before it have left."""

    bench: Bench
    servers: MailServers
    other: MailService
    """Of the same issuer, for another audience."""
    desk: TaskDesk
    http: httpx.AsyncClient
    commands: Callable[..., Any]
    tasks: dict[str, OpenedTask] = field(default_factory=dict)
    token: str = ""
    states: list[str] = field(default_factory=list)
    """Of the calls of this trial."""
    _keys: Iterator[int] = field(default_factory=itertools.count)

    async def open(self, name: str, mailbox: str = SUPPORT, caller: Caller = READER) -> OpenedTask:
        self.tasks[name] = await self.desk.open(caller, "mail_agent", {"mailbox": mailbox})
        return self.tasks[name]

    async def call(
        self, tool: str, task: str = "support", caller: Caller = READER, **arguments: JsonValue
    ) -> CallResult:
        return await self.call_at(self.desk, self.tasks[task], tool, caller, **arguments)

    async def call_at(
        self, desk: TaskDesk, task: OpenedTask, tool: str, caller: Caller = READER, **arguments: JsonValue
    ) -> CallResult:
        result = await desk.call(caller, task.task_id, tool, arguments, f"k{next(self._keys)}")
        self.states.append(result.state)
        return result

    async def handed(self, task: str) -> str:
        result = await self.call("mail_token", task)
        assert result.handed is not None, result.error
        return result.handed.credential.fields["token"].reveal()

    async def mail(self, token: str, method: str, path: str, wish: Any = None, *, at: str = "") -> httpx.Response:
        """What the mail service answers to whoever sends this token."""
        url = f"{at or self.servers.service.url}/gmail/v1/users/{path}"
        return await self.http.request(method, url, headers={"Authorization": f"Bearer {token}"}, json=wish)

    @asynccontextmanager
    async def elsewhere(self, **changes: Any) -> AsyncIterator[tuple[TaskDesk, OpenedTask]]:
        """A task at a desk where something is otherwise: `text`, `policy`, `issuer`, `mailbox`."""
        async with mail_desk(self.bench, self.servers, **changes) as desk:
            yield desk, await desk.open(READER, "mail_agent", {"mailbox": changes.get("mailbox", SUPPORT)})

    async def lists_elsewhere(self, **changes: Any) -> CallResult:
        async with self.elsewhere(**changes) as (desk, task):
            return await self.call_at(desk, task, "list_mails")


@asynccontextmanager
async def mail_desk(
    bench: Bench,
    servers: MailServers,
    *,
    text: str = FILE,
    policy: PolicyEngine = POLICY,
    issuer: OAuth2Server | None = None,
    mailbox: str = "",
) -> AsyncIterator[TaskDesk]:
    endpoints = {**bench.info.endpoints, **servers.endpoints}
    issuers = {"mail": issuer or servers.issuer}
    async with open_desk(bench, text, policy=policy, endpoints=endpoints, issuers=issuers) as desk:
        yield desk


def declared_for(servers: MailServers, *, scopes: Sequence[str] = (), subjects: Sequence[str] = ()) -> OAuth2Server:
    """The issuer as an admin would declare it who lets more be asked for."""
    issuer = servers.issuer
    assert issuer.assertion is not None
    assertion = issuer.assertion.model_copy(update={"subjects": [*issuer.assertion.subjects, *subjects]})
    return issuer.model_copy(update={"scopes": [*issuer.scopes, *scopes], "assertion": assertion})


@dataclass(frozen=True)
class Trial:
    """The attempt, which returns an answer or raises."""

    who: str
    what: str
    attempt: Callable[[World], Awaitable[object]]


REFUSALS: dict[type[Exception], str] = {
    TaskEnded: "the task is over",
    BudgetSpent: "as many as may be are open",
    UnknownTask: "no such task of its own",
    AgentBlocked: "the agent is cut off",
    UsageError: "not as the file declares",
}
"""By the broker, without asking anybody."""


WITHIN = ("may not be asked for", "more than was asked for")
"""What the broker says of a grant, before the issuer was asked and after."""


async def seen(world: World, attempt: Awaitable[object]) -> tuple[str, str]:
    """What really came of it, and who refused."""
    try:
        answer = await attempt
        if isinstance(answer, CallResult) and answer.error is not None:
            raise answer.error
    except PolicyDenied:
        return "denied", "policy"
    except tuple(REFUSALS) as error:
        return next(REFUSALS[each] for each in type(error).mro() if each in REFUSALS), "broker"
    except StepFailed as error:
        return error.message.rpartition(" answered ")[2][:3], "mail service"
    except Refused as error:
        if error.by == "issuer":
            return " ".join(error.message.partition(" answered ")[2].partition(":")[0].split()[:2]), "issuer"
        return next(words for words in WITHIN if words in error.message), "broker"
    if isinstance(answer, httpx.Response) and answer.is_error:
        return refusal(answer), whose(world, answer)
    return "done", ""


def refusal(answer: httpx.Response) -> str:
    """The status, and the service's own word for why."""
    error = answer.json().get("error")
    return f"{answer.status_code} {error if isinstance(error, str) else error['errors'][0]['reason']}"


def whose(world: World, answer: httpx.Response) -> str:
    places = {
        world.servers.authorization.issuer: "issuer",
        world.servers.service.url: "mail service",
        world.other.url: "other service",
    }
    return next(name for url, name in places.items() if str(answer.url).startswith(url))


class Records:
    """What is written down by the ledger, the issuer and the mail service, since it was looked at last."""

    def __init__(self, world: World) -> None:
        self.world = world
        self._before = self._all()

    def _all(self) -> tuple[dict[str, str], list[str], list[str]]:
        world, reader = self.world, self.world.desk.services.reader
        leases = {
            each.lease_id: f"lease {end(reader, each)}"
            for each in reversed(reader.leases(LeaseFilter(limit=10_000)))
            if each.grant in ("mail", "db")
        }
        asked = [
            f"issuer: {each['status']} {each['error'] or 'token'}"
            for each in world.servers.authorization.requests()
            if each["endpoint"] == "/token"
        ]
        log = [f"log: {each['method']} {each['status']}" for each in world.servers.log()]
        return leases, asked, log

    def news(self) -> str:
        """In words. Calls come first."""
        calls = [f"call {state}" for state in self.world.states]
        self.world.states.clear()
        (leases, asked, log), (were, had, was) = now, before = self._all(), self._before
        assert now[0].keys() >= before[0].keys()
        self._before = now
        ended = [state for lease, state in leases.items() if were.get(lease) != state]
        counted = Counter([*calls, *ended, *asked[len(had) :], *log[len(was) :]])
        words = (f"{what} ({count} times)" if count > 1 else what for what, count in counted.items())
        return "; ".join(words) or "nothing"


async def carried_out(
    bench: Bench, servers: MailServers, other: MailService, trials: Sequence[Trial], commands: Callable[..., Any]
) -> list[Row]:
    """Try everything, in this order, and tell what came of it. What is refused has changed nothing."""
    rows = []
    async with mail_desk(bench, servers) as desk, httpx.AsyncClient(trust_env=False, timeout=20) as http:
        world = World(bench, servers, other, desk, http, commands)
        records = await asyncio.to_thread(Records, world)
        for trial in trials:
            before = await asyncio.to_thread(touched, world)
            outcome, by = await seen(world, trial.attempt(world))
            rows.append(Row(trial.who, trial.what, outcome, by, await asyncio.to_thread(records.news)))
            if by:
                assert await asyncio.to_thread(touched, world) == before, rows[-1]
    return rows


def touched(world: World) -> object:
    """Everything that somebody could have changed: mails, their labels, what was sent, what was recorded of them."""
    state = world.servers.state()
    recorded = world.bench.sql("SELECT count(*) FROM mail_category")
    return state["mailboxes"], state["sent"], recorded


def table(rows: Sequence[Row]) -> str:
    """As it stands in the document."""
    head = ("agent", "tries to", "outcome", "refused by", "on record")
    return grid(head, [(row.who, row.what, row.outcome, row.by, row.record) for row in rows])
