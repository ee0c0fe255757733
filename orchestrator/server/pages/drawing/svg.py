"""SVG as text. What is put into it is escaped; places are percents, so that it is as wide as there is room."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import timedelta

from markupsafe import Markup, escape

from orchestrator.presentation.terms import lasting
from orchestrator.server.pages.drawing.timeline import Bar, Dot, Row, Timeline
from orchestrator.server.pages.drawing.timescale import Timescale

TOP = 22
"""Where the rows begin, below the times."""

HEIGHT = {False: 24, True: 17}
THICK = {False: 18, True: 11}

LEAST_WIDTH = 0.25
"""What is shorter is drawn this wide, in percent: nothing that happened is invisible."""

TURNED = 62.0
"""From here on a label is written to the left of what it is of."""

NEAR = 9.0
"""Times that would be written nearer to each other than this are left out, in percent."""

_HATCH = (
    '<defs><pattern id="hatch" width="6" height="6" patternUnits="userSpaceOnUse" patternTransform="rotate(45)">'
    '<rect width="6" height="6" class="hatch-ground"/><rect width="2.5" height="6" class="hatch-line"/>'
    "</pattern></defs>"
)


def timeline_svg(timeline: Timeline, title: str, description: str) -> Markup:
    """The timeline, with its title and what is to be seen on it for those who do not see it."""
    height = TOP + sum(HEIGHT[row.thin] for row in timeline.rows) + (18 if timeline.scale.cuts else 4)
    inside = [*_ticks(timeline.scale, timeline.seconds), *_cuts(timeline.scale, height)]
    top = TOP
    for row in timeline.rows:
        inside.append(_row(row, top))
        top += HEIGHT[row.thin]
    return _drawn(
        f'<svg class="timeline" width="100%" height="{height}" role="img" aria-labelledby="tl-title tl-desc">'
        f'<title id="tl-title">{escape(title)}</title><desc id="tl-desc">{escape(description)}</desc>{_HATCH}',
        *inside,
        "</svg>",
    )


def bar_svg(share: float, title: str) -> Markup:
    """One bar in a cell of a table: a share of the greatest."""
    width = _number(100 * min(1.0, max(share, 0.0)))
    return _drawn(
        f'<svg class="share" width="100%" height="10" role="img" aria-label="{escape(title)}">'
        f'<rect class="ground" width="100%" height="10"/><rect class="lease" width="{width}%" height="10"/></svg>'
    )


def columns_svg(values: Sequence[tuple[str, float, str]], title: str, description: str) -> Markup:
    """A column for each name, value and title, beside each other; names at both ends."""
    most = max((value for _, value, _ in values), default=0.0) or 1.0
    width = 100 / max(1, len(values))
    first, last = (values[0][0], values[-1][0]) if values else ("", "")
    return _drawn(
        '<svg class="columns" width="100%" height="100" role="img" aria-labelledby="c-title c-desc">'
        f'<title id="c-title">{escape(title)}</title><desc id="c-desc">{escape(description)}</desc>'
        '<line class="axis" x1="0%" x2="100%" y1="80.5" y2="80.5"/>',
        *(_column(number, width, 80 * value / most, text) for number, (_, value, text) in enumerate(values)),
        f'<text x="0%" y="96">{escape(first)}</text>',
        f'<text x="100%" y="96" text-anchor="end">{escape(last)}</text></svg>',
    )


def _drawn(*parts: str) -> Markup:
    """What was put together here, in which every text is escaped: `Markup.format` would take most of a page's time."""
    return Markup("".join(parts))  # noqa: S704


def _column(number: int, width: float, high: float, text: str) -> str:
    high = max(1.0, high) if high else 0.0
    left, wide, top = _number((number + 0.1) * width), _number(width * 0.8), _number(80 - high)
    return (
        f"<g><title>{escape(text)}</title>"
        f'<rect class="lease" x="{left}%" width="{wide}%" y="{top}" height="{_number(high)}"/></g>'
    )


def _ticks(scale: Timescale, seconds: float) -> Iterator[str]:
    """The time at the beginning, after each cut, and at the end."""
    places = [(0.0, 0.0)]
    for stretch in scale.stretches:
        if not stretch.cut and stretch.left - places[-1][1] >= NEAR and stretch.left <= 100 - NEAR:
            places.append((stretch.start, stretch.left))
    for second, place in places:
        yield f'<text class="tick" x="{_number(place)}%" y="12">{_after(second)}</text>'
    yield f'<text class="tick" x="100%" y="12" text-anchor="end">{_after(seconds)}</text>'


def _cuts(scale: Timescale, height: int) -> Iterator[str]:
    for cut in scale.cuts:
        middle, lasted = _number((cut.left + cut.right) / 2), lasting(timedelta(seconds=cut.seconds))
        left, wide = _number(cut.left), _number(cut.right - cut.left)
        yield (
            f'<g class="cut"><title>{lasted} in which nothing happened are left out</title>'
            f'<rect x="{left}%" width="{wide}%" y="{TOP - 4}" height="{height - TOP - 12}"/>'
            f'<text x="{middle}%" y="{height - 3}" text-anchor="middle">⋯ {lasted}</text></g>'
        )


def _row(row: Row, top: int) -> str:
    thick = THICK[row.thin]
    y = top + (HEIGHT[row.thin] - thick) / 2
    drawn = [_bar(bar, y, thick) for bar in row.bars]
    drawn += [_dot(dot, y, thick) for dot in row.dots]
    return f'<g class="{"thin" if row.thin else "thick"}">{"".join(drawn)}{_label(row, y + thick / 2)}</g>'


def _bar(bar: Bar, y: float, thick: int) -> str:
    width = max(LEAST_WIDTH, bar.right - bar.left)
    left = _number(min(bar.left, 100 - width))
    look = f"{escape(bar.look)}{' open' if bar.open else ''}"
    fill = ' fill="url(#hatch)"' if bar.look == "taking" else ""
    return (
        f'<rect class="{look}" x="{left}%" width="{_number(width)}%" y="{_number(y)}" height="{thick}" rx="2"{fill}>'
        f"<title>{escape(bar.title)}</title></rect>"
    )


def _dot(dot: Dot, y: float, thick: int) -> str:
    """A mark that says by its form whether it was allowed."""
    mark = "◆" if dot.look == "allowed" else "✗"
    place, middle = _number(min(99.5, max(0.5, dot.at))), _number(y + thick / 2)
    return (
        f'<text class="dot {escape(dot.look)}" x="{place}%" y="{middle}" text-anchor="middle" dy="4">{mark}'
        f"<title>{escape(dot.title)}</title></text>"
    )


def _label(row: Row, middle: float) -> str:
    left = min((*(bar.left for bar in row.bars), *(dot.at for dot in row.dots)), default=0.0)
    right = max((bar.right for bar in row.bars), default=0.0)
    anchor, shift = ("end", -7) if left > TURNED else ("start", 9)
    on = " on" if right - left > 30 and anchor == "start" else ""
    return (
        f'<text class="label{on}" x="{_number(left)}%" y="{_number(middle)}" dx="{shift}" dy="4" '
        f'text-anchor="{anchor}">{escape(row.label)}</text>'
    )


def _after(seconds: float) -> str:
    return f"+{lasting(timedelta(seconds=seconds))}" if seconds else "0"


def _number(value: float) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".")
