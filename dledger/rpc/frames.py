"""Frames over TCP: what nodes speak to each other, and clients' append streams to nodes, where nothing forbids it.

A message of a gRPC stream costs each end a hand-over between threads and five times the CPU of a frame (400 bytes there
and back: 421 µs and 62 µs of CPU a message, against 66 µs and 12 µs). So the conversation between two nodes goes over a
plain connection: four bytes of length (big endian), then a message, both ways. The bytes of a message are the same as
on the gRPC stream, and so is all that is promised of it: nothing. What does not get through is lost, and the core
sends again. Of a client's batches a prefix gets through, as on its gRPC stream.

A connection that has nothing to say sends an empty frame every now and then. One that hears nothing is closed: it hangs
on a line that has died without a word.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Final, cast

from dledger.rpc.options import NetworkOptions

__all__ = ["CLIENT_PREFACE", "PEER_PREFACE", "PREFACES", "FrameConnection"]

PEER_PREFACE: Final = b"DLPEER1\n"
CLIENT_PREFACE: Final = b"DLCLNT1\n"
PREFACES: Final = (PEER_PREFACE, CLIENT_PREFACE)
"""The first bytes of the side that dials: a node, or a client. No HTTP/2 client begins so."""

_PREFACE_BYTES: Final = 8

_LENGTH_BYTES: Final = 4
_JOINED_BYTES: Final = 16 * 1024
"""Below this, copying a message behind its length is cheaper than handing over two pieces."""

_QUIET_BUFFER_BYTES: Final = 4 * 1024
_BUSY_BUFFER_BYTES: Final = 64 * 1024
"""For what comes in: the smaller at first and while the line is silent, the larger once that was full. A larger frame
takes what it needs."""

_EMPTY: Final = bytes(_LENGTH_BYTES)
_CHECKS_A_PERIOD: Final = 2


class FrameConnection(asyncio.BufferedProtocol):
    """One connection. ``received(connection, bytes)`` gets each message, ``lost(connection, reason)`` the end, once.

    ``accepted``: the other side dialled, so a preface comes first and is in ``preface`` then. ``limit`` is the largest
    message that is taken, in bytes; the owner raises it once it knows who speaks. ``on_writable(bool)`` hears when too
    much waits to be sent, and when there is room again. Everything happens on the event loop.
    """

    def __init__(
        self,
        options: NetworkOptions,
        *,
        accepted: bool,
        limit: int,
        received: Callable[[FrameConnection, bytes], None],
        lost: Callable[[FrameConnection, str], None],
        made: Callable[[FrameConnection], None] | None = None,
    ) -> None:
        self.limit = limit
        self.dropped_count = 0
        self.preface = b""
        self.on_writable: Callable[[bool], None] | None = None
        self._options = options
        self._received = received
        self._lost = lost
        self._made = made
        self._transport: asyncio.Transport | None = None
        self._reason = ""
        self._closed = self._was_closed = False
        self._awaits_preface = accepted
        self._paused = False
        self._gives_up = True
        self._buffer = memoryview(bytearray(_QUIET_BUFFER_BYTES))  # what comes in; handed over as copies
        self._have = 0  # so many of them, from the beginning on, are not handed over yet
        self._spoke = self._heard = False
        self._silent_checks = 0
        self._timer: asyncio.TimerHandle | None = None

    # -- out ----------------------------------------------------------------------------------------------------------

    def __len__(self) -> int:
        """Messages that wait. They are not counted once they are bytes: 1 where any wait."""
        return 1 if self.queued_bytes else 0

    @property
    def is_made(self) -> bool:
        """Whether there ever was a connection; then ``lost`` is called, sooner or later."""
        return self._transport is not None

    @property
    def queued_bytes(self) -> int:
        """Bytes that the kernel has not taken yet."""
        return 0 if self._transport is None or self._closed else self._transport.get_write_buffer_size()

    def put(self, data: bytes) -> bool:
        """Send ``data``; False (and it is dropped) where the connection is closed or too much waits already."""
        transport = self._transport
        if (
            transport is None
            or self._closed
            or transport.get_write_buffer_size() + len(data) > self._options.max_queue_bytes
        ):
            self.dropped_count += 1
            return False
        self._spoke = True
        length = len(data).to_bytes(_LENGTH_BYTES, "big")
        if len(data) < _JOINED_BYTES:
            transport.write(length + data)
        else:
            transport.writelines((length, data))
        return True

    def put_all(self, messages: Sequence[bytes]) -> bool:
        """As `put`, several in one write: all of them or, returning False, none."""
        transport = self._transport
        total = sum(map(len, messages)) + _LENGTH_BYTES * len(messages)
        if transport is None or self._closed or self._is_full(transport, total):
            self.dropped_count += len(messages)
            return False
        self._spoke = True
        parts = [part for data in messages for part in (len(data).to_bytes(_LENGTH_BYTES, "big"), data)]
        transport.write(b"".join(parts))
        return True

    def _is_full(self, transport: asyncio.Transport, more: int) -> bool:
        return transport.get_write_buffer_size() + more > self._options.max_queue_bytes

    def send_preface(self, preface: bytes = PEER_PREFACE) -> None:
        """The first thing that the side that dialled says."""
        if self._transport is not None:
            self._transport.write(preface)

    def pause_writing(self) -> None:
        if self.on_writable is not None:
            self.on_writable(False)

    def resume_writing(self) -> None:
        if self.on_writable is not None:
            self.on_writable(True)

    def close(self, reason: str = "closed") -> None:
        """Say what waits, then end. The first reason given is the one that ``lost`` hears. Twice is fine."""
        self._end(reason, abort=False)

    def abort(self, reason: str) -> None:
        """End at once."""
        self._end(reason, abort=True)

    def _end(self, reason: str, *, abort: bool) -> None:
        if self._closed:
            return
        self._closed = True
        self._reason = reason
        if self._transport is not None:
            if abort:
                self._transport.abort()
                if self._timer is not None:
                    self._timer.cancel()
            else:
                self._transport.close()

    def hand_over(
        self,
        *,
        received: Callable[[FrameConnection, bytes], None],
        lost: Callable[[FrameConnection, str], None],
        on_writable: Callable[[bool], None],
    ) -> None:
        """Give the connection another owner, who learns otherwise when the line is dead: silence ends it no more."""
        self._received = received
        self._lost = lost
        self.on_writable = on_writable
        self._gives_up = False

    def pause(self) -> None:
        """Hand over nothing more and read nothing more, until `resume`. What was read stays where it is."""
        if not self._paused:
            self._paused = True
            if self._transport is not None and not self._transport.is_closing():
                self._transport.pause_reading()

    def resume(self) -> None:
        """Go on after `pause`, with what has been kept. Not to be called from ``received``."""
        if not self._paused:
            return
        self._paused = False
        if self._closed or self._transport is None or self._transport.is_closing():
            return
        self._transport.resume_reading()
        self._take_frames()

    # -- asyncio.BufferedProtocol -------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        if self._closed:
            self._transport.abort()
            return
        self._arm()
        if self._made is not None:
            self._made(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._closed = True
        self._have = 0
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._lost(self, self._reason or (f"connection lost: {exc}" if exc is not None else "closed by the peer"))

    def get_buffer(self, sizehint: int) -> memoryview:
        """Where the next bytes go: behind those that are the beginning of a frame. Never empty."""
        if self._have == len(self._buffer):
            self._make_room(2 * self._have)
        return self._buffer[self._have :]

    def buffer_updated(self, nbytes: int) -> None:
        self._have += nbytes
        self._heard = True
        self._take_frames()

    def _take_frames(self) -> None:
        """Hand over every whole frame, keep what is left at the buffer's beginning."""
        buffer, end = self._buffer, self._have
        at = need = 0
        if self._awaits_preface and end >= _PREFACE_BYTES:
            self.preface = bytes(buffer[:_PREFACE_BYTES])
            if self.preface not in PREFACES:
                self.abort("a stranger: the connection begins neither as a peer's does nor as a client's")
            self._awaits_preface = False
            at = _PREFACE_BYTES
        while not (self._closed or self._paused or self._awaits_preface):
            start = at + _LENGTH_BYTES
            if start > end:
                break
            size = int.from_bytes(buffer[at:start], "big")
            if size > self.limit:
                self.abort(f"a frame of {size} bytes; {self.limit} are taken")
                break
            if start + size > end:
                need = _LENGTH_BYTES + size
                break
            at = start + size
            if size:
                self._received(self, bytes(buffer[start:at]))
        self._have = 0 if self._closed else end - at
        if end == len(buffer):  # more may be on its way than there was room for
            need = max(need, _BUSY_BUFFER_BYTES)
        if need > len(buffer):
            self._make_room(need, at)
        elif at and self._have:
            buffer[: self._have] = buffer[at:end]

    def _make_room(self, size: int, at: int = 0) -> None:
        """Take a buffer of ``size`` bytes; what is kept begins at ``at`` in the old one."""
        larger = memoryview(bytearray(size))
        larger[: self._have] = self._buffer[at : at + self._have]
        self._buffer = larger

    # -- silence ------------------------------------------------------------------------------------------------------

    def _arm(self) -> None:
        loop = asyncio.get_running_loop()
        period_s = self._options.keepalive_time_ms / 1000 / _CHECKS_A_PERIOD
        # At a multiple of the period, so that all connections of a node, and their other ends on the same machine, are
        # looked at in one turn: waking up is what costs an idle node.
        due_s = (loop.time() // period_s + 1) * period_s
        self._timer = loop.call_at(due_s if due_s - loop.time() > period_s / 2 else due_s + period_s, self._check)

    def _check(self) -> None:
        """Speak if nothing was said lately, and give up if nothing was heard for too long.

        Counted in checks, not in seconds: a process that was stopped for a while is late for one check, not for many.
        """
        if self._transport is None:
            return
        if self._closed:
            self._end_overdue(self._transport)
            return
        # Whoever reads nothing hears nothing, and is not to blame the other side for it.
        is_deaf = self._paused or not self._gives_up
        self._silent_checks = 0 if self._heard or is_deaf else self._silent_checks + 1
        options = self._options
        silent_ms = self._silent_checks * options.keepalive_time_ms / _CHECKS_A_PERIOD
        if silent_ms >= options.keepalive_time_ms + options.keepalive_timeout_ms:
            self.abort(f"nothing was heard for {silent_ms / 1000:g} s")
            return
        if not self._spoke and not self._is_full(self._transport, _LENGTH_BYTES):
            self._transport.write(_EMPTY)
        if not self._heard and not self._have and len(self._buffer) > _QUIET_BUFFER_BYTES:
            self._buffer = memoryview(bytearray(_QUIET_BUFFER_BYTES))
        self._spoke = self._heard = False
        self._arm()

    def _end_overdue(self, transport: asyncio.Transport) -> None:
        """What waits at the end is not taken by the other side: it gets one more period, then it is dropped."""
        if self._was_closed:
            transport.abort()
        else:
            self._was_closed = True
            self._arm()
