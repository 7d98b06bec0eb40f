"""IndexFile: messages by ``topic#key``. RocketMQ's layout, byte for byte.

    header 40: begin timestamp 8, end timestamp 8, begin physical offset 8, end physical offset 8,
               used slots 4, entry count 4 (from 1: entry 0 is never used)
    slots      4 each: number of the newest entry of the chain, 0 = empty
    entries    20 each: key hash 4, physical offset 8, seconds since the begin timestamp 4, previous entry 4

Key hash: absolute value of Java's hashCode of ``topic#key``; slot: hash modulo slot count. Chains run from new to old.

Header and slots are mapped (their blocks are allocated first, so a full disk cannot hit a mapped write); entries are
written by pwrite, a batch at a time. File names: upstream takes the wall clock, here the first message's store time in
the same form, so that a rebuilt index has the same names.
"""

from __future__ import annotations

import mmap
import os
import time
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from struct import Struct
from typing import Final

import structlog

from broker_adapter.message import java_hash, java_hash_text
from broker_adapter.store.files import storage_error

__all__ = ["ENTRY", "HEADER", "HEADER_BYTES", "IndexFile", "IndexService", "UniqueIds", "key_hash"]

HEADER: Final = Struct(">qqqqii")
HEADER_BYTES: Final = 40
ENTRY: Final = Struct(">iqii")
ENTRY_BYTES: Final = 20
_SLOT: Final = Struct(">i")
_MAX_INT: Final = 0x7FFFFFFF
_NAME_DIGITS: Final = 17
_CHUNK: Final = 4096

IndexKey = tuple[int, int, int]
"""(key hash, physical offset, store timestamp ms)."""

_31_POW_4: Final = 31**4
_31_POW_8: Final = 31**8 & 0xFFFFFFFF
_ID_BYTES: Final = 32
_MAX_CACHED: Final = 100_000
_clients: dict[bytes, int] = {}
"""``topic#`` and the first 24 characters of a unique id → their hash, times 31^8."""
_fours: dict[bytes, int] = {}
"""Four characters → their hash."""


@lru_cache(maxsize=4096)
def _prefix_hash(topic: bytes) -> int:
    return java_hash_text(topic.decode("utf-8", "replace") + "#") & 0xFFFFFFFF


def key_hash(topic: bytes, key: bytes) -> int:
    """Return the index's hash of ``topic#key``, 0 … 2^31-1.

    A client's unique id (32 characters: 20 constant for a client, 8 of time, 4 of a counter) is hashed from cached
    parts; a plain Python loop over its characters would cost more than all else of dispatching a message.
    """
    if len(key) == 32:
        try:
            value = _clients[topic + key[:24]] + _fours[key[24:28]] * _31_POW_4 + _fours[key[28:]]
        except KeyError:
            value = _learned(topic, key)
    else:
        value = _plain_hash(topic, key)
    return _absolute(value)


def _absolute(value: int) -> int:
    value &= 0xFFFFFFFF
    if value & 0x80000000:
        value = 0x100000000 - value
        return 0 if value == 0x80000000 else value  # abs(Integer.MIN_VALUE) is negative in Java: upstream makes it 0
    return value


def _plain_hash(topic: bytes, key: bytes) -> int:
    if key.isascii():
        return _prefix_hash(topic) * pow(31, len(key), 0x100000000) + java_hash(key)
    return java_hash_text(topic.decode("utf-8", "replace") + "#" + key.decode("utf-8", "replace"))


def _learned(topic: bytes, key: bytes) -> int:
    """Hash a unique id and remember its parts; one beyond ASCII hashes otherwise and is never found among them."""
    if not key.isascii():
        return _plain_hash(topic, key)
    if len(_clients) > _MAX_CACHED:
        _clients.clear()
    if len(_fours) > _MAX_CACHED:
        _fours.clear()
    head = topic + key[:24]
    if head not in _clients:
        _clients[head] = (_plain_hash(topic, key[:24]) & 0xFFFFFFFF) * _31_POW_8
    for part in (key[24:28], key[28:]):
        if part not in _fours:
            _fours[part] = java_hash(part)
    return _clients[head] + _fours[key[24:28]] * _31_POW_4 + _fours[key[28:]]


