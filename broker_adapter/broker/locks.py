"""Queue locks for ordered consumption. In DLedger mode they are in the log, so a failover keeps them.

A lock is answered only once it is stored; until then it is reserved here, so two clients never get the same queue.
"""

from __future__ import annotations

import time
from collections.abc import Iterable

from broker_adapter.store.api import MessageStore, StateKind

__all__ = ["LockManager", "lock_key"]


def lock_key(group: str, topic: str, queue_id: int) -> str:
    return f"{group}@{topic}@{queue_id}"


def _now_ms() -> int:
    return int(time.time() * 1000)


class LockManager:
    """Which client holds which queue. A lock that is not renewed for ``expire_ms`` is free for others."""

    def __init__(self, store: MessageStore, expire_ms: int) -> None:
        self._store = store
        self._expire_ms = expire_ms
        self._reserved: dict[str, tuple[str, int]] = {}

    def holder(self, key: str, now_ms: int | None = None) -> str | None:
        """Return the client that holds a queue, None where nobody does."""
        now = _now_ms() if now_ms is None else now_ms
        reserved = self._reserved.get(key)
        if reserved is not None:
            return reserved[0]
        stored = self._store.state(StateKind.QUEUE_LOCKS).get(key)
        if not isinstance(stored, dict) or now - int(stored.get("lastUpdateTimestamp", 0)) > self._expire_ms:
            return None
        return str(stored.get("clientId"))

    async def lock(self, group: str, client_id: str, queues: Iterable[tuple[str, int]]) -> list[tuple[str, int]]:
        """Lock (topic, queue id)s for a client, or renew them; returns those that it holds now.

        Raises:
            DLedgerError: nothing could be stored; nothing is locked that was not.
        """
        now = _now_ms()
        got = [
            (topic, queue_id)
            for topic, queue_id in queues
            if self.holder(lock_key(group, topic, queue_id), now) in {None, client_id}
        ]
        if not got:
            return []
        keys = [lock_key(group, topic, queue_id) for topic, queue_id in got]
        value = {"clientId": client_id, "lastUpdateTimestamp": now}
        for key in keys:
            self._reserved[key] = (client_id, now)
        try:
            await self._store.put_states([(StateKind.QUEUE_LOCKS, key, value) for key in keys])
        finally:
            for key in keys:
                if self._reserved.get(key) == (client_id, now):
                    del self._reserved[key]
        return got

    async def unlock(self, group: str, client_id: str, queues: Iterable[tuple[str, int]]) -> None:
        """Free those of the queues that the client holds."""
        keys = [lock_key(group, topic, queue_id) for topic, queue_id in queues]
        held = [key for key in keys if self.holder(key) == client_id]
        if held:
            await self._store.put_states([(StateKind.QUEUE_LOCKS, key, None) for key in held])

    def reset(self) -> None:
        """Forget reservations: this broker is no master any more."""
        self._reserved.clear()
