"""RocketMQ's message: the model, the stored byte layout, properties, message ids and the client's batch encoding.

A stored message, big-endian, at these places where both hosts are IPv4 (an IPv6 host takes 16 + 4 bytes and moves
what follows by 12):

    at  size field
     0   4   total size
     4   4   magic                 0xDAA320A7; 0xCBD43194 = blank to the end of the file
     8   4   body CRC              CRC-32 (zlib's) & 0x7FFFFFFF
    12   4   queue id
    16   4   flag
    20   8   queue offset          written when the message gets its place
    28   8   physical offset       likewise
    36   4   sysFlag
    40   8   born timestamp (ms)
    48   8   born host             ip 4, port 4
    56   8   store timestamp (ms)
    64   8   store host            ip 4, port 4
    72   4   reconsume times
    76   8   prepared transaction offset
    84   4+n body
         1+n topic
         2+n properties            (k \\x01 v \\x02)*, the last \\x02 may be missing
"""

from __future__ import annotations

import socket
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from operator import mul
from struct import Struct, error
from typing import Final
from zlib import crc32

from dledger import DLedgerError, ResponseCode

__all__ = [
    "BATCH_HEADER_BYTES",
    "BLANK_MAGIC",
    "DELAY_PROPERTY",
    "KEYS_PROPERTY",
    "MAX_PROPERTIES_BYTES",
    "MAX_TOPIC_BYTES",
    "MESSAGE_MAGIC",
    "MESSAGE_OVERHEAD_BYTES",
    "REAL_QUEUE_ID_PROPERTY",
    "REAL_TOPIC_PROPERTY",
    "TAGS_PROPERTY",
    "TRANSACTION_TYPE_MASK",
    "UNIQ_KEY_PROPERTY",
    "V6_FLAGS",
    "WAIT_PROPERTY",
    "BatchItem",
    "Message",
    "MessageFormatError",
    "SysFlag",
    "batch_item",
    "body_crc",
    "decode_batch",
    "decode_message",
    "encode_message",
    "format_properties",
    "get_property",
    "host_bytes",
    "iter_messages",
    "java_hash",
    "java_hash_text",
    "join_batch",
    "message_id",
    "message_ids",
    "parse_message_id",
    "parse_properties",
    "pop_properties",
    "set_property",
    "tags_code",
]

MESSAGE_MAGIC: Final = 0xDAA320A7
BLANK_MAGIC: Final = 0xCBD43194
MAX_TOPIC_BYTES: Final = 127
MAX_PROPERTIES_BYTES: Final = 32_767
MESSAGE_OVERHEAD_BYTES: Final = 64 * 1024
"""What a stored message may have beside its body of maxMessageSize at most (upstream reserves as much)."""
BATCH_HEADER_BYTES: Final = 20
TRANSACTION_TYPE_MASK: Final = 12

TAGS_PROPERTY: Final = b"TAGS"
KEYS_PROPERTY: Final = b"KEYS"
UNIQ_KEY_PROPERTY: Final = b"UNIQ_KEY"
DELAY_PROPERTY: Final = b"DELAY"
WAIT_PROPERTY: Final = b"WAIT"
REAL_TOPIC_PROPERTY: Final = b"REAL_TOPIC"
REAL_QUEUE_ID_PROPERTY: Final = b"REAL_QID"

_HEAD: Final = Struct(">iIiiiqqiq")  # to the born timestamp
_TAIL: Final = Struct(">iqi")  # reconsume times, prepared offset, body length
_V4_ALL: Final = Struct(">iIiiiqqiq8sq8siqi")
_V4_FIXED_BYTES: Final = 91
_LONG: Final = Struct(">q")
_BATCH_HEAD: Final = Struct(">iIiii")
_SHORT: Final = Struct(">h")
_ID_V4: Final = Struct(">4siq")
_ID_V6: Final = Struct(">16siq")
_MIN_BYTES: Final = 84 + 4 + 1 + 2


class SysFlag:
    """Bits of a message's sysFlag."""

    COMPRESSED: Final = 1
    MULTI_TAGS: Final = 2
    PREPARED: Final = 4
    COMMIT: Final = 8
    ROLLBACK: Final = 12
    BORN_HOST_V6: Final = 16
    STORE_HOST_V6: Final = 32
    NEED_UNWRAP: Final = 64
    INNER_BATCH: Final = 128


V6_FLAGS: Final = SysFlag.BORN_HOST_V6 | SysFlag.STORE_HOST_V6


class MessageFormatError(DLedgerError):
    """Bytes that claim to be a message are not."""

    default_code = ResponseCode.UNEXPECTED_ARGUMENT


