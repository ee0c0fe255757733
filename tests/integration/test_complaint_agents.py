"""Two agents and one customer's complaints, on the real servers: what each tries, what comes of it, and who says no.

docs/complaint-agents.md shows the table of this run.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable
from typing import Any

import psycopg
import pytest
from bench import ROOT, Bench
from complaint_trials import (
    CUSTOMER,
    OTHER,
    POLICY,
    READER,
    READER_FILE,
    WRITER,
    WRITER_FILE,
    Row,
    Trial,
    World,
    carried_out,
    table,
)
from desks import loaded_task, open_desk

from orchestrator.agents.authentication import Caller
from orchestrator.cli.main import main
from orchestrator.errors import ExitCode
from orchestrator.jsontypes import JsonValue
from orchestrator.ledger.ids import new_run_id
from orchestrator.proof.examine import Examination
from orchestrator.proof.service import Prover
from orchestrator.runs.types import RunRequest
from orchestrator.tasks.desk import TaskDesk
from orchestrator.tasks.opened import OpenedTask
from orchestrator.tasks.results import CallResult, CallState

DOCUMENT = (ROOT / "docs" / "complaint-agents.md").read_text()


TRIALS: list[Trial] = []


def tries(who: str, what: str, outcome: str = "done", by: str = "") -> Callable[[Any], Any]:
    def listed(attempt: Callable[[World], Awaitable[object]]) -> Callable[[World], Awaitable[object]]:
        TRIALS.append(Trial(Row(who, what, outcome, by), attempt))
        return attempt

    return listed


# --- the writer


@tries("writer", "open `complaint_writer` for customer 1234")
async def _(world: World) -> object:
    world.tasks[WRITER.agent] = await world.desk.open(WRITER, "complaint_writer", {"customer_id": CUSTOMER})
    return world.tasks[WRITER.agent]


async def reads_messages(world: World, caller: Caller) -> CallResult:
    result = await world.call(caller, "read_messages", limit=50)
    assert result.output is not None
    rows = result.output["rows"]
    assert isinstance(rows, list)
    assert [set(row) for row in rows if isinstance(row, dict)] == [{"id", "comment", "created_at"}] * len(rows)
    theirs = world.bench.sql("SELECT id FROM customer_feedback WHERE customer_id = %s", [CUSTOMER])
    assert theirs != []
    assert sorted(row["id"] for row in rows) == sorted(theirs)  # type: ignore[call-overload, index]
    return result


@tries("writer", "`read_messages`: sees all that customer 1234 wrote, and no row of anybody else")
async def _(world: World) -> object:
    return await reads_messages(world, WRITER)


@tries("writer", "`write_ticket`: the CRM has it, for customer 1234")
async def _(world: World) -> object:
    before = await world.tickets()
    result = await world.call(WRITER, "write_ticket", subject="The parcel is late", priority="high")
    assert result.output is not None
    ticket, after = result.output["body"], await world.tickets()
    assert isinstance(ticket, dict)
    assert (ticket["subject"], ticket["by"]) == ("The parcel is late", WRITER.agent)
    assert after == {**before, str(CUSTOMER): [*before.get(str(CUSTOMER), []), ticket]}
    return result


async def reads_tickets(world: World, caller: Caller) -> CallResult:
    result = await world.call(caller, "read_tickets")
    assert result.output == {"body": {"tickets": (await world.tickets())[str(CUSTOMER)]}}
    return result


@tries("writer", "`read_tickets`: those of customer 1234")
async def _(world: World) -> object:
    return await reads_tickets(world, WRITER)


async def handed_token(desk: TaskDesk, task: OpenedTask) -> str:
    result = await desk.call(WRITER, task.task_id, "ticket_token", {}, "token")
    assert result.state is CallState.HANDED_OVER, result.reason
    assert result.handed is not None
    return result.handed.credential.fields["token"].reveal()


@tries("writer", "`ticket_token`, used at the CRM to write a ticket for customer 1234")
async def _(world: World) -> object:
    world.token = await handed_token(world.desk, world.tasks[WRITER.agent])
    answer = await world.crm("POST", CUSTOMER, world.token)
    assert answer.status_code == 201
    assert answer.json() in (await world.tickets())[str(CUSTOMER)]
    return answer


@tries("writer", "the same token for customer 1235", "403 `insufficient_scope`", "CRM")
async def _(world: World) -> object:
    return await world.crm("POST", OTHER, world.token)


@tries("writer", "the same token to read the tickets of customer 1234", "403 `insufficient_scope`", "CRM")
async def _(world: World) -> object:
    return await world.crm("GET", CUSTOMER, world.token)


@tries("writer", "the same token at another service", "401 `invalid_token`", "translation API")
async def _(world: World) -> object:
    headers = {"Authorization": f"Bearer {world.token}"}
    return await world.http.post(f"{world.bench.info.translation_url}/v1/translate", headers=headers)


@tries("writer", "a second `ticket_token` beside the first", "as many as may be are open", "broker")
async def _(world: World) -> object:
    return await world.call(WRITER, "ticket_token")


@tries("writer", "a token of the same kind after its time", "401 `invalid_token`", "CRM")
async def _(world: World) -> object:
    short = WRITER_FILE.replace("ttl: 60s", "ttl: 5s")
    assert short != WRITER_FILE
    async with open_desk(world.bench, short, policy=POLICY) as desk, asyncio.timeout(60):
        task = await desk.open(WRITER, "complaint_writer", {"customer_id": CUSTOMER})
        token = await handed_token(desk, task)
        while (answer := await world.crm("GET", CUSTOMER, token)).status_code != 401:
            assert answer.status_code == 403
            await asyncio.sleep(0.1)
        return await world.crm("POST", CUSTOMER, token)


UNDECLARED: list[tuple[str, str, dict[str, JsonValue]]] = [
    ("`read_messages` with `limit: 51`", "read_messages", {"limit": 51}),
    ("`read_messages` with `customer_id: 1235`", "read_messages", {"customer_id": OTHER}),
    ("`write_ticket` with `priority: urgent`", "write_ticket", {"subject": "x", "priority": "urgent"}),
    ("`write_ticket` with a subject of 201 characters", "write_ticket", {"subject": "x" * 201}),
]


def misuses(what: str, tool: str, arguments: dict[str, JsonValue]) -> None:
    @tries("writer", what, "not as the file declares", "broker")
    async def _(world: World) -> object:
        return await world.call(WRITER, tool, **arguments)


for each in UNDECLARED:
    misuses(*each)


@tries("writer", "open a task for customer 1235, and `read_messages` in it", "denied", "policy")
async def _(world: World) -> object:
    world.tasks["other"] = await world.desk.open(WRITER, "complaint_writer", {"customer_id": OTHER})
    return await world.call(WRITER, "read_messages", task="other")


@tries("writer", "`ticket_token` in that task", "denied", "policy")
async def _(world: World) -> object:
    return await world.call(WRITER, "ticket_token", task="other")


# --- the reader


@tries("reader", "open `complaint_reader` for customer 1234")
async def _(world: World) -> object:
    world.tasks[READER.agent] = await world.desk.open(READER, "complaint_reader", {"customer_id": CUSTOMER})
    return world.tasks[READER.agent]


@tries("reader", "`read_messages`: sees all that customer 1234 wrote, and no row of anybody else")
async def _(world: World) -> object:
    return await reads_messages(world, READER)


@tries("reader", "`read_tickets`: those of customer 1234")
async def _(world: World) -> object:
    return await reads_tickets(world, READER)


@tries("reader", "`write_ticket` in its task", "no such tool", "broker")
async def _(world: World) -> object:
    return await world.call(READER, "write_ticket", subject="mine")


@tries("reader", "`write_ticket` in the writer's task", "no such task of its own", "broker")
async def _(world: World) -> object:
    return await world.call(READER, "write_ticket", task=WRITER.agent, subject="mine")


@tries("reader", "open `complaint_writer` for customer 1234", "denied", "policy")
async def _(world: World) -> object:
    return await world.desk.open(READER, "complaint_writer", {"customer_id": CUSTOMER})


# --- whoever gets hold of what no tool hands over


@tries("thief", "the reader's token of `read_tickets` to read those of customer 1234")
async def _(world: World) -> object:
    async with world.got_hold_of(READER, READER_FILE, "read_tickets", "crm") as token:
        return await world.crm("GET", CUSTOMER, token.fields["token"].reveal())


@tries("thief", "the same token to write a ticket", "403 `insufficient_scope`", "CRM")
async def _(world: World) -> object:
    async with world.got_hold_of(READER, READER_FILE, "read_tickets", "crm") as token:
        return await world.crm("POST", CUSTOMER, token.fields["token"].reveal())


@tries("thief", "the same token to read the tickets of customer 1235", "403 `insufficient_scope`", "CRM")
async def _(world: World) -> object:
    async with world.got_hold_of(READER, READER_FILE, "read_tickets", "crm") as token:
        return await world.crm("GET", OTHER, token.fields["token"].reveal())


async def with_the_login(world: World, statement: str) -> list[Any]:
    async with world.got_hold_of(WRITER, WRITER_FILE, "read_messages", "db") as login:
        user, password = (login.fields[name].reveal() for name in ("username", "password"))
        endpoint = world.bench.info.support_endpoint
        async with await psycopg.AsyncConnection.connect(endpoint, user=user, password=password) as session:
            return await (await session.execute(statement.encode())).fetchall()


@tries("thief", "the login of `read_messages` to select every row: sees those of customer 1234")
async def _(world: World) -> object:
    rows = await with_the_login(world, "SELECT id FROM customer_feedback")
    theirs = world.bench.sql("SELECT id FROM customer_feedback WHERE customer_id = %s", [CUSTOMER])
    assert sorted(number for (number,) in rows) == sorted(theirs)
    return rows


@tries("thief", "the same login to select another column", "permission denied", "database")
async def _(world: World) -> object:
    return await with_the_login(world, "SELECT email FROM customer_feedback")


@tries("thief", "the same login to select from another table", "permission denied", "database")
async def _(world: World) -> object:
    return await with_the_login(world, "SELECT number FROM payment_card")


# --- the end


@tries("writer", "close its task, then `read_messages` in it", "the task is over", "broker")
async def _(world: World) -> object:
    assert await world.desk.close(WRITER, world.tasks[WRITER.agent].task_id)
    return await world.call(WRITER, "read_messages")


@tries("writer", "a `ticket_token` of a task that it has closed: what is signed counts until it expires")
async def _(world: World) -> object:
    task = await world.desk.open(WRITER, "complaint_writer", {"customer_id": CUSTOMER})
    token = await handed_token(world.desk, task)
    assert await world.desk.close(WRITER, task.task_id)
    return await world.crm("POST", CUSTOMER, token)


async def test_what_each_agent_can_do_is_what_the_document_says(bench: Bench) -> None:
    rows = await carried_out(bench, TRIALS)
    assert rows == [trial.expected for trial in TRIALS]
    shown = table(rows)
    assert f"\n\n{shown}\n" in DOCUMENT, f"docs/complaint-agents.md has another table than this run:\n{shown}"
    assert {row.by for row in rows} == {"", "policy", "broker", "CRM", "translation API", "database"}


@pytest.mark.parametrize("text", [WRITER_FILE, READER_FILE], ids=["writer", "reader"])
async def test_all_that_the_tools_hold_is_proven(bench: Bench, text: str) -> None:
    loaded = loaded_task(text)
    request = RunRequest(run_id=new_run_id(), loaded=loaded, inputs={"customer_id": CUSTOMER}, trigger="prove")
    async with open_desk(bench, text, policy=POLICY) as desk:
        proof = await Prover(services=desk.services, wish=Examination()).prove(request)
    assert [each for each in proof.grants if not each.holds] == []
    assert {each.step for each in proof.grants} == set(loaded.workflow.tools)
    bench.assert_nothing_left()


def test_the_plans_of_the_document_say_what_it_says(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in bench.environment().items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(ROOT)
    found = []
    for plan in re.findall(r"^orchestrator (plan .+)$", DOCUMENT, re.MULTILINE):
        code = main(plan.split())
        found.append((code, capsys.readouterr().out.count("policy DENIED")))
    assert found == [(ExitCode.DONE, 0), (ExitCode.REFUSED, 4)]
