"""Three layers together, on the real servers: what each of them stops where the other two let everything pass.

docs/three-layers.md shows the tables of these runs.
"""

from __future__ import annotations

import json
import re
from collections.abc import Awaitable, Callable
from typing import Any

import psycopg
import pytest
from bench import ROOT, Bench
from complaint_trials import (
    CUSTOMER,
    OTHER,
    READER,
    WRITER,
    WRITER_FILE,
    Row,
    Trial,
    World,
    carried_out,
    grid,
    table,
)
from desks import open_desk
from layer_trials import COLUMNS, column, runtimes_token, vaults_root

from orchestrator.actions.catalog import catalog
from orchestrator.cli.main import main
from orchestrator.devstack.stack import DevStack
from orchestrator.errors import ExitCode
from orchestrator.planning.requests import scopes_of
from orchestrator.policy.engines.allow_all import AllowAllEngine
from orchestrator.tasks.results import CallResult
from orchestrator.workflow.loader import load

DOCUMENT = (ROOT / "docs" / "three-layers.md").read_text()

WISHES: list[Trial] = []
"""Of which each is tried with each choice of layers."""

BROKER: list[Trial] = []
"""Of tasks: the broker is asked, the policy allows everything, and the runtime is Vault's root."""

WITHOUT_BROKER: list[Trial] = []
"""By whoever has something that the orchestrator alone should have. The policy allows everything."""


def listed(trials: list[Trial], who: str, what: str, outcome: str = "done", by: str = "") -> Callable[[Any], Any]:
    def added(attempt: Callable[[World], Awaitable[object]]) -> Callable[[World], Awaitable[object]]:
        trials.append(Trial(Row(who, what, outcome, by), attempt))
        return attempt

    return added


async def rows_of(world: World, tool: str, task: str = "", **arguments: Any) -> tuple[CallResult, list[Any]]:
    """What the call came to, and the rows that the agent sees, if any."""
    result = await world.call(WRITER, tool, task=task, **arguments)
    rows = (result.output or {}).get("rows", [])
    assert isinstance(rows, list)
    return result, rows


async def reads_messages_of(world: World, customer: int, **arguments: Any) -> CallResult:
    """Exactly the rows of this customer are seen, or none."""
    result, rows = await rows_of(world, "read_messages", **arguments)
    theirs = world.bench.sql("SELECT id FROM customer_feedback WHERE customer_id = %s", [customer])
    assert theirs
    assert sorted(row["id"] for row in rows) == (sorted(theirs) if result.error is None else [])
    return result


async def writes_ticket_for(world: World, customer: int, **arguments: Any) -> CallResult:
    """The CRM has one more of this customer, or none."""
    before = await world.tickets()
    result = await world.call(WRITER, "write_ticket", subject="Call back", **arguments)
    after = await world.tickets()
    if result.error is None:
        assert result.output is not None
        assert after == {**before, str(customer): [*before.get(str(customer), []), result.output["body"]]}
    return result


@listed(WISHES, "writer", "open `complaint_writer` for customer 1234, and read what they wrote")
async def _(world: World) -> object:
    world.tasks[WRITER.agent] = await world.desk.open(WRITER, "complaint_writer", {"customer_id": CUSTOMER})
    return await reads_messages_of(world, CUSTOMER, limit=50)


@listed(WISHES, "writer", "write a ticket for customer 1234")
async def _(world: World) -> object:
    return await writes_ticket_for(world, CUSTOMER)


@listed(WISHES, "writer", "read 51 messages at once")
async def _(world: World) -> object:
    return await reads_messages_of(world, CUSTOMER, limit=51)


@listed(WISHES, "writer", "have a token for tickets of customer 1234")
async def _(world: World) -> object:
    return await world.call(WRITER, "ticket_token")


@listed(WISHES, "writer", "have a second one beside it")
async def _(world: World) -> object:
    return await world.call(WRITER, "ticket_token")


@listed(WISHES, "writer", "read in this task what customer 1235 wrote")
async def _(world: World) -> object:
    return await reads_messages_of(world, OTHER, limit=50, customer_id=OTHER)


@listed(WISHES, "writer", "write in this task a ticket for customer 1235")
async def _(world: World) -> object:
    return await writes_ticket_for(world, OTHER, customer_id=OTHER)


