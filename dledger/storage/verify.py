"""Look at a node's files from outside: read only, without the lock, while a node runs or after it died."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from dataclasses import dataclass, field

from dledger.errors import CorruptLogError
from dledger.storage.entry import (
    BLANK,
    BLANK_MAGIC,
    INDEX_RECORD_BYTES,
    MIN_BLANK_BYTES,
    Slice,
    iter_entries,
    parse_prefix,
)
from dledger.storage.filesystem import FileSystem
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
            if number and self.starts[number - 1] != self._expected_start(number, start):
                self._stop_at(start, 0, "a segment before this one is missing")
                return
            rolled = yield from self._segment(start)
            if not rolled:
                return

    def _expected_start(self, number: int, start: int) -> int:
        return start - (self.starts[1] - self.starts[0])

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
                if any(chunk[:MIN_BLANK_BYTES]) or chunk.count(0) != len(chunk):
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

    Behind the last valid entry: bytes with valid entries after them, or an index record for an entry that is not,
    are damage; anything else is a torn tail.

    Raises:
        CorruptLogError: the folder is not a node's.
    """
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
            if problem is not None:
                report.damage.append(problem)
        if walk.stop is not None:
            if index.has_record(walk.index) or any(start > _start_of(walk.stop.path) for start in walk.starts):
                report.damage.append(walk.stop)
            else:
                report.torn_tail = walk.stop
    finally:
        index.close()
    return report


def _start_of(path: str) -> int:
    return int(path.rsplit("/", 1)[1])


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

    def has_record(self, index: int) -> bool:
        return any(self.read(index * INDEX_RECORD_BYTES, INDEX_RECORD_BYTES))

    def compare(self, part: Slice) -> Damage | None:
        """Return what is wrong with the index records of some entries; missing ones at the very end are not."""
        stored = self.read(part.first_index * INDEX_RECORD_BYTES, len(part.index_records))
        if stored == part.index_records:
            return None
        for number in range(len(part)):
            at = number * INDEX_RECORD_BYTES
            record = stored[at : at + INDEX_RECORD_BYTES]
            if record != part.index_records[at : at + INDEX_RECORD_BYTES]:
                position = (part.first_index + number) * INDEX_RECORD_BYTES
                if not any(stored[at:]):
                    return None  # not written yet; rebuilt at the next start
                return Damage(self._directory, position, part.first_index + number, "the index record is wrong")
        return None

    def close(self) -> None:
        for _, handle in self._files:
            self._fs.close(handle)
