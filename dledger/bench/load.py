"""Load on a group: closed (so many callers, each waits) or offered (so many calls a second, come what may).

A closed loop's latencies are those of the calls that it made: while the group stands still it asks nothing, so a stall
counts once for each caller (*coordinated omission*). The offered load has a schedule: a latency counts from when the
call was due, whatever came before it, and a call that could not even be tried counts as the longest of all.

The load runs on from the warm-up through the window that is measured; the warm-up ends when the rate has settled.
"""

from __future__ import annotations

import asyncio
import functools
import math
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Final, Protocol, Self

from dledger.bench.histogram import Histogram
from dledger.errors import DLedgerError, PendingFullError

__all__ = ["OPERATIONS", "Control", "Load", "Measurement", "Work", "has_settled", "measure"]

OPERATIONS: Final = ("append", "append-batch", "get", "read", "unary", "unary-get", "unary-read")
"""What a load may do: with `LedgerClient`, or (``unary…``) with a gRPC client that knows only the proto."""

SLICE_S: Final = 0.1
"""The rate is looked at in pieces of this length."""

_SETTLED_SLICES: Final = 5
_SETTLED_WITHIN: Final = 0.1
_LONGEST_WARMUP: Final = 4.0
"""A warm-up ends after this many times the least warm-up, settled or not."""

_TICK_S: Final = 0.001
_MAX_OFFERED_INFLIGHT: Final = 100_000
_FOLD_AT: Final = 1_000_000
_PAUSE_AFTER_FAILURE_S: Final = 0.002


@dataclass(frozen=True, slots=True)
class Load:
    """What to offer.

    ``concurrency``: callers of the closed loop. ``rate``: entries a second, offered whether or not earlier ones are
    done; None: closed loop. ``batch``: entries a call of ``append-batch``. ``count``: entries in all, None: as many as
    ``duration_s`` takes. ``warmup_s``: the least warm-up; it lasts until the rate has settled, four times this at most.
    ``channels``: connections of a ``unary…`` load.
    """

    operation: str = "append"
    concurrency: int = 64
    size_bytes: int = 256
    batch: int = 1
    duration_s: float = 5.0
    count: int | None = None
    rate: float | None = None
    warmup_s: float = 1.0
    channels: int = 1

    def share(self, part: int, parts: int) -> Load:
        """Return what one of ``parts`` client processes does of it."""

        def split(value: int) -> int:
            return value // parts + (part < value % parts)

        values = asdict(self) | {"concurrency": max(split(self.concurrency), 1)}
        values["count"] = None if self.count is None else split(self.count)
        values["rate"] = None if self.rate is None else self.rate / parts
        return Load(**values)

    @property
    def name(self) -> str:
        """The load in a few words."""
        if self.rate:
            return f"{self.operation}, {self.rate:g}/s offered"
        batch = f" × {self.batch}" if self.operation == "append-batch" else ""
        channels = f" on {self.channels} channels" if self.channels > 1 else ""
        return f"{self.operation}, {self.concurrency} in flight{batch}{channels}"


@dataclass(frozen=True, slots=True)
class Work:
    """What one call is. ``call`` makes it; ``start`` makes it without waiting, where that is cheaper.

    ``entries``: what a call stands for; where calls differ, ``counted`` says it of a result: (entries, bytes).
    """

    call: Callable[[], Awaitable[Any]]
    entries: int = 1
    bytes_a_call: int = 0
    counted: Callable[[Any], tuple[int, int]] | None = None
    start: Callable[[], asyncio.Future[Any]] | None = None


class Control(Protocol):
    """Somebody who wants to know where the window begins and ends, and may hold it up (other processes are in it)."""

    async def begin(self) -> None:
        """The load is warm; return when the window may begin."""

    async def end(self) -> None:
        """The window is over; return when the load may stop."""


