"""Credentials of http.request in headers, queries and as name and password, against real HTTP servers."""

from __future__ import annotations

import base64
import logging
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote, urlsplit

import pytest
from authority import authority
from http_service import Service, serving
from pydantic import ValidationError

from orchestrator.actions.base import StepContext
from orchestrator.actions.http.request import Request, RequestParams
from orchestrator.errors import StepFailed
from orchestrator.grants.credential import Credential
from orchestrator.secret import Secret

KEY = "canary/key+7f3a9 &=#?%xyz"
PASSWORD = "canary:päss/wörd"
FIELDS = {
    "token": "canary-token-7f3a9",
    "key": KEY,
    "user": "robot@orders",
    "password": PASSWORD,
    "lines": "canary\r\nX-Evil: 1",
    "colon": "a:b",
    "empty": "",
    "umlaut": "canary-größe",
}
HEADER = {"auth": {"header": "X-Api-Key", "value": "api.key"}}
QUERY = {"auth": {"query": "api_key", "value": "api.key"}}
BASIC = {"auth": {"basic": {"username": "api.user", "password": "api.password"}}}
WAYS = pytest.mark.parametrize("way", [HEADER, QUERY, BASIC], ids=["header", "query", "basic"])


@pytest.fixture
def service() -> Iterator[Service]:
    with serving() as started:
        yield started


@pytest.fixture
def stranger() -> Iterator[Service]:
    with serving() as started:
        yield started


def context() -> StepContext:
    fields = {name: Secret(value) for name, value in FIELDS.items()}
    api = Credential("api", "secret", 60, fields=fields)
    return StepContext("r", "w", "s", 1, "a", "k", time.monotonic() + 30, credentials={"api": api})


async def request(**params: Any) -> dict[str, Any]:
    output = await Request().run(RequestParams.model_validate(params), context())
    assert isinstance(output, dict)
    return output


async def failure(**params: Any) -> StepFailed:
    with pytest.raises(StepFailed) as caught:
        await request(**params)
    assert not told(str(caught.value)), "an error tells the credential"
    return caught.value


def told(text: str) -> list[str]:
    """The forms of the credential that a text holds."""
    forms = []
    for secret in (KEY, PASSWORD):
        encoded = base64.b64encode(secret.encode()).decode()
        forms += [secret, quote(secret, safe=""), quote(secret), encoded]
    forms.append(base64.b64encode(f"robot@orders:{PASSWORD}".encode()).decode())
    return [form for form in forms if form in text]


async def test_a_header_of_any_name_holds_the_value_and_what_stands_before_it(service: Service) -> None:
    service.answers("/")
    await request(url=f"{service.url}/", **HEADER)
    await request(url=f"{service.url}/", auth={"header": "Authorization", "prefix": "Token ", "value": "api"})
    key, token = service.received
    assert key.headers["x-api-key"] == KEY
    assert "authorization" not in key.headers
    assert token.headers["authorization"] == "Token canary-token-7f3a9"


async def test_a_part_of_the_query_holds_the_value_beside_the_others(service: Service) -> None:
    service.answers("/v1")
    await request(url=f"{service.url}/v1?a=1", query={"b": "2"}, **QUERY)
    await request(url=f"{service.url}/v1", **QUERY)
    both, alone = (parse_qs(urlsplit(seen.path).query) for seen in service.received)
    assert both == {"a": ["1"], "b": ["2"], "api_key": [KEY]}
    assert alone == {"api_key": [KEY]}


@pytest.mark.parametrize(
    ("username", "name"),
    [
        ("api.user", "robot@orders"),
        ("robot", "robot"),
        ({"text": "john.doe"}, "john.doe"),
        ("a@b.example", "a@b.example"),
    ],
)
async def test_basic_takes_the_name_from_a_grant_or_from_the_file(service: Service, username: Any, name: str) -> None:
    service.answers("/")
    await request(url=f"{service.url}/", auth={"basic": {"username": username, "password": "api.password"}})
    way, _, encoded = service.received[0].headers["authorization"].partition(" ")
    assert (way, base64.b64decode(encoded).decode()) == ("Basic", f"{name}:{PASSWORD}")


