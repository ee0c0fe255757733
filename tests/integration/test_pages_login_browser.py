"""Logging in, approving and cancelling in a real browser: what people see and press, by mouse and by keyboard."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from bench import Bench
from browser import APPEARANCES, Tab, fit, started, tab
from fork_server import ForkServer
from page_visitors import Site, site_on, triggered, waiting_run
from playwright.sync_api import Browser, Locator, expect
from shown_ledger import HOSTILE
from waiting import wait_for

from orchestrator.ledger.states import RunState

FAILED = "/ui/runs?state=failed"
VOTE = ".vote button"


@pytest.fixture
def site(bench: Bench, children: ForkServer) -> Iterator[Site]:
    with site_on(bench, children) as site:
        yield site


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with started() as browser:
        yield browser


def press(seen: Tab, name: str) -> None:
    seen.page.get_by_role("button", name=name).click()


def log_in(seen: Tab, site: Site, name: str, path: str = "/ui/") -> None:
    """Ask for a page, type one's Vault token on the one that comes instead, and be at the first."""
    seen.go(path)
    seen.page.fill("#token", site.tokens[name])
    press(seen, "Log in")
    seen.page.wait_for_url(site.base + path)


def vote_in(seen: Tab) -> Locator:
    """The row of the one vote."""
    return seen.page.get_by_role("region", name="Votes").locator("tbody tr")


def endless_run(site: Site) -> str:
    """The page of a run that goes on until somebody cancels it."""
    site.served.put("slow", "{ every: 1h }", "SELECT pg_sleep(100)")
    triggered(site, "slow")
    (run,) = wait_for(lambda: site.served.runs("slow", RunState.RUNNING), "the run")
    wait_for(site.served.bench.logins_of_steps, "its login")
    return f"/ui/runs/{run.run_id}"


def test_who_logs_in_sees_what_they_asked_for_first_until_they_log_out(browser: Browser, site: Site) -> None:
    site.served.start("--ui")
    with tab(browser, site.base) as seen:
        seen.go(FAILED)
        seen.refused = True
        seen.page.fill("#token", "s.nonsense")
        press(seen, "Log in")
        expect(seen.page.get_by_role("alert")).to_contain_text("Vault does not know this token")
        assert seen.page.input_value("#token") == ""
        seen.check()
        seen.page.fill("#token", site.tokens["bob"])
        press(seen, "Log in")
        seen.page.wait_for_url(site.base + FAILED)
        expect(seen.page.get_by_role("banner")).to_contain_text("userpass-bob")
        assert seen.page.evaluate("document.cookie") == "", "no script reads the session"
        press(seen, "Log out")
        seen.page.wait_for_url(f"{site.base}/ui/login")
        seen.go("/ui/runs")
        assert seen.page.url.startswith(f"{site.base}/ui/login?then=")


def test_an_approver_approves_by_pressing_a_button_and_what_they_say_is_text(browser: Browser, site: Site) -> None:
    path = f"/ui/approvals/{waiting_run(site)}"
    with tab(browser, site.base) as reader:
        log_in(reader, site, "bob", path)
        assert reader.page.locator(VOTE).count() == 0
    with tab(browser, site.base) as seen:
        log_in(seen, site, "alice", path)
        seen.page.get_by_label("Comment").fill(HOSTILE)
        press(seen, "Approve")
        expect(vote_in(seen)).to_contain_text(HOSTILE)
        expect(vote_in(seen)).to_contain_text("vault:userpass-alice")
        assert seen.page.locator("main :is(img, b, script)").count() == 0
        assert seen.page.locator(VOTE).count() == 0
        seen.check()
        wait_for(lambda: site.served.runs("asks", RunState.SUCCEEDED), "the run to go on")
        seen.page.get_by_role("link", name="run_").click()
        expect(seen.page.locator("#part")).to_contain_text("succeeded")
        assert seen.page.locator("main :is(img, b, script)").count() == 0


def test_who_denies_says_why_and_the_run_is_refused(browser: Browser, site: Site) -> None:
    path = f"/ui/approvals/{waiting_run(site)}"
    with tab(browser, site.base) as seen:
        log_in(seen, site, "alice", path)
        seen.page.get_by_label("Comment").fill("not on a Sunday")
        press(seen, "Deny")
        expect(vote_in(seen)).to_contain_text("not on a Sunday")
        expect(seen.page.locator(".facts").first).to_contain_text("denied")
        (run,) = wait_for(lambda: site.served.runs("asks", RunState.REFUSED), "the run to be refused")
        seen.go(f"/ui/runs/{run.run_id}")
        assert "not on a Sunday" in seen.text()


