"""Logging in to the pages by an OpenID provider that is not ours: in a browser, and where something does not fit."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs, parse_qsl, urlencode, urlsplit

import httpx
import pytest
from bench import Bench
from browser import APPEARANCES, Tab, fit, started, tab
from fork_server import ForkServer
from openid_provider import OpenIdProvider
from page_visitors import Site, site_on, waiting_run
from playwright.sync_api import Browser, expect
from waiting import wait_for

from orchestrator.devstack.ports import free_port
from orchestrator.ledger.states import RunState

ACCOUNTS = {
    "alice": {"preferred_username": "Alice Liddell", "groups": ["support", "Support Leads"]},
    "bob": {"preferred_username": "Bob", "groups": ["support"]},
    "mallory": {"preferred_username": "Mallory", "groups": ["visitors"]},
}
SECRET = "canary: 100% of it, +plus/slash & colon; " + "x" * 20
"""Of the confidential client, with all that must be encoded (RFC 6749, 2.3.1)."""

BACK = "/ui/login/openid/back"


@dataclass
class World:
    """Pages at `localhost` and a provider at 127.0.0.1: for a browser two sites, as they are in real life."""

    site: Site
    provider: OpenIdProvider
    port: int = field(default_factory=free_port)
    canaries: set[str] = field(default_factory=set)

    @property
    def base(self) -> str:
        return f"http://localhost:{self.port}"

    @property
    def options(self) -> tuple[str, str]:
        return "--listen", f"127.0.0.1:{self.port}"

    def declare(self, client_id: str) -> None:
        """Let the pages know the provider, as whom this client is, and the provider its clients."""
        secret = self.site.served.bench.directory / "client-secret"
        secret.write_text(SECRET + "\n")
        environment = self.site.served.environment
        environment |= {
            "ORCHESTRATOR_UI_URL": self.base,
            "ORCHESTRATOR_UI_READERS": '["oidc-groups:support"]',
            "ORCHESTRATOR_UI_APPROVERS": '["oidc-groups:Support Leads"]',
            "ORCHESTRATOR_UI_OIDC_ISSUER": self.provider.issuer,
            "ORCHESTRATOR_UI_OIDC_CLIENT_ID": client_id,
            "ORCHESTRATOR_UI_OIDC_SCOPES": '["openid", "profile", "groups"]',
        }
        environment.pop("ORCHESTRATOR_UI_OIDC_CLIENT_SECRET_FILE", None)
        if client_id != "public":
            environment["ORCHESTRATOR_UI_OIDC_CLIENT_SECRET_FILE"] = str(secret)
        common = {"redirect_uris": [self.base + BACK], "grant_types": ["authorization_code"]}
        basic = {"token_endpoint_auth_method": "client_secret_basic", "client_secret": SECRET}
        self.provider.clients = [
            {**common, **basic, "client_id": "confidential"},
            {**common, **basic, "client_id": "elliptic", "id_token_signed_response_alg": "ES256"},
            {**common, "client_id": "public", "token_endpoint_auth_method": "none"},
        ]

    def start(self) -> None:
        self.site.served.start("--ui", *self.options)
        wait_for(lambda: self.site.base, "the listener")

    def browser(self) -> httpx.Client:
        return httpx.Client(base_url=self.base, trust_env=False, timeout=30)

    def begun(self, browser: httpx.Client, then: str = "/ui/") -> str:
        """Where the pages send a browser that wants to log in."""
        answer = browser.get("/ui/login/openid", params={"then": then})
        assert answer.status_code == 303, answer.text
        self.canaries |= set(browser.cookies.values())
        return answer.headers["location"]

    def sent_back(self, location: str, name: str = "alice", answer: str = "yes") -> str:
        """With what the provider sends them back, below the base."""
        url = self.provider.answers(location, name, answer)
        assert url.startswith(self.base + BACK)
        self.canaries |= set(parse_qs(urlsplit(url).query).get("code", []))
        return url.removeprefix(self.base)

    def stays_outside(self, browser: httpx.Client, back: str, said: str = "", status: int = 401) -> str:
        """The page that says why."""
        answer = browser.get(back)
        assert (answer.status_code, "orchestrator" in browser.cookies) == (status, False), answer.text
        assert said in answer.text
        return answer.text


@pytest.fixture
def world(bench: Bench, children: ForkServer) -> Iterator[World]:
    with site_on(bench, children) as site:
        world = World(site, OpenIdProvider(bench.directory, ACCOUNTS))
        world.declare("confidential")
        try:
            yield world
            if world.provider.is_running:
                for answer in world.provider.issued():
                    world.canaries |= {answer["access_token"], answer["id_token"]}
        finally:
            world.provider.stop()
    log = site.served.log.read_text()
    assert [each for each in [*world.canaries, SECRET, SECRET[:20]] if each in log] == []


@pytest.fixture
def ready(world: World) -> World:
    world.provider.start()
    world.start()
    return world


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with started() as browser:
        yield browser


def log_in(seen: Tab, name: str, button: str = "Agree") -> None:
    """From the login page, by way of the provider's."""
    seen.page.get_by_role("link", name="organisation").click()
    seen.page.get_by_label("Name").fill(name)
    seen.page.get_by_role("button", name=button).click()


