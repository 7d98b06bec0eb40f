"""The one place that orders disk, network and core.

Everything happens on one event loop. Inputs (messages, appends, finished writes, timers) step the core and ask for a
*pump*; one pump a loop turn takes everything that waits: it stages the core's effects to the store, gives all waiting
appends their indexes in one proposal, hands slices to the peers and wakes the disk loop. The disk loop writes whatever
was staged meanwhile as one group, and tells the core what has become durable. So under load every step is per batch.

No clock but the loop's, no thread, no socket, no randomness of its own: the simulator runs this code as it is.
"""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import replace
from functools import partial
from typing import TypeVarTuple, Unpack

import structlog

from dledger.config import DLedgerConfig
from dledger.driver.appends import Appends
from dledger.driver.disk import DiskLoop
from dledger.driver.executor import DiskExecutor
from dledger.driver.pace import CatchUpPace
from dledger.driver.pending import Done
from dledger.driver.reads import ReadRounds
from dledger.driver.recent import Recent
from dledger.driver.roles import RoleChangeHandler, RoleDispatcher
from dledger.driver.state_machine import Applier, StateMachine
from dledger.driver.status import node_status
from dledger.errors import (
    CorruptLogError,
    DLedgerError,
    IndexCompactedError,
    IndexOutOfRangeError,
    ResponseCode,
    StoppedError,
    StorageError,
    TermChangedError,
    TransferFailedError,
    UnavailableError,
)
from dledger.raft.core import CoreOptions, RaftCore
from dledger.raft.messages import (
    AppendEntries,
    EntryType,
    HeartbeatResponse,
    InvariantError,
    Message,
    NodeId,
    Role,
    invariant,
)
from dledger.raft.quorum import Configuration
from dledger.raft.ready import (
    AppendNoop,
    AppendReceived,
    CoreEvent,
    LogOperation,
    ProposalRefusedError,
    Ready,
    RoleChange,
    SendEntries,
    Truncate,
)
from dledger.rpc.interfaces import Transport
from dledger.storage.entry import EntryGroup, RawSlice, Slice, iter_entries
from dledger.storage.log_store import LogStore, WriteBatch
from dledger.types import AppendHook, BatchResult, Entry, NodeStatus, ReadMode

__all__ = ["Driver"]

_Waiters = list[tuple[int, asyncio.Future[int]]]
_Args = TypeVarTuple("_Args")
"""Who waits for an index, and how they are told."""

_MAX_ROUNDS_A_PUMP = 64
_READ_RETRY_S = 0.02
_QUICK_READ_BYTES = 16 * 1024
"""A read of so little is over sooner than two threads have handed it to each other, unless the disk is slow."""


