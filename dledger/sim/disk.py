"""The simulated disk: a page cache over a platter, and every way in which the two can betray.

A `SimDisk` outlives the processes that use it. What is written stands in the cache at once; the platter gets it when
the file is synced. kill -9 loses nothing of that. A power failure leaves, of what was not synced, any subset, torn
anywhere; of unsynced names (creations, renames, deletions) a beginning, as journals do. A failed sync loses pages and
calls them clean, as Linux does. Silent faults (a write dropped or gone astray below the cache, bits flipped at rest)
show only when the cache has lost the page: after `SimDisk.evict` or a power failure.

`SimDiskExecutor` stands for the write thread and the readers: a job takes virtual time, its effects come at one instant
of that time, and its caller hears of them later. `FaultyFileSystem.crash_after` ends the process between any two
operations inside a job.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any, Final, TypeVar, TypeVarTuple, Unpack

from dledger.errors import DiskFullError, StorageFailedError, StoreLockedError
from dledger.sim.loop import Process, SimLoop
from dledger.sim.trace import Trace

__all__ = ["DiskTimes", "FaultyFileSystem", "PowerLoss", "SimDisk", "SimDiskExecutor", "SimulatedCrash"]

_T = TypeVar("_T")
_Args = TypeVarTuple("_Args")

_SECTOR_BYTES: Final = 512
_QUICK_S: Final = 0.001


class SimulatedCrash(BaseException):
    """The process ends here, in the middle of a job."""


@dataclass(frozen=True, slots=True)
class PowerLoss:
    """What a power failure does to unsynced writes: each is kept with probability ``keep``, torn with ``tear``."""

    keep: float = 0.5
    tear: float = 0.3


class _File:
    """One file: its bytes as the cache has them, as the platter has them, and what lies between."""

    __slots__ = ("data", "durable", "high_water", "pending")

    def __init__(self) -> None:
        self.data = bytearray()
        self.durable = bytearray()
        self.pending: list[tuple[int, bytes | None]] = []  # (offset, bytes), or (size, None) for a truncation
        self.high_water = 0  # blocks are allocated up to here

    def write(self, offset: int, data: bytes) -> None:
        end = offset + len(data)
        if end > len(self.data):
            self.data.extend(bytes(end - len(self.data)))
        self.data[offset:end] = data
        self.pending.append((offset, data))
        self.high_water = max(self.high_water, end)

    def resize(self, size: int) -> None:
        _resize(self.data, size)
        self.pending.append((size, None))
        self.high_water = min(self.high_water, size)

    def settle(self, offset: int, data: bytes | None) -> None:
        """Bring one pending change to the platter."""
        if data is None:
            _resize(self.durable, offset)
            return
        end = offset + len(data)
        if end > len(self.durable):
            self.durable.extend(bytes(end - len(self.durable)))
        self.durable[offset:end] = data


def _resize(buffer: bytearray, size: int) -> None:
    if size < len(buffer):
        del buffer[size:]
    else:
        buffer.extend(bytes(size - len(buffer)))


class SimDisk:
    """One node's disk. Faults are armed from outside and happen to the next operations.

    Attributes:
        boot: changes with every power failure.
        full: writes that need new blocks fail with ENOSPC.
        sync_errors: so many of the next syncs fail with EIO.
        silent: "drop" or "misdirect": what happens, once, to a write of a file that ``silent_file`` accepts.
        damage: what has been done to this disk behind its back, in words.
    """

    def __init__(self, name: str, rng: Random, trace: Trace) -> None:
        self.name = name
        self._rng = rng
        self._trace = trace
        self.boot = 1
        self.full = False
        self.sync_errors = 0
        self.silent = ""
        self.silent_file: Callable[[str], bool] = lambda _path: True
        self.damage: list[str] = []
        self.files: dict[str, _File] = {}
        self.folders: set[str] = {"/"}
        self.locks: dict[str, Process] = {}
        self._durable_names: dict[str, _File] = {}
        self._pending_names: list[tuple[str, str | None, _File | None]] = []  # (path, renamed from, file or gone)
        self.syncs = self.writes = self.syncs_failed = 0
        self.was_full = False
        self.lied = False
        """Whether it has called a write durable that it dropped or put elsewhere."""

    # --- what the file system does; OSError as from the kernel ---

    def create(self, path: str) -> _File:
        if self.full and self._rng.random() < 0.5:
            raise _os_error(errno.ENOSPC, path)
        file = self.files[path] = _File()
        self._pending_names.append((path, None, file))
        return file

    def rename(self, path: str, new_path: str) -> None:
        file = self.files.pop(path)
        self.files[new_path] = file
        self._pending_names.append((new_path, path, file))

    def unlink(self, path: str) -> None:
        del self.files[path]
        self._pending_names.append((path, None, None))

    def write(self, path: str, file: _File, offset: int, data: bytes) -> int:
        """Write into the cache; returns how many bytes, fewer than asked where the disk is nearly full."""
        self.writes += 1
        if self.full and offset + len(data) > file.high_water:
            room = max(0, file.high_water - offset)
            if room == 0 and self._rng.random() < 0.3:
                room = self._rng.randrange(1, len(data) + 1) - 1  # the last blocks: a short write comes first
            if room == 0:
                raise _os_error(errno.ENOSPC, path)
            data = data[:room]
        file.write(offset, data)
        return len(data)

    def sync(self, path: str, file: _File) -> None:
        """fdatasync: bring everything pending to the platter, unless a fault says otherwise."""
        self.syncs += 1
        if self.sync_errors > 0:
            self.sync_errors -= 1
            self.syncs_failed += 1
            for offset, data in file.pending:
                if self._rng.random() < 0.5:
                    file.settle(offset, data)
            file.pending.clear()  # the pages are clean now, the kernel says
            self._trace.add(self.name, "sync_failed", path)
            raise _os_error(errno.EIO, path)
        pending, file.pending = file.pending, []
        if self.silent and pending and self.silent_file(path):
            self._sync_silently_wrong(path, file, pending)
            return
        for offset, data in pending:
            file.settle(offset, data)

    def _sync_silently_wrong(self, path: str, file: _File, pending: list[tuple[int, bytes | None]]) -> None:
        writes = [number for number, (_, data) in enumerate(pending) if data and data.strip(b"\0")]
        victim = self._rng.choice(writes) if writes else -1
        for number, (offset, data) in enumerate(pending):
            if number != victim or data is None:
                file.settle(offset, data)
                continue
            what = f"{self.silent} of {len(data)} bytes at {offset} of {path}"
            if self.silent == "misdirect":
                astray = self._rng.randrange(max(1, len(file.durable) - len(data)))
                file.settle(astray, data)
                what += f" to {astray}"
            self.note_damage(what)
        if writes:
            self.silent = ""
            self.lied = True

    def sync_names(self, folder: str) -> None:
        """fsync of a folder: its names are on the platter, and with them all that came before in the journal."""
        self.syncs += 1
        last = max(
            (n for n, (path, _, _) in enumerate(self._pending_names) if os.path.dirname(path) == folder), default=-1
        )
        self._settle_names(last + 1)

    def _settle_names(self, count: int) -> None:
        for path, renamed_from, file in self._pending_names[:count]:
            if renamed_from is not None:
                self._durable_names.pop(renamed_from, None)
            if file is None:
                self._durable_names.pop(path, None)
            else:
                self._durable_names[path] = file
        del self._pending_names[:count]

    def durable_bytes(self, path: str) -> bytearray | None:
        """What a power failure would leave of a file at least; None if not even its name. Not to be changed."""
        file = self._durable_names.get(path)
        return None if file is None else file.durable

    # --- faults ---

    @property
    def betrayed(self) -> bool:
        """Whether this disk has ever failed a sync or lost what it had called durable."""
        return self.syncs_failed > 0 or bool(self.damage)

    def fill(self, full: bool) -> None:
        """Leave no room, or make some again."""
        self.full = full
        self.was_full |= full

    def note_damage(self, what: str) -> None:
        self.damage.append(what)
        self._trace.add(self.name, "damage", what)

    def release_locks(self, process: Process) -> None:
        """A process has ended."""
        for path in [path for path, owner in self.locks.items() if owner is process]:
            del self.locks[path]

    def power_failure(self, loss: PowerLoss) -> None:
        """Forget the cache: of what was not synced, some is on the platter, some is not, some is torn."""
        if self.lied:
            # The watermark and the index records, written behind each sync and not synced themselves, are all that
            # can tell of a dropped tail. Lost together with it nothing is left to tell by: beyond any promise.
            loss = PowerLoss(keep=1, tear=0)
        rng = self._rng
        self.boot += 1
        self.locks.clear()
        self._settle_names(sum(rng.random() < loss.keep for _ in self._pending_names))
        self._pending_names.clear()
        for path in sorted(self._durable_names):
            file = self._durable_names[path]
            for offset, data in file.pending:
                if rng.random() < loss.keep:
                    if data and rng.random() < loss.tear:
                        self._settle_torn(file, offset, data)
                    else:
                        file.settle(offset, data)
            file.pending.clear()
            file.data = bytearray(file.durable)
            file.high_water = min(file.high_water, len(file.data))
        self.files = dict(self._durable_names)

    def _settle_torn(self, file: _File, offset: int, data: bytes) -> None:
        """Some sectors of a write, or a beginning of it that ends anywhere."""
        rng = self._rng
        if rng.random() < 0.5:
            file.settle(offset, data[: rng.randrange(len(data))])
            return
        for at in range(0, len(data), _SECTOR_BYTES):
            if rng.random() < 0.5:
                file.settle(offset + at, data[at : at + _SECTOR_BYTES])

    def evict(self) -> None:
        """Drop clean pages from the cache: what is read next comes from the platter."""
        for file in self.files.values():
            if not file.pending:
                file.data[:] = file.durable

    def flip_bit(self, accept: Callable[[str], bool]) -> bool:
        """Flip one bit at rest in what has been written to a file that ``accept`` takes; False if there is none."""
        paths = [path for path in sorted(self.files) if accept(path) and any(self.files[path].durable)]
        if not paths:
            return False
        path = self._rng.choice(paths)
        file = self.files[path]
        used = len(file.durable.rstrip(b"\0"))
        at = self._rng.randrange(used)
        mask = 1 << self._rng.randrange(8)
        file.durable[at] ^= mask
        if at < len(file.data):
            file.data[at] ^= mask
        self.note_damage(f"bit {mask:#04x} flipped at {at} of {path}")
        return True

    def wipe(self) -> None:
        """Somebody deletes the folder."""
        self.files.clear()
        self._durable_names.clear()
        self._pending_names.clear()
        self.folders = {"/"}
        self.locks.clear()
        self.silent = ""
        self.lied = False
        self.note_damage("wiped")


def _os_error(number: int, path: str) -> OSError:
    return OSError(number, os.strerror(number), path)


class FaultyFileSystem:
    """What one process sees of its `SimDisk`; implements ``dledger.storage.filesystem.FileSystem``.

    Attributes:
        crash_after: the process ends (`SimulatedCrash`) before the operation after so many more; -1: never.
        crash_at_sync: the process ends when it next syncs something unsynced in a file below this path; empty: never.
        on_crash: called at that moment, to kill the process.
        quiet: the simulator itself looks: nothing is counted and nothing fails.
    """

    def __init__(self, disk: SimDisk, process: Process, on_crash: Callable[[], None] = lambda: None) -> None:
        self.disk = disk
        self.process = process
        self.on_crash = on_crash
        self.crash_after = -1
        self.crash_at_sync = ""
        self.quiet = False
        self.operations = 0
        self._handles: dict[int, tuple[str, _File]] = {}
        self._next_handle = 3

    def _before(self) -> None:
        if self.quiet:
            return
        if not self.process.alive:
            raise SimulatedCrash
        self.operations += 1
        if self.crash_after >= 0:
            if self.crash_after == 0:
                self.on_crash()
                raise SimulatedCrash
            self.crash_after -= 1

    def makedirs(self, path: str) -> None:
        self._before()
        while path not in self.disk.folders:
            self.disk.folders.add(path)
            path = os.path.dirname(path)

    def listdir(self, path: str) -> list[str]:
        self._before()
        return sorted(os.path.basename(name) for name in self.disk.files if os.path.dirname(name) == path)

    def exists(self, path: str) -> bool:
        return path in self.disk.files or path in self.disk.folders

    def open(self, path: str, *, create: bool = False) -> int:
        self._before()
        file = self.disk.files.get(path)
        if file is None:
            if not create:
                raise StorageFailedError(f"open {path}: no such file")
            with _typed("open", path):
                file = self.disk.create(path)
        handle = self._next_handle
        self._next_handle += 1
        self._handles[handle] = (path, file)
        return handle

    def close(self, handle: int) -> None:
        path, _ = self._handles.pop(handle)
        if self.disk.locks.get(path) is self.process:
            del self.disk.locks[path]

    def pread(self, handle: int, length: int, offset: int) -> bytes:
        self._before()
        data = self._handles[handle][1].data
        return bytes(data[offset : offset + length])

    def will_need(self, handle: int, offset: int, length: int) -> None:
        """A hint changes nothing."""

    def pwrite(self, handle: int, data: bytes, offset: int) -> None:
        self._before()
        path, file = self._handles[handle]
        with _typed("write", path):
            rest = bytes(data)
            while rest:
                written = self.disk.write(path, file, offset, rest)
                rest = rest[written:]
                offset += written

    def pwritev(self, handle: int, buffers: Sequence[bytes], offset: int, *, keep: bool = True) -> None:
        self.pwrite(handle, b"".join(buffers), offset)

    def zero(self, handle: int, offset: int, length: int) -> None:
        self.pwrite(handle, bytes(length), offset)

    def resize(self, handle: int, length: int) -> None:
        self._before()
        self._handles[handle][1].resize(length)

    def size(self, handle: int) -> int:
        return len(self._handles[handle][1].data)

    def data_end(self, handle: int) -> int:
        file = self._handles[handle][1]
        return min(file.high_water, len(file.data))

    def sync(self, handle: int) -> None:
        self._before()
        path, file = self._handles[handle]
        if self.crash_at_sync and file.pending and path.startswith(self.crash_at_sync):
            self.on_crash()
            raise SimulatedCrash
        with _typed("fdatasync", path):
            self.disk.sync(path, file)

    def sync_dir(self, path: str) -> None:
        self._before()
        self.disk.sync_names(path)

    def rename(self, source: str, target: str) -> None:
        self._before()
        if source not in self.disk.files:
            raise StorageFailedError(f"rename {source}: no such file")
        self.disk.rename(source, target)

    def unlink(self, path: str) -> None:
        self._before()
        if path not in self.disk.files:
            raise StorageFailedError(f"remove {path}: no such file")
        self.disk.unlink(path)

    def lock(self, path: str) -> int:
        self._before()
        owner = self.disk.locks.get(path)
        if owner is not None and owner.alive:
            raise StoreLockedError(f"{os.path.dirname(path)} is in use: two nodes cannot share one folder")
        handle = self.open(path, create=True)
        self.disk.locks[path] = self.process
        return handle

    def disk_space(self, path: str) -> tuple[int, int]:
        return (0 if self.disk.full else 1 << 30), 1 << 30

    def boot_id(self) -> str:
        return f"boot-{self.disk.boot}"


@contextlib.contextmanager
def _typed(action: str, path: str) -> Iterator[None]:
    """Errors as ``RealFileSystem`` raises them."""
    try:
        yield
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise DiskFullError(f"{action} {path}: {error.strerror}") from error
        raise StorageFailedError(f"{action} {path}: {error.strerror}") from error


@dataclass(slots=True)
class DiskTimes:
    """How long jobs take, in seconds: mostly around ``usual_s``, a share ``slow_share`` up to ``slow_s``."""

    usual_s: float = 0.0004
    slow_share: float = 0.01
    slow_s: float = 0.05
    stalled_until: float = 0.0

    def draw(self, rng: Random, now: float) -> float:
        """Return the duration of a job that begins ``now``."""
        slow = self.slow_share > 0 and rng.random() < self.slow_share
        duration = rng.uniform(self.usual_s, self.slow_s) if slow else self.usual_s * rng.uniform(0.3, 2.0)
        return max(duration, self.stalled_until - now)


_Job = tuple[Callable[..., Any], tuple[Any, ...], asyncio.Future[Any], bool]
"""(function, arguments, result, whether it may take no time where the disk is quick)"""


class SimDiskExecutor:
    """Implements ``DiskExecutor`` on virtual time with ``workers`` imagined threads."""

    def __init__(
        self,
        loop: SimLoop,
        rng: Random,
        process: Process,
        times: DiskTimes,
        *,
        workers: int = 1,
    ) -> None:
        self._loop = loop
        self._rng = rng
        self._process = process
        self._times = times
        self._idle = workers
        self._queue: deque[_Job] = deque()
        self._begun: list[_Job] = []  # their effects are still to come
        self._shut = False

    async def run(self, function: Callable[[Unpack[_Args]], _T], *args: *_Args) -> _T:
        """See ``DiskExecutor.run``."""
        return await self._queued(function, args, quick=False)

    async def run_quick(self, function: Callable[[Unpack[_Args]], _T], *args: *_Args) -> _T:
        """See ``DiskExecutor.run_quick``: where the disk is quick just now, no time passes."""
        return await self._queued(function, args, quick=True)

    def try_now(self, function: Callable[[Unpack[_Args]], object], *args: *_Args) -> bool:
        """See ``DiskExecutor.try_now``: every other time that the disk is quick, so that `run` has its share too."""
        if self._shut or not self._idle or self._queue or self._rng.random() < 0.5:
            return False
        if self._times.draw(self._rng, self._loop.time()) >= _QUICK_S:
            return False
        function(*args)
        return True

    async def _queued(self, function: Callable[[Unpack[_Args]], _T], args: tuple[*_Args], *, quick: bool) -> _T:
        if self._shut:
            raise RuntimeError("the executor is shut down")
        future: asyncio.Future[_T] = self._loop.create_future()
        self._queue.append((function, args, future, quick))
        self._begin()
        return await future

    def shutdown(self) -> None:
        self._shut = True

    def _begin(self) -> None:
        while self._idle and self._queue:
            self._idle -= 1
            job = self._queue.popleft()
            self._begun.append(job)
            now = self._loop.time()
            duration = self._times.draw(self._rng, now)
            if job[3] and duration < _QUICK_S:
                duration = 0.0
            effect_at = now + duration * self._rng.random()
            self._loop.call_at(effect_at, self._take_effect, job, now + duration, context=self._process.context)

    def _take_effect(self, job: _Job, end: float) -> None:
        self._begun.remove(job)
        function, args, future, _ = job
        result: object = None
        failure: Exception | None = None
        try:
            result = function(*args)
        except SimulatedCrash:
            return  # nobody is left to hear of it
        except Exception as error:
            failure = error
        self._loop.call_at(end, self._finish, future, result, failure, context=self._process.context)

    def _finish(self, future: asyncio.Future[Any], result: object, failure: Exception | None) -> None:
        self._idle += 1
        if not future.done():
            if failure is None:
                future.set_result(result)
            else:
                future.set_exception(failure)
        self._begin()

    @property
    def busy(self) -> bool:
        """Whether a job is under way whose effects are still to come."""
        return bool(self._begun)

    def run_into_crash(self) -> None:
        """The process ends now, in the middle of the job that is under way: what it did until then stands."""
        if self._begun:
            function, args, _, _ = self._begun.pop(0)
            try:
                self._process.run(function, *args)
            except (SimulatedCrash, Exception):
                return
