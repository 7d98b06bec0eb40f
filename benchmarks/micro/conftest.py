"""Shows at the end what each hot function costs an entry."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("pytest_benchmark", reason="needs pytest-benchmark: pip install -e '.[bench]'")


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:  # noqa: ANN401
    session = getattr(config, "_benchmarksession", None)
    found = [bench for bench in session.benchmarks if not bench.has_error] if session is not None else []
    if not found:
        return
    terminalreporter.section("cost per entry")
    width = max(len(bench.name) for bench in found)
    for bench in found:
        entries = bench.extra_info.get("entries", 1)
        low, middle = (value * 1e6 / entries for value in (bench.stats.min, bench.stats.median))
        terminalreporter.write_line(f"{bench.name:{width}}  {low:9.3f} µs least  {middle:9.3f} µs median")
