"""`orchestrator serve --ui` as a process: a run is followed in a browser while it goes on."""

from __future__ import annotations

import time
from collections.abc import Iterator
from functools import partial

import pytest
from bench import Bench
from browser import started, tab
from fork_server import ForkServer
from playwright.sync_api import Browser, Route
from test_serve import Served, served_on
from waiting import wait_for

from orchestrator.ledger.states import RunState


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with started() as browser:
        yield browser


@pytest.fixture
def served(bench: Bench, children: ForkServer) -> Iterator[Served]:
    with served_on(bench, children) as served:
        yield served


def test_a_run_is_followed_while_it_goes_on_and_the_page_stands_still_at_its_end(
    served: Served, browser: Browser
) -> None:
    served.put("slow", "{ every: 1h }", "SELECT pg_sleep(6)")
    served.start("--ui", "--ui-without-login")
    assert served.get("/ui/").status_code == 200
    base = str(served.get("/ui/").url).removesuffix("/ui/")
    trigger(served)
    (run,) = wait_for(lambda: served.runs("slow", RunState.RUNNING), "the run")
    with tab(browser, base) as seen, tab(browser, base) as other:
        other.page.route("**/hx-sse.min.js", after_a_second)
        for each in (seen, other):
            each.go(f"/ui/runs/{run.run_id}")
            assert "running" in each.page.inner_text("#part .facts")
        seen.page.wait_for_selector("#part .state.live >> text=issued", timeout=60_000)
        for each in (seen, other):
            each.page.wait_for_selector("#part .facts .state.ok >> text=succeeded", timeout=60_000)
            assert "lease.revoked" in each.page.inner_text("section[aria-labelledby=history]")
            assert each.page.locator("svg.timeline").count() == 1
        assert served.get("/ui/schedules").text.count("every 1h") == 1
        assert "serve" in served.get("/ui/workers").text
    assert served.stop() == 0


def trigger(served: Served) -> None:
    """The listener is there before the schedules are."""
    command = partial(served.children.command, "schedules", "trigger", "slow", environment=served.environment)
    wait_for(lambda: command().returncode == 0, "the schedule")


def after_a_second(route: Route) -> None:
    """As over a slow line: a script comes well after the one before it."""
    time.sleep(1)
    route.continue_()


def test_a_process_that_ends_lets_go_of_the_browsers_that_follow(served: Served, browser: Browser) -> None:
    served.put("slow", "{ every: 1h }", "SELECT pg_sleep(60)")
    served.start("--ui", "--ui-without-login", "--drain", "0")
    base = str(served.get("/ui/").url).removesuffix("/ui/")
    trigger(served)
    (run,) = wait_for(lambda: served.runs("slow", RunState.RUNNING), "the run")
    context = browser.new_context()
    page = context.new_page()
    page.goto(f"{base}/ui/runs/{run.run_id}")
    assert served.stop() != 0  # the run was cancelled
    context.close()


def test_pages_for_everybody_are_asked_for_in_so_many_words(served: Served) -> None:
    served.log.touch()
    for options, said in (
        (("--ui",), "nobody may log in to the pages"),
        (("--ui-without-login",), "needs --ui"),
        (
            ("--ui", "--ui-without-login", "--listen", "0.0.0.0:0"),
            "without a login the pages are for this machine alone",
        ),
        (("--ui", "--ui-without-login", "--no-listen"), "--no-listen"),
    ):
        answer = served.children.command("serve", str(served.folder), *options, environment=served.environment)
        assert answer.returncode == 2
        assert said in answer.stderr
