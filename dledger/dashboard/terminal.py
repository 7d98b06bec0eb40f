"""The watcher's present as lines of text: what ``dledger top`` shows. Pure."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Final

from dledger.cli.table import format_count, format_duration, render_table
from dledger.dashboard.history import Event, History
from dledger.dashboard.view import health_words
from dledger.dashboard.watcher import Watcher

__all__ = ["frame", "spark"]

_BARS: Final = "▁▂▃▄▅▆▇█"
_SPARK_POINTS: Final = 60
_NUMERIC: Final = frozenset({3, 4, 5, 6, 7, 8})


def spark(values: Sequence[float | None]) -> str:
    """Return bars from 0 to the largest value; a blank where nothing was measured."""
    top = max((value for value in values if value is not None), default=0.0) or 1.0
    return "".join(
        " " if value is None else _BARS[min(int(value / top * len(_BARS)), len(_BARS) - 1)] for value in values
    )


def frame(watcher: Watcher, events: int = 8) -> list[str]:
    """Return the whole picture; ``events`` of the newest sentences at its end."""
    group = watcher.group_view()
    _, words = health_words(group)
    leader = group.leader
    since = f" for {format_duration(leader.role_since_ms)}" if leader else ""
    return [
        f"GROUP {group.group}   {words}",
        f"leader {group.leader_id or 'NONE'}   term {format_count(group.term)}{since}",
        "",
        *_rates(watcher.history),
        "",
        *_nodes(watcher).splitlines(),
        "",
        *_sentences(list(watcher.history.events), events),
    ]


def _rates(history: History) -> list[str]:
    points = list(history.points)[-_SPARK_POINTS:]
    last = points[-1] if points else None
    return [
        f"commits/s {_figure(last.rate if last else None):>8}  {spark([point.rate for point in points])}",
        f"p50 ms    {_figure(last.p50 if last else None):>8}  {spark([point.p50 for point in points])}",
        f"p99 ms    {_figure(last.p99 if last else None):>8}  {spark([point.p99 for point in points])}",
    ]


def _figure(value: float | None) -> str:
    if value is None:
        return "-"
    return format_count(round(value)) if value >= 100 or value == 0 else f"{value:.1f}"


def _nodes(watcher: Watcher) -> str:
    header = ("NODE", "ADDRESS", "ROLE", "TERM", "LAST", "COMMIT", "LAG", "SENT/S", "FSYNC P99", "NOTE")
    rows = []
    views = watcher.views
    for row in watcher.group_view().rows:
        view = views.get(row.node_id)
        sent = sum(sum(kinds.values()) for kinds in view.sent_rates.values()) if view is not None else 0.0
        fsync = row.status.fsync_p99_us / 1000 if row.status is not None and row.status.fsync_p99_us >= 0 else None
        rows.append(
            (
                row.node_id,
                row.address,
                row.role.upper() if row.role in {"leader", "down"} else row.role,
                *(format_count(number) for number in (row.term, row.last_index, row.commit_index)),
                "-" if row.role == "leader" else format_count(row.lag_entries),
                _figure(sent) if row.up else "-",
                "-" if fsync is None else f"{fsync:.1f} ms",
                row.note,
            )
        )
    return render_table(header, rows, _NUMERIC)


def _sentences(events: list[Event], count: int) -> list[str]:
    shown = sorted((event for event in events if event.kind != "minor"), key=lambda event: event.t)[-count:]
    return [f"{time.strftime('%H:%M:%S', time.localtime(event.t))}  {event.text}" for event in shown]
