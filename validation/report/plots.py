"""Interval plots as inline SVG: sharp in print, coloured by the page's own variables, readable aloud.

Guarantees:
    1. Every plot says in its label what it shows; nothing is told by colour alone.
    2. Positions are percentages of the width, so a plot fits any column without stretching its marks.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from markupsafe import Markup

HEIGHT = 22
_MIDDLE = HEIGHT / 2
_ROUND_ENDS = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0)


@dataclass(frozen=True)
class Scale:
    """A linear axis from `low` to `high`."""

    low: float
    high: float

    def place(self, value: float) -> float:
        """Returns a value's position in percent of the width, kept within the axis."""
        share = (value - self.low) / (self.high - self.low)
        return round(100 * min(max(share, 0.0), 1.0), 2)


def rate_scale(values: Iterable[float | None]) -> Scale:
    """Returns an axis from 0 to a round end that holds all values."""
    return Scale(0.0, _round_end(values))


def change_scale(values: Iterable[float | None]) -> Scale:
    """Returns an axis around 0 that holds all values."""
    end = _round_end(None if value is None else abs(value) for value in values)
    return Scale(-end, end)


def interval(
    scale: Scale,
    *,
    lower: float,
    upper: float,
    estimate: float | None,
    limit: float | None,
    tone: str,
    label: str,
) -> Markup:
    """Returns a bar from bound to bound, a dot for the estimate and a dashed line for the limit."""
    marks = [_line("track", 0, 100, _MIDDLE, _MIDDLE)]
    if scale.low < 0:
        marks.append(_vertical("zero", scale.place(0)))
    if limit is not None:
        marks.append(_vertical("limit", scale.place(limit)))
    marks.append(_line(f"bar {tone}", scale.place(lower), scale.place(upper), _MIDDLE, _MIDDLE))
    if estimate is not None:
        marks.append(_dot(f"dot {tone}", scale.place(estimate)))
    return _svg(marks, label)


def before_after(*, before: float, after: float, label: str) -> Markup:
    """Returns a line from the rate before, a ring, to the rate after, a dot."""
    scale = Scale(0.0, 1.0)
    marks = [
        _line("track", 0, 100, _MIDDLE, _MIDDLE),
        _line("move", scale.place(before), scale.place(after), _MIDDLE, _MIDDLE),
        _dot("ring", scale.place(before)),
        _dot("dot", scale.place(after)),
    ]
    return _svg(marks, label)


def shares(parts: Sequence[float], *, label: str) -> Markup:
    """Returns a bar cut into parts, each fainter than the one before; what they leave of the whole stays empty."""
    marks = [_line("track", 0, 100, _MIDDLE, _MIDDLE)]
    start = 0.0
    for rank, part in enumerate(parts):
        marks.append(_line(f"part part{rank}", round(100 * start, 2), round(100 * (start + part), 2), _MIDDLE, _MIDDLE))
        start += part
    return _svg(marks, label)


def axis(scale: Scale, ticks: Sequence[tuple[float, str]]) -> Markup:
    """Returns the labels of an axis; the plots below it speak for themselves, so it is hidden from screen readers."""
    texts = []
    for value, text in ticks:
        place = scale.place(value)
        anchor = "start" if place < 8 else "end" if place > 92 else "middle"
        texts.append(Markup('<text x="{}%" y="11" text-anchor="{}">{}</text>').format(place, anchor, text))
    return Markup('<svg class="axis" width="100%" height="14" aria-hidden="true">{}</svg>').format(Markup().join(texts))


def _round_end(values: Iterable[float | None]) -> float:
    largest = max((value for value in values if value is not None), default=0.0)
    return next((end for end in _ROUND_ENDS if end >= largest), 1.0)


def _svg(marks: Sequence[Markup], label: str) -> Markup:
    return Markup(
        '<svg class="plot" role="img" aria-label="{}" width="100%" height="{}"><title>{}</title>{}</svg>'
    ).format(label, HEIGHT, label, Markup().join(marks))


def _line(kind: str, x1: float, x2: float, y1: float, y2: float) -> Markup:
    return Markup('<line class="{}" x1="{}%" x2="{}%" y1="{}" y2="{}"/>').format(kind, x1, x2, y1, y2)


def _vertical(kind: str, x: float) -> Markup:
    return _line(kind, x, x, 1, HEIGHT - 1)


def _dot(kind: str, x: float) -> Markup:
    return Markup('<circle class="{}" cx="{}%" cy="{}" r="4.5"/>').format(kind, x, _MIDDLE)
