"""`BlockingLedgerClient`: the same client for programs without a loop, and for many threads.

The loop runs in a background thread. One loop serves all blocking clients of the process, because gRPC's asyncio side
wants one loop; it ends with the last of them.
"""

from __future__ import annotations

import asyncio
import random
import threading
from collections.abc import Coroutine, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, TypeVar

from dledger.client.client import LedgerClient
from dledger.client.options import PipelineOptions
from dledger.client.status_answer import STATUS_LIMIT_S
from dledger.client.transport import Metadata
from dledger.errors import StoppedError
from dledger.security.access import ClientTls
from dledger.types import AppendResult, BatchResult, DownNode, Entry, NodeStatus, ReadMode

__all__ = ["BlockingLedgerClient", "connect_blocking"]

READ_AHEAD_COUNT = 512
"""Entries that cross from the loop's thread at a time."""

_T = TypeVar("_T")


class _LoopThread:
    """A loop in a daemon thread, shared and counted."""

    _lock = threading.Lock()
    _current: _LoopThread | None = None

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self._users = 0
        self._thread = threading.Thread(target=self._run, name="dledger-blocking-client", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        asyncio.set_event_loop(self.loop)
        try:
            self.loop.run_forever()
        finally:
            self.loop.run_until_complete(self.loop.shutdown_asyncgens())
            self.loop.close()

    @classmethod
    def acquire(cls) -> _LoopThread:
        with cls._lock:
            if cls._current is None:
                cls._current = cls()
            cls._current._users += 1
            return cls._current

    def release(self) -> None:
        with self._lock:
            self._users -= 1
            if self._users:
                return
            type(self)._current = None
        self.loop.call_soon_threadsafe(self.loop.stop)
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def run(self, work: Coroutine[Any, Any, _T]) -> _T:
        """Run a coroutine on the loop and return its result; an interrupt cancels it."""
        if threading.current_thread() is self._thread:
            work.close()
            raise StoppedError("a blocking call on the client's own loop would wait for itself")
        future = asyncio.run_coroutine_threadsafe(work, self.loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise


def connect_blocking(
    peers: str | Mapping[str, str] | Sequence[str],
    *,
    group: str = "default",
    timeout: float = 30.0,
    session: bool = True,
    options: PipelineOptions | None = None,
    rng: random.Random | None = None,
    tls: ClientTls | None = None,
    token: str | None = None,
) -> BlockingLedgerClient:
    """Return a blocking client; arguments and errors as ``dledger.client.connect``."""
    return BlockingLedgerClient(
        LedgerClient(
            peers, group=group, timeout=timeout, session=session, options=options, rng=rng, tls=tls, token=token
        )
    )


class BlockingLedgerClient:
    """A `LedgerClient` whose methods wait. Any number of threads may use it; their appends travel in common batches."""

    def __init__(self, client: LedgerClient) -> None:
        self._client = client
        self._thread: _LoopThread | None = None
        self._closed = False
        self._lock = threading.Lock()

    def __enter__(self) -> BlockingLedgerClient:
        self._loop_thread()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def append(self, body: bytes, *, timeout: float | None = None) -> AppendResult:
        """See `LedgerClient.append`."""
        return self._run(self._client.append(body, timeout=timeout))

    def append_many(self, bodies: Sequence[bytes], *, timeout: float | None = None) -> BatchResult:
        """See `LedgerClient.append_many`."""
        return self._run(self._client.append_many(bodies, timeout=timeout))

    def get(self, index: int, *, mode: ReadMode = ReadMode.LINEARIZABLE, timeout: float | None = None) -> Entry:
        """See `LedgerClient.get`."""
        return self._run(self._client.get(index, mode=mode, timeout=timeout))

    def read(
        self,
        start: int = 0,
        stop: int | None = None,
        *,
        follow: bool = False,
        mode: ReadMode = ReadMode.LINEARIZABLE,
        all_types: bool = False,
    ) -> Iterator[Entry]:
        """See `LedgerClient.read`; with ``follow`` the iterator waits for entries to come."""
        entries = self._client.read(start, stop, follow=follow, mode=mode, all_types=all_types)
        thread = self._loop_thread()
        pump = _Pump(entries)
        try:
            while batch := thread.run(pump.next_entries()):
                yield from batch
        finally:
            if not self._closed:
                thread.run(pump.close())

    def commit_index(self, mode: ReadMode = ReadMode.LINEARIZABLE, *, timeout: float | None = None) -> int:
        """See `LedgerClient.commit_index`."""
        return self._run(self._client.commit_index(mode, timeout=timeout))

    def metadata(self, *, timeout: float | None = None) -> Metadata:
        """See `LedgerClient.metadata`."""
        return self._run(self._client.metadata(timeout=timeout))

    def status(self, *, timeout: float = STATUS_LIMIT_S) -> list[NodeStatus | DownNode]:
        """See `LedgerClient.status`."""
        return self._run(self._client.status(timeout=timeout))

    def transfer_leadership(self, target: str | None = None, *, timeout: float | None = None) -> str:
        """See `LedgerClient.transfer_leadership`."""
        return self._run(self._client.transfer_leadership(target, timeout=timeout))

    def step_down(self, *, timeout: float | None = None) -> None:
        """See `LedgerClient.step_down`."""
        self._run(self._client.step_down(timeout=timeout))

    def close(self) -> None:
        """See `LedgerClient.close`; other threads' calls end with ``StoppedError``. Twice is fine."""
        with self._lock:
            self._closed = True
            thread, self._thread = self._thread, None
        if thread is not None:
            try:
                thread.run(self._client.close())
            finally:
                thread.release()

    def _loop_thread(self) -> _LoopThread:
        with self._lock:
            if self._closed:
                raise StoppedError("the client is closed")
            if self._thread is None:
                self._thread = _LoopThread.acquire()
            return self._thread

    def _run(self, work: Coroutine[Any, Any, _T]) -> _T:
        try:
            thread = self._loop_thread()
        except StoppedError:
            work.close()
            raise
        return thread.run(work)


class _Pump:
    """Takes what an asynchronous iterator has ready, many at a time, without waiting for more than one."""

    def __init__(self, entries: Any) -> None:  # noqa: ANN401 - an async generator
        self._entries = entries
        self._next: asyncio.Task[Entry] | None = None

    async def next_entries(self) -> list[Entry]:
        """Return some entries, none at the end."""
        batch: list[Entry] = []
        while len(batch) < READ_AHEAD_COUNT:
            if self._next is None:
                self._next = asyncio.ensure_future(self._entries.__anext__())
            if batch and not self._next.done():
                await asyncio.sleep(0)
                if not self._next.done():
                    break
            task, self._next = self._next, None
            try:
                batch.append(await task)
            except StopAsyncIteration:
                break
        return batch

    async def close(self) -> None:
        if self._next is not None:
            self._next.cancel()
            await asyncio.gather(self._next, return_exceptions=True)
        await self._entries.aclose()
