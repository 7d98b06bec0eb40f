"""The judge: is this history one of a linearizable log that lost, moved, doubled and invented nothing?

Linear in time, without search: the final committed log *is* the order of the appends. An append at index i
takes effect when the log's length becomes i + 1, and a read that saw length L happened while the length was
L. So each operation gets a key, 2 i for an append at i and 2 L - 1 for a read of length L, and the keys are
the order in which the operations must have happened. The history is linearizable if and only if no
operation was *called* after one with a greater key had *returned*. One pass over the keys in order, holding
the latest call seen, finds every contradiction.

A read may know less than the length. "Entry i is there" bounds it from below: it must come after the append
at i, and nothing must come after it. "There is no entry i yet" bounds it from above, the other way round. A
read of an exact length is both.
"""

from __future__ import annotations

from array import array
from collections.abc import Hashable
from dataclasses import dataclass, field
from enum import Enum
from math import inf

from dledger.checker.history import ACKNOWLEDGED, FAILED, FinalLog, History, Read

__all__ = ["Kind", "Verdict", "Violation", "check"]

_MAX_EXAMPLES = 20


class Kind(Enum):
    """What can be wrong with a log."""

    LOST = "lost"
    """Acknowledged, and not in the log."""
    MOVED = "moved"
    """Acknowledged at one index, standing at another."""
    DUPLICATED = "duplicated"
    """One append, two entries."""
    PHANTOM = "phantom"
    """An entry that nobody wrote."""
    FAILED_APPEARED = "definite failure appeared"
    """The client was told that it is not and never will be in the log; it is."""
    REORDERED = "reordered"
    """Acknowledged before another was called, standing behind it; or a stream's appends out of order."""
    STALE_READ = "stale read"
    """A linearizable read that did not see what was there before it was called."""
    FUTURE_READ = "read before append"
    """A read returned an entry, or a length, before the append was called."""
    WRONG_READ = "wrong read"
    """A read saw something that is not what the log has at that index: uncommitted or damaged data."""


@dataclass(frozen=True, slots=True)
class Violation:
    """One contradiction, in words."""

    kind: Kind
    message: str

    def __str__(self) -> str:
        return f"{self.kind.value}: {self.message}"


@dataclass(slots=True)
class Verdict:
    """What `check` found. ``violations`` holds the first examples of each kind, ``counts`` how many there are."""

    appends: int = 0
    acknowledged: int = 0
    failed: int = 0
    unknown: int = 0
    unknown_found: int = 0
    reads: int = 0
    counts: dict[Kind, int] = field(default_factory=dict)
    violations: list[Violation] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        return not self.counts

    def add(self, kind: Kind, message: str) -> None:
        """Count a violation and keep it if it is among the first of its kind."""
        count = self.counts.get(kind, 0)
        self.counts[kind] = count + 1
        if count < _MAX_EXAMPLES:
            self.violations.append(Violation(kind, message))

    def count(self, *kinds: Kind) -> int:
        """Return how many violations of these kinds there are."""
        return sum(self.counts.get(kind, 0) for kind in kinds)

    def report(self) -> str:
        """The verdict for people: one line of counts, then the first violations of each kind."""
        head = (
            f"{self.appends} appends ({self.acknowledged} acknowledged, {self.failed} failed, "
            f"{self.unknown} unknown of which {self.unknown_found} in the log), {self.reads} reads"
        )
        if self.ok:
            return f"{head}: no violation"
        total = ", ".join(f"{count} {kind.value}" for kind, count in self.counts.items())
        return "\n".join([f"{head}: {total}", *(f"  {violation}" for violation in self.violations)])


def check(history: History, log: FinalLog) -> Verdict:
    """Judge ``history`` against the final committed ``log`` (read once all clients were quiet).

    Values of appends must be unique; time linear in operations plus log.
    """
    verdict = Verdict(appends=len(history.values), reads=len(history.reads))
    places = _place(history, log, verdict)
    _check_outcomes(history, log, places, verdict)
    _check_streams(history, places, verdict)
    for read in history.reads:
        _check_values(read, log, verdict)
    _check_real_time(history, len(log), places, verdict)
    return verdict


def _place(history: History, log: FinalLog, verdict: Verdict) -> array[int]:
    """Return the index at which each append stands in the log (-1: it does not); finds duplicates and phantoms."""
    numbers: dict[Hashable, int] = dict(zip(history.values, range(len(history.values)), strict=True))
    if len(numbers) != len(history.values):
        raise ValueError("the values of the appends are not unique: this history cannot be judged")
    places = array("q", [-1]) * len(history.values)
    for index, value in enumerate(log):
        if value is None:
            continue
        operation = numbers.get(value)
        if operation is None:
            verdict.add(Kind.PHANTOM, f"index {index} holds {value!r}, which nobody wrote")
        elif places[operation] >= 0:
            first = places[operation]
            verdict.add(Kind.DUPLICATED, f"{history.describe(operation)} stands at {first} and at {index}")
        else:
            places[operation] = index
    return places


