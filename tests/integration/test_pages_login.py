"""Who may look at the pages, agree to something there, or cancel a run: proven by Vault, or by an OpenID provider."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest
from bench import Bench
from fork_server import ForkServer
from page_visitors import FORM_TOKEN, PASSWORD, Site, site_on, triggered, waiting_run
from waiting import wait_for

from orchestrator.approvals.people import Unproven
from orchestrator.clock import SystemClock
from orchestrator.ledger.states import RunState
from orchestrator.secret import Secret
from orchestrator.server.pages.login.declared import Provider
from orchestrator.server.pages.login.openid import OpenId


class SteppingClock(SystemClock):
    """Goes on by what it is told, too."""

    at = 0.0

    def monotonic(self) -> float:
        return time.monotonic() + self.at


@pytest.fixture
def site(bench: Bench, children: ForkServer) -> Iterator[Site]:
    with site_on(bench, children) as site:
        yield site


@pytest.fixture
def started(site: Site) -> Site:
    site.served.start("--ui")
    return site


def test_nobody_sees_anything_before_they_have_logged_in(started: Site) -> None:
    with started.browser() as browser:
        for path in ("/ui/", "/ui/runs?state=failed", "/ui/leases.csv", "/ui/approvals/x", "/ui/runs/../runs"):
            answer = browser.get(path)
            assert answer.status_code == 303, path
            assert answer.headers["location"].startswith("/ui/login?then=%2Fui%2F")
            assert answer.text == ""
        assert browser.get("/ui/live/runs/x").status_code == 401
        assert browser.get("/ui/static/style.css").status_code == 200
        page = browser.get("/ui/login")
        assert page.status_code == 200
        assert "form-action 'self'" in page.headers["content-security-policy"]
        for path in ("/ui/approvals/x", "/ui/runs/x/cancel", "/ui/logout"):
            assert started.post(browser, path).status_code in (401, 403), path


def test_a_vault_token_lets_its_owner_in_and_is_not_kept(started: Site) -> None:
    with started.logged_in("bob") as browser:
        (cookie,) = browser.cookies.jar
        assert cookie.has_nonstandard_attr("HttpOnly")
        assert cookie.get_nonstandard_attr("SameSite") == "lax"
        assert started.tokens["bob"] not in str(cookie.value)
        page = browser.get("/ui/")
        assert page.status_code == 200
        assert "userpass-bob" in page.text
        assert started.tokens["bob"] not in page.text
        token = started.form_token(browser)
        assert started.post(browser, "/ui/logout", form_token="x" * 43).status_code == 403
        assert started.post(browser, "/ui/logout", form_token=token).status_code == 303
        browser.cookies.set("orchestrator", str(cookie.value), domain="127.0.0.1")
        assert browser.get("/ui/").status_code == 303, "the cookie of a session that ended is nobody's"


def test_who_is_not_named_or_not_known_stays_outside(started: Site, bench: Bench) -> None:
    root = str(bench.vault.token)
    tries = {started.tokens["mallory"]: "may not read these pages", "s.nonsense": "does not know this token"}
    tries |= {root: "a root token belongs to nobody", "": "no Vault token", "ü": "no Vault token"}
    with started.browser() as browser:
        for token, said in tries.items():
            answer = started.post(browser, "/ui/login", token=token)
            assert answer.status_code == 401
            assert said in answer.text
            assert not token or token == "ü" or token not in answer.text
            assert not browser.cookies
    assert root not in started.served.log.read_text()


def test_a_session_lasts_no_longer_than_the_token_behind_it(started: Site, bench: Bench) -> None:
    vault = bench.vault
    vault.write_data("auth/userpass/users/bob", data={"token_ttl": "5s", "token_max_ttl": "5s"})
    brief = vault.write_data("auth/userpass/login/bob", data={"password": PASSWORD})["auth"]
    with started.browser() as browser:
        answer = started.post(browser, "/ui/login", token=brief["client_token"])
        (lasts,) = re.findall(r"Max-Age=(\d+)", answer.headers["set-cookie"])
        assert 0 < int(lasts) <= 5
        (cookie,) = browser.cookies.jar
        shown = {"Cookie": f"{cookie.name}={cookie.value}"}  # also by a browser that keeps a cookie for longer
        wait_for(lambda: httpx.get(f"{started.base}/ui/", headers=shown, trust_env=False).is_redirect, "the end")


def test_a_session_lasts_a_working_day_at_most(started: Site, bench: Bench) -> None:
    for ttl, lasts in (("32d", 28800), ("1h", 3600)):
        bench.vault.write_data("auth/userpass/users/bob", data={"token_ttl": ttl, "token_max_ttl": ttl})
        made = bench.vault.write_data("auth/userpass/login/bob", data={"password": PASSWORD})["auth"]
        with started.browser() as browser:
            answer = started.post(browser, "/ui/login", token=made["client_token"])
            (said,) = re.findall(r"Max-Age=(\d+)", answer.headers["set-cookie"])
            assert lasts - 60 <= int(said) <= lasts


@pytest.mark.parametrize("origin", [None, "https://evil.example", "null", "http://127.0.0.1:1"])
def test_another_site_cannot_post_in_somebodys_name(started: Site, origin: str | None) -> None:
    with started.logged_in("olga") as browser:
        token = started.form_token(browser)
        for path in ("/ui/logout", "/ui/runs/x/cancel"):
            assert started.post(browser, path, origin, form_token=token).status_code == 403
        assert started.post(browser, "/ui/login", origin, token=started.tokens["bob"]).status_code == 403
        assert browser.get("/ui/").status_code == 200


@pytest.mark.parametrize("host", ["localhost:{port}", "LOCALHOST:{port}", "127.0.0.1:8080", "[::1]:{port}"])
def test_people_of_this_machine_log_in_under_any_of_its_names(started: Site, host: str) -> None:
    named = host.format(port=urlsplit(started.base).port)
    headers = {"Host": named, "Origin": f"http://{named}"}
    with started.browser() as browser:
        form = {"token": started.tokens["bob"]}
        for foreign in ("http://evil.example", "http://localhost.evil.example", f"https://{named}", "http://[::1]x"):
            refused = browser.post("/ui/login", data=form, headers={**headers, "Origin": foreign})
            assert refused.status_code == 403, foreign
        assert browser.post("/ui/login", data=form, headers=headers).status_code == 303


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("http://orchestrator.example", "put TLS before the listener"),
        ("https://orchestrator.example/pages", "the pages are at https://orchestrator.example/ui/"),
        ("https://orchestrator.example:0", "port 0"),
        ("https://m\u00fcller.example", "punycode"),
    ],
)
def test_an_address_that_browsers_cannot_come_by_is_refused_at_the_start(site: Site, url: str, said: str) -> None:
    site.served.environment["ORCHESTRATOR_UI_URL"] = url
    site.served.log.touch()
    answer = site.served.children.command("serve", str(site.served.folder), "--ui", environment=site.served.environment)
    assert answer.returncode == 2
    assert said in answer.stderr


def test_an_address_is_compared_as_browsers_say_it(site: Site) -> None:
    site.served.environment["ORCHESTRATOR_UI_URL"] = "https://Orchestrator.Example:443/"
    site.served.start("--ui")
    headers = {"Host": "orchestrator.example", "Origin": "https://orchestrator.example"}
    with site.browser() as browser:
        assert browser.post("/ui/login", data={"token": site.tokens["bob"]}, headers=headers).status_code == 303


def test_a_form_of_one_session_is_none_of_another(started: Site) -> None:
    with started.logged_in("olga") as browser, started.logged_in("olga") as other:
        token = started.form_token(other)
        assert started.post(browser, "/ui/runs/x/cancel", form_token=token).status_code == 403
        assert started.post(browser, "/ui/runs/x/cancel").status_code == 403


ELSEWHERE = [
    "https://evil.example/ui/",
    "//evil.example/ui/",
    "/ui//evil.example",
    "/\\evil.example",
    "/ui/login",
    "/v1/x",
]


@pytest.mark.parametrize("then", [*ELSEWHERE, "/ui/../v1", "javascript:alert(1)", "/ui/x\r\nSet-Cookie: a=b"])
def test_nobody_is_sent_elsewhere_after_the_login(started: Site, then: str) -> None:
    with started.browser() as browser:
        answer = started.post(browser, "/ui/login", token=started.tokens["bob"], then=then)
        assert (answer.status_code, answer.headers["location"]) == (303, "/ui/")


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", "", "orchestrator.example"])
def test_the_pages_answer_under_no_foreign_name(started: Site, host: str) -> None:
    with started.browser() as browser:
        assert browser.get("/ui/login", headers={"Host": host}).status_code == 400


def test_behind_another_name_cookies_are_for_tls_alone(site: Site) -> None:
    site.served.environment["ORCHESTRATOR_UI_URL"] = "https://orchestrator.example"
    site.served.start("--ui")
    with site.browser() as browser:
        headers = {"Host": "orchestrator.example", "Origin": "https://orchestrator.example"}
        answer = browser.post("/ui/login", data={"token": site.tokens["bob"]}, headers=headers)
        assert answer.status_code == 303
        cookie = answer.headers["set-cookie"]
        assert cookie.startswith("__Host-orchestrator=")
        assert {"Secure", "HttpOnly", "Path=/"} <= {part.strip() for part in cookie.split(";")}
        assert "Domain" not in cookie


def test_an_approver_agrees_and_the_run_goes_on(site: Site) -> None:
    approval = waiting_run(site)
    path = f"/ui/approvals/{approval}"
    with site.logged_in("bob") as reader:
        assert 'value="approve"' not in reader.get(path).text
        refused = site.post(reader, path, form_token=site.form_token(reader), verdict="approve")
        assert refused.status_code == 403
        assert "is no approver here" in refused.text
    with site.logged_in("alice") as browser:
        assert 'value="approve"' in browser.get(path).text
        token = site.form_token(browser)
        assert site.post(browser, path, form_token=token, verdict="perhaps").status_code == 400
        assert site.post(browser, path, form_token=token, verdict="approve", comment="x" * 501).status_code == 400
        assert site.post(browser, path, form_token=token, verdict="approve", comment="seen").status_code == 303
        wait_for(lambda: site.served.runs("asks", RunState.SUCCEEDED), "the run to go on")
        page = browser.get(path).text
        assert "approve by vault:userpass-alice: seen" in page
        assert 'value="approve"' not in page
        assert site.post(browser, path, form_token=token, verdict="deny").status_code == 400
    assert site.served.bench.logins_of_steps() == []


def test_an_approver_of_the_page_who_is_none_of_the_policy_is_refused(site: Site) -> None:
    site.served.environment["ORCHESTRATOR_UI_APPROVERS"] = '["vault-policy:page-approver", "vault-policy:page-reader"]'
    approval = waiting_run(site)
    with site.logged_in("bob") as browser:
        path, token = f"/ui/approvals/{approval}", site.form_token(browser)
        refused = site.post(browser, path, form_token=token, verdict="approve")
        assert refused.status_code == 403
        assert "is not among those who may approve it" in refused.text


def test_an_operator_cancels_a_run_and_its_login_is_gone(started: Site) -> None:
    started.served.put("slow", "{ every: 1h }", "SELECT pg_sleep(60)")
    triggered(started, "slow")
    (run,) = wait_for(lambda: started.served.runs("slow", RunState.RUNNING), "the run")
    wait_for(started.served.bench.logins_of_steps, "its login")
    path = f"/ui/runs/{run.run_id}"
    with started.logged_in("bob") as reader:
        assert "Cancel this run" not in reader.get(path).text
        assert started.post(reader, f"{path}/cancel", form_token=started.form_token(reader)).status_code == 403
    with started.logged_in("olga") as browser:
        assert "Cancel this run" in browser.get(path).text
        token = started.form_token(browser)
        assert started.post(browser, f"{path}/cancel", form_token=token).status_code == 303
        (over,) = wait_for(lambda: started.served.runs("slow", RunState.CANCELLED), "the run to be cancelled")
        assert "cancelled by vault:userpass-olga on the page" in over.reason
        assert started.served.bench.logins_of_steps() == []
        assert started.post(browser, f"{path}/cancel", form_token=token).status_code == 400


def test_whoever_logs_out_follows_no_run_any_more(started: Site) -> None:
    started.served.put("slow", "{ every: 1h }", "SELECT pg_sleep(60)")
    triggered(started, "slow")
    (run,) = wait_for(lambda: started.served.runs("slow", RunState.RUNNING), "the run")
    with started.logged_in("olga") as browser, started.browser() as watching:
        token = started.form_token(browser)
        headers = {"Cookie": f"orchestrator={browser.cookies['orchestrator']}"}
        with watching.stream("GET", f"/ui/live/runs/{run.run_id}", headers=headers) as stream:
            assert stream.status_code == 200
            lines = stream.iter_lines()
            assert next(line for line in lines if "slow" in line or "svg" in line)
            started.post(browser, f"/ui/runs/{run.run_id}/cancel", form_token=token)
            assert started.post(browser, "/ui/logout", form_token=token).status_code == 303
            rest = "\n".join(lines)
        assert "Nobody is logged in here any more" in rest
        assert "event: over" in rest
        assert watching.get(f"/ui/live/runs/{run.run_id}", headers=headers).status_code == 401


def test_without_anybody_named_there_is_no_login(site: Site) -> None:
    for name in ("READERS", "APPROVERS", "OPERATORS"):
        del site.served.environment[f"ORCHESTRATOR_UI_{name}"]
    site.served.log.touch()
    answer = site.served.children.command("serve", str(site.served.folder), "--ui", environment=site.served.environment)
    assert answer.returncode == 2
    assert "nobody may log in to the pages" in answer.stderr


# --- by OpenBao as the OpenID provider


@pytest.fixture
def provider(site: Site) -> Iterator[dict[str, str]]:
    """OpenBao's own, which knows alice by the group of her entity."""
    vault = site.served.bench.vault
    told = vault.write_data("auth/token/lookup", data={"token": site.tokens["alice"]})
    entity = told["data"]["entity_id"]
    vault.write_data(f"identity/entity/id/{entity}", data={"name": "alice"})
    vault.write_data("identity/group/name/Support Leads", data={"member_entity_ids": [entity]})
    template = '{"groups": {{identity.entity.groups.names}}, "preferred_username": {{identity.entity.name}}}'
    vault.write_data("identity/oidc/scope/groups", data={"template": template})
    vault.write_data("identity/oidc/key/pages", data={"allowed_client_ids": ["*"], "algorithm": "ES256"})
    vault.write_data("identity/oidc/assignment/all", data={"entity_ids": [entity]})
    site.served.environment |= {
        "ORCHESTRATOR_UI_READERS": '["oidc-groups:Support Leads"]',
        "ORCHESTRATOR_UI_OIDC_SCOPES": '["openid", "groups"]',
    }
    yield {"entity": entity}
    for path in ("client/pages", "provider/pages", "scope/groups", "assignment/all", "key/pages"):
        vault.delete(f"identity/oidc/{path}")
    vault.delete("identity/group/name/Support Leads")
    vault.delete("identity/entity/name/alice")


