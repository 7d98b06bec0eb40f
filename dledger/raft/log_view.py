"""The core's view of the log: runs of terms, no entries, no bytes."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable

from dledger.raft.messages import NO_TERM, InvariantError, LogId, TermRun, invariant

__all__ = ["LogView"]


class LogView:
    """Which term each index has, kept as runs: a log of a million entries of one leader is one run.

    Invariant: runs ascend strictly in first_index and term; the first run starts at first_index.
    Invariant: first_index - 1 <= last_index.
    """

    __slots__ = ("_starts", "_terms", "first_index", "last_index")

    def __init__(self, runs: Iterable[TermRun] = (), *, first_index: int = 0, last_index: int = -1) -> None:
        self.first_index = first_index
        self.last_index = last_index
        self._starts: list[int] = []
        self._terms: list[int] = []
        for run in runs:
            invariant(not self._starts or run.first_index > self._starts[-1], "term runs must ascend")
            invariant(not self._terms or run.term > self._terms[-1], "terms never fall along the log")
            self._starts.append(run.first_index)
            self._terms.append(run.term)

    @property
    def last_term(self) -> int:
        return self._terms[-1] if self._terms else NO_TERM

    @property
    def last_id(self) -> LogId:
        """Term and index of the last entry, as §5.4.1 compares logs."""
        return LogId(self.last_term, self.last_index)

    def term_at(self, index: int) -> int | None:
        """Return the term of an entry; `NO_TERM` just before the first entry; None outside the log."""
        if index == self.first_index - 1:
            return NO_TERM
        if not self.first_index <= index <= self.last_index:
            return None
        return self._terms[bisect_right(self._starts, index) - 1]

    def first_index_of_run(self, index: int) -> int:
        """Return the first index of the term that the entry at ``index`` has."""
        return self._starts[bisect_right(self._starts, index) - 1]

    def last_index_at_or_below_term(self, term: int, bound: int) -> int:
        """Return the highest index <= ``bound`` whose term is at most ``term`` (first_index - 1 if there is none)."""
        at = bisect_right(self._terms, term)
        end = self._starts[at] - 1 if at < len(self._starts) else self.last_index
        return max(self.first_index - 1, min(end, bound))

    def append(self, last_index: int, term: int) -> None:
        """Extend the log to ``last_index`` with entries of ``term``."""
        last_term = self._terms[-1] if self._terms else NO_TERM
        if term < last_term or last_index <= self.last_index:
            raise InvariantError("an append extends the log, and terms never fall along it")
        if term != last_term or not self._terms:
            self._starts.append(self.last_index + 1)
            self._terms.append(term)
        self.last_index = last_index

    def append_runs(self, runs: Iterable[TermRun], first_index: int, last_index: int) -> None:
        """Extend the log by ``first_index..last_index`` with the terms that ``runs`` give those indexes."""
        if first_index != self.last_index + 1:
            raise InvariantError("an append continues the log")
        pending = list(runs)
        for number, run in enumerate(pending):
            end = pending[number + 1].first_index - 1 if number + 1 < len(pending) else last_index
            if end >= first_index:
                self.append(end, run.term)

    def truncate(self, from_index: int) -> None:
        """Drop every entry at or after ``from_index``."""
        self.last_index = from_index - 1
        while self._starts and self._starts[-1] >= from_index:
            self._starts.pop()
            self._terms.pop()

    def runs_between(self, first_index: int, last_index: int) -> tuple[TermRun, ...]:
        """Return the runs that cover ``first_index..last_index``, the first cut to start there."""
        if last_index < first_index:
            return ()
        if self._starts[-1] <= first_index:
            return (TermRun(first_index, self._terms[-1]),)
        low = bisect_right(self._starts, first_index) - 1
        high = bisect_right(self._starts, last_index)
        runs = [TermRun(self._starts[at], self._terms[at]) for at in range(low, high)]
        runs[0] = TermRun(first_index, runs[0].term)
        return tuple(runs)

    def first_conflict(self, runs: tuple[TermRun, ...], last_index: int) -> int | None:
        """Return the first index where ``runs`` (up to ``last_index``) name another term than this log.

        Only where both logs have an entry; None if they agree there.
        """
        for number, run in enumerate(runs):
            end = runs[number + 1].first_index - 1 if number + 1 < len(runs) else last_index
            end = min(end, self.last_index)
            if run.first_index > end:
                return None
            index = run.first_index
            while index <= end:
                at = bisect_right(self._starts, index) - 1
                if self._terms[at] != run.term:
                    return index
                index = self._starts[at + 1] if at + 1 < len(self._starts) else end + 1
        return None