def _check_outcomes(history: History, log: FinalLog, places: array[int], verdict: Verdict) -> None:
    outcomes, indexes = history.outcomes, history.indexes
    for operation, place in enumerate(places):
        outcome = outcomes[operation]
        if outcome == ACKNOWLEDGED:
            verdict.acknowledged += 1
            index = indexes[operation]
            if place == index >= 0:
                continue
            if place < 0:
                there = f"it holds {log[index]!r}" if 0 <= index < len(log) else f"the log ends at {len(log) - 1}"
                verdict.add(Kind.LOST, f"{history.describe(operation)}: {there}")
            elif not (0 <= index < len(log) and log[index] == history.values[operation]):
                verdict.add(Kind.MOVED, f"{history.describe(operation)}: it stands at {place}")
        elif outcome == FAILED:
            verdict.failed += 1
            if place >= 0:
                verdict.add(Kind.FAILED_APPEARED, f"{history.describe(operation)}: it stands at {place}")
        else:
            verdict.unknown += 1
            verdict.unknown_found += place >= 0


def _check_streams(history: History, places: array[int], verdict: Verdict) -> None:
    """Appends of one stream must stand in the order of their calls, whatever the answers were."""
    last: dict[int, int] = {}
    for operation, stream in enumerate(history.streams):
        place = places[operation]
        if stream < 0 or place < 0:
            continue
        before = last.get(stream)
        if before is not None and places[before] > place:
            verdict.add(
                Kind.REORDERED,
                f"stream {stream}: {history.describe(operation)} stands at {place}, before index "
                f"{places[before]} of the earlier {history.describe(before)}",
            )
        last[stream] = operation


def _check_values(read: Read, log: FinalLog, verdict: Verdict) -> None:
    first, values = read.first_index, read.values
    if values and list(log[first : first + len(values)]) != list(values):
        for at, value in enumerate(values, first):
            there = log[at] if 0 <= at < len(log) else "nothing: the log is shorter"
            if at >= len(log) or there != value:
                verdict.add(Kind.WRONG_READ, f"{_describe(read)} saw {value!r} at {at}; the log has {there!r}")
                break
    if read.max_length is not None and read.max_length < read.min_length:
        verdict.add(Kind.WRONG_READ, f"{_describe(read)} contradicts itself")
    if read.min_length > len(log):
        verdict.add(
            Kind.WRONG_READ,
            f"{_describe(read)} saw {read.min_length} committed entries; the log has {len(log)}",
        )


def _describe(read: Read) -> str:
    kind = "linearizable" if read.linearizable else "local"
    where = f" at {read.where}" if read.where else ""
    most = "" if read.max_length is None else f" and <= {read.max_length}"
    return (
        f"{kind} read of client {read.client}{where} called at {read.call:.6f}, answered at {read.ret:.6f}, "
        f"length >= {read.min_length}{most}"
    )


def _check_real_time(history: History, length: int, places: array[int], verdict: Verdict) -> None:
    """The pass over the keys. ``call`` columns hold the latest call with this key, ``ret`` the earliest return.

    Reads with equal keys commute, so of all that saw one length only the extremes matter.
    """
    calls, rets = history.calls, history.rets
    outcomes = history.outcomes
    append_at = array("q", [-1]) * length
    for operation, place in enumerate(places):
        if place >= 0 and outcomes[operation] != FAILED:
            append_at[place] = operation
    seen_low: list[Read | None] = [None] * (length + 1)  # by min_length: the one that returned first
    seen_high: list[Read | None] = [None] * (length + 1)  # by max_length: the one that was called last
    for read in history.reads:
        low = min(read.min_length, length)
        known = seen_low[low]
        if known is None or read.ret < known.ret:
            seen_low[low] = read
        if read.linearizable and read.max_length is not None and read.max_length <= length:
            known = seen_high[read.max_length]
            if known is None or read.call > known.call:
                seen_high[read.max_length] = read
    latest = -inf
    blame: Read | int | None = None
    for index in range(length + 1):
        # Key 2 L - 1 with L = index: reads of this length come before the append at this index. The check of a read
        # sees smaller keys only, so a read's own call does not count against reads of equal length.
        low_read = seen_low[index]
        if low_read is not None and low_read.ret < latest:
            _contradiction(history, blame, low_read, verdict)
        high_read = seen_high[index]
        if high_read is not None and high_read.call > latest:
            latest, blame = high_read.call, high_read
        if index == length:
            break
        operation = append_at[index]
        if operation >= 0:
            # An answer that came before a definite effect (moved, for one) is judged elsewhere; here only time counts.
            if rets[operation] < latest:
                _contradiction(history, blame, operation, verdict)
            if calls[operation] > latest:
                latest, blame = calls[operation], operation


def _contradiction(history: History, earlier: Read | int | None, later: Read | int, verdict: Verdict) -> None:
    """``later`` has the greater key, yet it had returned before ``earlier`` was called."""
    left = _describe(earlier) if isinstance(earlier, Read) else history.describe(earlier or 0)
    right = _describe(later) if isinstance(later, Read) else history.describe(later)
    if isinstance(earlier, Read):
        kind, what = Kind.STALE_READ, "did not see (or see as long a log as)"
        verdict.add(kind, f"{left} {what} {right}")
    elif isinstance(later, Read):
        verdict.add(Kind.FUTURE_READ, f"{right} had returned before {left}, which it includes")
    else:
        verdict.add(Kind.REORDERED, f"{right} stands behind {left}, which was called after its acknowledgement")
