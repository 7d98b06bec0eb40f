"""Many reads over one call: gets, which share rounds of the group, and ranges, each at the pace of its reader.

A request for one index is a get. Those that come in one turn of the loop ask for one read index together, after the
last of them has come, and their answers leave together. A range is served as a call of Read is (``read_stream``), by a
task. Answers that the client does not take hold ranges and gets back once they are `MAX_UNSENT_BYTES`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Final

from dledger.errors import IndexOutOfRangeError, UnexpectedArgumentError
from dledger.rpc.answers import Answers, first_message, parse, read_mode
from dledger.rpc.call_stream import Answer, Requests
from dledger.rpc.gather import GatheredReads
from dledger.rpc.interfaces import Backend
from dledger.rpc.read_stream import ReadStream, StoppingError, with_data
from dledger.types import ReadMode
from dledger.v1 import ledger_pb2 as pb

__all__ = ["MAX_RANGES", "MAX_UNSENT_BYTES", "Reads"]

MAX_RANGES: Final = 8
"""Ranges of one call at a time: each holds up to two chunks."""

MAX_UNSENT_BYTES: Final = 2 * 1024 * 1024

_GETS_PER_STEP: Final = 16
"""Gets answered before other tasks get their turn (about half a millisecond)."""

_Get = tuple[pb.ReadRequest, int]
"""(request, its bytes)"""


class Reads(Requests):
    """ReadRequests of one call. ``wait_committed`` is the backend's, made interruptible by the service."""

    def __init__(
        self,
        backend: Backend,
        answers: Answers,
        gathered: GatheredReads,
        wait_committed: Callable[[int], Awaitable[int]],
    ) -> None:
        super().__init__()
        self._backend = backend
        self._answers = answers
        self._gathered = gathered
        self._wait_committed = wait_committed
        self._gets: dict[ReadMode, list[_Get]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._unsent_bytes = 0  # Invariant: the sum of the lengths of the answers that were not yet written.
        self._room: list[asyncio.Future[None]] = []
        self._getting = asyncio.Lock()
        self._range_count = 0

    def _begin(self, data: bytes) -> None:
        request, size = pb.ReadRequest(), len(data)
        try:
            request = parse(pb.ReadRequest, data)
            self._check_open()
            self._answers.check_group(request.group)
            mode = read_mode(request.mode)
            if request.follow or request.from_index != request.to_index:
                if self._range_count >= MAX_RANGES:
                    raise UnexpectedArgumentError(
                        f"{MAX_RANGES} ranges are being read by this call already; read more by another"
                    )
                self._range_count += 1
                self._run(self._serve_range(request, size))
                return
            if request.from_index < 0:
                raise IndexOutOfRangeError(f"index {request.from_index}; indexes count from 0")
        except Exception as error:
            self._refuse(request, size, error)
            return
        if not self._gets:
            asyncio.get_running_loop().call_soon(self._begin_gets)
        self._gets.setdefault(mode, []).append((request, size))

    def _run(self, serving: Coroutine[None, None, None]) -> None:
        task = asyncio.get_running_loop().create_task(serving)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # -- gets ---------------------------------------------------------------------------------------------------------

    def _begin_gets(self) -> None:
        gets, self._gets = self._gets, {}
        if not self._gone:
            for mode, some in gets.items():
                self._run(self._serve_gets(mode, some))

    async def _serve_gets(self, mode: ReadMode, gets: list[_Get]) -> None:
        try:
            commit_index = await self._gathered.read_index(mode)
        except Exception as error:
            for request, size in gets:
                self._refuse(request, size, error)
            return
        async with self._getting:
            for number, (request, size) in enumerate(gets, 1):
                await self._wait_for_room()
                try:
                    answer = await self._get(request, commit_index)
                except Exception as error:
                    self._refuse(request, size, error)
                else:
                    self._answer(answer, size)
                if number % _GETS_PER_STEP == 0:
                    await asyncio.sleep(0)

    async def _get(self, request: pb.ReadRequest, commit_index: int) -> bytes:
        index = request.from_index
        if index > commit_index:
            raise IndexOutOfRangeError(f"index {index} is beyond the last committed entry, {commit_index}")
        raw = await self._backend.read_slice(index, index, 1)
        answer = pb.ReadResponse(
            header=self._answers.success(),
            commit_index=commit_index,
            next_index=index + 1,
            end=True,
            request_id=request.request_id,
        )
        if request.raw:
            return with_data(answer, raw.data)
        answer.entries.append(first_message(raw.data))
        return answer.SerializeToString()

    def _refuse(self, request: pb.ReadRequest, size: int, error: Exception) -> None:
        """Answer a get that failed, or a request that cannot be served."""
        answer = pb.ReadResponse(
            header=self._answers.failure(error, "ReadStream"),
            commit_index=-1,
            next_index=request.from_index,
            request_id=request.request_id,
        )
        self._answer(answer.SerializeToString(), size)

    # -- ranges -------------------------------------------------------------------------------------------------------

    async def _serve_range(self, request: pb.ReadRequest, size: int) -> None:
        stream: ReadStream | None = None
        try:
            stream = ReadStream(self._backend, self._answers, request, self._wait_committed)
            await stream.serve(self._write_range)
        except StoppingError:
            pass  # the call says so itself when it ends
        except Exception as error:
            if stream is None:
                self._refuse(request, size, error)
                return
            self._answer(stream.failure(error), -1)
        finally:
            self._range_count -= 1
        self._ended(size)

    async def _write_range(self, data: bytes) -> None:
        self._answer(data, -1)
        await self._wait_for_room()

    def _ended(self, request_bytes: int) -> None:
        """A request has had its last answer, which may not be written yet."""
        self.answered(Answer(b"", request_bytes))
        if not self._gone:
            self.ready()

    # -- room ---------------------------------------------------------------------------------------------------------

    def _answer(self, data: bytes, request_bytes: int) -> None:
        self._unsent_bytes += len(data)
        super()._answer(data, request_bytes)

    def answered(self, answer: Answer) -> None:
        """See ``Requests.answered``."""
        super().answered(answer)
        self._unsent_bytes -= len(answer.data)
        if self._room and self._unsent_bytes < MAX_UNSENT_BYTES:
            waiting, self._room = self._room, []
            for each in waiting:
                if not each.done():
                    each.set_result(None)

    async def _wait_for_room(self) -> None:
        while self._unsent_bytes >= MAX_UNSENT_BYTES and not self._gone:
            room = asyncio.get_running_loop().create_future()
            self._room.append(room)
            await room

    def drop(self) -> None:
        """See ``Requests.drop``."""
        super().drop()
        self._gets.clear()
        for task in self._tasks:
            task.cancel()
