"""The blocking file operations that the store needs, as a protocol, and the real ones.

Two kinds of failure (house rule: fail closed): no space (`DiskFullError`, nothing is lost, the write may be repeated)
and everything else (`StorageFailedError`, final: after a failed fsync the kernel may have dropped the pages).
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
from collections.abc import Sequence
from typing import Final, Protocol

from dledger.errors import DiskFullError, StorageFailedError, StoreLockedError

__all__ = ["FileSystem", "RealFileSystem"]

_NO_SPACE: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_READ_ONLY: Final = frozenset({errno.EACCES, errno.EROFS, errno.EPERM})
_IOV_MAX: Final = 1024
_UNKNOWN_FLAG: Final = frozenset({errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS})
_RWF_DONTCACHE: Final = 0x80
"""Linux 6.14; not named by `os` yet. Pages that are given back are the next write's: on a virtual machine 512 MiB in
pieces of 1 MiB took 1.5 to 1.7 s of processor time with fresh pages (see ``_ZEROS``), 0.1 s in this way."""
_ZEROS: Final = bytes(16 * 1024)
"""Written at a time. Linux makes pages of its cache as large as the write that they are made for, and large pages of
memory that has long been free cost a virtual machine dearly: on one, 512 MiB of zeros took 1.9 s of processor time in
pieces of 1 MiB, 0.2 s in pieces of 16 KiB."""


class FileSystem(Protocol):
    """Every call blocks. Writes write all or raise. Paths use ``/``."""

    def makedirs(self, path: str) -> None:
        """Make a folder and those above it, durably; one that is there already is fine."""

    def listdir(self, path: str) -> list[str]:
        """Names in a folder, sorted; empty if there is no such folder."""

    def exists(self, path: str) -> bool: ...

    def open(self, path: str, *, create: bool = False) -> int:
        """Open for reading and writing; returns a handle."""

    def close(self, handle: int) -> None: ...

    def pread(self, handle: int, length: int, offset: int) -> bytes:
        """Up to ``length`` bytes; fewer only at the end of the file."""

    def will_need(self, handle: int, offset: int, length: int) -> None:
        """Hint: these bytes are about to be read, all of them and in order."""

    def pwrite(self, handle: int, data: bytes, offset: int) -> None: ...

    def pwritev(self, handle: int, buffers: Sequence[bytes], offset: int, *, keep: bool = True) -> None:
        """Write ``buffers`` one behind the other. ``keep`` False is a hint: nobody will soon read them."""

    def zero(self, handle: int, offset: int, length: int) -> None:
        """Write zeros (really write them: allocated blocks make later syncs cheap)."""

    def resize(self, handle: int, length: int) -> None: ...

    def size(self, handle: int) -> int: ...

    def data_end(self, handle: int) -> int:
        """An offset behind which the file holds nothing but holes."""

    def sync(self, handle: int) -> None:
        """Make a file's data durable (fdatasync). Every failure is a `StorageFailedError`, a full disk's too."""

    def sync_dir(self, path: str) -> None:
        """Make a folder's entries durable."""

    def rename(self, source: str, target: str) -> None: ...

    def unlink(self, path: str) -> None: ...

    def lock(self, path: str) -> int:
        """Take a lock file for this process; the handle holds it until closed. Raises `StoreLockedError`."""

    def disk_space(self, path: str) -> tuple[int, int]:
        """(free, total) bytes; (-1, -1) where that is not known."""

    def boot_id(self) -> str:
        """Names the boot of the machine: page cache written before survives as long as this is the same.

        Empty where it is not known: then every start counts as one after a power failure.
        """


def _failed(action: str, path: object, error: OSError) -> DiskFullError | StorageFailedError:
    """Return what a failure means. (Callers catch it themselves: a context manager costs more than a small write.)"""
    if error.errno in _NO_SPACE:
        return DiskFullError(f"{action} {path}: {error.strerror}")
    return _final(action, path, error)


def _final(action: str, path: object, error: OSError) -> StorageFailedError:
    """As `_failed`, but no error may be retried: after a failed sync, for want of space too, the pages may be gone."""
    return StorageFailedError(f"{action} {path}: {error.strerror or error}")


