"""What the client of the API decides, without any broker: when it asks again, with what, and for how long."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest

from orchestrator.client import Patience, ProofKey, Unauthenticated, errors, flows
from orchestrator.client.auth import TaskAuth
from orchestrator.client.blocking import Broker
from orchestrator.client.documents import Credential
from orchestrator.client.exchange import Ask, Flow, Pause, Send, TokenWanted, answered
from orchestrator.client.task import request
from orchestrator.client.token_exchange import Exchange
from orchestrator.client.tokens import OwnToken
from orchestrator.secret import Secret
from orchestrator.server.api.problems import Kind, Problem

SECRET = "eyJhbGciOi.eyJzdWIi.c2lnbmF0dXJl"
URL = "https://broker.example"
ASK = Ask("POST", "/v1/tasks/t/tools/read", {"arguments": {}}, "key-1")


@dataclass
class Time:
    """A clock that goes on when somebody waits."""

    at: float = 1000.0

    def now(self) -> datetime:
        return datetime(2026, 1, 1, tzinfo=UTC) + timedelta(seconds=self.at)

    def monotonic(self) -> float:
        return self.at


@dataclass
class Driven:
    """Carries a flow out with answers that are planned."""

    answers: list[Any]
    tokens: Callable[[str | None], str | None] = lambda refused: SECRET
    time: Time = field(default_factory=Time)
    sent: list[Send] = field(default_factory=list)
    slept: list[float] = field(default_factory=list)

    @property
    def patience(self) -> Patience:
        return Patience(clock=self.time, chance=lambda: 0.5)

    def run(self, flow: Flow[Any]) -> Any:
        try:
            wanted = next(flow)
            while True:
                if isinstance(wanted, TokenWanted):
                    wanted = flow.send(self.tokens(wanted.refused))
                elif isinstance(wanted, Pause):
                    self.slept.append(wanted.seconds)
                    self.time.at += wanted.seconds
                    wanted = flow.send(None)
                else:
                    self.sent.append(wanted)
                    planned = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
                    if isinstance(planned, httpx.ReadTimeout):
                        self.time.at += wanted.seconds
                    lost = isinstance(planned, Exception)
                    wanted = flow.throw(planned) if lost else flow.send(planned)
        except StopIteration as end:
            return end.value


def answer(status: int, body: Any = None, **headers: str) -> httpx.Response:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return httpx.Response(status, json=body, headers=named, request=httpx.Request("POST", URL))


def problem(kind: Kind, **more: Any) -> httpx.Response:
    sent = Problem(kind, "the detail", "the hint", more or None, {"Retry-After": "7"}).response()
    return httpx.Response(
        sent.status_code, content=bytes(sent.body), headers=dict(sent.headers), request=httpx.Request("POST", URL)
    )


LOST = httpx.RemoteProtocolError("the server went away")
SLOW = httpx.ReadTimeout("")


class TestAskingAgain:
    def test_what_is_lost_is_sent_again_the_same(self) -> None:
        driven = Driven([LOST, answer(200, {})])
        assert driven.run(answered(ASK, driven.patience)).status_code == 200
        assert [each.ask for each in driven.sent] == [ASK, ASK]
        assert [each.headers()["Idempotency-Key"] for each in driven.sent] == ["key-1", "key-1"]
        assert driven.slept == [pytest.approx(0.1)]

    @pytest.mark.parametrize("kind", [Kind.TOO_MANY, Kind.UNAVAILABLE, Kind.DRAINING])
    def test_it_waits_for_as_long_as_it_was_told(self, kind: Kind) -> None:
        driven = Driven([problem(kind), answer(202, {})])
        assert driven.run(answered(ASK, driven.patience)).status_code == 202
        assert driven.slept == [7.0]

    @pytest.mark.parametrize("planned", [LOST, problem(Kind.UNAVAILABLE), answer(503, retry_after="Mon, 1 Jan 2026")])
    def test_it_gives_up(self, planned: Any) -> None:
        driven = Driven([planned])
        with pytest.raises(errors.Unavailable):
            driven.run(answered(ASK, driven.patience))
        assert 20 <= driven.time.at - 1000 <= 30

    def test_nothing_that_was_answered_otherwise_is_sent_again(self) -> None:
        for kind in Kind:
            if kind not in (Kind.TOO_MANY, Kind.UNAVAILABLE, Kind.DRAINING):
                driven = Driven([problem(kind)])
                with pytest.raises(errors.BrokerError):
                    driven.run(answered(ASK, driven.patience))
                assert len(driven.sent) == 1, kind

    def test_a_call_that_takes_long_is_not_a_broker_that_is_away(self) -> None:
        driven = Driven([SLOW] * 10 + [answer(200, {})])
        driven.run(answered(ASK, driven.patience, slow_until=2000))
        assert len(driven.sent) == 11
        driven = Driven([SLOW])
        with pytest.raises(errors.Unavailable):
            driven.run(answered(ASK, driven.patience, slow_until=1100))
        assert driven.time.at < 1200

    def test_a_moment_ends_everything(self) -> None:
        driven = Driven([SLOW, SLOW, answer(200, {})])
        with pytest.raises(errors.Unavailable):
            driven.run(answered(ASK, driven.patience, until=1015))
        assert driven.sent[0].seconds == 15


class TestTokens:
    def test_a_refused_token_is_replaced_once(self) -> None:
        refused = problem(Kind.UNAUTHENTICATED)
        driven = Driven([refused, answer(200, {})], tokens=lambda old: "second" if old == "first" else "first")
        driven.run(answered(ASK, driven.patience))
        assert [each.token for each in driven.sent] == ["first", "second"]
        driven = Driven([refused], tokens=lambda old: "second" if old == "first" else "first")
        with pytest.raises(Unauthenticated):
            driven.run(answered(ASK, driven.patience))
        assert len(driven.sent) == 2
        driven = Driven([refused])
        with pytest.raises(Unauthenticated):
            driven.run(answered(ASK, driven.patience))
        assert len(driven.sent) == 1, "there is no other token"

    def test_a_certificate_needs_none(self) -> None:
        driven = Driven([answer(200, {})], tokens=lambda old: None)
        driven.run(answered(ASK, driven.patience))
        assert "Authorization" not in driven.sent[0].headers()

    def test_a_function_is_asked_again_before_its_token_expires(self) -> None:
        time = Time()

        def jwt(expires: float) -> str:
            part = base64.urlsafe_b64encode(json.dumps({"exp": expires}).encode()).decode().rstrip("=")
            return f"e30.{part}.x"

        own = OwnToken(lambda: jwt(time.now().timestamp() + 100), time)
        assert own.kept(None) is None
        first = own.keep(own.ask())  # type: ignore[arg-type]
        assert own.kept(None) == first
        assert own.kept(first) is None, "it was refused"
        time.at += 71
        assert own.kept(None) is None
        assert own.keep(own.ask()) != first  # type: ignore[arg-type]
        opaque = OwnToken(lambda: "opaque", time)
        opaque.keep("opaque")
        time.at += 10_000
        assert opaque.kept(None) == "opaque"
        assert opaque.kept("opaque") is None

    def test_a_file_is_read_each_time(self, tmp_path: Path) -> None:
        file = tmp_path / "token"
        file.write_text("one\n")
        for given in (file, os.fspath(file)):
            own = OwnToken(given if isinstance(given, Path) else Path(given), Time())
            assert own.keep(own.ask()) == "one"  # type: ignore[arg-type]
            assert own.kept(None) is None
        file.unlink()
        with pytest.raises(Unauthenticated, match="No such file"):
            own.ask()

    @pytest.mark.parametrize("token", ["", "a b", "a\nb", "tökén", "Bearer x"])
    def test_what_is_no_token_is_neither_sent_nor_quoted(self, token: str) -> None:
        with pytest.raises(Unauthenticated) as caught:
            OwnToken(token, Time())
        assert not token or token not in str(caught.value)


def held(state: str = "handed_over", *, credential: bool = True) -> httpx.Response:
    lease = {"id": "lease_1", "expires_at": "2026-01-01T00:01:00Z", "scope": {}, "subject": "s"}
    told = {"kind": "token", "ttl": 60, "fields": {"token": SECRET}}
    return answer(200, {"state": state, "lease": lease, **({"credential": told} if credential else {})})


class TestCalls:
    def call(self) -> flows.Call:
        keys = iter(["k1", "k2", "k3", "k4"])
        return flows.Call("task_1", "ticket", {}, 2000, lambda: next(keys))

    def test_what_goes_on_is_asked_for_again(self) -> None:
        running, done = answer(202, {"state": "running"}), answer(200, {"state": "done", "output": {"rows": []}})
        driven = Driven([running, running, running, done])
        assert driven.run(flows.output(self.call(), driven.patience)) == {"rows": []}
        assert {each.ask.key for each in driven.sent} == {"k1"}
        assert driven.slept == sorted(driven.slept)

    def test_it_does_not_ask_for_ever(self) -> None:
        driven = Driven([answer(202, {"state": "running"})])
        with pytest.raises(errors.Unavailable, match="the task is over"):
            driven.run(flows.output(self.call(), driven.patience))

    def test_how_a_call_can_end(self) -> None:
        for state, error in (("failed", errors.CallFailed), ("cancelled", errors.CallCancelled)):
            driven = Driven([answer(200, {"state": state, "error": {"kind": "k", "detail": "why"}})])
            with pytest.raises(error, match="why") as caught:
                driven.run(flows.output(self.call(), driven.patience))
            assert caught.value.more == {"kind": "k"}
        waiting = answer(202, {"state": "waiting", "approval": "appr_1"})
        driven = Driven([waiting])
        with pytest.raises(errors.ApprovalPending) as pending:
            driven.run(flows.output(self.call(), driven.patience, 60))
        assert (pending.value.approval, 55 < driven.time.at - 1000 <= 60) == ("appr_1", True)
        driven = Driven([answer(200, {"state": "exploded"})])
        with pytest.raises(errors.BrokerError, match="did not answer as a broker does"):
            driven.run(flows.output(self.call(), driven.patience))

    def test_a_credential_that_was_lost_is_given_back_and_another_asked_for(self) -> None:
        gone = answer(200, {"confirmed": True})
        driven = Driven([LOST, held("running", credential=False), gone, held()])
        credential = driven.run(flows.handed_over(self.call(), driven.patience))
        assert credential.token == SECRET
        assert [(each.ask.method, each.ask.key) for each in driven.sent] == [
            ("POST", "k1"),
            ("POST", "k1"),
            ("DELETE", ""),
            ("POST", "k2"),
        ]
        driven = Driven([answer(200, {"state": "done", "output": {}})])
        with pytest.raises(errors.Unavailable, match="lost"):
            driven.run(flows.handed_over(self.call(), driven.patience))

    def test_what_an_interrupted_caller_may_have_got_is_given_back(self) -> None:
        gone = answer(200, {"confirmed": True})
        driven = Driven([answer(202, {"state": "running"}), held("running", credential=False), gone])
        driven.run(flows.abandoning(self.call(), driven.patience))
        assert driven.sent[-1].ask.path == "/v1/leases/lease_1"
        for nothing in (answer(200, {"state": "failed"}), answer(202, {"state": "running"}), LOST):
            driven = Driven([nothing])
            driven.run(flows.abandoning(self.call(), driven.patience))
            assert driven.time.at <= 1016

    def test_what_stays_unconfirmed_is_logged(self, caplog: pytest.LogCaptureFixture) -> None:
        for planned in (answer(202, {"confirmed": False}), LOST, problem(Kind.DEFECT)):
            driven = Driven([planned])
            found = driven.run(flows.giving_back("lease_1", driven.patience))
            assert isinstance(found, errors.Unconfirmed)
            assert driven.time.at <= 1015
        assert [record.message[:42] for record in caplog.records] == ["Unconfirmed: the end of the credential lea"] * 3


def test_every_problem_of_the_api_is_an_error_of_its_own() -> None:
    plain = [kind for kind in Kind if type(errors.error_of(problem(kind))) is errors.BrokerError]
    assert plain == [Kind.NO_SUCH_METHOD, Kind.DEFECT]
    found = errors.error_of(problem(Kind.DENIED, by="policy", reasons=["not this one"]))
    assert isinstance(found, errors.Denied)
    assert (found.by, found.reasons, found.status, found.detail, found.hint) == (
        "policy",
        ("not this one",),
        403,
        "the detail",
        "the hint",
    )
    assert found.type == "urn:credential-orchestrator:problem:denied"


@pytest.mark.parametrize("body", [b"", b"<html>", b"[]", b'{"type": "about:blank"}', SECRET.encode()])
@pytest.mark.parametrize("status", [302, 401, 404, 502])
def test_whoever_else_answers_is_not_quoted(body: bytes, status: int) -> None:
    found = errors.error_of(httpx.Response(status, content=body, request=httpx.Request("GET", URL)))
    assert (found.status, found.type) == (status, "")
    assert SECRET not in str(found)
    assert isinstance(found, errors.Unavailable) is (status == 502)


def test_an_answer_that_is_not_understood_stays_out_of_every_error() -> None:
    for body in (b"no JSON " + SECRET.encode(), json.dumps({"state": "handed_over", "lease": SECRET}).encode()):
        response = httpx.Response(200, content=body, request=httpx.Request("POST", URL))
        driven = Driven([response])
        with pytest.raises(errors.BrokerError) as caught:
            driven.run(flows.handed_over(TestCalls().call(), driven.patience))
        assert caught.value.__context__ is None
        assert SECRET not in f"{caught.value!s} {caught.value!r}"


def test_a_credential_shows_nothing_of_itself() -> None:
    now = datetime.now(UTC)
    credential = Credential("token", 60, now, "lease_1", {}, "s", None, {"token": Secret(SECRET)})
    assert SECRET not in f"{credential!r} {credential!s} {credential.fields}"
    assert credential.token == SECRET
    assert credential.fields["token"].reveal() == SECRET
    with pytest.raises(AttributeError, match="no password; it has token"):
        _ = credential.password
    assert SECRET not in repr(Send(ASK, SECRET, 1)) + repr(TokenWanted(SECRET)) + repr(OwnToken(SECRET, Time()))


def test_nothing_goes_where_others_can_read_it() -> None:
    for url in ("http://broker.example", "ftp://broker.example", "broker.example", "https://a:b@broker.example"):
        with pytest.raises(ValueError, match=r"https|URL"):
            Broker(url, "t")
        with pytest.raises(ValueError, match=r"https|URL"):
            TaskAuth(lambda: pytest.fail("it was asked"), url, Time())
    Broker("http://127.0.0.1:1", "t").close()


def test_inputs_are_given_by_name_or_as_a_mapping() -> None:
    with Broker("http://127.0.0.1:1", "t") as broker:
        names = {"reason": 1, "self": 2, "task_type": 3, "inputs": 4}
        task = broker.task("a", **names)
        assert task._inputs == names
        assert broker.task("a", names)._inputs == names
        with pytest.raises(TypeError, match="given twice: reason"):
            broker.task("a", names, reason=5)
        with pytest.raises(RuntimeError, match="not open"):
            _ = task.id


def test_an_agent_loads_nothing_else_of_this_package() -> None:
    program = """
