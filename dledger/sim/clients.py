"""Clients of the simulated group: the real append pipeline, and callers of the nodes who retry by force.

Every client is a process of its own that is never killed. What lies between it and a node is a `_Wire`: messages wait,
get lost, and a stream breaks when its node dies. Everything that is asked and answered goes into the `History`.
"""

from __future__ import annotations

import asyncio
import contextvars
import functools
from collections.abc import Awaitable, Callable, Sequence
from random import Random
from typing import TYPE_CHECKING, Final, TypeVar

from dledger.checker.history import History, Read
from dledger.client.discovery import Directory
from dledger.client.options import PipelineOptions
from dledger.client.pipeline import AppendPipeline
from dledger.client.transport import (
    AppendAnswer,
    AppendBatch,
    AppendStream,
    Header,
    Metadata,
    SessionAnswer,
    StreamHandler,
)
from dledger.driver.driver import Driver
from dledger.errors import (
    DLedgerError,
    IndexOutOfRangeError,
    Outcome,
    ResponseCode,
    SequenceForgottenError,
    SessionExpiredError,
    UnavailableError,
)
from dledger.raft.messages import EntryType
from dledger.sim.loop import Process, SimLoop
from dledger.storage.entry import iter_entries
from dledger.types import AppendResult, BatchResult, ReadMode

if TYPE_CHECKING:
    from dledger.sim.cluster import Cluster, SimNode

__all__ = ["Client", "LooseClient", "PipelineClient", "ReadingClient", "SessionClient", "SimClientTransport", "Wire"]

_T = TypeVar("_T")

_TAIL_ENTRIES: Final = 20
_LONG_S: Final = 600.0
_KEEPALIVE_S: Final = (5.0, 12.0)


class Wire:
    """The way between clients and nodes. ``loss``: of a request or an answer; a broken stream where there is one."""

    def __init__(self, cluster: Cluster, rng: Random) -> None:
        self.cluster = cluster
        self.loop: SimLoop = cluster.loop
        self.rng = rng
        self.loss = 0.0
        self.delay_s = (0.0001, 0.002)
        self.streams: list[_SimStream] = []
        cluster.on_end.append(self._process_ended)

    def _process_ended(self, process: Process) -> None:
        """A node's process is gone: its streams break at once, as closed sockets do, or (rarely) by keepalive."""
        for stream in self.streams:
            if stream.server is process:
                hangs = self.rng.random() < 0.05
                stream.break_later("connection closed", self.rng.uniform(*_KEEPALIVE_S) if hangs else self.delay())
        self.streams = [stream for stream in self.streams if not stream.closed]

    def delay(self) -> float:
        return self.rng.uniform(*self.delay_s)

    def lost(self) -> bool:
        return self.loss > 0 and self.rng.random() < self.loss

    async def call(self, client: Process, node: SimNode, timeout: float, work: Callable[[Driver], Awaitable[_T]]) -> _T:
        """Run ``work`` at a node and bring its answer back.

        Raises:
            UnavailableError: no answer within ``timeout`` seconds, or no process there.
        """
        answer: asyncio.Future[_T] = self.loop.create_future()
        if not self.lost():
            self._on_behalf(None, self.delay(), self._arrive, client, node, work, answer)
        try:
            async with asyncio.timeout(timeout):
                return await answer
        except TimeoutError:
            raise UnavailableError(f"{node.node_id}: no answer", outcome=Outcome.UNKNOWN) from None

    def _on_behalf(self, process: Process | None, delay: float, callback: Callable[..., object], *args: object) -> None:
        context = process.context if process is not None else contextvars.Context()
        self.loop.call_later(delay, callback, *args, context=context)

    def _arrive(
        self,
        client: Process,
        node: SimNode,
        work: Callable[[Driver], Awaitable[_T]],
        answer: asyncio.Future[_T],
    ) -> None:
        process, driver = node.process, node.driver
        if process is None or driver is None:
            refused = UnavailableError(f"{node.node_id}: connection refused", outcome=Outcome.UNKNOWN)
            self._on_behalf(client, self.delay(), _settle, answer, None, refused)
            return

        async def serve() -> None:
            result: _T | None = None
            failure: Exception | None = None
            try:
                result = await work(driver)
            except DLedgerError as error:
                failure = error
            except Exception as error:
                self.cluster.invariants.report("typed errors", f"{driver.node_id} raised {error!r}")
                return
            if not self.lost():
                self._on_behalf(client, self.delay(), _settle, answer, result, failure)

        # In a turn of its own, so that a paused process serves it when it wakes.
        self.loop.call_soon(lambda: self.loop.create_task(serve()), context=process.context)


