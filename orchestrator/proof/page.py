"""A proof as one self-contained HTML page: no script, nothing loaded from elsewhere."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

from orchestrator.presentation.document import document, moment, row, table
from orchestrator.proof.forbidden import Verdict
from orchestrator.proof.report import GrantProof, Proof, revoked_words

_STYLE = """
.verdict { white-space: nowrap }
.bar { display: block; width: 100%; height: .8rem; border-radius: .4rem; background: #e6ebf1 }
.bar rect { fill: #b3261e } .bar .after { fill: #0a6b3d }
@media screen and (prefers-color-scheme: dark) { .bar { background: #2b3542 } }
"""

_CREDENTIALS = ("credential", "verdict", "declared")
_PRIVILEGES = ("privilege",)
_EXCESS = ("privilege", "held", "verdict")
_TRIALS = ("tried", "verdict", "what the server said")

_VERDICTS = {Verdict.ALLOWED.value: "bad", Verdict.INCONCLUSIVE.value: "open", Verdict.NOT_TRIED.value: "open"}


def page(proof: Proof) -> str:
    """The whole page. Everything that came from elsewhere is escaped."""
    every = "Every credential" if all(each.examined for each in proof.grants) else "Every credential that was examined"
    verdict = (
        f'<p class="ok">{every} can do what was declared, and nothing else was found.</p>'
        if proof.holds
        else '<p class="bad">Something is held, missing or allowed that was not declared so: see below.</p>'
    )
    content = (
        f"<h1>What the steps of {escape(proof.workflow)} can do</h1>{verdict}",
        f'<p class="mute">For the agent <code>{escape(proof.agent)}</code>, on {moment(proof.made)}. '
        f"Run <code>{escape(proof.run_id)}</code>, workflow <code>{escape(proof.digest)}</code>. "
        f"Each credential was issued for real and examined on the server; {revoked_words(proof)}.</p>",
        _overview(proof.grants),
        *(_grant(each) for each in proof.grants),
    )
    return document(f"Proof of {proof.workflow}", "".join(content), _STYLE)


def _mark(grant: GrantProof) -> str:
    if not grant.holds:
        return '<span class="bad">not proven</span>'
    return '<span class="ok">proven</span>' if grant.examined else '<span class="open">issued only</span>'


def _overview(grants: Iterable[GrantProof]) -> str:
    rows = ((escape(f"{each.step} / {each.grant}"), _mark(each), escape(each.declared)) for each in grants)
    return table(_CREDENTIALS, [row(_CREDENTIALS, cells) for cells in rows])


def _grant(grant: GrantProof) -> str:
    parts = [f"<h2>{escape(grant.step)} / {escape(grant.grant)}: {_mark(grant)}</h2><p>{escape(grant.declared)}</p>"]
    if grant.refused:
        parts.append(f'<p class="bad">Not issued: {escape(grant.refused)}</p>')
    parts += [f'<p class="open">Note: {escape(note)}</p>' for note in grant.notes]
    for style, name, share in (
        ("", f"Before, as {grant.former}", grant.before),
        ("after", "Now, as this login", grant.after),
    ):
        if share is not None:
            figure = f"{share.held} of {share.total} privileges in the database ({share.percent:.2f} %)"
            parts.append(
                f"<p>{escape(name)}: {figure}</p>"
                f'<svg class="bar" aria-hidden="true">'
                f'<rect class="{style}" width="{share.percent:.2f}%" height="100%"/></svg>'
            )
    if grant.comparison is not None:
        held, missing = ([[str(each)] for each in found] for found in (grant.comparison.held, grant.comparison.missing))
        parts.append(_table("Declared and held", _PRIVILEGES, held))
        parts.append(_table("Declared but missing", _PRIVILEGES, missing, "bad"))
        rows = (
            [str(each.holding), f"through {each.via}", "tolerated" if each.tolerated else "not tolerated"]
            for each in grant.comparison.excess
        )
        parts.append(_table("Held but not declared", _EXCESS, rows, "bad"))
    tried = ([each.what, each.verdict.value, each.answer] for each in grant.trials)
    parts.append(_table("Tried, and what the server said", _TRIALS, tried))
    return "".join(parts)


def _table(title: str, columns: Sequence[str], rows: Iterable[list[str]], style: str = "") -> str:
    lines = [
        row(columns, map(escape, cells), _VERDICTS.get(cells[1], style) if columns is _TRIALS else style)
        for cells in rows
    ]
    return f"<h3>{escape(title)} ({len(lines)})</h3>{table(columns, lines)}" if lines else ""
