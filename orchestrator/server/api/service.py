"""The API as a part of `orchestrator serve`: its listener, and what it does again and again."""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import socket
from collections.abc import AsyncIterator, Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from starlette.routing import BaseRoute

from orchestrator.agents.authentication import Authentication
from orchestrator.agents.declared import load_agents
from orchestrator.errors import UsageError
from orchestrator.network.origins import is_confidential, parse
from orchestrator.runs.types import Services
from orchestrator.server.api.application import application
from orchestrator.server.api.callers import Callers, Rates
from orchestrator.server.api.inquiries import Inquiries
from orchestrator.server.api.oauth.endpoints import OAuth
from orchestrator.server.api.oauth.metadata import Metadata
from orchestrator.server.api.oauth.operations import TOKEN
from orchestrator.server.api.oauth.possession import Proofs
from orchestrator.server.api.operations import Operations
from orchestrator.server.api.tls import ApiProtocol, TlsFiles, only_here
from orchestrator.server.listener import bind, listening
from orchestrator.server.maintenance import Maintenance
from orchestrator.tasks.closing import close_what_is_over
from orchestrator.tasks.desk import TaskDesk
from orchestrator.tasks.inquiry import Inquiry
from orchestrator.tasks.reach import Reach
from orchestrator.workflow.loader import LoadedWorkflow

log = logging.getLogger(__name__)

Door = Callable[[Operations], AbstractAsyncContextManager[Sequence[BaseRoute]]]
"""Another way in to the same tasks: what it answers, while its context is open."""

CLOSING_SECONDS = 1.0
"""Between two looks for tasks that are over."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiConfig:
    """Where the API answers, to whom, and with which certificate. Rates are for each agent, in this process.

    `doors` answer at the same address. `url` is how others reach it: without one, at the address itself.
    """

    address: str
    agents: Path
    tls: TlsFiles | None = None
    per_second: float = 50.0
    doors: tuple[Door, ...] = ()
    url: str | None = None

    def bound(self) -> socket.socket:
        """The listening socket. Raises UsageError, also for an address that others reach without TLS."""
        host = self.address.rpartition(":")[0]
        if self.tls is None and not only_here(host):
            raise UsageError(
                f"the API hands out credentials, and {self.address} is not of this machine alone",
                hint="give --api-cert and --api-key, or 127.0.0.1 with a proxy before it that has TLS",
            )
        if self.url is not None:
            _checked_url(self.url)
        return bind(self.address)

    def reached_at(self, bound: socket.socket) -> str | None:
        """The URL by which others reach it, without a slash at its end; None where that cannot be known."""
        if self.url is not None:
            return self.url.rstrip("/")
        host, port = bound.getsockname()[:2]
        if ipaddress.ip_address(host).is_unspecified:
            return None
        return f"{'http' if self.tls is None else 'https'}://{f'[{host}]' if ':' in host else host}:{port}"


def _checked_url(url: str) -> None:
    try:
        parts = parse(url)
        if parts.query or parts.fragment or not is_confidential(url):
            raise ValueError("it is to be https, or of this machine, and has neither query nor fragment")
    except ValueError as error:
        raise UsageError(f"--api-url: {error}", hint="such as https://broker.example") from error


class Types(Mapping[str, LoadedWorkflow]):
    """The types of tasks as the files are now."""

    def __init__(self, known: Callable[[], Mapping[str, LoadedWorkflow]]) -> None:
        self._known = known

    def __getitem__(self, name: str) -> LoadedWorkflow:
        return self._known()[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._known())

    def __len__(self) -> int:
        return len(self._known())


@dataclass(frozen=True, slots=True)
class Api:
    """The API while it answers."""

    operations: Operations
    services: Services

    def hooks(self) -> Sequence[Maintenance]:
        """What is done beside."""
        return [closing(self.services)]

    async def drain(self, seconds: float, hurry: asyncio.Event) -> None:
        """Begin nothing new, let what goes on end within so many seconds, and then take everything back."""
        self.operations.draining.set()
        await self.operations.desk.aclose("the service was stopped", seconds=seconds, hurry=hurry)


def closing(services: Services) -> Maintenance:
    """Close the tasks that are over, again and again."""
    reach = Reach.of_services(services)

    async def close() -> None:
        for task in await close_what_is_over(reach):
            log.info("task %s is over", task.task_id, extra={"task": task.task_id, "agent": task.agent})

    return CLOSING_SECONDS, close


@asynccontextmanager
async def answering(
    config: ApiConfig,
    bound: socket.socket,
    services: Services,
    types: Mapping[str, LoadedWorkflow],
    signing_keys: Callable[[], Collection[str]] = frozenset,
) -> AsyncIterator[Api]:
    """Answer agents until the context is left; `signing_keys` are published.

    Raises UsageError for a declaration that is not right.
    """
    agents = load_agents(config.agents)
    context = config.tls.context() if config.tls else None
    callers = Callers(
        Authentication(agents, config.agents.parent, services.clock),
        Rates(services.clock, per_second=config.per_second, burst=2 * config.per_second),
    )
    inquiry, url = Inquiry(services), config.reached_at(bound)
    inquiries = Inquiries(inquiry, callers)
    operations = Operations(TaskDesk(services, types), callers)
    oauth = OAuth(operations, inquiries, inquiry, Proofs(services, None if url is None else url + TOKEN))
    certificates = config.tls is not None and config.tls.client_authorities is not None
    metadata = Metadata(services.broker.token_issuer, url, inquiry.keys, signing_keys, certificates)
    host, port = bound.getsockname()[:2]
    async with AsyncExitStack() as doors:
        routes = [route for door in config.doors for route in await doors.enter_async_context(door(operations))]
        app = application(operations, inquiries, oauth, (*metadata.routes(), *routes))
        async with listening(app, bound, protocol=ApiProtocol, tls=context):
            log.info("the API answers at %s:%d", host, port, extra={"api": f"{host}:{port}"})
            try:
                yield Api(operations, services)
            finally:
                operations.draining.set()
                await doors.aclose()
                await operations.desk.aclose("the service was stopped", seconds=0)
