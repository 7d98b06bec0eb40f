"""A small reader of RocketMQ's store files, written from the description of the formats alone.

It shares no line with the broker: if both agree on a file, the file is RocketMQ's. Formats (big-endian):

* commit log: files of one length, named by start offset in 20 digits; messages back to back; a file ends with
  (remaining length 4, 0xCBD43194) where the next message did not fit.
* replicated log: the same, but before each message a 48-byte header: magic 4, size 4, index 8, term 8, pos 8, …;
  magic -1: the rest of the file is blank.
* consume queue: ``<topic>/<queue>/<20 digits>``, units of physical offset 8, size 4, tags code 8.
* index file: header begin time 8, end time 8, begin offset 8, end offset 8, used slots 4, count 4; slots 4 each;
  entries key hash 4, offset 8, seconds 4, previous 4.
* checkpoint: three times, 8 bytes each.
"""

import struct
import zlib
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path


@dataclass
class ReadMessage:
    physical: int
    size: int
    queue_id: int
    flag: int
    queue_offset: int
    sys_flag: int
    born_time: int
    born_host: tuple
    store_time: int
    store_host: tuple
    reconsume_times: int
    prepared_offset: int
    body: bytes
    topic: str
    properties: dict

    @property
    def tag(self):
        return self.properties.get("TAGS")

    @property
    def keys(self):
        unique = self.properties.get("UNIQ_KEY")
        listed = [key for key in self.properties.get("KEYS", "").split(" ") if key]
        return ([unique] if unique else []) + listed


def hash_of(text):
    """``String.hashCode``: h = 31 h + c over UTF-16 units, in 32 bits, signed."""
    value = 0
    units = text.encode("utf-16-be")
    for high, low in zip(units[::2], units[1::2], strict=True):
        value = (31 * value + high * 256 + low) % 2**32
    return value - 2**32 if value >= 2**31 else value


class Cursor:
    def __init__(self, data, at=0):
        self.data, self.at = data, at

    def take(self, count):
        part = self.data[self.at : self.at + count]
        assert len(part) == count, "the data end within a field"
        self.at += count
        return part

    def number(self, count):
        return int.from_bytes(self.take(count), "big", signed=True)

    def host(self, v6):
        return str(ip_address(self.take(16 if v6 else 4))), self.number(4)


def read_message(data, at=0):
    """Field after field, as the stored message is described."""
    cursor = Cursor(data, at)
    size = cursor.number(4)
    assert cursor.take(4) == bytes.fromhex("DAA320A7")
    crc, queue_id, flag = cursor.number(4), cursor.number(4), cursor.number(4)
    queue_offset, physical, sys_flag, born_time = cursor.number(8), cursor.number(8), cursor.number(4), cursor.number(8)
    born_host = cursor.host(sys_flag & 16)
    store_time = cursor.number(8)
    store_host = cursor.host(sys_flag & 32)
    reconsume_times, prepared_offset = cursor.number(4), cursor.number(8)
    body = cursor.take(cursor.number(4))
    topic = cursor.take(cursor.take(1)[0]).decode()
    text = cursor.take(cursor.number(2)).decode()
    assert cursor.at == at + size
    assert zlib.crc32(body) & 0x7FFFFFFF == crc
    properties = dict(pair.split("\x01", 1) for pair in text.split("\x02") if pair)
    return ReadMessage(
        physical, size, queue_id, flag, queue_offset, sys_flag, born_time, born_host, store_time, store_host,
        reconsume_times, prepared_offset, body, topic, properties,
    )  # fmt: skip


def _log_files(folder):
    return sorted(path for path in Path(folder).iterdir() if path.name.isdigit() and len(path.name) == 20)


def read_commit_log(folder):
    """All messages of a plain commit log."""
    messages = []
    for path in _log_files(folder):
        data, start, at = path.read_bytes(), int(path.name), 0
        while at + 8 <= len(data):
            size, magic = struct.unpack_from(">iI", data, at)
            if magic == 0xCBD43194:
                assert size == len(data) - at, "a blank goes to the end of its file"
                break
            if magic != 0xDAA320A7:
                assert not any(data[at:]), "behind the last message there are zeros"
                break
            message = read_message(data, at)
            assert message.physical == start + at
            messages.append(message)
            at += size
    return messages


def read_replicated_log(folder, file_bytes):
    """All messages of a replicated log: (entry index, term, message)."""
    found = []
    for path in _log_files(folder):
        data, start, at = path.read_bytes(), int(path.name), 0
        while at + 8 <= min(len(data), file_bytes):
            magic, size = struct.unpack_from(">ii", data, at)
            if magic == -1 or (magic, size) == (0, 0):
                break
            index, term, pos = struct.unpack_from(">qqq", data, at + 8)
            assert pos == start + at
            if magic == 1 and data[at + 52 : at + 56] == bytes.fromhex("DAA320A7"):
                message = read_message(data, at + 48)
                assert message.physical == pos + 48
                assert message.size == size - 48
                found.append((index, term, message))
            at += size
    return found


def read_consume_queues(folder, file_bytes=300_000 * 20):
    """(topic, queue) → {queue offset: (physical, size, tags code)}, blanks and empty space left out."""
    queues = {}
    for topic in sorted(Path(folder).iterdir()):
        for queue in topic.iterdir():
            units = queues[topic.name, int(queue.name)] = {}
            for path in _log_files(queue):
                data = path.read_bytes()
                assert len(data) == file_bytes
                for number, unit in enumerate(struct.iter_unpack(">qiq", data), int(path.name) // 20):
                    if unit[1] not in {0, 0x7FFFFFFF}:
                        units[number] = unit
    return queues


@dataclass
class ReadIndex:
    begin_time: int
    end_time: int
    begin_physical: int
    end_physical: int
    used_slots: int
    count: int
    slots: tuple
    entries: list

    def find(self, text):
        """Physical offsets under a key, newest first, by walking the chain."""
        key = hash_of(text)
        key = 0 if key == -(2**31) else abs(key)
        number, found = self.slots[key % len(self.slots)], []
        while number:
            entry_key, physical, _, previous = self.entries[number]
            if entry_key == key:
                found.append(physical)
            assert previous < number, "a chain goes from new to old"
            number = previous
        return found


def read_index_file(path, slot_count, entry_limit):
    data = Path(path).read_bytes()
    assert len(data) == 40 + 4 * slot_count + 20 * entry_limit
    header = struct.unpack_from(">qqqqii", data)
    slots = struct.unpack_from(f">{slot_count}i", data, 40)
    count = header[5]
    entries = list(struct.iter_unpack(">iqii", data[40 + 4 * slot_count :][: 20 * count]))
    return ReadIndex(*header, slots, entries)


def read_checkpoint(path):
    data = Path(path).read_bytes()
    assert len(data) == 4096
    return struct.unpack_from(">qqq", data)
