"""Turning a batch into stored messages: the parts that all of them share are packed once."""

from __future__ import annotations

from collections.abc import Sequence
from struct import Struct, error
from typing import Final
from zlib import crc32

from broker_adapter.message import (
    MAX_PROPERTIES_BYTES,
    MESSAGE_MAGIC,
    BatchItem,
    Message,
    MessageFormatError,
    SysFlag,
    host_bytes,
)

__all__ = ["batch_messages"]

_HEAD: Final = Struct(">iIiii")
_SYS_BORN: Final = Struct(">iq")
_LONG: Final = Struct(">q")
_TAIL: Final = Struct(">iq")
_INT: Final = Struct(">i")
_SHORT: Final = Struct(">h")


def batch_messages(batch: Message, items: Sequence[BatchItem], store_host: bytes) -> list[bytes]:
    """Return the stored messages of a batch; both offsets are 0 and come later.

    Topic, queue, hosts and times are the batch's; so are its properties, which go behind each message's own, as
    upstream does since 4.9.

    Raises:
        MessageFormatError: properties over 32767 bytes, or a number that does not fit its field.
    """
    topic = batch.topic.encode()
    shared = batch.properties
    born = host_bytes(batch.born_host)
    sys_flag = batch.sys_flag & ~(SysFlag.BORN_HOST_V6 | SysFlag.STORE_HOST_V6)
    sys_flag |= (SysFlag.BORN_HOST_V6 if len(born) > 8 else 0) | (SysFlag.STORE_HOST_V6 if len(store_host) > 8 else 0)
    try:
        middle = b"".join(
            (
                bytes(16),
                _SYS_BORN.pack(sys_flag, batch.born_timestamp),
                born,
                _LONG.pack(batch.store_timestamp),
                store_host,
                _TAIL.pack(batch.reconsume_times, batch.prepared_transaction_offset),
            )
        )
        topic_part = bytes((len(topic),)) + topic
        queue_id = batch.queue_id
        fixed = 20 + len(middle) + 4 + len(topic_part) + 2
        pack_head = _HEAD.pack
        body_length = length = -1  # of the message before: mostly the next one's, too
        bodies: list[bytes] = []
        for flag, body, own in items:
            properties = own
            if shared:
                separator = b"\x02" if own and not own.endswith(b"\x02") else b""
                properties = own + separator + shared
            if properties.endswith(b"\0"):
                properties += b"\x02"  # as in encode_message
            if len(properties) != length:
                length = len(properties)
                if length > MAX_PROPERTIES_BYTES:
                    raise MessageFormatError(f"the properties of a message have {length} bytes")
                before_properties = topic_part + _SHORT.pack(length)
            if len(body) != body_length:
                body_length = len(body)
                before_body = middle + _INT.pack(body_length)
            head = pack_head(fixed + body_length + length, MESSAGE_MAGIC, crc32(body) & 0x7FFFFFFF, queue_id, flag)
            bodies.append(b"".join((head, before_body, body, before_properties, properties)))
        return bodies
    except error as problem:
        raise MessageFormatError(f"a number of the batch does not fit its field: {problem}") from None
