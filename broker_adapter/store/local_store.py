"""`LocalMessageStore`: RocketMQ's plain commit log, with HAService where it has replicas.

A put gets its place and its queue offset at the call, is written with all others of the same loop turn in one
``pwrite``, dispatched, pushed to slaves, and answered when what its mode asks for has happened: nothing more
(ASYNC_FLUSH), an fdatasync shared with its neighbours (SYNC_FLUSH), a slave's acknowledgement (SYNC_MASTER).
"""

from __future__ import annotations

import asyncio
import os
import shutil
import time
from collections.abc import Awaitable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from struct import Struct
from typing import Any, Final

from broker_adapter.ha.master import HaMaster
from broker_adapter.ha.slave import HaSlave
from broker_adapter.message import (
    MESSAGE_OVERHEAD_BYTES,
    TRANSACTION_TYPE_MASK,
    Message,
    MessageFormatError,
    SysFlag,
    decode_batch,
    encode_message,
    message_ids,
)
from broker_adapter.store.api import (
    BrokerRole,
    FlushDiskType,
    HaSlaveStatus,
    HaStatus,
    PutMessageStatus,
    PutResult,
    StateKind,
    StoreConfig,
)
from broker_adapter.store.base import BaseMessageStore, message_illegal, service_not_available
from broker_adapter.store.checkpoint import LogicCheckpoint, StoreTimestamps, remove_abort, touch_abort
from broker_adapter.store.commit_log import MIN_BLANK_BYTES, CommitLog
from broker_adapter.store.encode import batch_messages
from broker_adapter.store.files import sync_paths
from broker_adapter.store.logic import StoredBytes, now_ms
from broker_adapter.store.retention import expired_files
from broker_adapter.store.state import TableFiles, load_files
from broker_adapter.store.waiting import PendingPut, WaitingPuts
from dledger import NodeStatus, ResponseCode, RoleChangeHandler
from dledger.errors import DiskFullError, StorageError, StorageFailedError, TransferFailedError

__all__ = ["LocalMessageStore"]

_PLACE: Final = Struct(">qq")
_CHECKPOINT_BYTES: Final = 64 * 1024 * 1024
_CHECKPOINT_SECONDS: Final = 10.0
_EXPIRY_STEP_S: Final = 0.05
_TABLE_INTERVAL_S: Final = 1.0
_DISK_FULL_RETRY_S: Final = 0.2
_BUSY: Final = "[PC_SYNCHRONIZED]broker busy, start flow control for a while"