import pkgutil, sys, importlib, orchestrator.client
for module in pkgutil.walk_packages(orchestrator.client.__path__, "orchestrator.client."):
    importlib.import_module(module.name)
print(*sorted(sys.modules))
"""
    loaded = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.split()
    ours = {name for name in loaded if name.startswith("orchestrator.") and not name.startswith("orchestrator.client")}
    pure = {
        "clock",
        "errors",
        "secret",
        "uninterrupted",
        "network",
        "network.http_client",
        "network.loopback",
        "network.origins",
        "version",
    }
    assert ours == {f"orchestrator.{name}" for name in pure}
    heavy = {"pydantic", "sqlalchemy", "hvac", "psycopg", "starlette", "uvicorn", "requests", "aiohttp", "joserfc"}
    assert {name.partition(".")[0] for name in loaded} & heavy == set()
    assert "httpx" in loaded


class TestExchange:
    """What is asked of the token endpoint, and what its errors mean."""

    def call(self, **more: Any) -> Exchange:
        return Exchange("t", "ticket", {"a": 1}, until=2000.0, **more)

    def answer(self, status: int, **document: Any) -> httpx.Response:
        return httpx.Response(status, json=document, request=httpx.Request("POST", f"{URL}/oauth/token"))

    def token(self, **changes: Any) -> httpx.Response:
        good = {"access_token": SECRET, "token_type": "Bearer", "expires_in": 60, "scope": "a b"}
        return self.answer(200, **{**good, "authorization_details": [], **changes})

    def test_the_token_is_in_the_form_and_in_no_header(self) -> None:
        ask = self.call(scope="a", audience="crm").ask()
        assert (ask.form or {})["authorization_details"] == json.dumps(
            [{"type": "tool_call", "task": "t", "tool": "ticket", "arguments": {"a": 1}}]
        )
        send = Send(ask, SECRET, 1)
        assert set(send.headers()) == {"Idempotency-Key"}
        with httpx.Client(base_url=URL) as http:
            made = request(http, send)
            assert f"subject_token={SECRET}" in made.content.decode()
            assert "authorization" not in made.headers
            with pytest.raises(errors.InvalidRequest, match="a certificate alone"):
                request(http, replace(send, token=None))
        assert SECRET not in f"{ask!r} {send!r}"

    def test_a_token_is_taken(self) -> None:
        found = Driven([self.token()]).run(self.call().taking(Patience()))
        assert (found.token, found.ttl, found.scope["scopes"], found.lease_id) == (SECRET, 60, ["a", "b"], "")
        assert SECRET not in repr(found)

    def test_one_that_was_told_before_is_given_back_and_another_asked_for(self) -> None:
        used = self.answer(400, error="invalid_request", error_description="told once", lease="lease_1")
        driven = Driven([used, httpx.Response(200, json={"confirmed": True}), self.token()])
        assert driven.run(self.call().taking(driven.patience)).token == SECRET
        assert [(each.ask.method, each.ask.path) for each in driven.sent] == [
            ("POST", "/oauth/token"),
            ("DELETE", "/v1/leases/lease_1"),
            ("POST", "/oauth/token"),
        ]
        assert driven.sent[0].ask.key != driven.sent[2].ask.key

    def test_what_is_carried_out_is_asked_for_again_and_what_waits_is_told(self) -> None:
        going_on = self.answer(400, error="authorization_pending", error_description="", interval=1)
        driven = Driven([going_on, going_on, self.token()])
        assert driven.run(self.call().taking(driven.patience)).token == SECRET
        assert len(driven.slept) == 2
        assert len({each.ask.key for each in driven.sent}) == 1
        waits = self.answer(400, error="authorization_pending", error_description="", interval=5, approval="appr_1")
        driven = Driven([waits])
        with pytest.raises(errors.ApprovalPending) as pending:
            driven.run(self.call().taking(driven.patience))
        assert pending.value.approval == "appr_1"

    def test_a_token_that_was_not_bound_is_given_back(self) -> None:
        driven = Driven([self.token(), self.answer(200)])
        with pytest.raises(errors.InvalidRequest, match="not bound"):
            driven.run(self.call(prover=ProofKey.generate()).taking(driven.patience))
        assert driven.sent[1].ask.path == "/oauth/revoke"

    def test_a_subject_token_that_is_not_believed_is_renewed_once(self) -> None:
        refused = self.answer(
            400, error="invalid_request", error_description="it has expired", problem=f"{errors.PREFIX}unauthenticated"
        )
        driven = Driven([refused, self.token()], tokens=lambda refused: SECRET if refused is None else "fresh")
        assert driven.run(self.call().taking(driven.patience)).token == SECRET
        assert [each.token for each in driven.sent] == [SECRET, "fresh"]
        with pytest.raises(Unauthenticated, match="expired"):
            Driven([refused]).run(self.call().taking(Patience()))

    @pytest.mark.parametrize(
        ("error", "problem", "kind"),
        [
            ("invalid_scope", "", errors.InvalidRequest),
            ("invalid_dpop_proof", "", errors.InvalidRequest),
            ("server_error", "", errors.CallFailed),
            ("invalid_grant", "task-ended", errors.TaskClosed),
            ("access_denied", "denied", errors.Denied),
            ("access_denied", "budget-spent", errors.BudgetSpent),
            ("unauthorized_client", "agent-cut-off", errors.CutOff),
        ],
    )
    def test_errors_of_oauth_are_those_of_the_api(self, error: str, problem: str, kind: type[Exception]) -> None:
        more = {"problem": errors.PREFIX + problem} if problem else {}
        with pytest.raises(kind, match="why"):
            Driven([self.answer(400, error=error, error_description="why", **more)]).run(self.call().taking(Patience()))

    def test_an_answer_that_is_none_is_refused_without_its_text(self) -> None:
        for wrong in ({"token_type": "N_A"}, {"expires_in": "x"}, {"access_token": None, "scope": 1}):
            with pytest.raises(errors.BrokerError, match="not answer as a broker") as caught:
                Driven([self.token(**wrong)]).run(self.call().taking(Patience()))
            assert SECRET not in f"{caught.value!s} {caught.value!r}"
