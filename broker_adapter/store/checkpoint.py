"""Two checkpoints: RocketMQ's own file of time stamps, and ours, which says exactly where the derived files stand.

``checkpoint`` (4096 bytes, three int64: store time of the newest message flushed in the commit log, in the consume
queues, in the index) is written for those who know the upstream format. ``logicCheckpoint`` is what recovery uses: the
physical offset up to which queues, index and state are complete *and fsynced*, each queue's end, the index's mark.
Whatever stands in the derived files beyond it is thrown away and made again from the log, so that neither a kill nor a
power failure leaves a hole in a queue (upstream: #7355, #8032).
"""

from __future__ import annotations

import contextlib
import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from struct import Struct
from typing import Any, Final
from zlib import crc32

import structlog

from broker_adapter.store.files import storage_error

__all__ = ["LogicCheckpoint", "StoreTimestamps", "boot_id", "remove_abort", "touch_abort", "write_atomically"]

_TIMES: Final = Struct(">qqq")
_FILE_BYTES: Final = 4096
_VERSION: Final = 1


def boot_id() -> str:
    """Return what changes with every boot of the machine, empty where the system does not say."""
    with contextlib.suppress(OSError), open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
        return file.read().strip()
    return ""


def touch_abort(root: str) -> bool:
    """Create upstream's ``abort`` file, which stands while the broker runs. True: it stood, the last stop was none."""
    path = Path(root, "abort")
    stood = path.exists()
    path.touch()
    return stood


def remove_abort(root: str) -> None:
    """The broker has stopped in good order."""
    Path(root, "abort").unlink(missing_ok=True)


def write_atomically(path: str, data: bytes) -> None:
    """Replace a file: write beside it, fsync, rename, fsync the folder.

    Raises:
        DiskFullError, StorageFailedError.
    """
    folder = os.path.dirname(path)
    beside = f"{path}.tmp"
    try:
        os.makedirs(folder, exist_ok=True)
        fd = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        try:
            view = memoryview(data)
            while view:
                view = view[os.write(fd, view) :]
            os.fsync(fd)
        finally:
            os.close(fd)
        os.replace(beside, path)
        fd = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
    except OSError as error:
        raise storage_error(path, error) from error


@dataclass(slots=True)
class StoreTimestamps:
    """RocketMQ's StoreCheckpoint: store times (ms) of what is flushed."""

    physical: int = 0
    logic: int = 0
    index: int = 0

    @classmethod
    def load(cls, path: str) -> StoreTimestamps:
        """Read the file; absent or short: zeros."""
        with contextlib.suppress(OSError), open(path, "rb") as file:
            data = file.read(_TIMES.size)
            if len(data) == _TIMES.size:
                return cls(*_TIMES.unpack(data))
        return cls()

    def save(self, path: str) -> None:
        data = _TIMES.pack(self.physical, self.logic, self.index)
        write_atomically(path, data + bytes(_FILE_BYTES - len(data)))


@dataclass(slots=True)
class LogicCheckpoint:
    """Where the derived files stand.

    ``physical``: every message before it is in them. ``entry_index``, ``entry_term``: the log entry that ends there
    (DLedger mode, else -1). ``queues``: topic → queue id → end. ``tables``: the small state (DLedger mode).
    """

    physical: int = 0
    entry_index: int = -1
    entry_term: int = -1
    queues: dict[str, dict[str, int]] = field(default_factory=dict)
    index_name: str = ""
    index_count: int = 1
    boot: str = ""
    tables: dict[str, Any] = field(default_factory=dict)

    def encode(self) -> bytes:
        fields = {name: getattr(self, name) for name in self.__slots__}
        text = json.dumps({"version": _VERSION, **fields}, separators=(",", ":")).encode()
        return b"%08x\n%b" % (crc32(text), text)

    @classmethod
    def load(cls, path: str) -> LogicCheckpoint | None:
        """Read it; None where there is none or it is damaged (then everything is made anew)."""
        try:
            with open(path, "rb") as file:
                data = file.read()
        except FileNotFoundError:
            return None
        head, _, text = data.partition(b"\n")
        try:
            if int(head, 16) != crc32(text):
                raise ValueError("CRC mismatch")
            fields = json.loads(text)
            if fields.pop("version") != _VERSION:
                raise ValueError("another version")
            return cls(**fields)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            structlog.get_logger().warning("logic_checkpoint_unusable", path=path, reason=str(error))
            return None
