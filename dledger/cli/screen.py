"""Text that is redrawn in place on a terminal, and printed one below the other anywhere else."""

from __future__ import annotations

import shutil
import sys
from types import TracebackType
from typing import Final, Self, TextIO

__all__ = ["Screen"]

_HIDE: Final = "\x1b[?25l"
_SHOW: Final = "\x1b[?25h"
_HOME: Final = "\x1b[H"
_END_OF_LINE: Final = "\x1b[K"
_END_OF_SCREEN: Final = "\x1b[J"
_CLEAR: Final = "\x1b[2J"


class Screen:
    """Use as a context manager; the cursor is shown again at the end, and the last picture stays."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = sys.stdout if stream is None else stream
        self._live = self._stream.isatty()
        self._drawn = False

    def __enter__(self) -> Self:
        if self._live:
            self._stream.write(_HIDE + _CLEAR)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live:
            self._stream.write(_SHOW)
            self._stream.flush()

    def draw(self, text: str) -> None:
        """Show ``text``. Lines that do not fit the terminal are cut, so that the picture stays in its place."""
        if not self._live:
            self._stream.write(("\n" if self._drawn else "") + text + "\n")
        else:
            columns, rows = shutil.get_terminal_size()
            lines = [line[:columns] + _END_OF_LINE for line in text.splitlines()[: rows - 1]]
            self._stream.write(_HOME + "\n".join(lines) + "\n" + _END_OF_SCREEN)
        self._drawn = True
        self._stream.flush()
