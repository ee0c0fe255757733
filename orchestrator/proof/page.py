"""A proof as one self-contained HTML page: no script, nothing loaded from elsewhere."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime
from html import escape

from orchestrator.proof.forbidden import Verdict
from orchestrator.proof.report import GrantProof, Proof, revoked_words

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #1c2430 }
h1 { font-size: 1.5rem } h2 { font-size: 1.15rem; margin-top: 2.5rem } h3 { font-size: 1rem; margin-bottom: .3rem }
table { border-collapse: collapse; width: 100%; overflow-wrap: break-word } th { font-weight: 600 }
.verdict { white-space: nowrap } td, th { text-align: left; padding: .25rem .6rem .25rem 0;
border-bottom: 1px solid #dde3ea; vertical-align: top } code { font-size: .92em; overflow-wrap: anywhere }
.ok { color: #0a6b3d }
.bad { color: #b3261e; font-weight: 600 } .open { color: #8a5a00 } .mute { color: #5b6776 }
.bar { background: #e6ebf1; height: .8rem; border-radius: .4rem; overflow: hidden }
.bar div { background: #b3261e; height: 100% } .bar .after { background: #0a6b3d }
@media (max-width: 40rem) { thead { display: none } table, tbody, tr, td { display: block; overflow-wrap: anywhere }
tr { border-bottom: 1px solid #dde3ea; padding: .4rem 0 } td { border: 0; padding: 0 }
td::before { content: attr(data-column) ": "; color: #5b6776; font-weight: 400 } }
@media (prefers-color-scheme: dark) { body { background: #12171f; color: #dfe6ee } tr, td, th { border-color: #2b3542 }
.ok { color: #5fd69a } .bad { color: #ff8a80 } .open { color: #f0b35a } .mute { color: #97a5b5 }
.bar { background: #2b3542 } td::before { color: #97a5b5 } }
"""

_CREDENTIALS = ("credential", "verdict", "declared")
_PRIVILEGES = ("privilege",)
_EXCESS = ("privilege", "held", "verdict")
_TRIALS = ("tried", "verdict", "what the server said")
_SHORT = "verdict"
"""The column whose words are never broken."""

_VERDICTS = {Verdict.ALLOWED.value: "bad", Verdict.INCONCLUSIVE.value: "open", Verdict.NOT_TRIED.value: "open"}


def page(proof: Proof) -> str:
    """The whole page. Everything that came from elsewhere is escaped."""
    every = "Every credential" if all(each.examined for each in proof.grants) else "Every credential that was examined"
    verdict = (
        f'<p class="ok">{every} can do what was declared, and nothing else was found.</p>'
        if proof.holds
        else '<p class="bad">Something is held, missing or allowed that was not declared so: see below.</p>'
    )
    return "".join(
        (
            '<!doctype html><html lang="en"><meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>Proof of {escape(proof.workflow)}</title><style>{_STYLE}</style>",
            f"<h1>What the steps of {escape(proof.workflow)} can do</h1>{verdict}",
            f'<p class="mute">For the agent <code>{escape(proof.agent)}</code>, on {_moment(proof.made)}. '
            f"Run <code>{escape(proof.run_id)}</code>, workflow <code>{escape(proof.digest)}</code>. "
            f"Each credential was issued for real and examined on the server; {revoked_words(proof)}.</p>",
            _overview(proof.grants),
            *(_grant(each) for each in proof.grants),
            "</html>",
        )
    )


def _mark(grant: GrantProof) -> str:
    if not grant.holds:
        return '<span class="bad">not proven</span>'
    return '<span class="ok">proven</span>' if grant.examined else '<span class="open">issued only</span>'


def _overview(grants: Iterable[GrantProof]) -> str:
    rows = ((escape(f"{each.step} / {each.grant}"), _mark(each), escape(each.declared)) for each in grants)
    return _filled(_CREDENTIALS, [_row(_CREDENTIALS, row) for row in rows])


def _filled(columns: Iterable[str], rows: Iterable[str]) -> str:
    return f"<table>{_head(columns)}<tbody>{''.join(rows)}</tbody></table>"


def _row(columns: Iterable[str], cells: Iterable[str], style: str = "") -> str:
    """`cells` are HTML. On a narrow screen each stands on a line of its own, after the name of its column."""
    shown = (
        f'<td{_kind(name)} data-column="{escape(name)}">{cell}</td>' for name, cell in zip(columns, cells, strict=True)
    )
    return f'<tr class="{style}">{"".join(shown)}</tr>'


def _head(columns: Iterable[str]) -> str:
    cells = (f'<th scope="col"{_kind(name)}>{escape(name)}</th>' for name in columns)
    return f"<thead><tr>{''.join(cells)}</tr></thead>"


def _kind(column: str) -> str:
    return f' class="{_SHORT}"' if column == _SHORT else ""


def _moment(moment: datetime) -> str:
    return f'<time datetime="{moment.isoformat(timespec="seconds")}">{moment:%Y-%m-%d %H:%M} UTC</time>'


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
                f'<div class="bar"><div class="{style}" style="width:{share.percent:.2f}%"></div></div>'
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
        _row(columns, map(escape, row), _VERDICTS.get(row[1], style) if columns is _TRIALS else style) for row in rows
    ]
    return f"<h3>{escape(title)} ({len(lines)})</h3>{_filled(columns, lines)}" if lines else ""
