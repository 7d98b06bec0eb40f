"""Entries on their way, held per batch: bodies, who waits for them, until when.

A single append costs one future and three list appends. A list of bodies (`append_many`) is one waiter, a `Part`,
for all of its entries that travel in this batch.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from dledger.errors import DLedgerError, Outcome
from dledger.types import AppendResult, BatchResult, IndexRun

__all__ = ["ENTRY_OVERHEAD_BYTES", "Batch", "ErrorMaker", "Many", "Part"]

ENTRY_OVERHEAD_BYTES = 48
"""Counted on top of each body: the entry's header in the log. More than what an entry costs on the wire."""

ErrorMaker = Callable[[Outcome], DLedgerError]
"""Makes a new error for one waiter: an exception object shared by many tasks would collect all of their tracebacks."""


class Many:
    """One `append_many`: done when all of its parts are, in whatever order these end."""

    __slots__ = ("exposed_count", "future", "left_count", "runs")

    def __init__(self, future: asyncio.Future[BatchResult], count: int) -> None:
        self.future = future
        self.left_count = count
        self.runs: list[tuple[int, IndexRun]] = []
        # Parts that may stand in the log. Invariant: an error of this call is DEFINITE only while this is 0.
        self.exposed_count = 0

    def succeed(self, offset: int, count: int, runs: Sequence[IndexRun]) -> None:
        """Entries ``offset`` to ``offset + count`` of the call are committed."""
        self.left_count -= count
        for run in runs:
            self.runs.append((offset, run))
            offset += run.count
        if self.left_count == 0 and not self.future.done():
            self.future.set_result(BatchResult(self._merged()))

    def _merged(self) -> tuple[IndexRun, ...]:
        merged: list[IndexRun] = []
        for _, run in sorted(self.runs, key=lambda item: item[0]):
            last = merged[-1] if merged else None
            if last and last.term == run.term and last.first_index + last.count == run.first_index:
                merged[-1] = IndexRun(last.first_index, last.count + run.count, last.term)
            else:
                merged.append(run)
        return tuple(merged)


class Part:
    """``count`` consecutive entries of a `Many`, beginning with its entry ``offset``, all in one batch."""

    __slots__ = ("count", "many", "offset")

    def __init__(self, many: Many, offset: int, count: int) -> None:
        self.many = many
        self.offset = offset
        self.count = count

    def done(self) -> bool:
        """Whether nobody waits any more: the call has failed or was cancelled (a part alone is never done early)."""
        return self.many.future.done()


Waiter = asyncio.Future[AppendResult] | Part


