"""What both stores share: the read path, the small state's interface, listeners, preparing a message to be stored."""

from __future__ import annotations

import asyncio
import os
import shutil
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from struct import Struct
from typing import Any, Final, TypeVar

import structlog

from broker_adapter.message import (
    DELAY_PROPERTY,
    MAX_PROPERTIES_BYTES,
    MAX_TOPIC_BYTES,
    MESSAGE_MAGIC,
    REAL_QUEUE_ID_PROPERTY,
    REAL_TOPIC_PROPERTY,
    TRANSACTION_TYPE_MASK,
    Message,
    MessageFormatError,
    SysFlag,
    decode_message,
    get_property,
    host_bytes,
    set_property,
)
from broker_adapter.store.api import (
    SCHEDULE_TOPIC,
    ArrivalListener,
    BrokerRole,
    GetMessageStatus,
    GetResult,
    PutMessageStatus,
    PutResult,
    QueryResult,
    QueueUnit,
    StateListener,
    StoreConfig,
)
from broker_adapter.store.checkpoint import StoreTimestamps, write_atomically
from broker_adapter.store.consume_queue import BLANK_SIZE, UNIT, UNIT_BYTES, ConsumeQueue
from broker_adapter.store.files import ColdReadError, FdPool, sync_paths, warm
from broker_adapter.store.logic import LogicStore, now_ms
from broker_adapter.store.state import StateTables
from dledger.errors import StorageError, StorageFailedError

__all__ = ["BaseMessageStore", "NotReadableYetError", "message_illegal", "service_not_available"]

_CHECK: Final = Struct(">iI20xq")
_HEAD_BYTES: Final = 36
_STORE_TIME: Final = Struct(">i16xq")
_LONG: Final = Struct(">q")
_WARM_ROUNDS: Final = 64
_READ_THREADS: Final = 2
_FILTER_UNITS: Final = 800  # upstream looks at 16000 bytes of units in one pull, or 20 times the messages wanted
_SPAN_BYTES: Final = 256 * 1024
_SPARSE: Final = 8
_READABLE_WITHIN_S: Final = 2.0
_READABLE_STEP_S: Final = 0.05
_GIB: Final = 1024**3
_SLAVE_RATIO_LESS: Final = 10

T = TypeVar("T")


def message_illegal(remark: str) -> PutResult:
    return PutResult(PutMessageStatus.MESSAGE_ILLEGAL, remark=remark)


def service_not_available(remark: str) -> PutResult:
    return PutResult(PutMessageStatus.SERVICE_NOT_AVAILABLE, remark=remark)


class _Window:
    """Messages of one pull out of the log: neighbours come with one read rather than one each."""

    __slots__ = ("_base", "_data", "_max_count", "_now", "_store", "units")

    def __init__(
        self, store: BaseMessageStore, units: list[tuple[int, int, int]], max_count: int, *, now: bool
    ) -> None:
        self._store = store
        self.units = units
        self._max_count = max_count
        self._now = now
        self._base = 0
        self._data = b""

    def message(self, number: int) -> bytes | None:
        """The message of a unit."""
        physical, size, _ = self.units[number]
        at = physical - self._base
        if not 0 <= at <= len(self._data) - size:
            length = self._span(number)
            if length > size:
                self._data = self._store.read_span(physical, length, now=self._now)
                self._base = physical
                at = 0
        data = self._data
        if 0 <= at <= len(data) - size and _CHECK.unpack_from(data, at) == (size, MESSAGE_MAGIC, physical):
            return data[at : at + size]
        return self._store.read_message(physical, size, now=self._now)

    def _span(self, number: int) -> int:
        """How much to read from here: as many of the wanted units as stand close together."""
        units = self.units
        start, size, _ = units[number]
        span = wanted = size
        for physical, size, _ in units[number + 1 : number + self._max_count]:
            reach = physical + size - start
            wanted += size
            if not 0 < reach <= _SPAN_BYTES or reach > _SPARSE * wanted:
                break
            span = reach
        return span


