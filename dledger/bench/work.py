"""What each operation of a load is, on `LedgerClient` or on a plain gRPC client."""

from __future__ import annotations

import asyncio
import os
import random
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final

from dledger.bench.load import Load, Work
from dledger.errors import DLedgerError, ResponseCode

if TYPE_CHECKING:
    from dledger.client import LedgerClient
    from dledger.types import Entry

__all__ = ["fill", "open_work"]

_ENTRIES_A_CALL: Final = 1024
_FILL_BATCH: Final = 4096
_FILL_BYTES: Final = 1 << 20
_FILL_DEPTH: Final = 3


@asynccontextmanager
async def open_work(client: LedgerClient, address: str, load: Load) -> AsyncIterator[Work]:
    """Yield the work of a load; ``address`` is any node's, for loads that use plain gRPC.

    Raises:
        DLedgerError: the group is not there, or its log is empty and is to be read.
    """
    body = os.urandom(load.size_bytes)
    if load.operation.startswith("unary"):
        from dledger.bench.plain import plain_work  # noqa: PLC0415 - gRPC's stubs, only where they are used

        async with plain_work(address, client.group, load, body) as work:
            yield work
    elif load.operation == "append":
        yield Work(lambda: client.append(body), bytes_a_call=load.size_bytes, start=lambda: client.append_nowait(body))
    elif load.operation == "append-batch":
        bodies = [body] * load.batch
        yield Work(lambda: client.append_many(bodies), entries=load.batch, bytes_a_call=load.size_bytes * load.batch)
    else:
        last = await client.commit_index()
        if last < 0:
            raise DLedgerError("the log is empty: append first", code=ResponseCode.INDEX_OUT_OF_RANGE)
        if load.operation == "get":
            rng = random.Random(last)  # the same indexes in each run
            yield Work(lambda: client.get(rng.randrange(last + 1)), counted=lambda entry: (1, len(entry.body)))
        else:
            reads = _Reads(client, last + 1)
            try:
                yield Work(reads.next_entries, counted=lambda result: result)
            finally:
                await reads.close()


class _Reads:
    """Sequential reads over the whole log, again and again: a call is the next 1024 entries."""

    def __init__(self, client: LedgerClient, stop: int) -> None:
        self._client = client
        self._stop = stop
        self._idle: deque[AsyncGenerator[Entry, None]] = deque()

    async def next_entries(self) -> tuple[int, int]:
        """Return the count and the bytes of the next bodies."""
        count = byte_count = 0
        reader = self._idle.popleft() if self._idle else self._client.read(0, self._stop, all_types=True)
        async for entry in reader:
            count += 1
            byte_count += len(entry.body)
            if count == _ENTRIES_A_CALL:
                self._idle.append(reader)
                break
        return count, byte_count

    async def close(self) -> None:
        """End the reads that are under way."""
        while self._idle:
            await self._idle.popleft().aclose()


async def fill(client: LedgerClient, entries: int, size_bytes: int) -> None:
    """Append so many entries as fast as it goes.

    Raises:
        DLedgerError: the group did not take them.
    """
    body = os.urandom(size_bytes)
    step = max(min(_FILL_BATCH, _FILL_BYTES // max(size_bytes, 1)), 1)
    under_way: deque[asyncio.Future[object]] = deque()
    try:
        for start in range(0, entries, step):
            bodies = [body] * min(step, entries - start)
            under_way.append(asyncio.ensure_future(client.append_many(bodies)))
            if len(under_way) > _FILL_DEPTH:
                await under_way.popleft()
        while under_way:
            await under_way.popleft()
    finally:
        for left in under_way:
            left.cancel()
