"""A log-linear histogram of durations: constant memory, every value within 1.6 %, and two of them can be added."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping
from typing import Any, Self

__all__ = ["Histogram"]

_SUB_BITS = 6
_SUB_BUCKETS = 1 << _SUB_BITS


def _bucket(value: int) -> int:
    """Return the bucket of a value: 64 equal ones for each power of two."""
    shift = max(value.bit_length() - _SUB_BITS - 1, 0)
    return (shift << _SUB_BITS) + (value >> shift)


def _upper_edge(bucket: int) -> int:
    """Return the largest value of a bucket."""
    if bucket < 2 * _SUB_BUCKETS:
        return bucket
    shift = (bucket >> _SUB_BITS) - 1
    return (((bucket & (_SUB_BUCKETS - 1)) + _SUB_BUCKETS + 1) << shift) - 1


class Histogram:
    """Counts of durations in nanoseconds. Not thread-safe."""

    __slots__ = ("_counts", "_maximum", "_total", "count")

    def __init__(self) -> None:
        self._counts: dict[int, int] = {}
        self._maximum = 0
        self._total = 0
        self.count = 0

    def record(self, value_ns: int) -> None:
        """Count one duration; a negative one counts as zero."""
        value = max(value_ns, 0)
        bucket = _bucket(value)
        counts = self._counts
        counts[bucket] = counts.get(bucket, 0) + 1
        self.count += 1
        self._total += value
        self._maximum = max(self._maximum, value)

    def record_all(self, values_ns: list[int]) -> None:
        """Count many durations, none negative, far faster than one by one. Sorts the list."""
        if not values_ns:
            return
        values_ns.sort()
        counts, at, size = self._counts, 0, len(values_ns)
        while at < size:
            bucket = _bucket(values_ns[at])
            end = bisect_right(values_ns, _upper_edge(bucket), at)
            counts[bucket] = counts.get(bucket, 0) + end - at
            at = end
        self.count += size
        self._total += sum(values_ns)
        self._maximum = max(self._maximum, values_ns[-1])

    def add(self, other: Histogram) -> None:
        """Count all that another has counted, too."""
        for bucket, count in other._counts.items():
            self._counts[bucket] = self._counts.get(bucket, 0) + count
        self.count += other.count
        self._total += other._total
        self._maximum = max(self._maximum, other._maximum)

    def as_json(self) -> dict[str, Any]:
        """Return all of it for another process."""
        counts = {str(bucket): count for bucket, count in self._counts.items()}
        return {"counts": counts, "total_ns": self._total, "max_ns": self._maximum}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """Return what `as_json` described."""
        made = cls()
        made._counts = {int(bucket): int(count) for bucket, count in values["counts"].items()}
        made._total, made._maximum = int(values["total_ns"]), int(values["max_ns"])
        made.count = sum(made._counts.values())
        return made

    def percentile(self, percent: float) -> int:
        """Return a duration in ns that ``percent`` of the values do not exceed; 0 where there are none."""
        wanted = self.count * percent / 100
        seen = 0
        for bucket in sorted(self._counts):
            seen += self._counts[bucket]
            if seen >= wanted:
                return min(_upper_edge(bucket), self._maximum)
        return self._maximum

    @property
    def maximum(self) -> int:
        """The longest, exactly, in ns."""
        return self._maximum

    @property
    def mean(self) -> float:
        """The mean, exactly, in ns; 0 where there are no values."""
        return self._total / self.count if self.count else 0.0