def _settle(answer: asyncio.Future[_T], result: _T, failure: Exception | None) -> None:
    if not answer.done():
        if failure is None:
            answer.set_result(result)
        else:
            answer.set_exception(failure)


def submit(
    cluster: Cluster, driver: Driver, bodies: Sequence[bytes], session_id: int, first_sequence: int
) -> Awaitable[BatchResult]:
    """``Backend.submit`` as an awaitable; answered twice is a violation."""
    future: asyncio.Future[BatchResult] = asyncio.get_running_loop().create_future()

    def done(result: BatchResult | None, error: Exception | None) -> None:
        if future.done():
            cluster.invariants.report("answered once", f"{driver.node_id}: {result} {error} after {future!r}")
        elif error is not None:
            future.set_exception(error)
        elif result is not None:
            future.set_result(result)

    driver.submit(bodies, session_id=session_id, first_sequence=first_sequence, done=done)
    return future


# --- the real pipeline on simulated streams ---


class SimClientTransport:
    """Implements ``ClientTransport`` on a `Wire` for one client."""

    def __init__(self, wire: Wire, client: Process) -> None:
        self._wire = wire
        self._client = client
        self._by_address = {
            address: wire.cluster.nodes[node_id] for node_id, address in wire.cluster.scenario.members.items()
        }

    def _header(self, driver: Driver, error: Exception | None = None) -> Header:
        term, leader_id, leader_address = driver.leader_hint()
        code, text = int(ResponseCode.SUCCESS), ""
        if error is not None:
            code = int(error.code) if isinstance(error, DLedgerError) else int(ResponseCode.INTERNAL_ERROR)
            text = str(error)
        return Header(code, text, driver.node_id, term, leader_id or "", leader_address or "")

    def open_stream(self, address: str, handler: StreamHandler) -> AppendStream:
        return _SimStream(self._wire, self._client, self._by_address[address], handler, self._header)

    async def open_session(self, address: str, client_id: bytes, timeout: float) -> SessionAnswer:
        async def work(driver: Driver) -> SessionAnswer:
            try:
                session_id, next_sequence = await driver.open_session(client_id)
            except DLedgerError as error:
                return SessionAnswer(self._header(driver, error))
            return SessionAnswer(self._header(driver), session_id, next_sequence)

        return await self._wire.call(self._client, self._by_address[address], timeout, work)

    async def metadata(self, address: str, timeout: float) -> Metadata:
        async def work(driver: Driver) -> Metadata:
            return Metadata(
                self._header(driver),
                driver.group,
                driver.members(),
                driver.max_entry_bytes,
                driver.max_batch_bytes,
                driver.max_batch_entries,
            )

        return await self._wire.call(self._client, self._by_address[address], timeout, work)


