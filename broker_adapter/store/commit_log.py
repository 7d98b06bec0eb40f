"""RocketMQ's own commit log: messages back to back in files of 1 GiB, named by their start offset.

A message never spans two files: where it does not fit with 8 bytes to spare, the rest of the file becomes a blank
record (its length 4, magic 0xCBD43194 4, then zeros) and the message starts the next file.

Writes are staged and go out once a loop turn in one ``pwrite``; nothing is readable or replicated before that.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from struct import Struct
from typing import Final

import structlog

from broker_adapter.message import BLANK_MAGIC, MESSAGE_MAGIC, MessageFormatError, decode_message
from broker_adapter.store.api import StoreConfig
from broker_adapter.store.files import FdPool, SegmentFiles
from broker_adapter.store.logic import StoredBytes
from dledger.errors import StorageFailedError

__all__ = ["MIN_BLANK_BYTES", "CommitLog"]

MIN_BLANK_BYTES: Final = 8
_BLANK: Final = Struct(">iI")
_HEAD: Final = Struct(">iI20xq")
_HEAD_BYTES: Final = 36
_MIN_MESSAGE_BYTES: Final = 91
_SCAN_BYTES: Final = 2 * 1024 * 1024


class CommitLog:
    """The local log. Event loop only (`scan` with ``verify`` runs before it is open).

    Invariant: flushed <= written <= end. ``end`` includes what is staged.
    """

    def __init__(self, config: StoreConfig, pool: FdPool) -> None:
        directory = config.store_path_commit_log or os.path.join(config.store_path_root_dir, "commitlog")
        self.file_bytes = config.mapped_file_size_commit_log
        self.files = SegmentFiles(directory, self.file_bytes, pool)
        self.end = self.written = self.flushed = 0
        self._staged: list[bytes] = []
        self._places: list[int] = []
        self._log = structlog.get_logger()

    @property
    def min_offset(self) -> int:
        return self.files.first if self.files.starts else self.end

    # ------------------------------------------------------------------ opening

    def open(self, verified: int | None) -> None:
        """Find the end. Everything before ``verified`` is known to be good (None: nothing is).

        Verifies each message from there on, CRC included, and cuts the log at the first that is not whole.
        """
        self.files.load()
        start = self.files.first
        if verified is not None and start <= verified <= self.files.limit and self._is_boundary(verified):
            # A file cut below it by someone else: then only the files before it are what they were.
            start = verified if verified <= self.files.intact_end else max(start, self.files.starts[-1])
        end = start
        for _, following in self.scan(start, self.files.limit, verify=True):
            end = following
        dropped = self._used_after(end)
        if dropped:
            self._log.warning("commit_log_tail_cut", physical_offset=end, bytes=dropped)
        self.files.truncate(end)
        self.end = self.written = self.flushed = end

    def _is_boundary(self, pos: int) -> bool:
        """Whether a message, a blank or nothing yet starts at ``pos``."""
        head = self.files.read(pos, _HEAD_BYTES, now=False)
        if len(head) < MIN_BLANK_BYTES:
            return True
        total, magic = _BLANK.unpack_from(head)
        return (total, magic) == (0, 0) or magic in {MESSAGE_MAGIC, BLANK_MAGIC}

    def _used_after(self, end: int) -> int:
        """How many bytes of other than zeros stand behind the end (in the same file, near it), for the operator."""
        tail = self.files.read(end, _SCAN_BYTES, now=False)
        return len(tail.rstrip(b"\0"))

    # ------------------------------------------------------------------ walking

    def scan(self, pos: int, end: int, *, verify: bool) -> Iterator[tuple[list[StoredBytes], int]]:
        """Yield stretches of whole messages from ``pos``, with the position behind each stretch.

        Stops at ``end`` or before the first that is not a whole message. ``verify``: every field and the CRC.
        """
        while pos < end:
            data = self.files.read(pos, min(_SCAN_BYTES, end - pos), now=False)
            found, consumed, wanted = self._parse(data, pos, verify=verify)
            if consumed == 0 and wanted > len(data) and pos + wanted <= end:
                data = self.files.read(pos, wanted, now=False)
                found, consumed, wanted = self._parse(data, pos, verify=verify)
            if consumed == 0 or consumed > end - pos:  # (a slave may have a part of a blank only)
                return
            pos += consumed
            yield found, pos

    def _parse(self, data: bytes, pos: int, *, verify: bool) -> tuple[list[StoredBytes], int, int]:
        """(messages, bytes consumed, bytes that the next one needs); a blank, alone, consumes the rest of its file."""
        found: list[StoredBytes] = []
        at, length = 0, len(data)
        unpack = _HEAD.unpack_from
        while length - at >= MIN_BLANK_BYTES:
            total, magic = _BLANK.unpack_from(data, at)
            room = self.file_bytes - (pos + at) % self.file_bytes
            if magic == BLANK_MAGIC and total == room:
                return found, at or room, 0
            if magic != MESSAGE_MAGIC or not _MIN_MESSAGE_BYTES <= total <= room:
                return found, at, 0
            if length - at < total:
                return found, at, total
            if unpack(data, at)[2] != pos + at or (verify and not _is_whole(data, at, total)):
                return found, at, 0
            found.append((data, at, pos + at, 1, 0))
            at += total
        return found, at, _HEAD_BYTES

    # ------------------------------------------------------------------ appending

    def place(self, size: int) -> int:
        """Return where the next message of ``size`` bytes goes; fills the rest of a file that is too short.

        Raises:
            StorageFailedError: no file can hold it.
        """
        if size + MIN_BLANK_BYTES > self.file_bytes:
            raise StorageFailedError(f"a message of {size} bytes does not fit a file of {self.file_bytes}")
        room = self.file_bytes - self.end % self.file_bytes
        if size + MIN_BLANK_BYTES > room:
            self._staged.append(_BLANK.pack(room, BLANK_MAGIC) + bytes(room - MIN_BLANK_BYTES))
            self.end += room
        return self.end

    def stage(self, message: bytes) -> None:
        """Take an encoded message that starts at ``end`` (see `place`)."""
        self._staged.append(message)
        self._places.append(self.end)
        self.end += len(message)

    def write_staged(self) -> list[StoredBytes]:
        """Write what was staged and return its messages.

        Raises:
            DiskFullError, StorageFailedError: call `drop_staged`, or stop.
        """
        data, start = b"".join(self._staged), self.written
        self.files.write(start, data)
        messages: list[StoredBytes] = [(data, place - start, place, 1, 0) for place in self._places]
        self._staged, self._places = [], []
        self.written = self.end
        return messages

    def drop_staged(self) -> None:
        """Forget what was staged, and what of it may have reached the file."""
        self._staged, self._places = [], []
        self.files.truncate(self.written)
        self.end = self.written

    def append_raw(self, pos: int, data: bytes) -> None:
        """Append replicated bytes (a slave's side); an empty log begins wherever the master says.

        Raises:
            StorageFailedError: ``pos`` is not the end of the log.
        """
        if not self.files.starts and self.end == 0:
            self.end = self.written = self.flushed = pos
        if pos != self.end:
            raise StorageFailedError(f"replicated bytes for {pos}, the log ends at {self.end}")
        self.files.write(pos, data)
        self.end += len(data)
        self.written = self.end

    def take_dirty(self) -> list[str]:
        """Files to fdatasync for everything written so far."""
        paths = sorted(self.files.dirty)
        self.files.dirty.clear()
        return paths

    def read(self, pos: int, length: int, *, now: bool) -> bytes:
        """Return written bytes, within one file."""
        length = min(length, self.written - pos)
        return self.files.read(pos, length, now=now) if length > 0 else b""


def _is_whole(data: bytes, at: int, total: int) -> bool:
    """Whether a message is all there. The CRC covers the body only: properties that a torn write left as zeros show by
    their last byte, which is never a zero (see ``encode_message``)."""
    try:
        message = decode_message(data, at)
    except MessageFormatError:
        return False
    return message.stored_size == total and not message.properties.endswith(b"\0")