class Batch:
    """Bodies in order. ``waiters`` and ``deadlines`` (loop time, seconds) are parallel; a `Part` covers many bodies."""

    __slots__ = (
        "bodies",
        "deadlines",
        "finished",
        "has_parts",
        "request_id",
        "sequence",
        "size_bytes",
        "tainted",
        "waiters",
    )

    def __init__(self) -> None:
        self.bodies: list[bytes] = []
        self.waiters: list[Waiter] = []
        self.deadlines: list[float] = []
        self.size_bytes = 0
        self.has_parts = False
        self.sequence = -1
        """Session sequence of the first body; -1: none given out."""
        self.request_id = -1
        """Of the send under way; -1: not on the wire."""
        self.tainted = False
        """Sent at least once with an unknown outcome: it may stand in the log."""
        self.finished = False
        """Resolved for good; waits only for the batches before it to leave the queue."""

    def add_part(self, part: Part, bodies: Sequence[bytes], size_bytes: int, deadline: float) -> None:
        self.bodies.extend(bodies)
        self.waiters.append(part)
        self.deadlines.append(deadline)
        self.size_bytes += size_bytes
        self.has_parts = True

    @property
    def orphaned(self) -> bool:
        """Whether nobody waits for any of it."""
        return all(waiter.done() for waiter in self.waiters)

    def expose(self, by: int) -> None:
        """Count this batch's parts as maybe in the log (``by`` 1), or not after all (-1)."""
        if self.has_parts:
            for waiter in self.waiters:
                if isinstance(waiter, Part):
                    waiter.many.exposed_count += by

    def succeed(self, runs: Sequence[IndexRun]) -> None:
        """Give every waiter its place. The counts of ``runs`` add up to the number of bodies."""
        if self.has_parts:
            self._succeed_parts(runs)
            return
        at = 0
        for run in runs:
            first, term, end = run.first_index, run.term, at + run.count
            indexes = range(first, first + run.count)
            for waiter, index in zip(self.waiters[at:end], indexes, strict=True):
                if not waiter.done():
                    waiter.set_result(AppendResult(index, term))  # type: ignore[union-attr]  # no parts here
            at = end

    def _succeed_parts(self, runs: Sequence[IndexRun]) -> None:
        cursor = _RunCursor(runs)
        for waiter in self.waiters:
            if isinstance(waiter, Part):
                waiter.many.succeed(waiter.offset, waiter.count, cursor.take(waiter.count))
            else:
                (run,) = cursor.take(1)
                if not waiter.done():
                    waiter.set_result(AppendResult(run.first_index, run.term))

    def fail(self, make_error: ErrorMaker, outcome: Outcome, *, until: float | None = None) -> float:
        """Fail the waiters whose deadline is at most ``until`` (None: all) and return the earliest other deadline.

        A part's error is UNKNOWN where another part of the same call may stand in the log, whatever ``outcome`` says.
        """
        if until is not None and min(self.deadlines, default=float("inf")) > until:
            return min(self.deadlines, default=float("inf"))
        earliest = float("inf")
        for waiter, deadline in zip(self.waiters, self.deadlines, strict=True):
            if waiter.done():
                continue
            if until is not None and deadline > until:
                earliest = min(earliest, deadline)
            elif isinstance(waiter, Part):
                fail_many(waiter.many, make_error, outcome)
            else:
                waiter.set_exception(make_error(outcome))
        return earliest

    def drop_done(self) -> None:
        """Take out the entries that nobody waits for. Only for a batch without sequences: it is renumbered by that."""
        if True not in [waiter.done() for waiter in self.waiters]:
            return
        bodies: list[bytes] = []
        kept: list[tuple[Waiter, float]] = []
        at = 0
        for waiter, deadline in zip(self.waiters, self.deadlines, strict=True):
            count = waiter.count if isinstance(waiter, Part) else 1
            if not waiter.done():
                bodies.extend(self.bodies[at : at + count])
                kept.append((waiter, deadline))
            at += count
        self.bodies = bodies
        self.waiters = [waiter for waiter, _ in kept]
        self.deadlines = [deadline for _, deadline in kept]
        self.size_bytes = sum(map(len, bodies)) + ENTRY_OVERHEAD_BYTES * len(bodies)

    def release(self) -> None:
        """Let go of everything it holds."""
        self.bodies, self.waiters, self.deadlines = [], [], []


def fail_many(many: Many, make_error: ErrorMaker, outcome: Outcome) -> None:
    """Fail a whole call; see `Batch.fail` for the outcome."""
    partly = many.exposed_count > 0 or bool(many.runs)
    many.future.set_exception(make_error(Outcome.UNKNOWN if partly else outcome))


class _RunCursor:
    """Hands out the next entries of a list of runs."""

    def __init__(self, runs: Sequence[IndexRun]) -> None:
        self._runs = list(reversed(runs))

    def take(self, count: int) -> list[IndexRun]:
        taken: list[IndexRun] = []
        while count > 0:
            run = self._runs.pop()
            if run.count > count:
                self._runs.append(IndexRun(run.first_index + count, run.count - count, run.term))
                run = IndexRun(run.first_index, count, run.term)
            taken.append(run)
            count -= run.count
        return taken
