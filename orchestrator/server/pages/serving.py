"""The pages in a process that stays: what they are made of there, and how they end with it."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from starlette.routing import BaseRoute

from orchestrator.ledger.coordination.schedules import ScheduleStates
from orchestrator.network.origins import origin
from orchestrator.runs.types import Services
from orchestrator.scheduling.folder import WorkflowFolder
from orchestrator.server.connections import BoundedProtocol
from orchestrator.server.pages.answers import ROOT
from orchestrator.server.pages.application import page_routes
from orchestrator.server.pages.live import Live
from orchestrator.server.pages.login.declared import Login
from orchestrator.server.pages.login.door import Door
from orchestrator.server.pages.login.inside import Inside
from orchestrator.server.pages.login.openid import OpenId
from orchestrator.server.pages.rendering import prepare
from orchestrator.server.pages.sessions import Sessions
from orchestrator.server.pages.sources import Sources
from orchestrator.server.pages.views.runs import changing_part


class PagesProtocol(BoundedProtocol):
    """The limits of a listener with pages: a run may be followed for longer than a request may take."""

    most = 128
    patient = True


def sources_of(services: Services, schedules: ScheduleStates, folder: WorkflowFolder) -> Sources:
    """What a process of `serve` has."""
    return Sources(
        reader=services.reader,
        log=services.checkpointing.store,
        approvals=services.approvals.store,
        runners=services.heartbeat.store,
        schedules=schedules,
        clock=services.clock,
        workflows=lambda: folder.workflows,
    )


def inside_of(services: Services, login: Login, listener: str) -> Inside:
    """What those may do who have logged in, in a process of `serve` that listens at `listener`."""
    url = login.url or origin(f"http://{listener}")
    door = Door(
        url,
        login.roles,
        Sessions(services.clock),
        services.broker.vault,
        services.own_secrets.remember_token,
        None if login.provider is None else OpenId(login.provider, f"{url}{ROOT}/login/openid/back", services.clock),
    )
    return Inside(door, services.approvals, services.heartbeat.store, services.reader)


class Pages:
    """The routes, until they are closed; without `inside` nobody logs in."""

    def __init__(self, sources: Sources, inside: Inside | None = None) -> None:
        prepare()
        self._live = Live(sources.reader, partial(changing_part, sources))
        self.routes: Sequence[BaseRoute] = page_routes(sources, self._live, inside)
        self.protocol: type[BoundedProtocol] = PagesProtocol

    async def aclose(self) -> None:
        """End what browsers follow, before the listener waits for what is being answered."""
        await self._live.aclose()
