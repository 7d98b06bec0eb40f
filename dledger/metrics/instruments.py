"""What the driver measures as it happens, beside ``driver.recent``: once a proposal, once a group commit, never per
entry."""

from __future__ import annotations

from collections import Counter

from dledger.metrics.registry import BYTES_BOUNDS, COUNT_BOUNDS, Histogram

__all__ = ["DriverMetrics"]


class DriverMetrics:
    """Sizes of proposals, times and bytes of group commits, and why batches failed."""

    def __init__(self) -> None:
        self.batch_bytes = Histogram(BYTES_BOUNDS)
        self.batch_entries = Histogram(COUNT_BOUNDS)
        self.fsync = Histogram()
        self.written_bytes = 0
        self.failed: Counter[str] = Counter()
        """Batches refused or given up, by the response code's name in lower case."""

    def proposed(self, entries: int, byte_count: int) -> None:
        """A proposal got its indexes."""
        self.batch_entries.observe(entries)
        self.batch_bytes.observe(byte_count)

    def synced(self, seconds: float, byte_count: int) -> None:
        """One group commit is durable: the time from its hand-over to the disk, and what was written."""
        self.fsync.observe(seconds)
        self.written_bytes += byte_count
