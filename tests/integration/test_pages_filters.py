"""Views of the lists, and filters that somebody saves in their browser under names of their own."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from browser import Tab, chromium, started, tab
from page_server import pages_on
from playwright.sync_api import Browser, expect
from shown_ledger import HOSTILE, hostile_rows

from orchestrator.server.pages.views.leases import VIEWS

LISTS = ("/ui/leases", "/ui/runs", "/ui/tasks", "/ui/approvals", "/ui/exposure")
KEY = "orchestrator.filters:/ui/leases"
SAVED = "[data-saved-filters] li"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    url = f"sqlite:///{tmp_path_factory.mktemp('filters') / 'ledger.db'}"
    with ThreadPoolExecutor(1) as elsewhere:  # Playwright has a running event loop in this thread
        elsewhere.submit(lambda: asyncio.run(hostile_rows(url))).result()
    with pages_on(url) as base:
        yield base


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with started() as browser:
        yield browser


@pytest.fixture
def seen(browser: Browser, base: str) -> Iterator[Tab]:
    with tab(browser, base) as seen:
        yield seen


def save(seen: Tab, name: str) -> None:
    seen.page.get_by_label("Save this filter as").fill(name)
    seen.page.get_by_role("button", name="Save", exact=True).click()


def says(seen: Tab, words: str) -> None:
    expect(seen.page.locator("[data-saved-filters] [role=status]")).to_have_text(words)


def names(seen: Tab) -> list[str]:
    return seen.page.locator(f"{SAVED} a").all_inner_texts()


def stored(seen: Tab) -> object:
    return json.loads(seen.page.evaluate("(key) => localStorage.getItem(key)", KEY))


def tamper(seen: Tab, text: str) -> None:
    """Somebody else has written into the browser's storage."""
    seen.page.evaluate("([key, text]) => localStorage.setItem(key, text)", [KEY, text])


def test_a_filter_is_saved_found_again_used_and_removed(seen: Tab) -> None:
    seen.go("/ui/leases?state=open&agent=nobody&before=")
    save(seen, "  Nobody's, open ")
    says(seen, "Nobody's, open is saved in this browser.")
    other = Tab(seen.page.context.new_page(), seen.base)
    for page in (seen.go("/ui/leases"), other.go("/ui/leases")):
        assert names(page) == ["Nobody's, open"]
        assert page.page.locator(f"{SAVED} a[aria-current]").count() == 0
    seen.page.get_by_role("link", name="Nobody's, open").click()
    seen.page.wait_for_url("**/ui/leases?agent=nobody&state=open")
    assert seen.page.input_value("#f-agent") == "nobody"
    assert seen.page.input_value("#f-state") == "open"
    assert seen.page.locator(f"{SAVED} a[aria-current=true]").inner_text() == "Nobody's, open"
    seen.page.get_by_role("button", name="Remove the saved filter Nobody's, open").click()
    says(seen, "Nobody's, open is removed.")
    assert names(seen) == []
    expect(other.page.locator(SAVED)).to_have_count(0)
    assert stored(seen) == []
    other.check()


def test_a_saved_filter_outlives_the_browser(browser: Browser, base: str, tmp_path: Path) -> None:
    for begun in ("first", "again"):
        context = browser.browser_type.launch_persistent_context(
            tmp_path, executable_path=chromium(), args=["--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"]
        )
        try:
            seen = Tab(context.new_page(), base).go("/ui/leases?since=3d")
            if begun == "first":
                save(seen, "three days")
                says(seen, "three days is saved in this browser.")
            assert names(seen) == ["three days"]
            seen.check()
        finally:
            context.close()


def test_what_is_in_the_fields_is_saved_and_the_same_name_is_replaced(seen: Tab) -> None:
    seen.go("/ui/leases")
    seen.page.fill("#f-agent", "a & b = c")
    save(seen, "mine")
    seen.page.fill("#f-agent", "d")
    save(seen, "mine")
    says(seen, "mine is replaced.")
    save(seen, "other")
    assert names(seen) == ["mine", "other"]
    assert stored(seen) == [{"name": "mine", "query": "agent=d"}, {"name": "other", "query": "agent=d"}]


