"""The log of one node: a view for the event loop, a disk side for the write thread.

The *view* is what the log is once everything staged has been written: `encode`, `append`, `truncate`,
`save_hard_state` and `commit` change it at once and never wait. `take_batch` hands all that was staged to the *disk
side*: `write` does pwrite, index records and one fdatasync for the group, in the order staged. `complete` tells the
view. One batch at a time; the two sides share nothing else. `read` is for any thread and looks only at what has been
written.
"""

from __future__ import annotations

import contextlib
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Self

import google_crc32c

from dledger.errors import (
    CorruptLogError,
    DiskFullError,
    IndexOutOfRangeError,
    StorageFailedError,
    UnexpectedArgumentError,
)
from dledger.raft.messages import NO_INDEX, UNKNOWN_FLOOR, HardState, InvariantError, LogId, TermRun, invariant
from dledger.storage.block_sums import BlockSums
from dledger.storage.entry import (
    CorruptSliceError,
    EntryGroup,
    RawSlice,
    Slice,
    chained_crc,
    encode_groups,
    is_entry,
    parse_slice,
)
from dledger.storage.filesystem import FileSystem
from dledger.storage.layout import (
    BLANK,
    BLANK_MAGIC,
    HEADER,
    HEADER_BYTES,
    INDEX_RECORD,
    INDEX_RECORD_BYTES,
    MIN_BLANK_BYTES,
)
from dledger.storage.recovery import RecoveredLog, RecoveryReport, recover
from dledger.storage.segments import SegmentedFile
from dledger.storage.sessions import SessionTable
from dledger.storage.small_files import (
    Checkpoint,
    HardStateFile,
    WatermarkFile,
    check_identity,
    load_checkpoint,
)

__all__ = ["LogStore", "StoreOptions", "WriteBatch"]

_RECORDS_A_READ = 4096

_STRETCH_BYTES = 1024 * 1024
"""Zeroed and synced at a time: a group that arrives meanwhile waits for it."""

_LARGE_WRITE_BYTES = 64 * 1024
"""Groups from this size on are written to new blocks directly."""

_SMALL_ENTRY_BYTES = 16 * 1024
"""Up to this size an entry is read along with the one behind it."""

_MIN_BLOCKS_A_READ = 4
"""Less than that is verified entry by entry as fast as the blocks around it are read."""


@dataclass(frozen=True, slots=True)
class StoreOptions:
    """Sizes in bytes."""

    data_segment_bytes: int = 1024**3
    index_segment_bytes: int = 160 * 1024**2
    sync_flush: bool = True
    """Acknowledge after fdatasync (SYNC_FLUSH), or from the page cache (ASYNC_FLUSH)."""
    checkpoint_bytes: int = 16 * 1024**2
    """Committed log between two checkpoints: what opening must verify at most, about."""
    checkpoint_entries: int = 32_768
    """The same in entries: verifying costs by the entry where entries are small."""
    prepare_bytes: int = 4 * 1024**2
    """Zeros written ahead: syncing allocated blocks costs half of syncing new ones."""
    cache_bytes: int = 16 * 1024**2
    """The newest entries, kept for peers and readers that follow closely."""
    sum_block_bytes: int = 32 * 1024
    """What is remembered of the log by one number (`dledger.storage.block_sums`)."""

    def validate(self) -> None:
        """Raise `UnexpectedArgumentError` for sizes that cannot work."""
        if self.data_segment_bytes < HEADER_BYTES + MIN_BLANK_BYTES:
            raise UnexpectedArgumentError(f"a data segment of {self.data_segment_bytes} bytes holds no entry")
        if self.index_segment_bytes < INDEX_RECORD_BYTES or self.index_segment_bytes % INDEX_RECORD_BYTES:
            raise UnexpectedArgumentError(
                f"an index segment has a multiple of {INDEX_RECORD_BYTES} bytes, not {self.index_segment_bytes}"
            )
        if self.sum_block_bytes < 1:
            raise UnexpectedArgumentError(f"a block of {self.sum_block_bytes} bytes has no sum")


@dataclass(frozen=True, slots=True)
class _TruncateOp:
    from_index: int
    last_term: int
    pos: int
    old_end_pos: int
    old_last_index: int


_Operation = HardState | _TruncateOp | Slice


@dataclass(slots=True)
class WriteBatch:
    """Everything staged since the last batch, in order."""

    operations: list[_Operation]
    hard_state: HardState | None = None
    """The last one in the batch."""
    last: LogId | None = None
    """The end of the log as of this batch, if the batch touches the log."""
    checkpoint: Checkpoint | None = None
    history: bool = False
    """It is long, and all of it was committed before it came here: this node catches up."""
    cut_from: int | None = None
    """Entries from here on were truncated in the view while the batch was being written (see `LogStore.complete`)."""
    byte_count: int = 0
    """Bytes of the entries."""
    only_appends: bool = True
    """There is nothing in it but entries."""
    unindexed: list[Slice] = field(default_factory=list)
    """What `LogStore.write_index` has yet to write (disk side)."""

    @property
    def is_small(self) -> bool:
        """Whether a healthy disk makes it durable at once: a few entries, nothing to replace, nothing to erase."""
        return self.only_appends and self.checkpoint is None and self.byte_count <= _LARGE_WRITE_BYTES


