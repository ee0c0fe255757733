"""Tasks on the real servers: what an agent may do is what the file, the call and the policy allow, while it is open."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from datetime import timedelta
from typing import Any

import psycopg
import pytest
from bench import Bench
from desks import AGENT, OTHER, TASK, loaded_task, open_desk
from joserfc import jwt

from orchestrator.agents.authentication import Caller
from orchestrator.approvals.people import owner_of
from orchestrator.approvals.votes import Verdict
from orchestrator.errors import (
    AgentBlocked,
    BudgetSpent,
    ExitCode,
    PolicyDenied,
    TaskEnded,
    UnknownRun,
    UnknownTask,
    UsageError,
)
from orchestrator.grants.credential import Credential
from orchestrator.ledger.events import AttemptWaits, LeaseRequested
from orchestrator.ledger.ids import new_lease_id
from orchestrator.ledger.lease import LeaseState
from orchestrator.ledger.states import ApprovalState, RunState, TaskState
from orchestrator.ledger.task_events import TaskClosed
from orchestrator.ledger.types import LeaseFilter, LeaseRecord
from orchestrator.policy.engines.rego.engine import PolicySource, RegoEngine
from orchestrator.recovery.resumption import resume
from orchestrator.runs.types import Interruption
from orchestrator.secret import Secret
from orchestrator.tasks.closing import close_what_is_over, cut_off
from orchestrator.tasks.desk import Leaving, TaskDesk
from orchestrator.tasks.errors import KeyUsed, UnknownTool
from orchestrator.tasks.reach import Reach
from orchestrator.tasks.results import CallResult, CallState, HandedOver

SLEEPING = "SELECT pid FROM pg_stat_activity WHERE usename LIKE 'orc\\_pause%' AND wait_event = 'PgSleep'"


@pytest.fixture
def provisioned(bench: Bench) -> Bench:
    bench.install(loaded_task().workflow)
    return bench


def rego(rules: str) -> RegoEngine:
    return RegoEngine.from_sources([PolicySource("p.rego", f"package orchestrator\nimport rego.v1\n{rules}\n")])


def granted(desk: TaskDesk, task_id: str, grant: str = "db") -> list[LeaseRecord]:
    """What was asked of Vault for the calls, without what it takes to look whether it is gone."""
    found = desk.services.reader.leases(LeaseFilter(task=task_id))
    return [lease for lease in found if lease.grant == grant]


async def eventually(condition: Any, what: str, seconds: float = 60) -> None:
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.05)


def connect(bench: Bench, credential: Credential) -> psycopg.Connection[Any]:
    fields = {name: value.reveal() for name, value in credential.fields.items()}
    address = psycopg.conninfo.conninfo_to_dict(bench.provisioned.endpoints["support"])
    return psycopg.connect(**{**address, "user": fields["username"], "password": fields["password"]})


async def handed(desk: TaskDesk, task: str, tool: str, key: str, caller: Caller = AGENT) -> HandedOver:
    result = await desk.call(caller, task, tool, {}, key)
    assert result.state is CallState.HANDED_OVER, (result.state, result.reason)
    assert result.handed is not None
    return result.handed


def verified(desk: TaskDesk, *ids: str) -> bool:
    return all(desk.services.reader.examine(each).whole for each in ids)


async def test_an_action_is_carried_out_and_the_agent_sees_its_output(provisioned: Bench) -> None:
    async with open_desk(provisioned) as desk:
        task = await desk.open(AGENT, "complaint_desk", {"customer": 1234}, reason="case 12", address="10.0.0.7")
        result = await desk.call(AGENT, task.task_id, "read", {"limit": 2}, "k1", address="10.0.0.8")
        assert (result.state, result.confirmed, result.reason) == (CallState.DONE, True, "")
        everything = provisioned.sql("SELECT id FROM customer_feedback WHERE customer_id = 1234 ORDER BY id")
        assert result.output is not None
        assert [row["id"] for row in result.output["rows"]] == everything[:2]
        provisioned.assert_nothing_left()
        (call,) = desk.services.reader.calls(task.task_id)
        assert (call.run_id, call.agent, call.trigger) == (result.call_id, "complaint-agent", "call")
        started = desk.services.reader.events(result.call_id)[0].data
        assert (started["task"], started["call"], started["reason"]) == (task.task_id, {"limit": 2}, "case 12")
        assert started["caller"] == {
            "issuer": "vault",
            "subject": "entity-1",
            "actor": None,
            "on_behalf_of": "",
            "address": "10.0.0.8",
        }
        opened = desk.services.reader.events(task.task_id)[0].data
        assert (opened["context"], opened["caller"]["address"]) == ({"customer": 1234}, "10.0.0.7")
        assert verified(desk, task.task_id, result.call_id)


async def test_a_handed_over_login_has_the_rows_of_the_file_until_it_is_given_back(provisioned: Bench) -> None:
    async with open_desk(provisioned) as desk:
        task = await desk.open(AGENT, "complaint_desk", {"customer": 1234})
        got = await handed(desk, task.task_id, "login", "k1")
        assert got.credential.ttl <= 60
        assert got.lease.scope["privileges"][0]["where"] == {"customer_id": "1234"}
        with connect(provisioned, got.credential) as session:
            mine = [row[0] for row in session.execute("SELECT id FROM customer_feedback ORDER BY id")]
            assert mine == provisioned.sql("SELECT id FROM customer_feedback WHERE customer_id = 1234 ORDER BY id")
            assert mine != []
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                session.execute("SELECT customer_id FROM customer_feedback")
            assert await desk.give_back(AGENT, got.lease.lease_id)
            provisioned.assert_nothing_left()
            with pytest.raises(psycopg.OperationalError):
                session.execute("SELECT 1")
        with pytest.raises(psycopg.OperationalError):
            connect(provisioned, got.credential)
        (call,) = desk.services.reader.calls(task.task_id)
        assert call.state is RunState.SUCCEEDED
        assert await desk.give_back(AGENT, got.lease.lease_id), "again: it is gone"


async def test_a_token_is_for_what_the_task_is_for(provisioned: Bench) -> None:
    async with open_desk(provisioned) as desk:
        task = await desk.open(AGENT, "complaint_desk", {"customer": 1234})
        got = await handed(desk, task.task_id, "ticket", "k1")
        claims = json.loads(jwt_payload(got.credential.fields["token"].reveal()))
        assert claims["authorization_details"] == [
            {"type": "crm_record", "actions": ["write_ticket"], "identifier": "1234"}
        ]
        assert (claims["sub"], claims["aud"]) == ("complaint-agent", "crm")
        assert await desk.close(AGENT, task.task_id)
        assert desk.services.reader.leases(LeaseFilter(task=task.task_id, states=frozenset({LeaseState.ISSUED}))) == []
    provisioned.assert_nothing_left()


def jwt_payload(token: str) -> str:
    import base64

    assert jwt is not None
    part = token.split(".")[1]
    return base64.urlsafe_b64decode(part + "=" * (-len(part) % 4)).decode()


WRONG_ARGUMENTS = {
    "too many": {"limit": 51},
    "too few": {"limit": 0},
    "another type": {"limit": "10"},
    "a truth value": {"limit": True},
    "one that is not declared": {"limit": 1, "customer": 1235},
    "nothing of it": {"Limit": 1},
}


@pytest.mark.parametrize("arguments", WRONG_ARGUMENTS.values(), ids=WRONG_ARGUMENTS)
async def test_what_the_call_does_not_declare_is_refused_before_anything_is_asked_for(
    provisioned: Bench, arguments: dict[str, Any]
) -> None:
    async with open_desk(provisioned) as desk:
        task = await desk.open(AGENT, "complaint_desk", {"customer": 1234})
        with pytest.raises(UsageError, match="argument"):
            await desk.call(AGENT, task.task_id, "read", arguments, "k1")
        with pytest.raises(UnknownTool, match="no tool `raed`"):
            await desk.call(AGENT, task.task_id, "raed", {}, "k1")
        assert desk.services.reader.calls(task.task_id) == []
        assert (await desk.call(AGENT, task.task_id, "read", {}, "k1")).state is CallState.DONE


async def test_nobody_uses_a_task_of_another(provisioned: Bench) -> None:
    delegated = replace(AGENT, subject="alice", actor={"sub": "entity-1"})
    async with open_desk(provisioned) as desk, open_desk(provisioned) as elsewhere:
        task = await desk.open(AGENT, "complaint_desk", {"customer": 1234})
        of_alice = await desk.open(delegated, "complaint_desk", {"customer": 1234})
        got = await handed(desk, task.task_id, "login", "k1")
        wrong = [
            (OTHER, task.task_id),
            (delegated, task.task_id),
            (AGENT, of_alice.task_id),
            (replace(delegated, subject="bob"), of_alice.task_id),
            (AGENT, "task_nothing"),
            (AGENT, desk.services.reader.calls(task.task_id)[0].run_id),
        ]
        for where in (desk, elsewhere):
            for caller, task_id in wrong:
                with pytest.raises(UnknownTask):
                    await where.task(caller, task_id)
                with pytest.raises(UnknownTask):
                    await where.call(caller, task_id, "read", {}, "k9")
                with pytest.raises(UnknownTask):
                    await where.close(caller, task_id)
            for caller in (OTHER, delegated):
                with pytest.raises(UnknownRun):
                    await where.give_back(caller, got.lease.lease_id)
            with pytest.raises(UnknownRun):
                await where.give_back(AGENT, got.lease.lease_id[:12])
        assert len(provisioned.logins()) == 1
        assert len(desk.services.reader.calls(task.task_id)) == 1
        assert (await desk.call(delegated, of_alice.task_id, "read", {}, "k1")).state is CallState.DONE


async def test_the_same_key_is_the_same_call(provisioned: Bench) -> None:
    async with open_desk(provisioned) as desk, open_desk(provisioned) as elsewhere:
        task = await desk.open(AGENT, "complaint_desk", {"customer": 1234})
        first = await desk.call(AGENT, task.task_id, "read", {"limit": 2}, "k1")
        for where in (desk, elsewhere):
            again = await where.call(AGENT, task.task_id, "read", {"limit": 2}, "k1")
            assert (again.call_id, again.state, again.output) == (first.call_id, first.state, first.output)
            with pytest.raises(KeyUsed):
                await where.call(AGENT, task.task_id, "read", {"limit": 3}, "k1")
            with pytest.raises(KeyUsed):
                await where.call(AGENT, task.task_id, "pause", {"seconds": 0}, "k1")
        assert len(desk.services.reader.calls(task.task_id)) == 1
        assert len(granted(desk, task.task_id)) == 1


async def test_the_same_key_at_once_is_carried_out_once(provisioned: Bench) -> None:
    async with open_desk(provisioned) as desk, open_desk(provisioned) as elsewhere:
        task = await desk.open(AGENT, "complaint_desk", {"customer": 1234})
        found = await asyncio.gather(
            *(where.call(AGENT, task.task_id, "pause", {"seconds": 1}, "k1") for where in (desk, elsewhere) * 3)
        )
        assert {each.call_id for each in found} == {found[0].call_id}
        assert {each.state for each in found} <= {CallState.DONE, CallState.RUNNING}
        assert CallState.DONE in {each.state for each in found}
        assert len(desk.services.reader.calls(task.task_id)) == 1
        assert len(granted(desk, task.task_id)) == 1


async def test_an_action_ends_with_its_caller_where_that_is_wanted(provisioned: Bench) -> None:
    async with open_desk(provisioned) as desk:
        task, reader = (await desk.open(AGENT, "complaint_desk", {"customer": 1234})).task_id, desk.services.reader
        for leaving in Leaving:
            arguments, key = {"seconds": 2 if leaving is Leaving.CARRIES_ON else 60}, leaving.value
            slow = asyncio.create_task(desk.call(AGENT, task, "pause", arguments, key, leaving=leaving))
            await eventually(lambda: provisioned.sql(SLEEPING), "the call to wait")
            slow.cancel()
            await asyncio.wait({slow})
            await eventually(lambda: RunState.RUNNING not in {each.state for each in reader.calls(task)}, "its end")
            provisioned.assert_nothing_left()
        carried_on, cancelled = desk.services.reader.calls(task)
        assert (carried_on.state, cancelled.state) == (RunState.SUCCEEDED, RunState.CANCELLED)
        assert cancelled.reason == "the agent is gone"
        assert verified(desk, task, cancelled.run_id)


async def test_a_credential_is_told_once(provisioned: Bench) -> None:
    async with open_desk(provisioned) as desk, open_desk(provisioned) as elsewhere:
        task = await desk.open(AGENT, "complaint_desk", {"customer": 1234})
        got = await handed(desk, task.task_id, "login", "k1")
        for where in (desk, elsewhere):
            again = await where.call(AGENT, task.task_id, "login", {}, "k1")
            assert (again.state, again.handed, again.confirmed) == (CallState.RUNNING, None, False)
            assert "told once" in again.reason
        assert await elsewhere.give_back(AGENT, got.lease.lease_id), "at another process than the one that issued it"
        provisioned.assert_nothing_left()
        over = await elsewhere.call(AGENT, task.task_id, "login", {}, "k1")
        assert (over.state, over.output, over.handed) == (CallState.DONE, {}, None)


async def test_budgets_hold_over_all_processes(provisioned: Bench) -> None:
    async with open_desk(provisioned) as desk, open_desk(provisioned) as elsewhere:
        task = await desk.open(AGENT, "complaint_desk", {"customer": 1234})
        first = await handed(desk, task.task_id, "login", "k1")
        await handed(elsewhere, task.task_id, "login", "k2")
        for where in (desk, elsewhere):
            with pytest.raises(BudgetSpent, match="as many calls of `login` are open"):
                await where.call(AGENT, task.task_id, "login", {}, "k3")
        assert len(provisioned.logins()) == 2
        assert await desk.give_back(AGENT, first.lease.lease_id)
        await handed(elsewhere, task.task_id, "login", "k3")

        async def pause(number: int) -> str:
            try:
                where = (desk, elsewhere)[number % 2]
                await where.call(AGENT, task.task_id, "pause", {"seconds": 0}, f"p{number}")
            except BudgetSpent:
                return "spent"
            return "done"

        found = await asyncio.gather(*(pause(number) for number in range(8)))
        assert sorted(found) == ["done"] * 3 + ["spent"] * 5
        assert await desk.close(AGENT, task.task_id)
        provisioned.assert_nothing_left()


async def test_an_agent_holds_no_more_than_it_may(provisioned: Bench) -> None:
    limited = replace(AGENT, max_open=2)
    async with open_desk(provisioned) as desk, open_desk(provisioned) as elsewhere:
        tasks = [(await desk.open(limited, "complaint_desk", {"customer": 1234})).task_id for _ in range(3)]
        first = await handed(desk, tasks[0], "login", "k1", limited)
        await handed(elsewhere, tasks[1], "ticket", "k1", limited)
        with pytest.raises(BudgetSpent, match="`complaint-agent` has as many calls open as it may at once: 2"):
            await elsewhere.call(limited, tasks[2], "read", {}, "k1")
        assert await elsewhere.give_back(limited, first.lease.lease_id)
        assert (await elsewhere.call(limited, tasks[2], "read", {}, "k1")).state is CallState.DONE
        assert await desk.close(limited, tasks[1])


async def test_who_finds_no_place_at_the_database_waits_for_one(provisioned: Bench) -> None:
    limited = {"connection_leases": {"support": 1}}
    async with open_desk(provisioned, **limited) as desk, open_desk(provisioned, **limited) as elsewhere:
        task = await desk.open(AGENT, "complaint_desk", {"customer": 1234})
        got = await handed(desk, task.task_id, "login", "k1")
        waiting = asyncio.create_task(elsewhere.call(AGENT, task.task_id, "read", {}, "k2"))

        def told() -> list[Any]:
            return [event for event in provisioned.events if isinstance(event, AttemptWaits)]

        await eventually(told, "it to be told")
        assert told()[0].reason == "1 lease of `support` is open, and no more may be"
        assert provisioned.logins() == [got.lease.subject]
        assert await desk.give_back(AGENT, got.lease.lease_id)
        done = await waiting
        assert (done.state, len(told())) == (CallState.DONE, 1)
        assert verified(desk, done.call_id)
        ran = await asyncio.to_thread(lambda: provisioned.run(WAITS, **limited))
        assert ran.exit_code is ExitCode.DONE, ran.reason
        await handed(desk, task.task_id, "login", "k3")
        late = await asyncio.to_thread(lambda: provisioned.run(WAITS, install=False, **limited))
        assert late.exit_code is ExitCode.REFUSED
        assert "for as long as the step may take" in late.reason
        assert (await desk.call(AGENT, task.task_id, "ticket", {}, "k4")).state is CallState.HANDED_OVER
        assert await desk.close(AGENT, task.task_id)


WAITS = """
version: 1
name: waits
agent: tester
steps:
  work:
    action: postgres.query
    grants: { db: { kind: database, connection: support, role: feedback-read } }
    with: { sql: SELECT 1 AS one }
    timeout: 3s
