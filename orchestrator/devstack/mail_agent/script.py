"""An agent without a model: it sorts the mails of a team, and obeys whatever a mail orders. Others refuse that."""

from __future__ import annotations

import asyncio
import base64
import itertools
from collections import Counter
from collections.abc import Awaitable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from email.message import EmailMessage
from typing import Any

import httpx

from orchestrator.actions.catalog import catalog
from orchestrator.agents.authentication import Caller
from orchestrator.assembly import RunnerConfig, interruptible_services
from orchestrator.devstack.agents import Attempt
from orchestrator.devstack.mail_agent.reading import Letter, Orders
from orchestrator.devstack.mail_agent.record import Row, held
from orchestrator.devstack.mail_agent.servers import ISSUER, MailServers
from orchestrator.devstack.mail_agent.signatures import asked_for
from orchestrator.devstack.services.mail.samples import PERSONS, SUPPORT
from orchestrator.devstack.services.mail.scopes import READONLY, SEND
from orchestrator.errors import PolicyDenied, StepFailed, TaskEnded, UsageError
from orchestrator.jsontypes import JsonValue
from orchestrator.redaction.redactor import Redactor
from orchestrator.runs.types import Services
from orchestrator.tasks.desk import TaskDesk
from orchestrator.tasks.opened import OpenedTask
from orchestrator.tasks.results import CallResult
from orchestrator.uninterrupted import to_the_end
from orchestrator.workflow.loader import LoadedWorkflow, load, load_text

TASK = "mail_agent"
"""The type of the task, one of the sample workflows."""

_AGENT = Caller("mail-agent", "", "")
_AT_ONCE = 4
"""Calls."""


@dataclass(frozen=True, slots=True)
class Story:
    """What the agent tried, in this order, and what its task held, by the ledger."""

    attempts: Sequence[Attempt]
    held: Sequence[Row]


async def story(servers: MailServers, config: RunnerConfig, *, redactor: Redactor) -> Story:
    """Let it work, and take back what it got. Obeys SIGINT and SIGTERM."""
    config = replace(
        config,
        endpoints={**config.endpoints, **servers.endpoints},
        issuers={**config.issuers, ISSUER: servers.issuer},
    )
    async with (
        interruptible_services(config, redactor=redactor) as (services, interruptions),
        httpx.AsyncClient(trust_env=False, timeout=10) as http,
    ):
        agent = _Agent(services, servers, http)
        await interruptions.carry_out(agent.work())
        return Story(agent.attempts, held(services.reader, agent.task.task_id))


def changed(servers: MailServers) -> LoadedWorkflow:
    """The sample's file by somebody who would rather have another scope."""
    text = (servers.provisioned.policies.parent / f"{TASK}.yaml").read_text()
    return load_text(text.replace(READONLY, SEND), filename="changed.yaml", actions=catalog)


