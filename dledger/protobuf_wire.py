"""How protobuf lies on the wire, as far as it is read and written here without the library.

The library copies a long field of bytes three times when it serialises a message with a message in it, twice when it
parses that, and entries that a node catches up with are hundreds of megabytes. Loading it takes four times as long as
Python itself, which a command that is over at once does not have. What is written and read here is plain protobuf, to
be parsed by anybody: https://protobuf.dev/programming-guides/encoding/
"""

from __future__ import annotations

from typing import Final

__all__ = ["VARINT", "WireError", "bytes_head", "join_last_bytes", "read_field", "read_varint", "split_last_bytes"]

VARINT: Final = 0
_BYTES: Final = 2
_FIXED_BYTES: Final = {1: 8, 5: 4}
_MAX_VARINT_BYTES: Final = 10


class WireError(ValueError):
    """The bytes are no message of this kind."""


def _varint(number: int) -> bytes:
    parts = bytearray()
    while number > 0x7F:
        parts.append(number & 0x7F | 0x80)
        number >>= 7
    parts.append(number)
    return bytes(parts)


def bytes_head(field: int, length: int) -> bytes:
    """Return what stands before the bytes (or text, or message) of ``field``. The order of fields is free."""
    return _varint(field << 3 | _BYTES) + _varint(length)


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
    if kind == _BYTES:
        length, begin = read_varint(data, begin)
    elif kind in _FIXED_BYTES:
        length = _FIXED_BYTES[kind]
    else:
        raise WireError(f"wire type {kind}")
    if begin + length > len(data):
        raise WireError("a field is cut off")
    return key >> 3, kind, begin, begin + length


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
            if (number, kind) != (field, _BYTES):
                raise WireError("another field is the last")
            return at, begin
        at = end
