"""The client of the API on real servers: whatever happens to an agent, nothing that it was given outlives its block."""

from __future__ import annotations

import asyncio
import logging
import re
import ssl
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import urlsplit

import httpx
import psycopg
import pytest
from apis import Apis, apis_on
from bench import ROOT, Bench
from both_clients import Driven, Make, driven
from database_servers import Authority
from desks import RENEWABLE
from escaped import holds_secret
from fork_server import ForkServer
from pep_issuer import IssuerServer, Planned, issuer_server, json_of
from proxy import Answer, DropAnswer, Proxy
from waiting import wait_for

from orchestrator.client import (
    ApprovalPending,
    AsyncBroker,
    AsyncTaskAuth,
    Broker,
    BrokerError,
    BudgetSpent,
    CallCancelled,
    CallFailed,
    CutOff,
    Denied,
    InvalidRequest,
    NotAllowed,
    NotFound,
    NotRenewed,
    Patience,
    TaskClosed,
    Unauthenticated,
    Unavailable,
    Unconfirmed,
)
from orchestrator.clock import SystemClock
from orchestrator.ledger.lease import OPEN
from orchestrator.ledger.types import LeaseFilter

COUNT = "SELECT count(*) FROM customer_feedback"
CALL, LOGIN, LEASE = "/tools/read", "/tools/login", "DELETE /v1/leases"


@pytest.fixture
def apis(bench: Bench, children: ForkServer) -> Iterator[Apis]:
    with apis_on(bench, children) as found:
        found.put()
        yield found
    bench.assert_nothing_left()


@pytest.fixture
def started(apis: Apis) -> Apis:
    apis.start()
    return apis


@pytest.fixture(params=["blocking", "asyncio"])
def make(request: pytest.FixtureRequest) -> Iterator[Make]:
    """Makes brokers of either kind."""
    if request.param == "blocking":
        yield Broker
        return
    with asyncio.Runner() as runner:
        yield lambda *given, **named: Driven(AsyncBroker(*given, **named), runner.run)


@pytest.fixture
def broker(started: Apis, make: Make) -> Iterator[Any]:
    with make(started.processes[0].url, started.token()) as found:
        yield found


@contextmanager
def before(apis: Apis) -> Iterator[Proxy]:
    """A proxy before the first process."""
    found = urlsplit(apis.processes[0].url)
    with Proxy((str(found.hostname), int(found.port or 0)), http=True) as proxy:
        yield proxy


def session(credential: Any) -> psycopg.Connection[Any]:
    where = psycopg.conninfo.conninfo_to_dict(credential.address)
    return psycopg.connect(**{**where, "user": credential.username, "password": credential.password})


def calls(apis: Apis, task_id: str) -> Mapping[str, Any]:
    with apis.client() as client:
        found: Mapping[str, Any] = client.get(f"/v1/tasks/{task_id}").json()
        return found


