"""Policy services that are away, sick or hostile: a denial that says why, in time, and our token stays with us."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import socket
import ssl
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from database_servers import Authority
from policy_questions import QUERY, READ, TOKEN
from sick_services import (
    Asked,
    Behaviour,
    Sick,
    bomb,
    dripping,
    dripping_head,
    echoing,
    echoing_error,
    endless,
    endless_head,
    garbage,
    half,
    metadata_of,
    saying,
    sick_service,
    silent,
)

from orchestrator.devstack.ports import free_port
from orchestrator.policy.documents import MAX_ANSWER_BYTES
from orchestrator.policy.engines.services import authzen as authzen_module
from orchestrator.policy.engines.services import service as service_module
from orchestrator.policy.engines.services.authzen import AuthzenEngine
from orchestrator.policy.engines.services.opa import OpaEngine
from orchestrator.policy.engines.services.service import MAX_BODY_BYTES, MAX_REASON_LENGTH, MAX_REASONS
from orchestrator.policy.types import Decision
from orchestrator.secret import Secret

SECONDS = 2.0
"""A deadline that is meant to pass."""
ENOUGH = 30.0
"""One that is not, and how long nothing may take."""
SECRET = "tok-3fGq81LmZx0PvT7w"


@dataclass(frozen=True)
class Kind:
    """One of the two engines, and how its service says yes."""

    engine: type[OpaEngine] | type[AuthzenEngine]
    yes: bytes
    no: bytes
    texts: bytes

    def open(self, url: str, **options: object) -> OpaEngine | AuthzenEngine:
        given = {"url": url, "timeout": ENOUGH, **options}
        return self.engine.from_options({name: str(value) for name, value in given.items()})

    async def ask(self, url: str, **options: object) -> Decision:
        return await _asked(self.open(url, **options))


async def _asked(engine: OpaEngine | AuthzenEngine) -> Decision:
    """The decision, before nothing else than the deadline is over."""
    began = time.monotonic()
    decision = await engine.decide(QUERY)
    assert time.monotonic() - began < ENOUGH - 5
    await engine.aclose()
    return decision


OPA = Kind(OpaEngine, b'{"result": {"allow": true}}', b'{"result": {"allow": false}}', b'{"result": {"allow": "yes"}}')
AUTHZEN = Kind(AuthzenEngine, b'{"decision": true}', b'{"decision": false}', b'{"decision": "yes"}')


@pytest.fixture(params=[OPA, AUTHZEN], ids=["opa", "authzen"])
def kind(request: pytest.FixtureRequest) -> Kind:
    made: Kind = request.param
    return made


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority.make(tmp_path_factory.mktemp("ca"), "authority")


async def test_a_service_that_is_well_permits(kind: Kind) -> None:
    with sick_service(Sick(saying(kind.yes))) as service:
        assert (await kind.ask(service.url)).allow


OUT_OF_TIME = ("no connection in time", "no answer within 2s")
"""The connection has less time than the whole question; where the processor is busy both end at the same moment."""


def denied(decision: Decision, *reasons: str) -> None:
    assert not decision.allow
    assert len(decision.reasons) == 1
    assert any(reason in decision.reasons[0] for reason in reasons), decision.reasons


SLOW: list[Behaviour] = [silent, dripping, dripping_head]


@pytest.mark.parametrize("behaviour", SLOW)
async def test_what_takes_longer_than_its_deadline_is_denied(kind: Kind, behaviour: Behaviour) -> None:
    with sick_service(Sick(behaviour)) as service:
        denied(await kind.ask(service.url, timeout=SECONDS), "no answer within 2s")


async def test_a_service_that_never_takes_the_connection_is_denied(kind: Kind) -> None:
    """Its queue is full: the kernel leaves further connections without an answer."""
    with contextlib.ExitStack() as opened:
        listener = opened.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        for _ in range(4):
            waiting = opened.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(listener.getsockname())
        port = listener.getsockname()[1]
        denied(await kind.ask(f"http://127.0.0.1:{port}", timeout=SECONDS), *OUT_OF_TIME)


async def test_a_tls_handshake_that_never_ends_is_denied(kind: Kind) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        denied(await kind.ask(f"https://127.0.0.1:{port}", timeout=SECONDS), *OUT_OF_TIME)


async def test_nothing_that_listens_is_a_denial(kind: Kind, tmp_path: Path) -> None:
    denied(await kind.ask(f"http://127.0.0.1:{free_port()}"), "nothing listens there")
    denied(await kind.ask("http://pdp", socket=tmp_path / "none.sock"), "no such socket")
    denied(await kind.ask("https://nowhere.invalid"), "no address for its name")


async def test_a_connection_that_is_refused_is_tried_again(kind: Kind) -> None:
    """Refused connections only: a question that may have been taken is not asked twice."""
    refused = socket.socket()
    refused.bind(("127.0.0.1", 0))
    engine = kind.open(f"http://127.0.0.1:{refused.getsockname()[1]}")
    tries: list[int] = []
    exchange = service_module._exchange

    async def counted(*given: Any) -> Any:
        tries.append(1)
        return await exchange(*given)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(service_module, "_exchange", counted)
        denied(await _asked(engine), "nothing listens there")
    refused.close()
    assert len(tries) == 4


async def test_a_question_that_was_taken_is_not_asked_twice(kind: Kind) -> None:
    with sick_service(Sick(half(b"{"))) as service:
        assert not (await kind.ask(service.url)).allow
        assert len([each for each in service.asked if not each.target.startswith("/.well-known")]) == 1


@cache
def _whole(kind: Kind) -> dict[str, tuple[Behaviour, str]]:
    yes = kind.yes
    return {
        "garbage": (garbage, "does not speak HTTP"),
        "nothing": (half(b""), "broke off"),
        "half an answer": (half(yes), "broke off"),
        "half a JSON": (saying(yes[:-1]), "it is not JSON"),
        "no body": (saying(b""), "it is not JSON"),
        "two answers": (saying(yes + yes), "it is not JSON"),
        "a list": (saying(b"[" + yes + b"]"), "not a JSON object"),
        "a number twice": (saying(b'{"decision": false, "result": {"allow": false}, ' + yes[1:]), "a key twice"),
        "a key twice further in": (saying(yes[:-1] + b', "x": {"a": 1, "a": 2}}'), "a key twice"),
        "not a number": (saying(yes[:-1] + b', "x": NaN}'), "a number that JSON does not know"),
        "a number without a bound": (saying(yes[:-1] + b', "x": 1e400}'), "a number that JSON does not know"),
        "not UTF-8": (saying(yes[:-1] + b', "x": "\xff"}'), "not UTF-8"),
        "UTF-16": (saying(yes.decode().encode("utf-16")), "not UTF-8"),
        "half a surrogate pair": (saying(yes[:-1] + rb', "x": "\ud800"}'), "surrogate"),
        "depth": (saying(yes[:-1] + b', "x": ' + b"[" * 30_000 + b"]" * 30_000 + b"}"), "it is not JSON"),
        "another type": (saying(yes, content_type="text/html"), "not of the type application/json"),
        "10 MB": (saying(yes + b" " * 10_000_000), f"longer than {MAX_BODY_BYTES} bytes"),
        "one byte too many": (saying(yes.ljust(MAX_BODY_BYTES + 1)), f"longer than {MAX_BODY_BYTES} bytes"),
        "no end": (endless, f"longer than {MAX_BODY_BYTES} bytes"),
        "no end of headers": (endless_head, "does not speak HTTP"),
        "gzip": (saying(bomb(yes, 0), content_encoding="gzip"), "compressed"),
        "a bomb": (saying(bomb(yes, 50_000_000), content_encoding="gzip"), "compressed"),
        "a bomb that says nothing": (saying(bomb(yes, 50_000_000)), "not UTF-8"),
        "201": (saying(yes, "201 Created"), "HTTP 201"),
        "204": (saying(b"", "204 No Content"), "HTTP 204"),
        "400": (saying("what?", "400 Bad Request"), "HTTP 400: what?"),
        "401": (saying(yes, "401 Unauthorized"), "HTTP 401"),
        "403": (saying('{"code": "x", "message": "no\\nentry"}', "403 Forbidden"), "HTTP 403: no entry"),
        "404": (saying(yes, "404 Not Found"), "HTTP 404"),
        "429": (saying(yes, "429 Too Many Requests"), "HTTP 429"),
        "500": (saying("x" * 60_000, "500 Internal Server Error"), "HTTP 500: xxx"),
        "503": (saying(yes, "503 Service Unavailable"), "HTTP 503"),
    }


@pytest.mark.parametrize("name", _whole(OPA))
async def test_what_is_not_a_clear_answer_is_denied(kind: Kind, name: str) -> None:
    behaviour, reason = _whole(kind)[name]
    with sick_service(Sick(behaviour)) as service:
        decision = await kind.ask(service.url)
        denied(decision, reason)
        assert decision.reasons[0].startswith(f"{service.url} gave no decision: ")
        assert len(decision.reasons[0]) < 400
        assert all(each.target.startswith(("/v1/data/", "/access/", "/.well-known/")) for each in service.asked)


async def test_the_longest_answer_is_read(kind: Kind) -> None:
    with sick_service(Sick(saying(kind.yes.ljust(MAX_BODY_BYTES)))) as service:
        assert (await kind.ask(service.url)).allow


async def test_what_is_no_boolean_is_denied(kind: Kind) -> None:
    with sick_service(Sick(saying(kind.texts))) as service:
        denied(await kind.ask(service.url), "no boolean `allow`", "`decision`: Input should be a valid boolean")


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_redirects_are_not_followed(kind: Kind, status: int, tmp_path: Path) -> None:
    with sick_service(Sick(saying(kind.yes))) as other:
        (tmp_path / "token").write_text(SECRET)
        with sick_service(Sick(saying(b"", f"{status} Elsewhere", location=f"{other.url}/v1"))) as service:
            denied(await kind.ask(service.url, token_file=tmp_path / "token"), f"it redirects (HTTP {status})")
        assert other.asked == []


async def test_an_absent_result_is_undefined() -> None:
    with sick_service(Sick(saying(b'{"decision_id": "d-1"}'))) as service:
        decision = await OPA.ask(service.url)
        denied(decision, "undefined")
        assert decision.decision_id == "d-1"


async def test_proxies_of_the_environment_are_not_used(kind: Kind, monkeypatch: pytest.MonkeyPatch) -> None:
    with sick_service(Sick(saying(kind.no))) as proxy, sick_service(Sick(saying(kind.yes))) as service:
        for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
            monkeypatch.setenv(name, proxy.url)
        monkeypatch.delenv("NO_PROXY", raising=False)
        monkeypatch.delenv("no_proxy", raising=False)
        assert (await kind.ask(service.url)).allow
        assert proxy.asked == []


async def test_a_cancellation_passes_through(kind: Kind) -> None:
    with sick_service(Sick(silent)) as service:
        asking = asyncio.ensure_future(kind.ask(service.url))
        while not any(not each.target.startswith("/.well-known") for each in service.asked):
            await asyncio.sleep(0.01)
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking


def test_an_engine_serves_one_event_loop_after_another(kind: Kind) -> None:
    with sick_service(Sick(saying(kind.yes))) as service:
        engine = kind.open(service.url)
        for _ in range(3):
            assert asyncio.run(engine.decide(QUERY)).allow
        asyncio.run(engine.aclose())
        assert asyncio.run(engine.decide(QUERY)).allow


async def test_many_questions_at_once_are_answered(kind: Kind) -> None:
    with sick_service(Sick(saying(kind.yes))) as service:
        engine = kind.open(service.url)
        assert all(each.allow for each in await asyncio.gather(*(engine.decide(QUERY) for _ in range(40))))
        await engine.aclose()


# --- TLS


@contextlib.contextmanager
def secured(kind: Kind, tls: ssl.SSLContext) -> Iterator[Sick]:
    with sick_service(Sick(saying(kind.yes)), tls) as service:
        yield service


async def test_a_certificate_of_the_named_authority_is_accepted(kind: Kind, authority: Authority) -> None:
    with secured(kind, authority.server("127.0.0.1")) as service:
        assert (await kind.ask(service.url, ca_file=authority.file)).allow


async def test_certificates_that_are_not_the_services_are_denied(
    kind: Kind, authority: Authority, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(authority.file))
    other = Authority.make(tmp_path, "other")
    for server, trusted in (
        (authority.server("127.0.0.1"), {}),
        (authority.server("127.0.0.1"), {"ca_file": other.file}),
        (authority.server("pdp.example"), {"ca_file": authority.file}),
        (authority.server("127.0.0.1", expired=True), {"ca_file": authority.file}),
    ):
        with secured(kind, server) as service:
            denied(await kind.ask(service.url, **trusted), "certificate is not accepted")
            assert service.asked == []


def mutual(authority: Authority) -> ssl.SSLContext:
    server = authority.server("127.0.0.1")
    server.load_verify_locations(authority.file)
    server.verify_mode = ssl.CERT_REQUIRED
    return server


async def test_a_client_certificate_is_shown_where_one_was_named(
    kind: Kind, authority: Authority, tmp_path: Path
) -> None:
    ours, strange = authority.issued("orchestrator"), Authority.make(tmp_path, "other").issued("orchestrator")
    expired = authority.issued("orchestrator", expired=True)
    with secured(kind, mutual(authority)) as service:
        assert (await kind.ask(service.url, ca_file=authority.file, client_cert=ours)).allow
        for given in ({}, {"client_cert": strange}, {"client_cert": expired}):
            decision = await kind.ask(service.url, ca_file=authority.file, **given)
            denied(decision, "TLS failed", "broke off", "the connection failed")
        assert len(service.asked) == (1 if kind is OPA else 2)


async def test_a_certificate_that_is_replaced_is_used_from_then_on(
    kind: Kind, authority: Authority, tmp_path: Path
) -> None:
    file = tmp_path / "client.pem"
    file.write_bytes(authority.issued("orchestrator", expired=True).read_bytes())
    with secured(kind, mutual(authority)) as service:
        engine = kind.open(service.url, ca_file=authority.file, client_cert=file)
        assert not (await engine.decide(QUERY)).allow
        (tmp_path / "new.pem").write_bytes(authority.issued("orchestrator").read_bytes())
        (tmp_path / "new.pem").replace(file)
        assert (await engine.decide(QUERY)).allow
        file.unlink()
        denied(await engine.decide(QUERY), "a certificate or key cannot be used")
        await engine.aclose()


# --- the token


async def test_the_token_is_read_anew_for_each_question(kind: Kind, tmp_path: Path) -> None:
    file = tmp_path / "token"
    with sick_service(Sick(saying(kind.yes))) as service:
        engine = kind.open(service.url, token_file=file)
        denied(await engine.decide(QUERY), "the token file cannot be read: No such file or directory")
        assert service.asked == []
        for token in ("first-token-value", "second-token-value"):
            file.write_text(token + "\n")
            assert (await engine.decide(QUERY)).allow
            assert service.asked[-1].headers["authorization"] == f"Bearer {token}"
        await engine.aclose()


@pytest.mark.parametrize("content", ["", " \n", "two words", "two\nlines", "ümlaut", "x\x00y"])
async def test_a_file_without_a_token_is_a_denial(kind: Kind, content: str, tmp_path: Path) -> None:
    (tmp_path / "token").write_text(content)
    with sick_service(Sick(saying(kind.yes))) as service:
        decision = await kind.ask(service.url, token_file=tmp_path / "token")
        denied(decision, "the token file holds no bearer token")
        assert service.asked == []


async def test_a_token_file_that_nobody_writes_to_is_not_waited_for(kind: Kind, tmp_path: Path) -> None:
    import os

    os.mkfifo(tmp_path / "token")
    denied(await kind.ask("http://127.0.0.1:1", token_file=tmp_path / "token"), "not a regular file")


@pytest.mark.parametrize("behaviour", [echoing, echoing_error])
async def test_a_service_that_gives_our_token_back_does_not_get_it_shown(
    kind: Kind, behaviour: Behaviour, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "orchestrator")
    (tmp_path / "token").write_text(SECRET)
    with sick_service(Sick(behaviour)) as service:
        engine = kind.open(service.url, token_file=tmp_path / "token")
        heard: list[Secret] = []
        engine.remember_with(heard.append)
        decision = await engine.decide(QUERY)
        denied(decision, "its answer holds our own token")
        assert heard[0] == Secret(SECRET)
        assert SECRET not in f"{decision!r} {engine!r} {caplog.text}"
        await engine.aclose()


@pytest.mark.parametrize("disguise", [lambda s: "".join(f"\\u{ord(c):04x}" for c in s), lambda s: s.encode().hex()])
async def test_nor_where_it_is_disguised(kind: Kind, disguise: Callable[[str], str], tmp_path: Path) -> None:
    (tmp_path / "token").write_text(SECRET)
    text = disguise(SECRET).encode()
    body = kind.no[:-1] + b', "context": {"reasons": ["' + text + b'"]}}'
    with sick_service(Sick(saying(body))) as service:
        denied(await kind.ask(service.url, token_file=tmp_path / "token"), "its answer holds our own token")


@pytest.mark.parametrize(
    ("number", "kinds"), [(1 << 52, [OPA, AUTHZEN]), (1 << 53, [OPA]), (-(1 << 53), [OPA]), (1 << 63, [])]
)
async def test_a_number_that_the_other_side_may_round_is_not_asked_about(number: int, kinds: list[Kind]) -> None:
    for kind in (OPA, AUTHZEN):
        with sick_service(Sick(saying(kind.yes))) as service:
            engine = kind.open(service.url)
            decision = await engine.decide(replace(QUERY, context={"customer_id": number}))
            await engine.aclose()
        assert decision.allow is (kind in kinds)
        assert decision.allow or "a whole number that cannot be compared exactly" in decision.reasons[0]


# --- what becomes of a long answer


async def test_reasons_are_bounded() -> None:
    reasons = ["x" * 5000] + [f"r{number}" for number in range(200)]
    with sick_service(Sick(saying(json.dumps({"result": {"allow": False, "reasons": reasons}})))) as service:
        said = (await OPA.ask(service.url)).reasons
    assert len(said) == MAX_REASONS + 1
    assert max(map(len, said)) == MAX_REASON_LENGTH
    body = {"decision": False, "context": {"reasons": reasons, "reason_user": {"403": "no"}}}
    with sick_service(Sick(saying(json.dumps(body)))) as service:
        said = (await AUTHZEN.ask(service.url)).reasons
    assert len(said) == MAX_REASONS + 1


@pytest.mark.parametrize(
    ("provenance", "revision"),
    [
        ({"version": "1.9.0", "bundles": {"b": {"revision": "2"}, "a": {"revision": "1"}}}, "a@1, b@2"),
        ({"version": "1.9.0", "bundles": {"a": {}}}, "a@unknown"),
        ({"version": "1.9.0"}, "opa 1.9.0"),
        ({"version": "0.10.6", "revision": "ID-1"}, "ID-1"),
        ({}, "unknown"),
        ("x", "unknown"),
        (None, "unknown"),
    ],
)
async def test_the_revision_is_that_of_the_bundles(provenance: object, revision: str) -> None:
    body = {"result": {"allow": True}, "provenance": provenance, "decision_id": 7}
    with sick_service(Sick(saying(json.dumps(body)))) as service:
        decision = await OPA.ask(service.url)
        assert (decision.allow, decision.revision, decision.decision_id) == (True, revision, "")
        assert service.asked[0].target == "/v1/data/orchestrator/decision?provenance=true&strict-builtin-errors=true"
        assert json.loads(service.asked[0].body) == {"input": json.loads(json.dumps(QUERY.as_json()))}


# --- AuthZEN


SEVERAL = replace(QUERY, grants=(READ, TOKEN))


def _metadata(**more: Any) -> Callable[[Sick], Behaviour]:
    return lambda service: saying(json.dumps(metadata_of(service.url, **more)))


METADATA: dict[str, tuple[dict[str, Any] | Behaviour, str]] = {
    "of another decision point": ({"policy_decision_point": "http://127.0.0.2:1"}, "another decision point"),
    "of another path": ({"policy_decision_point": "http://127.0.0.1/x"}, "another decision point"),
    "none": ({"policy_decision_point": None}, "`policy_decision_point`"),
    "another host": ({"access_evaluation_endpoint": "http://evil.example/access"}, "another origin"),
    "another port": ({"access_evaluation_endpoint": "http://127.0.0.1:1/access"}, "another origin"),
    "another scheme": ({"access_evaluation_endpoint": "https://127.0.0.1/access"}, "another origin"),
    "another host for several": ({"access_evaluations_endpoint": "http://evil.example/x"}, "another origin"),
    "a user": ({"access_evaluation_endpoint": "http://127.0.0.1@evil.example/x"}, "another origin"),
    "a path only": ({"access_evaluation_endpoint": "/access/v1/evaluation"}, "another origin"),
    "a number": ({"access_evaluation_endpoint": 7}, "`access_evaluation_endpoint`"),
    "obligations": ({"supported_obligations": "all"}, "`supported_obligations`"),
    "an error": (saying("down", "500 Oops"), "HTTP 500: down"),
    "a redirect": (saying(b"", "302 Found", location="http://evil.example"), "it redirects"),
    "silence": (silent, "no answer within"),
    "garbage": (garbage, "does not speak HTTP"),
    "half": (half(b"{}"), "broke off"),
    "a key twice": (saying('{"policy_decision_point": 1, "policy_decision_point": 2}'), "a key twice"),
}


@pytest.mark.parametrize("name", METADATA)
async def test_metadata_that_lead_elsewhere_or_nowhere_are_not_used(name: str) -> None:
    made, reason = METADATA[name]
    service = Sick(saying(AUTHZEN.yes))

    async def metadata(asked: Asked) -> None:
        if isinstance(made, dict):
            body = json.dumps(metadata_of(service.url, **made)).replace(
                "127.0.0.1/access", f"127.0.0.1:{service.port}/a"
            )
            await asked.answer(body.encode())
        else:
            await made(asked)

    service.metadata = metadata
    with sick_service(service):
        denied(await AUTHZEN.ask(service.url, timeout=SECONDS if name == "silence" else ENOUGH), reason)
        assert [each.target for each in service.asked] == ["/.well-known/authzen-configuration"]


async def test_who_publishes_no_metadata_is_asked_at_the_default_path_one_by_one() -> None:
    with sick_service(Sick(saying(AUTHZEN.yes), metadata=saying("", "404 Not Found"))) as service:
        engine = AUTHZEN.open(f"{service.url}/tenant1")
        assert (await engine.decide(SEVERAL)).allow
        await engine.aclose()
        well_known, *asked = service.asked
        assert well_known.target == "/.well-known/authzen-configuration/tenant1"
        assert [each.target for each in asked] == ["/tenant1/access/v1/evaluation"] * 2
        assert len({each.headers["x-request-id"] for each in asked}) == 2
        assert [json.loads(each.body)["resource"]["id"] for each in asked] == [READ.resource, TOKEN.resource]
        assert json.loads(asked[0].body)["context"]["supported_obligations"] == []


async def test_metadata_are_asked_for_again_when_they_are_old_and_when_an_endpoint_is_gone() -> None:
    now, moved = [0.0], [False]

    async def metadata(asked: Asked) -> None:
        path = "/new" if moved[0] else "/old"
        await asked.answer(json.dumps(metadata_of(service.url, access_evaluation_endpoint=service.url + path)).encode())

    async def behave(asked: Asked) -> None:
        if moved[0] and asked.target == "/old":
            await asked.answer(b"", "404 Not Found")
        else:
            await asked.answer(AUTHZEN.yes)

    service = Sick(behave, metadata=metadata)
    with sick_service(service):
        engine = replace(AUTHZEN.open(service.url), clock=lambda: now[0])  # type: ignore[type-var]
        assert isinstance(engine, AuthzenEngine)

        async def targets() -> list[str]:
            service.asked.clear()
            now[0] += 1
            assert (await engine.decide(QUERY)).allow
            return [each.target for each in service.asked]

        well_known = "/.well-known/authzen-configuration"
        assert await targets() == [well_known, "/old"]
        assert await targets() == ["/old"]
        now[0] += authzen_module.METADATA_SECONDS
        assert await targets() == [well_known, "/old"]
        moved[0] = True
        assert await targets() == ["/old", well_known, "/new"]
        assert await targets() == ["/new"]
        await engine.aclose()


BATCHES = {
    "fewer": ({"evaluations": [{"decision": True}]}, "answered 1 of 2 evaluations"),
    "more": ({"evaluations": [{"decision": True}] * 3}, "answered 3 of 2 evaluations"),
    "none": ({"evaluations": []}, "answered 0 of 2 evaluations"),
    "one for all": ({"decision": True}, "`evaluations`"),
    "a text": ({"evaluations": [{"decision": True}, {"decision": "true"}]}, "`evaluations.1.decision`"),
    "a number": ({"evaluations": [{"decision": True}, {"decision": 1}]}, "`evaluations.1.decision`"),
    "nothing": ({"evaluations": [{"decision": True}, {}]}, "`evaluations.1.decision`"),
    "one denied": (
        {"decision": True, "evaluations": [{"decision": True, "context": {"reasons": ["fine"]}}, {"decision": False}]},
        "the policy does not allow it",
    ),
    "a context that is a text": ({"evaluations": [{"decision": True, "context": "x"}] * 2}, "context"),
    "an obligation of all": (
        {"evaluations": [{"decision": True}] * 2, "context": {"obligations": [{"id": "1", "type": "step-up"}]}},
        "cannot do: step-up",
    ),
}


@pytest.mark.parametrize("name", BATCHES)
async def test_a_batch_is_permitted_only_where_each_of_its_evaluations_is(name: str) -> None:
    body, reason = BATCHES[name]
    with sick_service(Sick(saying(json.dumps(body)))) as service:
        engine = AUTHZEN.open(service.url)
        denied(await engine.decide(SEVERAL), reason)
        await engine.aclose()


async def test_several_grants_are_one_question_with_defaults() -> None:
    with sick_service(
        Sick(saying('{"evaluations": [{"decision": true}, {"decision": true, "context": null}]}'))
    ) as service:
        engine = AUTHZEN.open(service.url)
        assert (await engine.decide(SEVERAL)).allow
        await engine.aclose()
        body = json.loads(service.asked[-1].body)
    assert service.asked[-1].target == "/access/v1/evaluations"
    assert body["subject"] == {"type": "agent", "id": "feedback-assistant"}
    assert body["action"] == {"name": "postgres.query", "properties": {"verbs": ["select"]}}
    assert body["options"] == {"evaluations_semantic": "execute_all"}
    assert [each["resource"]["type"] for each in body["evaluations"]] == ["database", "token"]
    assert [grant["name"] for grant in body["context"]["grants"]] == ["db", "api"]
    assert body["context"]["question"] == "decision"
    assert body["context"]["supported_obligations"] == ["notification", "custom"]


async def test_the_ledger_is_given_what_was_said_whole_unless_that_is_too_long() -> None:
    for length, kept in ((10, True), (MAX_ANSWER_BYTES, False)):
        body = {"decision": True, "context": {"policy": "p" * length}}
        with sick_service(Sick(saying(json.dumps(body)))) as service:
            decision = await AUTHZEN.ask(service.url)
        assert decision.allow
        assert (decision.answer == {"evaluations": [body]}) is kept
        assert len(json.dumps(decision.answer)) <= MAX_ANSWER_BYTES


async def test_an_answer_to_another_request_is_none() -> None:
    with sick_service(Sick(saying(AUTHZEN.yes, x_request_id="another"))) as service:
        denied(await AUTHZEN.ask(service.url), "to another request")
