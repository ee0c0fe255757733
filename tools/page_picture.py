"""The pictures of the page in the README, of a real run of the sample: `python -m tools.page_picture`.

Real servers, a real run, a real browser (Chromium), in light and in dark.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from playwright.sync_api import Browser, sync_playwright

from orchestrator.cli.commands.stack.dev import SAMPLE
from orchestrator.devstack.pages import history_pages
from orchestrator.devstack.session import run_command, runtime_environment, temporary_stack
from orchestrator.samples.place import samples

IMAGES = Path(__file__).parents[1] / "docs" / "images"
WIDTH, MOST_HEIGHT = 1180, 760


def main() -> None:
    """Write `page-light.png` and `page-dark.png`."""
    root = samples()
    with temporary_stack(root, None) as provisioned:
        environment = runtime_environment(provisioned, provisioned.info.directory)
        if run_command(["run", SAMPLE, "--run-id", "feedback-of-march", "--quiet"], environment, folder=root) != 0:
            raise SystemExit("the run of the sample has failed")
        with history_pages(provisioned) as address, sync_playwright() as playwright:
            browser = playwright.chromium.launch(
                executable_path=shutil.which("chromium"), args=["--no-sandbox", "--disable-gpu"]
            )
            for scheme in ("light", "dark"):
                _picture(browser, f"{address}runs/feedback-of-march", scheme)
            browser.close()


def _picture(browser: Browser, address: str, scheme: str) -> None:
    context = browser.new_context(
        viewport={"width": WIDTH, "height": MOST_HEIGHT},
        color_scheme="dark" if scheme == "dark" else "light",
        device_scale_factor=1.5,
    )
    page = context.new_page()
    page.goto(address, wait_until="load")
    page.screenshot(path=IMAGES / f"page-{scheme}.png")
    context.close()


if __name__ == "__main__":
    main()
