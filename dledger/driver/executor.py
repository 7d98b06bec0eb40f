"""Where blocking work runs: one thread for writes, a few for reads; simulated ones in the simulator."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from time import perf_counter
from typing import Final, Protocol, TypeVar, TypeVarTuple, Unpack

__all__ = ["DiskExecutor", "ThreadExecutor"]

_T = TypeVar("_T")
_Args = TypeVarTuple("_Args")

_QUICK_S: Final = 0.002
_SLOW_S: Final = 0.02
_DOUBT_MAX: Final = 64
_DOUBT_INLINE_MAX: Final = 8


class DiskExecutor(Protocol):
    """Runs blocking functions, one at a time in the order of the calls unless it says otherwise."""

    async def run(self, function: Callable[[Unpack[_Args]], _T], *args: *_Args) -> _T:
        """Run ``function(*args)`` off the event loop and return its result or raise its exception."""

    async def run_quick(self, function: Callable[[Unpack[_Args]], _T], *args: *_Args) -> _T:
        """As `run`, for work that a healthy disk does within a millisecond: maybe on the event loop itself."""

    def try_now(self, function: Callable[[Unpack[_Args]], object], *args: *_Args) -> bool:
        """Do such work here and now, without a turn of the event loop; False, and not done, where that may take long.

        What ``function`` raises is raised.
        """

    def shutdown(self) -> None:
        """Take no more work; what runs is finished."""


class ThreadExecutor:
    """`DiskExecutor` on ``threads`` real threads (1: strictly in order).

    Two hand-overs between threads cost more than a quick fsync. So while nearly all of the last quick functions took
    less than two milliseconds, the next runs on the loop. One that takes 20 sends the next fifty back to the thread,
    and so do a few that take longer than two: a disk that turns slow blocks the loop once, not for each write.
    """

    def __init__(self, name: str, threads: int = 1) -> None:
        self._pool = ThreadPoolExecutor(max_workers=threads, thread_name_prefix=name)
        self._busy_count = 0
        self._doubt = _DOUBT_MAX // 2

    async def run(self, function: Callable[[Unpack[_Args]], _T], *args: *_Args) -> _T:
        self._busy_count += 1
        work = asyncio.get_running_loop().run_in_executor(self._pool, function, *args)
        work.add_done_callback(self._done)
        return await asyncio.shield(
            work
        )  # whoever waits may be cancelled; the thread goes on, and counts until it ends

    def _done(self, _work: object) -> None:
        self._busy_count -= 1

    async def run_quick(self, function: Callable[[Unpack[_Args]], _T], *args: *_Args) -> _T:
        if self._doubt <= _DOUBT_INLINE_MAX and not self._busy_count:
            return self._timed(function, *args)
        return await self.run(self._timed, function, *args)

    def try_now(self, function: Callable[[Unpack[_Args]], object], *args: *_Args) -> bool:
        if self._doubt > _DOUBT_INLINE_MAX or self._busy_count:
            return False
        self._timed(function, *args)
        return True

    def _timed(self, function: Callable[[Unpack[_Args]], _T], *args: *_Args) -> _T:
        started = perf_counter()
        try:
            return function(*args)
        finally:
            took_s = perf_counter() - started
            if took_s < _QUICK_S:
                self._doubt = max(self._doubt - 1, 0)
            else:
                self._doubt = min(self._doubt + (4 if took_s < _SLOW_S else _DOUBT_MAX), _DOUBT_MAX)

    def shutdown(self) -> None:
        self._pool.shutdown(wait=True)
