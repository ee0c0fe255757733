"""Keys and introspection from a real server: how often it is asked, and what is made of odd answers or of none."""

from __future__ import annotations

import asyncio
import base64
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import pytest
from pep_issuer import IssuerServer, Planned, issuer_server, json_of
from pep_tokens import AUDIENCE, NOW, FixedClock, attempt, claims, header, jwk, jwks, sign, signer, wanted

from orchestrator.pep.access import AccessToken
from orchestrator.pep.challenges import AccessRefused
from orchestrator.pep.errors import IssuerUnreachable, Reason, TokenRefused
from orchestrator.pep.introspection import Basic, Bearer, Introspection
from orchestrator.pep.protection import Protection
from orchestrator.pep.sources import GivenKeys, IssuerKeys, Upkeep, jwks_uri, oauth_metadata, oidc_metadata, verify_by
from orchestrator.secret import Secret

JWKS = "/jwks.json"
METADATA = "/.well-known/oauth-authorization-server"


@pytest.fixture(scope="module")
def server() -> Iterator[IssuerServer]:
    with issuer_server() as running:
        yield running


@pytest.fixture
def issuer(server: IssuerServer) -> IssuerServer:
    server.clear()
    server.answers[JWKS] = json_of(jwks(jwk("p256")))
    return server


@pytest.fixture
def clock() -> FixedClock:
    return FixedClock()


@pytest.fixture
def keys(issuer: IssuerServer, clock: FixedClock) -> IssuerKeys:
    return IssuerKeys.at(issuer.url + JWKS, clock=clock)


async def kids(source: IssuerKeys, kid: str | None = "p256") -> set[str | None]:
    return {key.kid for key in (await source.keys_for(kid)).keys}


async def test_keys_are_asked_for_once_and_kept_as_long_as_the_issuer_says(
    issuer: IssuerServer, keys: IssuerKeys, clock: FixedClock
) -> None:
    issuer.answers[JWKS].headers["cache-control"] = "public, max-age=120"
    assert issuer.paths() == []
    for moment, asked in ((0, 1), (119.9, 1), (120, 2), (239.9, 2), (240, 3)):
        clock.seconds = moment
        assert await kids(keys) == {"p256"}
        assert len(issuer.asked) == asked, moment


@pytest.mark.parametrize(
    ("said", "kept"),
    [("max-age=1", 30), ("no-store", 30), ("no-cache", 30), ("max-age=99999999", 3600), ("", 300), ("max-age=-5", 300)],
)
async def test_what_the_issuer_says_of_keeping_is_bounded(
    issuer: IssuerServer, keys: IssuerKeys, clock: FixedClock, said: str, kept: int
) -> None:
    issuer.answers[JWKS].headers["cache-control"] = said
    await kids(keys)
    clock.seconds = kept - 0.1
    await kids(keys)
    assert len(issuer.asked) == 1
    clock.seconds = kept
    await kids(keys)
    assert len(issuer.asked) == 2


async def test_a_rotated_key_is_found_and_a_storm_of_unknown_ones_is_not_passed_on(
    issuer: IssuerServer, keys: IssuerKeys, clock: FixedClock
) -> None:
    await kids(keys)
    issuer.answers[JWKS] = json_of(jwks(jwk("p256"), jwk("p384")))
    clock.seconds = 10
    assert await kids(keys, "p384") == {"p256", "p384"}
    for number in range(300):
        clock.seconds += 0.1
        await keys.keys_for(f"junk-{number}")
    assert len(issuer.asked) == 2 + 3
    assert await kids(keys, "p256") == {"p256", "p384"}


async def test_all_who_need_the_keys_at_one_time_share_one_question(issuer: IssuerServer, keys: IssuerKeys) -> None:
    hold = issuer.answers[JWKS].hold = threading.Event()
    waiting = [asyncio.create_task(kids(keys, f"junk-{number}")) for number in range(50)]
    await asyncio.to_thread(issuer.arrived.wait)
    waiting[0].cancel()
    hold.set()
    answers = await asyncio.gather(*waiting, return_exceptions=True)
    assert isinstance(answers[0], asyncio.CancelledError)
    assert answers[1:] == [{"p256"}] * 49
    assert len(issuer.asked) == 1