class TestTasks:
    def test_from_opening_to_closing(self, started: Apis, broker: Any) -> None:
        with broker.task("complaint_desk", customer=1234).because("case 7") as task:
            assert (task.agent, task.on_behalf_of) == ("complaint-agent", "")
            assert timedelta(minutes=9) < task.deadline - datetime.now(UTC) < timedelta(minutes=11)
            tools = {each.name: each for each in task.tools}
            assert tools["read"].description == "Read what the customer wrote."
            assert tools["read"].arguments["properties"]["limit"]["maximum"] == 50
            assert (tools["read"].hands_over, tools["login"].hands_over) == (False, True)
            assert len(task.call("read", limit=2)["rows"]) == 2
            assert len(task.call("read", {"limit": 1})["rows"]) == 1
            identity = task.id
        shown = calls(started, identity)
        assert (shown["state"], shown["reason"], shown["calls"]["read"]["made"]) == ("closed", "closed by the agent", 2)
        with started.ledger() as ledger:
            assert ledger.events(identity)[0].data["reason"] == "case 7"
        with pytest.raises(TaskClosed) as over:
            task.call("read")
        assert (over.value.status, over.value.type.rpartition(":")[2]) == (409, "task-ended")

    def test_a_login_is_renewed_where_its_tool_lets_it(self, apis: Apis, make: Make) -> None:
        apis.put(RENEWABLE)
        with make(apis.start().url, apis.token()) as broker, broker.task("complaint_desk", customer=1234) as task:
            with task.credential("login") as credential:
                renewed = task.renew(credential)
                assert renewed.expires_at > credential.expires_at
                assert replace(renewed, expires_at=credential.expires_at) == credential
                with session(renewed) as connection:
                    assert connection.execute(COUNT).fetchone() == (3,)
            with task.credential("ticket") as ticket:
                for held in (credential, ticket):
                    with pytest.raises(NotRenewed) as not_renewed:
                        task.renew(held)
                    assert not_renewed.value.status == 409

    def test_a_login_is_there_for_the_block_and_gone_behind_it(self, started: Apis, broker: Any) -> None:
        with broker.task("complaint_desk", customer=1234) as task:
            with task.credential("login") as credential:
                assert started.bench.logins_of_steps() == [credential.username] == [credential.subject]
                assert credential.scope["privileges"][0]["where"] == {"customer_id": "1234"}
                assert credential.expires_at > datetime.now(UTC)
                with session(credential) as connection:
                    assert connection.execute(COUNT).fetchone() == (3,)
                left = session(credential)
            assert started.bench.logins_of_steps() == []
            with pytest.raises(psycopg.OperationalError):
                left.execute(COUNT)
            left.close()
            handover = task.credential("login")
            first = handover.open()
            assert handover.open() is first
            handover.close()
            handover.close()
            assert started.bench.logins_of_steps() == []
            second = handover.open()
            assert second.username != first.username
        assert started.bench.logins_of_steps() == [], "the task took it back"

    @pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit])
    def test_nothing_outlives_an_error_and_none_is_hidden(
        self, started: Apis, broker: Any, error: type[BaseException]
    ) -> None:
        for inner in (True, False):
            raised = error("s3cr3t")
            task = broker.task("complaint_desk", customer=1234)
            with pytest.raises(error) as caught, task:
                self._held_at_an_error(started, task, raised, inner=inner)
            assert caught.value is raised
            assert started.bench.logins_of_steps() == []
            assert calls(started, task.id)["reason"] == f"left with {error.__name__}"

    def _held_at_an_error(self, apis: Apis, task: Any, error: BaseException, *, inner: bool) -> None:
        if inner:
            with task.credential("login"):
                assert len(apis.bench.logins_of_steps()) == 1
                raise error
        task.credential("login").open()
        assert len(apis.bench.logins_of_steps()) == 1
        raise error

    def test_closing_the_broker_closes_what_is_open(self, started: Apis, make: Make) -> None:
        with make(started.processes[0].url, started.token()) as broker:
            task = broker.task("complaint_desk", {"customer": 1234}).open()
            task.credential("login").open()
            identity = task.id
            assert started.bench.logins_of_steps() != []
        assert started.bench.logins_of_steps() == []
        assert calls(started, identity)["state"] == "closed"

    def test_what_is_not_as_declared(self, started: Apis, broker: Any) -> None:
        for inputs in ({}, {"customer": "1234"}, {"customer": 1234, "admin": True}):
            with pytest.raises(InvalidRequest):
                broker.task("complaint_desk", inputs).open()
        with pytest.raises(NotAllowed) as typo:
            broker.task("complaint_dask", customer=1).open()
        assert typo.value.hint == "did you mean `complaint_desk`?"
        assert "did you mean" in str(typo.value)
        with broker.task("complaint_desk", customer=1234) as task:
            for arguments in ({"limit": 51}, {"limit": "1"}, {"customer": 1}):
                with pytest.raises(InvalidRequest):
                    task.call("read", arguments)
            for tool in ("raed", "..", "read/../../x", "é?#"):
                with pytest.raises(NotFound):
                    task.call(tool)
            with pytest.raises(InvalidRequest, match="gives a credential"):
                task.call("login")
            with pytest.raises(InvalidRequest, match="no credential"):
                task.credential("read")
            assert calls(started, task.id)["calls"]["read"]["made"] == 0

    def test_budgets(self, broker: Any) -> None:
        with broker.task("complaint_desk", customer=1234) as task:
            with task.credential("login"), task.credential("login"):
                with pytest.raises(BudgetSpent) as spent:
                    task.credential("login").open()
                assert spent.value.hint is not None
            with task.credential("login"):
                pass
            for _ in range(3):
                task.call("pause", seconds=0)
            with pytest.raises(BudgetSpent):
                task.call("pause", seconds=0)

    def test_who_is_nobody_and_who_may_not(self, started: Apis, make: Make) -> None:
        url = started.processes[0].url
        with make(url, started.token("locked")) as broker, pytest.raises(NotAllowed):
            broker.task("complaint_desk", customer=1).open()
        with make(url, started.token(exp=int(time.time()) - 60)) as broker, pytest.raises(Unauthenticated):
            broker.task("complaint_desk", customer=1).open()
        with make(url, started.token("alice", act={"sub": "complaint"})) as broker:
            task = broker.task("complaint_desk", customer=1).open()
            assert (task.agent, task.on_behalf_of) == ("complaint-agent", "alice")

    def test_who_is_cut_off(self, started: Apis, broker: Any) -> None:
        with broker.task("complaint_desk", customer=1234) as task:
            with started.ledger() as ledger:
                now = SystemClock().now()
                ledger.agents.block("complaint-agent", until=None, by="x", reason="y", now=now)
            with pytest.raises(CutOff):
                task.call("read")

    def test_a_failed_call_and_a_cancelled_one(self, started: Apis, broker: Any, make: Make) -> None:
        text = (started.folder / "complaint_desk.yaml").read_text()
        started.put(text.replace("complaint_desk", "another").replace("SELECT id, comment", "SELECT id, email"))
        with make(started.processes[0].url, started.token("other")) as other:

            def opened() -> Any:
                try:
                    return other.task("another", customer=1).open()
                except NotAllowed:
                    return None

            task = wait_for(opened, "the type")
            with pytest.raises(CallFailed, match="permission denied") as failed:
                task.call("read")
            assert failed.value.kind
        with (
            broker.task("complaint_desk", customer=1234) as task,
            Broker(started.processes[0].url, started.token()) as beside,
        ):
            closing = threading.Thread(target=lambda: self._close(started, beside, task.id))
            closing.start()
            with pytest.raises(CallCancelled):
                task.call("pause", seconds=60)
            closing.join()

    def _close(self, apis: Apis, beside: Broker, task_id: str) -> None:
        wait_for(lambda: apis.bench.sql("SELECT 1 FROM pg_stat_activity WHERE wait_event = 'PgSleep'"), "the call")
        with apis.client() as client:
            client.delete(f"/v1/tasks/{task_id}")


