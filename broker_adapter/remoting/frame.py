"""Cutting a byte stream into frames, without trusting a length in it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final

from broker_adapter.remoting.errors import FrameError

__all__ = ["DEFAULT_MAX_FRAME_BYTES", "FrameDecoder"]

DEFAULT_MAX_FRAME_BYTES: Final = 16 * 1024 * 1024
"""Upstream's limit (``com.rocketmq.remoting.frameMaxLength``): the length field and all that follows."""

_MIN_LENGTH: Final = 4


class FrameDecoder:
    """Collects bytes and hands out whole frames (what stands after the length field).

    Memory is bounded by one frame and one read. Each byte is copied at most three times however small the pieces are.
    """

    __slots__ = ("_buffer", "_max_frame_bytes", "_need")

    def __init__(self, max_frame_bytes: int = DEFAULT_MAX_FRAME_BYTES) -> None:
        self._buffer = bytearray()
        self._max_frame_bytes = max_frame_bytes
        self._need = 4
        # Invariant: _need is how long _buffer must be before another frame can be complete.

    @property
    def buffered_bytes(self) -> int:
        """Bytes of a frame that is not complete yet."""
        return len(self._buffer)

    def feed(self, data: bytes) -> Iterable[bytes]:
        """Take what was read and hand out the frames that are now complete. Iterate to the end.

        Raises:
            FrameError: a length no frame can have (after the good frames before it). The decoder is of no use then.
        """
        size = len(data)
        # Most reads are one whole frame.
        if (
            not self._buffer
            and _MIN_LENGTH + 4 <= size <= self._max_frame_bytes
            and int.from_bytes(data[:4], "big") == size - 4
        ):
            return (data[4:],)
        return self._cut(data)

    def _cut(self, data: bytes) -> Iterator[bytes]:
        if self._buffer:
            self._buffer += data
            if len(self._buffer) < self._need:
                return
            data = bytes(self._buffer)
            self._buffer.clear()
        at, size = 0, len(data)
        need = 4
        while size - at >= 4:
            length = int.from_bytes(data[at : at + 4], "big", signed=True)
            if length < _MIN_LENGTH or length + 4 > self._max_frame_bytes:
                raise FrameError(f"a frame of {length} bytes; frames have {_MIN_LENGTH} to {self._max_frame_bytes - 4}")
            end = at + 4 + length
            if end > size:
                need = 4 + length
                break
            yield data[at + 4 : end]
            at = end
        self._buffer += data[at:]
        self._need = need
