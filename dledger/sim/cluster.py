"""The simulated group: real drivers and real stores on simulated disks, processes that start, crash and come back."""

from __future__ import annotations

import asyncio
import contextvars
import functools
import os
import traceback
from collections.abc import Callable, Iterator
from dataclasses import replace
from random import Random
from typing import cast

import structlog

from dledger.driver.driver import Driver
from dledger.errors import CorruptLogError, DiskFullError, StorageFailedError
from dledger.raft.messages import (
    NO_INDEX,
    NO_TERM,
    HardState,
    InvariantError,
    LogId,
    Message,
    NodeId,
    Role,
    invariant,
)
from dledger.sim.disk import FaultyFileSystem, PowerLoss, SimDisk, SimDiskExecutor
from dledger.sim.invariants import Invariants
from dledger.sim.loop import Process, SimLoop
from dledger.sim.network import Network, SimTransport
from dledger.sim.scenario import GROUP, Scenario, node_config
from dledger.sim.trace import Trace
from dledger.sim.verified_store import VerifiedLogStore
from dledger.storage.entry import RawSlice
from dledger.storage.log_store import LogStore

__all__ = ["Cluster", "SimNode"]

_RESTART_S = (0.02, 2.0)
_REPAIR_S = (0.5, 2.0)
_READ_BYTES = 1 << 20
_STOP_LIMIT_S = 15.0


class _TraceLogger:
    """What the driver logs goes to the trace. Stands for a structlog logger."""

    def __init__(self, trace: Trace, node_id: NodeId) -> None:
        self._trace = trace
        self._node_id = node_id

    def bind(self, **_facts: object) -> _TraceLogger:
        return self

    def info(self, event: str, **facts: object) -> None:
        self._trace.add(self._node_id, event, " ".join(f"{key}={value}" for key, value in facts.items()))

    debug = warning = error = critical = exception = info


class SimNode:
    """One member: its disk, and the process that runs it now, if any."""

    def __init__(self, cluster: Cluster, node_id: NodeId) -> None:
        self.cluster = cluster
        self.node_id = node_id
        self.config = node_config(cluster.scenario, node_id)
        self.directory = os.fspath(self.config.node_dir)
        self.disk = SimDisk(node_id, cluster.rng(f"disk {node_id}"), cluster.trace)
        self.times = replace(cluster.scenario.disk)
        self.process: Process | None = None
        self.filesystem: FaultyFileSystem | None = None
        self.disk_executor: SimDiskExecutor | None = None
        self.transport: SimTransport | None = None
        self.driver: Driver | None = None
        self.starts = 0
        self.has_log = False
        """Whether it has ever acknowledged, or led with, an entry."""
        self.promised = LogId(NO_TERM, NO_INDEX)
        """The furthest entry that others may count on it to have durably."""
        self.crash_loss: PowerLoss | None = None
        """What a crash that waits in the middle of a write will do to the cache (None: kill -9)."""
        self.forget()

    def forget(self) -> None:
        """A new process: nothing of it has been seen."""
        self.hard_state: HardState | None = None
        self.role: Role | None = None
        self.commit_index = -1
        self.commit_when_elected = -1
        self.last_index = -1
        self.last_term = -1
        self.durable_term = -1
        self.acked_index = -1

    @property
    def live_driver(self) -> Driver:
        invariant(self.driver is not None, f"{self.node_id} is not up")
        return cast(Driver, self.driver)

    @property
    def up(self) -> bool:
        """Whether the process lives and has opened its log."""
        return self.driver is not None and self.driver.running

    @property
    def leads(self) -> bool:
        return self.up and self.live_driver.core.role is Role.LEADER

    def holds(self, pos: int, data: bytes) -> bool:
        """Whether the disk has ``data`` at ``pos`` of the log, safe from whatever a crash may do."""
        size = self.cluster.scenario.store.data_segment_bytes
        path = f"{self.directory}/data/{pos - pos % size:020d}"
        begin = pos % size
        durable = self.disk.durable_bytes(path)
        if durable is not None and durable[begin : begin + len(data)] == data:
            return True
        if not self.disk.damage:
            return False
        file = self.disk.files.get(path)  # damaged behind its back: it did what it could
        return file is not None and file.data[begin : begin + len(data)] == data

    # --- looks that disturb nothing ---

    def quiet_chain_crc(self, index: int) -> int | None:
        """The chain CRC of an entry of this node's log; None where a damaged disk cannot say."""
        filesystem, store = self.filesystem, self.live_driver.store
        if filesystem is None:
            return None
        filesystem.quiet = True
        try:
            return store.chain_crc_at(index)
        except CorruptLogError:
            if not self.disk.damage:
                raise
            return None
        finally:
            filesystem.quiet = False

    def quiet_read(self, first_index: int, last_index: int) -> Iterator[tuple[int, bytes]]:
        """Yield (position, bytes) of the entries, a slice at a time; ends early where a damaged disk cannot go on."""
        store = self.live_driver.store
        index = first_index
        while index <= last_index:
            try:
                raw = self._quiet_slice(store, index, last_index)
            except CorruptLogError:
                if not self.disk.damage:
                    raise
                return
            yield int.from_bytes(raw.data[24:32], "big"), raw.data
            index = raw.last_index + 1

    def _quiet_slice(self, store: LogStore, first_index: int, last_index: int) -> RawSlice:
        raw = store.cached(first_index, last_index, _READ_BYTES)
        if raw is not None or self.filesystem is None:
            return cast(RawSlice, raw)
        self.filesystem.quiet = True
        try:
            return store.read(first_index, last_index, _READ_BYTES)
        finally:
            self.filesystem.quiet = False