def begun_with_openid(site: Site, redirect: str = "") -> None:
    """Make the client, whose redirect URI is known only when it is known where we listen: by a name of our own."""
    vault, info = site.served.bench.vault, site.served.bench.info
    site.served.environment["ORCHESTRATOR_UI_URL"] = "http://localhost:9464"
    client = {
        "key": "pages",
        "redirect_uris": [redirect or "http://localhost:9464/ui/login/openid/back"],
        "assignments": ["all"],
        "client_type": "confidential",
    }
    vault.write_data("identity/oidc/client/pages", data=client)
    made = vault.read("identity/oidc/client/pages")["data"]
    vault.write_data(
        "identity/oidc/provider/pages",
        data={"allowed_client_ids": [made["client_id"]], "scopes_supported": ["groups"], "issuer": info.vault_address},
    )
    secret = site.served.bench.directory / "client-secret"
    secret.write_text(made["client_secret"])
    site.served.environment |= {
        "ORCHESTRATOR_UI_OIDC_ISSUER": f"{info.vault_address}/v1/identity/oidc/provider/pages",
        "ORCHESTRATOR_UI_OIDC_CLIENT_ID": made["client_id"],
        "ORCHESTRATOR_UI_OIDC_CLIENT_SECRET_FILE": str(secret),
    }
    site.served.start("--ui")


