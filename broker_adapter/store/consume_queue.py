"""ConsumeQueue: where the messages of one queue stand in the commit log, 20 bytes each.

Unit ``n`` of the queue, at byte ``n * 20`` over its files: physical offset 8, size 4, tags code 8. A unit of size
2^31 - 1 at physical offset 0 is blank: it fills the front of the first file where a queue does not start at its
beginning (a slave or a new replica that has only the newer part of the log).
"""

from __future__ import annotations

from struct import Struct
from typing import Final

from broker_adapter.store.files import FdPool, SegmentFiles

__all__ = ["BLANK_SIZE", "UNIT", "UNIT_BYTES", "ConsumeQueue"]

UNIT: Final = Struct(">qiq")
UNIT_BYTES: Final = 20
BLANK_SIZE: Final = 0x7FFFFFFF
_BLANK: Final = UNIT.pack(0, BLANK_SIZE, 0)
_FILL_STEP: Final = 10_000


class ConsumeQueue:
    """One queue of one topic.

    ``next_offset`` is one past the last unit (dispatched, so readable); ``min_offset`` the first whose message is
    still in the log. Invariant: min_offset <= next_offset.
    """

    __slots__ = ("files", "min_offset", "next_offset", "queue_id", "tags", "topic", "units")

    def __init__(self, topic: str, queue_id: int, directory: str, file_bytes: int, pool: FdPool) -> None:
        self.topic = topic
        self.queue_id = queue_id
        self.files = SegmentFiles(directory, file_bytes - file_bytes % UNIT_BYTES, pool)
        self.next_offset = 0
        self.min_offset = 0
        # What the running dispatch has collected for this queue, not yet written.
        self.units = bytearray()
        self.tags: list[int] = []

    def begin_at(self, offset: int) -> None:
        """An empty queue starts at ``offset`` > 0: fill its first file up to there with blanks, as upstream does."""
        file_units = self.files.file_bytes // UNIT_BYTES
        self.next_offset = offset - offset % file_units
        self.fill_to(offset)
        self.min_offset = offset

    def fill_to(self, offset: int) -> None:
        """Write blank units up to ``offset``."""
        while self.next_offset < offset:
            count = min(_FILL_STEP, offset - self.next_offset)
            self.files.write(self.next_offset * UNIT_BYTES, _BLANK * count)
            self.next_offset += count

    def flush_units(self) -> int:
        """Write what was collected; returns the offset of its first unit."""
        first = self.next_offset
        units = bytes(self.units)
        self.files.write(first * UNIT_BYTES, units)
        self.next_offset = first + len(units) // UNIT_BYTES
        self.units = bytearray()
        self.tags = []
        return first

    def read(self, offset: int, count: int, *, now: bool) -> bytes:
        """Return up to ``count`` units from ``offset`` (dispatched ones, within one file) as bytes."""
        count = min(count, self.next_offset - offset)
        if count <= 0 or offset < 0:
            return b""
        data = self.files.read(offset * UNIT_BYTES, count * UNIT_BYTES, now=now)
        return data[: len(data) - len(data) % UNIT_BYTES]

    def unit(self, offset: int, *, now: bool) -> tuple[int, int, int] | None:
        """Return (physical offset, size, tags code) of one message, None where there is none (or a blank)."""
        data = self.read(offset, 1, now=now)
        if not data:
            return None
        physical, size, tags = UNIT.unpack(data)
        return None if size == BLANK_SIZE else (physical, size, tags)

    def truncate(self, physical_end: int) -> None:
        """Drop the units whose message ends beyond ``physical_end``, from the last back (they ascend)."""
        offset = self.next_offset
        first = self.files.first // UNIT_BYTES
        while offset > first:
            unit = self.unit(offset - 1, now=False)
            if unit is not None and unit[0] + unit[1] <= physical_end:
                break
            offset -= 1
        self.cut(offset)

    def cut(self, offset: int) -> None:
        """Set the end to ``offset`` and drop what follows in the files."""
        self.next_offset = offset
        self.files.truncate(offset * UNIT_BYTES)
        self.min_offset = min(self.min_offset, offset)

    def set_min_physical(self, physical: int) -> None:
        """Correct ``min_offset`` after the log's front has gone: binary search, units ascend."""
        low = max(self.min_offset, self.files.first // UNIT_BYTES)
        high = self.next_offset
        while low < high:
            middle = (low + high) // 2
            unit = self.unit(middle, now=False)
            if unit is None or unit[0] < physical:
                low = middle + 1
            else:
                high = middle
        self.min_offset = low
        self.files.delete_before(low * UNIT_BYTES)