def test_without_a_name_or_a_filter_nothing_is_saved(seen: Tab) -> None:
    seen.go("/ui/leases?agent=x")
    save(seen, "  ")
    says(seen, "Give it a name first.")
    seen.go("/ui/leases")
    save(seen, "everything")
    says(seen, "Nothing is filtered here: fill in a field first.")
    assert names(seen) == []


def test_all_of_it_works_by_keyboard_and_the_focus_is_never_lost(seen: Tab) -> None:
    seen.go("/ui/leases?agent=x")
    keyboard = seen.page.keyboard
    for name in ("one", "two"):
        seen.page.focus("#saved-name")
        keyboard.type(name)
        keyboard.press("Enter")
        says(seen, f"{name} is saved in this browser.")
    seen.page.focus("#saved-name")
    keyboard.press("Shift+Tab")
    focused = "document.activeElement.getAttribute('aria-label') ?? document.activeElement.id"
    for name, then in (("two", "Remove the saved filter one"), ("one", "saved-name")):
        assert seen.page.evaluate(focused) == f"Remove the saved filter {name}"
        keyboard.press("Enter")
        says(seen, f"{name} is removed.")
        assert seen.page.evaluate(focused) == then


def test_each_list_has_filters_of_its_own_and_its_form_works_as_before(seen: Tab) -> None:
    for path in LISTS:
        seen.go(path)
        label = "#f-state" if seen.page.locator("#f-state").count() else "#f-agent"
        if label == "#f-state":
            seen.page.select_option(label, index=1)
        else:
            seen.page.fill(label, "somebody")
        value = seen.page.input_value(label)
        seen.page.get_by_role("button", name="Apply").click()
        seen.page.wait_for_url(f"**{path}?*{value}*")
        assert "saved" not in seen.page.url
        assert seen.page.input_value(label) == value
        save(seen, path)
        assert names(seen) == [path]


def test_a_hostile_name_and_value_are_text(seen: Tab) -> None:
    asked = []
    seen.page.on("dialog", lambda dialog: (asked.append(dialog.message), dialog.dismiss()))
    seen.go("/ui/leases")
    seen.page.fill("#f-agent", HOSTILE)
    save(seen, HOSTILE)
    seen.go("/ui/leases")
    assert names(seen) == [HOSTILE[:60].strip()]
    assert seen.page.locator(f"{SAVED} img, {SAVED} script, {SAVED} b").count() == 0
    seen.page.click(f"{SAVED} a")
    seen.page.wait_for_url("**/ui/leases?agent=*")
    assert seen.page.input_value("#f-agent") == HOSTILE
    assert asked == []


TAMPERED = (
    "",
    "nonsense",
    "null",
    "7",
    '"text"',
    '{"name": "a", "query": "agent=a"}',
    '{"length": 3, "map": 1}',
    json.dumps([None, 7, [], "agent=a", {}, {"name": "a"}, {"query": "agent=a"}, {"name": 7, "query": "agent=a"}]),
    json.dumps([{"name": "a", "query": ["agent=a"]}, {"name": " ", "query": "agent=a"}, {"name": "a", "query": ""}]),
    json.dumps([{"name": "a", "query": query} for query in ("javascript:alert(1)", "//evil.example/", "\\\\evil")]),
    json.dumps([{"name": "a", "query": query} for query in ("then=//evil.example", "form_token=x", "before=x")]),
    json.dumps([{"name": "a", "query": "agent=" + "x" * 501}]),
)


@pytest.mark.parametrize("text", TAMPERED)
def test_what_is_no_filter_of_this_list_is_ignored(seen: Tab, text: str) -> None:
    seen.go("/ui/leases?agent=x")
    tamper(seen, text)
    seen.go("/ui/leases?agent=x")
    assert names(seen) == []
    save(seen, "good")
    assert names(seen) == ["good"]