def test_an_operator_cancels_a_run_and_sees_it_end(browser: Browser, site: Site) -> None:
    site.served.start("--ui")
    path = endless_run(site)
    with tab(browser, site.base) as reader, tab(browser, site.base) as seen:
        log_in(reader, site, "bob", path)
        assert reader.page.locator("main button").count() == 0
        log_in(seen, site, "olga", path)
        press(seen, "Cancel this run")
        state = seen.page.locator("#part .facts dd").first
        expect(state).to_contain_text("cancelled", timeout=30_000)
        expect(seen.page.locator(".cancel")).to_be_hidden()
        assert "cancelled by vault:userpass-olga on the page" in seen.text()
    assert site.served.bench.logins_of_steps() == []


def test_logging_in_and_approving_need_no_mouse(browser: Browser, site: Site) -> None:
    path = f"/ui/approvals/{waiting_run(site)}"
    with tab(browser, site.base) as seen:
        keyboard = seen.go(path).page.keyboard
        tab_to(seen, "#token")
        keyboard.type(site.tokens["alice"])
        keyboard.press("Enter")
        seen.page.wait_for_url(site.base + path)
        tab_to(seen, "#comment")
        keyboard.type("by keyboard")
        tab_to(seen, "button[value=approve]")
        assert seen.page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
        keyboard.press("Enter")
        expect(vote_in(seen)).to_contain_text("by keyboard")
        tab_to(seen, ".who button")
        keyboard.press("Enter")
        seen.page.wait_for_url(f"{site.base}/ui/login")


def tab_to(seen: Tab, selector: str) -> None:
    """Press Tab until this has the focus; there is no page with so many stops that it would take more."""
    for _ in range(40):
        seen.page.keyboard.press("Tab")
        if seen.page.evaluate("(selector) => document.activeElement.matches(selector)", selector):
            return
    raise AssertionError(f"{selector} is not reached by Tab")


def test_a_form_of_a_session_that_is_over_leads_to_the_login_and_back(browser: Browser, site: Site) -> None:
    path = f"/ui/approvals/{waiting_run(site)}"
    with tab(browser, site.base) as seen:
        log_in(seen, site, "alice", path)
        seen.page.context.clear_cookies()
        seen.refused = True
        press(seen, "Approve")
        expect(seen.page.locator("main")).to_contain_text("Nothing was done")
        assert site.served.runs("asks", RunState.SUCCEEDED) == []
        seen.check()
        seen.page.get_by_role("link", name="Log in").click()
        seen.page.fill("#token", site.tokens["alice"])
        press(seen, "Log in")
        seen.page.wait_for_url(site.base + path)
        press(seen, "Approve")
        wait_for(lambda: site.served.runs("asks", RunState.SUCCEEDED), "the run to go on")


def test_a_form_of_somebody_before_is_refused_to_who_is_here_now(browser: Browser, site: Site) -> None:
    path = f"/ui/approvals/{waiting_run(site)}"
    with tab(browser, site.base) as seen:
        log_in(seen, site, "alice", path)
        other = seen.page.context.new_page()
        other.goto(site.base + path)
        other.get_by_role("button", name="Log out").click()
        other.wait_for_url(f"{site.base}/ui/login")
        other.fill("#token", site.tokens["alice"])
        other.get_by_role("button", name="Log in").click()
        other.wait_for_url(f"{site.base}/ui/")
        seen.refused = True
        press(seen, "Approve")
        expect(seen.page.locator("main")).to_contain_text("load the page anew")
        expect(seen.page.get_by_role("banner")).to_contain_text("userpass-alice")
        assert site.served.runs("asks", RunState.SUCCEEDED) == []


def test_the_login_and_all_forms_are_fit_for_everybody_and_every_screen(browser: Browser, site: Site) -> None:
    approval = f"/ui/approvals/{waiting_run(site, lambda site: site.served.start('--ui', '--drain', '0'))}"
    run = endless_run(site)
    for appearance in APPEARANCES:
        with tab(browser, site.base, **appearance) as seen:
            fit(seen.go("/ui/login"))
            seen.refused = True
            seen.page.fill("#token", "s.nonsense")
            press(seen, "Log in")
            fit(seen)
        for name, path in (("alice", approval), ("olga", run)):
            with tab(browser, site.base, **appearance) as seen:
                log_in(seen, site, name, path)
                fit(seen)
                seen.page.context.clear_cookies()
                seen.refused = True
                seen.page.locator(".vote button, .cancel button").first.click()
                expect(seen.page.locator("main")).to_contain_text("Nothing was done")
                fit(seen)
