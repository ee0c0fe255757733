"""A real browser that looks at pages: Debian's Chromium, driven by Playwright, with ears for what it is not told.

Whatever the browser says is wrong fails the test: errors in its console, exceptions of scripts, and what the content
security policy forbade.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser, ConsoleMessage, Page, sync_playwright

from orchestrator.devstack.authorization.packages import packages

NPM = Path(__file__).with_name("npm")

APPEARANCES: list[dict[str, Any]] = [
    {"color_scheme": "light", "viewport": {"width": 1180, "height": 760}},
    {"color_scheme": "dark", "viewport": {"width": 1180, "height": 760}},
    {"color_scheme": "light", "viewport": {"width": 390, "height": 844}},
]
"""In which pages are looked at: light, dark, and on a telephone."""

_LISTEN = """
window.__violations = [];
document.addEventListener("securitypolicyviolation", (event) => {
  window.__violations.push(`${event.violatedDirective} forbade ${event.blockedURI} (${event.sample})`);
});
"""
_AXE = """async () => {
  const found = await axe.run(document, { resultTypes: ["violations"] });
  return found.violations
    .filter((each) => ["serious", "critical"].includes(each.impact))
    .map((each) => `${each.id}: ${each.help}: ` + each.nodes.slice(0, 3).map((node) => node.html).join(" | "));
}"""
_OVERFLOW = "() => document.documentElement.scrollWidth - document.documentElement.clientWidth"


@cache
def chromium() -> str:
    """The program: `apt-get install chromium` on Debian."""
    found = os.environ.get("ORCHESTRATOR_TEST_CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
    assert found, "these tests need Chromium: `apt-get install chromium`, or ORCHESTRATOR_TEST_CHROMIUM names it"
    return found


@contextmanager
def started() -> Iterator[Browser]:
    """A browser without a window; as root it has no sandbox."""
    options = ["--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium(), args=options)
        try:
            yield browser
        finally:
            browser.close()


@cache
def _axe() -> str:
    return (packages(locked_in=NPM) / "axe-core" / "axe.min.js").read_text()


class Tab:
    """One tab at a service's pages."""

    def __init__(self, page: Page, base: str) -> None:
        self.page = page
        self.base = base
        self.wrong: list[str] = []
        """What the browser has found wrong."""
        self.refused = False
        """Whether an answer that is no success is what was asked for."""
        page.on("console", self._said)
        page.on("pageerror", lambda error: self.wrong.append(str(error)))
        page.add_init_script(_LISTEN)

    def _said(self, message: ConsoleMessage) -> None:
        expected = self.refused and "Failed to load resource" in message.text
        if message.type in ("error", "warning") and not expected:
            self.wrong.append(f"{message.type}: {message.text}")

    def go(self, path: str, status: int = 200) -> Tab:
        """Open a page of the service."""
        self.refused = status >= 400
        answer = self.page.goto(self.base + path, wait_until="load")
        assert answer is not None
        assert answer.status == status, f"{path}: {answer.status}"
        return self

    def text(self) -> str:
        """What there is to read."""
        return self.page.inner_text("main")

    def violations(self) -> list[str]:
        """What the policy forbade on the page that is open."""
        found: list[str] = self.page.evaluate("() => window.__violations")
        return found

    def inaccessible(self) -> list[str]:
        """What axe-core calls serious or critical."""
        self.page.evaluate(_axe())
        found: list[str] = self.page.evaluate(_AXE)
        return found

    def too_wide(self) -> int:
        """Pixels by which the page is wider than the window."""
        return int(self.page.evaluate(_OVERFLOW))

    def check(self) -> None:
        """Nothing was wrong up to now."""
        assert self.wrong == [], self.wrong
        assert self.violations() == []


@contextmanager
def tab(browser: Browser, base: str, **options: Any) -> Iterator[Tab]:
    """A tab of its own; at the end nothing may have been wrong."""
    context = browser.new_context(**options)
    try:
        opened = Tab(context.new_page(), base)
        yield opened
        opened.check()
    finally:
        context.close()


def fit(seen: Tab) -> None:
    """No serious barrier, nothing wider than the window, and nothing that the browser has to say."""
    assert seen.inaccessible() == [], seen.page.url
    assert seen.too_wide() == 0, seen.page.url
    seen.check()
