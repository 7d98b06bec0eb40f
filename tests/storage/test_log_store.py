"""The store's contract, on real files and in memory."""

from __future__ import annotations

from dataclasses import replace

import google_crc32c
import pytest

from dledger.errors import (
    CorruptLogError,
    DiskFullError,
    IndexOutOfRangeError,
    StorageError,
    StorageFailedError,
    StoreLockedError,
)
from dledger.raft.messages import UNKNOWN_FLOOR, EntryType, HardState, InvariantError, TermRun
from dledger.storage.entry import EntryGroup, iter_entries, parse_slice
from dledger.storage.filesystem import RealFileSystem
from dledger.storage.log_store import LogStore, StoreOptions
from dledger.storage.memory_filesystem import MemoryFileSystem
from dledger.storage.verify import iter_directory, verify_directory
from tests.storage.helpers import OPTIONS, append, bodies_of, fill, flush, open_store


def test_what_was_written_is_there_after_reopening(fs, folder):
    store = open_store(fs, folder)
    bodies = fill(store, 200)
    end = (store.last_index, store.last_term, store.end_pos, store.chain_crc_at(199))
    store.close()
    again = open_store(fs, folder)
    assert (again.last_index, again.last_term, again.end_pos, again.chain_crc_at(199)) == end
    assert bodies_of(again) == bodies
    assert again.terms == [TermRun(0, 1)]
    again.close()


def test_segments_have_their_size_and_names(fs, folder):
    store = open_store(fs, folder)
    fill(store, 200)
    store.close()
    names = fs.listdir(folder + "/data")
    assert names[:2] == ["00000000000000000000", "00000000000000004096"]
    for name in names:
        handle = fs.open(f"{folder}/data/{name}")
        assert fs.size(handle) == 4096
        fs.close(handle)
    assert len(fs.listdir(folder + "/index")) == 200 * 32 // 1024 + 1


def test_cached_and_read_agree_on_every_range(fs, folder):
    """Memory and disk give the same bytes, whatever range and limit."""
    store = open_store(fs, folder)
    fill(store, 120, per_write=7)
    for first in range(0, 120, 5):
        for last in (first, first + 1, first + 20, 119):
            if last > 119:
                continue
            for limit in (1, 100, 500, 100_000):
                raw = store.read(first, last, limit)
                hot = store.cached(first, last, limit)
                common = min(len(raw.data), len(hot.data))
                assert raw.data[:common] == hot.data[:common]
                assert raw.prev_chain_crc == hot.prev_chain_crc
                for got in (raw, hot):
                    assert len(got.data) <= limit or got.last_index == first
                    entries = list(iter_entries(got.data))
                    assert [e.index for e in entries] == list(range(first, got.last_index + 1))
                    assert got.last_index <= last
    store.close()


def test_reads_never_see_what_is_not_written(fs, folder):
    store = open_store(fs, folder)
    append(store, [b"a"])
    with pytest.raises(IndexOutOfRangeError):
        store.read(0, 0, 100)
    assert store.cached(0, 0, 100) is not None
    flush(store)
    assert store.read(0, 0, 100).last_index == 0
    store.close()


def test_a_conflicting_tail_is_truncated_and_replaced(fs, folder):
    store = open_store(fs, folder)
    bodies = fill(store, 100)
    store.commit(29)
    store.truncate(30)
    append(store, [b"new"], term=4)
    flush(store)
    store.close()
    again = open_store(fs, folder)
    assert bodies_of(again) == [*bodies[:30], b"new"]
    assert again.terms == [TermRun(0, 1), TermRun(30, 4)]
    assert verify_directory(fs, folder).ok
    again.close()


def test_truncation_across_segments_removes_files(fs, folder):
    store = open_store(fs, folder)
    bodies = fill(store, 300)
    before = fs.listdir(folder + "/data")
    store.truncate(10)
    flush(store)
    assert len(fs.listdir(folder + "/data")) == 1 < len(before)
    append(store, bodies[10:300], term=2)
    flush(store)
    assert bodies_of(store) == bodies
    store.close()


def test_everything_can_be_truncated(fs, folder):
    store = open_store(fs, folder)
    fill(store, 20)
    store.truncate(0)
    append(store, [b"x"], term=2)
    flush(store)
    store.close()
    again = open_store(fs, folder)
    assert bodies_of(again) == [b"x"]
    again.close()


def test_a_staged_tail_can_be_truncated_before_it_was_written(fs, folder):
    store = open_store(fs, folder)
    append(store, [b"a", b"b", b"c"])
    store.truncate(1)
    append(store, [b"B"], term=2)
    flush(store)
    assert bodies_of(store) == [b"a", b"B"]
    store.close()
    again = open_store(fs, folder)
    assert bodies_of(again) == [b"a", b"B"]
    again.close()


def test_nothing_committed_is_ever_truncated(fs, folder):
    store = open_store(fs, folder)
    fill(store, 10)
    store.commit(5)
    with pytest.raises(InvariantError):
        store.truncate(5)
    store.close()


