"""Histograms and the Prometheus text format (version 0.0.4), without a library.

A node's gauges and most of its counters exist already in the core, the store and the driver. They are read when
somebody scrapes, so they cost nothing in between. Only what has a distribution is measured as it happens: once per
pump, group commit or message, never per entry.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal

__all__ = [
    "BYTES_BOUNDS",
    "CONTENT_TYPE",
    "COUNT_BOUNDS",
    "SECONDS_BOUNDS",
    "Family",
    "Histogram",
    "Kind",
    "counter",
    "gauge",
    "histogram",
    "render",
]

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"

SECONDS_BOUNDS: Final = (
    0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0,
)  # fmt: skip
"""From a write to the page cache to an append that just made its deadline."""

BYTES_BOUNDS: Final = tuple(float(4**power) for power in range(3, 13))
"""64 bytes to 16 MiB."""

COUNT_BOUNDS: Final = tuple(float(4**power) for power in range(9))
"""1 to 65 536."""

Kind = Literal["counter", "gauge", "histogram"]
Labels = Mapping[str, str]


class Histogram:
    """Counts of observations up to each of ``bounds`` (ascending, in the metric's unit), their sum and number."""

    __slots__ = ("_bounds", "_buckets", "total")

    def __init__(self, bounds: Sequence[float] = SECONDS_BOUNDS) -> None:
        self._bounds = tuple(bounds)
        self._buckets = [0] * (len(self._bounds) + 1)
        self.total = 0.0

    def observe(self, value: float) -> None:
        """Take in one observation."""
        self._buckets[bisect_left(self._bounds, value)] += 1
        self.total += value

    @property
    def count(self) -> int:
        """Observations so far."""
        return sum(self._buckets)

    def cumulative(self) -> list[tuple[float, int]]:
        """Return (upper bound, observations at or below it) for every bound, infinity last."""
        found, below = [], 0
        for bound, number in zip((*self._bounds, math.inf), self._buckets, strict=True):
            below += number
            found.append((bound, below))
        return found


@dataclass(slots=True)
class Family:
    """One metric: its samples are (suffix of the name, labels, value)."""

    name: str
    kind: Kind
    help: str
    samples: list[tuple[str, Labels, float]] = field(default_factory=list)

    def add(self, labels: Labels, value: float) -> Family:
        """Add a sample with the family's own name; returns the family."""
        self.samples.append(("", labels, value))
        return self


def gauge(name: str, text: str, labels: Labels, value: float) -> Family:
    """Return a gauge with one sample."""
    return Family(name, "gauge", text).add(labels, value)


def counter(name: str, text: str, labels: Labels, value: float) -> Family:
    """Return a counter with one sample; ``name`` ends in ``_total``."""
    return Family(name, "counter", text).add(labels, value)


def histogram(name: str, text: str, series: Iterable[tuple[Labels, Histogram]]) -> Family:
    """Return a histogram with one series for each (labels, measured)."""
    family = Family(name, "histogram", text)
    for labels, measured in series:
        # Invariant of the format: the +Inf bucket equals _count. Both come from the same list here.
        rows = measured.cumulative()
        family.samples += [("_bucket", {**labels, "le": _number(bound)}, number) for bound, number in rows]
        family.samples += [("_sum", labels, measured.total), ("_count", labels, rows[-1][1])]
    return family


def _number(value: float) -> str:
    if value == math.inf:
        return "+Inf"
    if math.isnan(value):
        return "NaN"
    return str(int(value)) if value == int(value) and abs(value) < 1e15 else repr(float(value))


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace("\n", "\\n").replace('"', '\\"')


def render(families: Iterable[Family]) -> bytes:
    """Return the page that a scrape gets. A family without samples is left out."""
    lines: list[str] = []
    for family in families:
        if not family.samples:
            continue
        help_text = family.help.replace("\\", "\\\\").replace("\n", "\\n")
        lines += [f"# HELP {family.name} {help_text}", f"# TYPE {family.name} {family.kind}"]
        for suffix, labels, value in family.samples:
            pairs = ",".join(f'{key}="{_escaped(text)}"' for key, text in labels.items())
            lines.append(f"{family.name}{suffix}{{{pairs}}} {_number(value)}")
    return ("\n".join(lines) + "\n").encode()
