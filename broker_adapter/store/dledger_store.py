"""`DLedgerMessageStore`: the commit log is a replicated log (RocketMQ's DLedgerCommitLog and the store around it).

One message is one entry, a batch is one batch append. A message's physical offset is its entry's position + 48, its
queue offset the next one of its queue: both are written into the bytes by the append hook, which runs in log order on
the event loop at the moment the entry gets its position. So an append that is refused takes no queue offset, and the
order within a queue is the log's.

Everything readable comes from committed entries: every node follows the commit index, dispatches messages to the queues
and applies state records, in order. A checkpoint says how far that is durable; after a crash the log is replayed from
there.

A leader may assign queue offsets only if it has applied everything before its term. So it becomes master by
`set_role`, after `wait_dispatched`, for exactly one term: a put in any other term is refused.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from functools import partial
from struct import Struct
from typing import Final

from broker_adapter.message import (
    MESSAGE_MAGIC,
    MESSAGE_OVERHEAD_BYTES,
    Message,
    MessageFormatError,
    decode_batch,
    encode_message,
)
from broker_adapter.store.api import (
    BrokerRole,
    HaStatus,
    PutResult,
    StateKind,
    StoreConfig,
)
from broker_adapter.store.base import BaseMessageStore, NotReadableYetError, message_illegal, service_not_available
from broker_adapter.store.checkpoint import LogicCheckpoint, remove_abort, touch_abort
from broker_adapter.store.encode import batch_messages
from broker_adapter.store.logic import StoredBytes, now_ms
from broker_adapter.store.put_groups import ENTRY_HEADER_BYTES, Put, PutGroups
from broker_adapter.store.runs import run_length
from broker_adapter.store.state import STATE_MAGIC, decode_state, encode_state
from dledger import (
    DLedgerConfig,
    DLedgerServer,
    EntryType,
    NodeStatus,
    Outcome,
    RoleChangeHandler,
)
from dledger.errors import (
    CorruptLogError,
    DiskFullError,
    LeaderNotReadyError,
    NotLeaderError,
    StoppedError,
    TermChangedError,
)

__all__ = ["ENTRY_HEADER_BYTES", "DLedgerMessageStore", "dledger_config"]

_ENTRY: Final = Struct(">iiqqq16x")
"""An entry's header: type, size with header, index, term, position (DLedger's layout)."""
_MESSAGE_ENTRY: Final = Struct(">iiqqq16xiI20xq")
"""And the begin of a message in it: total size, magic, physical offset."""
_MESSAGE_ENTRY_BYTES: Final = _MESSAGE_ENTRY.size
_HEAD_BYTES: Final = 36
_NORMAL: Final = int(EntryType.NORMAL)
_APPLY_BYTES: Final = 1024 * 1024
_DISPATCH_CHUNK: Final = 256
_CHECKPOINT_BYTES: Final = 64 * 1024 * 1024
_CHECKPOINT_SECONDS: Final = 10.0
_DISK_FULL_RETRY_S: Final = 0.2
_MIN_BATCH_BYTES: Final = 4 * 1024 * 1024


def _resolve(future: asyncio.Future[PutResult], result: PutResult) -> None:
    if not future.done():
        future.set_result(result)


def dledger_config(config: StoreConfig) -> DLedgerConfig:
    """Return the log node's configuration, as upstream derives it from the broker's.

    Raises:
        ConfigError: all problems at once.
    """
    entry_bytes = config.max_message_size + MESSAGE_OVERHEAD_BYTES
    values = {
        "dLegerGroup": config.dledger_group or "",
        "dLegerSelfId": config.dledger_self_id or "",
        "dLegerPeers": config.dledger_peers or "",
        "storePathRootDir": config.store_path_root_dir,
        "flushDiskType": config.flush_disk_type.value,
        "mappedFileSizeForEntryData": str(config.mapped_file_size_commit_log),
        "maxEntryBytes": str(entry_bytes),
        "maxBatchBytes": str(max(entry_bytes, _MIN_BATCH_BYTES)),
    }
    if config.preferred_leader_id:
        values["preferredLeaderId"] = config.preferred_leader_id
    values.update(config.dledger_settings)
    return DLedgerConfig.from_mapping(values)


class DLedgerMessageStore(BaseMessageStore):
    """See ``MessageStore``. ``applied_index`` is the last entry that is dispatched here."""

    def __init__(self, config: StoreConfig) -> None:
        super().__init__(config)
        self._dledger_config = dledger_config(config)
        self._max_stored_bytes = min(
            config.max_message_size + MESSAGE_OVERHEAD_BYTES, self._dledger_config.max_entry_bytes
        )
        self._role = BrokerRole.SLAVE
        self.applied_index = -1
        self._applied_term = -1
        self.next_offsets: dict[tuple[bytes, int], int] = {}
        self._master_term = -1
        self._server = DLedgerServer(self._dledger_config)
        self._data_directory = str(self._dledger_config.node_dir / "data")
        self._segment_bytes = self._dledger_config.mapped_file_size_for_entry_data
        self._applied_waiters: list[tuple[int, asyncio.Future[None]]] = []
        self._foreign_count = 0
        self._housekeeper: asyncio.Task[None] | None = None
        self._watcher: asyncio.Task[None] | None = None
        self._applying: asyncio.Task[None] | None = None
        self._started = False
        self._failed: asyncio.Future[BaseException] | None = None

    # ------------------------------------------------------------------ life

    async def start(self) -> None:
        """See ``MessageStore.start``."""
        os.makedirs(self.root, exist_ok=True)
        self._open_threads()
        self._failed = asyncio.get_running_loop().create_future()
        self._put_groups = PutGroups(
            lambda bodies, done, hook: self._server.append_nowait(bodies, done=done, hook=hook),
            refuse=self._refuse_put,
            offsets=lambda: self.next_offsets,
            host=self._store_host,
            max_waiting_bytes=self.config.put_message_pending_bytes,
        )
        checkpoint = self.logic.load(LogicCheckpoint.load(self.logic.checkpoint_path))
        if checkpoint is not None:
            self.applied_index = checkpoint.entry_index
            self._applied_term = checkpoint.entry_term
            self.tables.restore(checkpoint.tables)
            self._checkpoint_physical = checkpoint.physical
        touch_abort(self.root)
        try:
            await self._server.start()
        except BaseException:
            self._close_files()
            raise
        self._started = True
        self._housekeeper = asyncio.get_running_loop().create_task(self._keep_checkpoints(), name="store-checkpoints")
        self._watcher = asyncio.get_running_loop().create_task(self._watch_server(), name="store-watch")
        self._applying = asyncio.get_running_loop().create_task(self._apply_committed(), name="store-apply")
        self._applying.add_done_callback(self._apply_ended)

    async def _watch_server(self) -> None:
        """A log that stops by itself (a failed disk, a broken invariant) takes the store with it."""
        try:
            await self._server.wait_stopped()
        except Exception as error:
            self._fail(error)

    def _fail(self, error: BaseException) -> None:
        if self._failed is not None and not self._failed.done():
            self._failed.set_result(error)
        self._fail_waiters()

    def _fail_waiters(self) -> None:
        for _, waiter in self._applied_waiters:
            if not waiter.done():
                waiter.set_exception(
                    StoppedError("the node has stopped before it applied that", outcome=Outcome.UNKNOWN)
                )
        self._applied_waiters.clear()

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
        self._role = BrokerRole.SLAVE
        if self._housekeeper is not None:
            self._housekeeper.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._housekeeper
        self._put_groups.close()
        await self._server.stop()
        if self._applying is not None:
            self._applying.cancel()
            await asyncio.gather(self._applying, return_exceptions=True)
        if self._watcher is not None:
            await self._watcher
        self._fail_waiters()
        if (self._failed is not None and self._failed.done()) or not self.logic.is_settled:
            self._close_files()  # the last checkpoint stands: what came after it is made anew
            return
        await self._save_checkpoint(entry_index=self.applied_index, entry_term=self._applied_term)
        remove_abort(self.root)
        self._close_files()

    async def _keep_checkpoints(self) -> None:
        """Every 64 MiB, or 10 s after a change."""
        loop = asyncio.get_running_loop()
        saved_at = loop.time()
        interval = self.config.flush_interval_consume_queue_ms / 1000
        while True:
            await asyncio.sleep(interval)
            fresh = self.logic.dispatched_physical - max(0, self._checkpoint_physical)
            is_due = fresh >= _CHECKPOINT_BYTES or loop.time() - saved_at >= _CHECKPOINT_SECONDS
            if fresh <= 0 or not is_due or not self.logic.is_settled:
                continue
            try:
                await self._save_checkpoint(entry_index=self.applied_index, entry_term=self._applied_term)
            except DiskFullError as error:
                self._log.warning("checkpoint_not_saved", error=error.message)
            saved_at = loop.time()

    # ------------------------------------------------------------------ role

    @property
    def is_dledger(self) -> bool:
        return True

    @property
    def server(self) -> DLedgerServer:
        """The embedded log node."""
        return self._server

    def add_role_change_handler(self, handler: RoleChangeHandler) -> None:
        self._server.add_role_change_handler(handler)

    def set_role(self, role: BrokerRole) -> None:
        """See ``MessageStore.set_role``.

        Raises:
            NotLeaderError, LeaderNotReadyError: to become master, this node must lead, and must have applied an entry
                of its own term: then it has applied everything before it, and knows each queue's end.
        """
        if role is not BrokerRole.SLAVE:
            term, leader, _ = self._server.leader_hint()
            if leader != self._dledger_config.self_id:
                raise NotLeaderError("only the leader of the log can be master", leader_id=leader)
            if self._applied_term != term:
                raise LeaderNotReadyError(f"the first entry of term {term} is not dispatched yet")
            if self._role is BrokerRole.SLAVE or term != self._master_term:
                self.recover_topic_queue_table()
                self._master_term = term
        self._role = role

    def recover_topic_queue_table(self) -> None:
        """See ``MessageStore.recover_topic_queue_table``."""
        self.next_offsets = self.logic.next_offsets()

    def _term(self) -> int:
        return self._server.leader_hint()[0]

    def dledger_status(self) -> NodeStatus | None:
        return replace(self._server.status(), applied_index=self.applied_index) if self._started else None

    async def transfer_leadership(self, target: str | None = None) -> str:
        return await self._server.transfer_leadership(target)

    async def wait_dispatched(self) -> None:
        """See ``MessageStore.wait_dispatched``."""
        await self._wait_applied(self._server.status().commit_index)

    async def _wait_applied(self, index: int) -> None:
        if self.applied_index >= index:
            return
        if self._failed is not None and self._failed.done():
            raise StoppedError("the store has failed before it applied that", outcome=Outcome.UNKNOWN)
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._applied_waiters.append((index, waiter))
        await waiter

    # ------------------------------------------------------------------ puts

    def put_message(self, message: Message) -> Awaitable[PutResult]:
        """See ``MessageStore.put_message``."""
        future: asyncio.Future[PutResult] = asyncio.get_running_loop().create_future()
        self.put_nowait(message, partial(_resolve, future), is_batch=False)
        return future

    def put_messages(self, batch: Message) -> Awaitable[PutResult]:
        """See ``MessageStore.put_messages``."""
        future: asyncio.Future[PutResult] = asyncio.get_running_loop().create_future()
        self.put_nowait(batch, partial(_resolve, future), is_batch=True)
        return future

    def put_nowait(self, message: Message, done: Callable[[PutResult], None], *, is_batch: bool) -> None:
        """See ``MessageStore.put_nowait``."""
        refused = self._refuse_put() or self._prepare(message)
        if refused is not None:
            done(refused)
            return
        try:
            if is_batch:
                bodies: Sequence[bytes] = batch_messages(message, decode_batch(message.body), self._store_host)
                total = sum(map(len, bodies))
            else:
                body = encode_message(message)
                bodies, total = (body,), len(body)
        except MessageFormatError as error:
            done(message_illegal(error.message))
            return
        if total > self._max_stored_bytes:
            done(self._too_large(total))
            return
        self._put_groups.add(Put(done, message, bodies, total))

    def _too_large(self, size: int) -> PutResult:
        return message_illegal(
            f"{size} bytes to store, the limit is {self._max_stored_bytes} "
            f"(maxMessageSize {self.config.max_message_size})"
        )

    def _refuse_put(self) -> PutResult | None:
        if not self._started:
            return service_not_available("the store is stopping")
        if self._failed is not None and self._failed.done():
            return service_not_available("the store has failed")
        if self._role is BrokerRole.SLAVE:
            return service_not_available("this broker is a slave")
        if self._term() != self._master_term:
            return service_not_available("leadership has changed")
        return None

    # ------------------------------------------------------------------ small state

    async def put_state(self, kind: str, key: str, value: object) -> None:
        """See ``MessageStore.put_state``."""
        await self.put_states([(kind, key, value)])

    async def put_states(self, records: Sequence[tuple[str, str, object]]) -> None:
        """See ``MessageStore.put_states``."""
        if not records:
            return
        refused = self._refuse_put()
        if refused is not None:
            leader = self._server.leader_hint()[1] if self._started else None
            raise NotLeaderError(refused.remark, leader_id=leader)
        deleted = [key.encode() for kind, key, value in records if kind == StateKind.TOPICS and value is None]

        def forget_offsets(_: Sequence[int], bodies: Sequence[bytes]) -> Sequence[bytes]:
            # At the record's place in the log: later messages of a topic of that name start at 0 again.
            for topic in deleted:
                for key in [key for key in self.next_offsets if key[0] == topic]:
                    del self.next_offsets[key]
            return bodies

        self._put_groups.hurry()  # the puts before it stay before it
        body = encode_state(records, now_ms())
        result = await self._server.append_batch((body,), hook=forget_offsets if deleted else None)
        await self._wait_applied(result.last_index)

    # ------------------------------------------------------------------ committed entries

    async def _apply_committed(self) -> None:
        """Follow the log as it is committed. Read as it is stored: an object for each entry costs a third."""
        server = self._server
        while True:
            try:
                commit_index = await server.wait_committed(self.applied_index + 1)
                raw = await server.read_slice(self.applied_index + 1, commit_index, _APPLY_BYTES)
            except Exception:
                if self._started:
                    raise
                return  # the log closes
            await self.apply(raw.data)
            if self.applied_index < commit_index:
                await asyncio.sleep(0)  # far behind: the node has other things to do

    def _apply_ended(self, task: asyncio.Task[None]) -> None:
        """A store that has missed an entry must not go on. Why a log has stopped, `_watch_server` hears."""
        error = None if task.cancelled() else task.exception()
        if error is None or isinstance(error, StoppedError | TermChangedError):
            return
        self._log.critical("dispatch_failed", error=str(error), kind=type(error).__name__)
        self._fail(error)

    async def apply(self, data: bytes) -> None:
        """Take in committed entries as they stand in the log, whole ones, in order.

        Raises:
            CorruptLogError: the derived files belong to another log.
            StorageError: they cannot be written; the store fails.
        """
        self._check_continues(data)
        at, end = 0, len(data)
        while at < end:
            at, index, term, following = await self._apply_chunk(data, at)
            self.logic.dispatched_physical = following
            self.applied_index, self._applied_term = index, term
            if self._applied_waiters:
                self._wake_applied()
            if at < end:
                await asyncio.sleep(0)

    def _check_continues(self, data: bytes) -> None:
        if self.applied_index < 0:
            return
        _, _, index, term, pos = _ENTRY.unpack_from(data)
        end, segment = self.logic.dispatched_physical, self._segment_bytes
        next_segment = (end // segment + 1) * segment
        if index != self.applied_index + 1 or pos not in {end, next_segment} or term < self._applied_term:
            raise CorruptLogError(
                f"{self.root}: the consume queues end after entry {self.applied_index} at byte {end}, the log goes on "
                f"with entry {index} of term {term} at byte {pos}: they belong to different logs. "
                f"Delete {self.logic.checkpoint_path}; everything derived is then made anew"
            )

    async def _apply_chunk(self, data: bytes, at: int) -> tuple[int, int, int, int]:
        """Apply some entries, and runs of them, from ``at`` on. Returns where the next stands in ``data``, and of the
        last one index, term and the position behind it."""
        messages: list[StoredBytes] = []
        end = len(data)
        unpack, unpack_message = _ENTRY.unpack_from, _MESSAGE_ENTRY.unpack_from
        index = term = following = 0
        for _ in range(_DISPATCH_CHUNK):
            if at >= end:
                break
            if end - at >= _MESSAGE_ENTRY_BYTES:
                kind, size, index, term, pos, total, magic, place = unpack_message(data, at)
            else:
                kind, size, index, term, pos = unpack(data, at)
                total = magic = place = 0
            physical, following = pos + ENTRY_HEADER_BYTES, pos + size
            if kind == _NORMAL:
                if magic == MESSAGE_MAGIC and place == physical and total == size - ENTRY_HEADER_BYTES >= _HEAD_BYTES:
                    count = run_length(data, at, size, physical)
                    messages.append((data, at + ENTRY_HEADER_BYTES, physical, count, size))
                    if count > 1:
                        index += count - 1
                        following += (count - 1) * size
                        at += (count - 1) * size
                else:
                    await self._dispatch(messages)
                    messages = []
                    self._apply_other(data[at + ENTRY_HEADER_BYTES : at + size], index, pos)
            at += size
        await self._dispatch(messages)
        return at, index, term, following

    def _apply_other(self, body: bytes, index: int, pos: int) -> None:
        """An entry that is no message: a state record, or nothing of ours."""
        if body[4:8] == _STATE_MAGIC_BYTES:
            self._apply_state(body, index)
        else:
            self._foreign(index, pos)

    async def _dispatch(self, messages: list[StoredBytes]) -> None:
        if not messages:
            return
        try:
            self.logic.dispatch(messages)
            return
        except DiskFullError as error:
            self._log.error("dispatch_waits_for_disk", error=error.message)
        while True:
            await asyncio.sleep(_DISK_FULL_RETRY_S)
            with contextlib.suppress(DiskFullError):
                self.logic.finish()
                return

    def _apply_state(self, body: bytes, index: int) -> None:
        try:
            records, timestamp = decode_state(body)
        except MessageFormatError as error:
            self._log.error("state_record_skipped", index=index, reason=error.message)
            return
        for kind, key, value in records:
            if kind == StateKind.TOPICS and value is None:
                self.logic.delete_topic(key)
        self.tables.apply(records, timestamp)

    def _foreign(self, index: int, pos: int) -> None:
        """Something else was appended to the group's log by hand: no message, so nobody consumes it."""
        self._foreign_count += 1
        if self._foreign_count == 1:
            self._log.warning("entry_is_no_message", index=index, pos=pos)

    def _wake_applied(self) -> None:
        left = []
        for index, waiter in self._applied_waiters:
            if waiter.done():
                continue
            if index <= self.applied_index:
                waiter.set_result(None)
            else:
                left.append((index, waiter))
        self._applied_waiters = left

    # ------------------------------------------------------------------ reads

    @property
    def max_physical_offset(self) -> int:
        return self.logic.dispatched_physical

    @property
    def min_physical_offset(self) -> int:
        return 0

    def _read_log(self, physical: int, length: int, *, now: bool) -> bytes:
        start = physical - physical % self._segment_bytes
        try:
            return self._pool.read(f"{self._data_directory}/{start:020d}", physical - start, length, now=now)
        except FileNotFoundError:
            return b""

    def _read_message(self, physical: int, size: int, *, now: bool) -> bytes | None:
        """A committed message is always there: never answer that it is gone, a consumer would skip it."""
        data = super()._read_message(physical, size, now=now)
        if data is None and self.min_physical_offset <= physical <= self.max_physical_offset - size:
            start = physical - physical % self._segment_bytes
            self._pool.forget(f"{self._data_directory}/{start:020d}")  # it may have been replaced since
            data = super()._read_message(physical, size, now=now)
            if data is None:
                raise NotReadableYetError(f"the message at {physical} is committed but not in this node's file yet")
        return data

    def dispatch_behind_bytes(self) -> int:
        """See ``MessageStore.dispatch_behind_bytes``; at least 1 while an entry is not dispatched."""
        if not self._started:
            return 0
        commit_index = self._server.status().commit_index
        if self.applied_index >= commit_index:
            return 0
        position = self._server.position_of(commit_index)
        return max(1, position + ENTRY_HEADER_BYTES - self.logic.dispatched_physical)

    async def clean_expired(self, *, now_ms: int | None = None, force: bool = False) -> int:
        """The log deletes for itself: always 0."""
        del now_ms, force
        return 0

    def update_ha_master_address(self, address: str | None) -> None:
        """No HAService in this mode: Raft replicates."""

    def ha_status(self) -> HaStatus:
        return HaStatus(self._role, self.max_physical_offset, None)


_STATE_MAGIC_BYTES: Final = STATE_MAGIC.to_bytes(4, "big")