@dataclass(slots=True)
class Measurement:
    """What came of it. Latency in ns: from the call (closed), or from when it was due (offered)."""

    load: Load
    latency: Histogram = field(default_factory=Histogram)
    acknowledged: int = 0
    byte_count: int = 0
    failed: int = 0
    refused: int = 0
    """Offered entries that were not even tried: 100 000 calls or the client's window were in flight."""
    elapsed_s: float = 0.0
    warmup_s: float = 0.0
    slices: list[float] = field(default_factory=list)
    """Entries a second in each tenth of a second of the window."""
    cpu_s: dict[str, float] = field(default_factory=dict)
    """CPU seconds in the window, by process."""
    rss_bytes: dict[str, int] = field(default_factory=dict)
    first_error: str = ""

    @property
    def throughput(self) -> float:
        """Acknowledged entries a second."""
        return self.acknowledged / self.elapsed_s if self.elapsed_s else 0.0

    @property
    def megabytes_per_s(self) -> float:
        """Millions of bytes a second: bodies of appends, whole messages of reads."""
        return self.byte_count / self.elapsed_s / 1e6 if self.elapsed_s else 0.0

    @property
    def drift(self) -> float:
        """How much faster the window's second half was than its first (0.1: a tenth); 0 where it is too short."""
        half = len(self.slices) // 2
        if half < _SETTLED_SLICES or not sum(self.slices[:half]):
            return 0.0
        return sum(self.slices[-half:]) / sum(self.slices[:half]) - 1

    @property
    def is_steady(self) -> bool:
        """Whether both halves of the window were alike, within a tenth."""
        return abs(self.drift) <= _SETTLED_WITHIN

    def cpu_us_per_entry(self) -> dict[str, float]:
        """Return microseconds of CPU an entry, by process."""
        return {name: round(used / max(self.acknowledged, 1) * 1e6, 2) for name, used in self.cpu_s.items()}

    def as_json(self) -> dict[str, Any]:
        """Return the figures, latencies in milliseconds."""
        points = {"p50": 50.0, "p90": 90.0, "p99": 99.0, "p99.9": 99.9, "p99.99": 99.99}
        latency = {name: round(self.latency.percentile(point) / 1e6, 3) for name, point in points.items()}
        latency |= {"max": round(self.latency.maximum / 1e6, 3), "mean": round(self.latency.mean / 1e6, 3)}
        return {
            "operation": self.load.operation,
            "concurrency": None if self.load.rate else self.load.concurrency,
            "rate_per_s": self.load.rate,
            "batch": self.load.batch,
            "size_bytes": self.load.size_bytes,
            "channels": self.load.channels,
            "duration_s": round(self.elapsed_s, 3),
            "warmup_s": round(self.warmup_s, 2),
            "acknowledged": self.acknowledged,
            "failed": self.failed,
            "refused": self.refused,
            "throughput_per_s": round(self.throughput, 1),
            "megabytes_per_s": round(self.megabytes_per_s, 2),
            "latency_ms": latency,
            "drift": round(self.drift, 3),
            "steady": self.is_steady,
            "cpu_s": self.cpu_s,
            "cpu_us_per_entry": self.cpu_us_per_entry(),
            "rss_bytes": self.rss_bytes,
            "first_error": self.first_error or None,
        }

    def transfer(self) -> dict[str, Any]:
        """Return all that another process needs to go on with it."""
        names = ("acknowledged", "byte_count", "failed", "refused", "elapsed_s", "warmup_s", "slices", "first_error")
        return {name: getattr(self, name) for name in names} | {"histogram": self.latency.as_json()}

    @classmethod
    def joined(cls, load: Load, parts: Sequence[Mapping[str, Any]]) -> Self:
        """Return one measurement of what several processes transferred: counts are sums, times the longest."""
        made = cls(load)
        for part in parts:
            made.latency.add(Histogram.from_json(part["histogram"]))
            for name in ("acknowledged", "byte_count", "failed", "refused"):
                setattr(made, name, getattr(made, name) + int(part.get(name, 0)))
            made.elapsed_s = max(made.elapsed_s, float(part["elapsed_s"]))
            made.warmup_s = max(made.warmup_s, float(part.get("warmup_s", 0.0)))
            made.first_error = made.first_error or str(part.get("first_error") or "")
        slices = [part.get("slices", []) for part in parts]
        made.slices = [sum(values) for values in zip(*slices, strict=False)]
        return made


def has_settled(rates: Sequence[float]) -> bool:
    """Whether the last five slices together are within a tenth of the five before."""
    if len(rates) < 2 * _SETTLED_SLICES:
        return False
    late = sum(rates[-_SETTLED_SLICES:])
    early = sum(rates[-2 * _SETTLED_SLICES : -_SETTLED_SLICES])
    return late > 0 and abs(late - early) <= _SETTLED_WITHIN * max(late, early)


