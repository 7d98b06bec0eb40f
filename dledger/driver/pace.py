"""How fast a leader sends history while clients append.

A follower that was away takes what the log's disk, the network and the processors give: on a small machine half of
what clients had. It is not in their hurry: the group commits without it. So history goes at a limited rate as long
as the log grows, and as fast as it can when nobody appends.
"""

from __future__ import annotations

from typing import Final

__all__ = ["CatchUpPace"]

_BUSY_S: Final = 1.0
"""The log has grown within this time: clients append."""

_CREDIT_S: Final = 0.1
"""What was not sent for so long may be sent at once: a disk that stutters does not lower the rate."""


class CatchUpPace:
    """Rate of all history that one leader sends, in bytes a second; 0 is no limit. No clock: times are handed in."""

    def __init__(self, bytes_per_s: int) -> None:
        self._bytes_per_s = bytes_per_s
        self._last_index = -1
        self._busy_until_s = 0.0
        self._due_s = 0.0

    def delay_s(self, last_index: int, now_s: float) -> float:
        """Return how long to wait before asking again; 0: more may be read. ``last_index``: the end of the log now."""
        if last_index != self._last_index:
            if self._last_index >= 0:
                self._busy_until_s = now_s + _BUSY_S
            self._last_index = last_index
        if not self._bytes_per_s or now_s >= self._busy_until_s:
            return 0.0
        return min(max(0.0, self._due_s - now_s), _BUSY_S)  # by then nobody may append any more

    def sent(self, byte_count: int, now_s: float) -> None:
        """Note what was sent."""
        if self._bytes_per_s:
            self._due_s = max(self._due_s, now_s - _CREDIT_S) + byte_count / self._bytes_per_s