@dataclass(slots=True)
class Message:
    """One message, as it is sent, and (with the fields from ``queue_offset`` on) as it is stored.

    ``properties`` are RocketMQ's bytes, see `parse_properties`, `get_property`. Times in ms since the epoch.
    """

    topic: str
    body: bytes
    queue_id: int = 0
    properties: bytes = b""
    flag: int = 0
    sys_flag: int = 0
    born_timestamp: int = 0
    born_host: tuple[str, int] = ("127.0.0.1", 0)
    reconsume_times: int = 0
    prepared_transaction_offset: int = 0
    queue_offset: int = -1
    physical_offset: int = -1
    store_timestamp: int = 0
    store_host: tuple[str, int] = ("127.0.0.1", 0)
    body_crc: int = 0
    stored_size: int = 0

    def get(self, name: str) -> str | None:
        """One property's value, None where it is not set."""
        value = get_property(self.properties, name.encode())
        return None if value is None else value.decode("utf-8", "replace")

    @property
    def tags(self) -> str | None:
        return self.get("TAGS")

    @property
    def keys(self) -> str | None:
        return self.get("KEYS")

    @property
    def message_id(self) -> str:
        """The offset id: store host and physical offset."""
        return message_id(host_bytes(self.store_host), self.physical_offset)

    @property
    def waits_for_store(self) -> bool:
        """Property WAIT, default true: whether the answer waits for flush and slave."""
        value = get_property(self.properties, WAIT_PROPERTY)
        return value is None or value.lower() == b"true"


# ---------------------------------------------------------------------- hashes and hosts

_POWERS: list[int] = [1]


def java_hash(data: bytes) -> int:
    """Return Java's ``String.hashCode`` of Latin-1/ASCII text, signed 32 bit.

    Text beyond ASCII hashes by UTF-16 units: use `java_hash_text`. About a microsecond for 40 characters: the sum of
    c[i]·31^(n-1-i) is taken in C, on unbounded integers, and cut to 32 bits once.
    """
    length = len(data)
    if length > len(_POWERS):
        _extend_powers(length)
    value: int = sum(map(mul, reversed(data), _POWERS)) & 0xFFFFFFFF
    return value - 0x100000000 if value & 0x80000000 else value


def _extend_powers(length: int) -> None:
    while len(_POWERS) < length:
        _POWERS.append(_POWERS[-1] * 31 & 0xFFFFFFFF)


def java_hash_text(text: str) -> int:
    """Return Java's ``String.hashCode`` of any text (UTF-16 code units)."""
    if text.isascii():
        return java_hash(text.encode())
    raw = text.encode("utf-16-be", "surrogatepass")
    value = 0
    for at in range(0, len(raw), 2):
        value = (value * 31 + (raw[at] << 8 | raw[at + 1])) & 0xFFFFFFFF
    return value - 0x100000000 if value & 0x80000000 else value


@lru_cache(maxsize=4096)
def tags_code(tags: bytes | str | None) -> int:
    """Return the ConsumeQueue's tags code: Java's hash of the tag, 0 for none. Takes the property's bytes or text."""
    if not tags:
        return 0
    return java_hash_text(tags if isinstance(tags, str) else tags.decode("utf-8", "replace"))


@lru_cache(maxsize=8192)
def host_bytes(host: tuple[str, int]) -> bytes:
    """Return a host as it is stored: 4 or 16 address bytes and the port as int32.

    Raises:
        MessageFormatError: not a numeric address.
    """
    address, port = host
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        return socket.inet_pton(family, address.partition("%")[0]) + (port & 0xFFFFFFFF).to_bytes(4, "big")
    except (OSError, ValueError):
        raise MessageFormatError(f"{address!r} is not a numeric IPv4 or IPv6 address") from None


def _host_of(raw: bytes) -> tuple[str, int]:
    family = socket.AF_INET if len(raw) == 8 else socket.AF_INET6
    return socket.inet_ntop(family, raw[:-4]), int.from_bytes(raw[-4:], "big", signed=True)


def body_crc(body: bytes) -> int:
    """RocketMQ's body CRC."""
    return crc32(body) & 0x7FFFFFFF


def message_id(store_host: bytes, physical_offset: int) -> str:
    """Return the offset id of a message: upper-case hex, 32 characters (56 for IPv6)."""
    return (store_host + physical_offset.to_bytes(8, "big")).hex().upper()


def message_ids(store_host: bytes, physical_offsets: Sequence[int]) -> str:
    """Return the offset ids of the messages of a batch, joined by commas."""
    ids = [store_host + offset for offset in map(_LONG.pack, physical_offsets)]
    return b"".join(ids).hex(",", len(store_host) + _LONG.size).upper()


