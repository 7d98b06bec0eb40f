"""The long bytes field of a protobuf message, put in and taken out without the copies that the library makes.

To serialise a message with a message in it copies a bytes field three times, to parse it twice, and entries that a
node catches up with are hundreds of megabytes. What is written and read here is plain protobuf, to be parsed by
anybody: a field of bytes at the end of the message that is the last field of another.
https://protobuf.dev/programming-guides/encoding/
"""

from __future__ import annotations

from typing import Final

__all__ = ["join_last_bytes", "split_last_bytes"]

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_MAX_VARINT_BYTES: Final = 10


def _varint(number: int) -> bytes:
    parts = bytearray()
    while number > 0x7F:
        parts.append(number & 0x7F | 0x80)
        number >>= 7
    parts.append(number)
    return bytes(parts)


def _read_varint(data: bytes, at: int) -> tuple[int, int]:
    """Return a number and where it ends. Raises `ValueError` where there is none."""
    number = 0
    for place in range(_MAX_VARINT_BYTES):
        byte = data[at + place] if at + place < len(data) else 0x80
        number |= (byte & 0x7F) << (7 * place)
        if byte < 0x80:
            return number, at + place + 1
    raise ValueError("no varint")


def join_last_bytes(outer: bytes, outer_field: int, inner: bytes, inner_field: int, data: bytes) -> bytes:
    """Return the message ``outer``, with ``inner`` as one more field, which has ``data`` as one more field."""
    head = inner + _varint(inner_field << 3 | _BYTES) + _varint(len(data))
    return b"".join((outer, _varint(outer_field << 3 | _BYTES), _varint(len(head) + len(data)), head, data))


def split_last_bytes(message: bytes, outer_field: int, inner_field: int) -> tuple[bytes, bytes, bytes] | None:
    """Undo `join_last_bytes`: (outer, inner, data); None where the message was not made so, or is none."""
    try:
        outer_end, begin = _last_field(message, 0, outer_field)
        inner_end, data_at = _last_field(message, begin, inner_field)
    except ValueError:
        return None
    return message[:outer_end], message[begin:inner_end], message[data_at:]


def _last_field(message: bytes, at: int, field: int) -> tuple[int, int]:
    """Return where the last field begins and where its bytes do. Raises `ValueError` if it is not ``field``."""
    while True:
        key, value_at = _read_varint(message, at)
        kind = key & 7
        if kind == _VARINT:
            _, end = _read_varint(message, value_at)
        elif kind == _BYTES:
            length, value_at = _read_varint(message, value_at)
            end = value_at + length
            if end == len(message) and key >> 3 == field:
                return at, value_at
        elif kind in (_FIXED32, _FIXED64):
            end = value_at + (4 if kind == _FIXED32 else 8)
        else:
            raise ValueError("a kind of field that is not ours")
        if end >= len(message):
            raise ValueError("another field is the last")
        at = end
