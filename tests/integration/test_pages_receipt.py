"""The receipt of a lease for people: a document of its own, and a page, in a real browser."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from html import unescape
from pathlib import Path
from typing import Any

import httpx
import pytest
from bench import Bench
from browser import Tab, started, tab
from escaped import escaped_secrets
from fork_server import ForkServer
from page_server import pages_on
from playwright.sync_api import Browser
from shown_ledger import HOSTILE, hostile_rows
from signed_ledger import STEP, public_keys

from orchestrator.clock import SystemClock
from orchestrator.errors import ExitCode
from orchestrator.evidence.receipts import verified_receipt
from orchestrator.ledger.opening import open_ledger
from orchestrator.ledger.types import LeaseRecord
from orchestrator.policy.engines.rego.engine import PolicySource, RegoEngine

POLICY = """
package orchestrator
import rego.v1
default decision := {"allow": true, "reasons": ["it reads one table"]}
"""


@dataclass(frozen=True)
class Made:
    """Leases of a real run and of somebody hostile, whose ends are signed, and the receipts of both as files."""

    bench: Bench
    folder: Path
    lease: LeaseRecord
    hostile: dict[str, Any]

    def __post_init__(self) -> None:
        for name, lease in (("one", self.lease.lease_id), ("hostile", self.hostile["hostile_over"])):
            answer = self.written(lease, "--html", str(self.folder / f"{name}.html"))
            assert answer.returncode == ExitCode.DONE, answer.stderr
            assert f"the page is in {self.folder / name}.html" in answer.stderr
            assert answer.stdout == ""

    def written(self, *arguments: str) -> Any:
        children = ForkServer.of_session
        assert children is not None
        return children.command("leases", "receipt", *arguments, environment=self.bench.environment())

    def public(self) -> Any:
        with open_ledger(self.bench.config().ledger_url, clock=SystemClock()) as ledger:
            return public_keys(self.bench, ledger.log.origin())

    def files(self) -> list[str]:
        return [f"file://{self.folder / name}.html" for name in ("one", "hostile")]

    def paths(self) -> list[str]:
        return [f"/ui/leases/{each}/receipt" for each in (self.lease.lease_id, self.hostile["hostile_over"])]


def _made(bench: Bench) -> Made:
    """The hostile rows come first, so that the run that is carried out after them has them signed, too."""
    hostile = asyncio.run(hostile_rows(bench.config().ledger_url))
    policy = RegoEngine.from_sources([PolicySource("test.rego", POLICY)])
    run = bench.run(STEP, policy=policy, reason="the weekly digest").run_id
    (lease,) = [each for each in bench.history(run) if each.grant == "db"]
    folder = bench.directory / "receipts"
    folder.mkdir()
    return Made(bench, folder, lease, hostile)


@pytest.fixture(scope="module")
def made(prepared: Bench, children: ForkServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Made]:
    bench = replace(prepared, directory=tmp_path_factory.mktemp("receipt"), events=[])
    with ThreadPoolExecutor(1) as elsewhere:  # Playwright has a running event loop in this thread
        yield elsewhere.submit(_made, bench).result()
    bench.assert_nothing_left()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with started() as browser:
        yield browser


@pytest.fixture(scope="module")
def base(made: Made) -> Iterator[str]:
    with pages_on(made.bench.config().ledger_url) as base:
        yield base


def opened(seen: Tab, base: str, address: str) -> Tab:
    """A file, or a page of the service."""
    if address.startswith("file:"):
        seen.page.goto(address, wait_until="load")
        return seen
    return seen.go(address)


def everywhere(made: Made) -> list[str]:
    return [*made.files(), *made.paths()]


def test_the_page_tells_in_two_sentences_who_got_what_and_who_says_that_it_is_over(
    browser: Browser, base: str, made: Made
) -> None:
    with tab(browser, base) as seen:
        for address in (made.files()[0], made.paths()[0]):
            opened(seen, base, address)
            told = seen.page.inner_text(".lead")
            assert re.fullmatch(
                r"tester was given database support as feedback-read, \w+ for the step one of the run "
                rf"{made.lease.run_id} of one_step; the policy \(rego\) allowed it\. "
                r"It was held for [\d.]+s, from \S+ \S+ UTC to \S+ \S+ UTC; Vault and its database confirmed that it "
                r"is gone, and its own password was refused when it was tried\.",
                told,
            ), told
            rows = seen.page.locator("section[aria-labelledby=happened] tbody tr").all_inner_texts()
            kinds = [row.split("\t")[2].split(":")[0].strip() for row in rows]
            assert kinds == ["decision", "requested", "issued", "revoking", "vault revoked", "login tried", "revoked"]
            decision = seen.page.inner_text("section[aria-labelledby=decision]")
            document = json.loads((made.folder / "one.receipt.json").read_text())
            assert document["decision"]["revision"] in decision
            (asked,) = [each["data"] for each in document["chain"] if each["kind"] == "decision"]
            assert f"{asked['kept']['input']}, over a salt that is kept with the question" in decision
            assert "it reads one table" in decision
            witnesses = seen.page.inner_text("section[aria-labelledby=witnesses]")
            assert re.search(
                r"its database\s+role absent, 0 sessions\s+support at \S+ \(system \d+\)\s+.*UTC, by its own clock\s+"
                r"orc_sweep-",
                witnesses,
            )
            assert re.search(r"its own password\s+dead: refused \(28P01\)", witnesses)


def test_the_command_on_the_page_verifies_the_document_beside_it(made: Made, children: ForkServer) -> None:
    text = unescape((made.folder / "one.html").read_text())
    found = re.search(r"<pre>orchestrator (history verify --key history\.vkey one\.receipt\.json)</pre>", text)
    assert found
    (made.folder / "history.vkey").write_text("".join(f"{each}\n" for each in made.public()))
    environment = {**made.bench.environment(), "ORCHESTRATOR_LEDGER_URL": f"sqlite:///{made.folder / 'none.db'}"}
    words = [str(made.folder / each) if "." in each else each for each in found[1].split()]
    answer = children.command(*words, environment=environment)
    assert answer.returncode == ExitCode.DONE, answer.stderr
    proven = verified_receipt((made.folder / "one.receipt.json").read_text(), made.public())
    assert proven.checkpoint.origin in text
    assert f"<dt>index</dt><dd>entry {json_index(made)}, counted from 0</dd>" in text


def json_index(made: Made) -> str:
    proof = json.loads((made.folder / "one.receipt.json").read_text())["proof"]
    found = re.search(r"^index (\d+)$", proof, re.MULTILINE)
    assert found
    return found[1]


def test_the_document_has_no_script_and_nothing_from_elsewhere(made: Made) -> None:
    text = (made.folder / "one.html").read_text()
    assert "default-src 'none'; style-src 'sha256-" in text
    assert not re.search(r"<(script|link|img|iframe)|\ssrc=|\son\w+=|\sstyle=|@import|url\(", text)
    assert set(re.findall(r'href="([^"]*)"', text)) == {"#proof", "./one.receipt.json"}
    assert (made.folder / "one.html").stat().st_mode == (made.folder / "one.receipt.json").stat().st_mode


def test_no_secret_is_on_it(made: Made) -> None:
    assert escaped_secrets([made.folder]) == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_has_no_serious_barrier_and_breaks_no_policy(browser: Browser, base: str, made: Made, scheme: str) -> None:
    with tab(browser, base, color_scheme=scheme) as seen:
        for address in everywhere(made):
            opened(seen, base, address)
            assert seen.inaccessible() == [], address
            seen.check()


def test_it_fits_a_telephone(browser: Browser, base: str, made: Made) -> None:
    with tab(browser, base, viewport={"width": 390, "height": 844}) as seen:
        for address in everywhere(made):
            assert opened(seen, base, address).too_wide() == 0, address


def test_what_hostile_people_wrote_is_text_and_nothing_else(browser: Browser, base: str, made: Made) -> None:
    with tab(browser, base) as seen:
        asked = []
        seen.page.on("dialog", lambda dialog: (asked.append(dialog.message), dialog.dismiss()))
        for address in (made.files()[1], made.paths()[1]):
            opened(seen, base, address)
            assert seen.page.locator("img, b, main script").count() == 0
            for section in ("happened", "decision", "approvals", "witnesses", "credential"):
                assert HOSTILE in seen.page.inner_text(f"section[aria-labelledby={section}]"), section
            assert HOSTILE in seen.page.inner_text(".lead")
        assert asked == []


def test_a_lease_leads_to_its_receipt_and_that_to_the_document(browser: Browser, base: str, made: Made) -> None:
    with tab(browser, base) as seen:
        seen.go(f"/ui/leases/{made.lease.lease_id}")
        seen.page.get_by_role("link", name="Receipt").click()
        seen.page.wait_for_url(f"**{made.paths()[0]}")
        with seen.page.expect_download() as download:
            seen.page.click("section[aria-labelledby=proof] a")
        assert download.value.suggested_filename == f"{made.lease.lease_id}.receipt.json"
        proven = verified_receipt(Path(download.value.path()).read_text(), made.public())
        assert proven.leaf.run_id == made.lease.run_id


def test_what_has_no_receipt_says_why(browser: Browser, base: str, made: Made) -> None:
    with tab(browser, base) as seen:
        open_lease = made.hostile["hostile_lease"]
        assert seen.go(f"/ui/leases/{open_lease}").page.locator("main >> text=Receipt").count() == 0
        assert "there is a receipt when it is over" in seen.go(f"/ui/leases/{open_lease}/receipt", 400).text()
        seen.go("/ui/leases/lease_none/receipt", 404)
    answer = httpx.get(f"{base}/ui/leases/lease_none/receipt.json", trust_env=False)
    assert answer.status_code == 404


def test_a_page_is_only_written_where_its_document_can_be_verified(made: Made) -> None:
    lease, folder = made.lease.lease_id, made.folder
    for options, says in (
        (("--html", str(folder / "a.html"), "-o", str(folder / "a.json")), "cannot be the page of the document"),
        (("--html", str(folder / "none" / "a.html")), "cannot be written"),
        (("--html", str(folder / "a.receipt.json")), "cannot be the page of the document"),
    ):
        answer = made.written(lease, *options)
        assert answer.returncode == ExitCode.INVALID, options
        assert says in answer.stderr
    assert not list(folder.glob("a.*"))
    there = (str(folder / "page.html"), str(folder / "b c.receipt.json"))
    assert made.written(lease, "--html", there[0], "-o", there[1]).returncode == ExitCode.DONE
    assert "history.vkey &#x27;b c.receipt.json&#x27;" in Path(there[0]).read_text()