class _SimStream:
    """One append stream: ordered, and broken for good by the first loss on it or the death of its node."""

    def __init__(
        self,
        wire: Wire,
        client: Process,
        node: SimNode,
        handler: StreamHandler,
        header: Callable[[Driver, Exception | None], Header],
    ) -> None:
        self._wire = wire
        self._client = client
        self._node = node
        self.server = node.process
        self._handler = handler
        self._header = header
        self.closed = False
        self._last_arrival = 0.0
        self._last_answer = 0.0
        wire.streams.append(self)
        if self.server is None:
            self.break_later("connection refused")

    def send(self, batch: AppendBatch) -> None:
        wire = self._wire
        if self.closed:
            return
        wire.cluster.trace.add(
            self._client.name, "batch", self._node.node_id, batch.session_id, batch.first_sequence, len(batch.bodies)
        )
        if self.server is None or not self.server.alive or wire.lost():
            self.break_later("connection lost")
            return
        when = max(wire.loop.time() + wire.delay(), self._last_arrival)
        self._last_arrival = when
        wire.loop.call_at(when, self._arrive, batch, context=self.server.context)

    def close(self) -> None:
        self.closed = True

    def _arrive(self, batch: AppendBatch) -> None:
        driver = self._node.driver
        if driver is None or self._node.process is not self.server:
            return
        done = self._answerer(driver, batch.request_id)
        driver.submit(batch.bodies, session_id=batch.session_id, first_sequence=batch.first_sequence, done=done)

    def _answerer(self, driver: Driver, request_id: int) -> Callable[[BatchResult | None, Exception | None], None]:
        def done(result: BatchResult | None, error: Exception | None) -> None:
            answer = AppendAnswer(request_id, self._header(driver, error), result.runs if result else ())
            wire = self._wire
            if wire.lost():
                self.break_later("connection reset")
                return
            when = max(wire.loop.time() + wire.delay(), self._last_answer)
            self._last_answer = when
            wire.loop.call_at(when, self._deliver, answer, context=self._client.context)

        return done

    def _deliver(self, answer: AppendAnswer) -> None:
        if not self.closed:
            self._wire.cluster.trace.add(
                self._client.name,
                "answer",
                answer.request_id,
                answer.header.code,
                *(run.first_index for run in answer.runs),
            )
            self._handler.on_answer(answer)

    def break_later(self, reason: str, delay: float | None = None) -> None:
        """Break the stream in ``delay`` seconds (None: a moment)."""
        self._wire.loop.call_later(
            self._wire.delay() if delay is None else delay, self._broken, reason, context=self._client.context
        )

    def _broken(self, reason: str) -> None:
        if not self.closed:
            self.closed = True
            self._wire.cluster.trace.add(self._client.name, "stream_broken", self._node.node_id, reason)
            self._handler.on_broken(reason)


# --- who appends and reads ---


class Client:
    """One client: a process, a random source, a number. `run` ends soon after `stopping` is set."""

    def __init__(self, cluster: Cluster, wire: Wire, history: History, number: int) -> None:
        self.cluster = cluster
        self.wire = wire
        self.history = history
        self.number = number
        self.name = f"c{number}"
        self.rng = cluster.rng(f"client {number}")
        self.process = cluster.loop.process(self.name)
        self.stopping = False
        self._count = 0

    async def run(self) -> None:
        raise NotImplementedError

    def now(self) -> float:
        return self.cluster.loop.time()

    async def think(self) -> None:
        await asyncio.sleep(self.rng.expovariate(1 / self.cluster.scenario.think_s))

    def node(self, hint: str | None = None) -> SimNode:
        """The node that a refusal has named, mostly; else any."""
        nodes = self.cluster.nodes
        if hint in nodes and self.rng.random() < 0.8:
            return nodes[hint]
        return self.rng.choice(list(nodes.values()))

    def body(self) -> tuple[str, bytes]:
        """Return a new value and the body that stands for it."""
        value = f"{self.number}-{self._count}"
        self._count += 1
        limit = self.cluster.scenario.store.data_segment_bytes // 2 - 60
        length = self.rng.choice([0, 10, 100, 400, limit if self.rng.random() < 0.05 else 10])
        body = f"{value}|".encode() + b"x" * length
        self.cluster.invariants.expect_body(value, body)
        return value, body

    def invoke(self, value: str, *, stream: int = -1) -> int:
        self.cluster.trace.add(self.name, "append", value)
        return self.history.invoke(self.number, value, self.now(), stream=stream)

    def acknowledge(self, operation: int, index: int) -> None:
        value = str(self.history.values[operation])
        self.cluster.trace.add(self.name, "acknowledged", value, index)
        self.cluster.invariants.acknowledged(value, index, self.name)
        self.history.acknowledge(operation, index, self.now())

    def fail(self, operation: int, *, definite: bool, why: str) -> None:
        value = str(self.history.values[operation])
        self.cluster.trace.add(self.name, "failed" if definite else "unknown", value, why)
        self.history.fail(operation, self.now(), definite=definite)


