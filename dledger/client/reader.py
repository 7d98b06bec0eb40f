"""A range read that goes on by itself after a failure: at another node, from the next index, no gap, no repeat."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

from dledger.client.discovery import Directory
from dledger.client.grpc_transport import GrpcClientTransport
from dledger.client.read_call import ReadCall
from dledger.client.transport import ReadChunk
from dledger.errors import DLedgerError, IndexOutOfRangeError, StorageError, UnavailableError
from dledger.types import ReadMode

__all__ = ["RangeReader"]

PAUSE_MIN_S = 0.01
PAUSE_MAX_S = 0.25
SILENCE_S = 2.0
PROBE_TIMEOUT_S = 1.0


class RangeReader:
    """One range read. `chunks` yields slices of the log in order; each begins where the last one ended."""

    def __init__(
        self,
        transport: GrpcClientTransport,
        directory: Directory,
        first: int,
        last: int,
        *,
        follow: bool,
        mode: ReadMode,
        timeout: float,
    ) -> None:
        """``last`` -1: up to the commit index when the read begins, or for ever with ``follow``."""
        self._transport = transport
        self._directory = directory
        self._next = first
        self._last = last
        self._follow = follow
        self._mode = mode
        self._timeout = timeout
        self._begun = False

    async def chunks(self) -> AsyncGenerator[ReadChunk, None]:
        """Yield until the range is complete.

        Raises:
            DLedgerError: a final refusal, or no answer at all for ``timeout`` seconds.
        """
        loop = asyncio.get_running_loop()
        route: list[str] = []
        pause = PAUSE_MIN_S
        failing_since: float | None = None
        while not self._complete():
            route = route or self._directory.route()
            address = route.pop(0)
            call = self._transport.read(address, self._next, self._last, follow=self._follow, mode=self._mode)
            try:
                while True:
                    chunk = await self._chunk(call, address)
                    failing_since, pause = None, PAUSE_MIN_S
                    self._advance(chunk)
                    yield chunk
                    if chunk.end:
                        return
            except DLedgerError as error:
                now = loop.time()
                failing_since = now if failing_since is None else failing_since
                if not self._worth_it(error) or now - failing_since + pause > self._timeout:
                    raise
                self._directory.forget_leader(address)
            finally:
                call.close()
            if not route:
                await asyncio.sleep(pause)
                pause = min(2 * pause, PAUSE_MAX_S)

    def _complete(self) -> bool:
        """Whether everything was read, though the stream broke before it said so."""
        return self._begun and -1 < self._last < self._next

    def _advance(self, chunk: ReadChunk) -> None:
        self._begun = True
        self._next = chunk.next_index
        if self._last < 0 and not self._follow:
            # Fixed at the first answer: a read that resumes elsewhere must not grow or shrink.
            self._last = chunk.commit_index

    def _worth_it(self, error: DLedgerError) -> bool:
        # A node that is behind says "beyond the end" of a range that another has begun to serve.
        behind = self._begun and isinstance(error, IndexOutOfRangeError)
        return error.retriable or behind or isinstance(error, StorageError)

    async def _chunk(self, call: ReadCall, address: str) -> ReadChunk:
        """Return the next chunk; while nothing comes, make sure that the node is alive and knows a leader."""
        read = asyncio.ensure_future(call.next_chunk())
        try:
            while not (await asyncio.wait({read}, timeout=min(SILENCE_S, self._timeout)))[0]:
                if not self._follow:
                    raise UnavailableError(f"{address}: nothing for {min(SILENCE_S, self._timeout):g} s")
                await self._probe(address)
            chunk = read.result()
        finally:
            if not read.done():
                call.close()
                await asyncio.gather(read, return_exceptions=True)
        named = self._directory.learn(address, chunk.header)
        if not chunk.header.ok:
            if named == address:
                self._directory.forget_leader(address)
            raise chunk.header.error()
        return chunk

    async def _probe(self, address: str) -> None:
        answer = await self._transport.metadata(address, min(PROBE_TIMEOUT_S, self._timeout))
        if not answer.header.ok:
            raise answer.header.error()
        if not answer.header.leader_id and self._mode is ReadMode.LINEARIZABLE:
            raise UnavailableError(f"{address}: no leader, so nothing new will come here")
