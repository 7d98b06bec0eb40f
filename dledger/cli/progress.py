"""Progress on a terminal: a rich bar where rich is installed, else one line that is rewritten. Silent elsewhere."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import TYPE_CHECKING, Final, Self, TextIO

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress
    from rich.progress import TaskID

__all__ = ["Progress"]

_REDRAW_S: Final = 0.1


class Progress:
    """Counts things done and shows them on ``stream`` (standard error) at most ten times a second.

    ``total``: of what `advance` counts, None if unknown. Use as a context manager: the line is gone at the end.
    """

    def __init__(
        self, label: str, total: int | None = None, *, stream: TextIO | None = None, off: bool = False
    ) -> None:
        self._label = label
        self._total = total
        self._stream = sys.stderr if stream is None else stream
        self._shown = not off and self._stream.isatty()
        self._done = 0
        self._next_draw = 0.0
        self._rich: RichProgress | None = None
        self._task: TaskID | None = None

    def __enter__(self) -> Self:
        if self._shown:
            self._rich = _make_rich(self._stream, self._total is not None)
            if self._rich is not None:
                self._task = self._rich.add_task(self._label, total=self._total)
                self._rich.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._rich is not None:
            self._rich.stop()
        elif self._shown and self._next_draw:
            self._stream.write("\r\x1b[K")
            self._stream.flush()

    def advance(self, count: int = 1) -> None:
        """Count ``count`` more. Cheap enough to call for every entry."""
        self._done += count
        if self._shown:
            now = time.monotonic()
            if now >= self._next_draw:
                self._next_draw = now + _REDRAW_S
                self._draw()

    def _draw(self) -> None:
        if self._rich is not None and self._task is not None:
            self._rich.update(self._task, completed=self._done, refresh=True)
            return
        of = "" if self._total is None else f"/{self._total} ({100 * self._done // max(self._total, 1)} %)"
        self._stream.write(f"\r\x1b[K{self._label} {self._done}{of}")
        self._stream.flush()


def _make_rich(stream: TextIO, has_total: bool) -> RichProgress | None:
    try:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
        from rich.progress import Progress as Bar
    except ImportError:
        return None
    columns = [TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn()]
    columns.append(TimeRemainingColumn() if has_total else TimeElapsedColumn())
    return Bar(*columns, console=Console(file=stream), transient=True, auto_refresh=False)