class LooseClient(Client):
    """Appends without a session, once each, at any node; what became of it is what the answer says."""

    async def run(self) -> None:
        hint: str | None = None
        while not self.stopping:
            count, node = self.rng.choice([1, 1, 1, 3]), self.node(hint)
            error = await self.append_at(node, count)
            hint = node.node_id if error is None else error.leader_id
            await self.think()

    async def append_at(self, node: SimNode, count: int) -> DLedgerError | None:
        """Append so many entries in one batch at ``node``, once; returns why it failed, None if it did not."""
        values, bodies = zip(*(self.body() for _ in range(count)), strict=True)
        operations = [self.invoke(value) for value in values]
        try:
            result = await self.wire.call(self.process, node, 1.0, functools.partial(self.submit, bodies=bodies))
        except DLedgerError as error:
            for operation in operations:
                self.fail(operation, definite=error.outcome is Outcome.DEFINITE, why=type(error).__name__)
            return error
        for operation, index in zip(operations, result.indexes(), strict=True):
            self.acknowledge(operation, index)
        return None

    def submit(self, driver: Driver, bodies: Sequence[bytes]) -> Awaitable[BatchResult]:
        return submit(self.cluster, driver, bodies, 0, 0)


class SessionClient(Client):
    """Appends in a session and is never content with one answer: repeats at any node, also what was acknowledged."""

    def __init__(self, cluster: Cluster, wire: Wire, history: History, number: int) -> None:
        super().__init__(cluster, wire, history, number)
        self._session_id = 0
        self._sequence = 0
        self._sessions = 0
        self._hint: str | None = None
        self.repeats = 0

    async def run(self) -> None:
        while not self.stopping:
            if not self._session_id:
                await self._open()
                continue
            made = [self.body() for _ in range(self.rng.choice([1, 1, 2, 5]))]
            await self._append([value for value, _ in made], [body for _, body in made])
            await self.think()

    async def _open(self) -> None:
        client_id = f"{self.name}.{self._sessions}".encode()
        node = self.node(self._hint)
        try:
            opened = await self.wire.call(self.process, node, 1.0, lambda driver: driver.open_session(client_id))
        except DLedgerError as error:
            self._hint = error.leader_id
            await asyncio.sleep(self.rng.uniform(0.005, 0.1))
            return
        self._session_id, self._sequence = opened
        self.cluster.trace.add(self.name, "session", self._session_id, self._sequence)

    async def _append(self, values: Sequence[str], bodies: Sequence[bytes]) -> None:
        stream = self.number * 1000 + self._sessions
        operations = [self.invoke(value, stream=stream) for value in values]
        first, session_id = self._sequence, self._session_id
        surely_not = True  # every send so far was refused for good
        while True:
            node = self.node(self._hint)
            if self.rng.random() < 0.15:
                self._repeat(session_id, first, values, bodies)
                surely_not = False
            try:
                result = await self._send(node, session_id, first, bodies, self.rng.uniform(0.05, 1.5))
            except (SessionExpiredError, SequenceForgottenError) as error:
                for operation in operations:
                    definite = surely_not and isinstance(error, SessionExpiredError)
                    self.fail(operation, definite=definite, why=type(error).__name__)
                self._session_id = 0
                self._sessions += 1
                return
            except DLedgerError as error:
                self._hint = error.leader_id
                surely_not &= error.outcome is Outcome.DEFINITE
                self.cluster.trace.add(self.name, "refused", node.node_id, type(error).__name__)
                await asyncio.sleep(self.rng.uniform(0.001, 0.1))
                continue
            break
        self._hint = node.node_id
        for operation, index in zip(operations, result.indexes(), strict=True):
            self.acknowledge(operation, index)
        self._sequence += len(bodies)
        if self.rng.random() < 0.2:
            self._repeat(session_id, first, values, bodies)

    def _send(
        self, node: SimNode, session_id: int, first: int, bodies: Sequence[bytes], timeout: float
    ) -> Awaitable[BatchResult]:
        return self.wire.call(
            self.process,
            node,
            timeout,
            lambda driver: submit(self.cluster, driver, bodies, session_id, first),
        )

    def _repeat(self, session_id: int, first: int, values: Sequence[str], bodies: Sequence[bytes]) -> None:
        """Send a batch once more, aside; if it is acknowledged, then at its one place."""
        self.repeats += 1
        self.process.run(self.cluster.loop.create_task, self._repeated(self.node(), session_id, first, values, bodies))

    async def _repeated(
        self, node: SimNode, session_id: int, first: int, values: Sequence[str], bodies: Sequence[bytes]
    ) -> None:
        await asyncio.sleep(self.rng.choice([0, 0.01, 0.5]))
        try:
            result = await self._send(node, session_id, first, bodies, 1.0)
        except DLedgerError:
            return
        for value, index in zip(values, result.indexes(), strict=True):
            self.cluster.invariants.acknowledged(value, index, self.name)


