"""The loop on virtual time is an asyncio loop: everything that asyncio promises, and nothing that takes real time."""

from __future__ import annotations

import asyncio
import contextlib
import random
import signal
import time

import pytest

from dledger.sim.loop import SimDeadlockError, SimLivelockError, SimLoop, current_process


@pytest.fixture
def loop():
    loop = SimLoop(random.Random(1))
    yield loop
    loop.close()
    assert loop.unhandled == []


def test_time_is_virtual(loop):
    """An hour of sleep costs nothing and is exactly an hour."""

    async def main():
        start = loop.time()
        await asyncio.sleep(3600)
        return loop.time() - start

    real = time.perf_counter()
    assert loop.run_until_complete(main()) == pytest.approx(3600)
    assert time.perf_counter() - real < 5


def test_asyncio_tools_work(loop):
    """Timeouts, queues, events, locks, groups, gather, wait, shield and generators behave as on a real loop."""

    async def main():
        queue: asyncio.Queue[int] = asyncio.Queue(1)
        event = asyncio.Event()

        async def producer():
            for i in range(3):
                await queue.put(i)
                await asyncio.sleep(0.1)
            event.set()

        async def numbers():
            for i in range(2):
                await asyncio.sleep(0)
                yield i

        async with asyncio.TaskGroup() as group:
            group.create_task(producer())
            seen = [await queue.get() for _ in range(3)]
            await event.wait()
        assert seen == [0, 1, 2]
        assert [i async for i in numbers()] == [0, 1]
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.5):
                await asyncio.sleep(1)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(asyncio.Event().wait(), 0.1)
        sleeper = asyncio.create_task(asyncio.sleep(9))
        done, pending = await asyncio.wait([sleeper], timeout=1)
        assert not done and pending == {sleeper}
        sleeper.cancel()
        assert isinstance((await asyncio.gather(sleeper, return_exceptions=True))[0], asyncio.CancelledError)
        assert await asyncio.shield(asyncio.sleep(0.1, 7)) == 7
        async with asyncio.Lock():
            return asyncio.get_running_loop() is loop

    assert loop.run_until_complete(main())


def test_call_soon_is_first_in_first_out_and_timers_go_by_time(loop):
    """The order within a process is asyncio's own, whatever the seed."""
    seen: list[object] = []

    async def main():
        loop.call_later(0.3, seen.append, "late")
        loop.call_later(0.1, seen.append, "early")
        cancelled = loop.call_later(0.2, seen.append, "never")
        cancelled.cancel()
        for i in range(50):
            loop.call_soon(seen.append, i)
        await asyncio.sleep(1)

    loop.run_until_complete(main())
    assert seen == [*range(50), "early", "late"]


def _interleaving(seed: int, *, shuffle: bool = True) -> list[str]:
    loop = SimLoop(random.Random(seed), shuffle=shuffle)
    seen: list[str] = []

    async def work(name: str):
        for i in range(5):
            seen.append(f"{name}{i}")
            await asyncio.sleep(0.001)

    processes = [loop.process(name) for name in "abc"]
    tasks = [process.run(loop.create_task, work(process.name)) for process in processes]
    for task in tasks:
        loop.run_until_complete(task)
    loop.close()
    return seen


def test_the_seed_decides_which_process_goes_first():
    """Same seed, same interleaving; different seeds, different ones; unshuffled, first come first served."""
    assert _interleaving(3) == _interleaving(3)
    assert len({tuple(_interleaving(seed)) for seed in range(20)}) > 10
    plain = _interleaving(3, shuffle=False)
    assert plain == [f"{name}{i}" for i in range(5) for name in "abc"]
    for name in "abc":
        own = [step for step in _interleaving(4) if step[0] == name]
        assert own == [f"{name}{i}" for i in range(5)]


def test_kill_runs_nothing_more(loop):
    """kill -9: no further step, no finally, no cancellation, no timer; not even when the loop is closed."""
    seen: list[str] = []
    process = loop.process("victim")

    async def victim():
        try:
            await asyncio.sleep(1)
            seen.append("woke")
        finally:
            if not loop.is_closed():
                seen.append("cleaned up")

    async def main():
        process.run(loop.create_task, victim())
        process.run(loop.call_later, 0.7, seen.append, "timer")
        await asyncio.sleep(0.5)
        loop.kill(process)
        await asyncio.sleep(5)

    loop.run_until_complete(main())
    assert seen == []


