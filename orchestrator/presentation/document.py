"""Self-contained HTML documents: no script, nothing from elsewhere, for screens of any width and for paper."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable
from datetime import UTC, datetime
from html import escape

_STYLE = """
:root { color-scheme: light dark }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #1c2430 }
h1 { font-size: 1.5rem; overflow-wrap: anywhere } h2 { font-size: 1.15rem; margin-top: 2.5rem }
h3 { font-size: 1rem; margin-bottom: .3rem }
table { border-collapse: collapse; width: 100%; overflow-wrap: break-word } th { font-weight: 600 }
td, th { text-align: left; padding: .25rem .6rem .25rem 0; border-bottom: 1px solid #dde3ea; vertical-align: top }
code { font-size: .92em; overflow-wrap: anywhere } p { overflow-wrap: anywhere }
time { white-space: nowrap }
.ok { color: #0a6b3d } .bad { color: #b3261e; font-weight: 600 } .open { color: #8a5a00 } .mute { color: #5b6776 }
@media (max-width: 40rem) { thead { display: none } table, tbody, tr, td { display: block; overflow-wrap: anywhere }
tr { border-bottom: 1px solid #dde3ea; padding: .4rem 0 } td { border: 0; padding: 0 } td:empty { display: none }
td::before { content: attr(data-column) ": "; color: #5b6776; font-weight: 400 } }
@media screen and (prefers-color-scheme: dark) { body { background: #12171f; color: #dfe6ee }
tr, td, th { border-color: #2b3542 }
.ok { color: #5fd69a } .bad { color: #ff8a80 } .open { color: #f0b35a } .mute { color: #97a5b5 }
td::before { color: #97a5b5 } }
@media print { :root { color-scheme: light } body { margin: 0; max-width: none; font-size: 10pt }
tr, pre { break-inside: avoid } h2, h3 { break-after: avoid } h2 { margin-top: 1.2rem } }
"""


def document(title: str, content: str, style: str = "") -> str:
    """The whole text of one. `content` and `style` are HTML and CSS; `title` is escaped here.

    Its policy lets a browser use nothing but the style that is in it, by its digest (Content Security Policy Level 3).
    """
    whole = _STYLE + style
    digest = base64.b64encode(hashlib.sha256(whole.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    return "".join(
        (
            '<!doctype html><html lang="en"><head><meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{policy}">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            '<meta name="referrer" content="no-referrer">',
            f"<title>{escape(title)}</title><style>{whole}</style></head>",
            f"<body><main>{content}</main></body></html>\n",
        )
    )


def table(columns: Iterable[str], rows: Iterable[str]) -> str:
    """A table of rows that `row` has made."""
    return f"<table>{_head(columns)}<tbody>{''.join(rows)}</tbody></table>"


def row(columns: Iterable[str], cells: Iterable[str], style: str = "") -> str:
    """`cells` are HTML. On a narrow screen each stands on a line of its own, after the name of its column."""
    shown = (
        f'<td{_kind(name)} data-column="{escape(name)}">{cell}</td>' for name, cell in zip(columns, cells, strict=True)
    )
    return f'<tr class="{style}">{"".join(shown)}</tr>'


SHORT = "verdict"
"""The column whose words are never broken."""


def _head(columns: Iterable[str]) -> str:
    cells = (f'<th scope="col"{_kind(name)}>{escape(name)}</th>' for name in columns)
    return f"<thead><tr>{''.join(cells)}</tr></thead>"


def _kind(column: str) -> str:
    return f' class="{SHORT}"' if column == SHORT else ""


def moment(at: datetime, shape: str = "%Y-%m-%d %H:%M") -> str:
    """A time in UTC, for people as `shape` (strftime) and to the second for machines."""
    at = at.astimezone(UTC)
    return f'<time datetime="{at.isoformat(timespec="seconds")}">{at.strftime(shape)} UTC</time>'