async def test_even_without_a_pause_one_question_is_for_all(issuer: IssuerServer, clock: FixedClock) -> None:
    keys = IssuerKeys.at(issuer.url + JWKS, upkeep=Upkeep(again_after=0), clock=clock)
    hold = issuer.answers[JWKS].hold = threading.Event()
    waiting = [asyncio.create_task(kids(keys, "junk")) for _ in range(20)]
    await asyncio.to_thread(issuer.arrived.wait)
    hold.set()
    await asyncio.gather(*waiting)
    assert len(issuer.asked) == 1


async def test_the_last_good_keys_are_used_for_a_while_when_the_issuer_is_away(
    issuer: IssuerServer, keys: IssuerKeys, clock: FixedClock
) -> None:
    await kids(keys)
    issuer.answers[JWKS] = Planned([b"{}"], status=503)
    for clock.seconds in (300.0, 301.0, 309.9, 310.0, 3899.9):
        assert await kids(keys) == {"p256"}
    assert len(issuer.asked) == 4, "at 0, 300, 310 and 3899.9"
    with pytest.raises(IssuerUnreachable):  # nobody can say that there is no such key
        await kids(keys, "p384")
    clock.seconds = 3900
    with pytest.raises(IssuerUnreachable) as away:
        await kids(keys)
    assert away.value.retry_after == 10
    assert "503" in str(away.value.__cause__)
    issuer.answers[JWKS] = json_of(jwks(jwk("p256")))
    clock.seconds = 3909.9
    assert await kids(keys) == {"p256"}


async def test_an_issuer_that_was_never_there_is_not_asked_by_everybody(
    issuer: IssuerServer, keys: IssuerKeys, clock: FixedClock
) -> None:
    del issuer.answers[JWKS]
    for _ in range(20):
        with pytest.raises(IssuerUnreachable):
            await kids(keys)
    assert len(issuer.asked) == 1
    nobody = IssuerKeys.at("http://127.0.0.1:9/jwks.json", clock=clock)
    with pytest.raises(IssuerUnreachable) as refused:
        await kids(nobody)
    assert "did not answer" in str(refused.value.__cause__)


ODD: dict[str, Planned] = {
    "oversized": Planned([b'{"keys":[', b" " * (1 << 18), b"]}"]),
    "no JSON": json_of(b"<html>"),
    "no JWKS": json_of({"jwks": []}),
    "members twice": json_of(b'{"keys":[],"keys":[]}'),
    "a text that never ends": json_of(b'{"keys":"' + b'\\"' * 130_000),
    "deep": json_of(b"[" * 100_000),
    "redirect": Planned([b"{}"], status=302, headers={"location": "/elsewhere"}),
    "created": Planned([b'{"keys":[]}'], status=201),
    "compressed": json_of(b'{"keys":[]}', content_encoding="gzip"),
}


@pytest.mark.parametrize("odd", ODD.values(), ids=ODD)
async def test_an_odd_answer_gives_no_keys(issuer: IssuerServer, keys: IssuerKeys, odd: Planned) -> None:
    issuer.answers[JWKS] = odd
    issuer.answers["/elsewhere"] = json_of(jwks(jwk("p256")))
    with pytest.raises(IssuerUnreachable):
        await kids(keys)
    assert issuer.paths() == [JWKS]


async def test_an_answer_that_comes_drop_by_drop_is_given_up(issuer: IssuerServer, clock: FixedClock) -> None:
    issuer.answers[JWKS] = Planned([b'{"keys":[', *[b" "] * 200, b"]}"], slow=0.02)
    keys = IssuerKeys.at(issuer.url + JWKS, upkeep=Upkeep(time_out=0.2), clock=clock)
    with pytest.raises(IssuerUnreachable):
        await kids(keys)


async def test_metadata_lead_to_the_keys_of_the_issuer_that_they_name(issuer: IssuerServer, clock: FixedClock) -> None:
    for metadata, path in ((oauth_metadata, METADATA), (oidc_metadata, "/.well-known/openid-configuration")):
        issuer.answers[path] = json_of({"issuer": issuer.url, "jwks_uri": issuer.url + JWKS})
        issuer.asked.clear()
        assert await kids(IssuerKeys.discovered(issuer.url, metadata, clock=clock)) == {"p256"}
        assert issuer.paths() == [path, JWKS]


