"""The text format: what promtool says of it, and the arithmetic of histograms."""

from __future__ import annotations

import math
import random
from bisect import bisect_right

import pytest

from dledger.metrics.registry import (
    BYTES_BOUNDS,
    COUNT_BOUNDS,
    SECONDS_BOUNDS,
    Histogram,
    counter,
    gauge,
    histogram,
    render,
)
from tests.metrics.conftest import promtool


@pytest.mark.parametrize("bounds", [SECONDS_BOUNDS, BYTES_BOUNDS, COUNT_BOUNDS])
def test_a_histogram_counts_what_sorting_counts(bounds):
    rng = random.Random(7)
    values = [rng.choice([*bounds, rng.uniform(0, 2 * bounds[-1]), 0.0]) for _ in range(2000)]
    measured = Histogram(bounds)
    for value in values:
        measured.observe(value)
    ordered = sorted(values)
    assert measured.cumulative() == [(b, bisect_right(ordered, b)) for b in (*bounds, math.inf)]
    assert measured.count == 2000
    assert measured.total == pytest.approx(sum(values))


def test_the_page_is_exactly_this():
    measured = Histogram((0.5, 1.0))
    for value in (0.5, 0.7, 9.0):
        measured.observe(value)
    page = render(
        [
            gauge("a_ratio", 'text with \\ and\nline "ends"', {"label": 'a "b" \\ \n'}, 0.25),
            counter("b_total", "b", {"x": "y"}, 10**15),
            histogram("c_seconds", "c", [({"x": "y"}, measured)]),
            histogram("none_seconds", "no series, no family", []),
        ]
    )
    assert page.decode() == (
        '# HELP a_ratio text with \\\\ and\\nline "ends"\n# TYPE a_ratio gauge\n'
        'a_ratio{label="a \\"b\\" \\\\ \\n"} 0.25\n'
        '# HELP b_total b\n# TYPE b_total counter\nb_total{x="y"} 1000000000000000.0\n'
        "# HELP c_seconds c\n# TYPE c_seconds histogram\n"
        'c_seconds_bucket{x="y",le="0.5"} 1\nc_seconds_bucket{x="y",le="1"} 2\nc_seconds_bucket{x="y",le="+Inf"} 3\n'
        'c_seconds_sum{x="y"} 10.2\nc_seconds_count{x="y"} 3\n'
    )


def test_promtool_takes_it():
    page = render([gauge("a_ratio", "a", {"l": '\\ " \n {}, é'}, math.nan), gauge("b", "b", {}, math.inf)])
    checked = promtool("check", "metrics", page=page)
    assert checked.returncode == 0, checked.stderr
    broken = promtool("check", "metrics", page=page.replace(b"a_ratio{", b"a ratio{"))
    assert broken.returncode != 0