def test_a_slice_must_continue_the_log(fs, folder):
    store = open_store(fs, folder)
    other = open_store(fs, folder + "-other")
    fill(store, 3)
    append(other, [b"different"])
    append(other, [b"second"])
    second = other.encode(1, [EntryGroup(EntryType.NORMAL, 0, [b"third"])])
    with pytest.raises(InvariantError, match="continues"):
        store.append(second)
    store.truncate(2)
    with pytest.raises(InvariantError, match="differs"):
        store.append(second)
    other.close()
    store.close()


def test_term_vote_and_floor_are_one_durable_value(fs, folder):
    store = open_store(fs, folder)
    assert store.hard_state == HardState(0, None, UNKNOWN_FLOOR)  # a new folder promises nothing about the past
    store.save_hard_state(HardState(7, "n2", None))
    flush(store)
    store.close()
    again = open_store(fs, folder)
    assert again.hard_state == HardState(7, "n2", None)
    again.close()


def test_sessions_survive_a_restart_with_and_without_checkpoint(fs, folder):
    store = open_store(fs, folder)
    append(store, [b"client"], channel=1, kind=EntryType.SESSION)
    append(store, [b"a", b"b"], channel=1)
    flush(store)
    store.close()  # nothing committed: no checkpoint
    again = open_store(fs, folder)
    assert again.recovery.from_index == 0
    assert again.sessions.locate(1, 0, 2) == [(1, 2)]
    again.commit(2)
    append(again, [b"c"], channel=1)
    flush(again)
    again.close()
    third = open_store(fs, folder)
    assert third.recovery.from_index == 3
    assert third.sessions.locate(1, 0, 3) == [(1, 3)]
    assert third.sessions.find(b"client").session_id == 1
    third.close()


def test_two_processes_cannot_share_a_folder(fs, folder):
    store = open_store(fs, folder)
    with pytest.raises(StoreLockedError, match="two nodes cannot share"):
        open_store(fs, folder)
    store.close()
    open_store(fs, folder).close()


def test_a_folder_belongs_to_one_group_and_node(fs, folder):
    open_store(fs, folder).close()
    for group, node in (("other", "n0"), ("g", "n1")):
        with pytest.raises(StorageError, match="belongs to node n0 of group g"):
            LogStore.open(fs, folder, group=group, node_id=node, options=OPTIONS)


def test_a_log_without_hard_state_is_refused(fs, folder):
    store = open_store(fs, folder)
    fill(store, 3)
    store.close()
    fs.unlink(folder + "/hard_state")
    with pytest.raises(CorruptLogError, match="vote is unknown"):
        open_store(fs, folder)


def test_changed_segment_sizes_are_refused(fs, folder):
    store = open_store(fs, folder)
    fill(store, 200)
    store.close()
    for sizes in ({"data_segment_bytes": 8192}, {"data_segment_bytes": 2048}, {"index_segment_bytes": 2048}):
        with pytest.raises(StorageError, match="restore the former sizes"):
            open_store(fs, folder, replace(OPTIONS, **sizes))
    open_store(fs, folder).close()


class _Faulty(MemoryFileSystem):
    error: Exception | None = None
    on = ("pwrite", "sync")

    def before(self, operation, path):
        if self.error is not None and operation in self.on and "/data/" in path:
            raise self.error


def test_a_full_disk_loses_nothing_and_the_batch_can_be_written_later(folder):
    fs = _Faulty()
    store = open_store(fs, folder)
    bodies = fill(store, 10)
    append(store, [b"more"], term=1)
    fs.error = DiskFullError("no space")
    batch = store.take_batch()
    for _ in range(3):
        with pytest.raises(DiskFullError):
            store.write(batch)
    fs.error = None
    store.write(batch)
    store.complete(batch)
    assert bodies_of(store) == [*bodies, b"more"]
    store.close()
    again = open_store(fs, folder)
    assert bodies_of(again) == [*bodies, b"more"]
    again.close()


def test_a_failed_sync_latches_the_store(folder):
    fs = _Faulty()
    fs.on = ("sync",)
    store = open_store(fs, folder)
    fill(store, 3)
    append(store, [b"x"])
    fs.error = StorageFailedError("fdatasync: EIO")
    batch = store.take_batch()
    with pytest.raises(StorageFailedError):
        store.write(batch)
    fs.error = None
    with pytest.raises(StorageFailedError):
        store.write(batch)  # never retry and trust
    store.close()


def test_async_flush_syncs_in_the_background_only(folder):
    class Counting(MemoryFileSystem):
        syncs = 0

        def before(self, operation, path):
            self.syncs += operation == "sync" and "/data/" in path

    fs = Counting()
    store = open_store(fs, folder, StoreOptions(data_segment_bytes=1 << 20, sync_flush=False))
    before = fs.syncs
    fill(store, 50)
    assert fs.syncs <= before + 1  # the new file's
    assert store.wants_flush
    store.flush()
    assert not store.wants_flush
    store.close()


