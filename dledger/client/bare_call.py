"""One gRPC call over one plain connection, without gRPC.

A command that asks three nodes one question is over in milliseconds, but loading gRPC (and asyncio with it) takes eight
times as long as starting Python. The few frames of HTTP/2 that a unary call needs are below (RFC 9113; header fields by
RFC 7541, never compressed). Whoever gets anything but a plain answer (`CallError`) asks again through gRPC, which knows
the rest: TLS, errors in trailers, compressed messages.
"""

from __future__ import annotations

import socket
import struct
import time
from typing import Final

from dledger.version import VERSION

__all__ = ["CallError", "unary_call"]

_PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_DATA, _HEADERS, _RST_STREAM, _SETTINGS, _PING, _GOAWAY, _WINDOW_UPDATE = 0, 1, 3, 4, 6, 7, 8
_ACK: Final = 1
_END_STREAM: Final = 1
_END_HEADERS: Final = 4
_PADDED: Final = 8
_NO_PUSH: Final = (2, 0)
_INITIAL_WINDOW: Final = 4
_MAX_ANSWER_BYTES: Final = 8 * 1024 * 1024
"""As much as other clients take (``NetworkOptions.max_message_bytes``); the windows of flow control let it through."""
_DEFAULT_WINDOW_BYTES: Final = 65_535
_FRAME_LIMIT_BYTES: Final = 16_384
"""What both sides may send in one frame while nobody has allowed more, and we do not."""

# Places in HPACK's static table (RFC 7541, appendix A).
_METHOD_POST, _SCHEME_HTTP, _PATH, _AUTHORITY, _CONTENT_TYPE, _USER_AGENT, _AUTHORIZATION = 3, 6, 4, 1, 31, 58, 23
_INDEXED, _LITERAL, _NEVER_INDEXED = (0x80, 7), (0x00, 4), (0x10, 4)


class CallError(Exception):
    """There is no plain answer; the message says what came instead."""


def unary_call(address: str, path: str, request: bytes, timeout_s: float, token: str | None = None) -> bytes:
    """Return the answer of one call, as bytes of its message.

    Args:
        address: ``host:port``, an IPv6 host in brackets.
        path: ``/package.Service/Method``.
        request: the bytes of the request.
        timeout_s: seconds for all of it, the connection included; looking up a host's name is not limited.
        token: sent as bearer token.

    Raises:
        TimeoutError: not answered in time. OSError: not reached, or the connection broke.
        CallError: an answer that is not a plain one.
    """
    deadline = time.monotonic() + timeout_s
    host, _, port = address.rpartition(":")
    # As bytes: text would be encoded as an international name, by a module that takes longer to load than all of this.
    name = host.strip("[]").encode("ascii" if host.isascii() else "idna")
    with socket.create_connection((name, int(port)), timeout=timeout_s) as connection:  # type: ignore[arg-type]
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.sendall(_opening(address, path, request, timeout_s, token))
        return _Answer(connection, deadline).message()


def _opening(address: str, path: str, request: bytes, timeout_s: float, token: str | None) -> bytes:
    """Return all that a client says: preface, settings, room for the answer, the request on stream 1."""
    if len(request) + 5 > _FRAME_LIMIT_BYTES:
        raise CallError(f"a request of {len(request)} bytes")
    settings = struct.pack(">HIHI", *_NO_PUSH, _INITIAL_WINDOW, _MAX_ANSWER_BYTES)
    room = struct.pack(">I", _MAX_ANSWER_BYTES - _DEFAULT_WINDOW_BYTES)
    fields = [
        _integer(_METHOD_POST, *_INDEXED),
        _integer(_SCHEME_HTTP, *_INDEXED),
        _field(_PATH, path),
        _field(_AUTHORITY, address),
        b"\0" + _text("te") + _text("trailers"),
        _field(_CONTENT_TYPE, "application/grpc"),
        _field(_USER_AGENT, f"dledger/{VERSION}"),
        b"\0" + _text("grpc-timeout") + _text(f"{max(int(timeout_s * 1000), 1)}m"),
    ]
    if token is not None:
        fields.append(_integer(_AUTHORIZATION, *_NEVER_INDEXED) + _text(f"Bearer {token}"))
    return b"".join(
        [
            _PREFACE,
            _frame(_SETTINGS, 0, 0, settings),
            _frame(_WINDOW_UPDATE, 0, 0, room),
            _frame(_HEADERS, _END_HEADERS, 1, b"".join(fields)),
            _frame(_DATA, _END_STREAM, 1, struct.pack(">BI", 0, len(request)) + request),
        ]
    )


def _frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return len(payload).to_bytes(3, "big") + struct.pack(">BBI", kind, flags, stream) + payload


def _field(name: int, value: str) -> bytes:
    return _integer(name, *_LITERAL) + _text(value)


def _text(value: str) -> bytes:
    data = value.encode("ascii", "replace")
    return _integer(len(data), 0x00, 7) + data


def _integer(value: int, pattern: int, prefix_bits: int) -> bytes:
    """Return HPACK's form of an integer behind the bits of ``pattern`` (RFC 7541 §5.1)."""
    limit = (1 << prefix_bits) - 1
    if value < limit:
        return bytes([pattern | value])
    out = bytearray([pattern | limit])
    value -= limit
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


class _Answer:
    """Frames of one connection until the call on stream 1 has ended."""

    def __init__(self, connection: socket.socket, deadline: float) -> None:
        self._connection = connection
        self._deadline = deadline
        self._body = bytearray()

    def message(self) -> bytes:
        """Return the message of the answer."""
        while not self._take_frame():
            if len(self._body) > _MAX_ANSWER_BYTES:
                raise CallError(f"an answer of more than {_MAX_ANSWER_BYTES} bytes")
        if len(self._body) < 5:
            raise CallError("an answer without a message")
        compressed, length = struct.unpack_from(">BI", self._body)
        if compressed or len(self._body) != 5 + length:
            raise CallError("a compressed or a broken message")
        return bytes(self._body[5:])

    def _take_frame(self) -> bool:
        """Read one frame; whether it was the last of the call."""
        head = self._read(9)
        length, kind, flags = int.from_bytes(head[:3], "big"), head[3], head[4]
        stream = int.from_bytes(head[5:], "big") & 0x7FFFFFFF
        if length > _FRAME_LIMIT_BYTES:
            raise CallError("no HTTP/2, or a frame larger than allowed")
        payload = self._read(length)
        if kind in {_SETTINGS, _PING} and not flags & _ACK:
            self._connection.sendall(_frame(kind, _ACK, 0, payload if kind == _PING else b""))
        elif kind in {_RST_STREAM, _GOAWAY}:
            raise CallError(f"the call was ended (frame of type {kind})")
        elif kind == _DATA and stream == 1:
            self._body += payload[1 : length - payload[0]] if flags & _PADDED else payload
        return kind in {_DATA, _HEADERS} and stream == 1 and bool(flags & _END_STREAM)

    def _read(self, count: int) -> bytes:
        data = bytearray()
        while len(data) < count:
            left = self._deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError("no answer in time")
            self._connection.settimeout(left)
            part = self._connection.recv(count - len(data))
            if not part:
                raise CallError("the connection was closed")
            data += part
        return bytes(data)
