"""The disk loop: group commit, preparation in idle time, background flush, and what happens when the disk fails."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Protocol

import structlog

from dledger.driver.executor import DiskExecutor
from dledger.errors import DiskFullError, StorageError
from dledger.metrics.instruments import DriverMetrics
from dledger.storage.log_store import LogStore, WriteBatch

__all__ = ["DiskLoop", "DiskOwner"]

_DISK_FULL_RETRY_S = 0.2
_TIMINGS_KEPT = 1000


class DiskOwner(Protocol):
    """What the disk loop tells the driver."""

    def persisted(self, batch: WriteBatch, covered: int) -> None:
        """``batch`` is durable, and with it everything staged up to number ``covered``."""

    def disk_full(self, full: bool) -> None: ...

    def disk_failed(self, error: BaseException) -> None:
        """Final: nothing may be trusted to this disk any more."""


class DiskLoop:
    """Writes what was staged, all of it in one group, one group at a time."""

    def __init__(
        self,
        store: LogStore,
        executor: DiskExecutor,
        owner: DiskOwner,
        logger: structlog.typing.FilteringBoundLogger,
    ) -> None:
        self._store = store
        self._executor = executor
        self._owner = owner
        self._log = logger
        self._wanted = asyncio.Event()
        self._idle = False  # `run` waits to be woken
        self._taken: tuple[WriteBatch, int] | None = None  # by `wake`, left for `run` to write; and what it covers
        self._stopping = False
        self.staged = 0
        """Numbers what was staged; messages that rest on it wait for their number to be covered."""
        self.full = False
        self.error: BaseException | None = None
        self._timings_us: deque[int] = deque(maxlen=_TIMINGS_KEPT)
        self.metrics: DriverMetrics | None = None
        """Told of each group commit; the driver's, once it has started."""
        self.clock: Callable[[], float] | None = None
        """For measurements only; the loop's where it is None."""

    def stage(self) -> None:
        """Something was staged to the store; `wake` comes when what is to be sent meanwhile is on its way."""
        self.staged += 1

    def wake(self, *, at_once: bool = False) -> None:
        """Write what was staged: in a later turn of the loop or, ``at_once``, here and now if the disk is quick."""
        is_idle, self._idle = self._idle, False
        if at_once and is_idle and not self._stopping and self._write_now():
            self._idle = True
        else:
            self._wanted.set()

    def _write_now(self) -> bool:
        """Do what one turn of `run` does; False where something is left for it to do."""
        batch = self._store.take_batch()
        if batch is None:
            return False
        covered = self.staged
        started = self._clock()
        try:
            if not (batch.is_small and self._executor.try_now(self._store.write_entries, batch)):
                self._taken = batch, covered
                return False
            took_s = self._clock() - started
            self._owner.persisted(batch, covered)  # first: others wait for it
            self._store.write_index(batch)
        except DiskFullError:
            self._taken = batch, covered  # `run` meets it again, and waits
            return False
        except Exception as error:  # fail closed, whatever it is
            self._fail(error)
            return False
        self._store.complete(batch)
        self._note(batch, took_s)
        return not (self._stopping or self._wanted.is_set() or self._store.wants_preparation)

    def stop(self) -> None:
        """Write what is staged, then end."""
        self._stopping = True
        self._idle = False
        self._wanted.set()

    async def run(self) -> None:
        while True:
            (batch, covered), self._taken = self._taken or (self._store.take_batch(), self.staged), None
            if batch is not None:
                started = self._clock()
                if not await self._write(batch):
                    return
                self._note(batch, self._clock() - started)
                self._store.complete(batch)
                self._owner.persisted(batch, covered)
                continue
            self._wanted.clear()
            if self._stopping:
                return
            if self._store.wants_preparation:
                await self._prepare()
            else:
                self._idle = True
                await self._wanted.wait()

    def _clock(self) -> float:
        return asyncio.get_running_loop().time() if self.clock is None else self.clock()

    def _note(self, batch: WriteBatch, took_s: float) -> None:
        self._timings_us.append(int(took_s * 1e6))
        if self.metrics is not None:
            self.metrics.synced(took_s, batch.byte_count)

    async def _write(self, batch: WriteBatch) -> bool:
        """Write one group. A full disk is waited out (nothing lost, nothing acknowledged); any other error is final."""
        while True:
            try:
                run = self._executor.run_quick if batch.is_small else self._executor.run
                await run(self._store.write, batch)
            except DiskFullError as error:
                if self._stopping:
                    return False
                if not self.full:
                    self._log.error("disk_full", error=error.message)
                    self.full = True
                    self._owner.disk_full(True)
                await asyncio.sleep(_DISK_FULL_RETRY_S)
                continue
            except Exception as error:  # fail closed, whatever it is
                self._fail(error)
                return False
            if self.full:
                self._log.info("disk_has_room_again")
                self.full = False
                self._owner.disk_full(False)
            return True

    async def _prepare(self) -> None:
        try:
            await self._executor.run(self._store.prepare)
        except DiskFullError:
            self._log.warning("no_space_to_prepare_ahead")
            try:
                async with asyncio.timeout(_DISK_FULL_RETRY_S):
                    await self._wanted.wait()
            except TimeoutError:
                pass
        except Exception as error:
            self._fail(error)

    async def flush_every(self, interval_s: float) -> None:
        """ASYNC_FLUSH: flush the page cache in the background (DLedger's flushFileInterval)."""
        while not self._stopping:
            await asyncio.sleep(interval_s)
            if self._store.wants_flush:
                try:
                    await self._executor.run(self._store.flush)
                except Exception as error:
                    self._fail(error)
                    return

    async def close(self) -> None:
        """Close the store after `run` has ended; after a failure it is left as it is."""
        if self.error is None:
            try:
                await self._executor.run(self._store.close)
            except StorageError as error:
                self._log.error("store_close_failed", error=error.message)
        self._executor.shutdown()

    def _fail(self, error: BaseException) -> None:
        self.error = error
        self._stopping = True
        self._owner.disk_failed(error)

    def write_p99_us(self) -> int:
        """99th percentile of the last thousand group commits in microseconds; -1: none yet."""
        if not self._timings_us:
            return -1
        ordered = sorted(self._timings_us)
        return ordered[min(len(ordered) - 1, len(ordered) * 99 // 100)]

    @property
    def write_count(self) -> int:
        """Group commits timed so far, at most a thousand."""
        return len(self._timings_us)