class LogStore:
    """See the module's text. Make one with `LogStore.open`."""

    def __init__(
        self,
        fs: FileSystem,
        directory: str,
        options: StoreOptions,
        data: SegmentedFile,
        index: SegmentedFile,
        hard_state_file: HardStateFile,
        watermark: WatermarkFile,
        lock: int,
        hard_state: HardState,
        recovered: RecoveredLog,
        checkpoint: Checkpoint,
    ) -> None:
        self._fs = fs
        self.directory = directory
        self.options = options
        self._data = data
        self._index = index
        self._hard_state_file = hard_state_file
        self._watermark = watermark
        self._lock = lock
        # view
        self.hard_state = hard_state
        self.recovery: RecoveryReport = recovered.report
        self.first_index = 0
        self.last_index = recovered.last_index
        self.last_term = recovered.last_term
        self.end_pos = recovered.end_pos
        self.committed_index = checkpoint.index
        self._chain_crc = recovered.chain_crc
        self._runs = recovered.runs
        self._sessions = recovered.sessions
        self._staged: list[_Operation] = []
        self._in_flight: WriteBatch | None = None
        self._cache: list[Slice] = []
        self._cache_starts: list[int] = []
        self._cache_bytes = 0
        self._written_index = recovered.last_index
        self._checkpointed_pos = checkpoint.end_pos
        self._checkpointed_index = checkpoint.index
        self._cached_end_of_commit: tuple[int, int] = (checkpoint.index, checkpoint.end_pos)
        # disk side
        self._prepared_pos = recovered.end_pos
        self._ahead_bytes = min(options.prepare_bytes, options.data_segment_bytes // 4)
        self._stretch_bytes = min(self._ahead_bytes, _STRETCH_BYTES)
        self._disk_end_pos = recovered.end_pos
        self._disk_last = LogId(recovered.last_term, recovered.last_index)
        self._writes_history = False
        self._failed: StorageFailedError | None = None
        self._closed = False
        # both sides
        self._sums = BlockSums(options.data_segment_bytes, options.sum_block_bytes)

    # ------------------------------------------------------------------ opening and closing

    @classmethod
    def open(
        cls, fs: FileSystem, directory: str, *, group: str, node_id: str, options: StoreOptions | None = None
    ) -> Self:
        """Open or make a node's folder; verifies the log behind the last checkpoint.

        Raises:
            StoreLockedError: another process has it.
            StorageError: it belongs to another group or node.
            CorruptLogError: something that was durable is damaged; says where and what to do.
        """
        options = options or StoreOptions()
        options.validate()
        fs.makedirs(directory)
        lock = fs.lock(f"{directory}/lock")
        try:
            return cls._open_locked(fs, directory, group, node_id, options, lock)
        except BaseException:
            fs.close(lock)
            raise

    @classmethod
    def _open_locked(
        cls, fs: FileSystem, directory: str, group: str, node_id: str, options: StoreOptions, lock: int
    ) -> Self:
        check_identity(fs, directory, group, node_id, options.data_segment_bytes, options.index_segment_bytes)
        hard_state_file = HardStateFile(fs, directory)
        hard_state = hard_state_file.load()
        data = SegmentedFile(fs, f"{directory}/data", options.data_segment_bytes)
        index = SegmentedFile(fs, f"{directory}/index", options.index_segment_bytes)
        if hard_state is None:
            if data.starts:
                raise CorruptLogError(
                    f"{directory} has a log but no hard_state file, so this node's vote is unknown: restore the file, "
                    "or delete the folder and let the node catch up from its peers"
                )
            # New, or wiped: nobody here knows what this node once promised.
            hard_state = HardState(0, None, UNKNOWN_FLOOR)
            hard_state_file.save(hard_state)
            fs.sync_dir(directory)
        checkpoint, note = load_checkpoint(fs, directory)
        watermark = WatermarkFile(fs, directory)
        recovered, remains = recover(
            data,
            index,
            checkpoint,
            watermark.load(),
            fs.boot_id(),
            term=hard_state.term,
            sync_flush=options.sync_flush,
        )
        if note:
            recovered.report.notes.append(note)
        safe_state = _merge_floor(hard_state, recovered)
        if safe_state != hard_state:
            hard_state_file.save(safe_state)  # before anything is erased
        # What was verified may be in the page cache only, and counts as durable from here on.
        data.dirty.update(start for start in data.starts if start >= data.start_of(checkpoint.end_pos))
        data.sync()
        for folder in (data.directory, index.directory, directory):
            fs.sync_dir(folder)  # a process killed between a creation or rename and this left names in memory only
        remains.erase()
        watermark.save(recovered.last_index, recovered.last_term)
        hard_state = safe_state
        return cls(
            fs, directory, options, data, index, hard_state_file, watermark, lock, hard_state, recovered, checkpoint
        )

    def close(self) -> None:
        """Write what is staged, a checkpoint, and let go of the folder (disk side; the view must be quiet)."""
        if self._closed:
            return
        self._closed = True
        try:
            if self._failed is None:
                while (batch := self.take_batch()) is not None:
                    self.write(batch)
                    self.complete(batch)
                self.flush()
                checkpoint = self._make_checkpoint()
                if checkpoint is not None:
                    with contextlib.suppress(DiskFullError):
                        self._write_checkpoint(checkpoint)
        finally:
            self._data.close()
            self._index.close()
            self._watermark.close()
            self._fs.close(self._lock)

    # ------------------------------------------------------------------ the view

    @property
    def terms(self) -> list[TermRun]:
        """The runs of terms of the whole log."""
        return list(self._runs)

    @property
    def sessions(self) -> SessionTable:
        """The producer sessions as of the view's end."""
        return self._sessions.tail

    def encode(self, term: int, groups: Sequence[EntryGroup]) -> list[Slice]:
        """Lay out new entries at the end of the view (a leader's); `append` them next.

        Raises:
            EntryTooLargeError: an entry that no segment can hold.
        """
        return encode_groups(
            groups,
            term=term,
            first_index=self.last_index + 1,
            pos=self.end_pos,
            prev_chain_crc=self._chain_crc,
            segment_bytes=self.options.data_segment_bytes,
        )

    def append(self, slices: Sequence[Slice]) -> None:
        """Stage slices that continue the view.

        Raises:
            InvariantError: they do not continue it. A chain that differs where index and term agree means that two
                logs have parted below a point that Raft calls equal.
        """
        for part in slices:
            if part.first_index != self.last_index + 1:
                raise InvariantError("a slice continues the log")
            if part.prev_chain_crc != self._chain_crc:
                raise InvariantError(
                    f"the log before entry {part.first_index} differs from the sender's though index and term agree"
                )
            self._check_place(part)
            for run in part.terms:
                if run.term != self.last_term:
                    invariant(run.term > self.last_term, "terms never fall along the log")
                    self._runs.append(run)
                    self.last_term = run.term
            if part.sessions:
                self._sessions.append(part.sessions)
            self.last_index = part.last_index
            self.end_pos = part.first_pos + len(part.data)
            self._chain_crc = part.chain_crc
            self._staged.append(part)
            self._cache.append(part)
            self._cache_starts.append(part.first_index)
            self._cache_bytes += len(part.data)

    def _check_place(self, part: Slice) -> None:
        """Position and segment boundaries are part of the log: a slice may jump only where its entry does not fit."""
        size = self.options.data_segment_bytes
        if part.first_pos != self.end_pos:
            boundary = (self.end_pos // size + 1) * size
            first = part.offsets[1] if len(part.offsets) > 1 else len(part.data)
            fits = self.end_pos + first + MIN_BLANK_BYTES <= boundary
            invariant(part.first_pos == boundary and not fits, "a slice stands where the log ends")
        if part.first_pos % size + len(part.data) > size - MIN_BLANK_BYTES:
            raise InvariantError("a slice never crosses a segment boundary")

    def truncate(self, from_index: int) -> None:
        """Drop every entry at or after ``from_index``; never anything committed."""
        invariant(from_index > self.committed_index, "a committed entry is never truncated")
        if from_index > self.last_index:
            return
        old_end, old_last = self.end_pos, self.last_index
        while self._cache and self._cache[-1].first_index >= from_index:
            self._cache_bytes -= len(self._cache.pop().data)
            self._cache_starts.pop()
        if self._cache and self._cache[-1].last_index >= from_index:
            whole = self._cache[-1]
            self._cache[-1] = whole.up_to(from_index - 1)
            self._cache_bytes += len(self._cache[-1].data) - len(whole.data)
        end_pos, chain_crc = self._end_of(from_index - 1)
        self.end_pos, self._chain_crc = end_pos, chain_crc
        self.last_index = from_index - 1
        while self._runs and self._runs[-1].first_index >= from_index:
            self._runs.pop()
        self.last_term = self._runs[-1].term if self._runs else -1
        self._sessions.truncate(from_index)
        self._written_index = min(self._written_index, self.last_index)
        batch = self._in_flight
        if batch is not None:
            batch.cut_from = from_index if batch.cut_from is None else min(batch.cut_from, from_index)
        self._staged.append(_TruncateOp(from_index, self.last_term, end_pos, old_end, old_last))

    def save_hard_state(self, state: HardState) -> None:
        """Stage term, vote and floor; durable when the batch is."""
        self.hard_state = state
        self._staged.append(state)

    def commit(self, index: int) -> None:
        """The log is committed up to ``index``: nothing there is ever truncated again."""
        if index > self.committed_index:
            if index > self.last_index:
                raise InvariantError("commit index beyond the log")
            self.committed_index = index
            self._sessions.commit(min(index, self._written_index))

    def chain_crc_at(self, index: int) -> int:
        """Return the chain_crc of an entry, 0 for -1. May read 48 bytes from the disk."""
        if index == self.last_index:
            return self._chain_crc
        return self._end_of(index)[1]

    def position_of(self, index: int) -> int:
        """Return the byte position of a recent entry, -1 where that would need the disk."""
        part = self._cached_slice(index)
        return -1 if part is None else part.first_pos + part.offsets[index - part.first_index]

    def _cached_slice(self, index: int) -> Slice | None:
        at = bisect_right(self._cache_starts, index) - 1
        if at < 0 or index > self._cache[at].last_index:
            return None
        return self._cache[at]

    def _end_of(self, index: int) -> tuple[int, int]:
        """(end position, chain_crc) of an entry; (0, 0) for -1."""
        if index == NO_INDEX:
            return 0, 0
        part = self._cached_slice(index)
        if part is not None:
            if index == part.last_index:
                return part.end_pos, part.chain_crc
            end = part.offsets[index + 1 - part.first_index]
            return part.first_pos + end, part.chain_crc_before(index + 1)
        header = self._verified_header(index)
        return header[4] + header[1], header[6]

    def _verified_header(self, index: int) -> tuple[int, ...]:
        """As `_header`, with its chain_crc proved: what is appended next is chained to it.

        Raises:
            CorruptLogError: this header, or the one before it, is not what was written.
        """
        header = self._header(index)
        before = self._header(index - 1)[6] if index > 0 else 0
        if chained_crc(before, header) != header[6]:
            raise self._damaged(header[4], f"the header of entry {index} is not the one that was written")
        return header

    def _header(self, index: int) -> tuple[int, ...]:
        """Read a written entry's header by way of its index record."""
        raw = self._index.read(index * INDEX_RECORD_BYTES, INDEX_RECORD_BYTES)
        pos = INDEX_RECORD.unpack(raw)[1] if len(raw) == INDEX_RECORD_BYTES else -1
        data = self._data.read(pos, HEADER_BYTES) if self._data.start_of(pos) in self._data.starts else b""
        header: tuple[int, ...] = HEADER.unpack(data) if len(data) == HEADER_BYTES else (0, 0, -1, 0, -1, 0, 0, 0, 0)
        if header[2] != index or header[4] != pos:
            raise self._bad_record(index)
        return header

    def cached(self, first_index: int, last_index: int, max_bytes: int) -> RawSlice | None:
        """Return entries from memory, whole ones, at least one if the first is there; None if it is not."""
        at = bisect_right(self._cache_starts, first_index) - 1
        if at < 0 or not self._cache or first_index > self._cache[at].last_index:
            return None
        part = self._cache[at]
        prev_chain_crc = part.chain_crc_before(first_index)
        begin = part.offsets[first_index - part.first_index]
        end, last = _cut(part, begin, last_index, max_bytes)
        pieces = [part.data] if begin == 0 and end == len(part.data) else [part.data[begin:end]]
        length = end - begin
        while last == part.last_index and last < last_index and at + 1 < len(self._cache):
            following = self._cache[at + 1]
            if following.first_pos != part.end_pos:
                break  # a slice never crosses a segment boundary
            if length + following.offsets[0] + self._first_size(following) > max_bytes:
                break
            end, last = _cut(following, 0, last_index, max_bytes - length)
            pieces.append(following.data if end == len(following.data) else following.data[:end])
            length += end
            part = following
            at += 1
        data = pieces[0] if len(pieces) == 1 else b"".join(pieces)
        return RawSlice(first_index, last, data, prev_chain_crc)

    @staticmethod
    def _first_size(part: Slice) -> int:
        return part.offsets[1] if len(part.offsets) > 1 else len(part.data)

    def disk_space(self) -> tuple[int, int]:
        """(free, total) bytes of the disk; -1 where that is not known."""
        return self._fs.disk_space(self.directory)

    # ------------------------------------------------------------------ view → disk → view

    def take_batch(self) -> WriteBatch | None:
        """Take everything staged; None if there is nothing. One batch at a time: `complete` it before the next."""
        staged = self._staged
        if not staged:
            return None
        self._staged = []
        batch = self._in_flight = WriteBatch(staged)
        for operation in staged:
            if isinstance(operation, Slice):
                batch.last = LogId(operation.terms[-1].term, operation.last_index)
                batch.byte_count += len(operation.data)
            elif isinstance(operation, HardState):
                batch.hard_state = operation
                batch.only_appends = False
            else:
                batch.last = LogId(operation.last_term, operation.from_index - 1)
                batch.only_appends = False
        batch.history = (
            batch.last is not None
            and batch.byte_count > _LARGE_WRITE_BYTES
            and batch.last.index <= self.committed_index
        )
        if self._is_checkpoint_due():
            batch.checkpoint = self._make_checkpoint()
        return batch

    def _is_checkpoint_due(self) -> bool:
        options = self.options
        if self._sessions.base_index - self._checkpointed_index >= options.checkpoint_entries:
            return True
        if self.end_pos - self._checkpointed_pos < options.checkpoint_bytes:  # so what is committed ends before, too
            return False
        return self._end_pos_of_commit() - self._checkpointed_pos >= options.checkpoint_bytes

    def _end_pos_of_commit(self) -> int:
        index = self._sessions.base_index
        if index != self._cached_end_of_commit[0]:
            part = self._cached_slice(index)
            if part is None:
                return self._cached_end_of_commit[1]  # soon: the next commit is in the cache again
            self._cached_end_of_commit = (index, self._end_of(index)[0])
        return self._cached_end_of_commit[1]

    def _make_checkpoint(self) -> Checkpoint | None:
        """The state at the end of what is both committed and written here."""
        index = self._sessions.base_index
        end_pos, chain_crc = self._end_of(index)
        if index == NO_INDEX or end_pos <= self._checkpointed_pos:
            return None
        runs = tuple(run for run in self._runs if run.first_index <= index)
        return Checkpoint(index, runs[-1].term, end_pos, chain_crc, runs, self._sessions.base.to_json())

    def write(self, batch: WriteBatch) -> None:
        """Make a batch durable (SYNC_FLUSH), or at least known to the page cache (ASYNC_FLUSH). Disk side.

        Raises:
            DiskFullError: no room. Nothing is lost: call again with the same batch when there is.
            StorageFailedError: anything else. The store is latched: every later write raises it again.
        """
        self.write_entries(batch)
        self.write_index(batch)

    def write_entries(self, batch: WriteBatch) -> None:
        """The part of `write` that acknowledging waits for; `write_index` must follow. Raises what `write` raises."""
        if self._failed is not None:
            raise self._failed
        try:
            self._write(batch)
        except StorageFailedError as error:
            self._failed = error
            raise

    def write_index(self, batch: WriteBatch) -> None:
        """The rest of `write`: after a power failure an index record never names an entry that was not durable."""
        if self._failed is not None:
            raise self._failed
        try:
            self._write_index(batch.unindexed)
            if batch.checkpoint is not None:
                self._data.sync()
                self._try_checkpoint(batch)
        except StorageFailedError as error:
            self._failed = error
            raise

    def _write(self, batch: WriteBatch) -> None:
        # The last hard state of the batch, once, and first: what was staged before it may well come after it, but
        # nothing staged after it may come before it.
        if batch.hard_state is not None:
            self._hard_state_file.save(batch.hard_state)
        self._writes_history = batch.history
        run: list[Slice] = []
        for operation in batch.operations:
            if isinstance(operation, Slice):
                run.append(operation)
            elif isinstance(operation, _TruncateOp):
                self._write_slices(run)
                self._data.sync()  # what stays must be durable before the watermark may say so
                self._write_index(run)
                run = []
                self._truncate_files(operation)
        self._write_slices(run)
        if batch.last is not None and self.options.sync_flush:
            self._data.sync()
            self._watermark.save(batch.last.index, batch.last.term)
        batch.unindexed = run
        if batch.last is not None:
            self._disk_last = batch.last

    def _write_slices(self, slices: list[Slice]) -> None:
        """Few system calls for many slices: contiguous ones go together."""
        at = 0
        while at < len(slices):
            first = slices[at]
            buffers = [first.data]
            end_pos = first.end_pos
            until = at + 1
            while until < len(slices) and slices[until].first_pos == end_pos:
                buffers.append(slices[until].data)
                end_pos = slices[until].end_pos
                until += 1
            if first.first_pos != self._disk_end_pos:
                self._fill(self._disk_end_pos, first.first_pos)
            self._prepare_to(end_pos, end_pos - first.first_pos)
            self._data.write(first.first_pos, buffers, end_pos - first.first_pos, keep=not self._writes_history)
            self._sums.add(first.first_pos, buffers, end_pos - first.first_pos)
            self._disk_end_pos = end_pos
            at = until

    def _write_index(self, slices: list[Slice]) -> None:
        if slices:
            records = [part.index_records for part in slices]
            self._index.write(slices[0].first_index * INDEX_RECORD_BYTES, records, sum(map(len, records)))

    def _fill(self, pos: int, next_pos: int) -> None:
        """Write the blank record that closes a segment."""
        if pos % self.options.data_segment_bytes and pos < next_pos:
            self._data.write(pos, (BLANK.pack(BLANK_MAGIC, next_pos - pos),), BLANK.size)

    def _prepare_to(self, pos: int, length: int) -> None:
        """Have zeros written beyond ``pos``, a stretch at a time, within its segment.

        Only where many small writes will profit: a large one costs no more on new blocks than zeroing them first.
        """
        if pos <= self._prepared_pos:
            return
        if length > _LARGE_WRITE_BYTES:
            self._prepared_pos = pos
            return
        limit = self._data.start_of(pos - 1) + self.options.data_segment_bytes
        end = min(pos + self._stretch_bytes, limit)
        begin = max(pos, self._data.start_of(pos - 1))
        if end > begin:
            self._data.zero(begin, end - begin)
        self._prepared_pos = end

    @property
    def wants_preparation(self) -> bool:
        """Whether an idle disk could be zeroing ahead: `prepare`. (Not where history comes, in large writes.)"""
        ahead = self._prepared_pos - self._disk_end_pos
        wanted = self._ahead_bytes - self._stretch_bytes // 2
        return self._failed is None and not self._writes_history and ahead < wanted

    def prepare(self) -> None:
        """Zero one stretch ahead, in the next segment where this one is done, and sync it (disk side)."""
        limit = self._data.start_of(self._prepared_pos) + self.options.data_segment_bytes
        end = min(self._prepared_pos + self._stretch_bytes, limit)
        try:
            self._data.zero(self._prepared_pos, end - self._prepared_pos)
            self._prepared_pos = end
            self._data.sync()
        except StorageFailedError as error:
            self._failed = error
            raise

    def _truncate_files(self, operation: _TruncateOp) -> None:
        """Take entries off the disk, first what points at them: else a crash half-way would look like damage."""
        self._watermark.save(operation.from_index - 1, operation.last_term, durable=True)
        count = operation.old_last_index - operation.from_index + 1
        zeros = bytes(count * INDEX_RECORD_BYTES)
        self._index.write(operation.from_index * INDEX_RECORD_BYTES, (zeros,), len(zeros))
        self._index.sync()
        home = self._data.start_of(max(operation.pos - 1, 0))
        self._sums.cut(operation.pos)
        for start in self._data.starts:
            low, high = max(start, operation.pos), min(start + self.options.data_segment_bytes, operation.old_end_pos)
            if start <= home and low < high:
                self._data.zero(low, high - low)
        self._data.sync()
        if self._data.drop_after(home):
            self._prepared_pos = min(self._prepared_pos, home + self.options.data_segment_bytes)
        self._disk_end_pos = operation.pos

    def _try_checkpoint(self, batch: WriteBatch) -> None:
        """Write the batch's checkpoint; on a full disk leave it for later: it only saves time at the next start."""
        if batch.checkpoint is None:
            return
        try:
            self._write_checkpoint(batch.checkpoint)
        except DiskFullError:
            batch.checkpoint = None

    def _write_checkpoint(self, checkpoint: Checkpoint) -> None:
        self._index.sync()
        checkpoint.save(self._fs, self.directory)

    def complete(self, batch: WriteBatch) -> None:
        """The batch is written: release what it held (view).

        What has been truncated meanwhile does not count, even if the same entries (index and term) have been appended
        again since: the disk has yet to take them off and put them back. ``batch.last`` says what does count.
        """
        self._in_flight = None
        if batch.cut_from is not None and batch.last is not None and batch.last.index >= batch.cut_from:
            before = batch.cut_from - 1
            term = self._term_at(before)
            batch.last = LogId(-1 if term is None else term, before)
        elif batch.last is not None and self._term_at(batch.last.index) == batch.last.term:
            self._written_index = max(self._written_index, batch.last.index)
        if batch.checkpoint is not None:
            self._checkpointed_pos = batch.checkpoint.end_pos
            self._checkpointed_index = batch.checkpoint.index
        self._sessions.commit(min(self.committed_index, self._written_index))
        self._trim()

    def _term_at(self, index: int) -> int | None:
        if index > self.last_index:
            return None
        if self._runs and self._runs[-1].first_index <= index:
            return self._runs[-1].term
        at = bisect_right(self._runs, index, key=lambda run: run.first_index) - 1
        return self._runs[at].term if at >= 0 else None

    def _trim(self) -> None:
        """Keep the newest ``cache_bytes``, and whatever is not written yet."""
        drop = 0
        while (
            self._cache_bytes > self.options.cache_bytes
            and drop < len(self._cache) - 1
            and self._cache[drop].last_index <= self._written_index
        ):
            self._cache_bytes -= len(self._cache[drop].data)
            drop += 1
        if drop:
            del self._cache[:drop]
            del self._cache_starts[:drop]

    @property
    def wants_flush(self) -> bool:
        """ASYNC_FLUSH: whether something has been written and not synced."""
        return not self.options.sync_flush and bool(self._data.dirty) and self._failed is None

    def flush(self) -> None:
        """Sync what has been written (disk side). A failure latches the store."""
        try:
            self._data.sync()
        except StorageFailedError as error:
            self._failed = error
            raise
        self._watermark.save(self._disk_last.index, self._disk_last.term)

    # ------------------------------------------------------------------ reads, any thread

    def read(self, first_index: int, last_index: int, max_bytes: int, *, with_crc: bool = False) -> RawSlice:
        """Read written entries from the disk: whole ones, within one segment, at least one.

        Each is verified, or all bytes are those of an earlier verification, by the sums of their blocks. ``with_crc``:
        with the CRC of all, for a peer (where there are several).

        Raises:
            IndexOutOfRangeError: not written (yet).
            CorruptLogError: what stands there is not what was written.
        """
        last_index = min(last_index, self._written_index)
        if not self.first_index <= first_index <= last_index:
            raise IndexOutOfRangeError(f"entries {first_index}..{last_index} are not on the disk of this node")
        if first_index == last_index:
            one = self._read_one(first_index)
            if one is not None:
                return one
        records = self._records(first_index, last_index)
        _, pos, size, record_index, _ = INDEX_RECORD.unpack_from(records)
        limit = (pos // self.options.data_segment_bytes + 1) * self.options.data_segment_bytes
        if record_index != first_index or size < HEADER_BYTES or not 0 <= pos < pos + size <= limit:
            raise self._bad_record(first_index)

        def end_of(number: int) -> int:
            record: tuple[int, ...] = INDEX_RECORD.unpack_from(records, number * INDEX_RECORD_BYTES)
            return record[1] + record[2]

        def count_until(limit: int) -> int:
            return bisect_right(range(len(records) // INDEX_RECORD_BYTES), limit, lo=1, key=end_of)

        prev_chain_crc = self._header(first_index - 1)[6] if first_index > 0 else 0
        limit = min(pos + max_bytes, limit)
        known = self._sums.known_until(pos, limit)
        if known - pos >= _MIN_BLOCKS_A_READ * self._sums.block_bytes:
            count = count_until(min(known, limit))
            last_pos = INDEX_RECORD.unpack_from(records, (count - 1) * INDEX_RECORD_BYTES)[1]
            ahead = max_bytes if first_index + count <= last_index else 0
            raw = self._read_known(
                pos, last_pos, end_of(count - 1), ahead, first_index, count, prev_chain_crc, with_crc
            )
            if raw is not None:
                return raw
        count = count_until(limit)
        end = end_of(count - 1)
        if end < pos + size:
            self._check_records(records, first_index, pos, count)
        data = self._data.read(pos, end - pos, max_bytes if first_index + count <= last_index else 0)
        crc = google_crc32c.value(data) if with_crc else None  # before it is verified: nothing may happen in between
        try:
            parsed = parse_slice(data, first_index, prev_chain_crc)
        except CorruptSliceError as error:
            self._check_records(records, first_index, pos, count)
            raise self._damaged(pos, error.message) from error
        if len(parsed) != count or parsed.first_pos != pos:
            raise self._bad_record(first_index)
        if parsed.last_index <= self.committed_index:
            self._sums.add(pos, (data,), len(data))
        return RawSlice(first_index, parsed.last_index, data, prev_chain_crc, crc)

    def _read_one(self, index: int) -> RawSlice | None:
        """Return an entry by one read of each file: with it comes the one before, to whose chain_crc it is chained.

        None where these two do not lie together, or anything is not as it should be: the long way says what.
        """
        if index == 0:
            return None
        records = self._index.read((index - 1) * INDEX_RECORD_BYTES, 2 * INDEX_RECORD_BYTES)
        if len(records) < 2 * INDEX_RECORD_BYTES:  # the segment ends between them
            return None
        _, before_pos, before_size, _, _ = INDEX_RECORD.unpack_from(records)
        _, pos, size, record_index, _ = INDEX_RECORD.unpack_from(records, INDEX_RECORD_BYTES)
        limit = self._data.start_of(before_pos) + self.options.data_segment_bytes
        if not 0 <= before_pos < pos == before_pos + before_size < pos + size <= limit:
            return None
        if record_index != index or size < HEADER_BYTES or not HEADER_BYTES <= before_size <= _SMALL_ENTRY_BYTES:
            return None
        both = self._data.read(before_pos, before_size + size)
        if len(both) < before_size + size:
            return None
        before = HEADER.unpack_from(both)
        data = both[before_size:]
        if (before[2], before[4]) != (index - 1, before_pos) or not is_entry(data, index, pos, before[6]):
            return None
        return RawSlice(index, index, data, before[6])

    def _read_known(
        self,
        pos: int,
        last_pos: int,
        end: int,
        ahead: int,
        first_index: int,
        count: int,
        prev_chain_crc: int,
        with_crc: bool,
    ) -> RawSlice | None:
        """Return the entries from ``pos`` to ``end`` if all blocks around them have their sums; else None.

        Then every byte is the one that was verified or written there. What is left to prove is that the index records,
        which say where entries begin, are those of these entries.
        """
        block_bytes = self._sums.block_bytes
        start = self._data.start_of(pos)
        begin = pos - (pos - start) % block_bytes
        until = end + (start - end) % block_bytes
        if not pos <= last_pos <= end - HEADER_BYTES:
            return None
        blocks = self._data.read(begin, until - begin, ahead)
        data = blocks[pos - begin : end - begin]
        crc = google_crc32c.value(data) if with_crc else None
        if not self._sums.match(begin, blocks):
            return None
        first = HEADER.unpack_from(data)
        last = HEADER.unpack_from(data, last_pos - pos)
        if (
            (first[2], first[4], first[6]) != (first_index, pos, chained_crc(prev_chain_crc, first))
            or (last[2], last[4]) != (first_index + count - 1, last_pos)
            or last_pos + last[1] != end
        ):
            return None
        return RawSlice(first_index, first_index + count - 1, data, prev_chain_crc, crc)

    def _check_records(self, records: bytes, first_index: int, pos: int, count: int) -> None:
        """Raise unless the first ``count`` index records agree with each other: what is damaged is one of them."""
        for number, (_, entry_pos, size, index, _) in enumerate(islice(INDEX_RECORD.iter_unpack(records), count)):
            if (entry_pos, index) != (pos, first_index + number) or size < HEADER_BYTES:
                raise self._bad_record(first_index + number)
            pos += size

    def _damaged(self, pos: int, problem: str) -> CorruptLogError:
        start = self._data.start_of(pos)
        return CorruptLogError(
            f"{self._data.path(start)}: damaged behind byte {pos - start} ({problem}). Restore the folder "
            "from a copy, or delete it and let the node catch up from its peers (one node at a time, never all)"
        )

    def _bad_record(self, index: int) -> CorruptLogError:
        at = index * INDEX_RECORD_BYTES
        start = self._index.start_of(at)
        return CorruptLogError(
            f"{self._index.path(start)}: the record of entry {index} at byte {at - start} is damaged; stop the node, "
            f"delete {self._index.directory} and start it: the index is made again from the data"
        )

    def _records(self, first_index: int, last_index: int) -> bytes:
        count = min(last_index - first_index + 1, _RECORDS_A_READ)
        pos = first_index * INDEX_RECORD_BYTES
        room = self._index.start_of(pos) + self.options.index_segment_bytes - pos
        length = min(count * INDEX_RECORD_BYTES, room)
        raw = self._index.read(pos, length)
        if len(raw) < length:
            raise self._bad_record(first_index + len(raw) // INDEX_RECORD_BYTES)
        return raw


def _merge_floor(state: HardState, recovered: RecoveredLog) -> HardState:
    """Return the hard state that goes with what was recovered: never weaker, with its floor where one is needed."""
    floor = recovered.report.vote_floor
    if state.term < recovered.last_term:
        # Somebody put an old hard_state file there: what this node voted since is not known any more.
        recovered.report.notes.append(f"the hard state is of term {state.term}, older than the log: vote unknown")
        recovered.report.vote_floor = UNKNOWN_FLOOR
        return HardState(recovered.last_term, None, UNKNOWN_FLOOR)
    if floor is None or (state.vote_floor is not None and state.vote_floor >= floor):
        return state
    return HardState(state.term, state.vote, floor)


def _cut(part: Slice, begin: int, last_index: int, max_bytes: int) -> tuple[int, int]:
    """Return (end offset, last index): whole entries from ``begin``, at least one, at most ``max_bytes``."""
    if last_index >= part.last_index and len(part.data) - begin <= max_bytes:
        return len(part.data), part.last_index
    number = bisect_right(part.offsets, begin + max_bytes)  # entries that start within the limit
    stop = number - 1 if number < len(part.offsets) or len(part.data) > begin + max_bytes else number
    first = bisect_right(part.offsets, begin) - 1
    stop = max(stop, first + 1)
    stop = min(stop, last_index - part.first_index + 1)
    end = part.offsets[stop] if stop < len(part.offsets) else len(part.data)
    return end, part.first_index + stop - 1