APPROVAL = '{"allow": true, "obligations": {"approval": {"approvers": ["vault:userpass-alice"]}}}'
DENIAL = '{"allow": false, "reasons": ["not on a Sunday"]}'


def decide(apis: Apis, decision: str) -> None:
    """Start a process with this policy."""
    folder = apis.directory / "policies"
    folder.mkdir()
    (folder / "p.rego").write_text(f"package orchestrator\ndecision := {decision}\n")
    apis.more = {"ORCHESTRATOR_POLICY": "rego", "ORCHESTRATOR_POLICY_PATH": str(folder)}
    apis.start()


class TestPolicies:
    def test_what_is_denied(self, apis: Apis, make: Make) -> None:
        decide(apis, DENIAL)
        with make(apis.processes[0].url, apis.token()) as broker, broker.task("complaint_desk", customer=1) as task:
            for ask in (lambda: task.call("read"), lambda: task.credential("login").open()):
                with pytest.raises(Denied, match="not on a Sunday") as denied:
                    ask()
                assert (denied.value.by, denied.value.reasons) == ("policy", ("not on a Sunday",))

    @pytest.fixture
    def says(self, apis: Apis) -> Iterator[Callable[[str, str], None]]:
        """Alice approves, or denies."""
        vault = apis.bench.vault
        vault.sys.enable_auth_method("userpass")
        try:
            vault.write_data("auth/userpass/users/alice", data={"password": "x" * 12})
            token = vault.write_data("auth/userpass/login/alice", data={"password": "x" * 12})["auth"]["client_token"]

            def vote(verdict: str, approval: str) -> None:
                environment = {**apis.environment(), "VAULT_TOKEN": token}
                answer = apis.children.command("approvals", verdict, approval, environment=environment)
                assert answer.returncode == 0, answer.stderr

            yield vote
        finally:
            vault.sys.disable_auth_method("userpass")

    def test_what_waits_goes_on_once_somebody_has_agreed(
        self, apis: Apis, make: Make, says: Callable[[str, str], None]
    ) -> None:
        decide(apis, APPROVAL)
        with make(apis.processes[0].url, apis.token()) as broker, broker.task("complaint_desk", customer=1234) as task:
            with pytest.raises(ApprovalPending) as pending:
                task.call("read", limit=2)
            waiting = pending.value
            assert waiting.approval in str(waiting.hint)
            with pytest.raises(ApprovalPending) as still:
                driven(make, broker, waiting.resume())
            assert still.value.approval == waiting.approval, "it is the same call"
            says("approve", waiting.approval)
            assert len(driven(make, broker, waiting.wait(30))["rows"]) == 2

            with pytest.raises(ApprovalPending) as pending, task.credential("login"):
                pytest.fail("nobody has agreed")
            voting = threading.Thread(target=says, args=("approve", pending.value.approval))
            voting.start()
            with driven(make, broker, pending.value.wait(60)) as credential:
                assert apis.bench.logins_of_steps() == [credential.username]
            voting.join()
            assert apis.bench.logins_of_steps() == []

            with pytest.raises(ApprovalPending) as pending:
                task.call("read")
            says("deny", pending.value.approval)
            with pytest.raises(Denied, match="alice has refused it"):
                driven(make, broker, pending.value.resume())


