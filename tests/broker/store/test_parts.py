"""The store's parts at their edges: cold reads, few descriptors, misplaced messages, index chains, checkpoints that fail."""

from __future__ import annotations

import asyncio
import errno
import os
import struct
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker_adapter.message import Message, decode_message, encode_message
from broker_adapter.store.api import GetMessageStatus
from broker_adapter.store.base import NotReadableYetError
from broker_adapter.store.checkpoint import LogicCheckpoint, StoreTimestamps
from broker_adapter.store.commit_log import _is_whole
from broker_adapter.store.consume_queue import UNIT_BYTES
from broker_adapter.store.encode import batch_messages
from broker_adapter.store.files import ColdReadError, FdPool, SegmentFiles, sync_paths, warm
from broker_adapter.store.index_file import IndexFile, IndexService
from broker_adapter.store.logic import DelayLevels, LogicStore, StoredBytes
from broker_adapter.store.retention import expired_files
from broker_adapter.store.state import STATE_MAGIC, decode_state, encode_state
from dledger import DLedgerError
from dledger.errors import DiskFullError, StorageFailedError
from tests.broker.format_reader import read_index_file
from tests.broker.store.helpers import check_files, consume, fill, opened, store_config


@pytest.mark.asyncio
async def test_cold_reads_go_through_a_thread_and_give_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing in memory: each first touch of a place is refused by the quick read, warmed, and read again."""
    store = await opened(store_config(tmp_path, message_cache_bytes=0))
    await fill(store, 150)
    expected = await consume(store, "Topic", 1)
    warmed: list[tuple[str, int]] = []
    seen: set[tuple[str, int]] = set()
    read = store._pool.read

    def cold(path: str, offset: int, length: int, *, now: bool, writable: bool = False) -> bytes:
        if now and (path, offset) not in seen:
            raise ColdReadError(path, offset, length)
        return read(path, offset, length, now=now, writable=writable)

    def note(path: str, offset: int, length: int) -> None:
        warm(path, offset, length)
        seen.add((path, offset))
        warmed.append((path, offset))

    monkeypatch.setattr(store._pool, "read", cold)
    monkeypatch.setattr("broker_adapter.store.base.warm", note)
    assert await consume(store, "Topic", 1) == expected
    assert any("consumequeue" in path for path, _ in warmed)
    assert any("commitlog" in path for path, _ in warmed)
    await store.stop()


@pytest.mark.asyncio
async def test_a_message_that_is_not_on_disk_yet_is_waited_for_and_never_skipped(tmp_path: Path) -> None:
    store = await opened(store_config(tmp_path))
    await fill(store, 9)
    expected = await consume(store, "Topic", 0)
    store.logic.cache.clear()
    refusals = 3
    read_message = store._read_message

    def lagging(physical: int, size: int, *, now: bool) -> bytes | None:
        nonlocal refusals
        if refusals:
            refusals -= 1
            raise NotReadableYetError("later")
        return read_message(physical, size, now=now)

    store._read_message = lagging  # type: ignore[method-assign]
    store.read_span = lambda physical, length, now: b""  # type: ignore[method-assign]
    assert await consume(store, "Topic", 0) == expected
    assert refusals == 0
    await store.stop()


@pytest.mark.asyncio
async def test_a_pull_over_removed_messages_goes_on_behind_them(tmp_path: Path) -> None:
    """The log's file went away between the look at the queue and the read: the next file's messages are found."""
    store = await opened(store_config(tmp_path, message_cache_bytes=0))
    await asyncio.gather(*(store.put_message(Message("T", b"x" * 400)) for _ in range(80)))
    store.commit_log.files.delete_before(store.commit_log.file_bytes)  # queues not told
    result = await store.get_message("g", "T", 0, 0, 60, max_bytes=1 << 20)
    assert result.status is GetMessageStatus.FOUND
    assert decode_message(result.buffers[0]).physical_offset == store.commit_log.file_bytes
    await store.stop()


def test_few_descriptors_are_enough(tmp_path: Path) -> None:
    pool = FdPool(limit=2)
    files = SegmentFiles(str(tmp_path / "q"), 100, pool)
    for start in range(0, 1000, 50):
        files.write(start, b"%03d" % start * 16 + b"..")
    assert len(os.listdir("/proc/self/fd")) < 200
    for start in range(0, 1000, 50):
        assert files.read(start, 3, now=False) == b"%03d" % start
    assert len(pool._open) == 2
    pool.close()


def test_files_written_over_their_borders_and_cut_anywhere(tmp_path: Path) -> None:
    """Cutting leaves the bytes before, and zeros where new bytes may come."""
    data = bytes(range(1, 251))
    for cut in range(0, 251, 7):
        pool = FdPool()
        files = SegmentFiles(str(tmp_path / str(cut)), 64, pool)
        files.write(0, data)
        files.truncate(cut)
        files.write(cut, b"!")
        read = b"".join(files.read(start, 64, now=False) for start in files.starts)
        assert read == data[:cut] + b"!" + bytes(len(read) - cut - 1)
        again = SegmentFiles(str(tmp_path / str(cut)), 64, pool)
        again.load()
        assert again.starts == files.starts
        pool.close()


def test_a_write_never_leaves_a_hole(tmp_path: Path) -> None:
    pool = FdPool()
    files = SegmentFiles(str(tmp_path), 64, pool)
    files.write(0, b"x")
    with pytest.raises(StorageFailedError, match="hole"):
        files.write(128, b"x")
    pool.close()


@pytest.mark.parametrize(("number", "kind"), [(errno.ENOSPC, DiskFullError), (errno.EIO, StorageFailedError)])
def test_write_errors_have_their_kind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, kind: type[Exception]
) -> None:
    pool = FdPool()
    files = SegmentFiles(str(tmp_path), 64, pool)

    def refuse(fd: int, data: bytes, offset: int) -> int:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "pwrite", refuse)
    with pytest.raises(kind):
        files.write(0, b"x")
    monkeypatch.undo()
    pool.close()


def test_a_failed_fdatasync_is_a_failed_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "f").write_bytes(b"x")

    def refuse(fd: int) -> None:
        raise OSError(errno.EIO, "input/output error")

    monkeypatch.setattr(os, "fdatasync", refuse)
    with pytest.raises(StorageFailedError):
        sync_paths([str(tmp_path / "f")])
    sync_paths([str(tmp_path / "gone")])


def stored(queue_offset: int, physical: int, topic: str = "T") -> StoredBytes:
    return encode_message(Message(topic, b"x", queue_offset=queue_offset, physical_offset=physical)), 0, physical, 1, 0


def test_a_committed_message_is_never_left_out(tmp_path: Path) -> None:
    """Offsets that should not be: a gap is filled with blanks, a taken place makes the message go to the end."""
    logic = LogicStore(store_config(tmp_path), FdPool())
    logic.dispatch([stored(7, 0)])
    queue = logic.find("T", 0)
    assert queue is not None
    assert (queue.min_offset, queue.next_offset) == (7, 8), "the queue begins here"
    assert logic.misplaced_count == 0
    logic.dispatch([stored(8, 100), stored(10, 200), stored(9, 300)])
    assert logic.misplaced_count == 2
    assert [queue.unit(n, now=False) for n in range(7, 12)] == [
        (0, 93, 0),
        (100, 93, 0),
        None,
        (200, 93, 0),
        (300, 93, 0),
    ]
    logic.close()
    logic._pool.close()


def test_min_offset_follows_the_log_exactly(tmp_path: Path) -> None:
    logic = LogicStore(store_config(tmp_path), FdPool())
    logic.dispatch([stored(n, n * 100) for n in range(200)])
    queue = logic.find("T", 0)
    assert queue is not None
    for physical, expected in ((1, 1), (100, 1), (101, 2), (9_950, 100), (19_900, 199), (10**9, 200)):
        logic.set_min_physical(physical)
        assert queue.min_offset == expected
    assert queue.files.starts == [150 * UNIT_BYTES]
    logic.close()
    logic._pool.close()


@settings(max_examples=40, deadline=None)
@given(
    keys=st.lists(st.tuples(st.integers(0, 2**31 - 1), st.integers(0, 5)), min_size=1, max_size=40),
    cut=st.integers(1, 40),
)
def test_index_cut_back_equals_one_that_never_went_further(
    tmp_path_factory: pytest.TempPathFactory, keys: list[tuple[int, int]], cut: int
) -> None:
    """Undone entry by entry, or with slots rebuilt: slots and entries are those of an index with only the first ones."""
    folder = tmp_path_factory.mktemp("index")
    rows = [
        (hashed if extra else hashed % 3, number * 100, 5000 + number * 700)
        for number, (hashed, extra) in enumerate(keys)
    ]
    cut = min(cut, len(rows) + 1)
    files = [IndexFile(str(folder / name), 7, 50) for name in ("short", "undone", "rebuilt")]
    files[0].put(rows[: cut - 1])
    for file in files[1:]:
        for row in rows:
            file.put([row])
    assert files[1].truncate(cut)
    files[2].rebuild_slots(cut)
    for file in files:
        file.close()
    read = [read_index_file(folder / name, 7, 50) for name in ("short", "undone", "rebuilt")]
    assert read[0].slots == read[1].slots == read[2].slots
    assert read[0].entries[1:] == read[1].entries[1:] == read[2].entries[1:]
    assert read[0].used_slots == read[1].used_slots == read[2].used_slots
    (folder / "short").unlink()


def test_index_that_cannot_be_undone_says_so(tmp_path: Path) -> None:
    file = IndexFile(str(tmp_path / "x"), 7, 50)
    file.put([(n, n, 1000) for n in range(10)])
    file._map[40:44] = b"\0\0\0\x01"
    file._map[44:68] = bytes(24)
    assert not file.truncate(5)
    file.close()


def test_index_put_that_fails_leaves_the_slots_as_they_were(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    service = IndexService(str(tmp_path), 7, 50)
    service.put([(n % 3, n, 1000) for n in range(10)])
    before = bytes(service.files[0]._map)

    def refuse(fd: int, data: bytes, offset: int) -> int:
        raise OSError(errno.ENOSPC, "no space left on device")

    monkeypatch.setattr(os, "pwrite", refuse)
    keys = [(n % 5, n, 1000) for n in range(10, 20)]
    with pytest.raises(DiskFullError):
        service.put(keys)
    assert bytes(service.files[0]._map) == before
    assert len(keys) == 10, "still to be put"
    monkeypatch.undo()
    service.put(keys)
    assert keys == []
    assert service.mark[1] == 21
    service.close()


@pytest.mark.asyncio
async def test_a_checkpoint_that_fails_is_made_up_for_by_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the failed one was to sync is synced by the next: nothing is called durable that is not."""
    store = await opened(store_config(tmp_path))
    await fill(store, 30)
    synced: list[str] = []

    def full(paths: list[str]) -> None:
        raise DiskFullError("no space left on device")

    monkeypatch.setattr("broker_adapter.store.base.sync_paths", full)
    with pytest.raises(DiskFullError):
        await store._save_checkpoint()
    assert LogicCheckpoint.load(store.logic.checkpoint_path) is None
    monkeypatch.setattr("broker_adapter.store.base.sync_paths", synced.extend)
    await store._save_checkpoint()
    assert sum("consumequeue" in path for path in synced) == 3
    assert any("index" in path for path in synced)
    synced.clear()
    await store._save_checkpoint()
    assert not any("consumequeue" in path for path in synced), "nothing new"
    await store.stop()
    check_files(tmp_path)