class UniqueIds:
    """Hashes unique ids that stand in a buffer. Those of one client and millisecond share all but their counter."""

    __slots__ = ("_base", "_prefix", "_topic")

    def __init__(self) -> None:
        self._topic = b""
        self._prefix = b"\x02"  # begins no id: it is what ends one
        self._base = 0  # the hash of topic, "#" and prefix, times 31^4

    def hash(self, topic: bytes, buffer: bytes, at: int, end: int) -> int:
        """Return `key_hash` of the property's value at ``at``; -1 where it is not the usual 32 ASCII characters.

        The value ends with ``\\x02`` or at ``end``, where the properties end.
        """
        stop = at + _ID_BYTES
        if stop != end and (stop > end or buffer[stop] != 2):
            return -1
        if not buffer.startswith(self._prefix, at) or topic != self._topic:
            key = buffer[at:stop]
            if not key.isascii() or b"\x02" in key:
                return -1
            hashed = key_hash(topic, key)  # which has learned its parts now
            self._topic, self._prefix = topic, key[:28]
            self._base = _clients[topic + key[:24]] + _fours[key[24:28]] * _31_POW_4
            return hashed
        counter = _fours.get(buffer[stop - 4 : stop])
        return key_hash(topic, buffer[at:stop]) if counter is None else _absolute(self._base + counter)