class TestTheNetwork:
    def test_a_call_whose_answer_was_lost_is_made_once(self, started: Apis, make: Make) -> None:
        with before(started) as proxy, make(proxy.address, started.token()) as broker:
            with broker.task("complaint_desk", customer=1234) as task:
                proxy.fail(DropAnswer(), times=2, when=lambda line: CALL in line)
                assert len(task.call("read", limit=1)["rows"]) == 1
                assert proxy.unused == 0
                assert calls(started, task.id)["calls"]["read"]["made"] == 1
                proxy.fail(DropAnswer(), when=lambda line: line.startswith("DELETE"))
            assert proxy.unused == 0

    def test_a_credential_whose_answer_was_lost_is_given_back(self, started: Apis, make: Make) -> None:
        with (
            before(started) as proxy,
            make(proxy.address, started.token()) as broker,
            broker.task("complaint_desk", customer=1234) as task,
        ):
            proxy.fail(DropAnswer(), when=lambda line: LOGIN in line)
            with task.credential("login") as credential:
                assert started.bench.logins_of_steps() == [credential.username]
            assert proxy.unused == 0
            assert calls(started, task.id)["calls"]["login"] == {"made": 2, "open": 0}

    def test_another_process_goes_on_where_one_is_about_to_end(self, started: Apis, make: Make) -> None:
        started.start()
        with (
            before(started) as proxy,
            make(proxy.address, started.token()) as broker,
            broker.task("complaint_desk", customer=1234) as task,
            ThreadPoolExecutor(1) as pool,
            Broker(started.processes[0].url, started.token()) as direct,
        ):
            held_up = direct.task("complaint_desk", customer=1234).open()
            slow = pool.submit(held_up.call, "pause", seconds=5)
            sleeping = "SELECT 1 FROM pg_stat_activity WHERE wait_event = 'PgSleep'"
            wait_for(lambda: started.bench.sql(sleeping), "the call to wait")
            first, second = started.processes
            first.process.send_signal(15)
            wait_for(lambda: any("no new runs" in each["message"] for each in first.records()), "the drain")
            other = urlsplit(second.url)
            proxy.target = (str(other.hostname), int(other.port or 0))
            assert len(task.call("read", limit=1)["rows"]) == 1, "the connection to the first one is not kept"
            assert slow.result() == {"rows": [{"one": 1}]}
            assert first.process.wait(60) == 0

    def test_a_broker_that_is_away(self, started: Apis, make: Make) -> None:
        patience = Patience(away=1, closing=1)
        with before(started) as proxy, make(proxy.address, started.token(), patience=patience) as broker:
            task = broker.task("complaint_desk", customer=1234).open()
            proxy.refuse()
            proxy.cut()
            with pytest.raises(Unavailable, match="was not reached"):
                task.call("read")
            task.close()
        with started.client() as client:
            client.delete(f"/v1/tasks/{task.id}")

    def test_what_stays_unconfirmed_is_raised_if_asked_for(
        self, started: Apis, make: Make, caplog: pytest.LogCaptureFixture
    ) -> None:
        unconfirmed = Answer(202, b'{"confirmed": false}', {"Content-Type": "application/json"})
        with (
            before(started) as proxy,
            make(proxy.address, started.token(), patience=Patience(closing=0.5), strict=True) as broker,
            broker.task("complaint_desk", customer=1234) as task,
        ):
            proxy.fail(unconfirmed, times=100, when=lambda line: line.startswith(LEASE))
            with pytest.raises(Unconfirmed), task.credential("login"):
                pass
            with pytest.raises(ZeroDivisionError), task.credential("login"):
                _ = 1 / 0
            proxy.heal()
        assert len([each for each in caplog.records if each.message.startswith("Unconfirmed:")]) == 2

    def test_a_signal_while_a_credential_is_on_its_way(self, started: Apis) -> None:
        url = started.processes[0].url
        with Broker(url, started.token()) as broker, broker.task("complaint_desk", customer=1234) as task:
            send = broker._http.send

            def interrupted(request: httpx.Request) -> httpx.Response:
                response = send(request)
                if LOGIN in request.url.path:
                    broker._http.send = send  # type: ignore[method-assign]
                    raise KeyboardInterrupt
                return response

            broker._http.send = interrupted  # type: ignore[method-assign, assignment]
            with pytest.raises(KeyboardInterrupt), task.credential("login"):
                pytest.fail("it was interrupted")
            assert calls(started, task.id)["calls"]["login"] == {"made": 1, "open": 0}
            assert started.bench.logins_of_steps() == []