@pytest.mark.parametrize("client_id", ["confidential", "elliptic", "public"])
def test_people_log_in_with_their_browser_and_are_where_they_wanted_to_be(
    browser: Browser, world: World, client_id: str
) -> None:
    world.declare(client_id)
    world.provider.start()
    world.start()
    with tab(browser, world.base) as seen:
        seen.go("/ui/runs?state=failed")
        log_in(seen, "bob")
        seen.page.wait_for_url(f"{world.base}/ui/runs?state=failed")
        expect(seen.page.get_by_role("banner")).to_contain_text("Bob")
        world.canaries |= {cookie["value"] for cookie in seen.page.context.cookies(world.base)}
        assert {cookie["name"] for cookie in seen.page.context.cookies(world.base)} == {"orchestrator"}


def test_a_group_of_the_id_token_makes_an_approver(browser: Browser, world: World) -> None:
    world.provider.start()
    approval = f"/ui/approvals/{waiting_run(world.site, lambda site: site.served.start('--ui', *world.options))}"
    with tab(browser, world.base) as reader:
        log_in(reader.go(approval), "bob")
        expect(reader.page.get_by_role("banner")).to_contain_text("Bob")
        assert reader.page.locator(".vote").count() == 0
    with tab(browser, world.base) as seen:
        log_in(seen.go(approval), "alice")
        seen.page.get_by_role("button", name="Approve").click()
        expect(seen.page.get_by_role("region", name="Votes")).to_contain_text("oidc:alice")
        wait_for(lambda: world.site.served.runs("asks", RunState.SUCCEEDED), "the run to go on")


def test_who_refuses_at_the_provider_is_told_and_may_try_again(browser: Browser, ready: World) -> None:
    with tab(browser, ready.base) as seen:
        seen.go("/ui/login")
        seen.refused = True
        log_in(seen, "bob", "Refuse")
        expect(seen.page.get_by_role("alert")).to_contain_text("the provider has not let you in")
        log_in(seen, "bob")
        seen.page.wait_for_url(f"{ready.base}/ui/")


def test_the_login_with_a_provider_is_fit_for_everybody_and_every_screen(browser: Browser, ready: World) -> None:
    ready.provider.stop()
    for appearance in APPEARANCES:
        with tab(browser, ready.base, **appearance) as seen:
            fit(seen.go("/ui/login"))
            seen.refused = True
            seen.page.get_by_role("link", name="organisation").click()
            expect(seen.page.get_by_role("alert")).to_contain_text("try again in a moment")
            fit(seen)


def test_who_is_in_no_group_that_counts_stays_outside(browser: Browser, ready: World) -> None:
    with tab(browser, ready.base) as seen:
        seen.go("/ui/login")
        seen.refused = True
        log_in(seen, "mallory")
        expect(seen.page.get_by_role("alert")).to_contain_text("oidc:mallory may not read these pages")


def test_a_provider_that_is_away_is_said_to_be_whenever_it_goes(ready: World) -> None:
    ready.provider.stop()
    with ready.browser() as browser:
        ready.stays_outside(browser, "/ui/login/openid", "a Vault token of your own", 503)
        ready.provider.start()
        back = ready.sent_back(ready.begun(browser))
        ready.provider.stop()
        assert "try again in a moment" in ready.stays_outside(browser, back, "did not answer", 503)


