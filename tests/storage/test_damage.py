"""Damage is named, refused, or repaired from what is left; it is never served and never grows."""

from __future__ import annotations

from dataclasses import replace

import pytest

from dledger.errors import CorruptLogError, DiskFullError, EntryTooLargeError, UnexpectedArgumentError
from dledger.raft.messages import UNKNOWN_FLOOR, HardState
from dledger.storage.entry import iter_entries
from dledger.storage.log_store import StoreOptions
from dledger.storage.memory_filesystem import MemoryFileSystem
from dledger.storage.verify import verify_directory
from tests.storage.helpers import OPTIONS, append, bodies_of, fill, flush, open_store

FIRST = "/data/" + "0" * 20


def closed(fs, folder, count=100, committed=True):
    """A log of three segments, closed in order; returns its bodies."""
    store = open_store(fs, folder)
    store.save_hard_state(HardState(1, "n0", None))
    bodies = fill(store, count)
    if committed:
        store.commit(count - 1)
    store.close()
    return bodies


def change(fs, path, offset, data):
    handle = fs.open(path)
    fs.pwrite(handle, data, offset)
    fs.close(handle)


def test_a_missing_segment_is_refused(fs, folder):
    closed(fs, folder)
    for start in (0, 4096, 8192):
        path = f"{folder}/data/{start:020d}"
        fs.rename(path, f"{folder}/away")
        with pytest.raises(CorruptLogError, match=r"catch up from its peers"):
            open_store(fs, folder)
        assert not verify_directory(fs, folder).ok
        fs.rename(f"{folder}/away", path)
    open_store(fs, folder).close()


def test_a_cut_segment_in_the_middle_is_refused(fs, folder):
    closed(fs, folder)
    handle = fs.open(folder + FIRST)
    fs.resize(handle, 4000)
    fs.close(handle)
    with pytest.raises(CorruptLogError, match="has 4000 bytes, not 4096"):
        open_store(fs, folder)


def test_another_log_under_the_checkpoint_is_refused(fs, folder):
    """The checkpoint is not taken on trust: its last entry must be the one in the files."""
    closed(fs, folder)
    other = folder + "-other"
    store = open_store(fs, other)
    fill(store, 100, term=2)
    store.close()
    for name in fs.listdir(f"{other}/data"):
        fs.rename(f"{other}/data/{name}", f"{folder}/data/{name}")
    with pytest.raises(CorruptLogError, match="is not the one that the checkpoint names"):
        open_store(fs, folder)


@pytest.mark.parametrize("harm", ["removed", "first missing", "zeroed", "wrong"])
def test_the_index_is_made_again_even_below_the_checkpoint(fs, folder, harm):
    """It is derived from the data; what the checkpoint says about the data still binds."""
    bodies = closed(fs, folder)
    names = [f"{folder}/index/{name}" for name in fs.listdir(f"{folder}/index")]
    for path in names[:1] if harm == "first missing" else names:
        if harm in ("removed", "first missing"):
            fs.unlink(path)
        else:
            change(fs, path, 0, bytes(1024) if harm == "zeroed" else b"\x55" * 1024)
    store = open_store(fs, folder)
    assert bodies_of(store) == bodies
    assert "made the index again" in str(store.recovery)
    store.close()
    assert verify_directory(fs, folder).ok


def test_a_lost_index_does_not_weaken_the_checkpoint(fs, folder):
    closed(fs, folder)
    fs.unlink(f"{folder}/watermark")
    for name in fs.listdir(f"{folder}/index"):
        fs.unlink(f"{folder}/index/{name}")
    change(fs, folder + FIRST, 1000, b"\xff")
    with pytest.raises(CorruptLogError, match="entries up to 99 were durable"):
        open_store(fs, folder)


