"""What the blocks of the log's files were when they were last known to be good: one CRC32C a block, in memory.

To verify entries one by one costs half a microsecond an entry, each time that they are read. A block that was written
by this process, or verified by it, is known by one number: as long as the bytes have that sum they are the bytes that
were good then, at the place where they were good. A sum never accuses anybody: where it is missing or differs, the
entries are looked at one by one, as ever.
"""

from __future__ import annotations

import contextlib
import threading
from array import array
from collections.abc import Sequence
from typing import Final

import google_crc32c

__all__ = ["BlockSums"]

_value = google_crc32c.value
_extend = google_crc32c.extend

_MAX_EDGES: Final = 64
"""Blocks of which the beginning is known: the writer's, and one for each reader that goes on."""

_MAX_SEGMENTS: Final = 64
"""With segments of 1 GiB and blocks of 32 KiB, 8 MiB of sums."""


class BlockSums:
    """Sums by position in the log. Blocks are counted from the start of each segment.

    Any thread may `add` what can never change again (what is committed); what may yet be cut is for the thread that
    writes, and cuts.
    """

    def __init__(self, segment_bytes: int, block_bytes: int) -> None:
        self._segment_bytes = segment_bytes
        self.block_bytes = block_bytes
        self._segments: dict[int, array[int]] = {}
        """Start of a segment → a sum for each whole block, 0 where it is not known."""
        self._edges: dict[int, int] = {}
        """Position within a block → sum of that block up to there."""
        self._lock = threading.Lock()

    def add(self, pos: int, buffers: Sequence[bytes], length: int) -> None:
        """Take note of ``length`` bytes at ``pos``, known to be good, within one segment."""
        at = pos % self._segment_bytes
        room = self.block_bytes - at % self.block_bytes
        with self._lock:
            before = self._edges.pop(pos, None) if room < self.block_bytes else 0
        if length < room:
            if before is not None:
                for data in buffers:
                    before = _extend(before, data)
                self._keep_edge(pos + length, before)
            return
        data = buffers[0] if len(buffers) == 1 else b"".join(buffers)
        sums = self._sums_of(pos - at)
        number = at // self.block_bytes
        if before is not None and number < len(sums):
            sums[number] = _extend(before, data[:room])
        for begin in range(room, length - self.block_bytes + 1, self.block_bytes):
            number += 1
            sums[number] = _value(data[begin : begin + self.block_bytes])
        rest = (length - room) % self.block_bytes
        if rest:
            self._keep_edge(pos + length, _value(data[-rest:]))

    def _keep_edge(self, pos: int, value: int) -> None:
        with self._lock:
            self._edges[pos] = value
            if len(self._edges) > _MAX_EDGES:
                del self._edges[next(iter(self._edges))]

    def _sums_of(self, start: int) -> array[int]:
        with self._lock:
            sums = self._segments.get(start)
            if sums is None:
                sums = self._segments[start] = array("I", bytes(4 * (self._segment_bytes // self.block_bytes)))
                if len(self._segments) > _MAX_SEGMENTS:
                    del self._segments[next(iter(self._segments))]
            return sums

    def cut(self, pos: int) -> None:
        """Forget everything from ``pos`` on: other bytes will come there."""
        start = pos - pos % self._segment_bytes
        with self._lock:
            for other in [other for other in self._segments if other > start]:
                del self._segments[other]
            sums = self._segments.get(start)
            if sums is not None:
                number = (pos - start) // self.block_bytes
                sums[number:] = array("I", bytes(4 * (len(sums) - number)))
            self._edges = {edge: value for edge, value in self._edges.items() if edge <= pos}

    def known_until(self, pos: int, end: int) -> int:
        """Return up to where all blocks from ``pos`` on are known: at most the end of the block that ``end`` is in.

        ``pos`` and ``end`` are in one segment; at most ``pos`` comes back where its own block is not known.
        """
        start = pos - pos % self._segment_bytes
        sums = self._segments.get(start)
        if sums is None:
            return pos
        first = (pos - start) // self.block_bytes
        stop = min(-((start - end) // self.block_bytes), len(sums))
        with contextlib.suppress(ValueError):  # all of them are known
            stop = sums.index(0, first, stop)
        return max(start + stop * self.block_bytes, pos) if stop > first else pos

    def match(self, begin: int, data: bytes) -> bool:
        """Whether ``data``, whole blocks from ``begin`` on, is what was good there. False where that is not known."""
        start = begin - begin % self._segment_bytes
        sums = self._segments.get(start)
        if sums is None:
            return False
        first = (begin - start) // self.block_bytes
        count = len(data) // self.block_bytes
        size = self.block_bytes
        found = array("I", [_value(data[at : at + size]) for at in range(0, count * size, size)])
        return len(data) == count * size and 0 not in found and found == sums[first : first + count]