def test_a_link_is_always_of_this_list(seen: Tab) -> None:
    queries = (
        "agent=javascript:alert(1)",
        "?agent=a#//evil.example",
        "agent=//evil.example&then=//evil.example&agent=second",
        "https://evil.example/?x=1&agent=%22%3E%3Cscript%3E",
        "agent=a&__proto__=b&constructor=c",
    )
    seen.go("/ui/leases")
    tamper(seen, json.dumps([{"name": f"n{n}", "query": query, "href": "//evil"} for n, query in enumerate(queries)]))
    seen.go("/ui/leases")
    links = seen.page.locator(f"{SAVED} a").evaluate_all("(all) => all.map((each) => each.getAttribute('href'))")
    assert links == [
        "/ui/leases?agent=javascript%3Aalert%281%29",
        "/ui/leases?agent=a%23%2F%2Fevil.example",
        "/ui/leases?agent=%2F%2Fevil.example",
        "/ui/leases?agent=%22%3E%3Cscript%3E",
        "/ui/leases?agent=a",
    ]


def test_no_more_are_shown_or_kept_than_can_be_read(seen: Tab) -> None:
    seen.go("/ui/leases?agent=x")
    tamper(seen, json.dumps([{"name": f"n{number}", "query": "agent=a"} for number in range(500)]))
    seen.go("/ui/leases?agent=x")
    assert len(names(seen)) == 50
    save(seen, "one more")
    says(seen, "There are 50 already: remove one first.")


def test_a_browser_that_keeps_nothing_says_so(browser: Browser, base: str) -> None:
    with tab(browser, base) as seen:
        seen.page.add_init_script("Storage.prototype.setItem = () => { throw new DOMException('full') }")
        seen.go("/ui/leases?agent=x")
        save(seen, "mine")
        says(seen, "This browser keeps nothing for this site.")


def test_without_script_there_is_no_part_that_does_nothing(browser: Browser, base: str) -> None:
    with tab(browser, base, java_script_enabled=False) as seen:
        seen.go("/ui/leases?agent=x")
        assert not seen.page.locator("[data-saved-filters]").is_visible()
        assert seen.page.get_by_role("link", name="Not confirmed gone").is_visible()


@pytest.mark.parametrize("name", VIEWS)
def test_a_view_is_a_link_that_says_when_it_is_the_one_that_is_shown(seen: Tab, name: str) -> None:
    seen.go("/ui/leases")
    seen.page.get_by_role("link", name=name).click()
    seen.page.wait_for_url("**/ui/leases?*")
    current = seen.page.locator("nav[aria-label=Views] a[aria-current=true]")
    assert current.all_inner_texts() == [name]
    seen.page.get_by_role("link", name="Clear").click()
    seen.page.wait_for_url("**/ui/leases")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_saved_filters_have_no_serious_barrier_and_fit_a_telephone(browser: Browser, base: str, scheme: str) -> None:
    with tab(browser, base, color_scheme=scheme, viewport={"width": 390, "height": 844}) as seen:
        for path in LISTS:
            seen.go(f"{path}?agent=x&state=")
            for name in ("a name", "w" * 60, "one of several words that is rather long"):
                seen.page.fill("[data-saved-filters] input", name)
                seen.page.press("[data-saved-filters] input", "Enter")
            seen.go(f"{path}?agent=x&state=")
            assert seen.inaccessible() == [], path
            assert seen.too_wide() == 0, path


def test_the_script_is_ours_and_writes_no_html(base: str) -> None:
    answer = httpx.get(f"{base}/ui/static/saved-filters.js", trust_env=False)
    assert answer.headers["content-type"].startswith("text/javascript")
    for word in ("innerHTML", "outerHTML", "insertAdjacent", "document.write", "eval(", "Function("):
        assert word not in answer.text
