"""Entries that have no number yet: the window, the open batch, full batches, and what waits for room.

An entry moves overflow → open → unsent → (taken by the pipeline, which numbers it). Here it may still be dropped,
repacked or fail with a DEFINITE outcome; once it is taken, only `put_back` brings it here again.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from itertools import accumulate

from dledger.client.batch import ENTRY_OVERHEAD_BYTES, Batch, ErrorMaker, Many, Part, fail_many
from dledger.client.options import MAX_ENTRY_BYTES, PipelineOptions
from dledger.client.transport import closed_error
from dledger.errors import (
    EntryTooLargeError,
    Outcome,
    PendingFullError,
    ResponseCode,
    UnexpectedArgumentError,
)
from dledger.types import AppendResult, BatchResult

__all__ = ["EntryQueue"]


class EntryQueue:
    """What callers put in, in order, and what the pipeline takes out in batches.

    ``kick()`` is called when there is something to send, ``arm(deadline)`` (loop time) when a deadline is earlier than
    `deadline_at`, which the callee keeps.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        options: PipelineOptions,
        kick: Callable[[], None],
        arm: Callable[[float], None],
    ) -> None:
        self._time = loop.time
        self._create_future = loop.create_future
        self._kick = kick
        self._arm = arm
        self._options = options
        self._max_count = options.max_pending_count
        self._max_bytes = options.max_pending_bytes
        # Limits in force; narrowed by what the group says of itself.
        self.max_entry_bytes = MAX_ENTRY_BYTES
        self._batch_entries = options.batch_entries
        self._batch_bytes = options.batch_bytes
        self._overflow: deque[Batch] = deque()  # each of one waiter
        self._open: Batch | None = None
        self._unsent: deque[Batch] = deque()
        # Invariant: these add up over open, unsent and taken batches that are not settled; the overflow is not counted.
        self.pending_count = 0
        self.pending_bytes = 0
        self.deadline_at = float("inf")
        self.closed = False

    def __bool__(self) -> bool:
        return bool(self._unsent or self._overflow or (self._open is not None and self._open.bodies))

    # ---- in

    def submit(self, body: bytes, timeout: float) -> asyncio.Future[AppendResult]:
        """Queue one body; the future ends with its place in the log, or with a typed error within ``timeout`` seconds.

        Never refused for want of room: past the window it waits its turn. This is the path of every single append: as
        few steps as can be.

        Raises:
            EntryTooLargeError, UnexpectedArgumentError: the body will not be taken. StoppedError: closed.
        """
        if type(body) is not bytes:
            body = as_bytes(body)
        length = len(body)
        size = length + ENTRY_OVERHEAD_BYTES
        count = self.pending_count + 1
        batch = self._open
        if (
            batch is None
            or batch.size_bytes + size > self._batch_bytes
            or len(batch.bodies) >= self._batch_entries
            or count > self._max_count
            or self.pending_bytes + size > self._max_bytes
            or self._overflow
        ):
            return self._submit_slowly(body, size, timeout)
        deadline = self._time() + timeout
        future: asyncio.Future[AppendResult] = self._create_future()
        batch.bodies.append(body)
        batch.waiters.append(future)
        batch.deadlines.append(deadline)
        batch.size_bytes += size
        self.pending_count = count
        self.pending_bytes += size
        if deadline < self.deadline_at:
            self._arm(deadline)
        return future

    def submit_nowait(self, body: bytes, timeout: float) -> asyncio.Future[AppendResult]:
        """As `submit`, but a full window raises.

        Raises:
            PendingFullError: ``max_pending_count`` or ``max_pending_bytes`` are unresolved; nothing was queued.
        """
        if self._overflow or not self._fits(1, len(body) + ENTRY_OVERHEAD_BYTES):
            raise PendingFullError(
                f"{self.pending_count} entries, {self.pending_bytes} bytes are unresolved; await some, or use append()"
            )
        return self.submit(body, timeout)

    def submit_many(self, bodies: Sequence[bytes], timeout: float) -> asyncio.Future[BatchResult]:
        """Queue bodies to stand in the log in this order (other appends may come between two batches of them).

        Raises:
            UnexpectedArgumentError: no body at all (420), or one that is not bytes. EntryTooLargeError: one is too
            large; none is appended. StoppedError: closed.
        """
        taken = [body if type(body) is bytes else as_bytes(body) for body in bodies]
        if not taken:
            raise UnexpectedArgumentError(
                "an empty batch; give at least one body", code=ResponseCode.REQUEST_WITH_EMPTY_BODYS
            )
        self._check(max(map(len, taken)))
        future: asyncio.Future[BatchResult] = self._create_future()
        self._add_many(Many(future, len(taken)), 0, taken, self._time() + timeout)
        return future

    def _submit_slowly(self, body: bytes, size: int, timeout: float) -> asyncio.Future[AppendResult]:
        self._check(len(body))
        future: asyncio.Future[AppendResult] = self._create_future()
        self._add(_single(future, body, self._time() + timeout))
        return future

    def _check(self, length: int) -> None:
        if self.closed:
            raise closed_error()
        if length > self.max_entry_bytes:
            raise EntryTooLargeError(f"an entry of {length} bytes; the limit is {self.max_entry_bytes}")

    def _fits(self, count: int, size_bytes: int) -> bool:
        """Whether the window has room; the first entry always fits."""
        return not self.pending_count or (
            self.pending_count + count <= self._max_count and self.pending_bytes + size_bytes <= self._max_bytes
        )

    def _add_many(self, many: Many, offset: int, bodies: Sequence[bytes], deadline: float) -> None:
        """Cut bodies into parts that fit a batch each, and queue them."""
        at = 0
        sums = list(accumulate(map(len, bodies), initial=0))
        while at < len(bodies):
            end = self._cut(sums, at, len(bodies))
            batch = Batch()
            size = sums[end] - sums[at] + ENTRY_OVERHEAD_BYTES * (end - at)
            batch.add_part(Part(many, offset + at, end - at), bodies[at:end], size, deadline)
            self._add(batch)
            at = end

    def _cut(self, sums: list[int], at: int, count: int) -> int:
        """Return the end of the longest run of entries from ``at`` that fits a batch; one entry at least."""
        low, high = at + 1, min(count, at + self._batch_entries)
        while low < high:
            middle = (low + high + 1) // 2
            if sums[middle] - sums[at] + ENTRY_OVERHEAD_BYTES * (middle - at) <= self._batch_bytes:
                low = middle
            else:
                high = middle - 1
        return low

    def _add(self, batch: Batch) -> None:
        """Take a batch of one waiter into the window, or into the overflow while that is full."""
        if batch.deadlines[0] < self.deadline_at:
            self._arm(batch.deadlines[0])
        if self._overflow or not self._fits(len(batch.bodies), batch.size_bytes):
            self._overflow.append(batch)
        else:
            self._absorb(batch)

    def _absorb(self, batch: Batch) -> None:
        """Merge a batch into the open one if it fits, else make it the open one."""
        self.pending_count += len(batch.bodies)
        self.pending_bytes += batch.size_bytes
        into = self._open
        if (
            into is not None
            and into.size_bytes + batch.size_bytes <= self._batch_bytes
            and len(into.bodies) + len(batch.bodies) <= self._batch_entries
        ):
            into.bodies += batch.bodies
            into.waiters += batch.waiters
            into.deadlines += batch.deadlines
            into.size_bytes += batch.size_bytes
            into.has_parts |= batch.has_parts
            return
        if into is not None:
            self._unsent.append(into)
        self._open = batch
        self._kick()

    # ---- out

    def next_full(self) -> Batch | None:
        """The first full batch, left in place."""
        return self._unsent[0] if self._unsent else None

    def next_open(self) -> Batch | None:
        """The open batch if no full one is before it, left in place."""
        return None if self._unsent else self._open

    def take(self) -> Batch:
        """Take out the first batch, without the entries that nobody waits for any more (maybe with none)."""
        if self._unsent:
            batch = self._unsent.popleft()
        else:
            batch, self._open = self._open or Batch(), None
        self._prune(batch)
        return batch

    def put_back(self, newest_first: Sequence[Batch]) -> None:
        """Take back batches that stand nowhere in the log, before all others."""
        for batch in newest_first:
            self._prune(batch)
            if batch.bodies:
                self._unsent.appendleft(batch)
        self._kick()

    def settle(self, batch: Batch) -> None:
        """A taken batch has left the pipeline for good: give its room to those that wait."""
        self.pending_count -= len(batch.bodies)
        self.pending_bytes -= batch.size_bytes
        if self._overflow:
            self._refill()

    def _refill(self) -> None:
        while self._overflow:
            batch = self._overflow[0]
            if batch.waiters[0].done():
                self._overflow.popleft()
            elif self._fits(len(batch.bodies), batch.size_bytes):
                self._overflow.popleft()
                self._absorb(batch)
            else:
                return

    def _prune(self, batch: Batch) -> None:
        """Take out entries that nobody waits for, and give their room back."""
        count, size = len(batch.bodies), batch.size_bytes
        batch.drop_done()
        self.pending_count -= count - len(batch.bodies)
        self.pending_bytes -= size - batch.size_bytes

    # ---- ends

    def batches(self) -> list[Batch]:
        """Every batch here, in order."""
        opened = [self._open] if self._open is not None else []
        return [*self._unsent, *opened, *self._overflow]

    def expire(self, now: float, make_error: ErrorMaker) -> float:
        """Fail what has a deadline up to ``now`` (DEFINITE) and drop it; return the earliest deadline that is left."""
        earliest = min(
            [batch.fail(make_error, Outcome.DEFINITE, until=now) for batch in self.batches()], default=float("inf")
        )
        for batch in self._unsent:
            self._prune(batch)
        self._unsent = deque(batch for batch in self._unsent if batch.bodies)
        if self._open is not None:
            self._prune(self._open)
            if not self._open.bodies:
                self._open = None  # the next append opens a new one, and kicks
        self._overflow = deque(batch for batch in self._overflow if not batch.waiters[0].done())
        self._refill()
        return earliest

    def fail_all(self, make_error: ErrorMaker) -> None:
        """Fail and drop everything here (DEFINITE)."""
        for batch in self.batches():
            batch.fail(make_error, Outcome.DEFINITE)
        for batch in self._unsent:
            self._prune(batch)
        if self._open is not None:
            self._prune(self._open)
        self._unsent.clear()
        self._overflow.clear()
        self._open = None

    def narrow(self, max_entry_bytes: int, max_batch_bytes: int, max_batch_entries: int) -> None:
        """Take the group's limits (0: none known), and pack anew what no longer fits them."""
        self.max_entry_bytes = min(max_entry_bytes or MAX_ENTRY_BYTES, MAX_ENTRY_BYTES)
        self._batch_bytes = min(max_batch_bytes or MAX_ENTRY_BYTES, self._options.batch_bytes)
        self._batch_entries = min(max_batch_entries or self._options.batch_entries, self._options.batch_entries)
        if any(self._outgrown(batch) for batch in self.batches()):
            self._repack()

    def _outgrown(self, batch: Batch) -> bool:
        count = len(batch.bodies)
        return count > 0 and (
            count > self._batch_entries
            or (count > 1 and batch.size_bytes > self._batch_bytes)
            or max(map(len, batch.bodies)) > self.max_entry_bytes
        )

    def _repack(self) -> None:
        """Queue everything anew under the limits in force; fail what is too large for them."""
        waiting = self.batches()
        counted = waiting[: len(waiting) - len(self._overflow)]
        self.pending_count -= sum([len(batch.bodies) for batch in counted])
        self.pending_bytes -= sum([batch.size_bytes for batch in counted])
        self._unsent.clear()
        self._overflow.clear()
        self._open = None
        for batch in waiting:
            at = 0
            for waiter, deadline in zip(batch.waiters, batch.deadlines, strict=True):
                count = waiter.count if isinstance(waiter, Part) else 1
                bodies = batch.bodies[at : at + count]
                at += count
                if waiter.done():
                    continue
                if max(map(len, bodies)) > self.max_entry_bytes:
                    self._fail_large(waiter, max(map(len, bodies)))
                elif isinstance(waiter, Part):
                    self._add_many(waiter.many, waiter.offset, bodies, deadline)
                else:
                    self._add(_single(waiter, bodies[0], deadline))

    def _fail_large(self, waiter: asyncio.Future[AppendResult] | Part, length: int) -> None:
        text = f"an entry of {length} bytes; the group's limit is {self.max_entry_bytes}"
        if isinstance(waiter, Part):
            fail_many(waiter.many, lambda outcome: EntryTooLargeError(text, outcome=outcome), Outcome.DEFINITE)
        else:
            waiter.set_exception(EntryTooLargeError(text))


def _single(future: asyncio.Future[AppendResult], body: bytes, deadline: float) -> Batch:
    batch = Batch()
    batch.bodies, batch.waiters, batch.deadlines = [body], [future], [deadline]
    batch.size_bytes = len(body) + ENTRY_OVERHEAD_BYTES
    return batch


def as_bytes(body: object) -> bytes:
    """Return a bytes-like body as bytes.

    Raises:
        UnexpectedArgumentError: it is something else.
    """
    if isinstance(body, bytes | bytearray | memoryview):
        return bytes(body)
    raise UnexpectedArgumentError(f"a body must be bytes, not {type(body).__name__}; encode text first")
