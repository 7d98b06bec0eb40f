"""What passed through the broker: totals, and rates over ten seconds."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

__all__ = ["BrokerStats", "Rates"]

_WINDOW_S: Final = 10.0
_MIN_STEP_S: Final = 0.5


@dataclass(frozen=True, slots=True)
class Rates:
    """Per second, over the last ten seconds."""

    put: float
    get: float
    transferred: float


class BrokerStats:
    """Counters. Hot paths add to the public fields; `sample` is called about once a second."""

    def __init__(self) -> None:
        self.boot_timestamp_ms = int(time.time() * 1000)
        self.put_count = 0
        self.put_by_topic: dict[str, int] = {}
        self.put_failed_count = 0
        self.put_bytes = 0
        self.get_count = 0
        self.get_found_count = 0
        self.get_miss_count = 0
        self.get_bytes = 0
        self.send_back_count = 0
        self.dead_letter_count = 0
        self.held_pull_count = 0
        self.consumed: dict[tuple[str, str], int] = {}
        """(group, topic) → messages handed out to it."""
        self._day = time.localtime().tm_yday
        self._mornings = ((0, 0), (0, 0))
        """(put, got) when yesterday and when today began, as far as this process was there."""
        self._samples: deque[tuple[float, int, int, int]] = deque()
        self._consumed: deque[tuple[float, dict[tuple[str, str], int]]] = deque()
        self.sample()

    def sample(self) -> None:
        """Remember where the counters are now."""
        now = time.monotonic()
        if self._samples and now - self._samples[-1][0] < _MIN_STEP_S:
            return
        day = time.localtime().tm_yday
        if day != self._day:
            self._day = day
            self._mornings = (self._mornings[1], (self.put_count, self.get_count))
        self._samples.append((now, self.put_count, self.get_found_count, self.get_count))
        self._consumed.append((now, dict(self.consumed)))
        while len(self._samples) > 2 and now - self._samples[1][0] >= _WINDOW_S:
            self._samples.popleft()
            self._consumed.popleft()

    def consume_tps(self, group: str, topics: Iterable[str]) -> float:
        """Return the messages a second that a group was handed of some topics."""
        at, before = self._consumed[0]
        seconds = max(time.monotonic() - at, 0.001)
        keys = [(group, topic) for topic in topics]
        return sum(self.consumed.get(key, 0) - before.get(key, 0) for key in keys) / seconds

    def rates(self) -> Rates:
        """Return what passed per second since the oldest sample of the window."""
        at, put, found, transferred = self._samples[0]
        seconds = max(time.monotonic() - at, 0.001)
        return Rates(
            (self.put_count - put) / seconds,
            (self.get_found_count - found) / seconds,
            (self.get_count - transferred) / seconds,
        )

    def to_runtime(self) -> dict[str, str]:
        """Return the rows of brokerStatus that come from here, upstream's names first."""
        rates = self.rates()
        yesterday, today = self._mornings
        return {
            "bootTimestamp": str(self.boot_timestamp_ms),
            "putTps": f"{rates.put:.2f}",
            "getTotalTps": f"{rates.get:.2f}",
            "getFoundTps": f"{rates.get:.2f}",
            "getTransferedTps": f"{rates.transferred:.2f}",
            "getTransferredTps": f"{rates.transferred:.2f}",
            "msgPutTotalYesterdayMorning": str(yesterday[0]),
            "msgPutTotalTodayMorning": str(today[0]),
            "msgGetTotalYesterdayMorning": str(yesterday[1]),
            "msgGetTotalTodayMorning": str(today[1]),
            "msgPutTotalTodayNow": str(self.put_count),
            "msgGetTotalTodayNow": str(self.get_count),
            "putMessageTimesTotal": str(self.put_count),
            "putMessageFailedTimesTotal": str(self.put_failed_count),
            "putMessageSizeTotal": str(self.put_bytes),
            "putMessageAverageSize": f"{self.put_bytes / max(self.put_count, 1):.1f}",
            "getMessageSizeTotal": str(self.get_bytes),
            "sendBackTotal": str(self.send_back_count),
            "deadLetterTotal": str(self.dead_letter_count),
            "heldPullCount": str(self.held_pull_count),
        }
