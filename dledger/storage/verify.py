"""Look at a node's files from outside: read only, without the lock, while a node runs or after it died."""

from __future__ import annotations

import itertools
from collections.abc import Generator, Iterator
from dataclasses import dataclass, field

from dledger.errors import CorruptLogError
from dledger.storage.entry import Slice, iter_entries, parse_prefix
from dledger.storage.filesystem import FileSystem
from dledger.storage.layout import BLANK, BLANK_MAGIC, INDEX_RECORD_BYTES, MIN_BLANK_BYTES
from dledger.storage.small_files import durable_index, load_checkpoint
from dledger.types import Entry

__all__ = ["Damage", "VerifyReport", "iter_directory", "iter_slices", "verify_directory"]

_CHUNK_BYTES = 4 * 1024 * 1024
_NAME_DIGITS = 20


@dataclass(frozen=True, slots=True)
class Damage:
    """Something that is not what was written: where, which entry, what."""

    path: str
    offset: int
    index: int
    problem: str


@dataclass(slots=True)
class VerifyReport:
    """The result of reading every byte of a log."""

    directory: str
    segment_count: int = 0
    entry_count: int = 0
    byte_count: int = 0
    first_index: int = -1
    last_index: int = -1
    last_term: int = -1
    chain_crc: int = 0
    damage: list[Damage] = field(default_factory=list)
    torn_tail: Damage | None = None
    """Bytes behind the last entry that are none: what an interrupted write leaves, cut at the next start."""
    index_stale_from: int = -1
    """From this entry on index records are missing or wrong behind the checkpoint; made again at the next start."""

    @property
    def ok(self) -> bool:
        return not self.damage


class _Walk:
    """Goes through the data files entry by entry, a chunk at a time."""

    def __init__(self, fs: FileSystem, directory: str) -> None:
        self._fs = fs
        self._data = f"{directory}/data"
        self.starts = [int(name) for name in fs.listdir(self._data) if len(name) == _NAME_DIGITS and name.isdigit()]
        if not self.starts and not fs.exists(self._data):
            raise CorruptLogError(f"{directory} is not a node's folder: it has no data folder in it")
        self.index = 0
        self.chain_crc = 0
        self.last_term = -1
        self.stop: Damage | None = None

    def path(self, start: int) -> str:
        return f"{self._data}/{start:0{_NAME_DIGITS}d}"

    def slices(self) -> Iterator[Slice]:
        """Yield valid entries up to the first byte that is not one; `stop` says what stands there."""
        for number, start in enumerate(self.starts):
            if start != number * self._segment_bytes():
                self._stop_at(start, 0, "the segment before this one is missing")
                return
            rolled = yield from self._segment(start)
            if not rolled:
                return

    def _segment_bytes(self) -> int:
        """The distance of segments, from their names."""
        return min((after - before for before, after in itertools.pairwise(self.starts)), default=0)

    def _segment(self, start: int) -> Generator[Slice, None, bool]:
        handle = self._fs.open(self.path(start))
        try:
            return (yield from self._entries(handle, start))
        finally:
            self._fs.close(handle)

    def _entries(self, handle: int, start: int) -> Generator[Slice, None, bool]:
        at = 0
        want = _CHUNK_BYTES
        while True:
            chunk = self._fs.pread(handle, want, at)
            magic = int.from_bytes(chunk[:4], "big", signed=True) if len(chunk) >= MIN_BLANK_BYTES else 0
            if magic == 0:
                if chunk.count(0) != len(chunk):
                    self._stop_at(start, at, "zeros where an entry should start, and other bytes behind them")
                return False
            if magic == BLANK_MAGIC:
                length = BLANK.unpack_from(chunk)[1]
                if at + length > self._fs.size(handle) or length < MIN_BLANK_BYTES:
                    self._stop_at(start, at, f"a blank record of {length} bytes")
                    return False
                return True
            parsed = parse_prefix(chunk, self.index, self.chain_crc, pos=start + at, last_term=self.last_term)
            if parsed.slice is None:
                if parsed.short and len(chunk) == want:
                    want *= 4
                    continue
                self._stop_at(start, at, parsed.problem)
                return False
            found = parsed.slice
            self.index, self.chain_crc = found.last_index + 1, found.chain_crc
            self.last_term = found.terms[-1].term
            at += parsed.length
            want = _CHUNK_BYTES
            yield found

    def _stop_at(self, start: int, at: int, problem: str) -> None:
        self.stop = Damage(self.path(start), at, self.index, problem)


