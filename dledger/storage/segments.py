"""Files of a fixed size that together make one long space of bytes: the log's data, and its index records."""

from __future__ import annotations

import threading
from collections.abc import Sequence

from dledger.errors import CorruptLogError
from dledger.storage.filesystem import FileSystem

__all__ = ["SegmentedFile"]

_NAME_DIGITS = 20

_LARGE_BYTES = 64 * 1024
"""Reads from this size on are announced. Else the kernel fetches ahead what it guesses, in pages as large as it
guesses, and as dear: see ``filesystem._ZEROS``. 512 MiB from a disk, a megabyte at a time: 1.4 to 1.6 s of processor
time, announced with a megabyte ahead 0.15 s."""


class SegmentedFile:
    """Segments named by their start offset in 20 digits, each exactly ``segment_bytes`` long (sparse at first).

    Reads may come from any thread; writes from one.
    """

    def __init__(self, fs: FileSystem, directory: str, segment_bytes: int) -> None:
        self._fs = fs
        self.directory = directory
        self.segment_bytes = segment_bytes
        self._handles: dict[int, int] = {}  # segment start → handle
        self._complete: set[int] = set()  # known to have their full length, and a durable name
        self._lock = threading.Lock()
        self.dirty: set[int] = set()
        """Segments written since they were synced."""
        fs.makedirs(directory)
        self._starts = sorted(
            int(name) for name in fs.listdir(directory) if len(name) == _NAME_DIGITS and name.isdigit()
        )

    def problem(self) -> str:
        """Say what is wrong with the set of files: one missing, misplaced, or not of full length; empty if nothing.

        The last segment may be short: a crash while it was made leaves it so, and the next write makes it whole.
        """
        for number, start in enumerate(self._starts):
            expected = number * self.segment_bytes
            if start != expected:
                return f"{self.path(expected)} is missing, though {self.path(start)} is there"
            size = self._fs.size(self.handle(start))
            if size > self.segment_bytes or (size < self.segment_bytes and start != self._starts[-1]):
                return f"{self.path(start)} has {size} bytes, not {self.segment_bytes}"
        return ""

    def remove_all(self) -> None:
        """Remove every segment (of an index, which can be made again)."""
        self.drop_after(-1)

    @property
    def starts(self) -> list[int]:
        """Where the existing segments start, ascending."""
        return list(self._starts)

    def path(self, start: int) -> str:
        return f"{self.directory}/{start:0{_NAME_DIGITS}d}"

    def start_of(self, pos: int) -> int:
        return pos - pos % self.segment_bytes

    def handle(self, start: int, *, create: bool = False) -> int:
        """Return the open file of a segment; ``create`` makes one of no length.

        Raises:
            CorruptLogError: no such segment.
        """
        handle = self._handles.get(start)
        if handle is not None:
            return handle
        with self._lock:
            handle = self._handles.get(start)
            if handle is not None:
                return handle
            path = self.path(start)
            exists = self._fs.exists(path)
            if not exists and not create:
                raise CorruptLogError(f"{path} is missing: restore it, or delete the folder and let the node catch up")
            handle = self._fs.open(path, create=not exists)
            if start not in self._starts:
                self._starts = sorted([*self._starts, start])
            self._handles[start] = handle
        return handle

    def _writable(self, start: int) -> int:
        """Return the open file of a segment, made or completed to its full length if need be, its name durable."""
        if start in self._complete:
            return self._handles[start]
        handle = self.handle(start, create=True)
        if self._fs.size(handle) < self.segment_bytes:
            self._fs.resize(handle, self.segment_bytes)
            self._fs.sync(handle)
        self._fs.sync_dir(self.directory)
        self._complete.add(start)
        return handle

    def read(self, pos: int, length: int, ahead: int = 0) -> bytes:
        """Read within one segment. About ``ahead`` bytes more will be wanted next."""
        start = self.start_of(pos)
        handle = self.handle(start)
        if length + ahead >= _LARGE_BYTES:
            self._fs.will_need(handle, pos - start, min(length + ahead, start + self.segment_bytes - pos))
        return self._fs.pread(handle, length, pos - start)

    def write(self, pos: int, buffers: Sequence[bytes], length: int, *, keep: bool = True) -> None:
        """Write ``buffers`` (``length`` bytes) at ``pos``, over as many segments as it takes.

        ``keep`` False is a hint: nobody will soon read them.
        """
        at = pos % self.segment_bytes
        start = pos - at
        if at + length <= self.segment_bytes:
            self._fs.pwritev(self._writable(start), buffers, at, keep=keep)
            self.dirty.add(start)
            return
        data = b"".join(buffers)
        head = self.segment_bytes - at
        self.write(pos, (data[:head],), head)
        self.write(start + self.segment_bytes, (data[head:],), length - head)

    def zero(self, pos: int, length: int) -> None:
        """Write zeros within one segment."""
        start = self.start_of(pos)
        self._fs.zero(self._writable(start), pos - start, length)
        self.dirty.add(start)

    def data_end(self, start: int) -> int:
        """Absolute position behind which a segment holds nothing but holes."""
        return start + min(self._fs.data_end(self.handle(start)), self.segment_bytes)

    def sync(self) -> None:
        """Make everything written durable."""
        for start in sorted(self.dirty):
            self._fs.sync(self.handle(start))
            self.dirty.discard(start)

    def drop_after(self, start: int) -> bool:
        """Remove segments behind the one at ``start``; returns whether there were any."""
        gone = [other for other in self._starts if other > start]
        for other in reversed(gone):
            with self._lock:
                handle = self._handles.pop(other, None)
                if handle is not None:
                    self._fs.close(handle)
                self._fs.unlink(self.path(other))
                self._starts = [kept for kept in self._starts if kept != other]
            self._complete.discard(other)
            self.dirty.discard(other)
        if gone:
            self._fs.sync_dir(self.directory)
        return bool(gone)

    def close(self) -> None:
        with self._lock:
            for handle in self._handles.values():
                self._fs.close(handle)
            self._handles.clear()