def test_group_commit_is_one_sync_for_many_slices(folder):
    class Counting(MemoryFileSystem):
        syncs = 0

        def before(self, operation, path):
            self.syncs += operation == "sync" and "/data/" in path

    fs = Counting()
    store = open_store(fs, folder, StoreOptions(data_segment_bytes=1 << 20))
    fill(store, 5)
    before = fs.syncs
    for n in range(100):
        append(store, [b"%d" % n])
    flush(store)
    assert fs.syncs == before + 1
    store.close()


def test_preparation_zeroes_ahead_and_keeps_the_log(fs, folder):
    store = open_store(
        fs, folder, StoreOptions(data_segment_bytes=1 << 16, index_segment_bytes=1 << 12, prepare_bytes=4096)
    )
    bodies = fill(store, 30)
    rounds = 0
    while store.wants_preparation:
        store.prepare()
        rounds += 1
    bodies += fill(store, 30)
    assert bodies_of(store) == bodies
    assert 0 < rounds <= 3
    while store.wants_preparation:
        store.prepare()
    store.close()
    again = open_store(
        fs, folder, StoreOptions(data_segment_bytes=1 << 16, index_segment_bytes=1 << 12, prepare_bytes=4096)
    )
    assert bodies_of(again) == bodies
    assert again.recovery.cut_bytes == 0
    again.close()


def test_a_reader_finds_damage_and_never_serves_it(tmp_path):
    fs, folder = RealFileSystem(), str(tmp_path / "d")
    store = open_store(fs, folder, StoreOptions(data_segment_bytes=4096, index_segment_bytes=1024, cache_bytes=0))
    fill(store, 50)
    handle = fs.open(folder + "/data/00000000000000000000")
    fs.pwrite(handle, b"\xff", 500)
    fs.close(handle)
    with pytest.raises(CorruptLogError, match="00000000000000000000"):
        bodies_of(store)
    report = verify_directory(fs, folder)
    assert not report.ok
    assert report.damage[-1].index == 5
    store.close()


def test_the_files_are_readable_from_outside_while_the_store_is_open(fs, folder):
    store = open_store(fs, folder)
    bodies = fill(store, 150)
    assert [entry.body for entry in iter_directory(fs, folder)] == bodies
    report = verify_directory(fs, folder)
    assert (report.ok, report.entry_count, report.last_index) == (True, 150, 149)
    assert report.chain_crc == store.chain_crc_at(149)
    store.close()


def test_replicas_are_byte_identical(tmp_path):
    """A follower that takes a leader's slices has the same files, blanks and all."""
    fs = RealFileSystem()
    leader = open_store(fs, str(tmp_path / "a"))
    follower = open_store(fs, str(tmp_path / "b"))
    fill(leader, 200, size=90, per_write=11)
    index = 0
    while index <= leader.last_index:
        raw = leader.read(index, leader.last_index, 777)
        follower.append([parse_slice(raw.data, index, raw.prev_chain_crc)])
        flush(follower)
        index = raw.last_index + 1
    for kind in ("data", "index"):
        for name in fs.listdir(f"{tmp_path}/a/{kind}"):
            assert (tmp_path / "a" / kind / name).read_bytes() == (tmp_path / "b" / kind / name).read_bytes()
    leader.close()
    follower.close()


# -- what a follower catches up with


class WatchedFiles(MemoryFileSystem):
    """Remembers which writes to the log's data were to stay in memory."""

    def __init__(self):
        super().__init__()
        self.kept = []

    def pwritev(self, handle, buffers, offset, *, keep=True):
        if "/data/" in self.path_of(handle):
            self.kept.append(keep)
        super().pwritev(handle, buffers, offset, keep=keep)


def test_only_history_is_not_kept_in_the_page_cache():
    """What was committed before it came here is old: nobody will soon read it from this node. Nor is it zeroed ahead."""
    fs = WatchedFiles()
    store = open_store(fs, "/n0", replace(OPTIONS, data_segment_bytes=1 << 20))
    large = [bytes([number]) * 1000 for number in range(100)]
    for bodies, uncommitted, history in (
        (large, 100, False),
        (large, 0, True),
        (large, 1, False),  # one of them is new
        (large, 0, True),
        (large[:3], 0, False),  # committed by the others while the disk was slow
    ):
        fs.kept.clear()
        append(store, bodies)
        store.commit(store.last_index - uncommitted)
        flush(store)
        assert set(fs.kept) == {not history}
        assert store.wants_preparation == (not history and bodies is large)  # (a small write has just had its zeros)
    assert bodies_of(store) == large * 4 + large[:3]
    store.close()


def test_entries_for_a_peer_come_with_their_crc(fs, folder):
    """Verified one by one at first, by the sums of their blocks later."""
    options = replace(OPTIONS, data_segment_bytes=256 * 1024, sum_block_bytes=512)
    store = open_store(fs, folder, options)
    fill(store, 200)
    for _ in range(2):
        for first in (0, 1, 90):
            raw = store.read(first, 199, 100_000, with_crc=True)
            assert raw.crc == google_crc32c.value(raw.data)
            assert replace(raw, crc=None) == store.read(first, 199, 100_000)
    store.close()
    again = open_store(fs, folder, options)
    raw = again.read(3, 199, 100_000, with_crc=True)
    assert raw.crc == google_crc32c.value(raw.data)
    again.close()