def at_the_provider(site: Site, location: str, name: str = "alice") -> str:
    """What the provider sends the browser back with, once somebody has logged in there: OpenBao's own page asks so."""
    parts = urlsplit(location)
    asked = {key: values[0] for key, values in parse_qs(parts.query).items()}
    assert asked["code_challenge_method"] == "S256"
    headers = {"X-Vault-Token": site.tokens[name]}
    url = f"{site.served.bench.info.vault_address}/v1/identity/oidc/provider/pages/authorize"
    said: Mapping[str, Any] = httpx.get(url, params=asked, headers=headers, trust_env=False).json()
    assert "code" in said, said
    return f"/ui/login/openid/back?code={said['code']}&state={said['state']}"


def test_people_log_in_by_an_openid_provider(site: Site, provider: dict[str, str]) -> None:
    begun_with_openid(site)
    host = {"Host": "localhost:9464"}
    with site.browser() as browser:
        assert "your organisation" in browser.get("/ui/login", headers=host).text
        away = browser.get("/ui/login/openid?then=/ui/leases", headers=host)
        assert away.status_code == 303
        back = at_the_provider(site, away.headers["location"])
        with site.browser() as stranger:
            refused = stranger.get(back, headers=host)
            assert refused.status_code == 401, "a login is finished only in the browser that began it"
            assert not stranger.cookies
        again = browser.get("/ui/login/openid?then=/ui/leases", headers=host)
        back = at_the_provider(site, again.headers["location"])
        answer = browser.get(back, headers=host)
        assert (answer.status_code, answer.headers.get("location")) == (303, "/ui/leases"), answer.text
        assert "alice" in browser.get("/ui/", headers=host).text
        replayed = browser.get(back, headers=host)
        assert replayed.status_code == 401
        assert "was not begun in this browser" in replayed.text


