"""`DLedgerServer`: one node of a group, embedded in any asyncio program or run by ``dledger start``.

Puts the parts together: configuration → store → gRPC edge → driver. All decisions are made below it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import time
from collections.abc import AsyncIterator, Sequence

from dledger.config import DLedgerConfig
from dledger.driver.driver import Driver
from dledger.driver.executor import ThreadExecutor
from dledger.driver.pending import Done
from dledger.driver.roles import RoleChangeHandler
from dledger.driver.state_machine import StateMachine
from dledger.errors import ConfigError, IndexOutOfRangeError
from dledger.keep_awake import LATENCY_DEVICE, KeepAwake, keep_awake_while_changing
from dledger.metrics.health import Readiness, readiness
from dledger.metrics.peers import MeteredTransport
from dledger.observer import NodeObserver
from dledger.raft.messages import EntryType, NodeId
from dledger.rpc.options import NetworkOptions
from dledger.rpc.server import AddressInUseError, GrpcServer
from dledger.rpc.transport import GrpcTransport
from dledger.security.listen import check_listeners
from dledger.security.node import node_security
from dledger.storage.entry import RawSlice, iter_entries
from dledger.storage.filesystem import FileSystem, RealFileSystem
from dledger.storage.log_store import LogStore, StoreOptions
from dledger.storage.memory_filesystem import MemoryFileSystem
from dledger.types import AppendHook, AppendResult, BatchResult, Entry, NodeStatus, ReadMode

__all__ = ["DLedgerServer"]

_READ_THREADS = 2
_READ_BYTES = 1024 * 1024


class DLedgerServer:
    """One node of a replicated log.

    ``config`` is checked already. ``state_machine`` gets every committed entry, see `StateMachine`. All methods belong
    to the event loop that called `start`. Failures are ``DLedgerError``s; those of appends say whether the entry may
    still be in the log (``outcome``).
    """

    def __init__(self, config: DLedgerConfig, *, state_machine: StateMachine | None = None) -> None:
        self.config = config
        self._state_machine = state_machine
        self._handlers: list[RoleChangeHandler] = []
        self._driver: Driver | None = None
        self._grpc: GrpcServer | None = None
        self._observer: NodeObserver | None = None
        self._awake: asyncio.Task[None] | None = None
        self._stopping = False

    @property
    def driver(self) -> Driver:
        """The running node's driver.

        Raises:
            RuntimeError: `start` has not been called.
        """
        if self._driver is None:
            raise RuntimeError("the server has not been started: await server.start()")
        return self._driver

    @property
    def metrics_address(self) -> str | None:
        """``host:port`` of /metrics, /livez and /readyz once started; None: not served (``metricsPort``)."""
        return None if self._observer is None else self._observer.address

    def readiness(self) -> Readiness:
        """Whether this node lives and is fit for use, as the probes say."""
        return readiness(self.driver)

    def add_role_change_handler(self, handler: RoleChangeHandler) -> None:
        """Register before `start`; see `RoleChangeHandler`."""
        self._handlers.append(handler)

    async def start(self) -> None:
        """Open the folder, take the port, join the group. Returns at once; a leader may take a moment.

        Raises:
            ConfigError: a certificate, the tokens, a plaintext address that others can reach, or a wish
                (``keepCpusAwake``) that this process may not have.
            StoreLockedError: another process has the folder.
            StorageError: the folder belongs to another group or node, or its log is damaged.
            UnavailableError: the port is taken.
        """
        config = self.config
        check_listeners(config)
        tls, tokens = node_security(config)
        disk = ThreadExecutor(f"disk-{config.self_id}")
        reader = ThreadExecutor(f"read-{config.self_id}", _READ_THREADS)
        filesystem: FileSystem = MemoryFileSystem(track=False) if config.store_type == "MEMORY" else RealFileSystem()
        try:
            store = await disk.run(self._open_store, filesystem)
        except BaseException:
            disk.shutdown()
            reader.shutdown()
            raise
        network = NetworkOptions(
            vote_timeout_ms=config.election_timeout_ms,
            max_connections=config.max_connections,
            max_client_streams=config.max_streams,
            slow_reader_timeout_ms=config.slow_reader_timeout_ms,
        )
        members = {peer.node_id: peer.address for peer in config.peers}
        transport = GrpcTransport(config.group, config.self_id, members, network, tls)
        metered = MeteredTransport(transport)
        driver = Driver(
            config,
            store,
            metered,
            disk=disk,
            reader=reader,
            rng=random.Random(),
            state_machine=self._state_machine,
            clock=time.monotonic,
        )
        for handler in self._handlers:
            driver.add_role_change_handler(handler)
        grpc_server = GrpcServer(
            driver,
            transport,
            config.bind_address,
            network,
            tls=tls,
            client_port=config.tls_client_port,
            tokens=tokens,
        )
        observer = NodeObserver(driver, metered, grpc_server, tokens)
        try:
            await self._listen_for_peers(transport)
            await grpc_server.start()
            await observer.listen()
        except BaseException:
            await transport.stop()
            await observer.stop()
            await grpc_server.stop()
            await disk.run(store.close)
            disk.shutdown()
            reader.shutdown()
            raise
        self._driver, self._grpc, self._observer = driver, grpc_server, observer
        try:
            await driver.start()
            observer.start()
            if config.keep_cpus_awake == "busy":
                self._awake = asyncio.create_task(keep_awake_while_changing(self._wish(), driver.progress))
        except BaseException:
            # Never leave a listening server behind: gRPC's threads must not outlive the loop.
            with contextlib.suppress(Exception):
                await self.stop()
            raise

    def _wish(self) -> KeepAwake:
        try:
            return KeepAwake()
        except OSError as error:
            origin = self.config.origins.get("keep_cpus_awake")
            where = "DLedgerConfig" if origin is None else origin.where()
            raise ConfigError(
                [
                    f"{where}: keepCpusAwake=busy needs to write {LATENCY_DEVICE}: "
                    f"{error.strerror or error}; give this user the right to, or take the setting out"
                ]
            ) from error

    async def _listen_for_peers(self, transport: GrpcTransport) -> None:
        """Take the port for peers. With TLS there is none: they meet where certificates are looked at.

        Raises:
            AddressInUseError: it cannot be had.
        """
        config = self.config
        if config.peer_port < 0 or len(config.peers) == 1 or config.tls_cert_file is not None:
            return
        host = config.bind_address.rpartition(":")[0].removeprefix("[").removesuffix("]")
        try:
            await transport.listen(host, config.peer_port, config.announced_peer_port)
        except OSError as error:
            address = f"{host}:{config.peer_port}"
            raise AddressInUseError(
                f"cannot listen for peers on {address}: {error.strerror or error}; see peerPort"
            ) from error

    def _open_store(self, filesystem: FileSystem) -> LogStore:
        config = self.config
        return LogStore.open(
            filesystem,
            os.fspath(config.node_dir),
            group=config.group,
            node_id=config.self_id,
            options=StoreOptions(
                data_segment_bytes=config.mapped_file_size_for_entry_data,
                index_segment_bytes=config.mapped_file_size_for_entry_index,
                sync_flush=config.flush_disk_type == "SYNC_FLUSH",
                checkpoint_bytes=config.check_point_bytes,
                cache_bytes=config.tail_cache_bytes,
            ),
        )

    async def stop(self) -> None:
        """Hand leadership over if this node leads, then stop. Twice is fine."""
        if self._driver is None or self._stopping:
            return
        self._stopping = True
        if self._observer is not None:
            self._observer.stopping()
        await self._driver.stop()
        if self._observer is not None:
            await self._observer.stop()
        if self._grpc is not None:
            await self._grpc.stop(0.2)
        if self._awake is not None:
            self._awake.cancel()
            await asyncio.wait({self._awake})
        if not self._driver.failure.done():
            self._driver.failure.cancel()

    async def wait_stopped(self) -> None:
        """Wait until the node stops by itself, and raise why: a broken invariant or a failed disk."""
        failure = self.driver.failure
        try:
            raise await asyncio.shield(failure)
        except asyncio.CancelledError:
            if failure.cancelled():
                return
            raise

    # ------------------------------------------------------------------ the log

    async def append(self, body: bytes) -> AppendResult:
        """Append one entry; returns once it is on a majority's disk.

        Cancelling the call does not take the entry back: it may still commit.

        Raises:
            NotLeaderError, LeaderTransferringError, PendingFullError, EntryTooLargeError, DiskFullError: definite.
            QuorumTimeoutError, TermChangedError: the outcome is unknown.
        """
        result = await self.append_batch((body,))
        run = result.runs[0]
        return AppendResult(run.first_index, run.term, self.driver.position_of(run.first_index))

    async def append_batch(self, bodies: Sequence[bytes], *, hook: AppendHook | None = None) -> BatchResult:
        """Append entries together: consecutive indexes, one quorum round. Errors as in `append`.

        ``hook(positions, bodies)`` is called once the byte position of each entry is known, in log order, on the event
        loop; it returns the bodies to store, of the same lengths (RocketMQ writes a message's physical offset so:
        ``position + 48``). It must not fail: a node whose hook raises stops.
        """
        future: asyncio.Future[BatchResult] = asyncio.get_running_loop().create_future()

        def done(result: BatchResult | None, error: Exception | None) -> None:
            if future.done():
                return
            if error is not None:
                future.set_exception(error)
            elif result is not None:
                future.set_result(result)

        self.append_nowait(bodies, done=done, hook=hook)
        return await future

    def append_nowait(self, bodies: Sequence[bytes], *, done: Done, hook: AppendHook | None = None) -> None:
        """As `append_batch`, answered by ``done(result, error)``: exactly one of the two is not None.

        Calls are taken in their order; ``done`` is never called before this returns.
        """
        self.driver.submit(bodies, done=done, hook=hook)

    async def get(self, index: int, *, mode: ReadMode = ReadMode.LINEARIZABLE) -> Entry:
        """Return one committed entry.

        Raises:
            IndexOutOfRangeError, IndexCompactedError: no such entry.
            UnavailableError: a linearizable read found no majority in time.
        """
        await self.driver.read_index(mode)
        raw = await self.driver.read_slice(index, index, 1)
        return next(iter_entries(raw.data))

    async def read(
        self,
        from_index: int = 0,
        to_index: int | None = None,
        *,
        mode: ReadMode = ReadMode.LINEARIZABLE,
        all_types: bool = False,
    ) -> AsyncIterator[Entry]:
        """Yield committed entries from ``from_index`` to ``to_index`` (None: the commit index at the call).

        No-op and session entries are left out unless ``all_types``.
        """
        last = await self.driver.read_index(mode)
        if to_index is not None:
            if to_index > last:
                raise IndexOutOfRangeError(f"index {to_index} is beyond the last committed entry {last}")
            last = to_index
        index = max(from_index, self.driver.store.first_index)
        while index <= last:
            raw = await self.driver.read_slice(index, last, _READ_BYTES)
            for entry in iter_entries(raw.data):
                if all_types or entry.type is EntryType.NORMAL:
                    yield entry
            index = raw.last_index + 1

    async def read_slice(self, first_index: int, last_index: int, max_bytes: int = _READ_BYTES) -> RawSlice:
        """Return committed entries as they are stored; at least one, whole ones, at most ``max_bytes``."""
        return await self.driver.read_slice(first_index, last_index, max_bytes)

    async def wait_committed(self, index: int) -> int:
        """Return the commit index as soon as it is at least ``index``."""
        return await self.driver.wait_committed(index)

    async def read_barrier(self) -> int:
        """Return once the state machine here has applied all that was acknowledged, by any node, before the call.

        What it says after that is linearizable, at a follower too (ReadIndex, T§6.4). Returns its applied index.

        Raises:
            UnavailableError: no majority confirmed the leader in time.
        """
        return await self.driver.wait_applied(await self.driver.read_index(ReadMode.LINEARIZABLE))

    def status(self) -> NodeStatus:
        """What this node knows of itself and its peers."""
        return self.driver.status()

    def leader_hint(self) -> tuple[int, NodeId | None, str | None]:
        """(term, leader id, leader address) as known here."""
        return self.driver.leader_hint()

    def position_of(self, index: int) -> int:
        """Return the byte position of a recent entry, -1 where that would need the disk."""
        return self.driver.position_of(index)

    async def transfer_leadership(self, target: NodeId | None = None) -> NodeId:
        """Hand leadership to ``target`` (None: the best follower); returns the new leader's id.

        Raises:
            NotLeaderError, LeaderTransferringError, TransferFailedError.
        """
        return await self.driver.transfer_leadership(target)