def test_properties_that_end_in_zero_do_not_look_torn() -> None:
    """Recovery takes a last byte of zero for a torn write, so none is ever stored."""
    data = encode_message(Message("T", b"x", properties=b"a\x01b\0"))
    assert data.endswith(b"b\0\x02")
    assert _is_whole(data, 0, len(data))
    assert not _is_whole(data[:-1] + b"\0", 0, len(data))
    (batched,) = batch_messages(Message("T", b""), [(0, b"x", b"a\x01b\0")], bytes(8))
    assert batched.endswith(b"b\0\x02")


def test_delay_levels() -> None:
    levels = DelayLevels("1s 5m 2h 1d")
    assert levels.delays_ms == [1000, 300_000, 7_200_000, 86_400_000]
    assert levels.due_ms(2, 1000) == 301_000
    assert levels.due_ms(9, 1000) == 2000
    for wrong in ("5", "5x", "s", "-1s"):
        with pytest.raises(ValueError, match="messageDelayLevel"):
            DelayLevels(wrong)


def test_upstreams_checkpoint_file(tmp_path: Path) -> None:
    path = str(tmp_path / "checkpoint")
    assert StoreTimestamps.load(path) == StoreTimestamps()
    StoreTimestamps(1, 2, 3).save(path)
    assert StoreTimestamps.load(path) == StoreTimestamps(1, 2, 3)
    assert os.path.getsize(path) == 4096
    (tmp_path / "checkpoint").write_bytes(b"short")
    assert StoreTimestamps.load(path) == StoreTimestamps()


