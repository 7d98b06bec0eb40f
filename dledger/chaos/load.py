"""What clients do during a run: appends of every kind, and reads at every node. All of it goes into the history."""

from __future__ import annotations

import asyncio
import random
from array import array
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from dledger.checker import History, Read
from dledger.client.grpc_transport import GrpcClientTransport
from dledger.errors import DLedgerError, IndexOutOfRangeError, Outcome, ResponseCode, StoppedError, UnavailableError
from dledger.raft.messages import EntryType
from dledger.storage.entry import iter_entries
from dledger.types import AppendResult, Entry, ReadMode

if TYPE_CHECKING:
    from dledger.client import LedgerClient

__all__ = ["ClientLoad", "Clock", "value_of"]

Clock = Callable[[], float]
"""Seconds since the run began, monotonic."""

_PAD: Final = b"."
_BURST_MAX: Final = 8
_READ_LIMIT_S: Final = 1.0
_READ_PAUSE_S: Final = 0.02
_RANGE_ENTRIES: Final = 20
_LOCAL_SHARE: Final = 0.2
_BEYOND_ANY_INDEX: Final = 2**62
_IDLE_S: Final = 0.01
"""Pause of an append task after a refusal that came at once, so that an outage is not a busy loop."""

_CALM_S: Final = 0.05
"""Pause of an append task between two bursts while a lighter load is asked for."""


def value_of(body: bytes, prefix: str) -> str | None:
    """Return the value in an entry's body; None where it is not of the run whose values begin with ``prefix``.

    With an empty prefix the log is this run's alone, and an entry with any other body is one that nobody wrote.
    """
    value = body.rstrip(_PAD).decode(errors="backslashreplace")
    return value if value.startswith(prefix) else None


@dataclass(slots=True)
class _Client:
    number: int
    client: LedgerClient
    session: bool
    timeout_s: float
    pending: int = 0


