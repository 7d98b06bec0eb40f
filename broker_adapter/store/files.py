"""Runs of equally long files named by their start offset: what commit log and consume queues are made of.

Plain ``pread``/``pwrite`` on a pool of descriptors, no mappings: a full disk is an error here, not a SIGBUS, and the
page cache is the same. Reads come in two kinds: *now*, which raises `ColdReadError` rather than wait for the disk
(Linux's ``RWF_NOWAIT``), and *waiting*, for worker threads and recovery. So the event loop serves what is in memory and
sends the rest through a thread.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections import OrderedDict
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from dledger.errors import DiskFullError, StorageFailedError

__all__ = ["ColdReadError", "FdPool", "SegmentFiles", "storage_error", "sync_paths", "warm"]

_NAME_DIGITS: Final = 20
_DEFAULT_FDS: Final = 256
_NOWAIT: Final = getattr(os, "RWF_NOWAIT", 0)
WARM_BYTES: Final = 512 * 1024


class ColdReadError(Exception):
    """The bytes are not in memory: `warm` them in a thread and ask again."""

    def __init__(self, path: str, offset: int, length: int) -> None:
        super().__init__(f"{path} at {offset}")
        self.path = path
        self.offset = offset
        self.length = length


def warm(path: str, offset: int, length: int) -> None:
    """Read bytes for the page cache's sake (in a worker thread), with read-ahead. A file that is gone is no error."""
    with contextlib.suppress(FileNotFoundError):
        fd = os.open(path, os.O_RDONLY)
        try:
            os.pread(fd, max(length, WARM_BYTES), offset)
        finally:
            os.close(fd)


def sync_paths(paths: Iterable[str]) -> None:
    """fdatasync each file (in a worker thread). A file deleted meanwhile needs none.

    Raises:
        StorageFailedError: final; the kernel may have dropped the pages.
    """
    for path in paths:
        try:
            fd = os.open(path, os.O_RDWR)
        except FileNotFoundError:
            continue
        try:
            os.fdatasync(fd)
        except OSError as error:
            raise StorageFailedError(f"{path}: fdatasync: {error}") from error
        finally:
            os.close(fd)


class FdPool:
    """At most ``limit`` open descriptors, least recently used closed first. Event loop only."""

    def __init__(self, limit: int = _DEFAULT_FDS) -> None:
        self._limit = limit
        self._open: OrderedDict[str, int] = OrderedDict()
        self._nowait_works = _NOWAIT != 0

    def get(self, path: str, *, writable: bool = False) -> int:
        """Return a descriptor, opened on demand. A path is always asked for with the same ``writable``.

        Raises:
            FileNotFoundError: no such file (it is never created here).
        """
        fd = self._open.get(path)
        if fd is not None:
            self._open.move_to_end(path)
            return fd
        fd = os.open(path, os.O_RDWR if writable else os.O_RDONLY)
        self._open[path] = fd
        if len(self._open) > self._limit:
            _, oldest = self._open.popitem(last=False)
            os.close(oldest)
        return fd

    def forget(self, path: str) -> None:
        """Close one, before the file is deleted or replaced."""
        fd = self._open.pop(path, None)
        if fd is not None:
            os.close(fd)

    def close(self) -> None:
        while self._open:
            os.close(self._open.popitem()[1])

    def read(self, path: str, offset: int, length: int, *, now: bool, writable: bool = False) -> bytes:
        """Return up to ``length`` bytes at ``offset``.

        Raises:
            ColdReadError: ``now``, and not all of it is in memory.
            FileNotFoundError: no such file.
        """
        fd = self.get(path, writable=writable)
        if not now or not self._nowait_works:
            return os.pread(fd, length, offset)
        buffer = bytearray(length)
        try:
            count = os.preadv(fd, (buffer,), offset, _NOWAIT)
        except BlockingIOError:
            raise ColdReadError(path, offset, length) from None
        except OSError as error:
            if error.errno not in {errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS}:
                raise StorageFailedError(f"{path}: read at {offset}: {error}") from error
            self._nowait_works = False
            return os.pread(fd, length, offset)
        if count == length:
            return bytes(buffer)
        if count > 0 and offset + count < os.fstat(fd).st_size:
            raise ColdReadError(path, offset, length)
        return bytes(buffer[:count])