@pytest.mark.parametrize(
    ("auth", "why"),
    [
        ({"header": "X-Key", "value": "api.lines"}, "cannot be the value of a header"),
        ({"header": "X-Key", "value": "api.umlaut"}, "cannot be the value of a header"),
        ({"header": "X-Key", "value": "api.empty"}, "cannot be the value of a header"),
        ({"query": "key", "value": "api.lines"}, "cannot be a part of the query"),
        ({"query": "key", "value": "api.empty"}, "cannot be a part of the query"),
        ({"basic": {"username": "api.colon", "password": "api.password"}}, "cannot be a user name"),
        ({"basic": {"username": "robot", "password": "api.lines"}}, "cannot be a password"),
        ({"header": "X-Key", "value": "api.missing"}, "has no field `missing`"),
    ],
)
async def test_a_value_that_does_not_fit_is_not_sent(service: Service, auth: dict[str, Any], why: str) -> None:
    error = await failure(url=f"{service.url}/", auth=auth)
    assert why in error.message
    assert "canary" not in str(error)
    assert service.received == []


@WAYS
async def test_it_follows_to_the_same_origin_and_never_to_another(
    service: Service, stranger: Service, way: dict[str, Any]
) -> None:
    service.answers("/", status=302, location="/same?x=1")
    service.answers("/same", status=302, location=f"{stranger.url}/there")
    stranger.answers("/there", status=302, location=f"{service.url}/back")
    service.answers("/back", body=b"done")
    there = {"follow_redirects": True, "redirect_origins": [stranger.url]}
    assert (await request(url=f"{service.url}/", **way, **there))["body"] == "done"
    first, same, back = service.received
    assert told(str(first))
    assert told(str(same))
    assert told(str(stranger.received)) == []
    assert told(str(back)) == [], "a stranger cannot make it come back either"


async def test_a_query_that_the_service_repeats_is_sent_once_and_never_to_another_origin(
    service: Service, stranger: Service
) -> None:
    service.answers("/", status=302, location=f"/next?page=2&api_key={quote(KEY, safe='')}")
    service.answers("/next")
    service.answers("/away", status=302, location=f"{stranger.url}/?api_key={quote(KEY, safe='')}")
    service.answers("/other", status=302, location=f"{stranger.url}/?to={quote(quote(KEY, safe=''), safe='')}")
    await request(url=f"{service.url}/", follow_redirects=True, **QUERY)
    assert parse_qs(urlsplit(service.received[1].path).query) == {"page": ["2"], "api_key": [KEY]}
    for path in ("/away", "/other"):
        there = {"follow_redirects": True, "redirect_origins": [stranger.url]}
        error = await failure(url=f"{service.url}{path}", **QUERY, **there)
        assert "holds the credential" in error.message
    assert stranger.received == []


@WAYS
async def test_a_location_that_repeats_it_is_an_output_without_it(service: Service, way: dict[str, Any]) -> None:
    encoded = base64.b64encode(PASSWORD.encode()).decode()
    service.answers("/", status=302, location=f"/next?api_key={quote(KEY, safe='')}&b={quote(KEY)}&c={encoded}&d=1")
    if way is BASIC:
        service.answers("/", status=302, location=f"/next?c={encoded}&d=1")
    output = await request(url=f"{service.url}/", expect=[302], **way)
    location = str(output["headers"]["location"])
    assert [form for form in told(location) if way is BASIC or "key" in form] == []
    if way is QUERY:
        assert location.startswith("/next?api_key=***&b=***")


@WAYS
async def test_no_error_and_no_log_tells_it(
    service: Service, caplog: pytest.LogCaptureFixture, way: dict[str, Any]
) -> None:
    caplog.set_level(logging.DEBUG)
    service.answers("/")
    service.answers("/no", status=403)
    await request(url=f"{service.url}/?a=1", **way)
    assert "403" in (await failure(url=f"{service.url}/no", **way)).message
    with serving() as gone:
        url = gone.url
    assert (await failure(url=url, **way)).kind == "connection"
    assert service.url in caplog.text
    assert told(caplog.text) == []