def test_whom_an_openid_provider_says_to_be_of_a_group_approves_as_one_of_it(
    site: Site, provider: dict[str, str]
) -> None:
    site.served.environment["ORCHESTRATOR_UI_APPROVERS"] = '["oidc-groups:Support Leads"]'
    path = f"/ui/approvals/{waiting_run(site, begun_with_openid)}"
    host = {"Host": "localhost:9464"}
    with site.browser() as browser:
        away = browser.get("/ui/login/openid", headers=host).headers["location"]
        assert browser.get(at_the_provider(site, away), headers=host).status_code == 303
        found = FORM_TOKEN.search(browser.get(path, headers=host).text)
        assert found is not None
        form = {"form_token": found[1], "verdict": "approve"}
        headers = {**host, "Origin": "http://localhost:9464"}
        assert browser.post(path, data=form, headers=headers).status_code == 303
        wait_for(lambda: site.served.runs("asks", RunState.SUCCEEDED), "the run to go on")
        assert f"approve by oidc:{provider['entity']}" in browser.get(path, headers=host).text


def test_whoever_takes_too_long_at_the_provider_begins_again(site: Site, provider: dict[str, str]) -> None:
    begun_with_openid(site)
    said = (site.served.environment[f"ORCHESTRATOR_UI_OIDC_{name}"] for name in ("ISSUER", "CLIENT_ID"))
    ours = Provider(*said, Secret((site.served.bench.directory / "client-secret").read_text()))
    clock = SteppingClock()

    async def came_back(seconds: float, change: Callable[[str], str] = str) -> str:
        openid = OpenId(ours, "http://localhost:9464/ui/login/openid/back", clock)
        begun = await openid.begin("/ui/runs")
        state = parse_qs(urlsplit(begun.url).query)["state"][0]
        clock.at += seconds
        with pytest.raises(Unproven) as outside:
            await openid.finish(change(begun.cookie), {"state": state, "code": "x"})
        return outside.value.message

    assert "gave nothing for its code" in asyncio.run(came_back(598))
    assert "too long ago" in asyncio.run(came_back(600))
    later = asyncio.run(came_back(600, lambda cookie: re.sub(r"\.\d+\.", ".9999999999.", cookie)))
    assert "not begun in this browser" in later, "what is in the cookie is ours"