class TestCancellation:
    async def test_what_is_held_is_given_back(self, started: Apis) -> None:
        inside = asyncio.Event()

        async def work(broker: AsyncBroker) -> None:
            async with broker.task("complaint_desk", customer=1234) as task, task.credential("login"):
                inside.set()
                await asyncio.Event().wait()

        async with AsyncBroker(started.processes[0].url, started.token()) as broker:
            working = asyncio.create_task(work(broker))
            await inside.wait()
            assert len(started.bench.logins_of_steps()) == 1
            while not working.done():  # also in the middle of giving back, and of closing
                working.cancel()
                await asyncio.sleep(0)
            with pytest.raises(asyncio.CancelledError):
                await working
            assert started.bench.logins_of_steps() == []
            (task,) = self.tasks(started)
            assert (task["state"], task["reason"]) == ("closed", "left with CancelledError")

    async def test_what_is_on_its_way_is_given_back(self, started: Apis) -> None:
        with before(started) as proxy:
            async with (
                AsyncBroker(proxy.address, started.token()) as broker,
                broker.task("complaint_desk", customer=1234) as task,
            ):
                await task.call("read")
                for _ in range(2):
                    proxy.requests.clear()
                    taking = asyncio.create_task(task.credential("login").open())
                    while not any(LOGIN in line for line in proxy.requests):
                        await asyncio.sleep(0.01)
                    taking.cancel()
                    with pytest.raises(asyncio.CancelledError):
                        await taking
                    assert started.bench.logins_of_steps() == []
                shown = await asyncio.to_thread(calls, started, task.id)
                assert shown["calls"]["login"] == {"made": 2, "open": 0}

    async def test_a_time_limit_ends_a_call(self, started: Apis) -> None:
        async with AsyncBroker(started.processes[0].url, started.token()) as broker:
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(3), broker.task("complaint_desk", customer=1234) as task:
                    await task.call("pause", seconds=60)
        assert started.bench.logins_of_steps() == []

    def tasks(self, apis: Apis) -> list[dict[str, Any]]:
        with apis.ledger() as ledger:
            return [{"state": each.state.value, "reason": each.reason} for each in ledger.tasks()]


class TestTheAgentsToken:
    def test_a_file_is_read_anew(self, started: Apis, make: Make) -> None:
        file = started.directory / "projected"
        file.write_text(started.token("nobody"))
        with make(started.processes[0].url, file) as broker:
            with pytest.raises(Unauthenticated):
                broker.task("complaint_desk", customer=1234).open()
            file.write_text(started.token() + "\n")
            with broker.task("complaint_desk", customer=1234) as task:
                file.write_text(started.token())
                assert task.call("read", limit=1)["rows"]
            file.unlink()

    def test_a_function_is_asked_again(self, started: Apis, make: Make) -> None:
        asked = []

        def ask() -> str:
            asked.append(started.token("nobody") if not asked else started.token())
            return asked[-1]

        async def ask_too() -> str:
            return ask()

        with make(started.processes[0].url, ask if make is Broker else ask_too) as broker:
            with broker.task("complaint_desk", customer=1234) as task:
                task.call("read", limit=1)
            assert len(asked) == 2, "after the 401, and no more"

    async def test_a_blocking_function_runs_in_a_thread(self, started: Apis) -> None:
        threads = []

        def ask() -> str:
            threads.append(threading.current_thread())
            return started.token()

        async with AsyncBroker(started.processes[0].url, ask) as broker, broker.task("complaint_desk", customer=1234):
            pass
        assert threads
        assert threading.main_thread() not in threads


