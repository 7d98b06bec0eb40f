"""What is derived from the commit log: consume queues, key index, the newest messages in memory, and who is told.

`LogicStore.dispatch` takes committed messages in log order and is the only writer. Per message it costs a struct
unpack and three searches in the properties, per run of messages that share all but body, properties and place hardly
more; everything else is per batch: one write for each queue touched, one for the index, one call of each listener, one
entry of the cache.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterable, Sequence
from itertools import repeat
from struct import Struct
from typing import Final

import structlog

from broker_adapter.message import (
    DELAY_PROPERTY,
    KEYS_PROPERTY,
    TAGS_PROPERTY,
    UNIQ_KEY_PROPERTY,
    V6_FLAGS,
    get_property,
    tags_code,
)
from broker_adapter.store.api import SCHEDULE_TOPIC, Arrival, ArrivalListener, StoreConfig
from broker_adapter.store.checkpoint import LogicCheckpoint, boot_id
from broker_adapter.store.consume_queue import UNIT, UNIT_BYTES, ConsumeQueue
from broker_adapter.store.files import FdPool
from broker_adapter.store.index_file import IndexService, UniqueIds, key_hash
from broker_adapter.store.runs import are_alike, numbers
from broker_adapter.store.tail_cache import TailCache

__all__ = ["DelayLevels", "LogicStore", "StoredBytes"]

StoredBytes = tuple[bytes, int, int, int, int]
"""(buffer, where in it the message starts, physical offset of the message, count, stride).

