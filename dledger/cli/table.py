"""Plain tables: columns aligned, nothing to install, the same on a terminal and in a pipe."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["format_count", "format_duration", "format_size", "render_table"]


def render_table(header: Sequence[str], rows: Sequence[Sequence[str]], right: frozenset[int] = frozenset()) -> str:
    """Return header and rows with two spaces between columns; columns in ``right`` are right-aligned."""
    table = [list(header), *[list(row) for row in rows]]
    widths = [max(len(row[column]) for row in table) for column in range(len(header))]
    lines = []
    for row in table:
        cells = [
            text.rjust(width) if column in right else text.ljust(width)
            for column, (text, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def format_count(value: int) -> str:
    """Write a count in groups of three digits; ``-`` for -1 (unknown)."""
    return "-" if value < 0 else f"{value:,}".replace(",", " ")


def format_size(value: int) -> str:
    """Write bytes in the largest unit below them; ``-`` for a negative number (unknown)."""
    if value < 0:
        return "-"
    size = float(value)
    for unit in ("B", "K", "M", "G"):
        if size < 1024:
            return f"{size:.0f} {unit}"
        size /= 1024
    return f"{size:.1f} T"


def format_duration(milliseconds: int) -> str:
    """Write a duration in its two largest units."""
    if milliseconds < 0:
        return "-"
    seconds = milliseconds // 1000
    if seconds < 60:
        return f"{seconds} s"
    minutes, seconds = divmod(seconds, 60)
    if minutes < 60:
        return f"{minutes} m {seconds} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} m" if hours < 48 else f"{hours // 24} d {hours % 24} h"
