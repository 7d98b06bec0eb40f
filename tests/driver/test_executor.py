"""`ThreadExecutor`: quick work on the loop while the disk is quick, everything else in its thread."""

from __future__ import annotations

import asyncio
import threading

import pytest

from dledger.driver import executor as executor_module
from dledger.driver.executor import ThreadExecutor

PROOFS = 64


class Clock:
    """What `perf_counter` says: it stands still, but for the work that takes ``took_s``."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(executor_module, "perf_counter", clock)
    return clock


@pytest.fixture
def disk():
    executor = ThreadExecutor("disk")
    yield executor
    executor.shutdown()


def work(clock, took_s):
    clock.now += took_s
    return threading.current_thread() is threading.main_thread()


async def prove(disk, clock):
    for _ in range(PROOFS):
        await disk.run_quick(work, clock, 0.0002)


@pytest.mark.asyncio
async def test_a_disk_is_trusted_only_after_it_was_quick_for_a_while(disk, clock):
    assert not await disk.run_quick(work, clock, 0.0002)
    await prove(disk, clock)
    assert await disk.run_quick(work, clock, 0.0002)


@pytest.mark.asyncio
async def test_one_stall_sends_the_next_writes_back_to_the_thread(disk, clock):
    await prove(disk, clock)
    assert await disk.run_quick(work, clock, 0.5)
    assert not any([await disk.run_quick(work, clock, 0.0002) for _ in range(PROOFS // 2)])
    await prove(disk, clock)
    assert await disk.run_quick(work, clock, 0.0002)


@pytest.mark.asyncio
async def test_a_disk_that_is_always_a_bit_slow_leaves_the_loop_soon(disk, clock):
    await prove(disk, clock)
    on_loop = [await disk.run_quick(work, clock, 0.005) for _ in range(10)]
    assert on_loop.count(True) <= 3
    assert not on_loop[-1]


@pytest.mark.asyncio
async def test_quick_work_never_overtakes_what_the_thread_is_doing(disk, clock):
    await prove(disk, clock)
    gate, order = threading.Event(), []
    slow = asyncio.ensure_future(disk.run(lambda: (gate.wait(10), order.append("slow"))))
    quick = asyncio.ensure_future(disk.run_quick(order.append, "quick"))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    gate.set()
    await asyncio.gather(slow, quick)
    assert order == ["slow", "quick"]


@pytest.mark.asyncio
async def test_nor_what_the_thread_is_doing_for_somebody_who_was_cancelled(disk, clock):
    await prove(disk, clock)
    gate, begun, order = threading.Event(), threading.Event(), []
    slow = asyncio.ensure_future(disk.run(lambda: (begun.set(), gate.wait(10), order.append("slow"))))
    await asyncio.to_thread(begun.wait, 10)
    slow.cancel()
    await asyncio.gather(slow, return_exceptions=True)
    quick = asyncio.ensure_future(disk.run_quick(order.append, "quick"))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    gate.set()
    await quick
    assert order == ["slow", "quick"]


@pytest.mark.asyncio
async def test_an_error_comes_through_either_way(disk, clock):
    def fail():
        raise OSError("no")

    with pytest.raises(OSError, match="no"):
        await disk.run_quick(fail)
    await prove(disk, clock)
    with pytest.raises(OSError, match="no"):
        await disk.run_quick(fail)


@pytest.mark.asyncio
async def test_work_is_done_here_and_now_only_while_the_disk_is_quick_and_free(disk, clock):
    done = []
    assert not disk.try_now(done.append, "doubtful")
    await prove(disk, clock)
    assert disk.try_now(done.append, "quick")
    gate = threading.Event()
    slow = asyncio.ensure_future(disk.run(gate.wait, 10))
    await asyncio.sleep(0)
    assert not disk.try_now(done.append, "too early")
    gate.set()
    await slow
    assert disk.try_now(work, clock, 0.5)
    assert not disk.try_now(done.append, "after a stall")
    assert done == ["quick"]
