"""Single calls of many clients share the rounds of the group.

An append or a linearizable read wakes every node once, however many calls it is for. A client with a stream gathers
its own; callers of single calls know nothing of each other, so they meet here: who comes while a round is under way
goes with the next one, and where there is company, the next round waits until all have come again: a few not for longer
than the last round took, many for some milliseconds, since then it is the rounds that they wait for, and fewer and
larger ones serve all sooner. One caller alone never waits.

How many callers there are nobody says: most of them may be on their way through gRPC while rounds of two come and go,
and such rounds, dear as they are, keep it so. So where there is company, a round now and then waits for twice as many
as are known, for some milliseconds; while that finds more than were known, the next one does it again.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Final, Generic, TypeVar

from dledger.rpc.interfaces import Backend
from dledger.types import AppendResult, BatchResult, ReadMode

__all__ = ["GatheredAppends", "GatheredReads", "Rounds"]

MAX_HOLD_S: Final = 0.008
_MANY: Final = 8
_WORTH_A_ROUND: Final = 48
"""So many need not wait for more."""

_MAX_OPEN: Final = 2
_PROBE_EVERY: Final = 128
"""After a look for unknown callers that found none come so many rounds without."""

_T = TypeVar("_T")


class Rounds(Generic[_T]):
    """Decides when what waits begins a round. ``begin(waiting)`` takes what it can from the front and returns the rest;
    `ended` tells that such a round is over."""

    def __init__(self, begin: Callable[[list[_T]], list[_T]]) -> None:
        self._begin = begin
        self._waiting: list[_T] = []
        self._begun: deque[float] = deque()
        """When each open round began, on the loop's clock; they end in turn."""
        self._known_count = 1
        """Callers, as far as one can see."""
        self._wanted_count = 1
        self._hold_s = 0.0
        self._probe_in = _PROBE_EVERY
        """Rounds until one looks for callers that are not known."""
        self._timer: asyncio.TimerHandle | None = None

    def join(self, item: _T) -> None:
        """Take part in the next round: it begins now, or within `MAX_HOLD_S` of the end of the one before."""
        self._waiting.append(item)
        self._look()

    def ended(self, count: int) -> None:
        """A round of ``count`` items is over."""
        took_s = asyncio.get_running_loop().time() - self._begun.popleft()
        # Those who were answered may come again; of those who did not come in time most are still believed in.
        callers = max(count + len(self._waiting), self._known_count * 3 // 4)
        self._hold_s = MAX_HOLD_S if callers >= _MANY else min(took_s, MAX_HOLD_S)
        wanted = callers
        if callers > 1:
            if self._probe_in:
                self._probe_in -= 1
            elif callers <= self._known_count:
                self._probe_in = _PROBE_EVERY
            if not self._probe_in:
                wanted, self._hold_s = 2 * callers, MAX_HOLD_S
        self._known_count = callers
        self._wanted_count = min(wanted, _WORTH_A_ROUND)
        self._look()

    def hurry(self) -> None:
        """Begin with what waits."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._waiting:
            self._begun.append(asyncio.get_running_loop().time())
            self._waiting = self._begin(self._waiting)

    def _look(self) -> None:
        count = len(self._waiting)
        wanted = _WORTH_A_ROUND if self._begun else self._wanted_count
        if count >= wanted and len(self._begun) < _MAX_OPEN:
            self.hurry()
        elif count and not self._begun and self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(self._hold_s, self.hurry)


class GatheredAppends:
    """Bodies of single appends without a session, submitted as batches. The order is that of the calls."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._rounds: Rounds[tuple[bytes, asyncio.Future[AppendResult]]] = Rounds(self._begin)

    def append(self, body: bytes) -> asyncio.Future[AppendResult]:
        """Return the future of the entry's place. The body is within the limits."""
        future: asyncio.Future[AppendResult] = asyncio.get_running_loop().create_future()
        self._rounds.join((body, future))
        return future

    def close(self) -> None:
        """Let nobody wait for company."""
        self._rounds.hurry()

    def _begin(
        self, waiting: list[tuple[bytes, asyncio.Future[AppendResult]]]
    ) -> list[tuple[bytes, asyncio.Future[AppendResult]]]:
        count = size = 0
        for body, _ in waiting[: self._backend.max_batch_entries]:
            size += len(body)
            if count and size > self._backend.max_batch_bytes:
                break
            count += 1
        bodies = [body for body, _ in waiting[:count]]
        futures = [future for _, future in waiting[:count]]

        def done(result: BatchResult | None, error: Exception | None) -> None:
            if result is None:
                _fail(futures, error or RuntimeError("neither result nor error"))
            else:
                places = [
                    AppendResult(run.first_index + at, run.term) for run in result.runs for at in range(run.count)
                ]
                for future, place in zip(futures, places, strict=True):
                    if not future.done():
                        future.set_result(place)
            self._rounds.ended(count)

        try:
            self._backend.submit(bodies, session_id=0, first_sequence=0, done=done)
        except Exception as error:  # else this round would never end, nor another begin
            asyncio.get_running_loop().call_soon(done, None, error)
        return waiting[count:]


class GatheredReads:
    """Read indexes for single reads: all that wait share one request, which begins after the last of them came."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._rounds: Rounds[asyncio.Future[int]] = Rounds(self._begin)
        self._tasks: set[asyncio.Task[None]] = set()

    async def read_index(self, mode: ReadMode) -> int:
        """See ``Backend.read_index``."""
        if mode is not ReadMode.LINEARIZABLE:
            return await self._backend.read_index(mode)
        future: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._rounds.join(future)
        return await future

    def close(self) -> None:
        """Let nobody wait for company."""
        self._rounds.hurry()

    def _begin(self, readers: list[asyncio.Future[int]]) -> list[asyncio.Future[int]]:
        task = asyncio.get_running_loop().create_task(self._ask(readers), name="read-round")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return []

    async def _ask(self, readers: list[asyncio.Future[int]]) -> None:
        try:
            index = await self._backend.read_index(ReadMode.LINEARIZABLE)
        except Exception as error:
            _fail(readers, error)
        else:
            for reader in readers:
                if not reader.done():
                    reader.set_result(index)
        finally:
            self._rounds.ended(len(readers))


def _fail(futures: list[asyncio.Future[_T]], error: Exception) -> None:
    for future in futures:
        if not future.done():
            future.set_exception(error)