@dataclass
class Later:
    """The machine's clock, set forward."""

    by: float = 0
    real: SystemClock = field(default_factory=SystemClock)

    def now(self) -> datetime:
        return self.real.now() + timedelta(seconds=self.by)

    def monotonic(self) -> float:
        return self.real.monotonic() + self.by


@pytest.fixture
def crm() -> Iterator[IssuerServer]:
    with issuer_server() as server:
        server.answers["/"] = json_of({"ok": True})
        yield server


INVALID = {"WWW-Authenticate": 'Bearer realm="crm", error="invalid_token"'}


def bearers(server: IssuerServer) -> list[str | None]:
    return [headers.get("authorization") for _, headers, _ in server.asked]


class TestTls:
    @pytest.fixture
    def authority(self, apis: Apis) -> Authority:
        """Of the server's certificate, and of those that agents show."""
        authority = Authority.make(apis.directory, "authority")
        own = str(authority.issued("127.0.0.1"))
        apis.start("--api-cert", own, "--api-key", own, "--api-client-ca", str(authority.file))
        return authority

    def broker(self, apis: Apis, make: Make, token: str | None, tls: ssl.SSLContext | None) -> Any:
        url = apis.processes[0].url.replace("http://", "https://")
        return make(url, token, tls=tls, patience=Patience(away=0.5))

    def test_a_token_goes_to_whom_the_authority_knows(self, apis: Apis, make: Make, authority: Authority) -> None:
        trusting = ssl.create_default_context(cafile=authority.file)
        with (
            self.broker(apis, make, apis.token(), trusting) as broker,
            broker.task("complaint_desk", customer=1) as task,
        ):
            assert task.agent == "complaint-agent"
        with self.broker(apis, make, apis.token(), None) as broker, pytest.raises(Unavailable, match="certificate"):
            broker.task("complaint_desk", customer=1).open()

    def test_a_certificate_says_who_the_agent_is(self, apis: Apis, make: Make, authority: Authority) -> None:
        stranger = Authority.make(apis.directory, "stranger")
        names = {
            "spiffe://example/complaint": authority,
            "spiffe://example/other": authority,
            "spiffe://example/complaint/": authority,
            "spiffe://example/complaint#2": stranger,
        }
        for name, issuer in names.items():
            showing = ssl.create_default_context(cafile=authority.file)
            showing.load_cert_chain(issuer.issued(name.partition("#")[0]))
            with self.broker(apis, make, None, showing) as broker:
                task = broker.task("complaint_desk", customer=1234)
                if name == "spiffe://example/complaint":
                    with task, task.credential("login") as credential:
                        assert (task.agent, apis.bench.logins_of_steps()) == ("complaint-agent", [credential.username])
                else:
                    with pytest.raises((Unauthenticated, Unavailable)) as refused:
                        task.open()
                    assert isinstance(refused.value, Unavailable) is (issuer is stranger)
        both = ssl.create_default_context(cafile=authority.file)
        both.load_cert_chain(authority.issued("spiffe://example/complaint"))
        with self.broker(apis, make, apis.token(), both) as broker, pytest.raises(Unauthenticated, match="not both"):
            broker.task("complaint_desk", customer=1).open()


