"""Load on a group: closed (so many callers, each waits) or offered (so many entries a second, come what may)."""

from __future__ import annotations

import asyncio
import functools
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from dledger.cli.histogram import Histogram
from dledger.errors import DLedgerError

if TYPE_CHECKING:
    from dledger.client import LedgerClient
    from dledger.types import AppendResult

__all__ = ["Load", "Measurement", "measure"]

_TICK_S: Final = 0.001
_MAX_OFFERED_INFLIGHT: Final = 100_000


@dataclass(frozen=True, slots=True)
class Load:
    """What to offer. ``rate``: entries a second, offered whether or not earlier ones are done; None: closed loop.

    ``count``: entries in all, None: as many as ``duration_s`` takes. ``batch``: entries per `append_many`; 1 uses
    `append`. ``concurrency``: callers of the closed loop.
    """

    concurrency: int = 64
    size_bytes: int = 256
    batch: int = 1
    duration_s: float = 5.0
    count: int | None = None
    rate: float | None = None
    warmup_s: float = 0.5


@dataclass(slots=True)
class Measurement:
    """What came of it. Latency in ns: from the call (closed), or from when the entry was due (offered)."""

    load: Load
    latency: Histogram = field(default_factory=Histogram)
    acknowledged: int = 0
    failed: int = 0
    refused: int = 0
    """Offered entries that were not even tried, because 100 000 were in flight."""
    elapsed_s: float = 0.0
    first_error: str = ""

    @property
    def throughput(self) -> float:
        """Acknowledged entries a second."""
        return self.acknowledged / self.elapsed_s if self.elapsed_s else 0.0

    def as_json(self) -> dict[str, object]:
        """Return the numbers, latencies in milliseconds."""
        points = {"p50": 50.0, "p90": 90.0, "p99": 99.0, "p99.9": 99.9}
        latency = {name: round(self.latency.percentile(point) / 1e6, 3) for name, point in points.items()}
        latency |= {"max": round(self.latency.maximum / 1e6, 3), "mean": round(self.latency.mean / 1e6, 3)}
        return {
            "concurrency": None if self.load.rate else self.load.concurrency,
            "rate_per_s": self.load.rate,
            "batch": self.load.batch,
            "size_bytes": self.load.size_bytes,
            "duration_s": round(self.elapsed_s, 3),
            "acknowledged": self.acknowledged,
            "failed": self.failed,
            "refused": self.refused,
            "throughput_per_s": round(self.throughput, 1),
            "latency_ms": latency,
            "first_error": self.first_error or None,
        }

    def note_failure(self, error: BaseException, count: int) -> None:
        """Count a failed append."""
        self.failed += count
        if not self.first_error:
            name = error.code.name if isinstance(error, DLedgerError) else type(error).__name__
            self.first_error = f"{name}: {error}"


async def measure(client: LedgerClient, load: Load, on_progress: Callable[[int], None]) -> Measurement:
    """Put a load on a group and measure it, after a warm-up that does not count.

    ``on_progress(entries)`` is called as entries are acknowledged. Failed appends are counted, not raised.
    """
    if load.warmup_s:
        warmup = Load(load.concurrency, load.size_bytes, load.batch, load.warmup_s, None, load.rate, 0.0)
        await _run(client, Measurement(warmup), lambda _: None)
    measurement = Measurement(load)
    await _run(client, measurement, on_progress)
    return measurement


async def _run(client: LedgerClient, into: Measurement, on_progress: Callable[[int], None]) -> None:
    started = time.perf_counter()
    if into.load.rate is None:
        await _closed(client, into, on_progress)
    else:
        await _offered(client, into, into.load.rate, on_progress)
    into.elapsed_s = time.perf_counter() - started


def _budget(load: Load) -> Callable[[], bool]:
    """Return a question: may one more call be made? Counts the calls that it allows."""
    left = None if load.count is None else -(-load.count // load.batch)
    deadline = time.perf_counter() + load.duration_s

    def allowed() -> bool:
        nonlocal left
        if left is None:
            return time.perf_counter() < deadline
        left -= 1
        return left >= 0

    return allowed


async def _closed(client: LedgerClient, into: Measurement, on_progress: Callable[[int], None]) -> None:
    """Run ``concurrency`` callers, each with one call at a time."""
    load = into.load
    body = os.urandom(load.size_bytes)
    bodies = [body] * load.batch
    allowed = _budget(load)
    record = into.latency.record

    async def caller() -> None:
        while allowed():
            began = time.perf_counter_ns()
            try:
                if load.batch == 1:
                    await client.append(body)
                else:
                    await client.append_many(bodies)
            except DLedgerError as error:
                into.note_failure(error, load.batch)
                continue
            record(time.perf_counter_ns() - began)
            into.acknowledged += load.batch
            on_progress(load.batch)

    await asyncio.gather(*(caller() for _ in range(load.concurrency)))


async def _offered(client: LedgerClient, into: Measurement, rate: float, on_progress: Callable[[int], None]) -> None:
    """Send ``rate`` entries a second on schedule; latency counts from when each was due (no coordinated omission)."""
    load = into.load
    body = os.urandom(load.size_bytes)
    inflight = 0
    idle = asyncio.Event()
    began = time.perf_counter_ns()
    total = load.count if load.count is not None else int(rate * load.duration_s)
    period_ns = 1e9 / rate
    sent = 0

    def done(due_ns: int, future: asyncio.Future[AppendResult]) -> None:
        nonlocal inflight
        inflight -= 1
        if inflight == 0:
            idle.set()
        error = None if future.cancelled() else future.exception()
        if error is not None or future.cancelled():
            into.note_failure(error or asyncio.CancelledError(), 1)
            return
        into.latency.record(time.perf_counter_ns() - due_ns)
        into.acknowledged += 1
        on_progress(1)

    while sent < total:
        due = min(int((time.perf_counter_ns() - began) / period_ns) + 1, total)
        while sent < due:
            due_ns = began + int(sent * period_ns)
            sent += 1
            if inflight >= _MAX_OFFERED_INFLIGHT:
                into.refused += 1
                continue
            inflight += 1
            idle.clear()
            try:
                future = client.append_nowait(body)
            except DLedgerError as error:
                inflight -= 1
                into.note_failure(error, 1)
                continue
            future.add_done_callback(functools.partial(done, due_ns))
        await asyncio.sleep(_TICK_S)
    while inflight:
        await idle.wait()