@pytest.mark.parametrize(
    "wrong",
    [
        {"issuer": "{}/"},
        {"issuer": "https://issuer.example"},
        {"issuer": ["{}"]},
        {"issuer": None},
        {"jwks_uri": None},
        {"jwks_uri": "http://issuer.example/jwks.json"},
        {"jwks_uri": "file:///etc/passwd"},
        {"jwks_uri": "/jwks.json"},
        {"jwks_uri": "https://["},
        {"jwks_uri": "https://a.example:0/"},
        {"jwks_uri": "https://a.example:99999/"},
        {"jwks_uri": "https://a.example/" + "x" * 70_000},
        {"jwks_uri": "https://xn--a.b\x7f.example/"},
    ],
    ids=lambda wrong: str(wrong)[:60],
)
async def test_metadata_of_another_issuer_or_to_an_unsafe_place_lead_nowhere(
    issuer: IssuerServer, clock: FixedClock, wrong: dict[str, Any]
) -> None:
    named = {name: value.format(issuer.url) if isinstance(value, str) else value for name, value in wrong.items()}
    issuer.answers[METADATA] = json_of({"issuer": issuer.url, "jwks_uri": issuer.url + JWKS, **named})
    with pytest.raises(IssuerUnreachable):
        await kids(IssuerKeys.discovered(issuer.url, clock=clock))
    assert issuer.paths() == [METADATA]


def test_metadata_from_another_machine_do_not_lead_to_this_one() -> None:
    metadata = {"issuer": "https://issuer.example", "jwks_uri": "http://127.0.0.1/jwks.json"}
    with pytest.raises(IssuerUnreachable):
        jwks_uri(metadata, "https://issuer.example")
    elsewhere = {**metadata, "jwks_uri": "https://keys.example/jwks.json"}
    assert jwks_uri(elsewhere, "https://issuer.example") == "https://keys.example/jwks.json"


def test_where_metadata_are_follows_from_the_issuer() -> None:
    assert oauth_metadata("https://a.example/x/") == "https://a.example/.well-known/oauth-authorization-server/x"
    assert oidc_metadata("https://a.example/x") == "https://a.example/x/.well-known/openid-configuration"


@pytest.mark.parametrize("url", ["http://issuer.example/jwks.json", "ftp://127.0.0.1/x", "https://a:b@c.example/", "x"])
def test_an_address_over_which_others_could_change_the_keys_is_not_asked(url: str) -> None:
    IssuerKeys.at("https://issuer.example/jwks.json")
    for make in (IssuerKeys.at, IssuerKeys.discovered, lambda url: Introspection(url, Bearer(lambda: "x"))):
        with pytest.raises(ValueError):
            make(url)


async def test_keys_of_a_file_need_no_issuer(tmp_path: Path) -> None:
    import json

    (tmp_path / "jwks.json").write_text(json.dumps(jwks(jwk("p256"))))
    given = GivenKeys.from_file(tmp_path / "jwks.json")
    text = sign(header(), claims(), signer("p256"), "ES256")
    assert (await verify_by(text, given, wanted(), FixedClock())).token_id == "lease-1"


# Introspection

INTROSPECT = "/introspect"
TOKEN = sign(header(), claims(), signer("p256"), "ES256")
DETAILS = [{"type": "a", "actions": ["x"]}, {"type": "b", "actions": ["y"]}]
ACCESS = AccessToken.of(attempt(body=claims(authorization_details=DETAILS)))


@pytest.fixture
def introspection(issuer: IssuerServer, clock: FixedClock) -> Introspection:
    issuer.answers[INTROSPECT] = json_of({"active": True})
    return Introspection(issuer.url + INTROSPECT, Bearer(lambda: "own"), clock=clock)


async def test_the_issuer_is_asked_each_time_with_the_credentials_of_the_service(
    issuer: IssuerServer, introspection: Introspection
) -> None:
    same = {"active": True, "iss": ACCESS.issuer, "sub": ACCESS.subject, "client_id": ACCESS.client_id}
    issuer.answers[INTROSPECT] = json_of({**same, "jti": "lease-1", "exp": NOW + 60, "scope": "crm:read crm:write"})
    for _ in range(2):
        assert await introspection.confirm(TOKEN, ACCESS) == ACCESS
    await introspection.aclose()
    assert len(issuer.asked) == 2
    _, sent, body = issuer.asked[0]
    assert sent["authorization"] == "Bearer own"
    assert parse_qs(body.decode()) == {"token": [TOKEN], "token_type_hint": ["access_token"]}