@listed(WISHES, "writer", "write a ticket in a task for customer 1235")
async def _(world: World) -> object:
    task = await world.desk.open(WRITER, "complaint_writer", {"customer_id": OTHER})
    return await world.desk.call(WRITER, task.task_id, "write_ticket", {"subject": "Call back"}, "theirs")


@listed(WISHES, "reader", "open `complaint_writer`")
async def _(world: World) -> object:
    return await world.desk.open(READER, "complaint_writer", {"customer_id": CUSTOMER})


async def reads(world: World, tool: str, statement: str) -> CallResult:
    """What the database has is what is seen, or nothing is."""
    result, rows = await rows_of(world, tool)
    assert [list(row.values())[-1] for row in rows] == (world.bench.sql(statement) if result.error is None else [])
    return result


@listed(WISHES, "writer", "read everybody's e-mail addresses")
async def _(world: World) -> object:
    return await reads(world, "read_emails", "SELECT email FROM customer_feedback ORDER BY id LIMIT 5")


@listed(WISHES, "writer", "read payment cards")
async def _(world: World) -> object:
    return await reads(world, "read_cards", "SELECT number FROM payment_card ORDER BY number LIMIT 5")


@listed(WISHES, "writer", "change what the customer wrote")
async def _(world: World) -> object:
    changed = "SELECT count(*) FROM customer_feedback WHERE customer_id = 1234 AND comment = 'All is well'"
    assert world.bench.sql(changed) == [0]
    try:
        result = await world.call(WRITER, "change_messages")
    finally:
        count = world.bench.sql(changed)[0]
    assert (count > 0) == (result.error is None)
    return result


@listed(WISHES, "writer", "have the token of the Slack bot")
async def _(world: World) -> object:
    result = await world.call(WRITER, "slack_token")
    if result.handed is not None:
        real = world.bench.vault.read("secret/data/slack/support-bot")["data"]["data"]["token"]
        assert result.handed.credential.fields["token"].reveal() == real
    return result


# --- agents at a broker that nothing but the tools and the tasks keep


@listed(BROKER, "reader", "`write_ticket` in its own task", "no such tool", "broker")
async def _(world: World) -> object:
    for caller, name in ((WRITER, "complaint_writer"), (READER, "complaint_reader")):
        world.tasks[caller.agent] = await world.desk.open(caller, name, {"customer_id": CUSTOMER})
    return await world.call(READER, "write_ticket", subject="mine")


@listed(BROKER, "reader", "`write_ticket` in the writer's task", "no such task of its own", "broker")
async def _(world: World) -> object:
    return await world.call(READER, "write_ticket", task=WRITER.agent, subject="mine")


@listed(BROKER, "writer", "`write_ticket` in a task that is closed", "the task is over", "broker")
async def _(world: World) -> object:
    assert await world.desk.close(WRITER, world.tasks[WRITER.agent].task_id)
    return await world.call(WRITER, "write_ticket", subject="late")


# --- whoever has the runtime's own token, and asks Vault without any broker or policy

READ = "step.complaint_writer.read_messages"
"""The token role of `read_messages`."""


def login_of(file: str, part: str) -> str:
    """Where Vault makes the logins of a step or a tool of the samples."""
    workflow = load(ROOT / "workflows" / f"{file}.yaml", actions=catalog).workflow
    return scopes_of(workflow, part)[0].resource


REQUESTS: list[tuple[str, str, str, dict[str, Any], str]] = [
    ("a login of `read_messages`", "GET", login_of("complaint_writer", "read_messages"), {}, "403"),
    ("the secret of the Slack bot", "GET", "secret/data/slack/support-bot", {}, "403"),
    ("a signature of the key for access tokens", "POST", "transit/sign/orchestrator-token", {"input": "eA=="}, "403"),
    ("a token of Vault's root", "POST", "auth/token/create", {"policies": ["root"]}, "403"),
    (
        "a token of `read_messages` with the policy `root`",
        "POST",
        f"auth/token/create/{READ}",
        {"policies": ["root"]},
        "403",
    ),
    (
        "a token of `read_messages` that nothing revokes with its parent",
        "POST",
        f"auth/token/create/{READ}",
        {"no_parent": True},
        "403",
    ),
    (
        "a token of a tool that no file declares",
        "POST",
        "auth/token/create/step.complaint_writer.read_cards",
        {},
        "400",
    ),
    (
        "a wider policy for `read_messages`",
        "PUT",
        "sys/policies/acl/step/complaint_writer/read_messages",
        {"policy": ""},
        "403",
    ),
    ("a login of the connection to be made otherwise", "POST", "database/roles/mine", {"db_name": "support"}, "403"),
]