class NotReadableYetError(StorageError):
    """A committed message is not in this node's file yet (its own disk lags behind the majority's)."""

    default_retriable = True


class BaseMessageStore(ABC):
    """Reads, state and listeners over a `LogicStore`; a subclass brings the commit log.

    The subclass implements `_read_log` and the two physical ends, and calls `LogicStore.dispatch`.
    """

    def __init__(self, config: StoreConfig) -> None:
        self.config = config
        self.root = config.store_path_root_dir
        self._pool = FdPool()
        self.logic = LogicStore(config, self._pool)
        self.tables = StateTables()
        self.timestamps = StoreTimestamps()
        self._role = config.broker_role
        self._reader: ThreadPoolExecutor | None = None
        self._saver: ThreadPoolExecutor | None = None
        self._log = structlog.get_logger()
        self._store_host = host_bytes(config.store_host)
        memory = config.total_physical_memory_bytes
        self._memory_bytes = memory or os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        self._file_bytes = config.mapped_file_size_commit_log
        self._checkpoint_physical = -1
        self._checkpoint_lock = asyncio.Lock()
        self._unsynced: set[str] = set()

    def _open_threads(self) -> None:
        self._reader = ThreadPoolExecutor(_READ_THREADS, thread_name_prefix="store-read")
        self._saver = ThreadPoolExecutor(1, thread_name_prefix="store-save")

    def _close_files(self) -> None:
        self.logic.close()
        self._pool.close()
        for executor in (self._reader, self._saver):
            if executor is not None:
                executor.shutdown()

    # ------------------------------------------------------------------ for the subclass

    @property
    @abstractmethod
    def max_physical_offset(self) -> int:
        """See ``MessageStore``."""

    @property
    @abstractmethod
    def min_physical_offset(self) -> int:
        """Where the commit log begins."""

    @abstractmethod
    def _read_log(self, physical: int, length: int, *, now: bool) -> bytes:
        """Bytes of the commit log; empty where they are not there (any more, or yet)."""

    # ------------------------------------------------------------------ role, listeners, state

    @property
    def role(self) -> BrokerRole:
        return self._role

    def add_arrival_listener(self, listener: ArrivalListener) -> None:
        self.logic.add_listener(listener)

    def add_state_listener(self, listener: StateListener) -> None:
        self.tables.add_listener(listener)

    def state(self, kind: str) -> Mapping[str, Any]:
        return self.tables.table(kind)

    def state_version(self, kind: str) -> tuple[int, int]:
        return self.tables.version(kind)

    # ------------------------------------------------------------------ puts

    @abstractmethod
    def put_message(self, message: Message) -> Awaitable[PutResult]:
        """See ``MessageStore``."""

    @abstractmethod
    def put_messages(self, batch: Message) -> Awaitable[PutResult]:
        """See ``MessageStore``."""

    def put_nowait(self, message: Message, done: Callable[[PutResult], None], *, is_batch: bool) -> None:
        """See ``MessageStore.put_nowait``."""
        put = asyncio.ensure_future(self.put_messages(message) if is_batch else self.put_message(message))
        put.add_done_callback(lambda finished: done(finished.result()))

    def _prepare(self, message: Message) -> PutResult | None:
        """Check one message, stamp it, send a delayed one to the schedule topic. A result means: refused."""
        if len(message.topic.encode()) > MAX_TOPIC_BYTES:
            return message_illegal(f"the topic is longer than {MAX_TOPIC_BYTES} bytes")
        if len(message.body) > self.config.max_message_size:
            return message_illegal(
                f"the body has {len(message.body)} bytes, maxMessageSize is {self.config.max_message_size}"
            )
        if len(message.properties) > MAX_PROPERTIES_BYTES:
            return message_illegal(f"the properties are longer than {MAX_PROPERTIES_BYTES} bytes")
        if b"DELAY\x01" in message.properties and message.sys_flag & TRANSACTION_TYPE_MASK in {0, SysFlag.COMMIT}:
            self._delay(message)
        message.store_timestamp = now_ms()
        message.store_host = self.config.store_host
        return None

    def _delay(self, message: Message) -> None:
        text = get_property(message.properties, DELAY_PROPERTY)
        level = int(text) if text is not None and text.isdigit() else 0
        if level <= 0 or message.topic == SCHEDULE_TOPIC:
            return
        properties = message.properties
        if level > self.logic.delays.highest:
            level = self.logic.delays.highest
            properties = set_property(properties, DELAY_PROPERTY, b"%d" % level)
        properties = set_property(properties, REAL_TOPIC_PROPERTY, message.topic.encode())
        message.properties = set_property(properties, REAL_QUEUE_ID_PROPERTY, b"%d" % message.queue_id)
        message.topic = SCHEDULE_TOPIC
        message.queue_id = level - 1

    # ------------------------------------------------------------------ reads

    async def _warmed(self, read: Callable[[bool], T]) -> T:
        """Run ``read(now=True)``; what is not in memory is first read by a thread."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + _READABLE_WITHIN_S
        for _ in range(_WARM_ROUNDS):
            try:
                return read(True)
            except ColdReadError as cold:
                await loop.run_in_executor(self._reader, warm, cold.path, cold.offset, cold.length)
            except NotReadableYetError:
                if loop.time() > deadline:
                    raise
                await asyncio.sleep(_READABLE_STEP_S)
        return read(False)

    def _memory_limit(self) -> int:
        """Bytes of the newest log that count as "in memory"; less on a slave, so that consumers do not flap."""
        ratio = self.config.access_message_in_memory_max_ratio
        if self._role is BrokerRole.SLAVE:
            ratio = max(0, ratio - _SLAVE_RATIO_LESS)
        return self._memory_bytes * ratio // 100

    async def get_message(
        self,
        group: str,
        topic: str,
        queue_id: int,
        offset: int,
        max_count: int,
        tags_codes: frozenset[int] | None = None,
        *,
        max_bytes: int | None = None,
    ) -> GetResult:
        """See ``MessageStore.get_message``."""
        del group  # upstream's statistics only
        queue = self.logic.find(topic, queue_id)
        refused = self._refuse_get(queue, offset)
        if refused is not None or queue is None:
            return refused or GetResult(GetMessageStatus.NO_MATCHED_LOGIC_QUEUE, 0, 0, 0)
        found = queue
        return await self._warmed(lambda now: self._get(found, offset, max_count, tags_codes, max_bytes, now))

    def get_message_now(
        self, topic: str, queue_id: int, offset: int, max_count: int, tags_codes: frozenset[int] | None = None
    ) -> GetResult | None:
        """See ``MessageStore.get_message_now``."""
        queue = self.logic.find(topic, queue_id)
        refused = self._refuse_get(queue, offset)
        if refused is not None or queue is None:
            return refused
        try:
            return self._get(queue, offset, max_count, tags_codes, None, True)
        except (ColdReadError, NotReadableYetError):
            return None

    def _refuse_get(self, queue: ConsumeQueue | None, offset: int) -> GetResult | None:
        if queue is None:
            return GetResult(GetMessageStatus.NO_MATCHED_LOGIC_QUEUE, self._corrected(offset, 0), 0, 0)
        low, high = queue.min_offset, queue.next_offset
        if high == 0:
            return GetResult(GetMessageStatus.NO_MESSAGE_IN_QUEUE, self._corrected(offset, 0), low, high)
        if offset < low:
            return GetResult(GetMessageStatus.OFFSET_TOO_SMALL, self._corrected(offset, low), low, high)
        if offset == high:
            return GetResult(GetMessageStatus.OFFSET_OVERFLOW_ONE, offset, low, high)
        if offset > high:
            target = low if low == 0 else high
            return GetResult(GetMessageStatus.OFFSET_OVERFLOW_BADLY, self._corrected(offset, target), low, high)
        return None

    def _corrected(self, old: int, new: int) -> int:
        """A slave may only be behind: it keeps the offset that was asked for (upstream: nextOffsetCorrection)."""
        if self._role is BrokerRole.SLAVE and not self.config.offset_check_in_slave:
            return old
        return new

    def _transfer_limits(self, max_count: int, max_bytes: int | None) -> tuple[tuple[int, int], tuple[int, int]]:
        """(bytes, messages) of one answer, for what is in memory and for what is not."""
        if max_bytes is not None:
            return (max_bytes, max_count), (max_bytes, max_count)
        config = self.config
        return (
            (
                config.max_transfer_bytes_on_message_in_memory,
                min(max_count, config.max_transfer_count_on_message_in_memory),
            ),
            (
                config.max_transfer_bytes_on_message_in_disk,
                min(max_count, config.max_transfer_count_on_message_in_disk),
            ),
        )

    def _get(
        self,
        queue: ConsumeQueue,
        offset: int,
        max_count: int,
        codes: frozenset[int] | None,
        max_bytes: int | None,
        now: bool,
    ) -> GetResult:
        result = GetResult(GetMessageStatus.NO_MATCHED_MESSAGE, offset, queue.min_offset, queue.next_offset)
        wanted = max_count + 1 if codes is None else max(_FILTER_UNITS, max_count)
        units = queue.read(offset, wanted, now=now)
        if not units:
            following = offset + queue.files.file_bytes // UNIT_BYTES
            result.status = GetMessageStatus.OFFSET_FOUND_NULL
            result.next_begin_offset = self._corrected(offset, min(following, queue.next_offset))
            return result
        end, memory = self.max_physical_offset, self._memory_limit()
        in_memory, on_disk = self._transfer_limits(max_count, max_bytes)
        buffers, find_cached = result.buffers, self.logic.cache.find
        stretch_first = stretch_end = origin = 0
        stretch = b""
        byte_count = looked = 0
        skip_below = pulled = -1
        window = _Window(self, list(UNIT.iter_unpack(units)), max_count, now=now)
        for number, (physical, size, tags) in enumerate(window.units):
            if size == BLANK_SIZE:
                looked += 1
                continue
            if buffers:
                limit, limit_count = on_disk if end - physical > memory else in_memory
                if len(buffers) >= limit_count or byte_count + size > limit:
                    pulled = physical
                    break
            looked += 1
            pulled = physical
            if physical < skip_below or (codes is not None and tags not in codes):
                continue
            if not stretch_first <= physical < stretch_end and (cached := find_cached(physical)) is not None:
                stretch_first, stretch_end, stretch, origin = cached
            if stretch_first <= physical and physical + size <= stretch_end:
                buffer: bytes | None = stretch[physical - origin : physical - origin + size]
            else:
                buffer = window.message(number)
            if buffer is None:
                if not buffers:
                    result.status = GetMessageStatus.MESSAGE_WAS_REMOVING
                skip_below = physical + self._file_bytes - physical % self._file_bytes
                continue
            buffers.append(buffer)
            byte_count += size
        if buffers:
            result.status = GetMessageStatus.FOUND
        result.byte_count = byte_count
        result.next_begin_offset = offset + looked
        if pulled >= 0:
            result.backlog_bytes = end - pulled
            result.suggest_pulling_from_slave = result.backlog_bytes > memory
        return result

    def read_span(self, physical: int, length: int, *, now: bool) -> bytes:
        """Visible bytes of the log, not verified; fewer at the end of a file."""
        if physical < self.min_physical_offset:
            return b""
        return self._read_log(physical, min(length, self.max_physical_offset - physical), now=now)

    def read_message(self, physical: int, size: int, *, now: bool) -> bytes | None:
        """One visible message, verified; None where it is not there any more."""
        return self._read_message(physical, size, now=now)

    def _read_message(self, physical: int, size: int, *, now: bool) -> bytes | None:
        """One message from the log, None unless exactly it stands there."""
        if physical < self.min_physical_offset or physical + size > self.max_physical_offset:
            return None
        data = self._read_log(physical, size, now=now)
        if len(data) != size or _CHECK.unpack_from(data) != (size, MESSAGE_MAGIC, physical):
            return None
        return data

    def _look(self, physical: int, size: int | None, *, now: bool) -> bytes | None:
        if not self.min_physical_offset <= physical <= self.max_physical_offset - _HEAD_BYTES:
            return None
        cached = self.logic.cache.message(physical)
        if cached is not None:
            return cached if size is None or size == len(cached) else None
        head = self._read_log(physical, _HEAD_BYTES, now=now)
        if len(head) < _HEAD_BYTES:
            return None
        total, magic, place = _CHECK.unpack(head)
        if magic != MESSAGE_MAGIC or place != physical or total < _HEAD_BYTES or (size is not None and size != total):
            return None
        return self._read_message(physical, total, now=now)

    async def look_message_by_offset(self, physical_offset: int, size: int | None = None) -> bytes | None:
        """See ``MessageStore.look_message_by_offset``."""
        return await self._warmed(lambda now: self._look(physical_offset, size, now=now))

    def max_offset(self, topic: str, queue_id: int) -> int:
        queue = self.logic.find(topic, queue_id)
        return 0 if queue is None else queue.next_offset

    def min_offset(self, topic: str, queue_id: int) -> int:
        queue = self.logic.find(topic, queue_id)
        return 0 if queue is None else queue.min_offset

    def queue_ids(self, topic: str) -> list[int]:
        return self.logic.queue_ids(topic)

    async def queue_units(self, topic: str, queue_id: int, offset: int, max_count: int) -> list[QueueUnit]:
        """See ``MessageStore.queue_units``."""
        queue = self.logic.find(topic, queue_id)
        if queue is None:
            return []
        data = await self._warmed(lambda now: queue.read(offset, max_count, now=now))
        return [
            QueueUnit(number, *unit)
            for number, unit in enumerate(UNIT.iter_unpack(data), offset)
            if unit[1] != BLANK_SIZE
        ]

    def is_in_memory(self, topic: str, queue_id: int, offset: int) -> bool:
        """See ``MessageStore.is_in_memory``."""
        queue = self.logic.find(topic, queue_id)
        unit = None if queue is None else queue.unit(offset, now=False)
        return unit is not None and self.max_physical_offset - unit[0] <= self._memory_limit()

    def _store_time(self, physical: int, size: int, *, now: bool) -> int:
        message = self._look(physical, size, now=now)
        if message is None:
            return -1
        sys_flag, plain = _STORE_TIME.unpack_from(message, 36)
        return int(plain if not sys_flag & SysFlag.BORN_HOST_V6 else _LONG.unpack_from(message, 68)[0])

    def _unit_time(self, queue: ConsumeQueue, offset: int, now: bool) -> int:
        unit = queue.unit(offset, now=now)
        return -1 if unit is None else self._store_time(unit[0], unit[1], now=now)

    async def offset_by_time(self, topic: str, queue_id: int, timestamp: int) -> int:
        """See ``MessageStore.offset_by_time``. Binary search: store times ascend but for clock steps."""
        queue = self.logic.find(topic, queue_id)
        if queue is None:
            return 0
        low, high = queue.min_offset, queue.next_offset
        while low < high:
            middle = (low + high) // 2
            stored = await self._warmed(partial(self._unit_time, queue, middle))
            if stored < timestamp:
                low = middle + 1
            else:
                high = middle
        return low

    async def message_store_time(self, topic: str, queue_id: int, offset: int) -> int:
        """See ``MessageStore.message_store_time``."""
        queue = self.logic.find(topic, queue_id)
        if queue is None or not queue.min_offset <= offset < queue.next_offset:
            return -1
        return await self._warmed(partial(self._unit_time, queue, offset))

    async def query_message(self, topic: str, key: str, max_count: int, begin: int, end: int) -> QueryResult:
        """See ``MessageStore.query_message``."""
        max_count = min(max_count, self.config.default_query_max_num)
        buffers: list[bytes] = []
        # Twice as many candidates: one hash may belong to several keys.
        for physical in self.logic.index.find(topic, key, begin, end, 2 * max_count):
            message = await self.look_message_by_offset(physical)
            if message is not None and _has_key(message, topic, key, begin, end):
                buffers.append(message)
            if len(buffers) >= max_count:
                break
        last_time, last_physical = self.logic.index.end
        return QueryResult(buffers, last_time, last_physical)

    # ------------------------------------------------------------------ checkpoints

    async def _save_checkpoint(self, *, entry_index: int = -1, entry_term: int = -1) -> None:
        """Make the derived files durable up to here, then say so (see ``checkpoint``)."""
        async with self._checkpoint_lock:
            checkpoint, paths = self.logic.snapshot()
            checkpoint.entry_index, checkpoint.entry_term = entry_index, entry_term
            if entry_index >= 0:
                checkpoint.tables = self.tables.export()
            data = checkpoint.encode()
            stamp = self.logic.last_store_timestamp or self.timestamps.logic
            times = StoreTimestamps(stamp, stamp, min(stamp, self.logic.index.end[0] or stamp))
            self.timestamps = times
            self._unsynced.update(paths)  # until it has worked, whatever interrupts it
            wanted = sorted(self._unsynced | set(self._log_paths_to_sync(checkpoint.physical)))

            def save() -> None:
                sync_paths(wanted)
                times.save(os.path.join(self.root, "checkpoint"))
                write_atomically(self.logic.checkpoint_path, data)

            # One thread, so that an older one never comes last; shielded, so that what has begun is finished.
            await asyncio.shield(asyncio.get_running_loop().run_in_executor(self._saver, save))
            self._unsynced.clear()
            if checkpoint.physical < self._checkpoint_physical:
                raise StorageFailedError(
                    f"a checkpoint at {checkpoint.physical} after one at {self._checkpoint_physical}"
                )
            self._checkpoint_physical = checkpoint.physical

    def _log_paths_to_sync(self, physical: int) -> list[str]:
        """Commit log files that must be durable before a checkpoint may speak of what they hold."""
        del physical
        return []

    # ------------------------------------------------------------------ figures

    @abstractmethod
    def dispatch_behind_bytes(self) -> int:
        """See ``MessageStore``."""

    def runtime_info(self) -> dict[str, str]:
        """See ``MessageStore.runtime_info``."""
        usage = shutil.disk_usage(self.root)
        ratio = f"{usage.used / usage.total:.4f}"
        return {
            "commitLogMinOffset": str(self.min_physical_offset),
            "commitLogMaxOffset": str(self.max_physical_offset),
            "commitLogDirCapacity": f"Total : {usage.total / _GIB:.2f} GiB, Free : {usage.free / _GIB:.2f} GiB.",
            "commitLogDiskRatio": ratio,
            "consumeQueueDiskRatio": ratio,
            "dispatchBehindBytes": str(self.dispatch_behind_bytes()),
            "queueCount": str(len(self.logic.queues)),
            "misplacedMessageCount": str(self.logic.misplaced_count),
        }

    async def earliest_store_time(self, topic: str | None = None, queue_id: int = 0) -> int:
        """See ``MessageStore.earliest_store_time``."""
        if topic is not None:
            return await self.message_store_time(topic, queue_id, self.min_offset(topic, queue_id))
        first = self._first_message_at()
        return -1 if first is None else await self._warmed(lambda now: self._store_time_of(first, now=now))

    def _store_time_of(self, physical: int, *, now: bool) -> int:
        message = self._look(physical, None, now=now)
        return -1 if message is None else self._store_time(physical, len(message), now=now)

    def _first_message_at(self) -> int | None:
        """Physical offset of the oldest message that a queue points to."""
        firsts = [
            unit[0]
            for queue in self.logic.queues.values()
            if queue.min_offset < queue.next_offset and (unit := queue.unit(queue.min_offset, now=False)) is not None
        ]
        return min(firsts, default=None)


def _has_key(raw: bytes, topic: str, key: str, begin: int, end: int) -> bool:
    try:
        message = decode_message(raw, check_crc=False)
    except MessageFormatError:
        return False
    if message.topic != topic or not begin <= message.store_timestamp <= end:
        return False
    return message.get("UNIQ_KEY") == key or key in (message.keys or "").split(" ")