def parse_message_id(text: str) -> tuple[tuple[str, int], int]:
    """Return (store host, physical offset) of an offset id.

    Raises:
        MessageFormatError: not 32 or 56 hex digits.
    """
    try:
        raw = bytes.fromhex(text)
    except ValueError:
        raw = b""
    if len(raw) not in {16, 28} or len(text) != 2 * len(raw):
        raise MessageFormatError(f"{text!r} is not a message id: 32 (IPv6: 56) hex digits are expected")
    return _host_of(raw[:-8]), int.from_bytes(raw[-8:], "big", signed=True)


# ---------------------------------------------------------------------- properties


def parse_properties(raw: bytes) -> dict[str, str]:
    """Return the properties as a table; parts without a separator are left out, as upstream does."""
    table: dict[str, str] = {}
    for part in raw.decode("utf-8", "replace").split("\x02"):
        name, separator, value = part.partition("\x01")
        if separator:
            table[name] = value
    return table


def format_properties(table: Mapping[str, str]) -> bytes:
    """Return properties as bytes, each ended by ``\\x02``."""
    return "".join([f"{name}\x01{value}\x02" for name, value in table.items()]).encode()


def get_property(raw: bytes, name: bytes) -> bytes | None:
    """Return one property's value without parsing the rest."""
    needle = name + b"\x01"
    at = raw.find(needle)
    while at > 0 and raw[at - 1] != 2:
        at = raw.find(needle, at + 1)
    if at < 0:
        return None
    start = at + len(needle)
    end = raw.find(b"\x02", start)
    return raw[start:] if end < 0 else raw[start:end]


def pop_properties(raw: bytes, *names: bytes) -> bytes:
    """Return the properties without the named ones."""
    parts = [part for part in raw.split(b"\x02") if part and part.partition(b"\x01")[0] not in names]
    return b"".join([part + b"\x02" for part in parts])


def set_property(raw: bytes, name: bytes, value: bytes) -> bytes:
    """Return the properties with one set or replaced."""
    kept = pop_properties(raw, name) if get_property(raw, name) is not None else raw
    if kept and not kept.endswith(b"\x02"):
        kept += b"\x02"
    return b"%b%b\x01%b\x02" % (kept, name, value)


# ---------------------------------------------------------------------- stored messages


def encode_message(message: Message) -> bytes:
    """Return the stored form. ``queue_offset`` and ``physical_offset`` below 0 are written as 0: they come later.

    The CRC is computed; bits 16 and 32 of ``sys_flag`` follow from the hosts.

    Raises:
        MessageFormatError: topic over 127 bytes, properties over 32767 bytes, or a host that is no address.
    """
    topic = message.topic.encode()
    properties = message.properties
    if properties.endswith(b"\0"):
        properties += b"\x02"  # the last byte tells a whole message from a torn one
    if len(topic) > MAX_TOPIC_BYTES:
        raise MessageFormatError(f"the topic has {len(topic)} bytes, the limit is {MAX_TOPIC_BYTES}")
    if len(properties) > MAX_PROPERTIES_BYTES:
        raise MessageFormatError(f"the properties have {len(properties)} bytes, the limit is {MAX_PROPERTIES_BYTES}")
    body = message.body
    born, stored = host_bytes(message.born_host), host_bytes(message.store_host)
    sys_flag = message.sys_flag & ~V6_FLAGS
    if len(born) > 8:
        sys_flag |= SysFlag.BORN_HOST_V6
    if len(stored) > 8:
        sys_flag |= SysFlag.STORE_HOST_V6
    total = 75 + len(born) + len(stored) + len(body) + len(topic) + len(properties)
    try:
        if total - len(body) - len(topic) - len(properties) == _V4_FIXED_BYTES:
            fixed = _V4_ALL.pack(
                total, MESSAGE_MAGIC, crc32(body) & 0x7FFFFFFF, message.queue_id, message.flag,
                max(0, message.queue_offset), max(0, message.physical_offset), sys_flag, message.born_timestamp, born,
                message.store_timestamp, stored, message.reconsume_times, message.prepared_transaction_offset,
                len(body),
            )  # fmt: skip
            tail = _SHORT.pack(len(properties))
            return b"".join((fixed, body, bytes((len(topic),)), topic, tail, properties))
        head = _HEAD.pack(
            total, MESSAGE_MAGIC, crc32(body) & 0x7FFFFFFF, message.queue_id, message.flag,
            max(0, message.queue_offset), max(0, message.physical_offset), sys_flag, message.born_timestamp,
        )  # fmt: skip
        return b"".join(
            (
                head,
                born,
                _LONG.pack(message.store_timestamp),
                stored,
                _TAIL.pack(message.reconsume_times, message.prepared_transaction_offset, len(body)),
                body,
                bytes((len(topic),)),
                topic,
                _SHORT.pack(len(properties)),
                properties,
            )
        )
    except error as problem:
        raise MessageFormatError(f"a number of the message does not fit its field: {problem}") from None


