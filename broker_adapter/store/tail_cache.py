"""The newest messages in memory: stretches of the log as they came, not one object for each message.

Dispatch hands in the buffer that it has looked through, which costs nothing a message; whoever pulls pays for cutting
out what is pulled.
"""

from __future__ import annotations

from bisect import bisect_right
from struct import Struct
from typing import Final

from broker_adapter.message import MESSAGE_MAGIC

__all__ = ["Stretch", "TailCache"]

Stretch = tuple[int, int, bytes, int]
"""(first physical offset, end, buffer, physical offset of the buffer's byte 0)."""

_CHECK: Final = Struct(">iI20xq")
_HEAD_BYTES: Final = 36
_SLACK: Final = 8


class TailCache:
    """Stretches in log order; the oldest go once the buffers have more than ``limit_bytes``, and an eighth."""

    __slots__ = ("_byte_count", "_limit_bytes", "_starts", "_stretches")

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self._starts: list[int] = []
        self._stretches: list[Stretch] = []
        # Invariant: _starts[i] == _stretches[i][0], ascending, and no stretch begins before the one before it ends.
        self._byte_count = 0

    @property
    def byte_count(self) -> int:
        """Bytes of all buffers."""
        return self._byte_count

    def add(self, buffer: bytes, origin: int, first: int, end: int) -> None:
        """Take [first, end) of the log, which stands in ``buffer`` at ``first - origin``; it follows all before it."""
        stretches = self._stretches
        if stretches:
            last_first, last_end, last_buffer, _ = stretches[-1]
            if last_buffer is buffer and last_end <= first:
                stretches[-1] = (last_first, end, buffer, origin)
                return
            if last_end > first:  # the log was cut back: what stood there is no more
                self.clear()
        stretches.append((first, end, buffer, origin))
        self._starts.append(first)
        self._byte_count += len(buffer)
        if self._byte_count > self._limit_bytes + self._limit_bytes // _SLACK:
            self._evict()

    def _evict(self) -> None:
        count = 0
        while self._byte_count > self._limit_bytes and count < len(self._stretches):
            self._byte_count -= len(self._stretches[count][2])
            count += 1
        del self._stretches[:count], self._starts[:count]

    def find(self, physical: int) -> Stretch | None:
        """Return the stretch that a physical offset is in."""
        at = bisect_right(self._starts, physical) - 1
        if at < 0 or physical >= self._stretches[at][1]:
            return None
        return self._stretches[at]

    def message(self, physical: int) -> bytes | None:
        """Return the message that starts at ``physical``; None where none does, or it is not here."""
        stretch = self.find(physical)
        if stretch is None:
            return None
        _, end, buffer, origin = stretch
        at = physical - origin
        if end - physical < _HEAD_BYTES:
            return None
        total, magic, place = _CHECK.unpack_from(buffer, at)
        if magic != MESSAGE_MAGIC or place != physical or total > end - physical:
            return None
        return buffer[at : at + total]

    def clear(self) -> None:
        """Forget everything."""
        self._stretches.clear()
        self._starts.clear()
        self._byte_count = 0
