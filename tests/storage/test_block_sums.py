"""Sums of blocks: known only for bytes that were good, forgotten where others come, never an accusation."""

from __future__ import annotations

from random import Random

import pytest

from dledger.errors import CorruptLogError, DiskFullError, UnexpectedArgumentError
from dledger.storage import log_store
from dledger.storage.block_sums import BlockSums
from dledger.storage.entry import iter_entries
from dledger.storage.filesystem import RealFileSystem
from dledger.storage.log_store import StoreOptions
from dledger.storage.memory_filesystem import MemoryFileSystem
from tests.storage.helpers import append, bodies_of, fill, flush, open_store

SEGMENT, BLOCK = 1000, 64
OPTIONS = StoreOptions(
    data_segment_bytes=1 << 16, index_segment_bytes=1 << 17, prepare_bytes=1024, cache_bytes=0, sum_block_bytes=256
)
DATA = "/data/" + "0" * 20


def blocks(content: dict[int, int], begin: int, until: int) -> bytes:
    return bytes(content.get(pos, 0) for pos in range(begin, until))


@pytest.mark.parametrize("seed", range(40))
def test_what_is_known_is_what_stands_there(seed):
    """Random writes, cuts and rewrites: a sum is known for nothing but the bytes that stand there."""
    rng = Random(seed)
    sums = BlockSums(SEGMENT, BLOCK)
    content: dict[int, int] = {}
    end = 0
    known_blocks = 0
    for _ in range(300):
        if rng.random() < 0.1 and end:
            end = rng.randrange(end)
            sums.cut(end)
            content = {pos: byte for pos, byte in content.items() if pos < end}
        else:
            length = min(rng.choice([1, 5, 63, 64, 65, 130, 500]), SEGMENT - end % SEGMENT)
            data = rng.randbytes(length)
            content.update(zip(range(end, end + length), data, strict=True))
            at = rng.randrange(length)
            buffers = (data,) if rng.random() < 0.5 else (data[:at], data[at:])
            sums.add(end, buffers, length)
            end += length
            if rng.random() < 0.05:  # what closes a segment is not known here
                end += -end % SEGMENT
        start = rng.randrange(end // SEGMENT + 1) * SEGMENT
        pos = start + rng.randrange(SEGMENT)
        limit = min(pos + rng.randrange(1, 600), start + SEGMENT)
        until = sums.known_until(pos, limit)
        assert pos <= until <= start + SEGMENT
        begin = start + (pos - start) // BLOCK * BLOCK
        if until > pos:
            stood = blocks(content, begin, until)
            assert sums.match(begin, stood)
            assert all(byte in content for byte in range(begin, until))
            spoilt = bytearray(stood)
            spoilt[rng.randrange(len(spoilt))] ^= 1 << rng.randrange(8)
            assert not sums.match(begin, bytes(spoilt))
            known_blocks += 1
    assert known_blocks > 20


def test_a_read_that_goes_on_learns_the_blocks_between_its_parts():
    data = Random(1).randbytes(10 * BLOCK)
    sums = BlockSums(100 * BLOCK, BLOCK)
    for begin, end in ((10, 100), (100, 101), (101, 300), (300, 10 * BLOCK)):
        sums.add(begin, (data[begin:end],), end - begin)
    assert sums.known_until(BLOCK, 10 * BLOCK) == 10 * BLOCK
    assert sums.known_until(0, 10 * BLOCK) == 0  # its first ten bytes were never seen
    assert sums.match(BLOCK, data[BLOCK:])
    assert not sums.match(0, data)


def test_what_is_not_known_matches_nothing():
    sums = BlockSums(SEGMENT, BLOCK)
    assert not sums.match(0, bytes(BLOCK))
    sums.add(0, (b"x" * BLOCK,), BLOCK)
    assert sums.match(0, b"x" * BLOCK)
    assert not sums.match(0, b"x" * BLOCK * 2)
    assert not sums.match(0, b"x" * (BLOCK + 1))
    assert not sums.match(0, b"x" * (BLOCK - 1))
    sums.cut(BLOCK - 1)
    assert not sums.match(0, b"x" * BLOCK)


def test_memory_is_bounded():
    """Many readers, many segments: the oldest are forgotten, and the rest is right."""
    sums = BlockSums(BLOCK * 2, BLOCK)
    for number in range(200):
        sums.add(number * 2 * BLOCK, (b"y" * (BLOCK + 1),), BLOCK + 1)
    assert [n for n in range(200) if sums.match(n * 2 * BLOCK, b"y" * BLOCK)] == list(range(136, 200))
    assert len(sums._edges) == len(sums._segments) == 64


class _Parsing:
    """Counts how often entries are verified one by one."""

    def __init__(self, monkeypatch) -> None:
        self.count = 0
        real = log_store.parse_slice

        def parse(*arguments):
            self.count += 1
            return real(*arguments)

        monkeypatch.setattr(log_store, "parse_slice", parse)


def test_what_was_written_here_is_not_verified_entry_by_entry(fs, folder, monkeypatch):
    store = open_store(fs, folder, OPTIONS)
    bodies = fill(store, 2000, size=50, per_write=7)
    parsing = _Parsing(monkeypatch)
    assert bodies_of(store) == bodies
    assert parsing.count <= 2 * (store.end_pos // OPTIONS.data_segment_bytes + 1)  # the ends of segments
    for first in (0, 1, 77, 900, 1999):
        for max_bytes in (1, 1000, 1024, 5000, 1 << 20):
            raw = store.read(first, 1999, max_bytes)
            assert raw.first_index == first
            assert len(raw.data) <= max(max_bytes, 100)
            assert [entry.body for entry in iter_entries(raw.data)] == bodies[first : raw.last_index + 1]
    store.close()


def test_what_was_verified_is_remembered_if_it_is_committed(fs, folder, monkeypatch):
    store = open_store(fs, folder, OPTIONS)
    bodies = fill(store, 650, size=50)
    store.commit(399)
    store.close()
    parsing = _Parsing(monkeypatch)
    store = open_store(fs, folder, OPTIONS)
    opened = parsing.count
    assert store.committed_index == 399
    assert store.read(0, 399, 1 << 20).last_index == 399
    assert parsing.count == opened + 1
    assert store.read(0, 399, 1 << 20).data == store.read(0, 399, 1 << 20).data
    assert bodies_of(store)[:400] == bodies[:400]
    verified = parsing.count
    assert store.read(400, 649, 1 << 20).last_index == 649
    assert store.read(400, 649, 1 << 20).last_index == 649
    assert parsing.count == verified + 2  # may yet be cut
    store.close()


@pytest.mark.parametrize("at", [0, 5, 60, 300, 4000, 9000])
def test_damage_in_a_known_block_is_named_and_never_served(fs, folder, at):
    store = open_store(fs, folder, OPTIONS)
    fill(store, 100, size=100)
    assert len(bodies_of(store)) == 100
    handle = fs.open(folder + DATA)
    old = fs.pread(handle, 1, at)
    fs.pwrite(handle, bytes([old[0] ^ 1]), at)
    with pytest.raises(CorruptLogError, match=r"damaged"):
        bodies_of(store)
    fs.pwrite(handle, old, at)
    fs.close(handle)
    assert len(bodies_of(store)) == 100
    store.close()


def test_a_rewrite_that_the_disk_dropped_does_not_pass_by_its_sum(fs, folder, monkeypatch):
    """The old bytes come back. They were known once, and are no more: each entry is looked at again."""
    store = open_store(fs, folder, OPTIONS)
    fill(store, 100, size=100)
    handle = fs.open(folder + DATA)
    old = fs.pread(handle, 60 * 148, 0)
    store.truncate(30)
    flush(store)
    append(store, [b"%06d" % n + b"new" * 31 + b"!" for n in range(30, 100)], term=2)
    flush(store)
    parsing = _Parsing(monkeypatch)
    assert len(bodies_of(store)) == 100
    rewritten = parsing.count
    fs.pwrite(handle, old, 0)
    with pytest.raises(CorruptLogError):  # new entries follow the old ones
        bodies_of(store)
    assert parsing.count > rewritten
    fs.close(handle)
    store.close()


def test_an_index_record_that_points_into_an_entry_is_not_believed(tmp_path):
    """All blocks are good, and the records agree with them or nothing is served."""
    fs, folder = RealFileSystem(), str(tmp_path / "d")
    store = open_store(fs, folder, OPTIONS)
    bodies = fill(store, 100, size=100)
    path = folder + "/index/" + "0" * 20
    handle = fs.open(path)
    refused = 0
    for index in (0, 10, 99):
        good = fs.pread(handle, 32, index * 32)
        for offset in (11, 15, 23):  # pos, size, index: their last bytes
            bad = bytearray(good)
            bad[offset] ^= 4
            fs.pwrite(handle, bytes(bad), index * 32)
            try:
                raw = store.read(index, 99, 1 << 20)
            except CorruptLogError:
                refused += 1
            else:
                assert [entry.body for entry in iter_entries(raw.data)] == bodies[index : raw.last_index + 1]
        fs.pwrite(handle, good, index * 32)
    assert refused >= 6
    assert bodies_of(store) == bodies
    fs.close(handle)
    store.close()


def test_a_full_disk_between_two_tries_leaves_no_wrong_sum():
    class Full(MemoryFileSystem):
        full = False

        def pwritev(self, handle, buffers, offset, *, keep=True):
            super().pwritev(handle, buffers, offset, keep=keep)
            if self.full:
                raise DiskFullError("no room for the rest")

    fs = Full()
    store = open_store(fs, "/d", OPTIONS)
    bodies = fill(store, 50, size=100)
    append(store, [b"%06d" % n + b"z" * 94 for n in range(50, 100)])
    batch = store.take_batch()
    fs.full = True
    with pytest.raises(DiskFullError):
        store.write(batch)
    fs.full = False
    store.write(batch)
    store.complete(batch)
    assert bodies_of(store)[:50] == bodies
    assert len(bodies_of(store)) == 100
    store.close()


def test_a_block_of_no_bytes_is_refused():
    with pytest.raises(UnexpectedArgumentError, match="block"):
        StoreOptions(sum_block_bytes=0).validate()
