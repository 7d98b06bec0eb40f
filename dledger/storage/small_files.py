"""The small files beside the log: identity, hard state, checkpoint, watermark. Text with a CRC, replaced atomically.

A file is written beside its place, synced, renamed over it, and the folder is synced: after a crash either the old or
the new contents are there. The watermark alone is written in place and not synced; see `Watermark`.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Final

import google_crc32c

from dledger.errors import CorruptLogError, StorageError
from dledger.raft.messages import HardState, LogId, TermRun
from dledger.storage.filesystem import FileSystem
from dledger.storage.sessions import SessionTable

__all__ = [
    "Checkpoint",
    "HardStateFile",
    "Watermark",
    "WatermarkFile",
    "check_identity",
    "durable_index",
    "load_checkpoint",
    "load_identity",
    "save_identity",
]

HARD_STATE_NAME: Final = "hard_state"
IDENTITY_NAME: Final = "identity"
CHECKPOINT_NAME: Final = "checkpoint"
WATERMARK_NAME: Final = "watermark"
_WATERMARK_BYTES: Final = 256


def _seal(value: object) -> bytes:
    text = json.dumps(value, separators=(",", ":"), sort_keys=True).encode()
    return b"%08x %s\n" % (google_crc32c.value(text), text)


def _unseal(data: bytes) -> object | None:
    """Return the value, or None where the bytes are not what was sealed."""
    line = data.split(b"\n", 1)[0]
    try:
        if line[:9] != b"%08x " % google_crc32c.value(line[9:]):
            return None
        value: object = json.loads(line[9:])
        return value
    except ValueError:
        return None


def replace_file(fs: FileSystem, directory: str, name: str, data: bytes) -> None:
    """Replace a file atomically and durably."""
    path = f"{directory}/{name}"
    temporary = path + ".tmp"
    handle = fs.open(temporary, create=True)
    try:
        fs.resize(handle, 0)
        fs.pwrite(handle, data, 0)
        fs.sync(handle)
    finally:
        fs.close(handle)
    fs.rename(temporary, path)
    fs.sync_dir(directory)


def read_file(fs: FileSystem, path: str) -> bytes | None:
    if not fs.exists(path):
        return None
    handle = fs.open(path)
    try:
        return fs.pread(handle, fs.size(handle), 0)
    finally:
        fs.close(handle)


def check_identity(
    fs: FileSystem, directory: str, group: str, node_id: str, data_segment_bytes: int, index_segment_bytes: int
) -> None:
    """Claim a new folder for this group and node, or check that it is theirs and laid out as configured.

    Raises:
        StorageError: the folder belongs to another group or node, or has segments of another size: where segments end
            is part of the log, so the size cannot change under it.
    """
    data = read_file(fs, f"{directory}/{IDENTITY_NAME}")
    mine = {
        "format": 1,
        "group": group,
        "node_id": node_id,
        "data_segment_bytes": data_segment_bytes,
        "index_segment_bytes": index_segment_bytes,
    }
    found = None if data is None else _unseal(data)
    if data is None:
        replace_file(fs, directory, IDENTITY_NAME, _seal(mine))
    elif not isinstance(found, dict):
        raise CorruptLogError(
            f"{directory}/{IDENTITY_NAME} is damaged: restore the folder from a copy, or delete the folder and let the "
            "node catch up from its peers"
        )
    elif found.get("format") != 1:
        raise StorageError(f"{directory} has format {found.get('format')}, made by a later version; this one reads 1")
    elif (found.get("group"), found.get("node_id")) != (group, node_id):
        raise StorageError(
            f"{directory} belongs to node {found.get('node_id')} of group {found.get('group')}, not to node {node_id} "
            f"of group {group}: give this node its own storePathRootDir"
        )
    elif found != mine:
        sizes = [found.get("data_segment_bytes"), found.get("index_segment_bytes")]
        raise StorageError(
            f"{directory} was made with segments of {sizes[0]} bytes (data) and {sizes[1]} (index); configured are "
            f"{data_segment_bytes} (mappedFileSizeForEntryData) and {index_segment_bytes} "
            "(mappedFileSizeForEntryIndex): restore the former sizes"
        )


def load_identity(fs: FileSystem, directory: str) -> dict[str, object]:
    """Return whose folder it is: ``group``, ``node_id``, the format and the sizes of segments.

    Raises:
        CorruptLogError: the file is damaged.
        StorageError: there is none, or a later version made it.
    """
    data = read_file(fs, f"{directory}/{IDENTITY_NAME}")
    if data is None:
        raise StorageError(f"{directory} is not a node's folder: it has no identity file")
    found = _unseal(data)
    if not isinstance(found, dict):
        raise CorruptLogError(f"{directory}/{IDENTITY_NAME} is damaged: restore the folder from a copy")
    if found.get("format") != 1:
        raise StorageError(f"{directory} has format {found.get('format')}, made by a later version; this one reads 1")
    return found


def save_identity(fs: FileSystem, directory: str, identity: dict[str, object]) -> None:
    """Replace what `load_identity` returned, atomically and durably."""
    replace_file(fs, directory, IDENTITY_NAME, _seal(identity))


class HardStateFile:
    """Term, vote and vote floor: one value, one atomic durable write."""

    def __init__(self, fs: FileSystem, directory: str) -> None:
        self._fs = fs
        self._directory = directory

    def load(self) -> HardState | None:
        """Return what was saved last; None if nothing ever was.

        Raises:
            CorruptLogError: the file is damaged. Guessing a vote could elect two leaders.
        """
        data = read_file(self._fs, f"{self._directory}/{HARD_STATE_NAME}")
        if data is None:
            return None
        value = _unseal(data)
        if not isinstance(value, dict):
            raise CorruptLogError(
                f"{self._directory}/{HARD_STATE_NAME} is damaged, so this node's last vote is unknown: delete the "
                "folder and let the node catch up from its peers (never do this on several nodes at once)"
            )
        floor = value["vote_floor"]
        return HardState(value["term"], value["vote"], None if floor is None else LogId(*floor))

    def save(self, state: HardState) -> None:
        """Make term, vote and floor durable together, before any reply leaves (T§3.8)."""
        floor = state.vote_floor
        value = {
            "term": state.term,
            "vote": state.vote,
            "vote_floor": None if floor is None else [floor.term, floor.index],
        }
        replace_file(self._fs, self._directory, HARD_STATE_NAME, _seal(value))


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Up to ``index`` everything was verified, committed and synced; opening a log starts behind it."""

    index: int
    term: int
    end_pos: int
    chain_crc: int
    runs: tuple[TermRun, ...]
    sessions_json: str

    def save(self, fs: FileSystem, directory: str) -> None:
        value = {
            "index": self.index,
            "term": self.term,
            "end_pos": self.end_pos,
            "chain_crc": self.chain_crc,
            "runs": [[run.first_index, run.term] for run in self.runs],
            "sessions": self.sessions_json,
        }
        replace_file(fs, directory, CHECKPOINT_NAME, _seal(value))

    def session_table(self) -> SessionTable:
        return SessionTable.from_json(self.sessions_json) if self.sessions_json else SessionTable()