def test_a_client_id_and_its_secret_are_encoded_before_they_are_joined() -> None:
    basic = Basic("a:b", Secret("c d"))
    assert base64.b64decode(basic.authorization().removeprefix("Basic ")) == b"a%3Ab:c+d"
    assert "c d" not in repr(basic)


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        ({"active": False}, Reason.REVOKED),
        ({"active": True, "jti": "lease-2"}, Reason.INTROSPECTION),
        ({"active": True, "client_id": "other"}, Reason.INTROSPECTION),
        ({"active": True, "sub": None}, Reason.INTROSPECTION),
        ({"active": True, "iss": "https://other.example"}, Reason.INTROSPECTION),
        ({"active": True, "exp": NOW + 61}, Reason.INTROSPECTION),
        ({"active": True, "exp": str(NOW + 60)}, Reason.INTROSPECTION),
        ({"active": True, "authorization_details": "all"}, Reason.CLAIM_TYPE),
    ],
    ids=str,
)
async def test_a_token_that_is_not_active_or_another_one_is_refused(
    issuer: IssuerServer, introspection: Introspection, said: dict[str, Any], reason: Reason
) -> None:
    issuer.answers[INTROSPECT] = json_of(said)
    with pytest.raises(TokenRefused) as refused:
        await introspection.confirm(TOKEN, ACCESS)
    await introspection.aclose()
    assert refused.value.reason is reason


UNCLEAR: dict[str, Planned] = {
    "a text": json_of({"active": "true"}),
    "one": json_of({"active": 1}),
    "null": json_of({"active": None}),
    "nothing": json_of({}),
    "a list": json_of([True]),
    "said twice": json_of(b'{"active":false,"active":true}'),
    "status": Planned([b'{"active":true}'], status=401),
    "redirect": Planned([b'{"active":true}'], status=307, headers={"location": INTROSPECT}),
    "long": Planned([b'{"active":true}', b" " * (1 << 16)]),
}


@pytest.mark.parametrize("unclear", UNCLEAR.values(), ids=UNCLEAR)
async def test_an_unclear_answer_is_no_answer(
    issuer: IssuerServer, introspection: Introspection, unclear: Planned
) -> None:
    issuer.answers[INTROSPECT] = unclear
    with pytest.raises(IssuerUnreachable):
        await introspection.confirm(TOKEN, ACCESS)
    await introspection.aclose()


async def test_the_issuer_can_only_take_away(issuer: IssuerServer, introspection: Introspection) -> None:
    more = [{"type": "c", "actions": ["z"]}]
    said = {"active": True, "scope": "crm:read crm:admin", "authorization_details": [DETAILS[1], *more]}
    issuer.answers[INTROSPECT] = json_of(said)
    left = await introspection.confirm(TOKEN, ACCESS)
    assert left.scope == {"crm:read"}
    assert left.details == (DETAILS[1],)
    issuer.answers[INTROSPECT] = json_of({"active": True, "authorization_details": more})
    assert (await introspection.confirm(TOKEN, replace(ACCESS, details=None))).details is None
    await introspection.aclose()


async def test_a_positive_answer_is_kept_for_so_long_and_no_other(
    issuer: IssuerServer, introspection: Introspection, clock: FixedClock
) -> None:
    introspection.keep = 5
    issuer.answers[INTROSPECT] = json_of({"active": True, "scope": "crm:read"})
    for clock.seconds in (0, 4.9):
        assert (await introspection.confirm(TOKEN, ACCESS)).scope == {"crm:read"}
    await introspection.confirm(TOKEN + "x", ACCESS)
    assert len(issuer.asked) == 2
    issuer.answers[INTROSPECT] = json_of({"active": False})
    clock.seconds = 5
    for _ in range(2):
        with pytest.raises(TokenRefused):
            await introspection.confirm(TOKEN, ACCESS)
    await introspection.aclose()
    assert len(issuer.asked) == 4


async def test_a_service_with_both_asks_for_the_keys_once_and_about_each_token(
    issuer: IssuerServer, keys: IssuerKeys, introspection: Introspection, clock: FixedClock
) -> None:
    protection = Protection(wanted(), keys, "crm", introspection, clock)
    assert (await protection.authenticate([f"Bearer {TOKEN}"])).audience == (AUDIENCE,)
    forged = sign(header(), claims(), signer("p256-other"), "ES256")
    statuses: list[int] = []
    for text in (forged, TOKEN, TOKEN):
        issuer.answers[INTROSPECT] = json_of({"active": False}) if len(statuses) < 2 else json_of(b"")
        with pytest.raises(AccessRefused) as refused:
            await protection.authenticate([f"Bearer {text}"])
        statuses.append(refused.value.status)
    await protection.aclose()
    assert statuses == [401, 401, 503]
    assert issuer.paths() == [JWKS, *[INTROSPECT] * 3], "nobody is asked about a forged one"