"""


async def test_closing_ends_what_is_open_at_every_process(provisioned: Bench) -> None:
    async with open_desk(provisioned) as desk, open_desk(provisioned) as elsewhere:
        task = await desk.open(AGENT, "complaint_desk", {"customer": 1234})
        await handed(desk, task.task_id, "login", "k1")
        await handed(elsewhere, task.task_id, "ticket", "k2")
        slow = asyncio.create_task(elsewhere.call(AGENT, task.task_id, "pause", {"seconds": 60}, "k3"))
        await eventually(lambda: provisioned.sql(SLEEPING), "the call to wait")
        assert await desk.close(AGENT, task.task_id, "that is all")
        provisioned.assert_nothing_left()
        ended = await slow
        assert (ended.state, ended.output) == (CallState.CANCELLED, None)
        assert "the task was closed: that is all" in ended.reason
        for where in (desk, elsewhere):
            with pytest.raises(TaskEnded, match="closed"):
                await where.call(AGENT, task.task_id, "read", {}, "k4")
            assert (await where.call(AGENT, task.task_id, "pause", {"seconds": 60}, "k3")).state is CallState.CANCELLED
        record = desk.services.reader.task(task.task_id)
        assert record is not None
        assert (record.state, record.reason) == (TaskState.CLOSED, "that is all")
        assert verified(desk, task.task_id, *(each.run_id for each in desk.services.reader.calls(task.task_id)))


async def test_nothing_outlives_the_deadline(bench: Bench) -> None:
    text = TASK.replace("duration: 10m", "duration: 6s")
    bench.install(loaded_task(text).workflow)
    async with open_desk(bench, text) as desk:
        task = await desk.open(AGENT, "complaint_desk", {"customer": 1234})
        got = await handed(desk, task.task_id, "login", "k1")
        assert got.expires_at <= task.deadline, "Vault was asked for no more than is left"
        slow = await desk.call(AGENT, task.task_id, "pause", {"seconds": 60}, "k2")
        assert slow.state is CallState.FAILED
        assert desk.services.clock.now() >= task.deadline - timedelta(seconds=2)
        await eventually(lambda: desk.services.clock.now() >= task.deadline, "the deadline")
        await eventually(lambda: not bench.logins(), "the login to go")
        bench.assert_nothing_left()
        with pytest.raises(TaskEnded, match="deadline"):
            await desk.call(AGENT, task.task_id, "read", {}, "k3")
        (closed,) = await close_what_is_over(Reach.of_services(desk.services))
        assert closed.task_id == task.task_id
        assert await close_what_is_over(Reach.of_services(desk.services)) == []


async def test_a_task_that_nobody_uses_is_closed(bench: Bench) -> None:
    text = TASK.replace("duration: 10m", "duration: 10m, idle: 2s")
    bench.install(loaded_task(text).workflow)
    async with open_desk(bench, text) as desk:
        reach = Reach.of_services(desk.services)
        task = await desk.open(AGENT, "complaint_desk", {"customer": 1234})
        busy = await desk.open(AGENT, "complaint_desk", {"customer": 1234})
        await handed(desk, busy.task_id, "login", "k1")
        assert await close_what_is_over(reach) == []
        await asyncio.sleep(2.1)
        (closed,) = await close_what_is_over(reach)
        assert closed.task_id == task.task_id
        with pytest.raises(TaskEnded, match="nothing was called"):
            await desk.call(AGENT, task.task_id, "read", {}, "k1")
        assert (await desk.call(AGENT, busy.task_id, "read", {}, "k2")).state is CallState.DONE


async def test_calls_that_go_on_in_a_closed_task_are_ended(provisioned: Bench) -> None:
    """As if whoever closed it had died before it told them."""
    async with open_desk(provisioned) as desk, open_desk(provisioned) as elsewhere:
        task = await desk.open(AGENT, "complaint_desk", {"customer": 1234})
        await handed(desk, task.task_id, "login", "k1")
        await elsewhere.services.ledger.close_task(task.task_id, TaskClosed(by="x", reason="y"))
        assert await close_what_is_over(Reach.of_services(elsewhere.services)) == []
        await eventually(lambda: not provisioned.logins(), "the login to go")


async def test_an_agent_is_cut_off_at_once_and_everywhere(provisioned: Bench) -> None:
    async with open_desk(provisioned) as desk, open_desk(provisioned) as elsewhere:
        task = await desk.open(AGENT, "complaint_desk", {"customer": 1234})
        theirs = await desk.open(OTHER, "complaint_desk", {"customer": 1234})
        kept = await handed(desk, theirs.task_id, "login", "k1", OTHER)
        await handed(elsewhere, task.task_id, "login", "k1")
        slow = asyncio.create_task(desk.call(AGENT, task.task_id, "pause", {"seconds": 60}, "k2"))
        await eventually(lambda: provisioned.sql(SLEEPING), "the call to wait")
        services = elsewhere.services
        services.agents.block(AGENT.agent, until=None, by="root", reason="wild", now=services.clock.now())
        assert await cut_off(Reach.of_services(services), AGENT.agent, by="root", reason="wild")
        assert provisioned.logins() == [kept.lease.subject]
        assert (await slow).state is CallState.CANCELLED
        for where in (desk, elsewhere):
            with pytest.raises(AgentBlocked):
                await where.open(AGENT, "complaint_desk", {"customer": 1234})
            with pytest.raises(TaskEnded, match="the agent was cut off: wild"):
                await where.call(AGENT, task.task_id, "read", {}, "k9")
        assert (await elsewhere.call(OTHER, theirs.task_id, "read", {}, "k2")).state is CallState.DONE
        assert services.agents.restore(AGENT.agent)
        anew = await desk.open(AGENT, "complaint_desk", {"customer": 1234})
        assert (await desk.call(AGENT, anew.task_id, "read", {}, "k1")).state is CallState.DONE


ONLY_OWN = """
default decision := {"allow": false, "reasons": ["no rule allows it"]}
decision := {"allow": true} if {
    input.agent == "complaint-agent"
    input.task.call.limit <= 5
    input.task.on_behalf_of == ""
    input.context.customer == 1234
    input.run.trigger == "call"
}
admit := {"allow": input.agent in {"complaint-agent", "third-agent"}, "reasons": ["who are you"]}
"""


async def test_the_policy_decides_on_agent_context_and_call(provisioned: Bench) -> None:
    async with open_desk(provisioned, policy=rego(ONLY_OWN)) as desk:
        with pytest.raises(PolicyDenied, match="admits `other-agent` to no tool of `complaint_desk`: who are you"):
            await desk.open(OTHER, "complaint_desk", {"customer": 1234})
        assert desk.services.reader.tasks() == []
        task = await desk.open(AGENT, "complaint_desk", {"customer": 1234})
        assert (await desk.call(AGENT, task.task_id, "read", {"limit": 5}, "k1")).state is CallState.DONE
        denied = await desk.call(AGENT, task.task_id, "read", {"limit": 6}, "k2")
        assert denied.state is CallState.REFUSED
        assert isinstance(denied.error, PolicyDenied)
        assert "no rule allows it" in denied.reason
        other = await desk.open(AGENT, "complaint_desk", {"customer": 1235})
        assert (await desk.call(AGENT, other.task_id, "read", {"limit": 5}, "k1")).state is CallState.REFUSED
        delegated = replace(AGENT, subject="alice", actor={"sub": "entity-1"})
        of_alice = await desk.open(delegated, "complaint_desk", {"customer": 1234})
        refused = await desk.call(delegated, of_alice.task_id, "read", {"limit": 5}, "k1")
        assert refused.state is CallState.REFUSED
        tasks = (task.task_id, other.task_id, of_alice.task_id)
        assert [len(granted(desk, each)) for each in tasks] == [1, 0, 0], (
            "nothing was asked of Vault for what was denied"
        )
        (decided,) = desk.services.reader.events(denied.call_id, kind="decision")
        assert decided.data["input"]["task"] == {  # type: ignore[index, call-overload]
            "id": task.task_id,
            "call": {"limit": 6},
            "on_behalf_of": "",
        }


async def test_an_obligation_shortens_what_is_handed_over(provisioned: Bench) -> None:
    short = 'decision := {"allow": true, "obligations": {"max_ttl": 2}}'
    async with open_desk(provisioned, policy=rego(short)) as desk:
        task = await desk.open(AGENT, "complaint_desk", {"customer": 1234})
        got = await handed(desk, task.task_id, "login", "k1")
        assert got.credential.ttl <= 2
        await eventually(lambda: not provisioned.logins(), "the login to go", 10)
        (call,) = desk.services.reader.calls(task.task_id)
        await desk._reach.until_ended([call.run_id], seconds=10)
        over = await desk.call(AGENT, task.task_id, "login", {}, "k1")
        assert over.state is CallState.DONE


APPROVAL = """
default decision := {"allow": true, "obligations": {"approval": {"approvers": ["vault:userpass-alice"]}}}
"""


class TestApprovals:
    """A call that somebody has to agree to waits without anything, and goes on when the agent asks again."""

    @pytest.fixture
    def alice(self, provisioned: Bench) -> Iterator[Secret]:
        vault = provisioned.vault
        vault.sys.enable_auth_method("userpass")
        try:
            vault.write_data("auth/userpass/users/alice", data={"password": "x" * 12})
            answer = vault.write_data("auth/userpass/login/alice", data={"password": "x" * 12})
            yield Secret(answer["auth"]["client_token"])
        finally:
            vault.sys.disable_auth_method("userpass")

    async def says(self, desk: TaskDesk, alice: Secret, approval: str, verdict: Verdict) -> None:
        services = desk.services
        person = await owner_of(services.broker.vault, alice, deadline=services.clock.monotonic() + 20)
        await services.approvals.vote(approval, person, verdict, "")

    async def waiting(self, desk: TaskDesk, tool: str) -> tuple[str, CallResult]:
        task = await desk.open(AGENT, "complaint_desk", {"customer": 1234})
        waits = await desk.call(AGENT, task.task_id, tool, {}, "k1")
        assert (waits.state, waits.confirmed, waits.handed, waits.output) == (CallState.WAITING, True, None, None)
        return task.task_id, waits

    @pytest.mark.parametrize("tool", ["read", "login"])
    async def test_it_goes_on_once_somebody_has_agreed(self, provisioned: Bench, alice: Secret, tool: str) -> None:
        how = {"policy": rego(APPROVAL), "parks": True}
        async with open_desk(provisioned, **how) as desk, open_desk(provisioned, **how) as elsewhere:
            task, waits = await self.waiting(desk, tool)
            again = await elsewhere.call(AGENT, task, tool, {}, "k1")
            assert (again.state, again.approval, again.call_id) == (CallState.WAITING, waits.approval, waits.call_id)
            assert waits.approval.startswith("appr_")
            assert granted(desk, task) == []
            with pytest.raises(UsageError, match="calling the tool again with the same key"):
                await resume(desk.services, waits.call_id, {}, Interruption())
            await self.says(desk, alice, waits.approval, Verdict.APPROVE)
            done = await elsewhere.call(AGENT, task, tool, {}, "k1")
            assert done.state is (CallState.DONE if tool == "read" else CallState.HANDED_OVER), done.reason
            assert len(granted(desk, task)) == 1
            assert await desk.close(AGENT, task)
            assert verified(desk, task, waits.call_id)

    async def test_what_was_left_open_before_it_waited_is_told(self, provisioned: Bench, alice: Secret) -> None:
        """Whoever goes on with a call knows of its past what the ledger knows."""
        left = LeaseRequested(
            lease_id=new_lease_id(),
            step="read",
            attempt=1,
            grant="db",
            grant_kind="database",
            resource="database/creds/x",
            scope={"connection": "support"},
            ttl=60,
            step_key="read-left",
        )
        async with open_desk(provisioned, policy=rego(APPROVAL), parks=True, keeps=True) as desk:
            task, waits = await self.waiting(desk, "read")
            record = desk.services.reader.run(waits.call_id)
            assert record is not None
            await desk.services.ledger.append(waits.call_id, record.fence, [left])
            await self.says(desk, alice, waits.approval, Verdict.APPROVE)
            done = await desk.call(AGENT, task, "read", {}, "k1")
            assert (done.state, done.confirmed) == (CallState.DONE, False)

    async def test_it_is_found_without_its_key(self, provisioned: Bench, alice: Secret) -> None:
        async with open_desk(provisioned, policy=rego(APPROVAL), parks=True) as desk:
            task, waits = await self.waiting(desk, "read")
            again = await desk.ask_again(AGENT, task, "read", {"limit": 10})  # which is its default
            assert again is not None
            assert (again.state, again.call_id, again.approval) == (CallState.WAITING, waits.call_id, waits.approval)
            for tool, arguments in (("read", {"limit": 9}), ("login", {})):
                assert await desk.ask_again(AGENT, task, tool, arguments) is None
            with pytest.raises(UnknownTask):
                await desk.ask_again(OTHER, task, "read", {})
            await self.says(desk, alice, waits.approval, Verdict.APPROVE)
            done = await desk.ask_again(AGENT, task, "read", {})
            assert done is not None
            assert (done.state, done.call_id) == (CallState.DONE, waits.call_id)
            assert await desk.ask_again(AGENT, task, "read", {}) is None, "it was agreed to once"

    async def test_what_is_denied_is_refused(self, provisioned: Bench, alice: Secret) -> None:
        async with open_desk(provisioned, policy=rego(APPROVAL), parks=True) as desk:
            task, waits = await self.waiting(desk, "read")
            await self.says(desk, alice, waits.approval, Verdict.DENY)
            denied = await desk.call(AGENT, task, "read", {}, "k1")
            assert denied.state is CallState.REFUSED
            assert "vault:userpass-alice has refused it" in denied.reason
            assert granted(desk, task) == []

    async def test_what_others_agreed_to_is_not_another_call(self, provisioned: Bench, alice: Secret) -> None:
        async with open_desk(provisioned, policy=rego(APPROVAL), parks=True) as desk:
            task, waits = await self.waiting(desk, "read")
            await self.says(desk, alice, waits.approval, Verdict.APPROVE)
            other = await desk.call(AGENT, task, "read", {"limit": 9}, "k2")
            assert (other.state, other.approval != waits.approval) == (CallState.WAITING, True)
            with pytest.raises(KeyUsed):
                await desk.call(AGENT, task, "read", {"limit": 9}, "k1")
            assert granted(desk, task) == []

    async def test_closing_withdraws_it(self, provisioned: Bench) -> None:
        async with open_desk(provisioned, policy=rego(APPROVAL), parks=True) as desk:
            task, waits = await self.waiting(desk, "read")
            assert await desk.close(AGENT, task)
            record = desk.services.reader.run(waits.call_id)
            assert record is not None
            assert record.state is RunState.CANCELLED
            assert desk.services.approvals.store.get(waits.approval).state is ApprovalState.WITHDRAWN

    @pytest.mark.parametrize("end", ["closed", "cut off"])
    async def test_it_does_not_go_on_in_what_ended_meanwhile(self, provisioned: Bench, alice: Secret, end: str) -> None:
        """As if whoever ended it had died before it came to the calls that wait."""
        async with open_desk(provisioned, policy=rego(APPROVAL), parks=True) as desk:
            services = desk.services
            task, waits = await self.waiting(desk, "read")
            await self.says(desk, alice, waits.approval, Verdict.APPROVE)
            if end == "closed":
                await services.ledger.close_task(task, TaskClosed(by="x", reason="y"))
            else:
                services.agents.block(AGENT.agent, until=None, by="x", reason="y", now=services.clock.now())
            with pytest.raises(TaskEnded if end == "closed" else AgentBlocked):
                await desk.call(AGENT, task, "read", {}, "k1")
            assert granted(desk, task) == []

    async def test_a_call_that_waits_is_ended_with_its_closed_task(self, provisioned: Bench) -> None:
        async with open_desk(provisioned, policy=rego(APPROVAL), parks=True) as desk:
            task, _ = await self.waiting(desk, "read")
            await desk.services.ledger.close_task(task, TaskClosed(by="x", reason="y"))
            await close_what_is_over(Reach.of_services(desk.services))
            assert (await desk.call(AGENT, task, "read", {}, "k1")).state is CallState.CANCELLED

    async def test_cutting_an_agent_off_ends_what_waits(self, provisioned: Bench) -> None:
        async with open_desk(provisioned, policy=rego(APPROVAL), parks=True) as desk:
            services = desk.services
            _, waits = await self.waiting(desk, "read")
            services.agents.block(AGENT.agent, until=None, by="x", reason="y", now=services.clock.now())
            assert await cut_off(Reach.of_services(services), AGENT.agent, by="x", reason="y")
            record = services.reader.run(waits.call_id)
            assert record is not None
            assert record.state is RunState.CANCELLED


async def test_an_agent_that_vanishes_before_it_has_the_credential_holds_nothing(provisioned: Bench) -> None:
    async with open_desk(provisioned) as desk:
        task = await desk.open(AGENT, "complaint_desk", {"customer": 1234})
        calling = asyncio.create_task(desk.call(AGENT, task.task_id, "login", {}, "k1"))
        await eventually(lambda: desk.services.reader.calls(task.task_id), "the call to begin")
        calling.cancel()
        with suppress(asyncio.CancelledError):
            await calling
        await eventually(lambda: desk.services.reader.calls(task.task_id)[0].state is not RunState.RUNNING, "its end")
        provisioned.assert_nothing_left()
        slow = asyncio.create_task(desk.call(AGENT, task.task_id, "pause", {"seconds": 1}, "k2"))
        await eventually(lambda: provisioned.sql(SLEEPING), "the call to wait")
        slow.cancel()
        with suppress(asyncio.CancelledError):
            await slow
        told = await desk.call(AGENT, task.task_id, "pause", {"seconds": 1}, "k2")
        assert told.state is CallState.DONE, "an action goes on, and its outcome is told to who asks again"


async def test_a_service_that_stops_takes_back_what_it_handed_over(provisioned: Bench) -> None:
    async with open_desk(provisioned) as elsewhere:
        async with open_desk(provisioned) as desk:
            task = await desk.open(AGENT, "complaint_desk", {"customer": 1234})
            await handed(desk, task.task_id, "login", "k1")
            slow = asyncio.create_task(desk.call(AGENT, task.task_id, "pause", {"seconds": 60}, "k2"))
            await eventually(lambda: provisioned.sql(SLEEPING), "the call to wait")
        provisioned.assert_nothing_left()
        assert (await slow).state is CallState.CANCELLED
        assert (await elsewhere.call(AGENT, task.task_id, "read", {}, "k3")).state is CallState.DONE


async def test_an_open_task_asks_vault_for_nothing(provisioned: Bench) -> None:
    before = len(provisioned.vault_leases())
    async with open_desk(provisioned) as desk:
        for _ in range(5):
            await desk.open(AGENT, "complaint_desk", {"customer": 1234})
        await close_what_is_over(Reach.of_services(desk.services))
        assert desk.services.heartbeat.store.tokens(desk.services.heartbeat.runner_id) == []
        assert len(provisioned.vault_leases()) == before


async def test_no_secret_is_in_the_ledger(provisioned: Bench) -> None:
    secrets: list[str] = []
    async with open_desk(provisioned) as desk:
        task = await desk.open(AGENT, "complaint_desk", {"customer": 1234})
        for number, tool in enumerate(("login", "ticket")):
            got = await handed(desk, task.task_id, tool, f"k{number}")
            secrets += [value.reveal() for name, value in got.credential.fields.items() if name != "username"]
            assert secrets[-1] not in repr(got)
        await desk.close(AGENT, task.task_id)
    for path in provisioned.directory.rglob("*"):
        if path.is_file():
            held = path.read_bytes()
            assert not [secret for secret in secrets if secret.encode() in held], path


@pytest.fixture(autouse=True)
def nothing_left(bench: Bench) -> Iterator[None]:
    yield
    bench.assert_nothing_left()
