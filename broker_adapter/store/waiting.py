"""Puts that have their place and wait for the disk, for a slave, or for both."""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass

from broker_adapter.store.api import PutMessageStatus, PutResult

__all__ = ["PendingPut", "WaitingPuts"]


@dataclass(slots=True)
class PendingPut:
    """A put whose message ends at ``end`` in the log. ``deadline``s are loop times."""

    end: int
    future: asyncio.Future[PutResult]
    result: PutResult
    waits_for_flush: bool
    waits_for_slave: bool
    flush_deadline: float = 0.0
    slave_deadline: float = 0.0

    def finish(self) -> None:
        if not self.waits_for_flush and not self.waits_for_slave and not self.future.done():
            self.future.set_result(self.result)


class WaitingPuts:
    """Both queues, in log order. The replica's status wins where both fail (upstream)."""

    def __init__(self) -> None:
        self._flush: deque[PendingPut] = deque()
        self._slave: deque[PendingPut] = deque()

    def __len__(self) -> int:
        return len(self._flush) + len(self._slave)

    def add(self, put: PendingPut) -> None:
        if put.waits_for_flush:
            self._flush.append(put)
        if put.waits_for_slave:
            self._slave.append(put)

    def flushed(self, end: int) -> None:
        """Everything before ``end`` is on disk."""
        queue = self._flush
        while queue and queue[0].end <= end:
            put = queue.popleft()
            put.waits_for_flush = False
            put.finish()

    def replicated(self, end: int) -> None:
        """A slave has everything before ``end``."""
        queue = self._slave
        while queue and queue[0].end <= end:
            put = queue.popleft()
            put.waits_for_slave = False
            put.finish()

    def expire(self, now: float) -> None:
        """Answer those that waited too long: stored here, with a status that says what is missing."""
        queue = self._flush
        while queue and queue[0].flush_deadline <= now:
            put = queue.popleft()
            put.waits_for_flush = False
            if put.result.status is PutMessageStatus.PUT_OK:
                put.result.status = PutMessageStatus.FLUSH_DISK_TIMEOUT
            put.finish()
        queue = self._slave
        while queue and queue[0].slave_deadline <= now:
            put = queue.popleft()
            put.waits_for_slave = False
            put.result.status = PutMessageStatus.FLUSH_SLAVE_TIMEOUT
            put.finish()

    def fail(self, remark: str) -> None:
        """The store stops or has failed: the messages are there or not, nobody knows."""
        for put in [*self._flush, *self._slave]:
            put.waits_for_flush = put.waits_for_slave = False
            if put.result.status is PutMessageStatus.PUT_OK:
                put.result.status = PutMessageStatus.UNKNOWN_ERROR
                put.result.remark = remark
            put.finish()
        self._flush.clear()
        self._slave.clear()
