"""SVG as text. What is put into it is escaped; places are percents, so that it is as wide as there is room."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import timedelta

from markupsafe import Markup

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

_HATCH = Markup(
    '<defs><pattern id="hatch" width="6" height="6" patternUnits="userSpaceOnUse" patternTransform="rotate(45)">'
    '<rect width="6" height="6" class="hatch-ground"/><rect width="2.5" height="6" class="hatch-line"/>'
    "</pattern></defs>"
)


def timeline_svg(timeline: Timeline, title: str, description: str) -> Markup:
    """The timeline, with its title and what is to be seen on it for those who do not see it."""
    height = TOP + sum(HEIGHT[row.thin] for row in timeline.rows) + (18 if timeline.scale.cuts else 4)
    inside = Markup("").join([*_ticks(timeline.scale, timeline.seconds), *_cuts(timeline.scale, height)])
    rows: list[Markup] = []
    top = TOP
    for row in timeline.rows:
        rows.append(_row(row, top))
        top += HEIGHT[row.thin]
    return Markup(
        '<svg class="timeline" width="100%" height="{0}" role="img" aria-labelledby="tl-title tl-desc">'
        '<title id="tl-title">{1}</title><desc id="tl-desc">{2}</desc>{3}{4}{5}</svg>'
    ).format(height, title, description, _HATCH, inside, Markup("").join(rows))


def bar_svg(share: float, title: str) -> Markup:
    """One bar in a cell of a table: a share of the greatest."""
    return Markup(
        '<svg class="share" width="100%" height="10" role="img" aria-label="{1}">'
        '<rect class="ground" width="100%" height="10"/><rect class="lease" width="{0}%" height="10"/></svg>'
    ).format(_number(100 * min(1.0, max(share, 0.0))), title)


def columns_svg(values: Sequence[tuple[str, float, str]], title: str, description: str) -> Markup:
    """A column for each name, value and title, beside each other; names at both ends."""
    most = max((value for _, value, _ in values), default=0.0) or 1.0
    width = 100 / max(1, len(values))
    columns = [_column(number, width, 80 * value / most, text) for number, (_, value, text) in enumerate(values)]
    ends = Markup('<text x="0%" y="96">{0}</text><text x="100%" y="96" text-anchor="end">{1}</text>').format(
        values[0][0] if values else "", values[-1][0] if values else ""
    )
    return Markup(
        '<svg class="columns" width="100%" height="100" role="img" aria-labelledby="c-title c-desc">'
        '<title id="c-title">{0}</title><desc id="c-desc">{1}</desc>'
        '<line class="axis" x1="0%" x2="100%" y1="80.5" y2="80.5"/>{2}{3}</svg>'
    ).format(title, description, Markup("").join(columns), ends)


def _column(number: int, width: float, high: float, text: str) -> Markup:
    high = max(1.0, high) if high else 0.0
    return Markup('<g><title>{4}</title><rect class="lease" x="{0}%" width="{1}%" y="{2}" height="{3}"/></g>').format(
        _number((number + 0.1) * width), _number(width * 0.8), _number(80 - high), _number(high), text
    )


def _ticks(scale: Timescale, seconds: float) -> Iterator[Markup]:
    """The time at the beginning, after each cut, and at the end."""
    places = [(0.0, 0.0)]
    for stretch in scale.stretches:
        if not stretch.cut and stretch.left - places[-1][1] >= NEAR and stretch.left <= 100 - NEAR:
            places.append((stretch.start, stretch.left))
    for second, place in places:
        yield Markup('<text class="tick" x="{0}%" y="12">{1}</text>').format(_number(place), _after(second))
    yield Markup('<text class="tick" x="100%" y="12" text-anchor="end">{0}</text>').format(_after(seconds))


def _cuts(scale: Timescale, height: int) -> Iterator[Markup]:
    for cut in scale.cuts:
        middle = (cut.left + cut.right) / 2
        yield Markup(
            '<g class="cut"><title>{4} in which nothing happened are left out</title>'
            '<rect x="{0}%" width="{1}%" y="{5}" height="{2}"/>'
            '<text x="{3}%" y="{6}" text-anchor="middle">⋯ {4}</text></g>'
        ).format(
            _number(cut.left),
            _number(cut.right - cut.left),
            height - TOP - 12,
            _number(middle),
            lasting(timedelta(seconds=cut.seconds)),
            TOP - 4,
            height - 3,
        )


def _row(row: Row, top: int) -> Markup:
    thick = THICK[row.thin]
    y = top + (HEIGHT[row.thin] - thick) / 2
    drawn = [_bar(bar, y, thick) for bar in row.bars]
    drawn += [_dot(dot, y, thick) for dot in row.dots]
    return Markup('<g class="{0}">{1}{2}</g>').format(
        "thin" if row.thin else "thick", Markup("").join(drawn), _label(row, y + thick / 2)
    )


def _bar(bar: Bar, y: float, thick: int) -> Markup:
    width = max(LEAST_WIDTH, bar.right - bar.left)
    left = min(bar.left, 100 - width)
    fill = Markup(' fill="url(#hatch)"') if bar.look == "taking" else Markup("")
    return Markup(
        '<rect class="{0}{1}" x="{2}%" width="{3}%" y="{4}" height="{5}" rx="2"{6}><title>{7}</title></rect>'
    ).format(bar.look, " open" if bar.open else "", _number(left), _number(width), _number(y), thick, fill, bar.title)


def _dot(dot: Dot, y: float, thick: int) -> Markup:
    """A mark that says by its form whether it was allowed."""
    mark = "◆" if dot.look == "allowed" else "✗"
    return Markup(
        '<text class="dot {0}" x="{1}%" y="{2}" text-anchor="middle" dy="4">{3}<title>{4}</title></text>'
    ).format(dot.look, _number(min(99.5, max(0.5, dot.at))), _number(y + thick / 2), mark, dot.title)


def _label(row: Row, middle: float) -> Markup:
    left = min((*(bar.left for bar in row.bars), *(dot.at for dot in row.dots)), default=0.0)
    right = max((bar.right for bar in row.bars), default=0.0)
    if left > TURNED:
        place, anchor, shift = left, "end", -7
    else:
        place, anchor, shift = left, "start", 9
    on = " on" if right - left > 30 and anchor == "start" else ""
    return Markup('<text class="label{5}" x="{0}%" y="{1}" dx="{2}" dy="4" text-anchor="{3}">{4}</text>').format(
        _number(place), _number(middle), shift, anchor, row.label, on
    )


def _after(seconds: float) -> str:
    return f"+{lasting(timedelta(seconds=seconds))}" if seconds else "0"


def _number(value: float) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".")