class Cluster:
    """The group of one run: starts, ends and repairs its processes, and keeps what all of them share.

    Attributes:
        elections, crashes, power_failures, wipes: how often each happened.
    """

    def __init__(self, loop: SimLoop, scenario: Scenario, trace: Trace) -> None:
        self.loop = loop
        self.scenario = scenario
        self.trace = trace
        self.elections = self.crashes = self.power_failures = self.wipes = 0
        self.network = Network(
            loop,
            self.rng("network"),
            trace,
            GROUP,
            scenario.members,
            scenario.calm,
            damage_rng=self.rng("damage"),
        )
        self.network.on_send = self._sent
        self.invariants = Invariants(self)
        self.network.on_damage_taken = lambda node, message: self.invariants.report(
            "damage on the way is refused", f"{node} took {message}"
        )
        self.on_end: list[Callable[[Process], None]] = []
        self._rng = self.rng("cluster")
        self.nodes = {node_id: SimNode(self, node_id) for node_id in scenario.node_ids}

    def rng(self, purpose: str) -> Random:
        """Return a random source of this run, one for each purpose: what one draws does not move another."""
        return Random(f"{self.scenario.seed} {purpose}")

    def later(self, delay: float, callback: Callable[..., object], *args: object) -> None:
        """Call back in ``delay`` seconds on behalf of the simulator, whoever asks."""
        self.loop.call_later(delay, callback, *args, context=contextvars.Context())

    def _sent(self, end: SimTransport, peer: NodeId, message: Message) -> None:
        node = self.nodes[end.node_id]
        if node.process is end.process:
            self.invariants.sent(node, peer, message)

    @property
    def leader(self) -> SimNode | None:
        """The node that leads the highest term, as far as nodes say so themselves."""
        leading = [node for node in self.nodes.values() if node.leads]
        return max(leading, key=lambda node: node.live_driver.core.term, default=None)

    # --- processes ---

    def start(self, node: SimNode) -> None:
        """Start a process for a node that has none."""
        if node.process is not None:
            return
        node.starts += 1
        node.forget()
        loop = self.loop
        process = node.process = loop.process(f"{node.node_id}#{node.starts}")
        rng = self.rng(f"process {process.name}")
        node.filesystem = FaultyFileSystem(node.disk, process, functools.partial(self._crashed_in_write, node))
        node.disk_executor = SimDiskExecutor(loop, rng, process, node.times)
        node.transport = SimTransport(self.network, node.node_id, process)
        process.observer = functools.partial(self.invariants.observe, node)
        self.trace.add(node.node_id, "process_started", node.starts)
        process.run(loop.create_task, self._boot(node, process, rng))

    async def _boot(self, node: SimNode, process: Process, rng: Random) -> None:
        """What ``DLedgerServer.start`` does, on simulated parts."""
        disk, transport = node.disk_executor, node.transport
        if disk is None or transport is None:
            return
        try:
            store = await disk.run(self._open_store, node)
            driver = Driver(
                node.config,
                store,
                transport,
                disk=disk,
                reader=SimDiskExecutor(self.loop, rng, process, node.times, workers=2),
                rng=rng,
                logger=cast("structlog.typing.FilteringBoundLogger", _TraceLogger(self.trace, node.node_id)),
            )
            await driver.start()
        except Exception as error:
            self.later(0, self._boot_failed, node, process, error)
            return
        node.driver = driver
        node.commit_index = -1
        driver.failure.add_done_callback(
            lambda future: self.later(0, self._node_failed, node, process, future.result())
        )

    def _open_store(self, node: SimNode) -> LogStore:
        store = VerifiedLogStore.open(
            cast(FaultyFileSystem, node.filesystem),
            node.directory,
            group=GROUP,
            node_id=node.node_id,
            options=self.scenario.store,
        )
        store.report = self.invariants.report
        return store

    def kill(self, node: SimNode, *, loss: PowerLoss | None = None, mid_write: bool = False) -> None:
        """kill -9 a node's process, or (with ``loss``) cut its machine's power; ``mid_write``: within a disk job."""
        process = node.process
        if process is None:
            return
        self.crashes += 1
        if mid_write and node.disk_executor is not None and node.filesystem is not None:
            node.filesystem.crash_after = self._rng.randrange(12)
            node.filesystem.on_crash = lambda: None  # this is the crash already
            node.disk_executor.run_into_crash()
        self.trace.add(node.node_id, "power_failure" if loss is not None else "killed")
        self._end(node, process)
        if loss is not None:
            self.power_failures += 1
            node.disk.power_failure(loss)

    def _end(self, node: SimNode, process: Process) -> None:
        self.loop.kill(process)
        process.observer = None
        node.disk.release_locks(process)
        if node.transport is not None:
            self.network.detach(node.transport)
        for tell in self.on_end:
            tell(process)
        node.process = node.driver = node.filesystem = node.disk_executor = node.transport = None

    def crash_in_write(self, node: SimNode, after: int, loss: PowerLoss | None) -> None:
        """Have the process end before its ``after``-th file operation from now."""
        if node.filesystem is not None and node.filesystem.crash_after < 0:
            node.filesystem.crash_after = after
            node.crash_loss = loss

    def crash_in_sync(self, node: SimNode, loss: PowerLoss) -> None:
        """Cut the power when the node next syncs its entries: they are written and not yet durable."""
        if node.filesystem is not None and node.filesystem.crash_after < 0:
            node.filesystem.crash_at_sync = f"{node.directory}/data/"
            node.crash_loss = loss

    def _crashed_in_write(self, node: SimNode) -> None:
        loss, node.crash_loss = node.crash_loss, None
        self.trace.add(node.node_id, "crashed_in_write")
        self.kill(node, loss=loss)
        self.restart_later(node)

    def restart_later(self, node: SimNode, delay: float | None = None) -> None:
        """Start the node again in ``delay`` seconds (None: some)."""
        self.later(self._rng.uniform(*_RESTART_S) if delay is None else delay, self.start, node)

    def stop(self, node: SimNode) -> None:
        """SIGTERM: stop in order, then start again."""
        process, driver = node.process, node.driver
        if process is None or driver is None:
            return
        self.trace.add(node.node_id, "stopping")
        task = process.run(self.loop.create_task, driver.stop())
        task.add_done_callback(lambda done: self.later(0, self._stopped, node, process, done), context=_nobody())
        self.later(_STOP_LIMIT_S, self._stop_overdue, node, process)

    def _stopped(self, node: SimNode, process: Process, task: asyncio.Task[None]) -> None:
        if node.process is not process:
            return
        error = None if task.cancelled() else task.exception()
        if error is not None and not node.disk.betrayed:
            self.invariants.report("stops in order", f"{node.node_id}: {error!r}")
        self._end(node, process)
        self.restart_later(node)

    def _stop_overdue(self, node: SimNode, process: Process) -> None:
        if node.process is process and not process.paused:
            if not node.disk.full and not self.invariants.violation:
                self.invariants.report("stops in order", f"{node.node_id} has not stopped in {_STOP_LIMIT_S} s")
            self.kill(node)
            self.restart_later(node)

    # --- when a node gives up ---

    def _boot_failed(self, node: SimNode, process: Process, error: Exception) -> None:
        if node.process is not process:
            return
        self.trace.add(node.node_id, "boot_failed", f"{type(error).__name__}: {error}")
        self._end(node, process)
        self._judge(node, error, "opening its log")
        self._after_failure(node, error)

    def _after_failure(self, node: SimNode, error: BaseException) -> None:
        if isinstance(error, CorruptLogError):
            self.later(self._rng.uniform(*_REPAIR_S), self._repair, node)
        else:
            self.restart_later(node)

    def _node_failed(self, node: SimNode, process: Process, error: BaseException) -> None:
        if node.process is not process:
            return
        self.trace.add(node.node_id, "failed", f"{type(error).__name__}: {error}")
        self._judge(node, error, "running")
        self._end(node, process)
        self._after_failure(node, error)

    def _judge(self, node: SimNode, error: BaseException, what: str) -> None:
        """A node may give up only over what was really done to its disk."""
        excused = isinstance(error, StorageFailedError | CorruptLogError) and node.disk.betrayed
        if isinstance(error, DiskFullError) and what == "opening its log":
            excused = node.disk.was_full
        if not excused:
            kind = "core invariant" if isinstance(error, InvariantError) else "no false alarm"
            trail = "".join(traceback.format_exception(error)[-6:])
            self.invariants.report(kind, f"{node.node_id} gave up {what}: {type(error).__name__}: {error}\n{trail}")

    def _repair(self, node: SimNode) -> None:
        """What the error message tells the operator: delete the folder, let the node catch up."""
        if node.process is not None:
            return
        if self.may_wipe(node):
            self.wipe(node)
            self.start(node)
        else:
            self.later(_REPAIR_S[1], self._repair, node)

    def may_wipe(self, node: SimNode) -> bool:
        """Whether every other node has stored an entry by now.

        Two nodes that never had one may elect each other, or no group could ever start; a wiped node beside one that
        was never reached is the hole in the vote floor that is documented, and no fault to find.
        """
        return all(other.has_log for other in self.nodes.values() if other is not node)

    def wipe(self, node: SimNode) -> None:
        """Delete the folder of a node that does not run."""
        self.wipes += 1
        node.disk.wipe()


def _nobody() -> contextvars.Context:
    return contextvars.Context()