class SegmentFiles:
    """Files of ``file_bytes`` each in one folder, ``%020d`` of their start offset. Holes at the front only.

    ``starts`` are the files there are, ascending and adjacent. Files are created at full length (sparse), as RocketMQ
    maps them.
    """

    def __init__(self, directory: str, file_bytes: int, pool: FdPool) -> None:
        self.directory = directory
        self.file_bytes = file_bytes
        self.starts: list[int] = []
        self.dirty: set[str] = set()
        self.intact_end = 0
        """Where the last file ended when `load` found it: what is before it may be trusted as far as it ever was."""
        self._pool = pool
        self._made = False

    def load(self) -> None:
        """Find the files.

        Raises:
            StorageFailedError: a hole between files, a name or a length that does not fit.
        """
        self.starts = []
        if not os.path.isdir(self.directory):
            return
        self._made = True
        names = sorted(name for name in os.listdir(self.directory) if len(name) == _NAME_DIGITS and name.isdigit())
        self.starts = [int(name) for name in names]
        sizes = [os.path.getsize(self.path(start)) for start in self.starts]
        for number, (start, size) in enumerate(zip(self.starts, sizes, strict=True)):
            path = self.path(start)
            if start % self.file_bytes:
                raise StorageFailedError(
                    f"{path}: the name is no multiple of {self.file_bytes}: is another file size set?"
                )
            if number and start != self.starts[number - 1] + self.file_bytes:
                raise StorageFailedError(f"{path}: the file before it, {start - self.file_bytes:020d}, is missing")
            if size > self.file_bytes or (size < self.file_bytes and number < len(sizes) - 1):
                raise StorageFailedError(f"{path}: {size} bytes, expected {self.file_bytes}: is another file size set?")
        if sizes and sizes[-1] < self.file_bytes:  # cut short by a crash or a copy: the missing part reads as zeros
            self.intact_end = self.starts[-1] + sizes[-1]
            os.truncate(self.path(self.starts[-1]), self.file_bytes)
        else:
            self.intact_end = self.limit

    @property
    def first(self) -> int:
        """Start of the first file, 0 where there is none."""
        return self.starts[0] if self.starts else 0

    @property
    def limit(self) -> int:
        """End of the last file."""
        return self.starts[-1] + self.file_bytes if self.starts else 0

    def path(self, start: int) -> str:
        return f"{self.directory}/{start:020d}"

    def covers(self, pos: int) -> bool:
        return bool(self.starts) and self.starts[0] <= pos < self.starts[-1] + self.file_bytes

    def read(self, pos: int, length: int, *, now: bool) -> bytes:
        """Return ``length`` bytes at ``pos``, all within one file; fewer where the file is not there."""
        start = pos - pos % self.file_bytes
        length = min(length, start + self.file_bytes - pos)
        if not self.covers(pos):
            return b""
        try:
            return self._pool.read(self.path(start), pos - start, length, now=now, writable=True)
        except FileNotFoundError:
            return b""

    def write(self, pos: int, data: bytes) -> None:
        """Write at ``pos``, over as many files as it takes, creating them.

        Raises:
            DiskFullError: no space; some of it may be written.
            StorageFailedError: any other failure.
        """
        at = 0
        while at < len(data):
            start = pos - pos % self.file_bytes
            room = start + self.file_bytes - pos
            path = self.path(start)
            if not self.starts or start > self.starts[-1] or start < self.starts[0]:
                self._create(start)
            part = data if at == 0 and len(data) <= room else data[at : at + room]
            self._pwrite(path, pos - start, part)
            self.dirty.add(path)
            at += len(part)
            pos += len(part)

    def _pwrite(self, path: str, offset: int, part: bytes) -> None:
        try:
            fd = self._pool.get(path, writable=True)
            done = os.pwrite(fd, part, offset)
            while done < len(part):
                done += os.pwrite(fd, part[done:], offset + done)
        except OSError as error:
            raise storage_error(path, error) from error

    def _create(self, start: int) -> None:
        if self.starts and start != self.starts[-1] + self.file_bytes:
            raise StorageFailedError(f"{self.directory}: a write at {start} would leave a hole after {self.limit}")
        path = self.path(start)
        try:
            if not self._made:
                os.makedirs(self.directory, exist_ok=True)
                self._made = True
            fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
            try:
                os.ftruncate(fd, self.file_bytes)
            finally:
                os.close(fd)
        except OSError as error:
            raise storage_error(path, error) from error
        self.starts.append(start)

    def truncate(self, pos: int) -> None:
        """Drop everything from ``pos`` on: later files are deleted, the rest of the last is zeros.

        Stale bytes must not stay: the next crash could find old messages exactly behind a new torn tail.
        """
        while self.starts and self.starts[-1] >= pos and (len(self.starts) > 1 or pos <= self.starts[0]):
            self._delete(self.starts.pop())
        if self.starts and self.starts[-1] <= pos < self.limit:
            path = self.path(self.starts[-1])
            os.truncate(path, pos - self.starts[-1])
            os.truncate(path, self.file_bytes)
            self.dirty.add(path)

    def delete_before(self, pos: int, *, keep_last: bool = True) -> int:
        """Delete the files that end at or before ``pos``; returns how many. The last file stays."""
        count = 0
        while self.starts and self.starts[0] + self.file_bytes <= pos and (len(self.starts) > 1 or not keep_last):
            self._delete(self.starts.pop(0))
            count += 1
        return count

    def destroy(self) -> None:
        """Delete all files and the folder."""
        while self.starts:
            self._delete(self.starts.pop())
        self._made = False
        with contextlib.suppress(OSError):
            os.rmdir(self.directory)

    def _delete(self, start: int) -> None:
        path = self.path(start)
        self._pool.forget(path)
        self.dirty.discard(path)
        with contextlib.suppress(FileNotFoundError):
            Path(path).unlink()

    def modified_ms(self, start: int) -> int:
        """Time of the last write of a file."""
        return os.stat(self.path(start)).st_mtime_ns // 1_000_000


def storage_error(path: str, error: OSError) -> DiskFullError | StorageFailedError:
    if error.errno in {errno.ENOSPC, errno.EDQUOT}:
        return DiskFullError(f"{path}: {error.strerror}")
    return StorageFailedError(f"{path}: {error}")