class _Phase:
    """A stretch of the load: the calls that belong to it, and what became of them."""

    __slots__ = (
        "byte_count", "counted", "entries", "failed", "first_error", "folded", "inflight", "latencies", "left",
        "refused", "settled",
    )  # fmt: skip

    def __init__(self, entries: int, left: float = math.inf) -> None:
        self.entries = entries
        self.left = left
        """Calls that may still begin."""
        self.inflight = 0
        self.latencies: list[int] = []
        self.folded = Histogram()
        self.counted = 0
        self.byte_count = 0
        self.failed = 0
        self.refused = 0
        self.first_error = ""
        self.settled = asyncio.Event()
        """No call may begin and none is under way."""

    @property
    def acknowledged(self) -> int:
        return self.counted or (len(self.latencies) + self.folded.count) * self.entries

    def close(self) -> None:
        """Let no further call begin."""
        self.left = 0
        self._look()

    def ended(self) -> None:
        """A call that began in this phase has ended, well or badly."""
        self.inflight -= 1
        if self.left <= 0:
            self._look()

    def _look(self) -> None:
        if self.inflight == 0:
            self.settled.set()

    def fold(self) -> Histogram:
        """Return the histogram of all latencies so far."""
        self.folded.record_all(self.latencies)
        self.latencies = []
        return self.folded

    def note_failure(self, error: BaseException) -> None:
        self.failed += self.entries
        if not self.first_error:
            name = error.code.name if isinstance(error, DLedgerError) else type(error).__name__
            self.first_error = f"{name}: {error}"


class _Closed:
    """``concurrency`` callers, each with one call at a time."""

    def __init__(self, work: Work, load: Load) -> None:
        self._work = work
        self._count = load.concurrency
        self._phase = _Phase(work.entries, 0)
        self._tasks: list[asyncio.Task[None]] = []

    def enter(self, phase: _Phase) -> None:
        """From now on calls belong to this phase; those that end in it count for it, whenever they began."""
        self._phase = phase
        self._tasks = [task for task in self._tasks if not task.done()]
        if phase.left > 0:
            missing = self._count - len(self._tasks)
            self._tasks += [asyncio.ensure_future(self._caller()) for _ in range(missing)]

    def check(self) -> None:
        """Raise what ended a caller: then the load is no longer what was asked for."""
        for task in self._tasks:
            if task.done() and not task.cancelled() and (error := task.exception()) is not None:
                raise error

    async def stop(self) -> None:
        self._phase.close()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self.check()

    async def _caller(self) -> None:
        call, counted, now = self._work.call, self._work.counted, time.perf_counter_ns
        while (mine := self._phase).left > 0:
            mine.left -= 1
            mine.inflight += 1
            began = now()
            try:
                result = await call()
            except DLedgerError as error:
                self._phase.note_failure(error)
                await asyncio.sleep(_PAUSE_AFTER_FAILURE_S)
            else:
                phase = self._phase
                phase.latencies.append(now() - began)
                if counted is not None:
                    entries, byte_count = counted(result)
                    phase.counted += entries
                    phase.byte_count += byte_count
            finally:
                mine.ended()


class _Offered:
    """Calls on a schedule; each belongs to the phase in which it was due (no coordinated omission)."""

    def __init__(self, work: Work, load: Load) -> None:
        self._work = work
        self._period_ns = 1e9 * work.entries / (load.rate or 1.0)
        self._phase = _Phase(work.entries, 0)
        self._inflight = 0
        self._broken: BaseException | None = None
        self._task: asyncio.Task[None] | None = None

    def enter(self, phase: _Phase) -> None:
        self._phase = phase
        if self._task is None and phase.left > 0:
            self._task = asyncio.ensure_future(self._offer())

    def check(self) -> None:
        """Raise what no call should raise."""
        if self._broken is not None:
            raise self._broken

    async def stop(self) -> None:
        self._phase.close()
        if self._task is not None:
            await self._task
        self.check()

    async def _offer(self) -> None:
        due_ns = float(time.perf_counter_ns())
        while True:
            phase = self._phase
            if phase.left <= 0:
                if phase.settled.is_set():
                    break
                phase.close()
                await asyncio.sleep(_TICK_S)
                due_ns = float(time.perf_counter_ns())
                continue
            now = time.perf_counter_ns()
            while due_ns <= now and phase.left > 0:
                phase.left -= 1
                self._begin(phase, int(due_ns))
                due_ns += self._period_ns
            await asyncio.sleep(_TICK_S)
        self._task = None

    def _begin(self, phase: _Phase, due_ns: int) -> None:
        if self._inflight >= _MAX_OFFERED_INFLIGHT:
            phase.refused += self._work.entries
            return
        try:
            start = self._work.start
            future = start() if start is not None else asyncio.ensure_future(self._work.call())
        except PendingFullError:
            phase.refused += self._work.entries
            return
        except DLedgerError as error:
            phase.note_failure(error)
            return
        self._inflight += 1
        phase.inflight += 1
        future.add_done_callback(functools.partial(self._done, phase, due_ns))

    def _done(self, phase: _Phase, due_ns: int, future: asyncio.Future[Any]) -> None:
        self._inflight -= 1
        error = asyncio.CancelledError() if future.cancelled() else future.exception()
        if error is not None:
            phase.note_failure(error)
            if not isinstance(error, DLedgerError | asyncio.CancelledError):
                self._broken = error
        else:
            phase.latencies.append(max(time.perf_counter_ns() - due_ns, 0))
            if self._work.counted is not None:
                entries, byte_count = self._work.counted(future.result())
                phase.counted += entries
                phase.byte_count += byte_count
        phase.ended()