def iter_slices(fs: FileSystem, directory: str) -> Iterator[Slice]:
    """Yield the valid entries of a log as slices, from the first one to the first byte that is none."""
    yield from _Walk(fs, directory).slices()


def iter_directory(fs: FileSystem, directory: str) -> Iterator[Entry]:
    """Yield every valid entry of a log, committed or not, in order."""
    for part in iter_slices(fs, directory):
        yield from iter_entries(part.data)


def verify_directory(fs: FileSystem, directory: str) -> VerifyReport:
    """Read a whole log and check every CRC, the chain, positions and index records; changes nothing.

    The rule is that of a start: an entry that is not valid though the checkpoint or the watermark say that it was
    durable is damage, and the node would refuse to start; bytes beyond are a torn tail. On a running node everything
    is judged by what was durable when the call began.

    Raises:
        CorruptLogError: the folder is not a node's.
    """
    checkpoint, _ = load_checkpoint(fs, directory)
    durable = durable_index(fs, directory)
    walk = _Walk(fs, directory)
    report = VerifyReport(directory, segment_count=len(walk.starts))
    index = _IndexFiles(fs, directory)
    try:
        for part in walk.slices():
            report.entry_count += len(part)
            report.byte_count += len(part.data)
            report.first_index = part.first_index if report.first_index < 0 else report.first_index
            report.last_index, report.chain_crc = part.last_index, part.chain_crc
            report.last_term = part.terms[-1].term
            problem = index.compare(part)
            if problem is not None and problem.index <= checkpoint.index:
                report.damage.append(problem)
            elif problem is not None and report.index_stale_from < 0:
                report.index_stale_from = problem.index
    finally:
        index.close()
    if report.last_index < durable:
        last = walk.path(walk.starts[-1]) if walk.starts else f"{directory}/data"
        report.damage.append(walk.stop or Damage(last, 0, walk.index, f"no entries, though {durable} was durable"))
    else:
        report.torn_tail = walk.stop
    return report


class _IndexFiles:
    """The index records, wherever they stand."""

    def __init__(self, fs: FileSystem, directory: str) -> None:
        self._fs = fs
        self._directory = f"{directory}/index"
        names = [name for name in fs.listdir(self._directory) if len(name) == _NAME_DIGITS and name.isdigit()]
        self._files = [(int(name), fs.open(f"{self._directory}/{name}")) for name in names]

    def read(self, pos: int, length: int) -> bytes:
        parts: list[bytes] = []
        for start, handle in self._files:
            end = start + self._fs.size(handle)
            if start <= pos < end and length > 0:
                data = self._fs.pread(handle, min(length, end - pos), pos - start)
                parts.append(data)
                pos += len(data)
                length -= len(data)
        return b"".join(parts)

    def compare(self, part: Slice) -> Damage | None:
        """Return the first index record that is not what its entry says, missing ones too."""
        stored = self.read(part.first_index * INDEX_RECORD_BYTES, len(part.index_records))
        if stored == part.index_records:
            return None
        for number in range(len(part)):
            at = number * INDEX_RECORD_BYTES
            record = stored[at : at + INDEX_RECORD_BYTES]
            if record != part.index_records[at : at + INDEX_RECORD_BYTES]:
                position = (part.first_index + number) * INDEX_RECORD_BYTES
                return Damage(self._directory, position, part.first_index + number, "the index record is wrong")
        return None

    def close(self) -> None:
        for _, handle in self._files:
            self._fs.close(handle)