def test_a_login_ends_in_the_browser_that_began_it_and_a_code_counts_once(ready: World) -> None:
    with ready.browser() as browser, ready.browser() as other:
        back = ready.sent_back(ready.begun(browser, "/ui/leases"))
        ready.stays_outside(other, back, "not begun in this browser")
        ready.begun(other)
        ready.stays_outside(other, back, "not begun in this browser")
        answer = browser.get(back)
        assert (answer.status_code, answer.headers.get("location")) == (303, "/ui/leases")
        ready.canaries |= set(browser.cookies.values())
        code = parse_qs(urlsplit(back).query)["code"][0]
        ready.stays_outside(other, changed(ready.sent_back(ready.begun(other)), code=code), "gave nothing for its code")
        ready.stays_outside(other, back, "not begun in this browser")


def test_nobody_pushes_out_the_logins_of_others(ready: World) -> None:
    with ready.browser() as browser, ready.browser() as stranger:
        back = ready.sent_back(ready.begun(browser))
        for _ in range(1001):
            assert stranger.get("/ui/login/openid").status_code == 303
        assert browser.get(back).status_code == 303
        ready.canaries |= set(browser.cookies.values())


def changed(url: str, **parameters: str | None) -> str:
    """The same URL with other parameters; None takes one away."""
    parts = urlsplit(url)
    said: dict[str, str | None] = {**dict(parse_qsl(parts.query)), **parameters}
    return parts._replace(query=urlencode({name: value for name, value in said.items() if value is not None})).geturl()


CHANGED_ANSWERS: list[tuple[dict[str, str | None], str]] = [
    ({"iss": None}, "of another provider"),
    ({"iss": "https://evil.example"}, "of another provider"),
    ({"state": "x"}, "not begun in this browser"),
    ({"state": None}, "not begun in this browser"),
    ({"code": None}, "has not let you in"),
    ({"code": "x"}, "gave nothing for its code"),
]
CHANGED_QUESTIONS = [
    ({"nonce": "another"}, "not of this login"),
    ({"code_challenge": "E9Melhoa2OwvFrEMTJguCHaoeK1t8URWbuGJSstw-cM"}, "gave nothing for its code"),
    ({"client_id": "public"}, "gave nothing for its code"),
]


def test_what_was_changed_on_the_way_lets_nobody_in(ready: World) -> None:
    for answer, said in CHANGED_ANSWERS:
        with ready.browser() as browser:
            ready.stays_outside(browser, changed(ready.sent_back(ready.begun(browser)), **answer), said)
    for question, said in CHANGED_QUESTIONS:
        with ready.browser() as browser:
            ready.stays_outside(browser, ready.sent_back(changed(ready.begun(browser), **question)), said)


LIES: list[dict[str, Any]] = [
    {"nonce": "another"},
    {"aud": "public"},
    {"aud": ["confidential", "public"]},
    {"azp": "public"},
    {"iss": "https://evil.example"},
    {"exp": 1_700_000_000},
    {"iat": 1_700_000_000},
    {"sub": ""},
    {"sub": None},
    {"alg": "HS256"},
]
GROUPS: list[object] = [{"support": True}, 7, None, [["support"]], "support\n", ["support" + "x" * 500]]


def test_an_id_token_that_is_not_of_this_login_lets_nobody_in(ready: World) -> None:
    for lie in LIES:
        ready.provider.lies(**lie)
        with ready.browser() as browser:
            ready.stays_outside(browser, ready.sent_back(ready.begun(browser)), "the ID token is not")


def test_groups_of_another_shape_are_none(ready: World) -> None:
    for groups in GROUPS:
        ready.provider.lies(groups=groups)
        with ready.browser() as browser:
            ready.stays_outside(browser, ready.sent_back(ready.begun(browser)), "may not read these pages")


def test_a_client_that_the_provider_does_not_know_is_said_to_whoever_runs_the_service(ready: World) -> None:
    ready.provider.stop()
    ready.provider.clients[0]["client_secret"] = "another one"
    ready.provider.start()
    with ready.browser() as browser:
        back = ready.sent_back(ready.begun(browser))
        ready.stays_outside(browser, back, "does not know this service", 503)
