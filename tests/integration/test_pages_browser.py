"""The pages in a real browser, on a ledger of real runs: what they show, and what a browser says of them."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from urllib.parse import quote

import httpx
import pytest
from bench import Bench
from browser import Tab, started, tab
from page_server import pages_on
from playwright.sync_api import Browser
from shown_ledger import HOSTILE, Shown, shown_ledger

from orchestrator.clock import SystemClock
from orchestrator.ledger.lease import OPEN
from orchestrator.ledger.opening import open_ledger
from orchestrator.ledger.types import LeaseFilter


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with started() as browser:
        yield browser


@pytest.fixture(scope="module")
def shown(prepared: Bench, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shown]:
    bench = replace(prepared, directory=tmp_path_factory.mktemp("pages"), events=[])
    vault = bench.vault
    vault.sys.enable_auth_method("userpass")
    try:
        with ThreadPoolExecutor(1) as elsewhere:  # Playwright has a running event loop in this thread
            shown = elsewhere.submit(shown_ledger, bench).result()
        yield shown
    finally:
        vault.sys.disable_auth_method("userpass")
    bench.assert_nothing_left()


@pytest.fixture(scope="module")
def base(shown: Shown) -> Iterator[str]:
    with pages_on(shown.ledger_url) as base:
        yield base


@pytest.fixture
def seen(browser: Browser, base: str) -> Iterator[Tab]:
    with tab(browser, base) as seen:
        yield seen


def every_page(shown: Shown) -> list[str]:
    """One address of each kind, and those that somebody hostile has filled."""
    hostile = quote(HOSTILE, safe="")
    return [
        "/ui/",
        "/ui/runs",
        "/ui/runs?workflow=customer_digest",
        f"/ui/runs/{shown.succeeded}",
        f"/ui/runs/{shown.failed}",
        f"/ui/runs/{shown.refused}",
        f"/ui/runs/{shown.waiting}",
        f"/ui/runs/{shown.hostile}",
        f"/ui/runs/{shown.call}",
        f"/ui/decisions/{shown.succeeded}/read/1",
        f"/ui/decisions/{shown.hostile}/{hostile}/1",
        "/ui/leases",
        f"/ui/leases?agent={hostile}",
        f"/ui/leases/{shown.hostile_lease}",
        "/ui/tasks",
        f"/ui/tasks/{shown.task}",
        f"/ui/tasks/{shown.hostile_task}",
        "/ui/approvals",
        f"/ui/approvals/{shown.hostile_approval}",
        "/ui/exposure",
        "/ui/exposure?by=agent&days=7",
        "/ui/schedules",
        "/ui/workers",
        "/ui/search",
    ]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_no_page_has_a_serious_barrier_for_people_or_breaks_the_policy(
    browser: Browser, base: str, shown: Shown, scheme: str
) -> None:
    with tab(browser, base, color_scheme=scheme) as seen:
        for path in every_page(shown):
            seen.go(path)
            assert seen.inaccessible() == [], path
            seen.check()


def test_no_page_is_wider_than_a_telephone(browser: Browser, base: str, shown: Shown) -> None:
    with tab(browser, base, viewport={"width": 390, "height": 844}) as seen:
        for path in every_page(shown):
            assert seen.go(path).too_wide() == 0, path


def test_what_hostile_people_write_is_text_and_nothing_else(seen: Tab, shown: Shown) -> None:
    asked = []
    seen.page.on("dialog", lambda dialog: (asked.append(dialog.message), dialog.dismiss()))
    for path in every_page(shown):
        seen.go(path)
        assert seen.page.locator("img[src=x], b, main script").count() == 0, path
        assert "49" not in re.findall(r"\{\{.*?\}\}|^49$", seen.text()), path
        seen.check()
    seen.go(f"/ui/runs/{shown.hostile}")
    assert HOSTILE in seen.page.inner_text("main .facts")
    assert HOSTILE in seen.page.inner_text("section[aria-labelledby=history]")
    seen.go(f"/ui/search?q={quote(HOSTILE)}")
    assert asked == []


def test_a_hostile_search_and_filter_come_back_as_text(seen: Tab) -> None:
    text = '"><script>alert(1)</script>'
    seen.go(f"/ui/search?q={quote(text)}", 404)
    assert text in seen.text()
    seen.go(f"/ui/runs?workflow={quote(text)}&since=nonsense", 400)
    assert "is not a time" in seen.text()
    seen.go(f"/ui/leases?agent={quote(text)}")
    assert seen.page.input_value("#f-agent") == text


def test_a_run_shows_its_steps_leases_decisions_and_history(seen: Tab, shown: Shown) -> None:
    seen.go("/ui/")
    seen.page.click(f"text={shown.succeeded}")
    assert seen.page.url.endswith(f"/ui/runs/{shown.succeeded}")
    text = seen.text()
    assert "succeeded" in text
    assert "the weekly digest" in text
    assert "hash chain whole" in text
    drawing = seen.page.locator("svg.timeline")
    assert "3 attempts at steps" in drawing.locator("desc").text_content()
    labels = drawing.locator("text.label").all_text_contents()
    assert [label.split()[0] for label in labels] == ["read", "db", "pause", "db", "count", "db"]
    steps = seen.page.locator("section[aria-labelledby=steps] tbody tr")
    assert steps.count() == 3
    assert re.search(r"\d+%", steps.first.inner_text())
    seen.page.click("section[aria-labelledby=steps] tbody tr:first-child a")
    assert "nothing speaks against it" in seen.text()
    assert '"customer_digest"' in seen.text()
    seen.page.go_back()
    seen.page.click("section[aria-labelledby=leases] tbody a >> nth=0")
    assert "database" in seen.text()
    assert "lease.revoked" in seen.text()
    assert "confirmed by" in seen.text()


def test_a_refused_a_failed_and_a_waiting_run_say_why(seen: Tab, shown: Shown) -> None:
    assert "nobody may run this one" in seen.go(f"/ui/runs/{shown.refused}").text()
    text = seen.go(f"/ui/runs/{shown.failed}").text()
    assert "division by zero" in text
    assert "attempt 2" in text
    seen.go(f"/ui/runs/{shown.waiting}")
    assert "waiting" in seen.page.inner_text("#part .facts")
    seen.page.click("text=approval.requested")
    assert "1 of vault:userpass-alice" in seen.text()
    assert "Nothing yet" in seen.text()


def test_the_overview_says_first_what_is_not_over(seen: Tab, shown: Shown) -> None:
    seen.go("/ui/")
    headings = seen.page.locator("h2").all_text_contents()
    assert headings == ["Cannot be taken back", "Being taken back", "Waiting for approval", "Newest runs"]
    assert shown.hostile_lease in seen.page.inner_text(".alarm")


def test_filters_are_in_the_address_and_outlive_a_reload(seen: Tab, shown: Shown) -> None:
    seen.go("/ui/runs")
    seen.page.fill("#f-workflow", "broken_report")
    seen.page.select_option("#f-state", "failed")
    seen.page.fill("#f-since", "2d")
    seen.page.click("text=Apply")
    assert "workflow=broken_report" in seen.page.url
    for _ in range(2):
        rows = seen.page.locator("tbody tr")
        assert rows.count() == 1
        assert shown.failed in rows.inner_text()
        assert seen.page.input_value("#f-workflow") == "broken_report"
        assert seen.page.input_value("#f-state") == "failed"
        assert seen.page.input_value("#f-since") == "2d"
        seen.page.reload()
    seen.page.click("text=Clear")
    assert seen.page.url.endswith("/ui/runs")


def test_any_id_or_its_beginning_and_the_names_of_a_lease_lead_to_its_page(seen: Tab, shown: Shown) -> None:
    with open_ledger(shown.ledger_url, clock=SystemClock()) as ledger:
        (lease, *_) = [each for each in ledger.leases(LeaseFilter(run=shown.succeeded)) if each.vault_lease_id]
    for text, path in (
        (shown.succeeded, f"/ui/runs/{shown.succeeded}"),
        (shown.task, f"/ui/tasks/{shown.task}"),
        (lease.lease_id, f"/ui/leases/{lease.lease_id}"),
        (lease.lease_id[:14], f"/ui/leases/{lease.lease_id}"),
        (lease.vault_lease_id, f"/ui/leases/{lease.lease_id}"),
        (shown.hostile_approval, f"/ui/approvals/{shown.hostile_approval}"),
    ):
        seen.go("/ui/")
        seen.page.fill("#q", text)
        seen.page.press("#q", "Enter")
        seen.page.wait_for_url(f"**{path}")
    seen.go(f"/ui/search?q={lease.subject}")
    assert lease.lease_id in seen.text()  # beside the token that it hangs from, which has the same step key


def test_what_is_not_there_is_said_with_what_to_do(seen: Tab, shown: Shown) -> None:
    for path in ("/ui/runs/run_0", "/ui/leases/lease_none", "/ui/tasks/none", "/ui/approvals/appr_none", "/ui/nothing"):
        seen.go(path, 404)
        assert "Overview" in seen.text()
    seen.go(f"/ui/decisions/{shown.succeeded}/read/7", 404)
    seen.go("/ui/runs?state=sleeping", 400)
    assert "succeeded" in seen.text()
    seen.go("/ui/exposure?days=0", 400)
    seen.go("/ui/runs?before=run_none", 400)


def test_everything_can_be_reached_and_seen_by_keyboard(seen: Tab) -> None:
    seen.go("/ui/")
    seen.page.keyboard.press("Tab")
    assert seen.page.evaluate("document.activeElement.textContent") == "Skip to content"
    seen.page.keyboard.press("Enter")
    assert seen.page.url.endswith("#main")
    for _ in range(3):
        seen.page.keyboard.press("Tab")
    outline = seen.page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert outline == "solid"


def test_a_download_has_what_the_filters_leave_and_an_end(base: str, shown: Shown) -> None:
    with open_ledger(shown.ledger_url, clock=SystemClock()) as ledger:
        wanted = ledger.leases(LeaseFilter(workflow="customer_digest", limit=1000))
    answer = httpx.get(f"{base}/ui/leases.csv?workflow=customer_digest", trust_env=False)
    rows = list(csv.reader(io.StringIO(answer.text)))
    assert rows[0][0] == "lease"
    assert [row[0] for row in rows[1:-1]] == [lease.lease_id for lease in wanted]
    assert rows[-1][:2] == ["#end", f"leases={len(wanted)}"]
    assert "attachment" in answer.headers["content-disposition"]


def test_no_answer_lacks_the_headers_that_protect_it(base: str, shown: Shown) -> None:
    for path in ("/ui/", "/ui/nothing", "/ui/static/style.css", "/ui/leases.csv", "/ui/runs?state=x", "/ui/search?q=a"):
        headers = httpx.get(base + path, trust_env=False).headers
        policy = headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["referrer-policy"] == "same-origin"
        assert headers["cache-control"] == "no-store"
        assert headers["cross-origin-opener-policy"] == "same-origin"


def test_another_name_of_this_machine_is_not_answered(base: str) -> None:
    port = base.rpartition(":")[2]
    for host, status in (
        ("evil.example", 400),
        (f"evil.example:{port}", 400),
        (f"localhost:{port}", 200),
        ("[::1]", 200),
    ):
        answer = httpx.get(f"{base}/ui/", headers={"Host": host}, trust_env=False)
        assert answer.status_code == status, host
    assert httpx.get(f"{base}/healthz", headers={"Host": "evil.example"}, trust_env=False).status_code == 200


def test_nothing_can_be_changed_through_a_page(base: str, shown: Shown) -> None:
    for method in ("POST", "PUT", "DELETE"):
        answer = httpx.request(method, f"{base}/ui/runs/{shown.succeeded}", trust_env=False)
        assert answer.status_code == 405


def test_exposure_is_what_the_leases_add_up_to(seen: Tab, shown: Shown) -> None:
    with open_ledger(shown.ledger_url, clock=SystemClock()) as ledger:
        leases = [
            lease
            for lease in ledger.leases(LeaseFilter(workflow="customer_digest", limit=1000))
            if lease.grant_kind != "step-token" and lease.issued_at and lease.state not in OPEN
        ]
    held = [(lease.closed_at - lease.issued_at).total_seconds() for lease in leases if lease.closed_at]
    seen.go("/ui/exposure?days=2")
    row = seen.page.locator("tbody tr", has_text="customer_digest").locator("td").all_text_contents()
    assert row[1].strip() == str(len(leases))
    assert float(row[2].strip().removesuffix("s")) == pytest.approx(sum(held), abs=0.06)
    assert float(row[3].strip().removesuffix("s")) == pytest.approx(max(held), abs=0.06)