def asks_vault(what: str, method: str, path: str, payload: dict[str, Any], outcome: str) -> None:
    @listed(WITHOUT_BROKER, "holder of the runtime's token", what, outcome, "Vault")
    async def _(world: World) -> object:
        async with runtimes_token(world) as holder:
            answer = await holder.ask(method, path, **payload)
            assert ("permission denied" if outcome == "403" else "unknown role") in answer.text
            return answer


for each in REQUESTS:
    asks_vault(*each)


@listed(
    WITHOUT_BROKER,
    "holder of the runtime's token",
    "a token of `read_messages`, and with it a login that sees no row yet",
)
async def _(world: World) -> object:
    async with runtimes_token(world) as holder:
        child = await holder.child(READ)
        answer = await child.ask("GET", login_of("complaint_writer", "read_messages"))
        login = answer.raise_for_status().json()
        user, password = login["data"]["username"], login["data"]["password"]
        assert await selected(world, user, password, "SELECT id FROM customer_feedback") == []
        revoked = await holder.ask("PUT", "sys/leases/revoke", lease_id=login["lease_id"], sync=True)
        assert revoked.status_code == 204
        return answer


@listed(WITHOUT_BROKER, "holder of the runtime's token", "with the same token a login of another step", "403", "Vault")
async def _(world: World) -> object:
    async with runtimes_token(world) as holder:
        return await (await holder.child(READ)).ask("GET", login_of("support_ticket", "write_ticket"))


@listed(WITHOUT_BROKER, "holder of the runtime's token", "with the same token a signature", "403", "Vault")
async def _(world: World) -> object:
    async with runtimes_token(world) as holder:
        return await (await holder.child(READ)).ask("POST", "transit/sign/orchestrator-token", input="eA==")


@listed(
    WITHOUT_BROKER,
    "holder of the runtime's token",
    "a token of `write_ticket`, and with it a signature for customer 1235, which the CRM takes",
)
async def _(world: World) -> object:
    async with runtimes_token(world) as holder:
        return await world.crm("POST", OTHER, await holder.signed_for(OTHER))


@listed(
    WITHOUT_BROKER,
    "writer of the file",
    "let `read_messages` select `email`, too, without having it provisioned",
    "not granted",
    "Vault",
)
async def _(world: World) -> object:
    wide = WRITER_FILE.replace("columns: [comment, created_at, id]", "columns: [comment, created_at, email, id]")
    assert wide != WRITER_FILE
    async with open_desk(world.bench, wide) as desk:
        task = await desk.open(WRITER, "complaint_writer", {"customer_id": CUSTOMER})
        return await desk.call(WRITER, task.task_id, "read_messages", {}, "wide")


# --- whoever has a credential that was issued


async def selected(world: World, user: str, password: str, statement: str) -> list[Any]:
    endpoint = world.bench.info.support_endpoint
    async with await psycopg.AsyncConnection.connect(endpoint, user=user, password=password) as session:
        cursor = await session.execute(statement.encode())
        return [row[0] for row in await cursor.fetchall()] if cursor.description else []


async def with_the_login(world: World, statement: str) -> list[Any]:
    async with world.got_hold_of(WRITER, WRITER_FILE, "read_messages", "db") as login:
        user, password = (login.fields[name].reveal() for name in ("username", "password"))
        return await selected(world, user, password, statement)


@listed(WITHOUT_BROKER, "thief of the login of `read_messages`", "select every row: sees those of customer 1234")
async def _(world: World) -> object:
    seen = await with_the_login(world, "SELECT id FROM customer_feedback")
    theirs = world.bench.sql("SELECT id FROM customer_feedback WHERE customer_id = %s", [CUSTOMER])
    assert theirs
    assert sorted(seen) == sorted(theirs)
    return seen


STATEMENTS = [
    ("select `email`", "SELECT email FROM customer_feedback"),
    ("select from `payment_card`", "SELECT number FROM payment_card"),
    (
        "change what the customer wrote",
        "SET TRANSACTION READ WRITE; UPDATE customer_feedback SET comment = 'All is well'",
    ),
    (
        "tell the database another customer",
        "SET TRANSACTION READ WRITE; UPDATE orchestrator.binding SET value = '1235'",
    ),
]