@pytest.mark.parametrize(
    ("params", "why"),
    [
        ({"url": "http://api.example/", **HEADER}, "not sent over plain http"),
        ({"url": "http://api.example/", **QUERY}, "not sent over plain http"),
        ({"url": "http://api.example/", **BASIC}, "not sent over plain http"),
        ({"bearer": "api", **HEADER}, "shows one credential"),
        ({"auth": {}}, "name one way"),
        ({"auth": {"header": "X-A", "query": "a", "value": "api"}}, "name one way"),
        ({"auth": {"header": "X-A"}}, "have a `value`"),
        ({"auth": {"header": "X A", "value": "api"}}, "not the name of a header"),
        ({"auth": {"header": "Host", "value": "api"}}, "not the name of a header"),
        ({"auth": {"header": "X-A", "value": "api", "prefix": "a\r\nb"}}, "pattern"),
        ({"auth": {"query": "a", "value": "api", "prefix": "b"}}, "belongs to `header`"),
        ({"auth": {"basic": {"username": "a:b", "password": "api.p"}}}, "no colon"),
        ({"auth": {"basic": {"username": "a", "password": "api"}}}, "pattern"),
        ({"headers": {"x-api-key": "1"}, **HEADER}, "set by `auth` and once more"),
        ({"query": {"api_key": "1"}, **QUERY}, "set by `auth` and once more"),
        ({"url": "https://api.example/?api%5Fkey=1", **QUERY}, "set by `auth` and once more"),
        ({"url": "http://127.0.0.1/", "ca": "/x.pem"}, "`ca` belongs to https"),
    ],
)
def test_unsafe_parameters_are_refused_before_anything_is_sent(params: dict[str, Any], why: str) -> None:
    with pytest.raises(ValidationError, match=why):
        RequestParams.model_validate({"url": "https://api.example/", **params})


@pytest.mark.parametrize(
    ("params", "seen"),
    [
        ({"bearer": "api.key"}, {"way": "bearer", "grants": ["api"]}),
        (HEADER, {"way": "header", "name": "x-api-key", "grants": ["api"]}),
        (QUERY, {"way": "query", "name": "api_key", "grants": ["api"]}),
        (BASIC, {"way": "basic", "grants": ["api"]}),
        ({"auth": {"basic": {"username": "robot", "password": "b.password"}}}, {"way": "basic", "grants": ["b"]}),
    ],
)
def test_policies_see_the_way_and_the_grants(params: dict[str, Any], seen: dict[str, Any]) -> None:
    view = Request().view(RequestParams.model_validate({"url": "https://api.example/v1?q=1", **params}))
    assert view["auth"] == seen
    assert "auth" not in Request().view(RequestParams.model_validate({"url": "https://api.example/"}))


async def test_a_private_authority_is_trusted_instead_of_the_systems_and_policies_see_which(tmp_path: Path) -> None:
    ours, other = authority(tmp_path), authority(tmp_path, "other-authority")
    with serving(ours.server()) as service:
        service.answers("/", body=b"here")
        assert (await request(url=f"{service.url}/", ca=str(ours.file), **HEADER))["body"] == "here"
        for changes in ({}, {"ca": str(other.file)}):
            assert (await failure(url=f"{service.url}/", **changes, **HEADER)).kind == "connection"
        assert len(service.received) == 1
    view = Request().view(RequestParams.model_validate({"url": "https://a.example/", "ca": str(ours.file)}))
    assert view["ca"]["file"] == str(ours.file)  # type: ignore[index,call-overload]  # an object
    assert len(view["ca"]["sha256"]) == 64  # type: ignore[index,call-overload,arg-type]  # an object with texts


async def test_the_authorities_that_policies_were_shown_are_those_that_are_trusted(tmp_path: Path) -> None:
    ours, other = authority(tmp_path), authority(tmp_path, "other-authority")
    with serving(ours.server()) as service:
        service.answers("/")
        file = tmp_path / "trusted.pem"
        file.write_bytes(other.file.read_bytes())
        params = RequestParams.model_validate({"url": f"{service.url}/", "ca": str(file)})
        Request().view(params)
        file.write_bytes(ours.file.read_bytes())
        with pytest.raises(StepFailed, match="no answer"):
            await Request().run(params, context())


async def test_another_origin_is_not_trusted_on_the_word_of_a_private_authority(tmp_path: Path) -> None:
    ours = authority(tmp_path)
    with serving(ours.server()) as service, serving(ours.server()) as elsewhere:
        service.answers("/", status=302, location=f"{elsewhere.url}/")
        elsewhere.answers("/")
        there = {"follow_redirects": True, "redirect_origins": [elsewhere.url]}
        error = await failure(url=f"{service.url}/", ca=str(ours.file), **there)
        assert error.kind == "connection"
        assert elsewhere.received == []


@pytest.mark.parametrize("content", [b"", b"nonsense", b"-----BEGIN CERTIFICATE-----\nAA\n-----END CERTIFICATE-----\n"])
def test_a_file_without_authorities_is_refused_before_anything_is_issued(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "ca.pem"
    file.write_bytes(content)
    for path in (file, tmp_path / "missing.pem", tmp_path):
        with pytest.raises(StepFailed, match="`ca`"):
            Request().view(RequestParams.model_validate({"url": "https://a.example/", "ca": str(path)}))