@given(
    st.binary(max_size=60)
    | st.sampled_from([b"[[1,2,3]]", b'[[[],"a",1]]', b"{}1", b"[1]", b'[["a"]]', b"\xff", b"null"]).map(
        lambda text: struct.pack(">iIq", 16 + len(text), STATE_MAGIC, 0) + text
    )
)
def test_state_records_refuse_garbage(data: bytes) -> None:
    with pytest.raises(DLedgerError):
        decode_state(data)


@given(
    st.lists(
        st.tuples(
            st.text(max_size=5),
            st.text(max_size=5),
            st.none() | st.integers() | st.dictionaries(st.text(max_size=3), st.booleans()),
        ),
        max_size=5,
    )
)
def test_state_records_come_back(records: list[tuple[str, str, Any]]) -> None:
    assert decode_state(encode_state(records, 77)) == (records, 77)


def test_retention_table(tmp_path: Path) -> None:
    """When files go: the hour, a full disk, force; only expired ones, ten a pass, never the last; forcibly over 85 %."""
    pool = FdPool()
    files = SegmentFiles(str(tmp_path / "log"), 10, pool)
    files.write(0, bytes(200))
    now = int(time.mktime((2030, 5, 5, 12, 0, 0, 0, 0, -1)) * 1000)
    for start in files.starts:
        os.utime(files.path(start), (now / 1000 - 5 * 3600 + start * 60, now / 1000 - 5 * 3600 + start * 60))
    config = store_config(tmp_path, file_reserved_time_hours=4, delete_when="04")

    def count(**changes: Any) -> int:
        arguments = {"now_ms": now, "used_percent": 10.0, "force": False} | changes
        return expired_files(files, config, **arguments)

    assert count() == 0, "not the hour"
    assert count(force=True) == 7, "those last written more than four hours ago"
    assert count(used_percent=76.0) == 7
    assert count(used_percent=86.0) == 10
    assert count(now_ms=now + 16 * 3_600_000) == 10, "04 the next day"
    pool.close()
