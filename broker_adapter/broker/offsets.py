"""Consumer offsets: commits are collected here and stored together, in DLedger mode as one entry of the log."""

from __future__ import annotations

import asyncio

import structlog

from broker_adapter.store.api import MessageStore, StateKind
from dledger.errors import DLedgerError

__all__ = ["OffsetManager", "offset_key", "split_offset_key"]


def offset_key(topic: str, group: str, queue_id: int) -> str:
    """Return the state's key. Neither a topic nor a group contains ``@``."""
    return f"{topic}@{group}@{queue_id}"


def split_offset_key(key: str) -> tuple[str, str, int] | None:
    """Return (topic, group, queue id), None for a key that is none."""
    parts = key.rsplit("@", 2)
    if len(parts) != 3 or not parts[2].isdigit():
        return None
    return parts[0], parts[1], int(parts[2])


class OffsetManager:
    """What each group has consumed. Read-your-writes: a commit is seen at once here, and stored within ``flush_ms``.

    What a master had not stored when it died comes again to its consumers: that is the last ``flush_ms`` of commits.
    """

    def __init__(self, store: MessageStore, flush_ms: int) -> None:
        self._store = store
        self._flush_s = flush_ms / 1000
        self._dirty: dict[str, int | None] = {}
        self._flushing: dict[str, int | None] = {}
        self._wanted = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._flush_lock = asyncio.Lock()

    def start(self) -> None:
        self._task = asyncio.get_running_loop().create_task(self._run(), name="offset-flush")

    async def stop(self) -> None:
        """Store what is left, as well as it goes."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None

    # ------------------------------------------------------------------ values

    def query(self, topic: str, group: str, queue_id: int) -> int:
        """Return the committed offset, -1 where there is none."""
        key = offset_key(topic, group, queue_id)
        for table in (self._dirty, self._flushing):
            if key in table:
                value = table[key]
                return -1 if value is None else value
        stored = self._store.state(StateKind.CONSUMER_OFFSETS).get(key)
        return -1 if stored is None else int(stored)

    def commit(self, topic: str, group: str, queue_id: int, offset: int) -> bool:
        """Take a commit; False where it changes nothing."""
        key = offset_key(topic, group, queue_id)
        if self.query(topic, group, queue_id) == offset:
            return False
        self._dirty[key] = offset
        self._wanted.set()
        return True

    def table(self) -> dict[str, int]:
        """Return everything by ``topic@group@queueId``."""
        merged: dict[str, int | None] = dict(self._store.state(StateKind.CONSUMER_OFFSETS))
        merged.update(self._flushing)
        merged.update(self._dirty)
        return {key: int(value) for key, value in merged.items() if value is not None}

    def of_group(self, group: str) -> dict[tuple[str, int], int]:
        """Return (topic, queue id) → offset of one group."""
        found: dict[tuple[str, int], int] = {}
        for key, value in self.table().items():
            parts = split_offset_key(key)
            if parts is not None and parts[1] == group:
                found[parts[0], parts[2]] = value
        return found

    def groups_of_topic(self, topic: str) -> list[str]:
        """Return the groups that have offsets in a topic."""
        parts = (split_offset_key(key) for key in self.table())
        return sorted({p[1] for p in parts if p is not None and p[0] == topic})

    def forget(self, *, topic: str | None = None, group: str | None = None) -> None:
        """Remove the offsets of a deleted topic or group."""
        for key in self.table():
            parts = split_offset_key(key)
            if parts is not None and (parts[0] == topic or parts[1] == group):
                self._dirty[key] = None
                self._wanted.set()

    # ------------------------------------------------------------------ storing

    async def _run(self) -> None:
        while True:
            await self._wanted.wait()
            await asyncio.sleep(self._flush_s)
            self._wanted.clear()
            await self.flush()

    async def flush(self) -> bool:
        """Store what changed; False where that failed (it stays to be stored)."""
        async with self._flush_lock:
            if not self._dirty:
                return True
            self._flushing, self._dirty = self._dirty, {}
            records = [(StateKind.CONSUMER_OFFSETS, key, value) for key, value in self._flushing.items()]
            try:
                await self._store.put_states(records)
            except DLedgerError as error:
                structlog.get_logger().info("offsets_not_stored", count=len(records), error=str(error))
                for key, value in self._flushing.items():
                    self._dirty.setdefault(key, value)
                self._wanted.set()
                return False
            finally:
                self._flushing = {}
            return True

    def drop_unstored(self) -> None:
        """This broker is no master any more: its unstored commits must not overwrite the new master's later."""
        self._dirty.clear()
