"""Appends on their way: waiting to be proposed, then waiting to be committed. Counted per batch, resolved in order."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from heapq import heappop, heappush

from dledger.types import AppendHook, BatchResult, IndexRun

__all__ = ["Done", "PendingAppends", "PendingBatch", "WaitingBatch"]

Done = Callable[[BatchResult | None, Exception | None], None]


@dataclass(slots=True)
class WaitingBatch:
    """A batch that has not been given indexes yet."""

    bodies: Sequence[bytes]
    byte_count: int
    session_id: int
    first_sequence: int
    done: Done
    deadline_ms: int
    hook: AppendHook | None = None
    client_id: bytes | None = None  # opens a session


@dataclass(slots=True, order=True)
class PendingBatch:
    """A batch in the log; acknowledged once ``last_index`` is committed."""

    last_index: int
    order: int
    runs: tuple[IndexRun, ...] = field(compare=False)
    byte_count: int = field(compare=False)
    deadline_ms: int = field(compare=False)
    done: Done | None = field(compare=False)


class PendingAppends:
    """Batches by last index. New ones come in ascending order (a deque), repeated ones anywhere (a heap)."""

    def __init__(self) -> None:
        self._in_order: deque[PendingBatch] = deque()
        self._repeated: list[PendingBatch] = []
        self._count = 0
        self.byte_count = 0

    def __len__(self) -> int:
        return len(self._in_order) + len(self._repeated)

    def add(self, runs: Sequence[IndexRun], byte_count: int, deadline_ms: int, done: Done, *, repeated: bool) -> None:
        last = runs[-1]
        self._count += 1
        batch = PendingBatch(last.first_index + last.count - 1, self._count, tuple(runs), byte_count, deadline_ms, done)
        self.byte_count += byte_count
        if repeated:
            heappush(self._repeated, batch)
        else:
            self._in_order.append(batch)

    def has_any(self, commit_index: int) -> bool:
        """Whether `resolve` has anything to acknowledge."""
        in_order, repeated = self._in_order, self._repeated
        return bool(
            (in_order and in_order[0].last_index <= commit_index)
            or (repeated and repeated[0].last_index <= commit_index)
        )

    def resolve(self, commit_index: int) -> None:
        """Acknowledge everything at or below ``commit_index``."""
        queue = self._in_order
        while queue and queue[0].last_index <= commit_index:
            self._acknowledge(queue.popleft())
        while self._repeated and self._repeated[0].last_index <= commit_index:
            self._acknowledge(heappop(self._repeated))

    def _acknowledge(self, batch: PendingBatch) -> None:
        self.byte_count -= batch.byte_count
        if batch.done is not None:
            batch.done(BatchResult(batch.runs), None)

    def expire(self, now_ms: int, error: Callable[[], Exception]) -> None:
        """Answer those that waited too long; they stay counted, because they stay in the log."""
        for batch in [*self._in_order, *self._repeated]:
            if batch.done is not None and batch.deadline_ms <= now_ms:
                done, batch.done = batch.done, None
                done(None, error())

    def fail_all(self, error: Callable[[], Exception]) -> None:
        """Leadership is lost or the node stops: nobody knows what becomes of these."""
        batches = [*self._in_order, *self._repeated]
        self._in_order.clear()
        self._repeated.clear()
        self.byte_count = 0
        for batch in batches:
            if batch.done is not None:
                batch.done(None, error())
