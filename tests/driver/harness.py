"""Drivers of one group in one loop: links are function calls, disks are memory, nothing is simulated but the network."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from dataclasses import replace

from dledger.config import DLedgerConfig, Peer
from dledger.driver.driver import Driver
from dledger.driver.state_machine import StateMachine
from dledger.raft.messages import AppendEntries, Message
from dledger.rpc.interfaces import TransportHandler
from dledger.storage.entry import RawSlice, parse_slice
from dledger.storage.log_store import LogStore, StoreOptions
from dledger.storage.memory_filesystem import MemoryFileSystem
from dledger.types import BatchResult


class InlineExecutor:
    """Runs the work on the loop, one turn later; a test may hold it or make it fail."""

    def __init__(self) -> None:
        self.gate = asyncio.Event()
        self.gate.set()

    async def run(self, function, *args):
        await asyncio.sleep(0)
        await self.gate.wait()
        return function(*args)

    run_quick = run

    def try_now(self, function, *args):
        return False

    def shutdown(self) -> None:
        pass


class Hub:
    """Links between the nodes of one group."""

    def __init__(self) -> None:
        self.handlers: dict[str, TransportHandler] = {}
        self.cut: set[tuple[str, str]] = set()

    def transport(self, node_id: str) -> HubTransport:
        return HubTransport(self, node_id)


class HubTransport:
    def __init__(self, hub: Hub, node_id: str) -> None:
        self.hub, self.node_id = hub, node_id
        self.sent: list[Message] = []

    def send(self, peer: str, message: Message) -> None:
        self.sent.append(message)
        if isinstance(message, AppendEntries) and isinstance(message.payload, RawSlice):
            raw = message.payload
            message = replace(message, payload=parse_slice(raw.data, raw.first_index, message.prev_chain_crc, raw.crc))
        asyncio.get_running_loop().call_soon(self._deliver, peer, message)

    def _deliver(self, peer: str, message: Message) -> None:
        handler = self.hub.handlers.get(peer)
        if handler is not None and (self.node_id, peer) not in self.hub.cut and self.node_id in self.hub.handlers:
            handler.on_message(message)

    def is_connected(self, peer: str) -> bool:
        return peer in self.hub.handlers

    async def start(self, handler: TransportHandler) -> None:
        self.hub.handlers[self.node_id] = handler

    async def stop(self) -> None:
        self.hub.handlers.pop(self.node_id, None)


class Group:
    """``async with Group(3) as group``: started drivers, stopped at the end."""

    def __init__(self, size: int = 3, *, state_machines: dict[str, StateMachine] | None = None, **settings) -> None:
        self.hub = Hub()
        self.ids = [f"n{number}" for number in range(size)]
        self.peers = tuple(Peer(node, "127.0.0.1", 40911 + at) for at, node in enumerate(self.ids))
        self.filesystems = {node: MemoryFileSystem() for node in self.ids}
        self.state_machines = state_machines or {}
        self.settings = {
            "election_timeout_ms": 150,
            "heartbeat_interval_ms": 30,
            "mapped_file_size_for_entry_data": 1 << 20,
            "mapped_file_size_for_entry_index": 1 << 20,
            "max_entry_bytes": 64 * 1024,
            "max_batch_bytes": 256 * 1024,
            **settings,
        }
        self.drivers: dict[str, Driver] = {}

    def config(self, node: str) -> DLedgerConfig:
        return DLedgerConfig(group="g", self_id=node, peers=self.peers, store_path_root_dir="data", **self.settings)

    def make(self, node: str) -> Driver:
        config = self.config(node)
        store = LogStore.open(
            self.filesystems[node],
            str(config.node_dir),
            group="g",
            node_id=node,
            options=StoreOptions(
                data_segment_bytes=config.mapped_file_size_for_entry_data,
                index_segment_bytes=config.mapped_file_size_for_entry_index,
                sync_flush=config.sync_flush,
                checkpoint_bytes=config.check_point_bytes,
                cache_bytes=config.tail_cache_bytes,
            ),
        )
        return Driver(
            config,
            store,
            self.hub.transport(node),
            disk=InlineExecutor(),
            reader=InlineExecutor(),
            rng=random.Random(node),
            state_machine=self.state_machines.get(node),
        )

    async def start(self, node: str) -> Driver:
        driver = self.make(node)
        self.drivers[node] = driver
        await driver.start()
        return driver

    async def crash(self, node: str) -> None:
        """Lose everything that was not synced."""
        driver = self.drivers.pop(node)
        self.filesystems[node].crash()
        driver._halt(RuntimeError("crashed"))
        self.hub.handlers.pop(node, None)
        for task in list(driver._tasks):
            task.cancel()
        await asyncio.gather(*driver._tasks, return_exceptions=True)
        for other in self.drivers.values():
            other.on_peer_disconnected(node)

    async def leader(self, timeout: float = 30.0) -> Driver:
        return await eventually(
            lambda: next((d for d in self.drivers.values() if d._running and d.core.is_leader_ready), None), timeout
        )

    async def __aenter__(self) -> Group:
        for node in self.ids:
            await self.start(node)
        return self

    async def __aexit__(self, *_: object) -> None:
        for driver in list(self.drivers.values()):
            await driver.stop(hand_over=False)


async def eventually(check: Callable[[], object], timeout: float = 30.0):
    """Wait until ``check()`` is truthy and return it; polling is bounded by ``timeout``, not by luck."""
    async with asyncio.timeout(timeout):
        while not (value := check()):  # noqa: ASYNC110 - any condition, no event of its own
            await asyncio.sleep(0.005)
        return value


async def append(driver: Driver, bodies: list[bytes], session_id: int = 0, first_sequence: int = 0) -> BatchResult:
    future: asyncio.Future[BatchResult] = asyncio.get_running_loop().create_future()

    def done(result: BatchResult | None, error: Exception | None) -> None:
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(result)

    driver.submit(bodies, session_id=session_id, first_sequence=first_sequence, done=done)
    return await future