class LocalMessageStore(BaseMessageStore):
    """See ``MessageStore``."""

    def __init__(self, config: StoreConfig) -> None:
        super().__init__(config)
        self.commit_log = CommitLog(config, self._pool)
        self._next_offsets: dict[tuple[bytes, int], int] = {}
        self._waiting = WaitingPuts()
        self._staged_puts: list[tuple[PendingPut, bool]] = []
        self._write_scheduled = False
        self._dispatch_stalled = False  # the disk is full; what was collected is tried again
        self._dispatching = asyncio.Event()  # the opposite, to wait for
        self._dispatching.set()
        self._loop: asyncio.AbstractEventLoop
        self._flusher: ThreadPoolExecutor | None = None
        self._flush_wanted = asyncio.Event()
        self._flush_lock = asyncio.Lock()
        self._expiry: asyncio.TimerHandle | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._started = False
        self._failure: StorageError | None = None
        self._failed: asyncio.Future[BaseException] | None = None
        self._table_files = TableFiles(os.path.join(self.root, "config"), self.tables, _TABLE_INTERVAL_S)
        self.ha_master = HaMaster(
            _ReplicaLog(self),
            host=config.ha_listen_host,
            port=config.ha_listen_port,
            batch_bytes=config.ha_transfer_batch_bytes,
            heartbeat_ms=config.ha_send_heartbeat_interval_ms,
            housekeeping_ms=config.ha_housekeeping_interval_ms,
            fallbehind_max_bytes=config.ha_slave_fallbehind_max_bytes,
            acked=self._waiting.replicated,
        )
        self._master_address = config.ha_master_address
        self.ha_slave: HaSlave | None = None

    # ------------------------------------------------------------------ life

    async def start(self) -> None:
        """See ``MessageStore.start``."""
        self._loop = asyncio.get_running_loop()
        self._failed = self._loop.create_future()
        self._open_threads()
        self._flusher = ThreadPoolExecutor(1, thread_name_prefix="store-flush")
        self._recover()
        try:
            await self.ha_master.start()
        except OSError as error:
            self._close_files()
            raise StorageFailedError(f"the HA port {self.config.ha_listen_port} is not free: {error}") from error
        self._started = True
        self._spawn(self._flush_loop(), "store-flush")
        self._spawn(self._keep_house(), "store-housekeeping")
        self._spawn(self._table_files.run(), "store-tables")
        self._follow_if_slave()

    def _recover(self) -> None:
        """Open the log behind the checkpoint, cut its torn tail, bring the derived files to its end."""
        os.makedirs(self.root, exist_ok=True)
        crashed = touch_abort(self.root)
        load_files(os.path.join(self.root, "config"), self.tables)
        self.timestamps = StoreTimestamps.load(os.path.join(self.root, "checkpoint"))
        checkpoint = self.logic.load(LogicCheckpoint.load(self.logic.checkpoint_path))
        log = self.commit_log
        log.open(None if checkpoint is None else checkpoint.physical)
        start = log.min_offset
        if checkpoint is not None:
            self.logic.cut(log.end)
            start = max(start, self.logic.dispatched_physical)
            self._checkpoint_physical = self.logic.dispatched_physical
        self.logic.dispatched_physical = start
        self._dispatch_from_log()
        self.logic.set_min_physical(log.min_offset)
        self.recover_topic_queue_table()
        self._log.info(
            "store_recovered", crashed=crashed, first_physical=log.min_offset, end_physical=log.end,
            redispatched_bytes=log.end - start, queue_count=len(self.logic.queues),
        )  # fmt: skip

    def _dispatch_from_log(self) -> None:
        logic, log = self.logic, self.commit_log
        for messages, following in log.scan(logic.dispatched_physical, log.written, verify=False):
            if messages:
                logic.dispatch(messages)
            logic.dispatched_physical = following

    def _spawn(self, coroutine: Coroutine[Any, Any, None], name: str) -> None:
        task = self._loop.create_task(coroutine, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._task_done)

    def _task_done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._fail(error)

    def _fail(self, error: BaseException) -> None:
        """Writing failed: nothing is taken and nothing acknowledged any more."""
        if self._failure is None:
            self._failure = error if isinstance(error, StorageError) else StorageFailedError(str(error))
            self._log.critical("store_failed", error=str(error), kind=type(error).__name__)
            self._waiting.fail(f"the store has failed: {error}")
            self._dispatching.set()
        if self._failed is not None and not self._failed.done():
            self._failed.set_result(error)

    async def wait_failed(self) -> BaseException:
        """See ``MessageStore.wait_failed``."""
        if self._failed is None:
            raise RuntimeError("the store has not been started")
        return await asyncio.shield(self._failed)

    async def stop(self) -> None:
        """See ``MessageStore.stop``."""
        if not self._started:
            return
        self._started = False
        if self._write_scheduled:
            self._write()
        if self.ha_slave is not None:
            await self.ha_slave.stop()
        await self.ha_master.stop()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._expiry is not None:
            self._expiry.cancel()
        if self._failure is None:
            try:
                await self._flush()
                await self._save_checkpoint()
                await self._table_files.flush()
                remove_abort(self.root)
            except StorageError as error:
                self._log.error("store_not_closed_in_order", error=error.message)
        self._waiting.fail("the store has stopped")
        self._close_files()

    def _close_files(self) -> None:
        if self._flusher is not None:
            self._flusher.shutdown()
        super()._close_files()

    # ------------------------------------------------------------------ role

    @property
    def is_dledger(self) -> bool:
        return False

    def set_role(self, role: BrokerRole) -> None:
        """See ``MessageStore.set_role``."""
        if role is not BrokerRole.SLAVE and self._role is BrokerRole.SLAVE:
            self._become_master()
        self._role = role
        if self._started:
            self._follow_if_slave()

    def _become_master(self) -> None:
        """A slave's log may end within a message: what is not whole goes, then puts go on behind it."""
        log = self.commit_log
        if self.logic.dispatched_physical < log.end:
            log.files.truncate(self.logic.dispatched_physical)
            log.end = log.written = self.logic.dispatched_physical
            log.flushed = min(log.flushed, log.end)
        self.recover_topic_queue_table()

    def _follow_if_slave(self) -> None:
        config = self.config
        if self._role is BrokerRole.SLAVE:
            if self.ha_slave is None:
                self.ha_slave = HaSlave(
                    _ReplicaLog(self),
                    self._master_address,
                    heartbeat_ms=config.ha_send_heartbeat_interval_ms,
                    housekeeping_ms=config.ha_housekeeping_interval_ms,
                    reconnect_ms=config.ha_reconnect_interval_ms,
                )
                self.ha_slave.start()
                if self.ha_slave.task is not None:
                    self.ha_slave.task.add_done_callback(self._task_done)
        elif self.ha_slave is not None:
            slave, self.ha_slave = self.ha_slave, None
            self._spawn(slave.stop(), "ha-slave-stop")

    def recover_topic_queue_table(self) -> None:
        """See ``MessageStore.recover_topic_queue_table``."""
        self._next_offsets = self.logic.next_offsets()

    def add_role_change_handler(self, handler: RoleChangeHandler) -> None:
        """No elections in this mode."""

    def dledger_status(self) -> NodeStatus | None:
        return None

    async def transfer_leadership(self, target: str | None = None) -> str:
        raise TransferFailedError(
            f"no elections in this mode: {target or 'nobody'} cannot be made master", code=ResponseCode.UNSUPPORTED
        )

    async def wait_dispatched(self) -> None:
        """See ``MessageStore.wait_dispatched``: dispatch follows the write at once."""
        self._write()
        await self._dispatching.wait()

    # ------------------------------------------------------------------ puts

    def put_message(self, message: Message) -> Awaitable[PutResult]:
        """See ``MessageStore.put_message``."""
        future: asyncio.Future[PutResult] = self._loop.create_future()
        refused = self._refuse_put() or self._prepare(message)
        if refused is None:
            try:
                body = encode_message(message)
                refused = self._stage(message, [body], future)
            except MessageFormatError as error:
                refused = message_illegal(error.message)
        if refused is not None:
            future.set_result(refused)
        return future

    def put_messages(self, batch: Message) -> Awaitable[PutResult]:
        """See ``MessageStore.put_messages``."""
        future: asyncio.Future[PutResult] = self._loop.create_future()
        refused = self._refuse_put() or self._prepare(batch)
        if refused is None:
            try:
                bodies = batch_messages(batch, decode_batch(batch.body), self._store_host)
                refused = self._stage(batch, bodies, future)
            except MessageFormatError as error:
                refused = message_illegal(error.message)
        if refused is not None:
            future.set_result(refused)
        return future

    def _refuse_put(self) -> PutResult | None:
        if not self._started:
            return service_not_available("the store is stopping")
        if self._failure is not None:
            return service_not_available(f"the store has failed: {self._failure.message}")
        if self._role is BrokerRole.SLAVE:
            return service_not_available("this broker is a slave")
        if self._dispatch_stalled:
            return service_not_available("the disk is full")
        log = self.commit_log
        unsafe = log.end - (log.flushed if self.config.flush_disk_type is FlushDiskType.SYNC_FLUSH else log.written)
        if unsafe > self.config.put_message_pending_bytes:
            return PutResult(PutMessageStatus.OS_PAGECACHE_BUSY, remark=f"{_BUSY}: {unsafe} bytes are pending")
        return None

    def _stage(self, message: Message, bodies: list[bytes], future: asyncio.Future[PutResult]) -> PutResult | None:
        """Give the messages their places and have them written at the end of this loop turn."""
        config = self.config
        total = sum(map(len, bodies))
        limit = min(config.max_message_size + MESSAGE_OVERHEAD_BYTES, self.commit_log.file_bytes - MIN_BLANK_BYTES)
        if total > limit:
            return message_illegal(
                f"{total} bytes to store, the limit is {limit} (maxMessageSize {config.max_message_size})"
            )
        key = (message.topic.encode(), message.queue_id)
        bumps = message.sys_flag & TRANSACTION_TYPE_MASK in {0, SysFlag.COMMIT}
        offsets, log = self._next_offsets, self.commit_log
        first_offset = queue_offset = offsets.get(key, 0) if bumps else 0
        places: list[int] = []
        for body in bodies:
            physical = log.place(len(body))
            log.stage(b"".join((body[:20], _PLACE.pack(queue_offset, physical), body[36:])))
            places.append(physical)
            queue_offset += bumps
        if bumps:
            offsets[key] = queue_offset
        result = PutResult(
            PutMessageStatus.PUT_OK, first_offset, places[0],
            message_ids(self._store_host, places),
            message.store_timestamp, True, "", len(bodies), total, message.queue_id,
        )  # fmt: skip
        put = PendingPut(log.end, future, result, waits_for_flush=False, waits_for_slave=False)
        self._staged_puts.append((put, message.waits_for_store))
        if not self._write_scheduled:
            self._write_scheduled = True
            self._loop.call_soon(self._write)
        return None

    def _write(self) -> None:
        """Write what this loop turn has staged, dispatch it, push it, and see who has to wait."""
        if not self._write_scheduled:
            return
        self._write_scheduled = False
        puts, self._staged_puts = self._staged_puts, []
        log = self.commit_log
        try:
            messages = log.write_staged()
        except DiskFullError as error:
            self._take_back(puts, error)
            return
        except (StorageError, OSError) as error:
            self._fail(error)
            for put, _ in puts:
                self._answer_unknown(put, error)
            return
        self._dispatch(messages, log.written)
        self.ha_master.log_grew()
        self._await_safety(puts)

    def _take_back(self, puts: list[tuple[PendingPut, bool]], error: DiskFullError) -> None:
        """No room: nothing of this turn is in the log, nor will it be."""
        self.commit_log.drop_staged()
        self.recover_topic_queue_table()
        for put, _ in puts:
            if not put.future.done():
                put.future.set_result(service_not_available(error.message))

    @staticmethod
    def _answer_unknown(put: PendingPut, error: BaseException) -> None:
        put.result.status = PutMessageStatus.UNKNOWN_ERROR
        put.result.remark = f"the store has failed: {error}"
        put.finish()

    def _dispatch(self, messages: Sequence[StoredBytes], end: int) -> None:
        try:
            self.logic.dispatch(messages)
            self.logic.dispatched_physical = end
        except DiskFullError as error:
            self._dispatch_stalled = True
            self._dispatching.clear()
            self._log.error("dispatch_waits_for_disk", error=error.message)
            self._loop.call_later(_DISK_FULL_RETRY_S, self._resume_dispatch, end)
        except (StorageError, OSError) as error:
            self._fail(error)

    def _resume_dispatch(self, end: int) -> None:
        try:
            self.logic.finish()
        except DiskFullError:
            self._loop.call_later(_DISK_FULL_RETRY_S, self._resume_dispatch, end)
            return
        except (StorageError, OSError) as error:
            self._fail(error)
            return
        self.logic.dispatched_physical = end
        self._dispatch_stalled = False
        self._dispatching.set()
        self._slave_appended()

    def _await_safety(self, puts: list[tuple[PendingPut, bool]]) -> None:
        config = self.config
        sync_flush = config.flush_disk_type is FlushDiskType.SYNC_FLUSH
        sync_slave = self._role is BrokerRole.SYNC_MASTER
        if not sync_flush and not sync_slave:
            for put, _ in puts:
                put.finish()
            return
        now = self._loop.time()
        for put, waits in puts:
            if waits:
                if sync_flush:
                    put.waits_for_flush = True
                    put.flush_deadline = now + config.sync_flush_timeout_ms / 1000
                if sync_slave:
                    if self.ha_master.has_slave_for(put.end):
                        put.waits_for_slave = True
                        put.slave_deadline = now + config.slave_timeout_ms / 1000
                    else:
                        put.result.status = PutMessageStatus.SLAVE_NOT_AVAILABLE
                self._waiting.add(put)
            put.finish()
        self._waiting.replicated(self.ha_master.push_offset)
        if sync_flush:
            self._flush_wanted.set()
        if len(self._waiting) and self._expiry is None:
            self._expiry = self._loop.call_later(_EXPIRY_STEP_S, self._expire)

    def _expire(self) -> None:
        self._expiry = None
        self._waiting.expire(self._loop.time())
        if len(self._waiting):
            self._expiry = self._loop.call_later(_EXPIRY_STEP_S, self._expire)

    # ------------------------------------------------------------------ the disk

    async def _flush_loop(self) -> None:
        """SYNC_FLUSH: a group as soon as one waits. ASYNC_FLUSH: every interval."""
        sync = self.config.flush_disk_type is FlushDiskType.SYNC_FLUSH
        while True:
            if sync:
                await self._flush_wanted.wait()
                self._flush_wanted.clear()
            else:
                await asyncio.sleep(self.config.flush_interval_commit_log_ms / 1000)
            if self.commit_log.flushed < self.commit_log.written:
                await self._flush()

    async def _flush(self) -> None:
        """One group: everything written so far.

        Raises:
            StorageFailedError: final.
        """
        async with self._flush_lock:
            log = self.commit_log
            target, paths = log.written, log.take_dirty()
            if paths:
                # Shielded: these files are no longer marked, so what has begun must be finished.
                await asyncio.shield(self._loop.run_in_executor(self._flusher, partial(sync_paths, paths)))
            log.flushed = max(log.flushed, min(target, log.written))
            self._waiting.flushed(log.flushed)

    async def _keep_house(self) -> None:
        """Checkpoints and retention."""
        saved_at = cleaned_at = self._loop.time()
        while True:
            await asyncio.sleep(self.config.flush_interval_consume_queue_ms / 1000)
            now = self._loop.time()
            fresh = self.logic.dispatched_physical - max(0, self._checkpoint_physical)
            if fresh > 0 and (fresh >= _CHECKPOINT_BYTES or now - saved_at >= _CHECKPOINT_SECONDS):
                await self._checkpoint()
                saved_at = now
            if now - cleaned_at >= self.config.clean_resource_interval_ms / 1000:
                await self.clean_expired()
                cleaned_at = now

    async def _checkpoint(self) -> None:
        try:
            await self._flush()  # the log first: a checkpoint never speaks of what could still be lost
            await self._save_checkpoint()
        except DiskFullError as error:
            self._log.warning("checkpoint_not_saved", error=error.message)

    def _log_paths_to_sync(self, physical: int) -> list[str]:
        if physical <= self.commit_log.flushed:
            return []
        return sorted(self.commit_log.files.dirty)  # not taken: the flush loop syncs them again, which is harmless

    # ------------------------------------------------------------------ small state

    async def put_state(self, kind: str, key: str, value: object) -> None:
        """See ``MessageStore.put_state``."""
        await self.put_states([(kind, key, value)])

    async def put_states(self, records: Sequence[tuple[str, str, object]]) -> None:
        """See ``MessageStore.put_states``."""
        deleted = [key for kind, key, value in records if kind == StateKind.TOPICS and value is None]
        for topic in deleted:
            self._delete_topic(topic)
        self.tables.apply(records, now_ms())
        for kind in {kind for kind, _, _ in records}:
            self._table_files.changed(kind)
        if deleted and self._started:
            # The log does not know of the deletion: a replay from before it would bring the queues back.
            await self._checkpoint()

    def _delete_topic(self, topic: str) -> None:
        if self._write_scheduled:
            self._write()
        self.logic.delete_topic(topic)
        name = topic.encode()
        for key in [key for key in self._next_offsets if key[0] == name]:
            del self._next_offsets[key]

    # ------------------------------------------------------------------ reads

    @property
    def max_physical_offset(self) -> int:
        return self.commit_log.written

    @property
    def min_physical_offset(self) -> int:
        return self.commit_log.min_offset

    def _read_log(self, physical: int, length: int, *, now: bool) -> bytes:
        return self.commit_log.read(physical, length, now=now)

    def dispatch_behind_bytes(self) -> int:
        return self.commit_log.written - self.logic.dispatched_physical

    def runtime_info(self) -> dict[str, str]:
        """See ``MessageStore.runtime_info``."""
        info = super().runtime_info()
        info["remainHowManyDataToFlush"] = f"{self.commit_log.written - self.commit_log.flushed} B"
        return info

    async def read_for_slave(self, pos: int, length: int) -> bytes:
        """Written bytes for a slave: from memory at once, from the disk by a thread."""
        return await self._warmed(lambda now: self.commit_log.read(pos, length, now=now))

    # ------------------------------------------------------------------ replicated bytes

    def append_replicated(self, pos: int, data: bytes) -> None:
        """A slave's append.

        Raises:
            DiskFullError: no room; the connection is given up and tried again later.
            StorageFailedError: not at the end of the log, or the disk failed.
        """
        log = self.commit_log
        fresh = not log.files.starts and log.end == 0
        try:
            log.append_raw(pos, data)
        except DiskFullError:
            log.files.truncate(log.written)
            raise
        if fresh:
            self.logic.dispatched_physical = pos

    def replicated(self) -> None:
        """A slave's appends of one read are through."""
        self._slave_appended()
        self.ha_master.log_grew()  # slaves of a slave

    def _slave_appended(self) -> None:
        if self._dispatch_stalled or self._role is not BrokerRole.SLAVE:
            return
        logic, log = self.logic, self.commit_log
        for messages, following in log.scan(logic.dispatched_physical, log.written, verify=False):
            self._dispatch(messages, following)
            if self._dispatch_stalled or self._failure is not None:
                return

    # ------------------------------------------------------------------ retention, HA

    async def clean_expired(self, *, now_ms: int | None = None, force: bool = False) -> int:
        """See ``MessageStore.clean_expired``."""
        usage = shutil.disk_usage(self.root)
        count = expired_files(
            self.commit_log.files,
            self.config,
            now_ms=time.time_ns() // 1_000_000 if now_ms is None else now_ms,
            used_percent=100 * usage.used / usage.total,
            force=force,
        )
        if count == 0:
            return 0
        files = self.commit_log.files
        deleted = files.delete_before(files.starts[count])
        self._log.info("commit_log_files_deleted", count=deleted, min_physical=files.first)
        self.logic.set_min_physical(files.first)
        return deleted

    def update_ha_master_address(self, address: str | None) -> None:
        """See ``MessageStore.update_ha_master_address``."""
        self._master_address = address
        if self.ha_slave is not None:
            self.ha_slave.set_address(address)

    def ha_status(self) -> HaStatus:
        """See ``MessageStore.ha_status``."""
        end = self.commit_log.written
        limit = self.config.ha_slave_fallbehind_max_bytes
        slaves = tuple(
            HaSlaveStatus(
                link.address, link.ack_offset, end - link.ack_offset, end - link.ack_offset < limit, link.bytes_per_s
            )
            for link in self.ha_master.connections
        )
        slave = self.ha_slave
        return HaStatus(
            self._role, end, self.ha_master.address, slaves, self._master_address, slave is not None and slave.connected
        )


class _ReplicaLog:
    """The store as both ends of the HA stream see it."""

    def __init__(self, store: LocalMessageStore) -> None:
        self._store = store

    def end(self) -> int:
        return self._store.commit_log.written

    def last_file_start(self) -> int:
        starts = self._store.commit_log.files.starts
        return starts[-1] if starts else self.end()

    async def read(self, pos: int, length: int) -> bytes:
        return await self._store.read_for_slave(pos, length)

    def append(self, pos: int, data: bytes) -> None:
        if self._store.role is not BrokerRole.SLAVE:
            raise ConnectionError("no slave any more")
        try:
            self._store.append_replicated(pos, data)
        except DiskFullError as error:
            raise ConnectionError(error.message) from error

    def appended(self) -> None:
        self._store.replicated()
