"""A handed-over login lives for its `ttl`; whoever holds it may have it renewed, up to what everybody allows."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import httpx
import psycopg
import pytest
from apis import Apis, apis_on, call, opened
from bench import Bench
from desks import AGENT, OTHER, RENEWABLE, loaded_task, open_desk
from fork_server import ForkServer
from waiting import wait_for

from orchestrator.agents.authentication import Caller
from orchestrator.errors import NotRenewed, Refused, UnknownRun, Unreachable
from orchestrator.ledger.events import LeaseRenewed
from orchestrator.ledger.states import RunState
from orchestrator.ledger.types import LeaseFilter
from orchestrator.policy.engines.rego.engine import PolicySource, RegoEngine
from orchestrator.tasks import renewing
from orchestrator.tasks.desk import TaskDesk
from orchestrator.tasks.renewing import check_renewable
from orchestrator.tasks.results import CallState, HandedOver


@pytest.fixture
def renewable(bench: Bench) -> Bench:
    bench.install(loaded_task(RENEWABLE).workflow)
    return bench


@asynccontextmanager
async def holding(bench: Bench, desk: TaskDesk) -> AsyncIterator[HandedOver]:
    """A login that an agent holds, and after that: nothing is left."""
    task = await desk.open(AGENT, "complaint_desk", {"customer": 1234})
    result = await desk.call(AGENT, task.task_id, "login", {}, "k1")
    assert result.state is CallState.HANDED_OVER, result.reason
    assert result.handed is not None
    yield result.handed
    await desk.give_back(AGENT, result.handed.lease.lease_id)
    bench.assert_nothing_left()
    assert desk.services.reader.examine(result.call_id).whole


@asynccontextmanager
async def two_desks(bench: Bench) -> AsyncIterator[tuple[TaskDesk, TaskDesk]]:
    async with open_desk(bench, RENEWABLE) as here, open_desk(bench, RENEWABLE) as there:
        yield here, there


@contextmanager
def session_of(bench: Bench, handed: HandedOver) -> Iterator[psycopg.Connection[Any]]:
    fields = {name: value.reveal() for name, value in handed.credential.fields.items()}
    address = psycopg.conninfo.conninfo_to_dict(bench.provisioned.endpoints["support"])
    login = {"user": fields["username"], "password": fields["password"]}
    with psycopg.connect(**{**address, **login}, autocommit=True) as session:
        yield session


def is_held(bench: Bench, handed: HandedOver) -> bool:
    return handed.lease.subject in bench.logins()


async def until(moment: datetime, desk: TaskDesk) -> None:
    await asyncio.sleep(max(0.0, (moment - desk.services.clock.now()).total_seconds()))


async def state_of(desk: TaskDesk, handed: HandedOver) -> RunState:
    await desk._reach.until_ended([handed.lease.run_id], seconds=20)
    record = desk.services.reader.run(handed.lease.run_id)
    assert record is not None
    return record.state


async def test_whoever_renews_has_it_for_longer(renewable: Bench) -> None:
    async with open_desk(renewable, RENEWABLE) as desk, holding(renewable, desk) as handed:
        with session_of(renewable, handed) as session:
            first = handed.expires_at
            await until(first - timedelta(seconds=1.5), desk)
            lease = await desk.renew(AGENT, handed.lease.lease_id)
            assert lease.expires_at is not None
            assert timedelta(seconds=2) <= lease.expires_at - first <= timedelta(seconds=4)
            (event,) = desk.services.reader.events(lease.run_id, kind=LeaseRenewed.kind)
            assert event.data["ttl"] == lease.ttl == 4
            await until(first + timedelta(seconds=0.8), desk)
            assert session.execute("SELECT count(*) FROM (SELECT id FROM customer_feedback) x").fetchone() != (0,)
            assert is_held(renewable, handed)


async def test_whoever_does_not_renew_loses_it_after_its_ttl(renewable: Bench) -> None:
    async with open_desk(renewable, RENEWABLE) as desk, holding(renewable, desk) as handed:
        await until(handed.expires_at - timedelta(seconds=1), desk)
        assert is_held(renewable, handed)
        assert await state_of(desk, handed) is RunState.SUCCEEDED
        assert desk.services.clock.now() <= handed.expires_at + timedelta(seconds=3)
        assert not is_held(renewable, handed)
        with pytest.raises(NotRenewed, match="has ended"):
            await desk.renew(AGENT, handed.lease.lease_id)


async def test_nobody_has_it_for_longer_than_the_file_says(renewable: Bench) -> None:
    async with open_desk(renewable, RENEWABLE) as desk, holding(renewable, desk) as handed:
        assert handed.lease.issued_at is not None
        latest = handed.lease.issued_at + timedelta(seconds=12)
        renewals = 0
        while (record := desk.services.reader.run(handed.lease.run_id)) and record.state is RunState.RUNNING:
            try:
                lease = await desk.renew(AGENT, handed.lease.lease_id)
            except NotRenewed:
                break
            renewals += 1
            assert lease.expires_at is not None
            assert lease.expires_at <= latest + timedelta(seconds=1)
            await asyncio.sleep(1)
        assert renewals >= 9
        assert await state_of(desk, handed) is RunState.SUCCEEDED
        assert desk.services.clock.now() <= latest + timedelta(seconds=3)
        assert not is_held(renewable, handed)


async def test_no_longer_than_the_policy_says(renewable: Bench) -> None:
    rules = 'package orchestrator\ndecision := {"allow": true, "obligations": {"max_ttl": 6}}\n'
    policy = RegoEngine.from_sources([PolicySource("p.rego", rules)])
    async with open_desk(renewable, RENEWABLE, policy=policy) as desk, holding(renewable, desk) as handed:
        assert handed.lease.issued_at is not None
        latest = handed.lease.issued_at + timedelta(seconds=6)
        await until(handed.expires_at - timedelta(seconds=0.8), desk)
        lease = await desk.renew(AGENT, handed.lease.lease_id)
        assert lease.expires_at is not None
        assert handed.expires_at < lease.expires_at <= latest + timedelta(seconds=1)
        assert await state_of(desk, handed) is RunState.SUCCEEDED
        assert not is_held(renewable, handed)
        assert desk.services.clock.now() <= latest + timedelta(seconds=3)


async def test_no_longer_than_the_task_lasts(bench: Bench) -> None:
    text = RENEWABLE.replace("duration: 10m", "duration: 7s")
    bench.install(loaded_task(text).workflow)
    async with open_desk(bench, text) as desk, holding(bench, desk) as handed:
        task = desk.services.reader.task(desk.services.reader.run(handed.lease.run_id).task)  # type: ignore[union-attr,arg-type]
        assert task is not None
        await until(handed.expires_at - timedelta(seconds=1), desk)
        lease = await desk.renew(AGENT, handed.lease.lease_id)
        assert lease.expires_at is not None
        assert handed.expires_at < lease.expires_at <= task.deadline + timedelta(seconds=1)
        await state_of(desk, handed)
        assert not is_held(bench, handed)


async def test_any_process_renews(renewable: Bench) -> None:
    async with two_desks(renewable) as (here, there), holding(renewable, here) as handed:
        await until(handed.expires_at - timedelta(seconds=2.5), here)
        lease, again = await asyncio.gather(
            there.renew(AGENT, handed.lease.lease_id), there.renew(AGENT, handed.lease.lease_id)
        )
        assert lease.expires_at is not None
        assert lease.expires_at > handed.expires_at + timedelta(seconds=1)
        assert again.expires_at is not None
        assert again.expires_at >= lease.expires_at
        await until(handed.expires_at + timedelta(seconds=0.5), here)
        assert is_held(renewable, handed)
        assert here.services.heartbeat.store.renewal(handed.lease.run_id) is None


@pytest.mark.parametrize("caller", [OTHER, replace(AGENT, actor={"sub": "complaint"})], ids=["other", "on-behalf"])
async def test_nobody_renews_what_another_has(renewable: Bench, caller: Caller) -> None:
    async with open_desk(renewable, RENEWABLE) as desk, holding(renewable, desk) as handed:
        for lease_id in (handed.lease.lease_id, "lease_00000000000000000000000000", "../sys", "%"):
            with pytest.raises(UnknownRun, match="of yours"):
                await desk.renew(caller, lease_id)
        assert not desk.services.reader.events(handed.lease.run_id, kind=LeaseRenewed.kind)


async def test_what_the_file_does_not_let_live_longer_is_not_renewed(bench: Bench) -> None:
    bench.install(loaded_task().workflow)
    async with open_desk(bench) as desk:
        task = await desk.open(AGENT, "complaint_desk", {"customer": 1234})
        for tool in ("login", "ticket"):
            result = await desk.call(AGENT, task.task_id, tool, {}, tool)
            assert result.held is not None
            with pytest.raises(NotRenewed, match="cannot be renewed"):
                await desk.renew(AGENT, result.held.lease_id)
            await desk.give_back(AGENT, result.held.lease_id)
    bench.assert_nothing_left()


async def test_only_what_was_handed_over_is_renewed(renewable: Bench) -> None:
    """A call has a token of its own besides, and a login that looks whether others are gone is of no tool."""
    async with open_desk(renewable, RENEWABLE) as desk, holding(renewable, desk) as handed:
        of_call = desk.services.reader.leases(LeaseFilter(run=handed.lease.run_id))
        others = [lease for lease in of_call if lease.lease_id != handed.lease.lease_id]
        assert {lease.grant for lease in others} >= {"(step token)", "(bind)"}
        for lease in (*others, replace(handed.lease, step="(run)")):
            with pytest.raises(NotRenewed, match="cannot be renewed"):
                check_renewable(loaded_task(RENEWABLE).workflow.tools, lease)
        for lease in others:
            with pytest.raises(NotRenewed, match="cannot be renewed"):
                await desk.renew(AGENT, lease.lease_id)


async def test_vaults_no_is_told_at_any_process(renewable: Bench) -> None:
    async with two_desks(renewable) as (here, there), holding(renewable, here) as handed:
        renewable.vault.sys.revoke_lease(handed.lease.vault_lease_id)
        wait_for(lambda: not is_held(renewable, handed), "the login to go")
        for desk in (here, there):
            with pytest.raises(Refused, match="was not renewed") as refused:
                await desk.renew(AGENT, handed.lease.lease_id)
            assert refused.value.by == "vault"


async def test_a_process_that_does_not_answer(renewable: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(renewing, "ANSWER_SECONDS", 0.3)
    async with two_desks(renewable) as (here, there), holding(renewable, here) as handed:
        here.services.heartbeat._over.set()
        with pytest.raises(Unreachable, match="does not answer"):
            await there.renew(AGENT, handed.lease.lease_id)


async def test_what_is_given_back_meanwhile_ends_at_once(renewable: Bench) -> None:
    """Vault does not answer the renewal; nobody waits for that to give a login back."""
    async with open_desk(renewable, RENEWABLE) as desk, holding(renewable, desk) as handed:
        vault = desk.services.broker.vault
        asked, renew = asyncio.Event(), vault.renew_lease

        async def silent(*args: Any, **more: Any) -> int:
            asked.set()
            await asyncio.sleep(3600)
            return await renew(*args, **more)

        vault.renew_lease = silent  # type: ignore[method-assign]
        renewal = asyncio.create_task(desk.renew(AGENT, handed.lease.lease_id))
        await asked.wait()
        assert await desk.give_back(AGENT, handed.lease.lease_id)
        assert not is_held(renewable, handed)
        with pytest.raises(NotRenewed):
            await renewal
        vault.renew_lease = renew  # type: ignore[method-assign]


class TestOverHttp:
    """`POST /v1/leases/{id}/renew`, at the process that has it and at another one."""

    @pytest.fixture
    def apis(self, bench: Bench, children: ForkServer) -> Iterator[Apis]:
        with apis_on(bench, children) as apis:
            apis.put(RENEWABLE)
            yield apis

    def test_at_any_process(self, apis: Apis) -> None:
        with apis.client(apis.start()) as here, apis.client(apis.start()) as there:
            task = opened(here)["id"]
            got = call(here, task, "login").json()
            ends = got["lease"]["expires_at"]
            for client in (there, here):
                answer = client.post(f"/v1/leases/{got['lease']['id']}/renew")
                assert answer.status_code == 200, answer.text
                document = answer.json()
                assert document["expires_at"] > ends
                assert {**document, "expires_at": ""} == {**got["lease"], "expires_at": ""}
                ends = document["expires_at"]
            assert got["credential"]["fields"]["password"] not in answer.text
            assert problem(there, "lease_00000000000000000000000000") == (404, "not-found")
            assert here.delete(f"/v1/leases/{got['lease']['id']}").status_code == 200
            assert problem(there, got["lease"]["id"]) == problem(here, got["lease"]["id"]) == (409, "not-renewed")
            token = call(here, task, "ticket").json()
            assert problem(here, token["lease"]["id"]) == (409, "not-renewed")
            assert here.delete(f"/v1/tasks/{task}").status_code == 200


def problem(client: httpx.Client, lease_id: str) -> tuple[int, str]:
    answer = client.post(f"/v1/leases/{lease_id}/renew")
    return answer.status_code, answer.json()["type"].rpartition(":")[2]
