"""Where blocking work runs: one thread for writes, a few for reads; simulated ones in the simulator."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol, TypeVar, TypeVarTuple, Unpack

__all__ = ["DiskExecutor", "ThreadExecutor"]

_T = TypeVar("_T")
_Args = TypeVarTuple("_Args")


class DiskExecutor(Protocol):
    """Runs blocking functions, one at a time in the order of the calls unless it says otherwise."""

    async def run(self, function: Callable[[Unpack[_Args]], _T], *args: *_Args) -> _T:
        """Run ``function(*args)`` off the event loop and return its result or raise its exception."""

    def shutdown(self) -> None:
        """Take no more work; what runs is finished."""


class ThreadExecutor:
    """`DiskExecutor` on ``threads`` real threads (1: strictly in order)."""

    def __init__(self, name: str, threads: int = 1) -> None:
        self._pool = ThreadPoolExecutor(max_workers=threads, thread_name_prefix=name)

    async def run(self, function: Callable[[Unpack[_Args]], _T], *args: *_Args) -> _T:
        return await asyncio.get_running_loop().run_in_executor(self._pool, function, *args)

    def shutdown(self) -> None:
        self._pool.shutdown(wait=True)