class PipelineClient(Client):
    """The real client's pipeline: appends by the dozen, in order, exactly once."""

    async def run(self) -> None:
        loop, rng = self.cluster.loop, self.rng
        options = PipelineOptions(
            batch_entries=rng.choice([3, 50]),
            batch_bytes=rng.choice([2000, 50_000]),
            max_inflight_batches=rng.choice([1, 4]),
            max_wire_batches=rng.choice([1, 8]),
            max_pending_count=rng.choice([20, 1000]),
        )
        patient = rng.random() < 0.6
        stream = self.number * 1000 if patient else -1
        pipeline = AppendPipeline(
            SimClientTransport(self.wire, self.process),
            Directory(dict(self.cluster.scenario.members)),
            options,
            rng,
        )
        open_futures: dict[asyncio.Future[AppendResult], None] = {}
        while not self.stopping:
            for _ in range(rng.choice([1, 1, 2, 8])):
                value, body = self.body()
                operation = self.invoke(value, stream=stream)
                future = pipeline.queue.submit(body, _LONG_S if patient else rng.uniform(0.05, 3.0))
                open_futures[future] = None
                future.add_done_callback(functools.partial(self._ended, operation))
                future.add_done_callback(lambda done: open_futures.pop(done, None))
            while len(open_futures) > 100 and not self.stopping:
                await asyncio.wait(open_futures, timeout=1.0, return_when=asyncio.FIRST_COMPLETED)
            await self.think()
        await pipeline.flush()
        await pipeline.close()
        self.cluster.trace.add(self.name, "pipeline_closed", loop.time())

    def _ended(self, operation: int, future: asyncio.Future[AppendResult]) -> None:
        error = future.exception()
        if error is None:
            self.acknowledge(operation, future.result().index)
        elif isinstance(error, DLedgerError):
            self.fail(operation, definite=error.outcome is Outcome.DEFINITE, why=type(error).__name__)
        else:
            self.cluster.invariants.report("typed errors", f"the pipeline raised {error!r}")


class ReadingClient(Client):
    """Reads at any node: how long the log is, and its last entries or any others."""

    async def run(self) -> None:
        while not self.stopping:
            node = self.node()
            mode = ReadMode.LINEARIZABLE if self.rng.random() < 0.7 else ReadMode.LOCAL_COMMITTED
            back = self.rng.choice([0, 3, _TAIL_ENTRIES, 10_000])
            await self.read_at(node, mode, back, self.rng.uniform(0.2, 2.0))
            await self.think()

    async def read_at(self, node: SimNode, mode: ReadMode, back: int, timeout: float) -> None:
        """Read the last ``back`` entries at ``node``; what is not answered within ``timeout`` seconds says nothing."""
        call = self.now()
        try:
            length, first, values = await self.wire.call(
                self.process, node, timeout, functools.partial(_look, self.cluster, mode=mode, back=back)
            )
        except DLedgerError:
            return
        linearizable = mode is ReadMode.LINEARIZABLE
        self.cluster.trace.add(self.name, "read", node.node_id, mode.value, length, first, len(values))
        self.history.add_read(
            Read(
                self.number,
                call,
                self.now(),
                linearizable,
                length,
                length if linearizable else None,
                first,
                values,
                node.node_id,
            )
        )


async def _look(cluster: Cluster, driver: Driver, mode: ReadMode, back: int) -> tuple[int, int, list[str | None]]:
    """(length of the log, index of the first value, values) as one node shows them."""
    last = await driver.read_index(mode)
    first = max(0, last - back + 1)
    if last < 0 or first > last:
        return last + 1, max(first, 0), []
    try:
        await driver.read_slice(last, last, 1)
    except IndexOutOfRangeError as error:
        cluster.invariants.report("read barrier", f"{driver.node_id} lets read up to {last}, but: {error}")
    raw = await driver.read_slice(first, last, 1 << 16)
    values: list[str | None] = [
        entry.body.split(b"|", 1)[0].decode("ascii", "replace") if entry.type is EntryType.NORMAL else None
        for entry in iter_entries(raw.data)
    ]
    return last + 1, first, values