class RealFileSystem:
    """The operating system's files."""

    def __init__(self) -> None:
        self._paths: dict[int, str] = {}  # open handle → path, for messages
        self._drop_flag = _RWF_DONTCACHE

    def makedirs(self, path: str) -> None:
        if os.path.isdir(path):
            return
        parent = os.path.dirname(os.path.abspath(path))
        self.makedirs(parent)
        try:
            os.makedirs(path, exist_ok=True)
        except OSError as error:
            raise _failed("create folder", path, error) from error
        self.sync_dir(parent)

    def listdir(self, path: str) -> list[str]:
        try:
            return sorted(os.listdir(path)) if os.path.isdir(path) else []
        except OSError as error:
            raise _failed("list", path, error) from error

    def exists(self, path: str) -> bool:
        return os.path.exists(path)

    def open(self, path: str, *, create: bool = False) -> int:
        try:
            try:
                handle = os.open(path, os.O_RDWR | os.O_CLOEXEC | (os.O_CREAT if create else 0), 0o644)
            except OSError as error:
                if create or error.errno not in _READ_ONLY:
                    raise
                handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)  # a copy to look at; a write will say so
        except OSError as error:
            raise _failed("open", path, error) from error
        self._paths[handle] = path
        return handle

    def close(self, handle: int) -> None:
        self._paths.pop(handle, None)
        os.close(handle)

    def _path(self, handle: int) -> str:
        return self._paths.get(handle, f"handle {handle}")

    def pread(self, handle: int, length: int, offset: int) -> bytes:
        try:
            data = os.pread(handle, length, offset)
            if len(data) == length or not data:
                return data
            parts = [data]
            got = len(data)
            while got < length and (more := os.pread(handle, length - got, offset + got)):
                parts.append(more)
                got += len(more)
            return b"".join(parts)
        except OSError as error:
            raise _failed("read", self._path(handle), error) from error

    def will_need(self, handle: int, offset: int, length: int) -> None:
        with contextlib.suppress(OSError):  # a file system that takes no hints
            os.posix_fadvise(handle, offset, length, os.POSIX_FADV_WILLNEED)

    def pwrite(self, handle: int, data: bytes, offset: int) -> None:
        self.pwritev(handle, (data,), offset)

    def pwritev(self, handle: int, buffers: Sequence[bytes], offset: int, *, keep: bool = True) -> None:
        try:
            for at in range(0, len(buffers), _IOV_MAX):
                some = buffers[at : at + _IOV_MAX]
                length = sum(map(len, some))
                written = os.pwritev(handle, some, offset) if keep else self._write_and_drop(handle, some, offset)
                if written < length:
                    self._finish(handle, memoryview(b"".join(some))[written:], offset + written)
                offset += length
        except OSError as error:
            raise _failed("write", self._path(handle), error) from error

    def _write_and_drop(self, handle: int, buffers: Sequence[bytes], offset: int) -> int:
        """As ``os.pwritev``; the pages are given back when they are on the disk, where the kernel can do that."""
        if self._drop_flag:
            try:
                return os.pwritev(handle, buffers, offset, self._drop_flag)
            except OSError as error:
                if error.errno not in _UNKNOWN_FLAG:
                    raise
                self._drop_flag = 0
        return os.pwritev(handle, buffers, offset)

    def _finish(self, handle: int, rest: memoryview, offset: int) -> None:
        while rest:
            written = os.pwrite(handle, rest, offset)
            rest = rest[written:]
            offset += written

    def zero(self, handle: int, offset: int, length: int) -> None:
        try:
            while length > 0:
                length_now = min(length, len(_ZEROS))
                self._finish(handle, memoryview(_ZEROS)[:length_now], offset)
                offset += length_now
                length -= length_now
        except OSError as error:
            raise _failed("write", self._path(handle), error) from error

    def resize(self, handle: int, length: int) -> None:
        try:
            os.ftruncate(handle, length)
        except OSError as error:
            raise _failed("resize", self._path(handle), error) from error

    def size(self, handle: int) -> int:
        return os.fstat(handle).st_size

    def data_end(self, handle: int) -> int:
        end = 0
        try:
            while True:
                end = os.lseek(handle, os.lseek(handle, end, os.SEEK_DATA), os.SEEK_HOLE)
        except OSError as error:
            if error.errno == errno.ENXIO:
                return end
            return self.size(handle)  # a file system without holes

    def sync(self, handle: int) -> None:
        try:
            os.fdatasync(handle)
        except OSError as error:
            raise _final("fdatasync", self._path(handle), error) from error

    def sync_dir(self, path: str) -> None:
        try:
            handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
            try:
                os.fsync(handle)
            finally:
                os.close(handle)
        except OSError as error:
            raise _final("fsync folder", path, error) from error

    def rename(self, source: str, target: str) -> None:
        try:
            os.rename(source, target)
        except OSError as error:
            raise _failed("rename", source, error) from error

    def unlink(self, path: str) -> None:
        try:
            os.unlink(path)
        except OSError as error:
            raise _failed("remove", path, error) from error

    def lock(self, path: str) -> int:
        handle = self.open(path, create=True)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            owner = os.pread(handle, 32, 0).decode("ascii", "replace").strip() or "unknown"
            self.close(handle)
            if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                raise StorageFailedError(f"lock {path}: {error.strerror}") from error
            raise StoreLockedError(
                f"{os.path.dirname(path)} is in use by process {owner}: two nodes cannot share one folder; "
                "stop that process or give this node another storePathRootDir"
            ) from None
        try:
            os.ftruncate(handle, 0)
            os.pwrite(handle, f"{os.getpid()}\n".encode(), 0)
        except OSError as error:
            raise _failed("write", path, error) from error
        return handle

    def disk_space(self, path: str) -> tuple[int, int]:
        try:
            info = os.statvfs(path)
        except OSError:
            return -1, -1
        return info.f_bavail * info.f_frsize, info.f_blocks * info.f_frsize

    def boot_id(self) -> str:
        try:
            with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
                return file.read().strip()
        except OSError:
            return ""
