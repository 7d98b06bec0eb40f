"""`LedgerClient`: a group as an asyncio program sees it."""

from __future__ import annotations

import asyncio
import random
import warnings
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from types import TracebackType
from typing import TypeVar

from dledger.client.discovery import Directory
from dledger.client.grpc_transport import GrpcClientTransport
from dledger.client.options import PipelineOptions
from dledger.client.peers import parse_peers
from dledger.client.pipeline import AppendPipeline
from dledger.client.reader import RangeReader
from dledger.client.retry import call_with_retries
from dledger.client.status_answer import STATUS_LIMIT_S
from dledger.client.transport import Header, Metadata, closed_error
from dledger.errors import (
    ConfigError,
    DLedgerError,
    IndexOutOfRangeError,
    Outcome,
    ResponseCode,
    UnavailableError,
    UnexpectedArgumentError,
)
from dledger.raft.messages import EntryType
from dledger.security.access import ClientTls, checked_token
from dledger.storage.entry import iter_entries
from dledger.types import AppendResult, BatchResult, DownNode, Entry, NodeStatus, ReadMode

__all__ = ["DownNode", "LedgerClient", "connect"]

BEYOND_ANY_INDEX = 2**62

_T = TypeVar("_T")


def connect(
    peers: str | Mapping[str, str] | Sequence[str],
    *,
    group: str = "default",
    timeout: float = 30.0,
    session: bool = True,
    options: PipelineOptions | None = None,
    rng: random.Random | None = None,
    tls: ClientTls | None = None,
    token: str | None = None,
) -> LedgerClient:
    """Return a client of a group. Neither I/O nor a running loop is needed; the first use begins to connect.

    Args:
        peers: ``n0-host:port;n1-host:port`` (RocketMQ's form), ``host:port`` with commas or as a sequence, or a mapping
            from id to address. Some of the nodes will do: they name the others.
        group: the group's name.
        timeout: seconds that a call may take, all of its attempts together.
        session: exactly-once appends. False: an append whose outcome is unknown fails with that, and is not sent again.
        options: limits of the append pipeline; its ``session`` gives way to the argument here.
        rng: where session ids and jitter come from; the system's randomness by default.
        tls: certificates, where the nodes speak TLS. The nodes' certificates must name the hosts given in ``peers``.
        token: sent with every call, where the nodes ask for one (``tokensFile``).

    Raises:
        ConfigError: the peers, a limit or the timeout cannot work.
    """
    return LedgerClient(
        peers, group=group, timeout=timeout, session=session, options=options, rng=rng, tls=tls, token=token
    )