class IndexFile:
    """One file. Event loop only."""

    def __init__(self, path: str, slot_count: int, entry_limit: int) -> None:
        self.path = path
        self.slot_count = slot_count
        self.entry_limit = entry_limit
        self.begin_timestamp = self.end_timestamp = self.begin_physical = self.end_physical = 0
        self.used_slots = 0
        self.count = 1
        self._entries_at = HEADER_BYTES + 4 * slot_count
        fresh = not os.path.exists(path)
        try:
            self._fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
            try:
                if fresh or os.fstat(self._fd).st_size != self.file_bytes:
                    os.ftruncate(self._fd, self.file_bytes)
                os.posix_fallocate(self._fd, 0, self._entries_at)
                self._map = mmap.mmap(self._fd, self._entries_at)
            except BaseException:
                os.close(self._fd)
                raise
        except OSError as error:
            raise storage_error(path, error) from error
        self._load_header()

    @property
    def file_bytes(self) -> int:
        return self._entries_at + ENTRY_BYTES * self.entry_limit

    @property
    def room(self) -> int:
        """How many more entries fit (upstream: full at count == limit)."""
        return self.entry_limit - self.count

    def _load_header(self) -> None:
        (
            self.begin_timestamp,
            self.end_timestamp,
            self.begin_physical,
            self.end_physical,
            self.used_slots,
            self.count,
        ) = HEADER.unpack_from(self._map)
        self.count = min(max(self.count, 1), self.entry_limit)

    def _save_header(self) -> None:
        HEADER.pack_into(
            self._map, 0, self.begin_timestamp, self.end_timestamp, self.begin_physical, self.end_physical,
            self.used_slots, self.count,
        )  # fmt: skip

    def put(self, keys: Sequence[IndexKey]) -> None:
        """Add entries in order; the caller has checked `room`."""
        if not keys:
            return
        count, slots = self.count, self.slot_count
        mapped = self._map
        if count == 1:
            _, self.begin_physical, self.begin_timestamp = keys[0]
        begin = self.begin_timestamp
        parts: list[bytes] = []
        used = 0
        unpack, pack_into, pack = _SLOT.unpack_from, _SLOT.pack_into, ENTRY.pack
        number = count
        last_timestamp, seconds = -1, 0
        for hashed, physical, timestamp in keys:
            at = HEADER_BYTES + hashed % slots * 4
            previous = unpack(mapped, at)[0]
            if not 0 < previous < number:
                previous = 0
                used += 1
            if timestamp != last_timestamp:
                last_timestamp = timestamp
                seconds = min(max((timestamp - begin) // 1000, 0), _MAX_INT) if begin > 0 else 0
            parts.append(pack(hashed, physical, seconds, previous))
            pack_into(mapped, at, number)
            number += 1
        try:
            os.pwrite(self._fd, b"".join(parts), self._entries_at + ENTRY_BYTES * count)
        except OSError as error:
            for part in reversed(parts):
                hashed, _, _, previous = ENTRY.unpack(part)
                pack_into(mapped, HEADER_BYTES + hashed % slots * 4, previous)
            raise storage_error(self.path, error) from error
        self.count = number
        self.used_slots += used
        _, self.end_physical, self.end_timestamp = keys[-1]
        self._save_header()

    def entries(self, first: int, count: int) -> bytes:
        return os.pread(self._fd, ENTRY_BYTES * count, self._entries_at + ENTRY_BYTES * first)

    def find(self, hashed: int, begin: int, end: int, max_count: int) -> list[int]:
        """Return physical offsets of entries with this hash stored in [begin, end] ms (to the second), newest first."""
        found: list[int] = []
        number = _SLOT.unpack_from(self._map, HEADER_BYTES + hashed % self.slot_count * 4)[0]
        while 0 < number < self.count and len(found) < max_count:
            entry_hash, physical, seconds, previous = ENTRY.unpack(self.entries(number, 1))
            stored = self.begin_timestamp + seconds * 1000
            # An entry knows its time to the second: one that may lie within counts, the message itself decides.
            if entry_hash == hashed and begin - 1000 < stored <= end:
                found.append(physical)
            if previous >= number or stored + 1000 < begin:
                break
            number = previous
        return found

    def truncate(self, count: int) -> bool:
        """Take entries from ``count`` on back out of their chains, last first. False: the chains do not fit."""
        for number in range(self.count - 1, count - 1, -1):
            data = self.entries(number, 1)
            if len(data) < ENTRY_BYTES:
                return False
            hashed, _, _, previous = ENTRY.unpack(data)
            at = HEADER_BYTES + hashed % self.slot_count * 4
            if hashed < 0 or _SLOT.unpack_from(self._map, at)[0] != number or not 0 <= previous < number:
                return False
            _SLOT.pack_into(self._map, at, previous)
            self.used_slots -= previous == 0
        self._set_count(count)
        return True

    def rebuild_slots(self, count: int) -> None:
        """Make the slots anew from the entries below ``count`` (after a power failure, slots may be from any time)."""
        mapped = self._map
        for at in range(HEADER_BYTES, self._entries_at, 1 << 20):
            end = min(at + (1 << 20), self._entries_at)
            mapped[at:end] = bytes(end - at)
        self.used_slots = 0
        for first in range(1, count, _CHUNK):
            for number, (hashed, _, _, previous) in enumerate(
                ENTRY.iter_unpack(self.entries(first, min(_CHUNK, count - first))), first
            ):
                _SLOT.pack_into(mapped, HEADER_BYTES + hashed % self.slot_count * 4, number)
                self.used_slots += previous == 0
        self._set_count(count)

    def _set_count(self, count: int) -> None:
        self.count = count
        if count > 1:
            _, self.begin_physical, _, _ = ENTRY.unpack(self.entries(1, 1))
            _, self.end_physical, seconds, _ = ENTRY.unpack(self.entries(count - 1, 1))
            self.end_timestamp = max(self.begin_timestamp, self.begin_timestamp + seconds * 1000)
        else:
            self.begin_timestamp = self.end_timestamp = self.begin_physical = self.end_physical = 0
            self.used_slots = 0
        self._save_header()
        # Stale entries must not stay behind the end: zeros, as in a fresh file.
        os.ftruncate(self._fd, self._entries_at + ENTRY_BYTES * count)
        os.ftruncate(self._fd, self.file_bytes)

    def close(self) -> None:
        self._map.close()
        os.close(self._fd)


def _file_name(timestamp: int) -> str:
    whole, part = divmod(timestamp, 1000)
    return time.strftime("%Y%m%d%H%M%S", time.localtime(whole)) + f"{part:03d}"


class IndexService:
    """All index files of a store, oldest first."""

    def __init__(self, directory: str, slot_count: int, entry_limit: int) -> None:
        self._directory = directory
        self._slot_count = slot_count
        self._entry_limit = entry_limit
        self.files: list[IndexFile] = []
        self._log = structlog.get_logger()

    def load(self) -> None:
        if os.path.isdir(self._directory):
            for name in sorted(os.listdir(self._directory)):
                if len(name) == _NAME_DIGITS and name.isdigit():
                    self.files.append(IndexFile(f"{self._directory}/{name}", self._slot_count, self._entry_limit))

    def put(self, keys: list[IndexKey]) -> None:
        """Add entries in order, over as many files as it takes, and take them off the list."""
        while keys:
            if not self.files or self.files[-1].room <= 0:
                self._roll(keys[0][2])
            file = self.files[-1]
            room = file.room
            file.put(keys if len(keys) <= room else keys[:room])
            del keys[:room]

    def _roll(self, timestamp: int) -> None:
        os.makedirs(self._directory, exist_ok=True)
        name = _file_name(timestamp)
        if self.files:
            last = os.path.basename(self.files[-1].path)
            if name <= last:
                name = f"{int(last) + 1:017d}"
        self.files.append(IndexFile(f"{self._directory}/{name}", self._slot_count, self._entry_limit))

    def find(self, topic: str, key: str, begin: int, end: int, max_count: int) -> list[int]:
        """Return physical offsets of candidates, newest first."""
        hashed = key_hash(topic.encode(), key.encode())
        found: list[int] = []
        for file in reversed(self.files):
            if file.count > 1 and file.begin_timestamp <= end and file.end_timestamp >= begin:
                found.extend(file.find(hashed, begin, end, max_count - len(found)))
            if len(found) >= max_count or file.begin_timestamp < begin:
                break
        return found

    @property
    def mark(self) -> tuple[str, int]:
        """(name of the last file, its entry count): where the index stands, for the checkpoint."""
        if not self.files:
            return "", 1
        return os.path.basename(self.files[-1].path), self.files[-1].count

    def restore(self, name: str, count: int, *, trust_slots: bool) -> bool:
        """Go back to a mark. False: the files do not reach it, so the index must be made anew."""
        names = [os.path.basename(file.path) for file in self.files]
        if name not in names:
            if name:
                return False
            self.destroy()
            return True
        while os.path.basename(self.files[-1].path) != name:
            self._drop(self.files.pop())
        file = self.files[-1]
        if trust_slots and file.count == count:
            return True
        if trust_slots and file.count > count and file.truncate(count):
            return True
        if not 1 <= count <= file.entry_limit:
            return False
        self._log.warning("index_slots_rebuilt", file=file.path, entry_count=count)
        file.rebuild_slots(count)
        return True

    def truncate(self, physical_end: int) -> None:
        """Drop the entries at or beyond ``physical_end``."""
        while self.files and self.files[-1].count > 1 and self.files[-1].begin_physical >= physical_end:
            self._drop(self.files.pop())
        if self.files:
            file = self.files[-1]
            count = file.count
            while count > 1 and ENTRY.unpack(file.entries(count - 1, 1))[1] >= physical_end:
                count -= 1
            if count < file.count and not file.truncate(count):
                file.rebuild_slots(count)

    def delete_before(self, physical: int) -> None:
        """Delete files that only point below ``physical``; the last stays."""
        while len(self.files) > 1 and self.files[0].end_physical < physical:
            self._drop(self.files.pop(0))

    def _drop(self, file: IndexFile) -> None:
        file.close()
        Path(file.path).unlink(missing_ok=True)

    @property
    def end(self) -> tuple[int, int]:
        """(store time, physical offset) of the newest entry."""
        if not self.files:
            return 0, 0
        return self.files[-1].end_timestamp, self.files[-1].end_physical

    def destroy(self) -> None:
        while self.files:
            self._drop(self.files.pop())

    def close(self) -> None:
        while self.files:
            self.files.pop().close()