def test_a_paused_process_sees_everything_later_in_order(loop):
    """SIGSTOP and SIGCONT: what became due meanwhile runs at the end of the pause, nothing is lost."""
    seen: list[tuple[int, float]] = []
    process = loop.process("sleepy")

    async def main():
        start = loop.time()
        for i in range(5):
            process.run(loop.call_later, 0.1 * (i + 1), lambda i=i: seen.append((i, loop.time() - start)))
        loop.call_later(0.25, loop.pause, process)
        loop.call_later(2.0, loop.resume, process)
        await asyncio.sleep(3)

    loop.run_until_complete(main())
    assert [i for i, _ in seen] == [0, 1, 2, 3, 4]
    assert [round(at, 3) for _, at in seen] == [0.1, 0.2, 2.0, 2.0, 2.0]


def test_callbacks_belong_to_the_process_that_scheduled_them(loop):
    """Tasks, timers and futures' callbacks keep their process, across awaits."""
    names: list[str | None] = []

    def note():
        process = current_process()
        names.append(process.name if process else None)

    async def child():
        await asyncio.sleep(0.1)
        note()

    async def main():
        process = loop.process("p")
        task = process.run(loop.create_task, child())
        process.run(loop.call_soon, note)
        note()
        await task
        note()

    loop.run_until_complete(main())
    assert names == [None, "p", "p", None]


def test_deadlock_and_livelock_are_errors(loop):
    """A run that cannot go on, or that spins at one instant, ends with an error instead of hanging."""

    async def forever():
        await loop.create_future()

    with pytest.raises(SimDeadlockError):
        loop.run_until_complete(forever())

    async def spin():
        loop.call_soon(spin_again)
        await loop.create_future()

    def spin_again():
        loop.call_soon(spin_again)

    with pytest.raises(SimLivelockError):
        loop.run_until_complete(spin())


def test_threads_are_refused(loop):
    """Blocking work must go through the simulated executor."""

    async def main():
        with pytest.raises(RuntimeError, match="no threads"):
            await asyncio.to_thread(int)

    loop.run_until_complete(main())


def test_unhandled_exceptions_are_collected():
    """What asyncio would log is kept, with the name of the process, for the verdict."""
    loop = SimLoop(random.Random(1))
    process = loop.process("n1")

    async def main():
        process.run(loop.call_soon, lambda: 1 / 0)
        await asyncio.sleep(1)

    loop.run_until_complete(main())
    loop.close()
    [(name, context)] = loop.unhandled
    assert name == "n1" and isinstance(context["exception"], ZeroDivisionError)


def test_debug_mode_changes_nothing(loop):
    """asyncio's debug mode works on this loop."""
    loop.set_debug(True)

    async def main():
        loop.call_later(0.1, int).cancel()
        await asyncio.sleep(1)
        return "done"

    assert loop.run_until_complete(main()) == "done"


def test_many_cancelled_timers_are_swept(loop):
    """A timer per request, cancelled each time, does not fill the heap."""

    async def main():
        for _ in range(20_000):
            loop.call_later(1000, int).cancel()
        await asyncio.sleep(0.1)

    loop.run_until_complete(main())
    assert len(loop._timers) < 1000


class TimeIsUp(BaseException):
    """What a test's time limit raises, as `pytest.fail.Exception`, is no `Exception`."""


@pytest.fixture
def alarm():
    """A handler of SIGALRM that raises, in the place of pytest-timeout's own."""

    def ring(_number, _frame):
        raise TimeIsUp

    before = signal.signal(signal.SIGALRM, ring)
    yield ring
    assert signal.getsignal(signal.SIGALRM) is ring, "the loop puts back what it found"
    signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("where", ["task", "callback", "code that swallows"])
def test_a_time_limit_ends_the_run_wherever_it_strikes(alarm, where):
    """In a task that keeps the exception, in a callback that the loop guards, in code that catches everything."""
    loop = SimLoop(random.Random(1))

    async def strike():
        signal.raise_signal(signal.SIGALRM)

    async def swallow():
        with contextlib.suppress(BaseException):
            await strike()

    async def main():
        if where == "callback":
            loop.call_later(1, signal.raise_signal, signal.SIGALRM)
        else:
            loop.create_task(strike() if where == "task" else swallow())
        await asyncio.sleep(3600)

    with pytest.raises(TimeIsUp):
        loop.run_until_complete(main())
    assert loop.time() < 1002
    loop.close()