def test_a_login_at_a_provider_begins_under_the_name_that_it_sends_back_to(
    site: Site, provider: dict[str, str]
) -> None:
    begun_with_openid(site)
    with site.browser() as browser:
        away = browser.get("/ui/login/openid?then=/ui/runs?state=failed").headers["location"]
        assert away == "http://localhost:9464/ui/login/openid?then=%2Fui%2Fruns%3Fstate%3Dfailed&moved=1"
        assert not browser.cookies
        at_once = browser.get(away.removeprefix("http://localhost:9464")).headers["location"]
        assert "code_challenge=" in at_once, "whatever changes names on the way, nobody is sent round in circles"


def test_an_answer_that_does_not_fit_lets_nobody_in(site: Site, provider: dict[str, str]) -> None:
    begun_with_openid(site)
    host = {"Host": "localhost:9464"}

    def location(browser: httpx.Client) -> str:
        return browser.get("/ui/login/openid", headers=host).headers["location"]

    for change in (
        lambda back: back.replace("code=", "code=x"),
        lambda back: back.replace("state=", "state=x"),
        lambda back: back.replace("code=", "kode="),
        lambda back: back + "&iss=https://evil.example",
        lambda back: "/ui/login/openid/back?error=access_denied&state=" + back.partition("state=")[2],
    ):
        with site.browser() as browser:
            back = at_the_provider(site, location(browser))
            assert browser.get(change(back), headers=host).status_code == 401
            assert "orchestrator" not in browser.cookies
    with site.browser() as mine, site.browser() as other:  # a code of another login of the same browser: PKCE and nonce
        first, second = location(mine), location(mine)
        assert first != second
        back, theirs = at_the_provider(site, first), at_the_provider(site, second)
        code = re.search(r"code=([^&]+)", theirs)
        assert code is not None
        mixed = re.sub(r"code=[^&]+", f"code={code[1]}", back)
        assert mine.get(mixed, headers=host).status_code == 401
        assert other.get(theirs, headers=host).status_code == 401


