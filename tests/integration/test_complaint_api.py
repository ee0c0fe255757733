"""Two agents and one customer's complaints over HTTP: a real `serve --api`, and what it answers.

docs/complaint-agents.md shows the table of this run.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import httpx
import pytest
from apis import ISSUER, Apis, apis_on, call
from bench import ROOT, Bench
from complaint_trials import CUSTOMER, OTHER, READER_FILE, WRITER_FILE, grid
from fork_server import ForkServer
from waiting import wait_for

from orchestrator.ledger.types import LeaseFilter

DOCUMENT = (ROOT / "docs" / "complaint-agents.md").read_text()
PROBLEM = "urn:credential-orchestrator:problem:"
AGENTS = f"""\
version: 1
issuers:
  tests: {{ issuer: "{ISSUER}", audience: [orchestrator], jwks_file: jwks.json, algorithms: [ES256] }}
agents:
  complaint-writer: {{ may_open: [complaint_writer], identities: [ {{ issuer: tests, claims: {{ sub: writer }} }} ] }}
  complaint-reader: {{ may_open: [complaint_reader], identities: [ {{ issuer: tests, claims: {{ sub: reader }} }} ] }}
"""


@dataclass
class Door:
    """Both agents before one process. A request finds what those before it have left."""

    apis: Apis
    writer: httpx.Client
    reader: httpx.Client
    tasks: dict[str, str] = field(default_factory=dict)
    lease: str = ""

    def open(self, agent: httpx.Client, kind: str, customer: int = CUSTOMER) -> httpx.Response:
        return agent.post("/v1/tasks", json={"type": kind, "inputs": {"customer_id": customer}})

    def call(self, task: str, tool: str, *, agent: httpx.Client | None = None, **arguments: Any) -> httpx.Response:
        return call(agent or self.writer, self.tasks[task], tool, arguments)

    def tickets(self) -> Any:
        """What the CRM really has, by its back door."""
        info = self.apis.bench.info
        headers = {"X-Admin-Token": info.admin_token.reveal()}
        return httpx.get(f"{info.crm_url}/_admin/state", headers=headers, trust_env=False).json()["tickets"]

    def issued(self) -> int:
        """How many leases there are on record, those of step tokens among them."""
        with self.apis.ledger() as ledger:
            return len(ledger.leases(LeaseFilter(limit=10_000)))


@pytest.fixture
def door(bench: Bench, children: ForkServer) -> Iterator[Door]:
    """With a task that is over soon, `short`, and the files as they are from then on."""
    with apis_on(bench, children) as apis, ExitStack() as stack:
        apis.agents.write_text(AGENTS)
        apis.more["ORCHESTRATOR_POLICY"] = "rego"
        short = WRITER_FILE.replace("duration: 15m, idle: 5m", "duration: 5s")
        assert short != WRITER_FILE
        file = apis.folder / "complaint_writer.yaml"
        file.write_text(short)
        (apis.folder / "complaint_reader.yaml").write_text(READER_FILE)
        apis.start()
        found = Door(apis, *(stack.enter_context(apis.client(sub=name)) for name in ("writer", "reader")))
        found.tasks["short"] = found.open(found.writer, "complaint_writer").json()["id"]
        file.write_text(WRITER_FILE)

        def as_it_is_now() -> bool:
            task = found.open(found.writer, "complaint_writer").json()
            opened, deadline = (datetime.fromisoformat(task[name]) for name in ("opened_at", "deadline"))
            return (deadline - opened).total_seconds() == 900

        wait_for(as_it_is_now, "the new version of the file")
        yield found
    bench.assert_nothing_left()


REQUESTS: list[tuple[str, str, Callable[[Door], httpx.Response]]] = []
"""Who sends them, what they are, and the request."""


def sends(who: str, what: str) -> Callable[[Any], Any]:
    def listed(request: Callable[[Door], httpx.Response]) -> Callable[[Door], httpx.Response]:
        REQUESTS.append((who, what, request))
        return request

    return listed


@sends("writer", "opens `complaint_writer` for customer 1234")
def _(door: Door) -> httpx.Response:
    answer = door.open(door.writer, "complaint_writer")
    door.tasks["writer"] = answer.json()["id"]
    return answer


@sends("writer", "calls `read_messages`")
def _(door: Door) -> httpx.Response:
    answer = door.call("writer", "read_messages", limit=50)
    seen = [row["id"] for row in answer.json()["output"]["rows"]]
    theirs = door.apis.bench.sql("SELECT id FROM customer_feedback WHERE customer_id = %s", [CUSTOMER])
    assert theirs
    assert sorted(seen) == sorted(theirs)
    return answer


@sends("writer", "calls `write_ticket`")
def _(door: Door) -> httpx.Response:
    before = door.tickets().get(str(CUSTOMER), [])
    answer = door.call("writer", "write_ticket", subject="Call back")
    assert door.tickets()[str(CUSTOMER)] == [*before, answer.json()["output"]["body"]]
    return answer


@sends("writer", "calls `ticket_token`, and gets a token")
def _(door: Door) -> httpx.Response:
    answer = door.call("writer", "ticket_token")
    door.lease = answer.json()["lease"]["id"]
    assert answer.json()["credential"]
    return answer


@sends("writer", "calls it again beside the first")
def _(door: Door) -> httpx.Response:
    return door.call("writer", "ticket_token")


WRONG: list[tuple[str, str, dict[str, Any]]] = [
    ("calls `read_messages` with `limit: 51`", "read_messages", {"limit": 51}),
    ("calls `read_messages` with `customer_id: 1235`", "read_messages", {"customer_id": OTHER}),
    ("calls `write_ticket` with `priority: urgent`", "write_ticket", {"subject": "x", "priority": "urgent"}),
    ("calls `write_ticket` without a subject", "write_ticket", {}),
    ("calls `delete_ticket`, which there is not", "delete_ticket", {}),
]


def sends_wrongly(what: str, tool: str, arguments: dict[str, Any]) -> None:
    @sends("writer", what)
    def _(door: Door) -> httpx.Response:
        return door.call("writer", tool, **arguments)


for each in WRONG:
    sends_wrongly(*each)


@sends("writer", "calls without an `Idempotency-Key`")
def _(door: Door) -> httpx.Response:
    return door.writer.post(f"/v1/tasks/{door.tasks['writer']}/tools/read_messages", json={"arguments": {}})


@sends("writer", "opens `complaint_writer` for customer 1235, and calls `read_messages` in it")
def _(door: Door) -> httpx.Response:
    door.tasks["other"] = door.open(door.writer, "complaint_writer", OTHER).json()["id"]
    answer = door.call("other", "read_messages")
    assert answer.json()["by"] == "policy"
    return answer


@sends("writer", "calls `ticket_token` in that task")
def _(door: Door) -> httpx.Response:
    return door.call("other", "ticket_token")


@sends("reader", "opens `complaint_writer` for customer 1234")
def _(door: Door) -> httpx.Response:
    return door.open(door.reader, "complaint_writer")


@sends("reader", "opens `complaint_reader` for customer 1234")
def _(door: Door) -> httpx.Response:
    answer = door.open(door.reader, "complaint_reader")
    door.tasks["reader"] = answer.json()["id"]
    return answer


@sends("reader", "calls `read_tickets`")
def _(door: Door) -> httpx.Response:
    answer = door.call("reader", "read_tickets", agent=door.reader)
    assert answer.json()["output"]["body"] == {"tickets": door.tickets()[str(CUSTOMER)]}
    return answer


@sends("reader", "calls `write_ticket` in its task")
def _(door: Door) -> httpx.Response:
    return door.call("reader", "write_ticket", agent=door.reader, subject="mine")


@sends("reader", "calls `write_ticket` in the writer's task")
def _(door: Door) -> httpx.Response:
    return door.call("writer", "write_ticket", agent=door.reader, subject="mine")


@sends("reader", "closes the writer's task")
def _(door: Door) -> httpx.Response:
    return door.reader.delete(f"/v1/tasks/{door.tasks['writer']}")


@sends("reader", "gives the writer's token back")
def _(door: Door) -> httpx.Response:
    return door.reader.delete(f"/v1/leases/{door.lease}")


@sends("somebody", "calls in the writer's task without a token")
def _(door: Door) -> httpx.Response:
    url = f"{door.apis.processes[0].url}/v1/tasks/{door.tasks['writer']}/tools/read_messages"
    headers = {"Idempotency-Key": str(uuid.uuid4())}
    return httpx.post(url, json={"arguments": {}}, headers=headers, trust_env=False)


@sends("somebody", "calls in it with a token of the writer's that has expired")
def _(door: Door) -> httpx.Response:
    with door.apis.client(sub="writer", exp=int(time.time()) - 60) as late:
        return door.call("writer", "read_messages", agent=late)


@sends("writer", "calls `write_ticket` four times more")
def _(door: Door) -> httpx.Response:
    answers = [door.call("writer", "write_ticket", subject="Call back") for _ in range(4)]
    assert {answer.status_code for answer in answers} == {200}
    return answers[-1]


@sends("writer", "calls it a sixth time")
def _(door: Door) -> httpx.Response:
    return door.call("writer", "write_ticket", subject="Call back")


@sends("writer", "closes its task")
def _(door: Door) -> httpx.Response:
    answer = door.writer.delete(f"/v1/tasks/{door.tasks['writer']}")
    assert answer.json() == {"confirmed": True}
    return answer


@sends("writer", "calls `read_messages` in it")
def _(door: Door) -> httpx.Response:
    return door.call("writer", "read_messages")


@sends("writer", "calls `read_messages` in a task whose time is over")
def _(door: Door) -> httpx.Response:
    deadline = datetime.fromisoformat(door.writer.get(f"/v1/tasks/{door.tasks['short']}").json()["deadline"])
    wait_for(lambda: time.time() > deadline.timestamp(), "the deadline")
    return door.call("short", "read_messages")


@sends("reader", "opens `complaint_reader` after `orchestrator agents revoke complaint-reader`")
def _(door: Door) -> httpx.Response:
    words = ("agents", "revoke", "complaint-reader")
    with (door.apis.directory / "revoke.log").open("wb") as log:
        revoking = door.apis.children.start(*words, environment=door.apis.environment(), log=log)
    assert revoking.wait(60) == 0
    return door.open(door.reader, "complaint_reader")


def test_what_the_api_answers_to_each_agent_is_what_the_document_says(door: Door) -> None:
    rows = []
    for who, what, request in REQUESTS:
        tickets, issued = door.tickets(), door.issued()
        answer = request(door)
        kind = ""
        if answer.is_error:
            assert answer.headers["content-type"] == "application/problem+json"
            kind = f"`{answer.json()['type'].removeprefix(PROBLEM)}`"
            assert (door.tickets(), door.issued()) == (tickets, issued), what
        rows.append((who, what, str(answer.status_code), kind))
    shown = grid(("agent", "what it does", "status", "problem"), rows)
    assert f"\n\n{shown}\n" in DOCUMENT, f"docs/complaint-agents.md has another table than this run:\n{shown}"
