"""How protobuf lies on the wire, as far as it is read and written here without the library.

Where a message is one entry, the library is the dearest part of an append: it reaches far for little, and finds none of
it in the processor's caches. It copies a long field of bytes three times when it serialises a message with a message in
it, twice when it parses that, and entries that a node catches up with are hundreds of megabytes. Loading it takes four
times as long as Python itself, which a command that is over at once does not have. What is written and read here is
plain protobuf, to be parsed by anybody: https://protobuf.dev/programming-guides/encoding/
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

__all__ = [
    "BYTES",
    "FIXED32",
    "VARINT",
    "WireError",
    "bytes_head",
    "join_last_bytes",
    "kinds",
    "put_varint",
    "read_field",
    "read_message",
    "read_varint",
    "split_last_bytes",
]

VARINT: Final = 0
BYTES: Final = 2
FIXED32: Final = 5
_FIXED_BYTES: Final = {1: 8, 5: 4}
_MAX_VARINT_BYTES: Final = 10
_NO_KIND: Final = 0xFF


class WireError(ValueError):
    """The bytes are no message of this kind."""


_SMALL: Final = [bytes((number,)) for number in range(0x80)]
_MINUS_ONE: Final = b"\xff" * 9 + b"\x01"


def put_varint(number: int) -> bytes:
    """Return a number of 64 bits as a varint; negative ones as protobuf's int64 has them."""
    if number < 0x80:
        if number >= 0:
            return _SMALL[number]
        if number == -1:
            return _MINUS_ONE
        number += 1 << 64
    if number < 0x4000:
        return bytes((number & 0x7F | 0x80, number >> 7))
    parts = bytearray()
    while number > 0x7F:
        parts.append(number & 0x7F | 0x80)
        number >>= 7
    parts.append(number)
    return bytes(parts)


def bytes_head(field: int, length: int) -> bytes:
    """Return what stands before the bytes (or text, or message) of ``field``. The order of fields is free."""
    return put_varint(field << 3 | BYTES) + put_varint(length)


def read_varint(data: bytes, at: int) -> tuple[int, int]:
    """Return a number, unsigned, of 64 bits, and where it ends. Raises `WireError` where there is none."""
    number = shift = 0
    for end, byte in enumerate(data[at : at + _MAX_VARINT_BYTES], at + 1):
        number |= (byte & 0x7F) << shift
        if byte < 0x80:
            return number & ((1 << 64) - 1), end
        shift += 7
    raise WireError("a number is cut off")


def read_field(data: bytes, at: int) -> tuple[int, int, int, int]:
    """Return a field's number and wire type, and where its value begins and ends.

    Raises:
        WireError: there is none, or not the whole of it.
    """
    key, begin = read_varint(data, at)
    kind = key & 7
    if kind == VARINT:
        return key >> 3, kind, begin, read_varint(data, begin)[1]
    if kind == BYTES:
        length, begin = read_varint(data, begin)
    elif kind in _FIXED_BYTES:
        length = _FIXED_BYTES[kind]
    else:
        raise WireError(f"wire type {kind}")
    if begin + length > len(data):
        raise WireError("a field is cut off")
    return key >> 3, kind, begin, begin + length


def kinds(fields: Mapping[int, int]) -> bytes:
    """Return what `read_message` wants to know of a message: the wire type of each field."""
    return bytes([fields.get(number, _NO_KIND) for number in range(max(fields) + 1)])


def read_message(data: bytes, at: int, kinds: bytes) -> list[Any] | None:
    """Return the values of the fields by number, None for what is missing, from ``at`` to the end of ``data``.

    None for the whole where it is not as plain as that: fields that are unknown, of another type or there twice,
    numbers below -1, or no message at all. Then the library is to say what it is.
    """
    values: list[Any] = [None] * len(kinds)
    end = len(data)
    try:
        while at < end:
            key = data[at]
            at += 1
            number, kind = key >> 3, key & 7
            if key > 0x7F or kinds[number] != kind or values[number] is not None:
                return None
            if kind == FIXED32:
                values[number] = int.from_bytes(data[at : at + 4], "little")
                at += 4
                continue
            byte = data[at]
            at += 1
            value = byte & 0x7F
            shift = 7
            while byte > 0x7F:
                if byte == 0xFF and shift == 7 and data.startswith(_MINUS_ONE, at - 1):
                    at, value = at + len(_MINUS_ONE) - 1, -1
                    break
                if shift > 63:  # a number without an end: not to be looked for
                    return None
                byte = data[at]
                at += 1
                value |= (byte & 0x7F) << shift
                shift += 7
            if value >> 63 > 0:
                return None
            if kind == BYTES:
                if value < 0:
                    return None
                values[number] = data[at : at + value]
                at += value
            else:
                values[number] = value
    except IndexError:
        return None
    return values if at == end else None


def join_last_bytes(outer: bytes, outer_field: int, inner: bytes, inner_field: int, data: bytes) -> bytes:
    """Return the message ``outer``, with ``inner`` as one more field, which has ``data`` as one more field."""
    head = inner + bytes_head(inner_field, len(data))
    return b"".join((outer, bytes_head(outer_field, len(head) + len(data)), head, data))


def split_last_bytes(message: bytes, outer_field: int, inner_field: int) -> tuple[bytes, bytes, bytes] | None:
    """Undo `join_last_bytes`: (outer, inner, data); None where the message was not made so, or is none."""
    try:
        outer_end, begin = _last_field(message, 0, outer_field)
        inner_end, data_at = _last_field(message, begin, inner_field)
    except WireError:
        return None
    return message[:outer_end], message[begin:inner_end], message[data_at:]


def _last_field(message: bytes, at: int, field: int) -> tuple[int, int]:
    """Return where the last field begins and where its bytes do. Raises `WireError` if it is not ``field``."""
    while True:
        number, kind, begin, end = read_field(message, at)
        if end == len(message):
            if (number, kind) != (field, BYTES):
                raise WireError("another field is the last")
            return at, begin
        at = end
