"""One row a lease, as CSV (RFC 4180): who held what when, for people who look at it in a spreadsheet."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import fields
from datetime import datetime

from orchestrator.evidence.export.lease_rows import FINAL_KINDS, LeaseRow, LeaseRows
from orchestrator.evidence.export.stream import Tally, passed, utc
from orchestrator.ledger.reading.history import Chapter

COLUMNS = tuple(each.name for each in fields(LeaseRow))
END = "#end"
"""The first field of the last row, which no lease has: its ids begin with `lease_`."""

_FORMULA = re.compile("(^|;)(?=[ \u00a0\"']*[=+\\-@\uff1d\uff0b\uff0d\uff20])")
"""Where a spreadsheet may see a formula begin, also with characters of full width: at the beginning, and behind what
separates fields where the comma is in numbers."""

_UNSEEN = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
"""Control characters, line ends among them; what turns the direction of writing; and what UTF-8 cannot hold."""


def spreadsheet(chapters: Iterable[Chapter], tally: Tally, *, resource: str | None = None) -> Iterator[str]:
    """The rows below a header, those of a run in the order in which its leases ended, what is open after that.

    The last row has `#end` in its first column, and `name=value` in those that follow.
    """
    yield csv_row(COLUMNS)
    rows = LeaseRows()
    for chapter in tally.chapters(chapters):
        after = ((event.kind, rows.after(run, event)) for run, event in passed([chapter]))
        ended = [row for kind, row in after if row is not None and kind in FINAL_KINDS]
        for row in [*ended, *(rows.left() if chapter.last else ())]:
            if resource is None or row.resource.startswith(resource):
                tally.written += 1
                yield csv_row([_text(getattr(row, name)) for name in COLUMNS])
    yield csv_row(_mark(tally))


def _mark(tally: Tally) -> list[str]:
    """As wide as every other row, so that no reader stumbles over it."""
    parts = tally.mark("leases")
    selection = parts.pop("selection")
    del parts["end"]
    told = [f"{name}={'' if value is None else value}" for name, value in parts.items()]
    told += [f"{name}={value}" for name, value in selection.items()] if isinstance(selection, dict) else []
    return [END, *told, *[""] * (len(COLUMNS) - 1 - len(told))]


def csv_row(values: Sequence[str]) -> str:
    """One row with its line end, of which no cell is a formula."""
    line = io.StringIO()
    csv.writer(line, lineterminator="\r\n").writerow([harmless(each) for each in values])
    return line.getvalue()


def _text(value: object) -> str:
    if isinstance(value, datetime):
        return utc(value) or ""
    return "" if value is None else str(value)


def harmless(value: str) -> str:
    """The text in one line, with an apostrophe before what a spreadsheet could take for a formula (OWASP, "CSV
    Injection"). What is not seen, or moves what is seen, is written as an escape."""
    return _FORMULA.sub(r"\1'", _UNSEEN.sub(lambda unseen: unseen[0].encode("unicode_escape").decode(), value))