def decode_message(buffer: bytes, at: int = 0, *, check_crc: bool = True) -> Message:
    """Decode the stored message at ``at``.

    Raises:
        MessageFormatError: says what is wrong.
    """
    end = len(buffer)
    if at < 0 or end - at < _MIN_BYTES:
        raise MessageFormatError(f"{end - at} bytes are too few for a message")
    total, magic, crc, queue_id, flag, queue_offset, physical, sys_flag, born_at = _HEAD.unpack_from(buffer, at)
    if magic != MESSAGE_MAGIC:
        raise MessageFormatError(f"magic {magic:#010x} is not a message's")
    if not _MIN_BYTES <= total <= end - at:
        raise MessageFormatError(f"total size {total} of a message within {end - at} bytes")
    end = at + total
    place = at + 48
    born_bytes = 20 if sys_flag & SysFlag.BORN_HOST_V6 else 8
    born = buffer[place : place + born_bytes]
    place += born_bytes
    store_bytes = 20 if sys_flag & SysFlag.STORE_HOST_V6 else 8
    if place + 8 + store_bytes + _TAIL.size + 3 > end:
        raise MessageFormatError("the message ends within its hosts")
    store_at = int.from_bytes(buffer[place : place + 8], "big", signed=True)
    place += 8
    stored = buffer[place : place + store_bytes]
    place += store_bytes
    reconsume, prepared, body_length = _TAIL.unpack_from(buffer, place)
    place += _TAIL.size
    if body_length < 0 or place + body_length + 3 > end:
        raise MessageFormatError(f"body length {body_length} exceeds the message")
    body = bytes(buffer[place : place + body_length])
    place += body_length
    topic_length = buffer[place]
    topic = buffer[place + 1 : place + 1 + topic_length]
    place += 1 + topic_length
    if place + 2 > end or place + 2 + (length := _SHORT.unpack_from(buffer, place)[0]) != end or length < 0:
        raise MessageFormatError("topic and properties do not end where the message does")
    if check_crc and crc32(body) & 0x7FFFFFFF != crc:
        raise MessageFormatError("body CRC mismatch")
    return Message(
        bytes(topic).decode("utf-8", "replace"), body, queue_id, bytes(buffer[place + 2 : end]), flag, sys_flag,
        born_at, _host_of(bytes(born)), reconsume, prepared, queue_offset, physical, store_at,
        _host_of(bytes(stored)), crc, total,
    )  # fmt: skip


def iter_messages(buffer: bytes) -> Iterator[Message]:
    """Decode messages that stand back to back (a pull response's body).

    Raises:
        MessageFormatError: at the first that is none.
    """
    at = 0
    while at < len(buffer):
        message = decode_message(buffer, at)
        yield message
        at += message.stored_size


# ---------------------------------------------------------------------- the client's batch encoding

BatchItem = tuple[int, bytes, bytes]
"""(flag, body, properties)."""


def decode_batch(data: bytes) -> list[BatchItem]:
    """Split a batch send's body into its messages.

    Raises:
        MessageFormatError: lengths that do not add up, or no message at all.
    """
    items: list[BatchItem] = []
    at = 0
    end = len(data)
    unpack = _BATCH_HEAD.unpack_from
    while at < end:
        if end - at < BATCH_HEADER_BYTES + 2:
            raise MessageFormatError(f"batch item {len(items)}: {end - at} bytes are too few")
        total, _, _, flag, body_length = unpack(data, at)
        body_at = at + BATCH_HEADER_BYTES
        properties_at = body_at + body_length + 2
        if body_length < 0 or properties_at > end:
            raise MessageFormatError(f"batch item {len(items)}: body length {body_length} exceeds the batch")
        properties_end = properties_at + (data[properties_at - 2] << 8 | data[properties_at - 1])
        if properties_end > end or properties_end != at + total:
            raise MessageFormatError(f"batch item {len(items)}: total size {total} does not match its parts")
        items.append((flag, data[body_at : properties_at - 2], data[properties_at:properties_end]))
        at = properties_end
    if not items:
        raise MessageFormatError("an empty batch")
    return items


def batch_item(flag: int, body: bytes, properties: bytes) -> bytes:
    """Encode one message of a batch as clients do (magic and CRC zero)."""
    total = BATCH_HEADER_BYTES + len(body) + 2 + len(properties)
    return b"".join(
        (_BATCH_HEAD.pack(total, 0, 0, flag, len(body)), body, len(properties).to_bytes(2, "big"), properties)
    )


def join_batch(items: Sequence[BatchItem]) -> bytes:
    """Encode a whole batch."""
    return b"".join([batch_item(*item) for item in items])
