"""The pipelined append: batches come in as fast as they are sent, answers go out as batches complete.

One task reads and submits, the call's own task writes; the two meet at a queue of completed batches. A batch counts as
outstanding from its submission until its answer is written, and reading stops at the limit, so a client that sends
faster than the group commits, or does not read its answers, is held back by gRPC's flow control and costs bounded
memory.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Final, TypeAlias

import grpc
from grpc import aio

from dledger.rpc.answers import Answers, check_batch, parse, run_messages
from dledger.rpc.interfaces import Backend
from dledger.security.streams import WatchedContext
from dledger.types import BatchResult
from dledger.v1 import ledger_pb2 as pb

__all__ = ["MAX_OUTSTANDING_BATCHES", "MAX_OUTSTANDING_BYTES", "AppendStream"]

MAX_OUTSTANDING_BATCHES: Final = 256
MAX_OUTSTANDING_BYTES: Final = 32 * 1024 * 1024

_Context: TypeAlias = "aio.ServicerContext[bytes, bytes] | WatchedContext"
_Completed = tuple[int, int, BatchResult | None, Exception | None]
"""(request id, bytes, result, error)"""


class AppendStream:
    """One call of AppendStream. `serve` is the call; `close` ends it from outside."""

    def __init__(
        self,
        backend: Backend,
        answers: Answers,
        context: _Context,
        *,
        max_batches: int = MAX_OUTSTANDING_BATCHES,
        max_bytes: int = MAX_OUTSTANDING_BYTES,
    ) -> None:
        self._backend = backend
        self._answers = answers
        self._context = context
        self._max_batches = max_batches
        self._max_bytes = max_bytes
        self._completed: deque[_Completed] = deque()
        self._outstanding_count = 0  # Invariant: batches submitted (or refused) whose answer is not yet written.
        self._outstanding_bytes = 0
        self._gone = False
        self._wake_writer: asyncio.Future[None] | None = None
        self._wake_reader: asyncio.Future[None] | None = None
        self._reader: asyncio.Task[None] | None = None

    async def serve(self) -> None:
        """Answer until the client has closed its side and everything is answered, or `close` was called."""
        self._reader = reader = asyncio.get_running_loop().create_task(self._read_all())
        reader.add_done_callback(self._reader_done)
        try:
            await self._write_all(reader)
        finally:
            # Whether the client is gone or all is answered: what is still under way has nobody to tell.
            self._gone = True
            self._completed.clear()
            reader.cancel()
            await asyncio.wait({reader})
        if not reader.cancelled():
            reader.result()
        else:
            await self._context.abort(grpc.StatusCode.UNAVAILABLE, f"{self._backend.node_id} is stopping")

    def close(self) -> None:
        """Read no more; answer what is outstanding, then end the call with UNAVAILABLE."""
        if self._reader is not None:
            self._reader.cancel()

    # -- in -----------------------------------------------------------------------------------------------------------

    async def _read_all(self) -> None:
        read = self._context.read
        while True:
            data: object = await read()
            if not isinstance(data, bytes):  # grpc.aio.EOF
                return
            self._submit(data)
            while self._outstanding_count >= self._max_batches or self._outstanding_bytes >= self._max_bytes:
                self._wake_reader = asyncio.get_running_loop().create_future()
                await self._wake_reader

    def _submit(self, data: bytes) -> None:
        request_id = size = 0  # Invariant: size is what this batch has added to _outstanding_bytes.
        self._outstanding_count += 1
        try:
            request = parse(pb.AppendBatchRequest, data)
            request_id = request.request_id
            self._answers.check_group(request.group)
            bodies = list(request.bodies)
            size = check_batch(bodies, len(bodies), request.first_sequence, self._backend)
            self._outstanding_bytes += size
            self._backend.submit(
                bodies,
                session_id=request.session_id,
                first_sequence=request.first_sequence,
                done=self._done_callback(request_id, size),
            )
        except Exception as error:
            self._complete(request_id, size, None, error)

    def _done_callback(self, request_id: int, size: int) -> Callable[[BatchResult | None, Exception | None], None]:
        def done(result: BatchResult | None, error: Exception | None) -> None:
            self._complete(request_id, size, result, error)

        return done

    def _complete(self, request_id: int, size: int, result: BatchResult | None, error: Exception | None) -> None:
        if self._gone:
            return
        self._completed.append((request_id, size, result, error))
        self._wake(self._wake_writer)

    def _reader_done(self, _: asyncio.Task[None]) -> None:
        self._wake(self._wake_writer)

    # -- out ----------------------------------------------------------------------------------------------------------

    async def _write_all(self, reader: asyncio.Task[None]) -> None:
        completed, write = self._completed, self._context.write
        while True:
            while completed:
                request_id, size, result, error = completed.popleft()
                await write(self._answer(request_id, result, error))
                self._outstanding_count -= 1
                self._outstanding_bytes -= size
                self._wake(self._wake_reader)
            if reader.done() and not self._outstanding_count:
                return
            self._wake_writer = asyncio.get_running_loop().create_future()
            await self._wake_writer

    def _answer(self, request_id: int, result: BatchResult | None, error: Exception | None) -> bytes:
        if result is None:
            header = self._answers.failure(error or RuntimeError("neither result nor error"), "AppendStream")
            return pb.AppendBatchResponse(header=header, request_id=request_id).SerializeToString()
        return pb.AppendBatchResponse(
            header=self._answers.success(), runs=run_messages(result), request_id=request_id
        ).SerializeToString()

    @staticmethod
    def _wake(waiter: asyncio.Future[None] | None) -> None:
        if waiter is not None and not waiter.done():
            waiter.set_result(None)
