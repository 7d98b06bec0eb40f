"""Opening a log: verify from the checkpoint, cut a torn tail, refuse damage, rebuild the index.

What must not happen is to take damage for a torn tail: the node would forget entries that it has acknowledged. Three
lower bounds say what was durable: the checkpoint (synced), the watermark, and, for lack of better, what the bytes
behind the cut and the index records still show. An invalid entry at or below a bound is damage. Beyond them the log
is cut; if the bytes that are cut may have been acknowledged (the machine went down, so the watermark is only a lower
bound), the furthest of them becomes the node's vote floor: see `HardState.vote_floor`.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from dledger.errors import CorruptLogError
from dledger.raft.messages import NO_INDEX, LogId, TermRun
from dledger.storage.entry import Slice, parse_prefix
from dledger.storage.layout import (
    BLANK,
    BLANK_MAGIC,
    HEADER,
    HEADER_BYTES,
    INDEX_RECORD,
    INDEX_RECORD_BYTES,
    MIN_BLANK_BYTES,
)
from dledger.storage.segments import SegmentedFile
from dledger.storage.sessions import SessionJournal
from dledger.storage.small_files import EMPTY_CHECKPOINT, Checkpoint, Watermark

__all__ = ["RecoveredLog", "RecoveryReport", "Remains", "recover"]

_CHUNK_BYTES = 4 * 1024 * 1024
_LOST_INDEX = 2**62
_INDEX_CHUNK = 4096


@dataclass(slots=True)
class RecoveryReport:
    """What opening a log found and did."""

    entries_verified: int = 0
    bytes_verified: int = 0
    from_index: int = 0
    cut_at: int = -1
    cut_bytes: int = 0
    vote_floor: LogId | None = None
    index_records_rewritten: int = 0
    notes: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        text = f"verified {self.entries_verified} entries from index {self.from_index}"
        if self.cut_at >= 0:
            text += f", cut a torn tail of up to {self.cut_bytes} bytes at {self.cut_at}"
        if self.vote_floor is not None:
            text += ", votes provisionally until it has caught up"
        return "; ".join([text, *self.notes])


@dataclass(slots=True)
class RecoveredLog:
    """The state of the log after recovery."""

    last_index: int
    last_term: int
    end_pos: int
    chain_crc: int
    runs: list[TermRun]
    sessions: SessionJournal
    report: RecoveryReport


def recover(
    data: SegmentedFile,
    index: SegmentedFile,
    checkpoint: Checkpoint,
    watermark: Watermark | None,
    boot_id: str,
    *,
    term: int,
    sync_flush: bool,
) -> tuple[RecoveredLog, Remains]:
    """Verify everything behind ``checkpoint``; memory is bounded by one entry and one chunk.

    Nothing is cut here: the caller first makes the vote floor durable, then calls `Remains.erase`. The other way
    round, a crash between the two would forget for good what this node may have acknowledged.

    ``term``: of the hard state; nothing newer was ever acknowledged here. ``sync_flush``: entries beyond the watermark
    were never acknowledged (in ASYNC_FLUSH they may have been).

    Raises:
        CorruptLogError: an entry that was durable is damaged; the message says where and what to do.
    """
    _check_segments(data)
    start, note = _where_to_start(data, index, checkpoint)
    exact = sync_flush and watermark is not None and boot_id != "" and watermark.boot_id == boot_id
    scan = _Scan(data, index, start, synced_index=watermark.index if exact and watermark is not None else -1)
    problem = scan.run()
    log = scan.log
    report = log.report
    if note:
        report.notes.append(note)
    known = max(checkpoint.index, watermark.index if watermark is not None else -1)
    if log.last_index < known:
        raise CorruptLogError(
            f"{data.path(data.start_of(log.end_pos))}: damaged at byte {log.end_pos % data.segment_bytes}, entry "
            f"{log.last_index + 1} ({problem or 'missing'}); entries up to {known} were durable. Restore the "
            "folder from a copy, or delete it and let the node catch up from its peers (one at a time, never all)"
        )
    remains = Remains(data, index, log, term)
    if not exact:
        report.vote_floor = remains.furthest()
    if remains.byte_count:
        report.cut_at, report.cut_bytes = log.end_pos, remains.byte_count
        report.notes.append(problem or "bytes behind the last entry")
    return log, remains


def _check_segments(data: SegmentedFile) -> None:
    problem = data.problem()
    if problem:
        raise CorruptLogError(
            f"{problem}: restore the folder from a copy, or delete it and let the node catch up from its peers "
            "(one node at a time, never all of them)"
        )


def _where_to_start(data: SegmentedFile, index: SegmentedFile, checkpoint: Checkpoint) -> tuple[Checkpoint, str]:
    """Return where to scan from: the checkpoint if the log bears it out, else the beginning, to make the index again.

    Raises:
        CorruptLogError: the last entry under the checkpoint is not what it was.
    """
    problem = index.problem()
    if problem:
        index.remove_all()
        return EMPTY_CHECKPOINT, f"made the index again: {problem}"
    if checkpoint.index == NO_INDEX:
        return checkpoint, ""
    raw = _read_across(index, checkpoint.index * INDEX_RECORD_BYTES, INDEX_RECORD_BYTES)
    record = INDEX_RECORD.unpack(raw) if len(raw) == INDEX_RECORD_BYTES else (0, 0, 0, -1, 0)
    _, pos, size, record_index, record_term = record
    if (record_index, record_term, pos + size) != (checkpoint.index, checkpoint.term, checkpoint.end_pos):
        index.remove_all()
        return EMPTY_CHECKPOINT, f"made the index again: it had no record of entry {checkpoint.index}"
    start = data.start_of(pos)
    header = data.read(pos, HEADER_BYTES) if start in data.starts else b""
    fields = HEADER.unpack(header) if len(header) == HEADER_BYTES else (0,) * 9
    if (fields[2], fields[3], fields[4], fields[6]) != (checkpoint.index, checkpoint.term, pos, checkpoint.chain_crc):
        raise CorruptLogError(
            f"{data.path(start)}: entry {checkpoint.index} at byte {pos - start} is not the one that the checkpoint "
            "names. Restore the folder from a copy, or delete it and let the node catch up from its peers (one node "
            "at a time, never all of them)"
        )
    return checkpoint, ""


class _Scan:
    """Reads entry after entry from the checkpoint on.

    Entries behind ``synced_index`` are written again over themselves. They may stand in the page cache only, *clean*:
    after an fsync that failed the kernel has dropped them from its list of work, so that syncing again does nothing
    (ATC'20), yet from here on they count as durable.
    """

    def __init__(
        self, data: SegmentedFile, index: SegmentedFile, checkpoint: Checkpoint, *, synced_index: int = -1
    ) -> None:
        self._data = data
        self._index = index
        self._synced_index = synced_index
        self.log = RecoveredLog(
            checkpoint.index,
            checkpoint.term,
            checkpoint.end_pos,
            checkpoint.chain_crc,
            list(checkpoint.runs),
            SessionJournal(checkpoint.session_table(), checkpoint.index),
            RecoveryReport(from_index=checkpoint.index + 1),
        )

    def run(self) -> str:
        """Scan to the end of the valid entries; returns what is wrong there, empty if nothing follows."""
        while True:
            start = self._data.start_of(self.log.end_pos)
            if start not in self._data.starts:
                return ""
            problem, rolled = self._scan_segment(start)
            if not rolled:
                return problem

    def _scan_segment(self, start: int) -> tuple[str, bool]:
        """Returns (problem, whether a valid blank record leads to the next segment)."""
        end = start + self._data.segment_bytes
        want = _CHUNK_BYTES
        while True:
            pos = self.log.end_pos
            chunk = self._data.read(pos, min(want, end - pos))
            magic = int.from_bytes(chunk[:4], "big", signed=True) if len(chunk) >= MIN_BLANK_BYTES else 0
            if magic == 0 or len(chunk) < MIN_BLANK_BYTES:
                return ("" if chunk.count(0) == len(chunk) else "zeros where an entry should start"), False
            if magic == BLANK_MAGIC:
                return self._roll(chunk, pos, end)
            parsed = parse_prefix(
                chunk, self.log.last_index + 1, self.log.chain_crc, pos=pos, last_term=self.log.last_term
            )
            if parsed.slice is not None:
                self._take(parsed.slice)
                want = _CHUNK_BYTES
            elif parsed.short and len(chunk) < end - pos and len(chunk) == want:
                want *= 4  # one entry larger than the chunk
                continue
            if parsed.slice is None or (parsed.problem and not parsed.short and parsed.length == 0):
                return parsed.problem, False

    def _roll(self, chunk: bytes, pos: int, end: int) -> tuple[str, bool]:
        _, length = BLANK.unpack_from(chunk)
        following = self._data.start_of(pos) + self._data.segment_bytes
        if length != end - pos or following not in self._data.starts:
            return "blank record", False
        first = self._data.read(following, HEADER_BYTES)
        parsed_ok = len(first) == HEADER_BYTES and HEADER.unpack_from(first)[2] == self.log.last_index + 1
        if not parsed_ok:
            return "blank record with nothing behind it", False
        before = self.log.end_pos
        self.log.end_pos = following
        probe = self._probe(following)
        if not probe:
            self.log.end_pos = before
            return "the entry behind a blank record is not valid", False
        self._data.write(pos, (chunk[:MIN_BLANK_BYTES],), MIN_BLANK_BYTES)  # as the entries: see the class
        return "", True

    def _probe(self, pos: int) -> bool:
        """Whether a valid entry stands at ``pos``."""
        log = self.log
        header = self._data.read(pos, HEADER_BYTES)
        parsed = parse_prefix(header, log.last_index + 1, log.chain_crc, pos=pos, last_term=log.last_term)
        if parsed.slice is None and parsed.short and len(header) == HEADER_BYTES:
            whole = self._data.read(pos, HEADER.unpack(header)[1])
            parsed = parse_prefix(whole, log.last_index + 1, log.chain_crc, pos=pos, last_term=log.last_term)
        return parsed.slice is not None

    def _take(self, found: Slice) -> None:
        log = self.log
        for run in found.terms:
            if run.term != log.last_term:
                log.runs.append(run)
                log.last_term = run.term
        log.sessions.append(found.sessions)
        log.last_index = found.last_index
        log.end_pos = found.end_pos
        log.chain_crc = found.chain_crc
        log.report.entries_verified += len(found)
        log.report.bytes_verified += len(found.data)
        if found.last_index > self._synced_index:
            self._data.write(found.first_pos, (found.data,), len(found.data))
        self._check_index(found)

    def _check_index(self, found: Slice) -> None:
        """Index records are derived from the data: write those that are missing or wrong."""
        length = len(found.index_records)
        pos = found.first_index * INDEX_RECORD_BYTES
        wrong = _read_across(self._index, pos, length) != found.index_records
        self._index.write(pos, (found.index_records,), length)  # even if right: see the class
        if wrong:
            self.log.report.index_records_rewritten += len(found)


def _read_across(file: SegmentedFile, pos: int, length: int) -> bytes:
    """Read over segment boundaries; shorter where there is no file."""
    parts: list[bytes] = []
    while length > 0:
        start = file.start_of(pos)
        if start not in file.starts:
            break
        take = min(length, start + file.segment_bytes - pos)
        parts.append(file.read(pos, take))
        pos += take
        length -= take
    return b"".join(parts)


class Remains:
    """What stands behind the last valid entry."""

    def __init__(self, data: SegmentedFile, index: SegmentedFile, log: RecoveredLog, term: int) -> None:
        self._data = data
        self._index = index
        self._log = log
        self._term = max(term, log.last_term)
        self._stretches = self._nonzero()
        self.byte_count = sum(length for _, length in self._stretches)
        """How many bytes the remains span, about."""

    def furthest(self) -> LogId | None:
        """Return the furthest entry that the remains hint at; None if nothing is left of any.

        Index records behind the end name entries that once were written; headers at their place prove it. Other bytes
        that are not zero may be anything: then the floor is beyond any index of the node's own term.
        """
        log = self._log
        found: LogId | None = None
        index = log.last_index + 1
        while True:
            raw = _read_across(self._index, index * INDEX_RECORD_BYTES, _INDEX_CHUNK * INDEX_RECORD_BYTES)
            records = list(INDEX_RECORD.iter_unpack(raw[: len(raw) - len(raw) % INDEX_RECORD_BYTES]))
            for magic, _, _, record_index, term in records:
                if magic != 0 and record_index == index and term >= log.last_term:
                    found = max(found or LogId(term, index), LogId(term, index))
                index += 1
            if len(records) < _INDEX_CHUNK or raw.count(0) == len(raw):
                break
        if any(not self._is_lone_blank(*stretch) for stretch in self._stretches):
            beyond = LogId(self._term, _LOST_INDEX)
            found = max(found or beyond, beyond)
        return found

    def _is_lone_blank(self, pos: int, length: int) -> bool:
        """Whether it is the filler that closes a segment: synced before the entry behind it, and no entry itself."""
        rest = self._data.start_of(pos) + self._data.segment_bytes - pos
        blank = BLANK.pack(BLANK_MAGIC, rest)
        return pos == self._log.end_pos and length <= len(blank) and self._data.read(pos, len(blank)) == blank

    def _nonzero(self) -> list[tuple[int, int]]:
        """(position, length) of the stretches behind the end that hold anything but zeros."""
        stretches: list[tuple[int, int]] = []
        for start in self._data.starts:
            pos = max(start, self._log.end_pos)
            end = self._data.data_end(start) if start + self._data.segment_bytes > pos else pos
            while pos < end:
                chunk = self._data.read(pos, min(_CHUNK_BYTES, end - pos))
                if not chunk:
                    break
                used = len(chunk.rstrip(b"\0"))
                if used:
                    stretches.append((pos, used))
                pos += len(chunk)
        return stretches

    def erase(self) -> None:
        """Zero the remains, in data and index, durably."""
        home = self._data.start_of(max(self._log.end_pos - 1, 0))
        for pos, length in self._stretches:
            if self._data.start_of(pos) == home:
                self._data.zero(pos, length)
        self._data.sync()
        self._data.drop_after(home)
        pos = (self._log.last_index + 1) * INDEX_RECORD_BYTES
        self._index.drop_after(self._index.start_of(pos))
        start = self._index.start_of(pos)
        if start in self._index.starts:
            end = self._index.data_end(start)
            while pos < end:
                chunk = self._index.read(pos, min(_CHUNK_BYTES, end - pos))
                if chunk and chunk.count(0) != len(chunk):
                    self._index.zero(pos, len(chunk))
                pos += max(len(chunk), 1)
        self._index.sync()