class _NoControl:
    """Nobody else is in the window."""

    async def begin(self) -> None:
        """Begin at once."""

    async def end(self) -> None:
        """Stop at once."""


async def measure(
    work: Work, load: Load, on_progress: Callable[[int], None] | None = None, control: Control | None = None
) -> Measurement:
    """Put a load on a group and measure it, after a warm-up that does not count.

    ``on_progress(entries)`` is called ten times a second with what was acknowledged since. Failed calls are counted,
    not raised; only what is no `DLedgerError` is.
    """
    control = control or _NoControl()
    runner = _Closed(work, load) if load.rate is None else _Offered(work, load)
    found = Measurement(load)
    phase = _Phase(work.entries)
    try:
        if load.warmup_s:
            found.warmup_s = await _warm_up(runner, phase, load.warmup_s)
        if load.count is not None:
            # So many entries, not those that were under way before: begin from rest.
            phase.close()
            await phase.settled.wait()
        await control.begin()
        budget = math.inf if load.count is None else -(-load.count // work.entries)
        phase = _Phase(work.entries, budget)
        runner.enter(phase)
        found.elapsed_s, found.slices = await _watch(runner, phase, load, on_progress or (lambda _: None))
        await _conclude(runner, phase, found, work)
        await control.end()
    finally:
        await runner.stop()
    return found


async def _conclude(runner: _Closed | _Offered, phase: _Phase, found: Measurement, work: Work) -> None:
    """Take what the window saw; the load runs on for others unless it was a count."""
    load = found.load
    began = time.perf_counter()
    # What a closed loop has under way belongs to the time after the window; what was due in it belongs to it.
    if load.count is None:
        runner.enter(_Phase(work.entries))
    if load.rate is not None:
        phase.close()
        await phase.settled.wait()
        found.elapsed_s += time.perf_counter() - began
    found.acknowledged = phase.acknowledged
    found.latency = phase.fold()
    if phase.refused:
        # They waited longer than anything that was answered.
        longest = max(found.latency.maximum, int(found.elapsed_s * 1e9))
        found.latency.record_all([longest] * (phase.refused // work.entries))
    found.failed, found.refused, found.first_error = phase.failed, phase.refused, phase.first_error
    found.byte_count = phase.byte_count or found.acknowledged // work.entries * work.bytes_a_call


async def _warm_up(runner: _Closed | _Offered, phase: _Phase, least_s: float) -> float:
    """Run the load until its rate has settled; returns the seconds that this took."""
    runner.enter(phase)
    began = seen_at = time.perf_counter()
    seen = 0
    rates: list[float] = []
    while True:
        await asyncio.sleep(SLICE_S)
        runner.check()
        now = time.perf_counter()
        rates.append((phase.acknowledged - seen) / (now - seen_at))
        seen, seen_at = phase.acknowledged, now
        if len(phase.latencies) > _FOLD_AT:
            phase.fold()
        past = now - began
        if past >= least_s and (has_settled(rates) or past >= _LONGEST_WARMUP * least_s):
            return past


async def _watch(
    runner: _Closed | _Offered, phase: _Phase, load: Load, on_progress: Callable[[int], None]
) -> tuple[float, list[float]]:
    """Wait for the window's end; returns its seconds and its rates."""
    began = seen_at = time.perf_counter()
    seen = 0
    rates: list[float] = []
    while True:
        left_s = math.inf if load.count is not None else load.duration_s - (seen_at - began)
        if load.count is None:
            await asyncio.sleep(min(SLICE_S, max(left_s, 0.0)))
        else:
            await _wait_at_most(phase.settled, SLICE_S)
        runner.check()
        now = time.perf_counter()
        if now - seen_at > SLICE_S / 2:
            rates.append((phase.acknowledged - seen) / (now - seen_at))
        on_progress(phase.acknowledged - seen)
        seen, seen_at = phase.acknowledged, now
        if len(phase.latencies) > _FOLD_AT:
            phase.fold()
        if phase.settled.is_set() or (load.count is None and now - began >= load.duration_s):
            return now - began, rates


async def _wait_at_most(event: asyncio.Event, limit_s: float) -> None:
    try:
        async with asyncio.timeout(limit_s):
            await event.wait()
    except TimeoutError:
        return
