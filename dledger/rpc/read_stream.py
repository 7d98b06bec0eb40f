"""The range read: one freshness barrier at the start, then committed entries in chunks, at the reader's pace.

Raw chunks go out as they lie in the log: the answer's other fields are serialised, the chunk is put behind them, and
the next one is read while this one is on its way.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final

from dledger.errors import IndexOutOfRangeError, UnexpectedArgumentError
from dledger.protobuf_wire import bytes_head
from dledger.raft.messages import EntryType
from dledger.rpc.answers import Answers, entry_message, read_mode
from dledger.rpc.interfaces import Backend
from dledger.storage.entry import RawSlice, iter_entries
from dledger.v1 import ledger_pb2 as pb

__all__ = ["DEFAULT_CHUNK_BYTES", "MAX_CHUNK_BYTES", "ReadStream", "StoppingError", "with_data"]

DEFAULT_CHUNK_BYTES: Final = 1024 * 1024
MAX_CHUNK_BYTES: Final = 4 * 1024 * 1024
"""Half of a gRPC message's limit: an entry's frame may be as large as a small body."""

_ENTRIES_PER_STEP: Final = 256
"""Entries decoded before other tasks get their turn (a quarter of a millisecond)."""


class StoppingError(Exception):
    """The service closes while a read waits for the tail."""


class ReadStream:
    """One range. ``wait_committed`` is the backend's, made interruptible by the service (`StoppingError`)."""

    def __init__(
        self,
        backend: Backend,
        answers: Answers,
        request: pb.ReadRequest,
        wait_committed: Callable[[int], Awaitable[int]],
    ) -> None:
        self._backend = backend
        self._answers = answers
        self._request = request
        self._wait_committed = wait_committed
        self._max_bytes = self._chunk_bytes()
        self._next_index = request.from_index
        self._commit_index = -1
        self._answer_count = 0

    def _chunk_bytes(self) -> int:
        wanted = self._request.max_bytes
        if wanted < 0:
            raise UnexpectedArgumentError(f"max_bytes is {wanted}; 0 means the server's default")
        return min(wanted or DEFAULT_CHUNK_BYTES, MAX_CHUNK_BYTES)

    async def serve(self, write: Callable[[bytes], Awaitable[None]]) -> None:
        """Send the range; the last answer has ``end``. A range that follows the tail without a last index never ends.

        Raises:
            DLedgerError: the range is not there, or the freshness asked for cannot be had. What was sent stands.
        """
        request = self._request
        self._check_range()
        self._commit_index = await self._backend.read_index(read_mode(request.mode))
        last = self._last_index()
        reading: asyncio.Future[RawSlice] | None = None
        try:
            while last is None or self._next_index <= last:
                if reading is None:
                    if self._next_index > self._commit_index:
                        self._commit_index = await self._wait_committed(self._next_index)
                    reading = self._read(self._next_index, last)
                raw, reading = await reading, None
                self._next_index = raw.last_index + 1
                end = last is not None and self._next_index > last
                if not end and self._next_index <= self._commit_index:
                    reading = self._read(self._next_index, last)
                answer = await self._answer(raw, end=end)
                if answer:
                    await write(answer)
                if end:
                    return
        finally:
            if reading is not None:
                reading.add_done_callback(_forget)
                reading.cancel()
        await write(self._fill(pb.ReadResponse(), end=True).SerializeToString())

    def _read(self, first: int, last: int | None) -> asyncio.Future[RawSlice]:
        upto = self._commit_index if last is None else min(last, self._commit_index)
        return asyncio.ensure_future(self._backend.read_slice(first, upto, self._max_bytes))

    def _check_range(self) -> None:
        first, last = self._request.from_index, self._request.to_index
        if first < 0:
            raise IndexOutOfRangeError(f"from_index is {first}; indexes count from 0")
        if last < -1 or -1 < last < first:
            raise UnexpectedArgumentError(f"range {first} to {last}; -1 means up to the commit index")

    def _last_index(self) -> int | None:
        """Return the last index of the range, None where it goes on for ever; a range that is not there is refused."""
        first, last = self._request.from_index, self._request.to_index
        if self._request.follow:
            return None if last < 0 else last
        if last > self._commit_index or first > self._commit_index + 1:
            raise IndexOutOfRangeError(
                f"range {first} to {last} goes beyond the last committed entry, {self._commit_index}"
            )
        return self._commit_index if last < 0 else last

    async def _answer(self, raw: RawSlice, *, end: bool) -> bytes:
        """Return an answer with the entries that the request wants; empty where there are none, and more to come."""
        if self._request.raw:
            return with_data(self._fill(pb.ReadResponse(), end=end), raw.data)
        answer = pb.ReadResponse()
        all_types, add = self._request.all_types, answer.entries.append
        for number, entry in enumerate(iter_entries(raw.data), 1):
            if all_types or entry.type is EntryType.NORMAL:
                add(entry_message(entry))
            if number % _ENTRIES_PER_STEP == 0:
                await asyncio.sleep(0)
        return self._fill(answer, end=end).SerializeToString() if answer.entries or end else b""

    def _fill(self, answer: pb.ReadResponse, *, end: bool) -> pb.ReadResponse:
        answer.header.CopyFrom(self._answers.success())
        answer.commit_index = self._commit_index
        answer.next_index = self._next_index
        answer.end = end
        answer.request_id = self._request.request_id
        answer.number = self._answer_count
        self._answer_count += 1
        return answer

    def failure(self, error: Exception) -> bytes:
        """Return the last answer of a read that failed; ``next_index`` is where to resume."""
        return pb.ReadResponse(
            header=self._answers.failure(error, "Read"),
            commit_index=self._commit_index,
            next_index=self._next_index,
            request_id=self._request.request_id,
            number=self._answer_count,
        ).SerializeToString()


def _forget(reading: asyncio.Future[RawSlice]) -> None:
    """Nobody wants this read any more, nor its error."""
    if not reading.cancelled():
        reading.exception()


def with_data(answer: pb.ReadResponse, data: bytes) -> bytes:
    """Return the answer as bytes, ``data`` in it: with one copy of that, not three."""
    return b"".join((answer.SerializeToString(), bytes_head(pb.ReadResponse.DATA_FIELD_NUMBER, len(data)), data))
