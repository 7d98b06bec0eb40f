"""The few pieces of SVG that the report needs: a panel with axes, shapes, and very many dots in very few bytes."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from html import escape

__all__ = ["Panel", "Scale", "decades", "dots", "number", "polyline", "text", "ticks"]


class Scale:
    """Maps [low, high] to [start, end], linearly or by logarithm. Values outside are moved to the edge."""

    def __init__(self, low: float, high: float, start: float, end: float, *, log: bool = False) -> None:
        self.low, self.high, self.start, self.end, self.log = low, max(high, low + 1e-9), start, end, log

    def __call__(self, value: float) -> float:
        value = min(max(value, self.low), self.high)
        if self.log:
            share = math.log(value / self.low) / math.log(self.high / self.low)
        else:
            share = (value - self.low) / (self.high - self.low)
        return self.start + share * (self.end - self.start)


def ticks(high: float, count: int = 6) -> list[float]:
    """Round values from 0 to ``high``, about ``count`` of them."""
    if high <= 0:
        return [0.0]
    raw = high / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(nice * power for nice in (1, 2, 5, 10) if nice * power >= raw)
    return [step * number for number in range(int(high / step + 1e-9) + 1)]


def decades(low: float, high: float) -> list[float]:
    """The powers of ten in [low, high]."""
    return [10.0**n for n in range(math.ceil(math.log10(low) - 1e-9), math.floor(math.log10(high) + 1e-9) + 1)]


def number(value: float) -> str:
    """A coordinate: at most one digit behind the point, none where it is 0."""
    return f"{value:.1f}".removesuffix(".0")


def text(x: float, y: float, words: str, css: str = "", anchor: str = "start") -> str:
    """One line of text."""
    return f'<text x="{number(x)}" y="{number(y)}" class="{css}" text-anchor="{anchor}">{escape(words)}</text>'


def polyline(points: Iterable[tuple[float, float]], css: str) -> str:
    """Straight lines through points; nothing for less than two."""
    listed = [f"{number(x)},{number(y)}" for x, y in points]
    return f'<polyline class="{css}" points="{" ".join(listed)}"/>' if len(listed) > 1 else ""


def dots(points: Iterable[tuple[float, float]], css: str, title: str) -> str:
    """All points as one path of zero-length strokes with round caps; those on the same half pixel are one.

    About nine bytes a dot; ``data-dots`` says how many are drawn.
    """
    grid = sorted({(round(2 * x), round(2 * y)) for x, y in points})
    parts = []
    at_x = at_y = 0
    for x, y in grid:
        parts.append(f"m{_half(x - at_x)} {_half(y - at_y)}h0")
        at_x, at_y = x, y
    return f'<path class="{css}" data-dots="{len(grid)}" d="{"".join(parts)}"><title>{escape(title)}</title></path>'


def _half(doubled: int) -> str:
    return f"{doubled / 2:.1f}".removesuffix(".0")


class Panel:
    """One picture of the page: ``parts`` in a frame of the page's width, all on one time axis."""

    WIDTH = 1200
    LEFT = 90
    RIGHT = 1180

    def __init__(self, name: str, height: float, end_s: float) -> None:
        self.name = name
        self.height = height
        self.end_s = end_s
        self.x = Scale(0.0, end_s, self.LEFT, self.RIGHT)
        self.parts: list[str] = []

    def add(self, *parts: str) -> None:
        self.parts.extend(parts)

    def time_axis(self, y: float) -> None:
        """Seconds along the bottom."""
        for value in ticks(self.end_s, 12):
            x = self.x(value)
            self.add(f'<line class="tick" x1="{number(x)}" y1="{number(y)}" x2="{number(x)}" y2="{number(y + 4)}"/>')
            self.add(text(x, y + 16, f"{value:g} s", "label", "middle"))

    def value_axis(self, scale: Scale, values: Sequence[float], unit: str) -> None:
        """Grid lines with their values at the left."""
        for value in values:
            y = scale(value)
            self.add(f'<line class="grid" x1="{self.LEFT}" y1="{number(y)}" x2="{self.RIGHT}" y2="{number(y)}"/>')
            self.add(text(self.LEFT - 6, y + 4, f"{value:g}{unit}", "label", "end"))

    def render(self, label: str) -> str:
        """The finished element; ``label`` is what a screen reader says."""
        return (
            f'<div class="wide"><svg id="{self.name}" class="panel" role="img" aria-label="{escape(label)}" '
            f'viewBox="0 0 {self.WIDTH} {number(self.height)}" data-left="{self.LEFT}" data-right="{self.RIGHT}" '
            f'data-end="{self.end_s:g}">{"".join(self.parts)}'
            f'<line class="cursor" y1="0" y2="{number(self.height)}"/></svg></div>'
        )
