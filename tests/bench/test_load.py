"""What a load measures: every call once, from when it was due, and only what belongs to the window."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dledger.bench.histogram import Histogram
from dledger.bench.load import Load, Measurement, Work, has_settled, measure
from dledger.errors import PendingFullError, QuorumTimeoutError


async def at_once() -> None:
    await asyncio.sleep(0)


# ---------------------------------------------------------------- histogram


@given(st.lists(st.integers(min_value=0, max_value=10**12), max_size=300), st.integers(0, 300))
def test_many_at_once_or_one_by_one_or_added_is_the_same(values: list[int], cut: int) -> None:
    single, bulk, first, second = Histogram(), Histogram(), Histogram(), Histogram()
    for value in values:
        single.record(value)
    bulk.record_all(list(values))
    first.record_all(list(values[:cut]))
    second.record_all(list(values[cut:]))
    first.add(Histogram.from_json(second.as_json()))
    for other in (bulk, first):
        assert other.as_json() == single.as_json()
        assert (other.count, other.maximum, other.mean) == (single.count, single.maximum, single.mean)


# ---------------------------------------------------------------- closed loop


@pytest.mark.asyncio
async def test_a_count_is_exact_and_in_whole_calls() -> None:
    made = 0

    async def call() -> None:
        nonlocal made
        made += 1
        await asyncio.sleep(0)

    found = await measure(Work(call, entries=10, bytes_a_call=2560), Load(concurrency=7, count=95, warmup_s=0.0))
    assert made == 10
    assert (found.acknowledged, found.latency.count, found.byte_count) == (100, 10, 25_600)
    assert found.throughput == pytest.approx(100 / found.elapsed_s)


@pytest.mark.asyncio
async def test_no_more_calls_than_callers_are_under_way_and_all_end() -> None:
    inflight = most = 0

    async def call() -> None:
        nonlocal inflight, most
        inflight += 1
        most = max(most, inflight)
        await asyncio.sleep(0)
        inflight -= 1

    found = await measure(Work(call), Load(concurrency=5, duration_s=0.25, warmup_s=0.05))
    assert most == 5
    assert inflight == 0
    assert found.warmup_s >= 0.05
    assert found.elapsed_s >= 0.25
    assert found.acknowledged == found.latency.count > 0
    assert found.slices


@pytest.mark.asyncio
async def test_the_window_begins_when_the_control_says_so_and_the_load_goes_on_meanwhile() -> None:
    calls: list[str] = []
    phase = "warm"
    reached = {name: asyncio.Event() for name in ("warm", "held", "window", "after")}

    async def call() -> None:
        calls.append(phase)
        if calls.count(phase) >= 50:
            reached[phase].set()
        await asyncio.sleep(0)

    class Control:
        async def begin(self) -> None:
            nonlocal phase
            phase = "held"
            await reached["held"].wait()
            phase = "window"

        async def end(self) -> None:
            nonlocal phase
            phase = "after"
            await reached["after"].wait()

    found = await measure(Work(call), Load(concurrency=2, duration_s=0.15, warmup_s=0.05), control=Control())
    counts = {name: calls.count(name) for name in ("warm", "held", "window", "after")}
    assert all(counts.values())
    # The two callers may have had one call each under way at either edge.
    assert abs(found.acknowledged - counts["window"]) <= 4


@pytest.mark.asyncio
async def test_failures_are_counted_with_the_first_reason_and_do_not_end_the_load() -> None:
    numbers = iter(range(1000))

    async def call() -> None:
        if next(numbers) % 3 == 0:
            raise QuorumTimeoutError("nobody answers")

    found = await measure(Work(call, entries=2), Load(concurrency=1, count=60, warmup_s=0.0))
    assert (found.failed, found.acknowledged) == (20, 40)
    assert "QUORUM" in found.first_error.upper()
    assert "nobody answers" in found.first_error


@pytest.mark.asyncio
async def test_what_is_no_error_of_ours_is_raised() -> None:
    async def call() -> None:
        raise ZeroDivisionError

    for load in (Load(concurrency=1, count=3, warmup_s=0.0), Load(rate=100.0, count=3, warmup_s=0.0)):
        with pytest.raises(ZeroDivisionError):
            await measure(Work(call), load)


@pytest.mark.asyncio
async def test_reads_count_what_they_found() -> None:
    async def call() -> tuple[int, int]:
        return 100, 25_600

    found = await measure(Work(call, counted=lambda result: result), Load("read", 1, count=4, warmup_s=0.0))
    assert (found.acknowledged, found.byte_count, found.latency.count) == (400, 102_400, 4)


# ---------------------------------------------------------------- offered load


@pytest.mark.asyncio
async def test_a_stall_counts_for_every_call_that_was_due_in_it() -> None:
    """No coordinated omission: nothing is answered until 40 calls are waiting; each waited from when it was due."""
    waiting: list[asyncio.Future[None]] = []

    def start() -> asyncio.Future[None]:
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        waiting.append(future)
        if len(waiting) >= 40:
            for one in waiting:
                if not one.done():
                    one.set_result(None)
        return future

    load = Load(count=40, rate=1000.0, warmup_s=0.0)
    found = await measure(Work(at_once, start=start), load)
    assert found.acknowledged == 40
    # The k-th of 40 was due k ms after the first, and all were answered at 39 ms at the earliest.
    assert found.latency.maximum >= 39e6
    assert found.latency.percentile(50) >= 19e6


@pytest.mark.asyncio
async def test_what_could_not_be_tried_counts_as_the_longest() -> None:
    numbers = iter(range(1000))

    def start() -> asyncio.Future[None]:
        if next(numbers) % 2:
            raise PendingFullError("full")
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        future.set_result(None)
        return future

    found = await measure(Work(at_once, start=start), Load(count=40, rate=2000.0, warmup_s=0.0))
    assert (found.acknowledged, found.refused, found.failed) == (20, 20, 0)
    assert found.latency.count == 40
    assert found.latency.percentile(75) >= found.elapsed_s * 1e9 * 0.98


@pytest.mark.asyncio
async def test_an_offered_load_keeps_its_rate_through_warm_up_and_window() -> None:
    found = await measure(Work(at_once), Load(rate=500.0, duration_s=0.5, warmup_s=0.1))
    assert found.acknowledged == pytest.approx(250, rel=0.3)


# ---------------------------------------------------------------- steadiness and shares


def test_rates_have_settled_when_both_halves_agree() -> None:
    assert not has_settled([100.0] * 9)
    assert has_settled([100.0] * 10)
    assert has_settled([1.0] * 20 + [100, 90, 110, 100, 100, 100, 105, 95, 100, 100])
    assert not has_settled([50.0] * 5 + [100.0] * 5)
    assert not has_settled([0.0] * 10)


def test_a_window_that_slows_down_is_not_steady() -> None:
    found = Measurement(Load(), slices=[100.0] * 5 + [50.0] * 5)
    assert (found.drift, found.is_steady) == (-0.5, False)
    assert Measurement(Load(), slices=[100.0] * 10).is_steady
    assert Measurement(Load(), slices=[1.0]).is_steady, "too short to say"


def test_client_processes_share_the_load_without_loss() -> None:
    load = Load("append-batch", 10, batch=4, count=101, rate=900.0)
    shares = [load.share(part, 3) for part in range(3)]
    assert [share.concurrency for share in shares] == [4, 3, 3]
    assert sum(share.count or 0 for share in shares) == 101
    assert sum(share.rate or 0.0 for share in shares) == pytest.approx(900.0)
    assert {share.batch for share in shares} == {4}


def test_what_processes_transfer_adds_up() -> None:
    parts = []
    for number in (1, 2):
        part = Measurement(Load(), acknowledged=100 * number, failed=number, elapsed_s=2.0, slices=[10.0, 20.0])
        part.latency.record(1_000_000 * number)
        parts.append(part.transfer())
    joined = Measurement.joined(Load(), parts)
    assert (joined.acknowledged, joined.failed, joined.elapsed_s, joined.slices) == (300, 3, 2.0, [20.0, 40.0])
    assert (joined.latency.count, joined.latency.maximum) == (2, 2_000_000)
    assert joined.throughput == 150.0