class Driver:
    """One node: core, store and transport, driven. Implements ``TransportHandler`` and ``Backend``.

    Every failure that a caller sees is a ``DLedgerError``. A broken invariant or a failed fsync stops the node:
    `failure` gets the error, everything pending is answered with an unknown outcome, nothing is acknowledged after.
    """

    def __init__(
        self,
        config: DLedgerConfig,
        store: LogStore,
        transport: Transport,
        *,
        disk: DiskExecutor,
        reader: DiskExecutor,
        rng: random.Random,
        state_machine: StateMachine | None = None,
        logger: structlog.typing.FilteringBoundLogger | None = None,
        clock: Callable[[], float] | None = None,
    ) -> None:
        """``clock``: seconds on the loop's time scale, for measurements only (uvloop's own has whole milliseconds)."""
        self.config = config
        self.group = config.group
        self.node_id = config.self_id
        self.max_entry_bytes = config.max_entry_bytes
        self.max_batch_bytes = config.max_batch_bytes
        self.max_batch_entries = config.max_batch_entries
        self.store = store
        self._transport = transport
        self._reader = reader
        self._rng = rng
        self._log = (logger or structlog.get_logger()).bind(group_id=config.group, node_id=config.self_id)
        self._addresses = {peer.node_id: peer.address for peer in config.peers}
        self._roles = RoleDispatcher(self._log)
        self._applier: Applier | None = None
        if state_machine is not None:
            self._applier = Applier(state_machine, self._read_for_apply, store.first_index)

        self.core: RaftCore
        self.appends: Appends
        self.failure: asyncio.Future[BaseException]
        self.disk = DiskLoop(store, disk, self, self._log)
        self._reads: ReadRounds
        self._loop: asyncio.AbstractEventLoop
        self._clock = clock
        self._running = False
        self._pump_scheduled = False
        self._timer: asyncio.TimerHandle | None = None
        self._timer_ms = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self._after_persist: deque[tuple[int, NodeId, Message]] = deque()
        self._commit_waiters: _Waiters = []
        self._apply_waiters: _Waiters = []
        self._role_waiters: set[asyncio.Future[None]] = set()
        self._apply_wanted = asyncio.Event()
        self._last_message: AppendEntries | None = None
        self._is_pumping = False
        self._turn_ends: list[Callable[[], None]] = []
        self._pace = CatchUpPace(config.max_catch_up_bytes)
        self.recent = Recent()
        self.started_ms = 0
        self.role_since_ms = 0

    # ------------------------------------------------------------------ life

    async def start(self) -> None:
        """Start the core from what the store recovered, the disk loop and the transport."""
        self._loop = asyncio.get_running_loop()
        self.failure = self._loop.create_future()
        now = self._now_ms()
        self.started_ms = self.role_since_ms = now
        config = self.config
        self.core = RaftCore(
            self.node_id,
            Configuration(frozenset(self._addresses)),
            CoreOptions(
                election_timeout_ms=config.election_timeout_ms,
                heartbeat_interval_ms=config.heartbeat_interval_ms,
                lost_leader_min_ms=config.lost_leader_min_ms,
                lost_leader_max_ms=config.lost_leader_max_ms,
                max_inflight_count=config.max_inflight_count,
                max_inflight_bytes=config.max_inflight_bytes,
                max_append_bytes=config.max_append_bytes,
                preferred_leader_ids=config.preferred_leader_ids,
                max_transfer_lag=config.max_leadership_transfer_wait_index,
            ),
            hard_state=self.store.hard_state,
            runs=self.store.terms,
            first_index=self.store.first_index,
            last_index=self.store.last_index,
            commit_index=self.store.committed_index,
            random=self._rng,
            now_ms=now,
        )
        self.appends = Appends(config, self.core, self.store, self._loop, self._addresses)
        self.disk.metrics = self.appends.metrics
        if self._clock is not None:
            self.appends.clock = self.disk.clock = self._clock
        self._reads = ReadRounds(
            self._loop,
            self._rng.getrandbits(40) << 20,
            timeout_s=config.election_timeout_ms / 1000,
            patience_s=config.heartbeat_interval_ms / 1000,
        )
        self._running = True
        self._log.info(
            "node_started",
            term=self.core.term,
            first_index=self.store.first_index,
            last_index=self.store.last_index,
            recovery=str(self.store.recovery),
        )
        await self._roles.start()
        self._spawn(self.disk.run(), "disk")
        if not config.sync_flush:
            self._spawn(self.disk.flush_every(config.flush_file_interval_ms / 1000), "flush")
        if self._applier is not None:
            self._spawn(self._apply_loop(), "apply")
        await self._transport.start(self)
        if len(self._addresses) == 1:
            self.core.tick(self.core.deadline_ms)  # alone: nobody to wait for
        self._schedule_pump()

    async def stop(self, *, hand_over: bool = True) -> None:
        """Stop. A leader hands leadership over first (``hand_over``), so that clients see no failed append."""
        if not self._running and self.failure.done():
            await self._close()
            return
        if hand_over and self._running and self.core.is_leader and len(self._addresses) > 1:
            try:
                await self.transfer_leadership(None)
            except DLedgerError as error:
                self._log.warning("hand_over_failed", error=error.message)
        self._halt(StoppedError("the node is stopping"))
        await self._close()

    async def _close(self) -> None:
        await self._transport.stop()
        tasks = list(self._tasks)
        for task in tasks:
            if task.get_name() != "disk":
                task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._roles.stop()
        await self.disk.close()
        self._reader.shutdown()

    def _halt(self, error: DLedgerError) -> None:
        """From here on nothing is taken and nothing acknowledged."""
        if not self._running:
            return
        self._running = False
        if self._timer is not None:
            self._timer.cancel()
        self._after_persist.clear()
        self.appends.close(error)
        self._reads.fail_all(error)
        for _, waiter in [*self._commit_waiters, *self._apply_waiters]:
            if not waiter.done():
                waiter.set_exception(error)
        self._commit_waiters.clear()
        self._apply_waiters.clear()
        self._wake_role_waiters()
        self.disk.stop()

    def _fail(self, error: BaseException) -> None:
        """An invariant broke or the disk failed: stop, and say so once."""
        if not self._running:
            return
        self._log.critical("node_failed", error=str(error), kind=type(error).__name__)
        self._halt(TermChangedError(f"the node stopped: {error}"))
        if not self.failure.done():
            self.failure.set_result(error)

    def add_role_change_handler(self, handler: RoleChangeHandler) -> None:
        """Register a handler before `start`."""
        self._roles.add(handler)

    def _spawn(self, coroutine: Coroutine[object, object, None], name: str) -> None:
        task: asyncio.Task[None] = self._loop.create_task(coroutine, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._task_done)

    def _task_done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._fail(error)  # no task of a node dies alone

    def _now_ms(self) -> int:
        return int(self._loop.time() * 1000)

    # ------------------------------------------------------------------ from the transport

    def on_message(self, message: Message) -> None:
        if not self._running:
            return
        if self.core.disk_full and isinstance(message, AppendEntries) and message.last_index > message.prev_log_index:
            # No room: hear the leader, take nothing. It tries again with the next heartbeats.
            message = replace(message, last_index=message.prev_log_index, terms=(), payload=None)
        self._step(self.core.step, message, self._now_ms())

    def on_peer_connected(self, peer: NodeId) -> None:
        if self._running:
            self._step(self.core.peer_connected, peer, self._now_ms())

    def on_peer_disconnected(self, peer: NodeId) -> None:
        if self._running:
            self._step(self.core.peer_unreachable, peer, self._now_ms())

    def _step(self, change: Callable[[Unpack[_Args]], None], *args: *_Args) -> None:
        try:
            change(*args)
        except Exception as error:  # a broken invariant or a mistake of ours: a node is never half dead
            self._fail(error)
            return
        self._schedule_pump()

    # ------------------------------------------------------------------ the pump

    def _schedule_pump(self) -> None:
        if not self._pump_scheduled:
            self._pump_scheduled = True
            self._loop.call_soon(self._pump_if_due)

    def _pump_if_due(self) -> None:
        if self._pump_scheduled:  # else `persisted` was quicker
            self._pump()

    def _pump(self) -> None:
        self._pump_scheduled = False
        if not self._running:
            return
        staged = self.disk.staged
        self._is_pumping = True
        try:
            if self._reads.has_readers:
                self._reads.start(lambda request_id: self.core.read(request_id, self._now_ms()), self.core.forget_read)
            ready = None
            if self.core.changes_log:
                ready = self.core.ready()
                self._perform(ready)
            if self.appends.is_waiting:
                now = self._now_ms()
                if self.appends.is_due(now) and self.appends.propose(now):
                    self.disk.stage()
                    ready = None
            for _ in range(_MAX_ROUNDS_A_PUMP):
                if ready is not None and not (ready.replicate and self.core.has_more_to_send):
                    break
                ready = self.core.ready()
                self._perform(ready)
            else:
                self._schedule_pump()
            if self._reads.has_readers and self._reads.is_due:  # a round has ended, the next may begin
                self._schedule_pump()
            for callback in self._turn_ends:
                callback()
            self._turn_ends.clear()
        except Exception as error:  # a broken invariant, a damaged slice, a mistake of ours: a node is never half dead
            self._fail(error)
            return
        finally:
            self._is_pumping = False
            for callback in self._turn_ends:  # after a failure only
                self._loop.call_soon(callback)
            self._turn_ends.clear()
        if self.disk.staged > staged:
            # Now, not before: what goes to the peers leaves first, and they write at the same time. A follower's leader
            # waits for the disk, a leader's clients rather for what has just been answered.
            self.disk.wake(at_once=not self.core.is_leader)
        if self._running:
            self._arm_timer()

    def at_turn_end(self, callback: Callable[[], None]) -> None:
        """See ``Backend.at_turn_end``."""
        if self._is_pumping:
            self._turn_ends.append(callback)
        else:
            self._loop.call_soon(callback)

    def _perform(self, ready: Ready) -> None:
        """Take one bundle of effects in the order that `Ready` prescribes."""
        if ready.events:
            self._tell(ready.events)
        if ready.hard_state is not None:
            self.store.save_hard_state(ready.hard_state)
            self.disk.stage()
        if ready.log_operations:
            for operation in ready.log_operations:
                self._stage(operation)
            self.disk.stage()
        for peer, message in ready.messages:
            self.recent.sent(peer, message)
            self._transport.send(peer, message)
        for request in ready.replicate:
            self._send_entries(request)
        for peer, message in ready.messages_after_persist:
            self._send_after_persist(peer, message)
        if ready.role_change is not None:
            self._role_changed(ready.role_change)
        self._committed(ready.commit_index)
        if ready.leader_ready:
            self._roles.leader_ready(self.core.term)
        for read in ready.reads:
            self._reads.finish(read.request_id, read.read_index)

    def _send_after_persist(self, peer: NodeId, message: Message) -> None:
        """Queue a message until what is staged now is durable.

        On a full disk that may take hours, so a heartbeat's answer replaces the one before: it says all that the older
        one did. Told one after another in the end, they would make the leader begin again for each.
        """
        if isinstance(message, HeartbeatResponse):
            queue = self._after_persist
            old = [item for item in queue if item[1] == peer and isinstance(item[2], HeartbeatResponse)]
            for item in old:
                queue.remove(item)
        self._after_persist.append((self.disk.staged, peer, message))

    def _stage(self, operation: LogOperation) -> None:
        if isinstance(operation, Truncate):
            self.store.truncate(operation.from_index)
        elif isinstance(operation, AppendNoop):
            slices = self.store.encode(operation.term, [EntryGroup(EntryType.NOOP, 0, (b"",))])
            invariant(slices[0].first_index == operation.index, "store and core disagree on the next index")
            self.store.append(slices)
        elif isinstance(operation, AppendReceived):
            payload = operation.message.payload
            if not isinstance(payload, Slice):
                raise InvariantError("received entries come parsed")
            if operation.first_index != payload.first_index:
                payload = payload.from_index(operation.first_index)
            self.store.append((payload,))

    def _role_changed(self, change: RoleChange) -> None:
        self.role_since_ms = self._now_ms()
        self._log.info("role_changed", role=change.role.value, term=change.term, leader_id=change.leader_id)
        if change.role is not Role.LEADER:
            self.appends.leadership_lost()
        self._roles.role_changed(change.role, change.term)
        facts = ("role", change.role.value), ("term", change.term), ("leader_id", change.leader_id)
        self.recent.note("role_changed", facts, self.role_since_ms)
        self._wake_role_waiters()

    def _wake_role_waiters(self) -> None:
        waiters, self._role_waiters = self._role_waiters, set()
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)

    def _tell(self, events: Sequence[CoreEvent]) -> None:
        for event in events:
            self._log.info(event.name, **dict(event.facts))
            self.recent.note_core_event(event, self._now_ms())

    def _arm_timer(self) -> None:
        """One timer for the core's next deadline; a deadline that moved later is found when the old one fires."""
        deadline = min(self.core.deadline_ms, self.appends.deadline_ms)
        if self._timer is not None:
            if self._timer_ms <= deadline:
                return
            self._timer.cancel()
        self._timer_ms = deadline
        self._timer = self._loop.call_at(deadline / 1000 + 0.0005, self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        if not self._running:
            return
        now = self._now_ms()

        def change() -> None:
            self.appends.expire(now)
            self.core.tick(now)

        self._step(change)

    # ------------------------------------------------------------------ sending entries

    def _send_entries(self, request: SendEntries) -> None:
        """Hand entries to a peer: from the cache at once, from the disk by the reader."""
        if request.last_index < request.first_index:
            self._send_slice(request, None)
            return
        raw = self.store.cached(request.first_index, request.last_index, request.max_bytes)
        if raw is not None:
            self._send_slice(request, raw)
        else:
            self._spawn(self._read_and_send(request), "catch-up")

    async def _read_and_send(self, request: SendEntries) -> None:
        while delay_s := self._pace.delay_s(self.store.last_index, self._loop.time()):  # noqa: ASYNC110 - time
            await asyncio.sleep(delay_s)
        try:
            raw = await self._reader.run(
                partial(self.store.read, with_crc=True), request.first_index, request.last_index, request.max_bytes
            )
        except IndexOutOfRangeError:
            # Truncated while the read waited for the disk: this node no longer leads the term that asked for it.
            if self._running:
                self.core.fetch_failed(request)
                self._schedule_pump()
            return
        except StorageError as error:
            # Never send what does not verify. Another node must lead until this one is repaired.
            self._log.error("read_for_peer_failed", peer=request.peer, index=request.first_index, error=error.message)
            if self._running:
                self.core.fetch_failed(request)
                if isinstance(error, CorruptLogError):
                    self.core.step_down(self._now_ms())
                self._schedule_pump()
            return
        self._pace.sent(len(raw.data), self._loop.time())
        if self._running:
            self._step(self._send_slice, request, raw)

    def _send_slice(self, request: SendEntries, raw: RawSlice | None) -> None:
        last_index = request.first_index - 1 if raw is None else raw.last_index
        byte_count = 0 if raw is None else len(raw.data)
        prev_chain_crc = 0 if raw is None else raw.prev_chain_crc  # a probe carries nothing that could be chained
        message = self.core.entries_fetched(request, last_index, byte_count, self._now_ms(), prev_chain_crc, raw)
        if message is None:
            return
        last = self._last_message
        if last is not None and last.payload is raw and message == last:
            message = last  # the same bytes for the next peer: the transport serialises them once
        self._last_message = message
        self.recent.sent(request.peer, message)
        self._transport.send(request.peer, message)

    # ------------------------------------------------------------------ from the disk

    def persisted(self, batch: WriteBatch, covered: int) -> None:
        """See ``DiskOwner.persisted``: what waited for it leaves, and the core hears of it."""
        if not self._running:
            return
        while self._after_persist and self._after_persist[0][0] <= covered:
            _, peer, message = self._after_persist.popleft()
            self.recent.sent(peer, message)
            self._transport.send(peer, message)

        try:
            now = self._now_ms()
            if batch.hard_state is not None:
                self.core.hard_state_persisted(batch.hard_state, now)
            if batch.last is not None:
                self.core.persisted(batch.last.index, batch.last.term, now)
        except Exception as error:  # as in `_step`
            self._fail(error)
            return
        if self.core.role is Role.LEADER:
            self._schedule_pump()
        else:
            self._pump()  # at once: the leader waits for this answer, while its own pump takes along what else came

    def disk_full(self, full: bool) -> None:
        if self._running:
            self._step(self.core.set_disk_full, full, self._now_ms())

    def disk_failed(self, error: BaseException) -> None:
        self._fail(error)

    # ------------------------------------------------------------------ appends

    def submit(
        self,
        bodies: Sequence[bytes],
        *,
        session_id: int = 0,
        first_sequence: int = 0,
        done: Done,
        hook: AppendHook | None = None,
    ) -> None:
        """See ``Backend.submit``; ``hook`` as in `EntryGroup`."""
        if self.appends.submit(self.appends.batch(bodies, session_id, first_sequence, done, hook, self._now_ms())):
            self._schedule_pump()

    async def open_session(self, client_id: bytes) -> tuple[int, int]:
        """See ``Backend.open_session``."""
        future: asyncio.Future[None] = self._loop.create_future()

        def done(_result: BatchResult | None, error: Exception | None) -> None:
            if future.done():
                return
            if error is not None:
                future.set_exception(error)
            else:
                future.set_result(None)

        if self.appends.submit(self.appends.session_batch(client_id, done, self._now_ms())):
            self._schedule_pump()
        await future
        session = self.store.sessions.find(client_id)
        if session is None:
            raise TermChangedError("the session was evicted as soon as it was opened; open it again")
        return session.session_id, session.next_sequence

    # ------------------------------------------------------------------ commit, apply

    def _committed(self, commit_index: int) -> None:
        if commit_index > self.store.committed_index:
            self.store.commit(commit_index)
            if self._commit_waiters:
                self._commit_waiters = _wake(self._commit_waiters, commit_index)
            self._apply_wanted.set()
        self.appends.resolve(commit_index)

    async def wait_committed(self, index: int) -> int:
        """See ``Backend.wait_committed``."""
        if not self._running:
            raise StoppedError("the node is stopping")
        if index <= self.core.commit_index:
            return self.core.commit_index
        waiter: asyncio.Future[int] = self._loop.create_future()
        self._commit_waiters.append((index, waiter))
        return await waiter

    async def _apply_loop(self) -> None:
        applier = self._applier
        if applier is None:
            return
        while self._running:
            self._apply_wanted.clear()
            await applier.apply_to(self.store.committed_index)  # (the core may be a pump ahead of the store)
            self._apply_waiters = _wake(self._apply_waiters, applier.applied_index)
            await self._apply_wanted.wait()

    async def wait_applied(self, index: int) -> int:
        """Return the applied index as soon as it is at least ``index`` (without state machine: the commit index)."""
        if self._applier is None:
            return await self.wait_committed(index)
        if not self._running:
            raise StoppedError("the node is stopping")
        if index <= self._applier.applied_index:
            return self._applier.applied_index
        waiter: asyncio.Future[int] = self._loop.create_future()
        self._apply_waiters.append((index, waiter))
        return await waiter

    async def _read_for_apply(self, first_index: int, last_index: int) -> list[Entry]:
        raw = await self.read_slice(first_index, last_index, self.config.max_append_bytes)
        return list(iter_entries(raw.data))

    @property
    def applied_index(self) -> int:
        """Up to where the state machine is; without one, the commit index."""
        return self.core.commit_index if self._applier is None else self._applier.applied_index

    # ------------------------------------------------------------------ reads

    async def read_index(self, mode: ReadMode) -> int:
        """See ``Backend.read_index``; LINEARIZABLE waits until this node knows that much to be committed."""
        if not self._running:
            raise StoppedError("the node is stopping")
        if mode is ReadMode.LOCAL_COMMITTED:
            return self.core.commit_index
        deadline = self._loop.time() + self.config.max_wait_ack_time_ms / 1000
        while (index := await self._ask_read_index()) is None:
            if self._loop.time() > deadline:
                raise UnavailableError(
                    "no leader confirmed the read in time: a linearizable read needs a majority",
                    leader_id=self.core.leader_id,
                )
            await asyncio.sleep(_READ_RETRY_S)
        if index > self.core.commit_index:
            try:
                async with asyncio.timeout_at(deadline):
                    await self.wait_committed(index)
            except TimeoutError:
                raise UnavailableError("this node did not catch up in time; ask another") from None
        return index

    async def _ask_read_index(self) -> int | None:
        if not self._running:
            raise StoppedError("the node is stopping")
        reader = self._reads.ask()
        self._schedule_pump()
        return await reader

    async def read_slice(self, first_index: int, last_index: int, max_bytes: int) -> RawSlice:
        """See ``Backend.read_slice``."""
        if self.core.commit_index > self.store.committed_index:
            await asyncio.sleep(0)  # the core has stepped, this turn's pump stages what it took: let it run first
        commit = self.store.committed_index
        if first_index < self.store.first_index:
            raise IndexCompactedError(f"index {first_index} is before the first entry {self.store.first_index}")
        if first_index > commit:
            raise IndexOutOfRangeError(f"index {first_index} is beyond the last committed entry {commit}")
        last_index = min(last_index, commit)
        if last_index < first_index:
            raise IndexOutOfRangeError(f"the range {first_index}..{last_index} is empty")
        raw = self.store.cached(first_index, last_index, max_bytes)
        if raw is None:
            run = self._reader.run_quick if max_bytes <= _QUICK_READ_BYTES else self._reader.run
            raw = await run(self.store.read, first_index, last_index, max_bytes)
        return raw

    def position_of(self, index: int) -> int:
        return self.store.position_of(index)

    # ------------------------------------------------------------------ operators

    def progress(self) -> int:
        """A number that changes whenever entries are appended or committed here."""
        return self.core.last_index + self.core.commit_index

    def leader_hint(self) -> tuple[int, NodeId | None, str | None]:
        leader = self.core.leader_id
        return self.core.term, leader, self._addresses.get(leader) if leader else None

    def members(self) -> dict[NodeId, str]:
        return dict(self._addresses)

    async def transfer_leadership(self, target: NodeId | None) -> NodeId:
        """See ``Backend.transfer_leadership``."""
        core = self.core
        if target is not None and target not in self._addresses:
            raise TransferFailedError(
                f"{target} is not a member of {self.group}: {', '.join(sorted(self._addresses))}",
                code=ResponseCode.UNKNOWN_MEMBER,
            )
        try:
            chosen = core.transfer(target, self._now_ms())
        except ProposalRefusedError as refusal:
            raise self.appends.refusal_error(refusal) from None
        self._schedule_pump()
        deadline = self._loop.time() + 2 * self.config.election_timeout_ms / 1000
        while self._running:
            leader = core.leader_id
            if leader is not None and leader != self.node_id:
                return leader
            if chosen == self.node_id:
                return chosen
            if core.role is Role.LEADER and core.transferee is None:
                raise TransferFailedError(f"{chosen} did not take over within the election timeout")
            waiter: asyncio.Future[None] = self._loop.create_future()
            self._role_waiters.add(waiter)
            try:
                await asyncio.wait_for(waiter, 0.05)
            except TimeoutError:
                self._role_waiters.discard(waiter)
            if self._loop.time() > deadline:
                raise TransferFailedError(f"no new leader was seen within {2 * self.config.election_timeout_ms} ms")
        raise StoppedError("the node is stopping")

    async def step_down(self) -> None:
        """See ``Backend.step_down``."""
        if self.core.role is not Role.LEADER:
            raise self.appends.not_leader()
        self._step(lambda: self.core.step_down(self._now_ms()))

    def status(self) -> NodeStatus:
        return node_status(self, self._transport, self._now_ms())

    @property
    def running(self) -> bool:
        return self._running


def _wake(waiters: _Waiters, reached: int) -> _Waiters:
    """Tell those that wait for an index at or below ``reached``; return the others."""
    left: _Waiters = []
    for index, waiter in waiters:
        if index > reached:
            left.append((index, waiter))
        elif not waiter.done():
            waiter.set_result(reached)
    return [(index, waiter) for index, waiter in left if not waiter.done()]
