"""http.request against real HTTP servers on this machine."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import pytest
from http_service import Service, serving
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from orchestrator.actions.base import StepContext
from orchestrator.actions.http.answer import body_of
from orchestrator.actions.http.auth import Private
from orchestrator.actions.http.request import Request, RequestParams
from orchestrator.actions.http.transfer import Incoming, Outgoing, redirected
from orchestrator.errors import StepFailed
from orchestrator.grants.credential import Credential
from orchestrator.network.charsets import known_character_sets
from orchestrator.runs.outcomes import retry_delay
from orchestrator.secret import Secret
from orchestrator.workflow.models.steps import Retry

TOKEN = "canary-token.7f3a9-xyz"


@pytest.fixture
def service() -> Iterator[Service]:
    with serving() as started:
        yield started


@pytest.fixture
def stranger() -> Iterator[Service]:
    with serving() as started:
        yield started


def context(seconds: float = 30) -> StepContext:
    api = Credential("api", "token", 60, fields={"token": Secret(TOKEN), "other": Secret("two words")})
    return StepContext("r", "w", "s", 1, "a", "k", time.monotonic() + seconds, credentials={"api": api})


async def request(seconds: float = 30, **params: Any) -> dict[str, Any]:
    output = await Request().run(RequestParams.model_validate(params), context(seconds))
    assert isinstance(output, dict)
    return output


async def failure(seconds: float = 30, **params: Any) -> StepFailed:
    with pytest.raises(StepFailed) as caught:
        await request(seconds, **params)
    assert TOKEN not in str(caught.value)
    return caught.value


async def test_json_goes_out_with_the_token_and_json_comes_back(service: Service) -> None:
    service.answers("/v1/translate", body=b'{"a": [1]}', content_type="application/json; charset=utf-8", x_secret="1")
    output = await request(
        method="POST", url=f"{service.url}/v1/translate", query={"q": ["a", "b"], "n": 1}, json={"t": "ü"}, bearer="api"
    )
    assert output == {
        "status": 200,
        "headers": {"content-type": "application/json; charset=utf-8"},
        "body": {"a": [1]},
    }
    (seen,) = service.received
    assert (seen.method, seen.path) == ("POST", "/v1/translate?q=a&q=b&n=1")
    assert seen.headers["authorization"] == f"Bearer {TOKEN}"
    assert seen.headers["content-type"] == "application/json"
    assert json.loads(seen.body) == {"t": "ü"}


async def test_forms_plain_bodies_and_headers(service: Service) -> None:
    service.answers("/")
    await request(method="POST", url=f"{service.url}/", form={"a": "1&2", "b": 3})
    await request(method="PUT", url=f"{service.url}/", body="plain", headers={"Content-Type": "text/csv", "X-A": "1"})
    form, plain = service.received
    assert (form.body, form.headers["content-type"]) == (b"a=1%262&b=3", "application/x-www-form-urlencoded")
    assert (plain.body, plain.headers["content-type"], plain.headers["x-a"]) == (b"plain", "text/csv", "1")
    assert "authorization" not in plain.headers


async def test_text_stays_text_and_empty_json_is_null(service: Service) -> None:
    service.answers("/text", body="größer".encode("latin-1"), content_type="text/plain; charset=latin-1")
    service.answers("/none", status=204, content_type="application/problem+json")
    assert (await request(url=f"{service.url}/text"))["body"] == "größer"
    assert (await request(url=f"{service.url}/none"))["body"] is None


@pytest.mark.parametrize("body", [b"{", b'{"a": NaN}', b"[" * 100_000])
async def test_json_that_is_none_is_refused(service: Service, body: bytes) -> None:
    service.answers("/", body=body, content_type="application/json")
    assert (await failure(url=f"{service.url}/")).kind == "output"


async def test_an_unexpected_status_is_an_error_without_a_page_for_browsers_and_without_the_query(
    service: Service,
) -> None:
    service.answers("/gone", status=410, body=b"<h1>private details</h1>", content_type="text/html")
    error = await failure(url=f"{service.url}/gone?key=private")
    assert (error.kind, error.message) == ("http_status", f"GET {service.url}/gone answered 410")
    assert (await request(url=f"{service.url}/gone", expect=[410]))["status"] == 410
    service.answers("/ok")
    assert (await failure(url=f"{service.url}/ok", expect=[410])).kind == "http_status"


@pytest.mark.parametrize(
    ("media", "body", "said"),
    [
        (
            "application/problem+json",
            b'{"title": "Gone", "detail": "no such order", "x": "y"}',
            "Gone; no such order",
        ),
        ("application/json", b'{"error": {"message": "bad id", "code": 7}}', "bad id"),
        (
            "application/json",
            b'{"error": "invalid_scope", "error_description": "not yours"}',
            "invalid_scope; not yours",
        ),
        ("application/json", b'{"errors": ["one", {"message": "two"}, "three", "four"]}', "one; two; three"),
        ("application/json; charset=utf-8", b'["first", "second"]', "first; second"),
        ("application/json", '{"message": "zwei\\nZeilen \\u001b[31m größer"}'.encode(), "zwei Zeilen [31m größer"),
        ("application/json", b'{"message": "not json', ""),
        ("application/json", b'{"rows": [1, 2]}', ""),
        ("application/json", b"[" * 100_000, ""),
        ("application/json", b'{"error": {"error": {"error": {"error": "deep"}}}}', ""),
        ("text/plain", b"  no such\r\n order \x00\xff ", "no such order \N{REPLACEMENT CHARACTER}"),
        ("text/plain", b"x" * 5000, "x" * 299 + "\N{HORIZONTAL ELLIPSIS}"),
        ("text/html", b"<p>no</p>", ""),
        ("application/octet-stream", b"no", ""),
        ("application/json", json.dumps({"message": f"the token {TOKEN} is wrong"}).encode(), "the token *** is wrong"),
        ("text/plain", f"you sent {TOKEN}".encode(), "you sent ***"),
    ],
)
async def test_what_the_body_says_is_wrong_is_in_the_message(
    service: Service, media: str, body: bytes, said: str
) -> None:
    service.answers("/", status=422, body=body, content_type=media)
    error = await failure(method="POST", url=f"{service.url}/", bearer="api")
    assert error.message == f"POST {service.url}/ answered 422" + (f": {said}" if said else "")


async def test_a_secret_that_the_bound_would_cut_is_taken_out_before(service: Service) -> None:
    for place in range(285, 300):
        service.answers("/", status=400, body=b"y" * place + TOKEN.encode(), content_type="text/plain")
        message = (await failure(url=f"{service.url}/", bearer="api")).message
        assert "canary" not in message
        assert "y" * place + "***"[: max(0, 299 - place)] in message


@pytest.mark.parametrize("status", [502, 503, 504])
async def test_a_service_that_is_not_available_may_be_asked_again(service: Service, status: int) -> None:
    service.answers("/", status=status, body=b"upstream is away", content_type="text/plain")
    error = await failure(url=f"{service.url}/")
    assert (error.kind, error.retry_after) == ("unavailable", None)
    assert error.message.endswith(f"answered {status}: upstream is away")
    service.answers("/later", status=status, retry_after="3")
    later = await failure(url=f"{service.url}/later")
    assert (later.kind, later.retry_after) == ("rate_limited" if status == 503 else "unavailable", 3.0)
    assert retry_delay(Retry(), 1, error, 0.0) == 1.0
    assert retry_delay(Retry(), 1, later, 0.0) == 3.0
    assert retry_delay(Retry(), 1, StepFailed("no", kind="http_status"), 0.0) is None


async def test_a_refused_token_is_told_with_the_services_error_code(service: Service) -> None:
    service.answers("/", status=403, www_authenticate='Bearer realm="x", error="insufficient_scope"')
    error = await failure(url=f"{service.url}/", bearer="api")
    assert error.message == f"GET {service.url}/ answered 403 (insufficient_scope)"


async def test_rate_limits_say_how_long_to_wait_in_seconds_or_as_a_date(service: Service) -> None:
    service.answers("/seconds", status=429, retry_after="7")
    later = format_datetime(datetime.now(UTC) + timedelta(hours=1), usegmt=True)
    service.answers("/date", status=503, retry_after=later)
    service.answers("/silent", status=429)
    service.answers("/broken", status=503)
    seconds, date = await failure(url=f"{service.url}/seconds"), await failure(url=f"{service.url}/date")
    assert (seconds.kind, seconds.retry_after) == ("rate_limited", 7.0)
    assert date.kind == "rate_limited"
    assert date.retry_after is not None
    assert 3000 < date.retry_after <= 3600
    silent, broken = await failure(url=f"{service.url}/silent"), await failure(url=f"{service.url}/broken")
    assert (silent.kind, silent.retry_after, broken.kind) == ("rate_limited", None, "unavailable")


@pytest.mark.parametrize(
    ("value", "least"),
    [
        ("1795000000", 1.7e9),
        ("1795000000000", 1.7e12),
        ("9" * 400, 1e18),
        ("0", 0),
        ("Fri, 31 Dec 9999 23:59:59 GMT", 1e11),
        ("Fri, 31 Dec 9999 23:59:59 -2359", 1e11),
        ("Mon, 01 Jan 0001 00:00:00 +2359", 0),
        ("Mon, 01 Jan 2024 00:00:00 GMT", 0),
    ],
)
async def test_a_wait_of_any_length_is_read(service: Service, value: str, least: float) -> None:
    service.answers("/", status=429, retry_after=value)
    error = await failure(url=f"{service.url}/")
    assert error.kind == "rate_limited"
    assert error.retry_after is not None
    assert error.retry_after >= least


@pytest.mark.parametrize(
    "value",
    [
        "-1",
        "0.5",
        "1e9",
        "soon",
        "\u0662",
        "Mon, 01 Jan 2024 00:00:00 +99999999999",
        "Mon, 99 Foo 99999 99:99:99 GMT",
        ",",
    ],
)
async def test_a_wait_that_cannot_be_read_is_none(service: Service, value: str) -> None:
    service.answers("/", status=429, retry_after=value.encode().decode("latin-1"))
    error = await failure(url=f"{service.url}/")
    assert (error.kind, error.retry_after) == ("rate_limited", None)


@pytest.mark.parametrize(
    "label",
    [
        *("undefined", "idna", "punycode", "unicode_escape", "raw_unicode_escape", "rot13", "hex", "base64", "zlib"),
        *("utf-7", "uu", "quopri", "bz2", "string-escape", "mbcs", "oem", "null", "nonsense", "utf_8_sig_"),
    ],
)
async def test_a_label_that_names_no_character_set_is_utf_8(service: Service, label: str) -> None:
    service.answers("/", body="grün \\u0041 +AGE-".encode(), content_type=f"text/plain; charset={label}")
    assert (await request(method="POST", url=f"{service.url}/"))["body"] == "grün \\u0041 +AGE-"


@pytest.mark.parametrize(
    ("label", "encoded"),
    [
        *[(label, "grün") for label in ("ISO-8859-1", "latin1", "windows-1252", "UTF-16", "utf-8-sig", "cp850")],
        *[("Shift_JIS", "日本"), ("gb18030", "中国"), ("EUC-KR", "한국"), ("koi8-r", "мир"), ("big5", "中")],
    ],
)
async def test_a_text_is_read_in_the_character_set_that_it_names(service: Service, label: str, encoded: str) -> None:
    service.answers("/", body=encoded.encode(label), content_type=f'text/plain; charset="{label}"')
    assert (await request(url=f"{service.url}/"))["body"] == encoded


@given(st.text(max_size=20), st.binary(max_size=60), st.sampled_from(sorted(known_character_sets())))
def test_no_body_and_no_label_makes_reading_a_text_fail(label: str, body: bytes, known: str) -> None:
    for name in (label, known):
        headers: Any = {"content-type": f"text/plain; charset={name}"}
        assert isinstance(body_of(Incoming(200, headers, body, "http://x/")), str)


async def test_an_endless_body_is_cut_off_at_the_limit(service: Service) -> None:
    error = await failure(url=f"{service.url}/endless", max_bytes=100_000)
    assert (error.kind, "more than 100000 bytes" in error.message) == ("output", True)


async def test_a_service_that_does_not_answer_is_a_timeout(service: Service) -> None:
    assert (await failure(url=f"{service.url}/hold", seconds=0.5)).kind == "timeout"


async def test_a_body_that_never_ends_slowly_is_a_timeout_too(service: Service) -> None:
    assert (await failure(url=f"{service.url}/endless", seconds=0.5, max_bytes=10**12)).kind == "timeout"


async def test_a_service_that_is_not_there_is_a_connection_error() -> None:
    with serving() as gone:
        url = gone.url
    assert (await failure(url=url, bearer="api")).kind == "connection"


async def test_redirects_are_not_followed_unless_asked(service: Service) -> None:
    service.answers("/", status=302, location="/next")
    output = await request(url=f"{service.url}/", expect=[302])
    assert output["headers"] == {"location": "/next"}
    assert (await failure(url=f"{service.url}/")).kind == "http_status"


async def test_the_token_follows_to_the_same_origin_and_never_to_another(service: Service, stranger: Service) -> None:
    service.answers("/", status=302, location="/same")
    service.answers("/same", status=302, location=f"{stranger.url}/there")
    stranger.answers("/there", status=302, location=f"{service.url}/back")
    service.answers("/back", body=b"done")
    headers = {"X-Api-Key": "private", "Accept": "text/plain"}
    there = {"follow_redirects": True, "redirect_origins": [stranger.url]}
    output = await request(url=f"{service.url}/", bearer="api", headers=headers, **there)
    assert output["body"] == "done"
    first, same, back = service.received
    assert first.headers["authorization"] == same.headers["authorization"] == f"Bearer {TOKEN}"
    (there,) = stranger.received
    assert TOKEN not in str(there)
    assert "x-api-key" not in there.headers
    assert there.headers["accept"] == "text/plain"
    assert "authorization" not in back.headers, "a stranger cannot make the token come back either"


@pytest.mark.parametrize("path", ["/", "/first"])
@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_a_redirect_to_an_origin_that_policies_were_not_told_of_is_not_followed(
    service: Service, stranger: Service, status: int, path: str
) -> None:
    service.answers("/first", status=302, location="/")
    service.answers("/", status=status, location=f"{stranger.url}/latest/meta-data")
    stranger.answers("/latest/meta-data", body=b"of another origin")
    elsewhere = stranger.url.replace("127.0.0.1", "localhost")
    for origins in ([], [elsewhere], [stranger.url.replace("http:", "https:")]):
        error = await failure(url=f"{service.url}{path}", follow_redirects=True, redirect_origins=origins)
        assert error.kind == "http_status"
        assert stranger.url in error.message
        assert "redirect_origins" in (error.hint or "")
    assert stranger.received == []
    output = await request(url=f"{service.url}{path}", follow_redirects=True, redirect_origins=[f"{stranger.url}/x"])
    assert output["body"] == "of another origin"


def test_policies_see_where_a_request_may_be_redirected_to() -> None:
    params = RequestParams.model_validate(
        {
            "url": "https://a.example/x?q=1",
            "follow_redirects": True,
            "redirect_origins": ["https://B.example:443/", "https://b.example"],
        }
    )
    assert Request().view(params) == {
        "method": "GET",
        "origin": "https://a.example",
        "path": "/x",
        "follow_redirects": True,
        "redirect_origins": ["https://b.example"],
    }
    with pytest.raises(ValidationError, match="follow_redirects"):
        RequestParams.model_validate({"url": "https://a.example", "redirect_origins": ["https://b.example"]})


async def test_cookies_of_one_server_do_not_reach_another(service: Service, stranger: Service) -> None:
    service.answers("/", status=302, location=f"{stranger.url}/there", set_cookie="session=private")
    stranger.answers("/there")
    await request(url=f"{service.url}/", follow_redirects=True, redirect_origins=[stranger.url])
    assert "cookie" not in stranger.received[0].headers


@pytest.mark.parametrize("status", [307, 308])
async def test_a_body_is_not_redirected_to_another_origin(service: Service, stranger: Service, status: int) -> None:
    service.answers("/", status=status, location=f"{stranger.url}/there")
    there = {"follow_redirects": True, "redirect_origins": [stranger.url]}
    error = await failure(method="POST", url=f"{service.url}/", json={}, bearer="api", **there)
    assert "redirects the request with its body" in error.message
    assert stranger.received == []


async def test_a_body_stays_with_307_on_the_same_origin_and_goes_with_303(service: Service) -> None:
    service.answers("/keep", status=307, location="/see")
    service.answers("/see", status=303, location="/final")
    service.answers("/final")
    await request(method="POST", url=f"{service.url}/keep", body="b", follow_redirects=True, bearer="api")
    assert [(seen.method, seen.body) for seen in service.received] == [("POST", b"b"), ("POST", b"b"), ("GET", b"")]


async def test_endless_redirects_stop(service: Service) -> None:
    service.answers("/", status=302, location="/")
    assert "more than 5 redirects" in (await failure(url=f"{service.url}/", follow_redirects=True)).message
    assert len(service.received) == 6


@pytest.mark.parametrize(
    "location", ["https://api.example/x", "http://api.example:8080/x", "http://api.example.evil/x", "//other/x"]
)
def test_another_scheme_port_or_host_is_another_origin(location: str) -> None:
    start = Outgoing(
        "GET",
        "http://api.example/x",
        {"x-key": "1"},
        private=Private({"authorization": Secret(TOKEN)}, known=(Secret(TOKEN),)),
    )
    following = redirected(start, 302, location)
    assert following.private is None
    assert following.headers == {}


@pytest.mark.parametrize("location", ["ftp://x/", "http://user:pw@api.example/", "javascript:x", "http://[::1/"])
def test_a_redirect_to_a_bad_address_is_refused(location: str) -> None:
    with pytest.raises(StepFailed, match="bad address"):
        redirected(Outgoing("GET", "http://api.example/x"), 302, location)


async def test_proxies_and_netrc_of_the_environment_are_ignored(
    service: Service, stranger: Service, monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login u password p\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, stranger.url)
    service.answers("/")
    await request(url=f"{service.url}/")
    assert stranger.received == []
    assert "authorization" not in service.received[0].headers


async def test_nothing_that_is_logged_contains_the_token(service: Service, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    service.answers("/")
    await request(url=f"{service.url}/", bearer="api")
    assert "127.0.0.1" in caplog.text
    assert TOKEN not in caplog.text


async def test_what_cannot_be_a_token_is_not_sent(service: Service) -> None:
    assert "cannot be a bearer token" in (await failure(url=f"{service.url}/", bearer="api.other")).message
    assert service.received == []


@pytest.mark.parametrize(
    ("params", "why"),
    [
        ({"url": "http://api.example/", "bearer": "api"}, "not sent over plain http"),
        ({"url": "http://127.0.0.1.example/", "bearer": "api"}, "not sent over plain http"),
        ({"url": "https://user:pw@api.example/"}, "user or password"),
        ({"url": "ftp://api.example/"}, "neither http nor https"),
        ({"url": "/relative"}, "not absolute"),
        ({"url": "https://good.example\\@evil.example/"}, "backslash"),
        ({"url": "https://bücher.example/"}, "punycode"),
        ({"url": "https://api.example/", "json": 1, "body": "x"}, "at most one"),
        ({"url": "https://api.example/", "headers": {"Authorization": "Bearer x"}}, "comes from `bearer`"),
        ({"url": "https://api.example/", "headers": {"A": "x\r\nB: y"}}, "one line"),
    ],
)
def test_unsafe_parameters_are_refused_before_anything_is_sent(params: dict[str, Any], why: str) -> None:
    with pytest.raises(ValidationError, match=why) as caught:
        RequestParams.model_validate(params)
    assert "pw@" not in str(caught.value)


@pytest.mark.parametrize("url", ["http://localhost:1/", "http://127.8.9.1/", "http://[::1]:1/", "https://api.example/"])
def test_a_token_may_go_over_tls_or_to_this_machine(url: str) -> None:
    assert RequestParams(url=url, bearer="api").bearer == "api"


def test_the_view_has_no_query_and_no_contents() -> None:
    params = RequestParams.model_validate(
        {"method": "POST", "url": "https://API.example:443/v1?key=x", "json": {"a": 1}}
    )
    where = {"method": "POST", "origin": "https://api.example", "path": "/v1"}
    assert Request().view(params) == {**where, "follow_redirects": False, "redirect_origins": []}