class TestAuth:
    """The two kinds of httpx client, with one token for many requests."""

    @pytest.fixture(params=["blocking", "asyncio"])
    async def get(self, request: pytest.FixtureRequest, started: Apis, crm: IssuerServer) -> AsyncIterator[Any]:
        """Sends requests of a client whose auth it is; `get.clock` goes where it is set."""
        clock = Later()
        url, patience = started.processes[0].url, Patience(clock=clock)
        how = {"follow_redirects": True, "trust_env": False}
        if request.param == "asyncio":
            async with (
                AsyncBroker(url, started.token(), patience=patience) as broker,
                broker.task("complaint_desk", customer=1234) as task,
                httpx.AsyncClient(auth=task.auth("ticket", crm.url, priority="high"), **how) as client,
            ):
                yield Get(client.request, clock, task.id)
        else:
            with (
                Broker(url, started.token(), patience=patience) as broker,
                broker.task("complaint_desk", customer=1234) as task,
                httpx.Client(auth=task.auth("ticket", crm.url, priority="high"), **how) as client,
            ):

                async def request_in_thread(*given: Any, **named: Any) -> httpx.Response:
                    return await asyncio.to_thread(client.request, *given, **named)

                yield Get(request_in_thread, clock, task.id)

    async def test_one_token_does_for_many_requests(self, started: Apis, crm: IssuerServer, get: Get) -> None:
        answers = await asyncio.gather(*(get("GET", crm.url + "/") for _ in range(8)))
        assert {each.status_code for each in answers} == {200}
        assert len(set(bearers(crm))) == 1
        assert str(bearers(crm)[0]).startswith("Bearer ey")
        assert self.tickets(started, get.task_id) == {"made": 1, "open": 1}

    async def test_it_is_renewed_before_it_expires(self, started: Apis, crm: IssuerServer, get: Get) -> None:
        await get("GET", crm.url + "/")
        get.clock.by = 40
        await get("GET", crm.url + "/")
        get.clock.by = 55
        await asyncio.gather(*(get("GET", crm.url + "/") for _ in range(8)))
        assert len(set(bearers(crm)[:2])) == 1
        assert len(set(bearers(crm)[2:])) == 1
        assert bearers(crm)[0] != bearers(crm)[-1]
        assert self.tickets(started, get.task_id) == {"made": 2, "open": 1}, "the first one was given back"

    async def test_it_is_renewed_once_after_it_was_refused(self, started: Apis, crm: IssuerServer, get: Get) -> None:
        crm.answers["/no"] = Planned([b"{}"], status=401, headers=INVALID)
        answer = await get("POST", crm.url + "/no", json={"a": 1})
        assert answer.status_code == 401
        assert [body for _, _, body in crm.asked] == [b'{"a":1}'] * 2
        assert len(set(bearers(crm))) == 2
        assert self.tickets(started, get.task_id) == {"made": 2, "open": 1}
        for headers in ({"WWW-Authenticate": 'Bearer error="insufficient_scope"'}, {}):
            crm.clear()
            crm.answers["/no"] = Planned([b"{}"], status=401, headers=headers)
            assert (await get("GET", crm.url + "/no")).status_code == 401
            assert len(crm.asked) == 1, "another token would not help"

    async def test_it_goes_to_its_origin_alone(self, started: Apis, crm: IssuerServer, get: Get) -> None:
        with issuer_server() as other:
            other.answers["/"] = json_of({"ok": True})
            other.answers["/no"] = Planned([b"{}"], status=401, headers=INVALID)
            for path in ("/", "/no"):
                await get("GET", other.url + path)
                crm.answers["/away"] = Planned([b""], status=307, headers={"Location": other.url + path})
                await get("GET", crm.url + "/away")
            crm.answers["/near"] = Planned([b""], status=307, headers={"Location": "/"})
            await get("GET", crm.url + "/near")
            assert bearers(other) == [None] * 4
            assert None not in bearers(crm)
            assert self.tickets(started, get.task_id)["made"] == 1

    async def test_what_hands_over_no_token_is_no_auth(self, started: Apis, crm: IssuerServer) -> None:
        async with (
            AsyncBroker(started.processes[0].url, started.token()) as broker,
            broker.task("complaint_desk", customer=1234) as task,
        ):
            auth = task.auth("login", crm.url)
            async with httpx.AsyncClient(auth=auth, trust_env=False) as client:
                with pytest.raises(InvalidRequest, match="hands over no token"):
                    await client.get(crm.url)
            assert started.bench.logins_of_steps() == []
            assert isinstance(auth, AsyncTaskAuth)
            with httpx.Client(auth=auth, trust_env=False) as blocking, pytest.raises(RuntimeError):
                blocking.get(crm.url)
            assert crm.asked == []

    def tickets(self, apis: Apis, task_id: str) -> Mapping[str, int]:
        found: Mapping[str, int] = calls(apis, task_id)["calls"]["ticket"]
        return found


@dataclass
class Get:
    """Sends a request."""

    send: Callable[..., Any]
    clock: Later
    task_id: str

    async def __call__(self, *given: Any, **named: Any) -> httpx.Response:
        found: httpx.Response = await self.send(*given, **named)
        return found