def test_an_id_token_of_another_login_lets_nobody_in(site: Site, provider: dict[str, str]) -> None:
    """The code, its state and its verifier fit: only the nonce tells."""
    begun_with_openid(site)
    host = {"Host": "localhost:9464"}
    with site.browser() as browser:
        location = browser.get("/ui/login/openid", headers=host).headers["location"]
        changed = re.sub(r"nonce=[^&]+", "nonce=another", location)
        assert changed != location
        answer = browser.get(at_the_provider(site, changed), headers=host)
        assert answer.status_code == 401
        assert "the ID token is not of this login" in answer.text
        assert "orchestrator" not in browser.cookies


def test_who_has_another_group_stays_outside(site: Site, provider: dict[str, str]) -> None:
    site.served.environment["ORCHESTRATOR_UI_READERS"] = '["oidc-groups:others"]'
    begun_with_openid(site)
    host = {"Host": "localhost:9464"}
    with site.browser() as browser:
        away = browser.get("/ui/login/openid", headers=host)
        answer = browser.get(at_the_provider(site, away.headers["location"]), headers=host)
        assert answer.status_code == 401
        assert "may not read these pages" in answer.text
        assert "orchestrator" not in browser.cookies


def test_a_provider_that_is_away_is_said_to_be(site: Site) -> None:
    site.served.environment |= {
        "ORCHESTRATOR_UI_OIDC_ISSUER": "http://127.0.0.1:9",
        "ORCHESTRATOR_UI_OIDC_CLIENT_ID": "x",
    }
    site.served.start("--ui")
    with site.browser() as browser:
        answer = browser.get("/ui/login/openid")
        assert answer.status_code == 503
        assert "the OpenID provider cannot be used" in answer.text
