"""Files in memory: ``storeType=MEMORY``, tests, and the ground of the simulator's faulty disk.

With ``track`` it knows what has been synced: `MemoryFileSystem.crash` drops the rest, or any subset of it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

from dledger.errors import StorageFailedError, StoreLockedError

__all__ = ["MemoryFile", "MemoryFileSystem", "UnsyncedWrite"]

_PAGE: Final = 4096
_ZERO_PAGE: Final = bytes(_PAGE)


@dataclass(slots=True)
class UnsyncedWrite:
    """A write that a crash may undo, wholly or in part. ``data`` None: a resize to ``offset``."""

    offset: int
    data: bytes | None


@dataclass(slots=True)
class MemoryFile:
    """Sparse contents, the durable contents, and the writes between them."""

    pages: dict[int, bytearray] = field(default_factory=dict)
    length: int = 0
    durable_pages: dict[int, bytearray] = field(default_factory=dict)
    durable_length: int = 0
    unsynced: list[UnsyncedWrite] = field(default_factory=list)
    links: int = 1

    def read(self, offset: int, length: int) -> bytes:
        length = max(0, min(length, self.length - offset))
        parts: list[bytes] = []
        while length > 0:
            number, at = divmod(offset, _PAGE)
            take = min(length, _PAGE - at)
            page = self.pages.get(number)
            parts.append(_ZERO_PAGE[:take] if page is None else bytes(page[at : at + take]))
            offset += take
            length -= take
        return b"".join(parts)

    def write(self, offset: int, data: bytes) -> None:
        _put(self.pages, offset, data)
        self.length = max(self.length, offset + len(data))

    def resize(self, length: int) -> None:
        _cut(self.pages, length)
        self.length = length


def _put(pages: dict[int, bytearray], offset: int, data: bytes) -> None:
    done = 0
    while done < len(data):
        number, at = divmod(offset + done, _PAGE)
        take = min(len(data) - done, _PAGE - at)
        page = pages.get(number)
        chunk = data[done : done + take]
        if page is None:
            if chunk.count(0) != take:
                page = pages[number] = bytearray(_PAGE)
                page[at : at + take] = chunk
        else:
            page[at : at + take] = chunk
        done += take


def _cut(pages: dict[int, bytearray], length: int) -> None:
    last, at = divmod(length, _PAGE)
    for number in [number for number in pages if number > last or (number == last and at == 0)]:
        del pages[number]
    if at and last in pages:
        pages[last][at:] = bytes(_PAGE - at)


class MemoryFileSystem:
    """`FileSystem` in memory. ``track`` False: nothing is remembered of what is synced (no `crash`)."""

    def __init__(self, *, track: bool = True) -> None:
        self._track = track
        self.files: dict[str, MemoryFile] = {}
        self.durable_files: dict[str, MemoryFile] = {}
        self.folders: set[str] = set()
        self._handles: dict[int, tuple[str, MemoryFile]] = {}
        self._next_handle = 3
        self._locks: set[str] = set()
        self._boot = 1

    # Subclasses put faults here: called before each operation with its name and path.
    def before(self, operation: str, path: str) -> None:
        """Hook for faults; does nothing here."""

    def makedirs(self, path: str) -> None:
        self.before("makedirs", path)
        while path and path not in self.folders:
            self.folders.add(path)
            path = os.path.dirname(path)

    def listdir(self, path: str) -> list[str]:
        prefix = path.rstrip("/") + "/"
        names = {name[len(prefix) :].split("/")[0] for name in [*self.files, *self.folders] if name.startswith(prefix)}
        return sorted(names)

    def exists(self, path: str) -> bool:
        return path in self.files or path in self.folders

    def open(self, path: str, *, create: bool = False) -> int:
        self.before("open", path)
        file = self.files.get(path)
        if file is None:
            if not create:
                raise StorageFailedError(f"open {path}: no such file")
            file = self.files[path] = MemoryFile()
        handle = self._next_handle
        self._next_handle += 1
        self._handles[handle] = (path, file)
        return handle

    def close(self, handle: int) -> None:
        path, _ = self._handles.pop(handle)
        self._locks.discard(f"{path}#{handle}")

    def path_of(self, handle: int) -> str:
        return self._handles[handle][0]

    def pread(self, handle: int, length: int, offset: int) -> bytes:
        path, file = self._handles[handle]
        self.before("pread", path)
        return file.read(offset, length)

    def will_need(self, handle: int, offset: int, length: int) -> None:
        """Nothing is nearer than memory."""

    def pwrite(self, handle: int, data: bytes, offset: int) -> None:
        path, file = self._handles[handle]
        self.before("pwrite", path)
        file.write(offset, data)
        if self._track:
            file.unsynced.append(UnsyncedWrite(offset, bytes(data)))

    def pwritev(self, handle: int, buffers: Sequence[bytes], offset: int, *, keep: bool = True) -> None:
        self.pwrite(handle, b"".join(buffers), offset)

    def zero(self, handle: int, offset: int, length: int) -> None:
        path, file = self._handles[handle]
        self.before("zero", path)
        first, last = offset // _PAGE, (offset + length - 1) // _PAGE
        if any(number in file.pages for number in range(first, last + 1)):
            data = bytes(length)
            file.write(offset, data)
            if self._track:
                file.unsynced.append(UnsyncedWrite(offset, data))
        else:
            file.length = max(file.length, offset + length)

    def resize(self, handle: int, length: int) -> None:
        path, file = self._handles[handle]
        self.before("resize", path)
        file.resize(length)
        if self._track:
            file.unsynced.append(UnsyncedWrite(length, None))

    def size(self, handle: int) -> int:
        return self._handles[handle][1].length

    def data_end(self, handle: int) -> int:
        file = self._handles[handle][1]
        return min(file.length, (max(file.pages) + 1) * _PAGE) if file.pages else 0

    def sync(self, handle: int) -> None:
        path, file = self._handles[handle]
        self.before("sync", path)
        self._make_durable(file)

    def _make_durable(self, file: MemoryFile) -> None:
        for write in file.unsynced:
            self._replay(file, write)
        file.unsynced.clear()

    @staticmethod
    def _replay(file: MemoryFile, write: UnsyncedWrite) -> None:
        if write.data is None:
            _cut(file.durable_pages, write.offset)
            file.durable_length = write.offset
        else:
            _put(file.durable_pages, write.offset, write.data)
            file.durable_length = max(file.durable_length, write.offset + len(write.data))

    def sync_dir(self, path: str) -> None:
        self.before("sync_dir", path)
        if not self._track:
            return
        prefix = path.rstrip("/") + "/"
        for name in [name for name in self.durable_files if os.path.dirname(name) + "/" == prefix]:
            if name not in self.files:
                del self.durable_files[name]
        for name, file in self.files.items():
            if os.path.dirname(name) + "/" == prefix:
                self.durable_files[name] = file

    def rename(self, source: str, target: str) -> None:
        self.before("rename", source)
        if source not in self.files:
            raise StorageFailedError(f"rename {source}: no such file")
        self.files[target] = self.files.pop(source)

    def unlink(self, path: str) -> None:
        self.before("unlink", path)
        if self.files.pop(path, None) is None:
            raise StorageFailedError(f"remove {path}: no such file")

    def lock(self, path: str) -> int:
        if any(lock.split("#")[0] == path for lock in self._locks):
            raise StoreLockedError(f"{os.path.dirname(path)} is in use: two nodes cannot share one folder")
        handle = self.open(path, create=True)
        self._locks.add(f"{path}#{handle}")
        return handle

    def disk_space(self, path: str) -> tuple[int, int]:
        return -1, -1

    def boot_id(self) -> str:
        return f"boot-{self._boot}"

    # ------------------------------------------------------------------ crashes

    def kill(self) -> None:
        """The process dies (kill -9): the page cache stays, handles and locks are gone."""
        self._handles.clear()
        self._locks.clear()

    def crash(
        self,
        keep: Callable[[str, UnsyncedWrite], bytes | None] | None = None,
        keep_name: Callable[[str], bool] | None = None,
    ) -> None:
        """The power fails: what was not synced is lost, but for what ``keep`` says.

        ``keep(path, write)`` returns the part of ``write.data`` that reached the disk (a prefix, all of it, or None).
        Writes are offered in order, so later ones may stay while earlier ones go. Names not made durable by
        `sync_dir` (new, renamed or removed ones) are as before, but for those that ``keep_name(path)`` takes over.
        """
        if keep_name is not None:
            for path in sorted({*self.files, *self.durable_files}):
                if self.files.get(path) is not self.durable_files.get(path) and keep_name(path):
                    if path in self.files:
                        self.durable_files[path] = self.files[path]
                    else:
                        del self.durable_files[path]
        self.kill()
        self._boot += 1
        seen: set[int] = set()
        for path, file in [*self.durable_files.items(), *self.files.items()]:
            if id(file) in seen:
                continue
            seen.add(id(file))
            for write in file.unsynced:
                if keep is None:
                    break
                kept = keep(path, write)
                if kept is not None:
                    self._replay(file, UnsyncedWrite(write.offset, kept) if write.data is not None else write)
            file.unsynced.clear()
            file.pages = {number: bytearray(page) for number, page in file.durable_pages.items()}
            file.length = file.durable_length
        self.files = dict(self.durable_files)

    def wipe(self, folder: str) -> None:
        """The disk was replaced: everything below ``folder`` is gone."""
        self.kill()
        prefix = folder.rstrip("/") + "/"
        for table in (self.files, self.durable_files):
            for name in [name for name in table if name.startswith(prefix)]:
                del table[name]