def test_every_damaged_index_record_is_noticed_when_it_is_read(folder):
    """Flip every bit of a record below the checkpoint: the right entry comes back, or an error that says what to do."""
    fs = MemoryFileSystem()
    bodies = closed(fs, folder)
    store = open_store(fs, folder)
    path = f"{folder}/index/" + "0" * 20
    handle = fs.open(path)
    record = fs.pread(handle, 32, 32 * 7)
    for bit in range(256):
        damaged = bytearray(record)
        damaged[bit // 8] ^= 1 << bit % 8
        fs.pwrite(handle, bytes(damaged), 32 * 7)
        for first, last in ((7, 7), (6, 9), (8, 8)):
            try:
                raw = store.read(first, last, 1 << 20)
            except CorruptLogError as error:
                assert "catch up" in str(error) or "made again" in str(error)
            else:
                assert [entry.body for entry in iter_entries(raw.data)] == bodies[first : raw.last_index + 1]
    fs.pwrite(handle, record, 32 * 7)
    assert bodies_of(store) == bodies
    store.close()


def test_an_old_hard_state_is_not_believed(fs, folder):
    """A hard state older than the log was put there by somebody: what was voted since is unknown."""
    store = open_store(fs, folder)
    store.save_hard_state(HardState(3, "n1", None))
    fill(store, 3, term=3)
    handle = fs.open(f"{folder}/hard_state")
    old = fs.pread(handle, 4096, 0)
    fs.close(handle)
    store.save_hard_state(HardState(8, "n2", None))
    fill(store, 3, term=8)
    store.close()
    change(fs, f"{folder}/hard_state", 0, old)
    store = open_store(fs, folder)
    assert store.hard_state == HardState(8, None, UNKNOWN_FLOOR)
    store.close()


def test_a_checkpoint_that_finds_no_room_is_left_for_later(folder):
    """It saves time at the next start and is worth no failed append."""

    class Full(MemoryFileSystem):
        full = False

        def before(self, operation, path):
            if self.full and "/checkpoint" in path:
                raise DiskFullError("no space")

    fs = Full()
    options = replace(OPTIONS, checkpoint_bytes=500)
    store = open_store(fs, folder, options)
    fs.full = True
    bodies = fill(store, 20)
    store.commit(19)
    bodies += fill(store, 20)
    assert not fs.exists(f"{folder}/checkpoint")
    fs.full = False
    store.commit(39)
    bodies += fill(store, 5)
    assert fs.exists(f"{folder}/checkpoint")
    fs.kill()
    again = open_store(fs, folder, options)
    assert again.recovery.from_index > 0
    assert bodies_of(again) == bodies
    again.close()


def test_small_entries_are_checkpointed_by_number(folder):
    fs = MemoryFileSystem()
    options = replace(OPTIONS, checkpoint_entries=50)
    store = open_store(fs, folder, options)
    for _ in range(30):
        append(store, [b""] * 5)
        flush(store)
        store.commit(store.last_index)
    fs.kill()
    again = open_store(fs, folder, options)
    assert again.recovery.entries_verified <= 60
    assert again.last_index == 149
    again.close()


def test_sizes_that_cannot_work_are_refused(fs, folder):
    for options in (StoreOptions(index_segment_bytes=100), StoreOptions(data_segment_bytes=50)):
        with pytest.raises(UnexpectedArgumentError, match="bytes"):
            open_store(fs, folder, options)
    assert not fs.exists(folder)


def test_an_entry_that_no_segment_holds_changes_nothing(fs, folder):
    store = open_store(fs, folder)
    bodies = fill(store, 5)
    with pytest.raises(EntryTooLargeError):
        append(store, [b"fits", bytes(4096)])
    append(store, [b"next"])
    flush(store)
    assert bodies_of(store) == [*bodies, b"next"]
    store.close()


def test_an_unknown_boot_is_not_taken_for_the_same(folder):
    """Where the machine does not name its boots, every start is one after a power failure."""

    class Nameless(MemoryFileSystem):
        def boot_id(self):
            return ""

    fs = Nameless()
    store = open_store(fs, folder)
    store.save_hard_state(HardState(1, "n0", None))
    fill(store, 8)
    fs.kill()
    change(fs, folder + FIRST, 8 * 88, b"\x00\x00\x00\x01 torn")
    again = open_store(fs, folder)
    assert again.last_index == 7
    assert again.hard_state.vote_floor is not None
    again.close()