EMPTY_CHECKPOINT: Final = Checkpoint(-1, -1, 0, 0, (), "")


def load_checkpoint(fs: FileSystem, directory: str) -> tuple[Checkpoint, str]:
    """Return (the checkpoint, a note). Without a good one the log is verified from its start."""
    data = read_file(fs, f"{directory}/{CHECKPOINT_NAME}")
    if data is None:
        return EMPTY_CHECKPOINT, ""
    value = _unseal(data)
    if not isinstance(value, dict):
        return EMPTY_CHECKPOINT, "the checkpoint is damaged: verified the log from its start"
    return (
        Checkpoint(
            value["index"],
            value["term"],
            value["end_pos"],
            value["chain_crc"],
            tuple(TermRun(first, term) for first, term in value["runs"]),
            value["sessions"],
        ),
        "",
    )


@dataclass(frozen=True, slots=True)
class Watermark:
    """A lower bound of what was durable when the process ended, written after each group's sync and not synced itself.

    While the machine has not rebooted since (same ``boot_id``) the page cache has kept it: then it is exact, and
    nothing beyond it was ever acknowledged.
    """

    index: int
    term: int
    boot_id: str


def _watermark(data: bytes) -> Watermark | None:
    value = _unseal(data)
    return Watermark(*value) if isinstance(value, list) else None


def durable_index(fs: FileSystem, directory: str) -> int:
    """Return the last index that a node's small files claim was durable, -1 for none; changes nothing."""
    watermark = _watermark(read_file(fs, f"{directory}/{WATERMARK_NAME}") or b"")
    checkpoint, _ = load_checkpoint(fs, directory)
    return max(checkpoint.index, -1 if watermark is None else watermark.index)


class WatermarkFile:
    """One record, written in place."""

    def __init__(self, fs: FileSystem, directory: str) -> None:
        self._fs = fs
        self._handle = fs.open(f"{directory}/{WATERMARK_NAME}", create=True)
        self._boot_id_json = json.dumps(fs.boot_id()).encode()

    def load(self) -> Watermark | None:
        """Return the last record; None if there is none, or it was torn."""
        return _watermark(self._fs.pread(self._handle, _WATERMARK_BYTES, 0))

    def save(self, index: int, term: int, *, durable: bool = False) -> None:
        # As `_seal` writes it, made by hand: it is made once for every group commit.
        text = b"[%d,%d,%s]" % (index, term, self._boot_id_json)
        record = b"%08x %s\n" % (google_crc32c.value(text), text)
        self._fs.pwritev(self._handle, (record.ljust(_WATERMARK_BYTES),), 0)
        if durable:
            self._fs.sync(self._handle)

    def close(self) -> None:
        self._fs.close(self._handle)