def steals(what: str, statement: str) -> None:
    @listed(WITHOUT_BROKER, "thief of the login of `read_messages`", what, "permission denied", "database")
    async def _(world: World) -> object:
        return await with_the_login(world, statement)


for stolen in STATEMENTS:
    steals(*stolen)


@listed(WITHOUT_BROKER, "thief of the login of `read_messages`", "use it after the call", "no such login", "database")
async def _(world: World) -> object:
    async with world.got_hold_of(WRITER, WRITER_FILE, "read_messages", "db") as login:
        user, password = (login.fields[name].reveal() for name in ("username", "password"))
    assert user not in world.bench.logins()
    with pytest.raises(psycopg.OperationalError, match="password authentication failed") as refused:
        await selected(world, user, password, "SELECT 1")
    raise refused.value


@listed(
    WITHOUT_BROKER,
    "thief of the token of `write_ticket`",
    "write a ticket for customer 1235",
    "403 `insufficient_scope`",
    "CRM",
)
async def _(world: World) -> object:
    async with world.got_hold_of(WRITER, WRITER_FILE, "write_ticket", "crm") as token:
        return await world.crm("POST", OTHER, token.fields["token"].reveal())


@listed(
    WITHOUT_BROKER,
    "thief of the token of `write_ticket`",
    "read the tickets of customer 1234",
    "403 `insufficient_scope`",
    "CRM",
)
async def _(world: World) -> object:
    async with world.got_hold_of(WRITER, WRITER_FILE, "write_ticket", "crm") as token:
        return await world.crm("GET", CUSTOMER, token.fields["token"].reveal())


async def test_who_refuses_without_a_policy_and_without_a_broker_is_what_the_document_says(bench: Bench) -> None:
    rows = await carried_out(bench, BROKER, policy=AllowAllEngine(), vault=vaults_root(bench))
    rows += await carried_out(bench, WITHOUT_BROKER, policy=AllowAllEngine())
    assert rows == [trial.expected for trial in (*BROKER, *WITHOUT_BROKER)]
    shown = table(rows, "who")
    assert f"\n\n{shown}\n" in DOCUMENT, f"docs/three-layers.md has another table than this run:\n{shown}"
    bench.assert_nothing_left()


async def test_what_each_layer_alone_stops_is_what_the_document_says(own_bench: tuple[DevStack, Bench]) -> None:
    _, bench = own_bench
    found = {layers.name: await column(bench, layers, WISHES) for layers in COLUMNS}
    shown_columns = ("none of them", "the policy alone", "the tools alone", "Vault alone", "all three")
    rows = [
        (wish.expected.who, wish.expected.what, *(found[name][number] for name in shown_columns))
        for number, wish in enumerate(WISHES)
    ]
    shown = grid(("agent", "wishes to", *shown_columns), rows)
    assert f"\n\n{shown}\n" in DOCUMENT, f"docs/three-layers.md has another table than this run:\n{shown}"


def block(language: str) -> str:
    (found,) = re.findall(rf"^```{language}\n(.*?)^```$", DOCUMENT, re.MULTILINE | re.DOTALL)
    return str(found)


def test_what_the_document_says_of_one_tool_is_what_plan_policy_and_vault_say(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in bench.environment().items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(ROOT)
    (plan,) = re.findall(r"`orchestrator (plan [^`]+)`", DOCUMENT)
    assert main(plan.split()) == ExitCode.DONE
    shown = capsys.readouterr().out
    assert block("text") in shown, shown
    excerpt = json.loads(block("json"))
    known = json.loads((ROOT / "workflows" / "policies" / "data.json").read_text())["agents"]
    assert excerpt == {agent: {key: known[agent][key] for key in said} for agent, said in excerpt.items()}
    policy = bench.vault.sys.read_acl_policy("step/complaint_writer/read_messages")["data"]["policy"]
    assert "\n".join(line for line in policy.splitlines() if not line.startswith("#")) == block("hcl").rstrip()
    role = bench.vault.read(f"auth/token/roles/{READ}")["data"]
    assert role["allowed_policies"] == ["step/complaint_writer/read_messages"]
    assert role["token_no_default_policy"]