def test_nothing_that_is_shown_or_logged_is_secret(
    started: Apis, make: Make, caplog: pytest.LogCaptureFixture, crm: IssuerServer
) -> None:
    caplog.set_level(logging.DEBUG)
    shown: list[Any] = []
    with before(started) as proxy:
        broker = make(proxy.address, started.token(), patience=Patience(closing=0.5))
        with broker, broker.task("complaint_desk", customer=1234) as task:
            proxy.fail(DropAnswer(), when=lambda line: LOGIN in line)
            handover = task.credential("login")
            with handover as credential:
                auth = task.auth("ticket", crm.url)
                shown += [broker, task, handover, credential, credential.fields, vars(credential_of(credential)), auth]
                with task.credential("ticket") as ticket:
                    assert holds_secret(ticket.token.encode())
                    assert holds_secret(credential.password.encode())
                    shown.append(ticket)
                proxy.fail(DropAnswer(), times=100, when=lambda line: line.startswith(LEASE))
            proxy.heal()
            for wrong in ("limit", started.token()):
                try:
                    task.call("read", {wrong: started.token()})
                except BrokerError as error:
                    shown += [error, error.args, vars(error), error.__context__, error.__cause__]
    inner = broker.it if isinstance(broker, Driven) else broker
    shown += [vars(inner), caplog.text]
    assert "httpcore" in caplog.text
    assert "Unconfirmed" in caplog.text
    for each in shown:
        assert not holds_secret(f"{each!r} {each!s}".encode()), type(each)


def credential_of(credential: Any) -> Any:
    """With its attributes in a dictionary, as a debugger shows them."""

    class Shown:
        pass

    shown = Shown()
    for name in credential.__slots__:
        setattr(shown, name, getattr(credential, name))
    return shown


def test_threads_share_a_broker(started: Apis) -> None:
    with Broker(started.processes[0].url, started.token()) as broker:

        def work(customer: int) -> int:
            task = broker.task("complaint_desk", customer=customer)
            with task, task.credential("login") as credential, session(credential) as connection:
                (count,) = connection.execute(COUNT).fetchone() or (0,)
                return int(count)

        with ThreadPoolExecutor(4) as pool:
            assert list(pool.map(work, [1234] * 4)) == [3] * 4
    with started.ledger() as ledger:
        held = [each for each in ledger.leases(LeaseFilter(states=OPEN)) if each.workflow == "complaint_desk"]
        assert held == []
    assert started.bench.logins_of_steps() == []


EXAMPLES = dict(re.findall(r"```python\n# (\w+)\.py\n(.*?)```", (ROOT / "docs" / "client.md").read_text(), re.DOTALL))


def test_the_examples_of_the_documentation_run(
    bench: Bench, children: ForkServer, crm: IssuerServer, capsys: pytest.CaptureFixture[str]
) -> None:
    crm.answers["/tickets"] = Planned([b"{}"], status=201)
    with apis_on(bench, children) as apis:
        tools = (ROOT / "docs" / "tools.md").read_text()
        (text,) = re.findall(r"```yaml\n(version: 1\nname: customer_complaint\n.*?)```", tools, re.DOTALL)
        apis.agents.write_text(apis.agents.read_text().replace("[complaint_desk]", "[customer_complaint]"))
        apis.put(text)
        apis.start()
        token = apis.directory / "token"
        token.write_text(apis.token())
        for name, code in EXAMPLES.items():
            for there, here in (
                ("https://broker.example", apis.processes[0].url),
                ("https://crm.example", crm.url),
                ("/var/run/secrets/orchestrator/token", str(token)),
            ):
                code = code.replace(there, here)
            crm.clear()
            crm.answers["/tickets"] = Planned([b"{}"], status=201)
            exec(code, {"__name__": "__main__"})
            bound = name == "bound_requests"
            assert [str(each)[:9] for each in bearers(crm)] == ["DPoP eyJh" if bound else "Bearer ey"], name
            assert ("3 messages" in capsys.readouterr().out) is not bound
        token.unlink()
        with apis.ledger() as ledger:
            assert [each.state.value for each in ledger.tasks()] == ["closed"] * len(EXAMPLES)
    assert set(EXAMPLES) == {"agent", "asynchronous", "bound_requests"}
    bench.assert_nothing_left()