class LedgerClient:
    """A client of one group; use it from one loop, with ``async with`` or with `close` at the end.

    Errors are ``DLedgerError``; of a failed append ``outcome`` says whether it may be in the log (``UNKNOWN``) or is
    not and never will be (``DEFINITE``), and ``retriable`` whether trying again may help. ``timeout`` arguments are
    seconds, None the client's own.
    """

    def __init__(
        self,
        peers: str | Mapping[str, str] | Sequence[str],
        *,
        group: str = "default",
        timeout: float = 30.0,
        session: bool = True,
        options: PipelineOptions | None = None,
        rng: random.Random | None = None,
        tls: ClientTls | None = None,
        token: str | None = None,
    ) -> None:
        self._closed = False
        self._transport: GrpcClientTransport | None = None
        self._pipeline: AppendPipeline | None = None
        nodes = parse_peers(peers)
        if not group:
            raise ConfigError(["group: empty; give the group's name"])
        if not timeout > 0:
            raise ConfigError([f"timeout: {timeout} must be above 0 seconds"])
        chosen = options or PipelineOptions()
        if chosen.session != session:
            values = {name: getattr(chosen, name) for name in PipelineOptions.__slots__}
            chosen = PipelineOptions(**{**values, "session": session})
        chosen.validate()
        self.group = group
        self.timeout = timeout
        self._options = chosen
        self._tls = tls
        self._token = checked_token(token)
        self._rng = rng or random.SystemRandom()
        self._directory = Directory(nodes)

    async def __aenter__(self) -> LedgerClient:
        self._start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Wait for what is pending (`flush`) unless an error is on its way; then `close`."""
        try:
            if kind is None:
                await self.flush()
        finally:
            await self.close()

    def __del__(self) -> None:
        if self._transport is not None and not self._closed:
            warnings.warn(f"{self!r} was never closed", ResourceWarning, source=self, stacklevel=2)

    def __repr__(self) -> str:
        return f"<LedgerClient {self.group} {','.join(self._directory.nodes.values())}>"

    # ---- appends

    async def append(self, body: bytes, *, timeout: float | None = None) -> AppendResult:
        """Append one entry and return its place once it is committed. Waits for room while the window is full.

        Concurrent appends travel in batches; those of one task stand in its order. Cancelled, it may still commit.

        Raises:
            EntryTooLargeError, UnexpectedArgumentError: the body will not be taken (DEFINITE).
            DLedgerError: not acknowledged within ``timeout``; of the kind of the last obstacle, with its ``outcome``.
        """
        pipeline = self._pipeline or self._start()
        return await pipeline.queue.submit(body, self._limit(timeout))

    def append_nowait(self, body: bytes, *, timeout: float | None = None) -> asyncio.Future[AppendResult]:
        """Queue one entry on the running loop and return the future of its place; order is that of the calls.

        Raises:
            PendingFullError: the window of unresolved entries is full. Otherwise as `append`.
        """
        pipeline = self._pipeline or self._start()
        return pipeline.queue.submit_nowait(body, self._limit(timeout))

    async def append_many(self, bodies: Sequence[bytes], *, timeout: float | None = None) -> BatchResult:
        """Append many entries, in order; more than a batch may hold are split. Returns where they stand.

        Not atomic: after an error some may be in the log, and ``outcome`` is UNKNOWN unless surely none is.

        Raises:
            UnexpectedArgumentError: no bodies. Otherwise as `append`.
        """
        pipeline = self._pipeline or self._start()
        return await pipeline.queue.submit_many(bodies, self._limit(timeout))

    async def flush(self) -> None:
        """Return when every append begun before has ended, well or badly."""
        if self._pipeline is not None:
            await self._pipeline.flush()

    # ---- reads

    async def get(self, index: int, *, mode: ReadMode = ReadMode.LINEARIZABLE, timeout: float | None = None) -> Entry:
        """Return the committed entry at ``index``.

        Raises:
            IndexOutOfRangeError, IndexCompactedError: there is none. UnavailableError: nobody could say in time.
        """
        transport = self._started()

        async def ask(address: str, limit: float) -> tuple[Header, Entry | None]:
            return await transport.get(address, index, mode, limit)

        entry = await self._call(ask, timeout)
        if entry is None:
            raise DLedgerError(f"an answer without entry {index}", code=ResponseCode.INTERNAL_ERROR)
        return entry

    async def read(
        self,
        start: int = 0,
        stop: int | None = None,
        *,
        follow: bool = False,
        mode: ReadMode = ReadMode.LINEARIZABLE,
        all_types: bool = False,
    ) -> AsyncGenerator[Entry, None]:
        """Yield committed entries from ``start`` up to, not including, ``stop``.

        Without ``stop`` it ends at the commit index of its beginning, or never with ``follow``, which waits for entries
        to come. After a failure it goes on at another node from the next index: no gap and no repeat.

        Raises:
            IndexOutOfRangeError: ``stop`` is beyond the end (without ``follow``), or ``start`` more than one past it.
            IndexCompactedError: ``start`` is before the first entry.
            DLedgerError: nobody answered for the client's ``timeout``.
        """
        if start < 0:
            raise IndexOutOfRangeError(f"start is {start}; indexes count from 0")
        if stop is not None and stop <= start:
            return
        last = -1 if stop is None else stop - 1
        reader = RangeReader(
            self._started(), self._directory, start, last, follow=follow, mode=mode, timeout=self.timeout
        )
        chunks = reader.chunks()
        try:
            async for chunk in chunks:
                for entry in iter_entries(chunk.data):
                    if all_types or entry.type is EntryType.NORMAL:
                        yield entry
        finally:
            await chunks.aclose()

    async def commit_index(self, mode: ReadMode = ReadMode.LINEARIZABLE, *, timeout: float | None = None) -> int:
        """Return an index up to which everything is committed (-1: nothing); linearizable, all acknowledged before.

        Raises:
            UnavailableError: nobody could say in time.
        """
        transport = self._started()

        async def ask(address: str, limit: float) -> tuple[Header, int]:
            # A range beyond every log is refused after the freshness barrier, with the commit index.
            call = transport.read_plainly(address, BEYOND_ANY_INDEX, -1, follow=False, mode=mode)
            try:
                async with asyncio.timeout(limit):
                    chunk = await call.next_chunk()
            except TimeoutError:
                raise UnavailableError(f"{address}: no answer within {limit:.3g} s") from None
            finally:
                call.close()
            if chunk.header.code == ResponseCode.INDEX_OUT_OF_RANGE:
                return _as_success(chunk.header), chunk.commit_index
            return chunk.header, chunk.commit_index

        return await self._call(ask, timeout)

    # ---- the group

    async def metadata(self, *, timeout: float | None = None) -> Metadata:
        """Return members, limits and the leader, as the first node that answers knows them."""
        transport = self._started()

        async def ask(address: str, limit: float) -> tuple[Header, Metadata]:
            answer = await transport.metadata(address, limit)
            return answer.header, answer

        answer = await self._call(ask, timeout)
        self._directory.learn_members(answer.members)
        return answer

    async def status(self, *, timeout: float = STATUS_LIMIT_S) -> list[NodeStatus | DownNode]:
        """Ask every node at once; within ``timeout`` seconds each has a place in the list, a dead one with the reason.

        Nodes that were not given but that others name are asked too. Raises nothing for a node that fails.
        """
        transport = self._started()
        deadline = asyncio.get_running_loop().time() + timeout
        found: dict[str, NodeStatus | DownNode] = {}
        while missing := [address for address in self._directory.nodes.values() if address not in found]:
            left = deadline - asyncio.get_running_loop().time()
            answers = await asyncio.gather(*(self._status(transport, address, left) for address in missing))
            found.update(zip(missing, answers, strict=True))
            for answer in answers:
                if isinstance(answer, NodeStatus):
                    self._directory.learn_members({peer.node_id: peer.address for peer in answer.peers})
        return [found[address] for address in self._directory.nodes.values() if address in found]

    async def _status(self, transport: GrpcClientTransport, address: str, timeout: float) -> NodeStatus | DownNode:
        try:
            if timeout <= 0:
                raise UnavailableError(f"{address}: not asked in time")
            header, status = await transport.status(address, timeout)
            self._directory.learn(address, header)
            if not header.ok:
                raise header.error()
        except DLedgerError as error:
            names = [node_id for node_id, known in self._directory.nodes.items() if known == address]
            return DownNode(names[0] if names else address, address, error.message)
        return status

    async def transfer_leadership(self, target: str | None = None, *, timeout: float | None = None) -> str:
        """Hand leadership to ``target`` (None: to the follower that is furthest); return the new leader's id.

        Raises:
            UnknownMemberError: no such node. TransferFailedError: it did not take over.
            UnavailableError: no leader in time, or the answer was lost (outcome UNKNOWN; not asked again).
        """
        transport = self._started()

        async def ask(address: str, limit: float) -> tuple[Header, str]:
            refusal = await self._refusal_of_follower(transport, address, limit)
            return (refusal, "") if refusal else await transport.transfer_leadership(address, target or "", limit)

        return await self._call(ask, timeout, leader_only=True, repeatable=False)

    async def step_down(self, *, timeout: float | None = None) -> None:
        """Make the leader give up leadership without a chosen successor.

        Raises:
            UnavailableError: no leader in time, or the answer was lost (outcome UNKNOWN; not asked again).
        """
        transport = self._started()

        async def ask(address: str, limit: float) -> tuple[Header, None]:
            refusal = await self._refusal_of_follower(transport, address, limit)
            return refusal or await transport.step_down(address, limit), None

        await self._call(ask, timeout, leader_only=True, repeatable=False)

    async def _refusal_of_follower(self, transport: GrpcClientTransport, address: str, timeout: float) -> Header | None:
        """Make sure, before a call that is made once only, that this node answers and leads; None if so."""
        try:
            header = (await transport.metadata(address, min(timeout, 1.0))).header
        except UnavailableError as error:
            error.outcome = Outcome.DEFINITE
            raise
        if not header.ok or header.claims_leadership:
            return None if header.ok else header
        return Header(
            int(ResponseCode.NOT_LEADER), f"{header.node_id} is not the leader", header.node_id, header.term,
            header.leader_id, header.leader_address,
        )  # fmt: skip

    async def close(self) -> None:
        """End everything: pending appends fail (``StoppedError``, with outcome), no task is left. Twice is fine."""
        self._closed = True
        pipeline, self._pipeline = self._pipeline, None
        transport, self._transport = self._transport, None
        try:
            if pipeline is not None:
                await pipeline.close()
        finally:
            if transport is not None:
                await transport.close()

    # ---- inside

    def _start(self) -> AppendPipeline:
        """Bind to the running loop, once."""
        if self._closed:
            raise closed_error()
        if self._pipeline is None or self._transport is None:
            self._transport = GrpcClientTransport(self.group, tls=self._tls, token=self._token)
            self._pipeline = AppendPipeline(self._transport, self._directory, self._options, self._rng)
        return self._pipeline

    def _started(self) -> GrpcClientTransport:
        self._start()
        if self._transport is None:
            raise closed_error()
        return self._transport

    def _limit(self, timeout: float | None) -> float:
        if timeout is None:
            return self.timeout
        if not timeout > 0:
            raise UnexpectedArgumentError(f"timeout {timeout}; give seconds above 0, or None for {self.timeout:g}")
        return timeout

    async def _call(
        self,
        ask: Callable[[str, float], Awaitable[tuple[Header, _T]]],
        timeout: float | None,
        *,
        leader_only: bool = False,
        repeatable: bool = True,
    ) -> _T:
        return await call_with_retries(
            self._directory, ask, self._limit(timeout), leader_only=leader_only, repeatable=repeatable
        )


def _as_success(header: Header) -> Header:
    return Header(int(ResponseCode.SUCCESS), "", header.node_id, header.term, header.leader_id, header.leader_address)