class ClientLoad:
    """``clients`` append clients with ``concurrency`` tasks each, and one reader for each node.

    Clients differ: some give up early, so that outcomes are unknown; some have no session. ``prefix`` marks this run's
    values. ``acks`` has the time of each acknowledgement and ``terms`` its term, in the order in which they came.
    ``transport`` opens the readers' connections.
    """

    def __init__(
        self,
        history: History,
        clock: Clock,
        prefix: str,
        *,
        entry_bytes: int,
        seed: int,
        addresses: Mapping[str, str],
        transport: Callable[[], GrpcClientTransport],
    ) -> None:
        self.history = history
        self.acks = array("d")
        self.terms = array("q")
        self.latencies_ms: list[float] = []
        self.refused = 0
        self.unknown = 0
        self.last_index = -1
        self.error_words: dict[str, int] = {}
        self.calm = 0
        """How many want a lighter load: a starting interpreter and a full load share a small machine badly."""
        self._clock = clock
        self._prefix = prefix
        self._entry_bytes = entry_bytes
        self._seed = seed
        self._addresses = dict(addresses)
        self._make_transport = transport
        self._clients: list[_Client] = []
        self._tasks: list[asyncio.Task[None]] = []
        self._stopping = asyncio.Event()
        self._transport: GrpcClientTransport | None = None

    @property
    def pending(self) -> int:
        """Appends called and not answered."""
        return sum(client.pending for client in self._clients)

    def begin(
        self,
        connect: Callable[[float, bool], LedgerClient],
        clients: int,
        concurrency: int,
        timeouts_s: Sequence[float],
    ) -> None:
        """Start all tasks. ``connect(timeout, session)`` makes a client; every fourth one has no session."""
        for number in range(clients):
            session = number % 4 != 3
            timeout_s = timeouts_s[number % len(timeouts_s)]
            client = _Client(number, connect(timeout_s, session), session, timeout_s)
            self._clients.append(client)
            for worker in range(concurrency):
                self._tasks.append(asyncio.ensure_future(self._append(client, worker)))
        self._transport = self._make_transport()
        for number, (node_id, address) in enumerate(self._addresses.items()):
            self._tasks.append(asyncio.ensure_future(self._read(clients + number, node_id, address)))

    async def stop(self) -> None:
        """Begin nothing new, wait for what is under way, close every client."""
        self._stopping.set()
        try:
            await asyncio.gather(*self._tasks)
        finally:
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
            for client in self._clients:
                await client.client.close()
            if self._transport is not None:
                await self._transport.close()

    # ---------------------------------------------------------------- appends

    async def _append(self, client: _Client, worker: int) -> None:
        """Append one by one, or in bursts whose order the client library promises."""
        rng = random.Random(f"{self._seed} {client.number} {worker}")
        stream = client.number * 1000 + worker if client.session else -1
        count = 0
        while not self._stopping.is_set():
            burst = 1 if rng.random() < 0.5 else rng.randint(2, _BURST_MAX)
            names = [f"{self._prefix}{client.number}.{worker}.{number}" for number in range(count, count + burst)]
            count += burst
            results = await asyncio.gather(*[self._one(client, name, stream) for name in names])
            if self.calm or not all(results):
                await asyncio.sleep(_CALM_S if self.calm else _IDLE_S)

    def _one(self, client: _Client, value: str, stream: int) -> asyncio.Future[bool]:
        """Call one append now; the future says whether it was acknowledged."""
        history = self.history
        called = self._clock()
        operation = history.invoke(client.number, value, called, stream=stream)
        done: asyncio.Future[bool] = asyncio.get_running_loop().create_future()

        def answered(future: asyncio.Future[AppendResult]) -> None:
            client.pending -= 1
            error = future.exception()
            if error is None:
                self._acknowledged(operation, future.result(), called)
            else:
                self._failed(operation, error)
            done.set_result(error is None)

        client.pending += 1
        try:
            client.client.append_nowait(value.encode().ljust(self._entry_bytes, _PAD)).add_done_callback(answered)
        except DLedgerError as error:
            client.pending -= 1
            self._failed(operation, error)
            done.set_result(False)
        return done

    def _acknowledged(self, operation: int, result: AppendResult, called: float) -> None:
        now = self._clock()
        self.history.acknowledge(operation, result.index, now)
        self.acks.append(now)
        self.terms.append(result.term)
        self.latencies_ms.append((now - called) * 1000)
        self.last_index = max(self.last_index, result.index)

    def _failed(self, operation: int, error: BaseException) -> None:
        definite = isinstance(error, DLedgerError) and error.outcome is Outcome.DEFINITE
        self.history.fail(operation, self._clock(), definite=definite)
        name = error.code.name if isinstance(error, DLedgerError) else type(error).__name__
        words = f"{name} {'DEFINITE' if definite else 'UNKNOWN'}"
        self.error_words[words] = self.error_words.get(words, 0) + 1
        if definite:
            self.refused += 1
            return
        self.unknown += 1
        # It may be committed at any later time, behind what its stream appends next: no order is promised for it.
        self.history.streams[operation] = -1

    # ---------------------------------------------------------------- reads

    async def _read(self, number: int, node_id: str, address: str) -> None:
        """Read at one node and no other, by turns of every kind."""
        rng = random.Random(f"{self._seed} reader {node_id}")
        kinds = (self._read_length, self._read_newest, self._read_range)
        turn = 0
        while not self._stopping.is_set():
            mode = ReadMode.LOCAL_COMMITTED if rng.random() < _LOCAL_SHARE else ReadMode.LINEARIZABLE
            call = self._clock()
            try:
                read = await kinds[turn % len(kinds)](number, address, mode, call)
            except DLedgerError:
                read = None  # a read that fails says nothing
            if read is not None:
                read.ret = self._clock()
                read.where = node_id
                self.history.add_read(read)
            turn += 1
            try:
                async with asyncio.timeout(_READ_PAUSE_S):
                    await self._stopping.wait()
            except TimeoutError:
                pass

    def _started(self) -> GrpcClientTransport:
        if self._transport is None:
            raise StoppedError("the load has not begun")
        return self._transport

    async def _read_length(self, number: int, address: str, mode: ReadMode, call: float) -> Read:
        """How long is the log? A range beyond its end is refused with the commit index, after the freshness barrier."""
        length = await self._commit_index(address, mode) + 1
        exact = length if mode is ReadMode.LINEARIZABLE else None
        return Read(number, call, call, exact is not None, length, exact, length, [])

    async def _read_newest(self, number: int, address: str, mode: ReadMode, call: float) -> Read | None:
        """Get the newest index that was acknowledged before this call: it must be there, wherever it is asked."""
        index = self.last_index
        if index < 0:
            return None
        linearizable = mode is ReadMode.LINEARIZABLE
        header, entry = await self._started().get(address, index, mode, _READ_LIMIT_S)
        if entry is not None:
            return Read(number, call, call, linearizable, index + 1, None, index, [self._value(entry)])
        error = header.error()
        if isinstance(error, IndexOutOfRangeError) and linearizable:
            return Read(number, call, call, True, 0, index, 0, [])
        raise error

    async def _read_range(self, number: int, address: str, mode: ReadMode, call: float) -> Read:
        """The newest entries of one node, as it shows them. Two calls: the length is what the log had at least."""
        length = await self._commit_index(address, mode) + 1
        first = max(length - _RANGE_ENTRIES, 0)
        values: list[str | None] = []
        if length:
            data = await self._range(address, first, length - 1, mode)
            values = [self._value(entry) for entry in iter_entries(data)]
        return Read(number, call, call, mode is ReadMode.LINEARIZABLE, first + len(values), None, first, values)

    async def _commit_index(self, address: str, mode: ReadMode) -> int:
        stream = self._started().read_plainly(address, _BEYOND_ANY_INDEX, -1, follow=False, mode=mode)
        try:
            async with asyncio.timeout(_READ_LIMIT_S):
                chunk = await stream.next_chunk()
        except TimeoutError:
            raise UnavailableError(f"{address}: no answer") from None
        finally:
            stream.close()
        if chunk.header.code != ResponseCode.INDEX_OUT_OF_RANGE:
            raise chunk.header.error()
        return chunk.commit_index

    async def _range(self, address: str, first: int, last: int, mode: ReadMode) -> bytes:
        stream = self._started().read(address, first, last, follow=False, mode=mode)
        try:
            async with asyncio.timeout(_READ_LIMIT_S):
                chunk = await stream.next_chunk()
        except TimeoutError:
            raise UnavailableError(f"{address}: no answer") from None
        finally:
            stream.close()
        if not chunk.header.ok:
            raise chunk.header.error()
        return chunk.data

    def _value(self, entry: Entry) -> str | None:
        return value_of(entry.body, self._prefix) if entry.type is EntryType.NORMAL else None