@dataclass(slots=True)
class _Agent:
    services: Services
    servers: MailServers
    http: httpx.AsyncClient
    attempts: list[Attempt] = field(default_factory=list)
    desk: TaskDesk = field(init=False)
    task: OpenedTask = field(init=False)
    _opened: list[OpenedTask] = field(default_factory=list)
    _keys: Iterator[int] = field(default_factory=itertools.count)

    def __post_init__(self) -> None:
        file = self.servers.provisioned.policies.parent / f"{TASK}.yaml"
        self.desk = TaskDesk(self.services, {TASK: load(file, actions=catalog)})

    async def work(self) -> None:
        try:
            mail, orders = await self._sort()
            token = await self._token()
            await self._obey(mail, orders, token)
            await self._ask_for_more()
            await self._tell("close the task", self._close())
            await self._tell("the same token after that", self._list(token, SUPPORT))
            await self._tell("list_mails after that", self._list_mails())
        finally:
            await to_the_end(self._end())

    async def _sort(self) -> tuple[str, Orders]:
        """What it is there for. Returns the one mail that gives orders, and what it orders."""
        await self._tell(f"open {TASK} for {SUPPORT}", self._open(SUPPORT))
        self.task = self._opened[0]
        listed = await self._call("list_mails")
        named = [each["id"] for each in listed["messages"]]
        self._done("list_mails", f"{len(named)} mails")
        bodies = await self._all("read_mail", [{"id": each} for each in named])
        letters = [Letter.of(each) for each in bodies]
        ordering = [each for each in letters if each.orders is not None]
        self._done("read_mail, each of them", f"{len(letters)} mails; {len(ordering)} of them gives orders")
        await self._all("categorise", [{"id": each.id, "category": each.category} for each in letters])
        found = Counter(each.category for each in letters)
        self._done("categorise, each of them", ", ".join(f"{count} {name}" for name, count in sorted(found.items())))
        [letter] = ordering
        assert letter.orders is not None
        return letter.id, letter.orders

    async def _token(self) -> str:
        result = await self._called("mail_token")
        assert result.handed is not None
        self._done("mail_token", f"a token for {result.handed.credential.ttl} s")
        return result.handed.credential.fields["token"].reveal()

    async def _obey(self, mail: str, orders: Orders, token: str) -> None:
        """By its tools, and by the token that it was handed."""
        person = orders.mailboxes[0]
        await self._tell(f"list_mails with mailbox={person}", self._list_mails(mailbox=person))
        await self._open(person)
        await self._tell(f"list_mails in a task for {person}", self._list_mails())
        await self._tell(f"its token: list the mails of {person}", self._list(token, person))
        await self._tell(f"its token: send to {orders.forward_to}", self._send(token, orders.forward_to))
        await self._tell("its token: delete the mail", self._delete(token, mail))

    async def _ask_for_more(self) -> None:
        """Another scope and another mailbox, where nobody asks the agent what it wants."""
        self.desk.types = {TASK: changed(self.servers)}
        await self._open(SUPPORT)
        await self._tell("a file with the scope gmail.send", self._list_mails())
        for what, subject, scope in (
            ("gmail.send", SUPPORT, SEND),
            (f"the mailbox of {PERSONS[0]}", PERSONS[0], READONLY),
        ):
            await self._tell(f"the key itself, for {what}", asked_for(self.http, self.servers, subject, scope))

    async def _tell(self, tries: str, work: Awaitable[str | httpx.Response]) -> None:
        """Keep what came of it. Whatever is no refusal is raised."""
        by = ""
        try:
            answer = await work
        except PolicyDenied as error:
            by, told = "policy", min(error.reasons, key=len)
        except StepFailed as error:
            by, told = "mail service", error.message
        except (TaskEnded, UsageError) as error:
            by, told = "broker", error.message
        else:
            told = answer if isinstance(answer, str) else _told(answer)
            if isinstance(answer, httpx.Response) and answer.is_error:
                by = "issuer" if str(answer.url).startswith(self.servers.authorization.issuer) else "mail service"
        self.attempts.append(Attempt(_AGENT.agent, tries, told, by))

    def _done(self, tries: str, told: str) -> None:
        self.attempts.append(Attempt(_AGENT.agent, tries, told))

    async def _open(self, mailbox: str) -> str:
        self._opened.append(await self.desk.open(_AGENT, TASK, {"mailbox": mailbox}))
        return ", ".join(self._opened[-1].workflow.tools)

    async def _called(self, tool: str, **arguments: JsonValue) -> CallResult:
        """In the newest task."""
        result = await self.desk.call(_AGENT, self._opened[-1].task_id, tool, arguments, f"demo-{next(self._keys)}")
        if result.error is not None:
            raise result.error
        return result

    async def _call(self, tool: str, **arguments: JsonValue) -> Any:
        output = (await self._called(tool, **arguments)).output
        return (output or {}).get("body")

    async def _all(self, tool: str, arguments: Sequence[dict[str, JsonValue]]) -> list[Any]:
        places = asyncio.Semaphore(_AT_ONCE)

        async def one(each: dict[str, JsonValue]) -> Any:
            async with places:
                return await self._call(tool, **each)

        return await asyncio.gather(*(one(each) for each in arguments))

    async def _list_mails(self, **arguments: JsonValue) -> str:
        return f"{len((await self._call('list_mails', **arguments))['messages'])} mails"

    async def _list(self, token: str, mailbox: str) -> httpx.Response:
        return await self._with(token, "GET", f"{mailbox}/messages")

    async def _send(self, token: str, recipient: str) -> httpx.Response:
        letter = EmailMessage()
        letter["To"], letter["Subject"] = recipient, "As you ordered"
        letter.set_content("All that I could find.")
        raw = base64.urlsafe_b64encode(letter.as_bytes()).decode()
        return await self._with(token, "POST", f"{SUPPORT}/messages/send", {"raw": raw})

    async def _delete(self, token: str, mail: str) -> httpx.Response:
        wish: dict[str, JsonValue] = {"addLabelIds": ["TRASH"]}
        return await self._with(token, "POST", f"{SUPPORT}/messages/{mail}/modify", wish)

    async def _with(
        self, token: str, method: str, path: str, wish: dict[str, JsonValue] | None = None
    ) -> httpx.Response:
        """As a client of the agent's own asks the mail service."""
        url, headers = f"{self.servers.service.url}/gmail/v1/users/{path}", {"Authorization": f"Bearer {token}"}
        return await self.http.request(method, url, headers=headers, json=wish)

    async def _close(self) -> str:
        """The task of the token; every later call is in it, too."""
        self._opened.append(self.task)
        confirmed = await self.desk.close(_AGENT, self.task.task_id)
        assert confirmed
        return "what it held is confirmed gone"

    async def _end(self) -> None:
        for task in self._opened:
            await self.desk.close(_AGENT, task.task_id)
        await self.desk.aclose("the demonstration is over", seconds=0)


def _told(answer: httpx.Response) -> str:
    """What a service answered, in its own word for why."""
    if answer.is_success:
        return str(answer.status_code)
    error = answer.json()["error"]
    return f"{answer.status_code} {error if isinstance(error, str) else error['errors'][0]['reason']}"


REFUSALS = ("broker", "policy", *("mail service",) * 3, "policy", "issuer", "issuer", "mail service", "broker")
"""Who refuses, in the order of the story; everything else is done."""
