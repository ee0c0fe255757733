"""The report of a proof: when, for whom, with what its columns are, and readable on a narrow screen."""

from __future__ import annotations

import base64
import hashlib
import re
from dataclasses import replace
from datetime import UTC, datetime

import pytest

from orchestrator.proof.comparison import Comparison, Excess
from orchestrator.proof.forbidden import Trial, Verdict
from orchestrator.proof.holdings import Holding
from orchestrator.proof.page import page
from orchestrator.proof.report import GrantProof, Proof, proven_words, revoked_words

HELD = Holding("column", "public.customer_feedback.comment", "SELECT")
EXACT = GrantProof(
    step="read",
    grant="db",
    declared="database support: select (comment, created_at) on public.customer_feedback, 2m",
    comparison=Comparison(held=(HELD,), missing=(), excess=()),
    trials=(
        Trial("select on public.employee", Verdict.REFUSED, "permission denied for table employee (42501)"),
        Trial("read another path", Verdict.INCONCLUSIVE, "it did not answer"),
    ),
)
WIDE = GrantProof(
    step="write",
    grant="db",
    declared="database support",
    comparison=Comparison(held=(), missing=(HELD,), excess=(Excess(HELD, "PUBLIC", tolerated=False),)),
)
PROOF = Proof(
    workflow="customer_feedback",
    digest="sha256:ab",
    run_id="run_1",
    agent="feedback-assistant",
    made=datetime(2026, 3, 2, 12, 5, 9, tzinfo=UTC),
    grants=(EXACT, WIDE),
)


def test_the_page_says_when_it_was_made_and_for_whom() -> None:
    text = page(PROOF)
    assert '<time datetime="2026-03-02T12:05:09+00:00">2026-03-02 12:05 UTC</time>' in text
    assert "<code>feedback-assistant</code>" in text
    assert (PROOF.as_json()["agent"], PROOF.as_json()["made"]) == ("feedback-assistant", "2026-03-02T12:05:09+00:00")
    assert "<b>" not in page(replace(PROOF, agent="<b>"))


def test_a_browser_may_use_nothing_but_the_style_that_is_in_it() -> None:
    text = page(PROOF)
    (style,) = re.findall(r"<style>(.*?)</style>", text, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    (policy,) = re.findall(r'<meta http-equiv="Content-Security-Policy" content="([^"]*)">', text)
    assert policy == f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    assert not re.search(r"<script|<link|<img|\sstyle=|\son\w+=|https?://", text)


def test_every_table_has_a_head_with_as_many_names_as_columns() -> None:
    tables = re.findall(r"<table>(.*?)</table>", page(PROOF))
    assert len(tables) == 5
    for table in tables:
        head, _, body = table.partition("</thead>")
        names = re.findall(r'<th scope="col"[^>]*>([^<]+)</th>', head)
        for row in re.findall(r"<tr[^>]*>(.*?)</tr>", body):
            assert len(re.findall("<td", row)) == len(names)
    assert [re.findall(r"<th[^>]*>([^<]+)", table) for table in tables] == [
        ["credential", "verdict", "declared"],
        ["privilege"],
        ["tried", "verdict", "what the server said"],
        ["privilege"],
        ["privilege", "held", "verdict"],
    ]


def test_a_verdict_is_never_broken_in_two_however_narrow_the_screen_is() -> None:
    text = page(PROOF)
    rule = re.search(r"\.verdict \{([^}]*)\}", text)
    assert rule is not None
    assert "white-space: nowrap" in rule[1]
    assert "table-layout: fixed" not in text
    narrow = text.partition("@media (max-width: 40rem)")[2].partition("@media")[0]
    assert "table, tbody, tr, td { display: block" in narrow
    assert "content: attr(data-column)" in narrow
    cells = re.findall(r"<td([^>]*)>(?:<span[^>]*>)?(proven|not proven|refused|inconclusive|not tolerated)<", text)
    assert {word for _, word in cells} == {"proven", "not proven", "refused", "inconclusive", "not tolerated"}
    assert {marks for marks, _ in cells} == {' class="verdict" data-column="verdict"'}


ISSUED = GrantProof(step="read", grant="queue", declared="dynamic rabbitmq/creds/x, 1m")


@pytest.mark.parametrize(
    ("grants", "words"),
    [
        ((EXACT, WIDE), "1 of 2 proven"),
        ((EXACT, ISSUED), "1 of 1 proven"),
        ((ISSUED,), "nothing to prove: there is nothing to hold these credentials to"),
        ((), "nothing to prove: no step has a credential"),
        ((replace(ISSUED, refused="no"),), "0 of 1 proven"),
    ],
)
def test_where_nothing_could_be_proven_that_is_said(grants: tuple[GrantProof, ...], words: str) -> None:
    assert proven_words(replace(PROOF, grants=grants)) == words


@pytest.mark.parametrize(
    ("left", "words"),
    [
        (0, "everything issued was revoked"),
        (1, "1 revocation is not confirmed yet"),
        (2, "2 revocations are not confirmed yet"),
    ],
)
def test_what_is_left_is_counted(left: int, words: str) -> None:
    assert revoked_words(replace(PROOF, unconfirmed=left)) == words