A count of more than 1: as many messages that start ``stride`` bytes apart, in buffer and log, as `run_length` finds
them."""

_FIXED_V4: Final = Struct(">i8xi4xq8xi16xq20xi")
"""Total size, queue id, queue offset, sysFlag, store timestamp, body length (IPv4 hosts)."""
_LONG: Final = Struct(">q")
_INT: Final = Struct(">i")
_SCHEDULE: Final = SCHEDULE_TOPIC.encode()
_TAGS_NEEDLE: Final = TAGS_PROPERTY + b"\x01"
_KEYS_NEEDLE: Final = KEYS_PROPERTY + b"\x01"
_UNIQUE_NEEDLE: Final = UNIQ_KEY_PROPERTY + b"\x01"
_UNITS: Final = {"s": 1000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}


class DelayLevels:
    """``messageDelayLevel``: level 1 … n → milliseconds."""

    def __init__(self, text: str) -> None:
        """Raises ValueError for a part that is not a number and one of s, m, h, d."""
        self.delays_ms = [self._parse(part) for part in text.split()]

    @staticmethod
    def _parse(part: str) -> int:
        unit = _UNITS.get(part[-1:].lower())
        if unit is None or not part[:-1].isdigit():
            raise ValueError(f"messageDelayLevel: {part!r} is not a number and one of s, m, h, d")
        return int(part[:-1]) * unit

    @property
    def highest(self) -> int:
        return len(self.delays_ms)

    def due_ms(self, level: int, store_timestamp: int) -> int:
        """When a message of this level is due (upstream: an unknown level waits one second)."""
        if 1 <= level <= len(self.delays_ms):
            return store_timestamp + self.delays_ms[level - 1]
        return store_timestamp + 1000


class LogicStore:
    """Queues, index and message cache of one store. Event loop only.

    Invariant: every message before ``dispatched_physical`` is in its queue; none after it is.
    """

    def __init__(self, config: StoreConfig, pool: FdPool) -> None:
        root = config.store_path_root_dir
        self._queue_root = os.path.join(root, "consumequeue")
        self._file_bytes = config.mapped_file_size_consume_queue
        self._pool = pool
        self._index_root = os.path.join(root, "index")
        self._index_config = config.max_hash_slot_num, config.max_index_num
        self._index_enabled = config.message_index_enable
        self.checkpoint_path = os.path.join(root, "logicCheckpoint")
        self.delays = DelayLevels(config.message_delay_level)
        self.queues: dict[tuple[bytes, int], ConsumeQueue] = {}
        self.index = IndexService(self._index_root, *self._index_config)
        self.dispatched_physical = 0
        self.last_store_timestamp = 0
        self.misplaced_count = 0
        self._listeners: list[ArrivalListener] = []
        self._dirty: set[ConsumeQueue] = set()
        self._touched: list[ConsumeQueue] = []  # collected by `dispatch`, not yet written
        self._keys: list[tuple[int, int, int]] = []
        self._ids = UniqueIds()
        self.cache = TailCache(config.message_cache_bytes)
        self._min_physical = 0
        self._log = structlog.get_logger()

    # ------------------------------------------------------------------ opening

    def load(self, checkpoint: LogicCheckpoint | None) -> LogicCheckpoint | None:
        """Open the files as the checkpoint says. None: they were unusable or absent; start from the log's beginning."""
        self.index.load()
        if checkpoint is not None and self._restore(checkpoint):
            self.dispatched_physical = checkpoint.physical
            return checkpoint
        self._log.info("logic_files_rebuilt", reason="no checkpoint" if checkpoint is None else "files do not match it")
        self.reset()
        return None

    def reset(self) -> None:
        """Throw all derived files away."""
        self.index.destroy()
        self.index.close()
        for queue in self.queues.values():
            queue.files.destroy()
        self._pool.close()
        self.queues.clear()
        shutil.rmtree(self._queue_root, ignore_errors=True)
        shutil.rmtree(self._index_root, ignore_errors=True)
        self.index = IndexService(self._index_root, *self._index_config)
        self.dispatched_physical = 0
        self._dirty.clear()

    def _restore(self, checkpoint: LogicCheckpoint) -> bool:
        for topic, ends in checkpoint.queues.items():
            for queue_id, end in ends.items():
                queue = self._queue(topic.encode(), int(queue_id))
                queue.files.load()
                last_byte = end * UNIT_BYTES - 1
                if end and not queue.files.covers(last_byte):
                    return False
                queue.cut(end)
                queue.set_min_physical(0)  # past the blanks at the front
        self._remove_unknown_queues(checkpoint)
        if not self._index_enabled:
            return True
        return self.index.restore(
            checkpoint.index_name, checkpoint.index_count, trust_slots=checkpoint.boot == boot_id() != ""
        )

    def _remove_unknown_queues(self, checkpoint: LogicCheckpoint) -> None:
        """Queues that came after the checkpoint come again from the log."""
        if not os.path.isdir(self._queue_root):
            return
        for topic in os.listdir(self._queue_root):
            known = checkpoint.queues.get(topic, {})
            folder = os.path.join(self._queue_root, topic)
            for queue_id in os.listdir(folder):
                if queue_id not in known:
                    shutil.rmtree(os.path.join(folder, queue_id), ignore_errors=True)

    def cut(self, physical_end: int) -> None:
        """Drop everything that points beyond the end of the log."""
        if self.dispatched_physical <= physical_end:
            return
        self._log.warning(
            "logic_files_truncated", dispatched_physical=self.dispatched_physical, physical_end=physical_end
        )
        for queue in self.queues.values():
            queue.truncate(physical_end)
            self._dirty.add(queue)
        self.index.truncate(physical_end)
        self.dispatched_physical = physical_end

    def _queue(self, topic: bytes, queue_id: int) -> ConsumeQueue:
        queue = self.queues.get((topic, queue_id))
        if queue is None:
            name = topic.decode("utf-8", "replace")
            folder = f"{self._queue_root}/{name}/{queue_id}"
            queue = self.queues[topic, queue_id] = ConsumeQueue(name, queue_id, folder, self._file_bytes, self._pool)
        return queue

    def find(self, topic: str, queue_id: int) -> ConsumeQueue | None:
        return self.queues.get((topic.encode(), queue_id))

    def queue_ids(self, topic: str) -> list[int]:
        name = topic.encode()
        return sorted(queue_id for key, queue_id in self.queues if key == name)

    # ------------------------------------------------------------------ dispatching

    def add_listener(self, listener: ArrivalListener) -> None:
        self._listeners.append(listener)

    def dispatch(self, messages: Iterable[StoredBytes]) -> None:
        """Put messages into queues and index, in order; listeners are told at the end.

        Each is complete and verified. The caller sets `dispatched_physical` when all of a stretch is through.

        Raises:
            DiskFullError: nothing is lost; call `finish` until it succeeds, before anything else is dispatched.
            StorageFailedError: final.
        """
        alone: list[StoredBytes] = []
        for message in messages:
            _, _, _, count, _ = message
            if count > 1:
                self._collect(alone)
                alone = [] if self._collect_run(message) else _one_by_one(message)
            else:
                alone.append(message)
        self._collect(alone)
        self.finish()

    def _collect(self, messages: Sequence[StoredBytes]) -> None:
        """Note units, index entries and bytes of single messages."""
        touched, pack_unit, unpack = self._touched, UNIT.pack, _FIXED_V4.unpack_from
        index_enabled = self._index_enabled
        store_timestamp = first = following = 0
        topic, marked_topic, last_id, queue = b"", b"\0", -1, None
        last: bytes | None = None
        origin = 0
        for buffer, at, physical, _, _ in messages:
            total, queue_id, queue_offset, sys_flag, store_timestamp, body_length = unpack(buffer, at)
            topic_at = at + 88 + body_length
            if sys_flag & V6_FLAGS:
                store_timestamp, topic_at = _v6_fields(buffer, at, sys_flag)
            # Neighbours are often of the same queue: a batch is, to begin with.
            if queue_id != last_id or not buffer.startswith(marked_topic, topic_at):
                marked_topic = buffer[topic_at : topic_at + 1 + buffer[topic_at]]
                topic, last_id, queue = marked_topic[1:], queue_id, None
            begin, end = topic_at + len(marked_topic) + 2, at + total
            transaction = sys_flag & 12
            if not transaction or transaction == 8:
                if queue is None:
                    queue = self._queue(topic, queue_id)
                units = queue.units
                if not units:
                    touched.append(queue)
                if queue_offset != queue.next_offset + len(units) // UNIT_BYTES:
                    self._misplaced(queue, queue_offset, physical)
                    units = queue.units
                if topic == _SCHEDULE:
                    code = self._due(buffer[begin:end], store_timestamp)
                elif buffer.find(_TAGS_NEEDLE, begin, end) >= 0:
                    code = tags_code(get_property(buffer[begin:end], TAGS_PROPERTY))
                else:
                    code = 0
                units += pack_unit(physical, total, code)
                queue.tags.append(code)
            if index_enabled and transaction != 12:
                self._collect_keys(topic, buffer, begin, end, physical, store_timestamp)
            if buffer is not last:
                if last is not None:
                    self.cache.add(last, origin, first, following)
                last, origin, first = buffer, physical - at, physical
            following = physical + total
        if last is not None:
            self.last_store_timestamp = store_timestamp
            self.cache.add(last, origin, first, following)

    def _collect_run(self, run: StoredBytes) -> bool:
        """Note a run as `_collect` would; False, and nothing is noted, where its messages need a look each."""
        buffer, at, physical, count, stride = run
        total, queue_id, _, sys_flag, store_timestamp, body_length = _FIXED_V4.unpack_from(buffer, at)
        topic_at = at + 88 + body_length
        begin = topic_at + 1 + buffer[topic_at] + 2
        topic = buffer[topic_at + 1 : begin - 2]
        end, last_end = at + total, at + (count - 1) * stride + total
        entry_at = end - stride
        if sys_flag & 12 not in {0, 8} or topic == _SCHEDULE:
            return False
        code = 0
        if begin < end and buffer.find(_TAGS_NEEDLE, begin, last_end) >= 0:
            tags_at = buffer.find(_TAGS_NEEDLE, begin, end)
            if tags_at < 0 or buffer.count(_TAGS_NEEDLE, at, last_end) != count:
                return False
            tags_end = buffer.find(b"\x02", tags_at, end) + 1 or end
            if not are_alike(buffer, entry_at, stride, count, max(tags_at - 1, begin) - entry_at, tags_end - entry_at):
                return False
            code = tags_code(get_property(buffer[begin:end], TAGS_PROPERTY))
        queue = self._queue(topic, queue_id)
        units = queue.units
        offset = queue.next_offset + len(units) // UNIT_BYTES
        if numbers(buffer, entry_at, stride, count, at + 20 - entry_at) != list(range(offset, offset + count)):
            return False
        if not units:
            self._touched.append(queue)
        places = range(physical, physical + count * stride, stride)
        units += b"".join(map(UNIT.pack, places, repeat(total), repeat(code)))
        queue.tags += [code] * count
        if (
            self._index_enabled
            and begin < end
            and (buffer.find(_UNIQUE_NEEDLE, begin, last_end) >= 0 or buffer.find(_KEYS_NEEDLE, begin, last_end) >= 0)
        ):
            for place in places:
                shift = place - physical
                self._collect_keys(topic, buffer, begin + shift, end + shift, place, store_timestamp)
        self.last_store_timestamp = store_timestamp
        self.cache.add(buffer, physical - at, physical, places[-1] + total)
        return True

    def _collect_keys(
        self, topic: bytes, buffer: bytes, begin: int, end: int, physical: int, store_timestamp: int
    ) -> None:
        """Note the index entries of a message whose properties stand in [begin, end) of ``buffer``."""
        found = buffer.find(_UNIQUE_NEEDLE, begin, end)
        if found >= 0:
            hashed = self._ids.hash(topic, buffer, found + 9, end) if found == begin or buffer[found - 1] == 2 else -1
            if hashed < 0:
                unique = get_property(buffer[begin:end], UNIQ_KEY_PROPERTY)
                hashed = key_hash(topic, unique) if unique else -1
            if hashed >= 0:
                self._keys.append((hashed, physical, store_timestamp))
        if buffer.find(_KEYS_NEEDLE, begin, end) >= 0:
            text = get_property(buffer[begin:end], KEYS_PROPERTY)
            if text:
                for key in text.split(b" "):
                    if key:
                        self._keys.append((key_hash(topic, key), physical, store_timestamp))

    def finish(self) -> None:
        """Write what `dispatch` collected and tell the listeners. Repeatable after DiskFullError."""
        if self._keys:
            self.index.put(self._keys)
        arrivals: list[Arrival] = []
        try:
            while self._touched:
                queue = self._touched[-1]
                if queue.units:
                    tags = queue.tags
                    first = queue.flush_units()
                    self._dirty.add(queue)
                    arrivals.append(Arrival(queue.topic, queue.queue_id, first, tags, self.last_store_timestamp))
                self._touched.pop()
        finally:
            if arrivals:
                for listener in self._listeners:
                    listener(arrivals)

    @property
    def is_settled(self) -> bool:
        """Whether all that was dispatched is written. On a full disk it may not be: then no checkpoint may be taken,
        because some queues are ahead of `dispatched_physical`."""
        return not self._touched and not self._keys

    def _misplaced(self, queue: ConsumeQueue, queue_offset: int, physical: int) -> None:
        """A message is not where the queue ends: the queue begins later (blanks), or an invariant broke elsewhere.

        A committed message is never left out: one whose place is taken goes to the end, on every node alike.
        """
        if queue.units:
            queue.flush_units()
            self._dirty.add(queue)
        if queue_offset > queue.next_offset:
            if queue.next_offset == 0:
                queue.begin_at(queue_offset)
                return
            self._log.error(
                "queue_has_gap", topic=queue.topic, queue_id=queue.queue_id, from_offset=queue.next_offset,
                to_offset=queue_offset, physical_offset=physical,
            )  # fmt: skip
            self.misplaced_count += 1
            queue.fill_to(queue_offset)
            return
        self.misplaced_count += 1
        self._log.error(
            "queue_offset_taken", topic=queue.topic, queue_id=queue.queue_id, queue_offset=queue_offset,
            placed_at=queue.next_offset, physical_offset=physical,
        )  # fmt: skip

    def _due(self, properties: bytes, store_timestamp: int) -> int:
        text = get_property(properties, DELAY_PROPERTY)
        level = int(text) if text is not None and text.isdigit() else 0
        level = min(level, self.delays.highest)
        if level > 0:
            return self.delays.due_ms(level, store_timestamp)
        return tags_code(get_property(properties, TAGS_PROPERTY))

    # ------------------------------------------------------------------ topics, retention

    def delete_topic(self, topic: str) -> None:
        """Delete the queues of a topic."""
        name = topic.encode()
        for key in [key for key in self.queues if key[0] == name]:
            queue = self.queues.pop(key)
            self._dirty.discard(queue)
            queue.files.destroy()
        shutil.rmtree(os.path.join(self._queue_root, topic), ignore_errors=True)

    def set_min_physical(self, physical: int) -> None:
        """The log's front has gone up to ``physical``: so do what pointed there."""
        if physical <= self._min_physical:
            return
        self._min_physical = physical
        for queue in self.queues.values():
            queue.set_min_physical(physical)
        self.index.delete_before(physical)

    def next_offsets(self) -> dict[tuple[bytes, int], int]:
        """The end of each queue: the table that assigns queue offsets (upstream: recoverTopicQueueTable)."""
        return {key: queue.next_offset for key, queue in self.queues.items()}

    # ------------------------------------------------------------------ checkpoint

    def snapshot(self) -> tuple[LogicCheckpoint, list[str]]:
        """Return where everything stands, and the files to fdatasync before that may be written down."""
        name, count = self.index.mark
        checkpoint = LogicCheckpoint(
            physical=self.dispatched_physical, index_name=name, index_count=count, boot=boot_id()
        )
        for (topic, queue_id), queue in self.queues.items():
            ends = checkpoint.queues.setdefault(topic.decode("utf-8", "replace"), {})
            ends[str(queue_id)] = queue.next_offset
        paths: list[str] = []
        for queue in self._dirty:
            paths.extend(queue.files.dirty)
            queue.files.dirty.clear()
        self._dirty.clear()
        # The last two: the one before may have got its end since the last checkpoint.
        paths.extend(file.path for file in self.index.files[-2:])
        return checkpoint, paths

    def close(self) -> None:
        self.index.close()


def _one_by_one(run: StoredBytes) -> list[StoredBytes]:
    buffer, at, physical, count, stride = run
    return [(buffer, at + shift, physical + shift, 1, 0) for shift in range(0, count * stride, stride)]


def _v6_fields(buffer: bytes, at: int, sys_flag: int) -> tuple[int, int]:
    """(store timestamp, place of the topic's length) of a message with IPv6 hosts."""
    born = 12 if sys_flag & 16 else 0
    both = born + (12 if sys_flag & 32 else 0)
    store_timestamp: int = _LONG.unpack_from(buffer, at + 56 + born)[0]
    body_length: int = _INT.unpack_from(buffer, at + 84 + both)[0]
    return store_timestamp, at + 88 + both + body_length


def now_ms() -> int:
    """Wall clock: store timestamps are for people and retention, never for ordering."""
    return time.time_ns() // 1_000_000
