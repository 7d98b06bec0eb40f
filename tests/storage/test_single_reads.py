"""An entry alone is read with the one before it, a long range with what comes next: the answers stay the same."""

from __future__ import annotations

from itertools import chain

import pytest

from dledger.errors import DLedgerError
from dledger.storage.layout import INDEX_RECORD_BYTES
from dledger.storage.log_store import LogStore, StoreOptions
from dledger.storage.memory_filesystem import MemoryFileSystem
from tests.storage.helpers import append, fill, flush, open_store

OPTIONS = StoreOptions(
    data_segment_bytes=1 << 16, index_segment_bytes=8 * INDEX_RECORD_BYTES, prepare_bytes=1024, cache_bytes=0
)


class Watched(MemoryFileSystem):
    """Counts reads, and notes what was announced as (path, offset, length)."""

    def __init__(self):
        super().__init__()
        self.reads = 0
        self.announced = []

    def before(self, operation, path):
        self.reads += operation == "pread"

    def will_need(self, handle, offset, length):
        self.announced.append((self.path_of(handle), offset, length))


def outcome(store, index):
    try:
        return store.read(index, index, 1)
    except DLedgerError as error:
        return type(error), error.message


def the_long_way(monkeypatch, store, index):
    with monkeypatch.context() as patch:
        patch.setattr(LogStore, "_read_one", lambda self, index: None)
        return outcome(store, index)


def test_alone_or_the_long_way_it_is_the_same_entry(folder, monkeypatch):
    store = open_store(MemoryFileSystem(), folder, OPTIONS)
    fill(store, 20)
    append(store, [b"a" * 20_000, b"behind a large one", b""])  # and, in between, a new segment of the index
    for number in range(6):
        append(store, [bytes([number]) * 15_000])  # until the data go on in the next segment
    flush(store)
    store.commit(store.last_index)
    assert store.end_pos > OPTIONS.data_segment_bytes
    for index in range(store.last_index + 1):
        assert outcome(store, index) == the_long_way(monkeypatch, store, index)
        assert outcome(store, index).last_index == index
    store.close()


def test_alone_takes_one_read_of_each_file(folder):
    fs = Watched()
    store = open_store(fs, folder, StoreOptions(data_segment_bytes=1 << 16, cache_bytes=0))
    fill(store, 20)
    before = fs.reads
    store.read(7, 7, 1)
    assert fs.reads == before + 2
    assert fs.announced == []
    store.close()


def test_whatever_byte_is_damaged_both_ways_say_the_same(folder, monkeypatch):
    fs = MemoryFileSystem()
    store = open_store(fs, folder, OPTIONS)
    bodies = fill(store, 6)
    log_bytes = store.end_pos
    data, index = f"{folder}/data/{0:020}", f"{folder}/index/{0:020}"
    refused = 0
    for path, at in chain(
        ((data, at) for at in range(log_bytes)), ((index, at) for at in range(6 * INDEX_RECORD_BYTES))
    ):
        file = fs.files[path]
        byte = file.read(at, 1)
        for bad in (bytes([byte[0] ^ 1]), bytes([byte[0] ^ 0x80])):
            file.write(at, bad)
            for number in range(6):
                found = outcome(store, number)
                assert found == the_long_way(monkeypatch, store, number), (path, at, number)
                refused += isinstance(found, tuple)
        file.write(at, byte)
    assert refused > 2 * log_bytes  # each byte is some entry's, and most index records are two entries' business
    assert [outcome(store, number).data[48:] for number in range(6)] == bodies
    store.close()


def test_where_the_file_has_been_cut_both_ways_say_the_same(folder, monkeypatch):
    fs = MemoryFileSystem()
    store = open_store(fs, folder, OPTIONS)
    fill(store, 6)
    for length in range(store.end_pos, -1, -1):
        fs.files[f"{folder}/data/{0:020}"].resize(length)
        for index in range(6):
            assert outcome(store, index) == the_long_way(monkeypatch, store, index)
    assert isinstance(outcome(store, 5), tuple)
    store.close()


@pytest.mark.parametrize("known", [True, False])
def test_a_long_read_announces_what_it_reads_and_what_comes_next(folder, known):
    fs = Watched()
    options = StoreOptions(data_segment_bytes=1 << 20, cache_bytes=0)
    store = open_store(fs, folder, options)
    append(store, [bytes(952)] * 400)  # 1000 bytes each, with the header
    flush(store)
    store.commit(store.last_index)
    if not known:
        store.close()
        store = open_store(fs, folder, options)
    fs.announced.clear()
    index = 0
    read = []
    while index < 400:
        raw = store.read(index, 399, 150_000)
        read.append((index * 1000, len(raw.data)))
        index = raw.last_index + 1
    announced = [(offset, length) for path, offset, length in fs.announced if "/data/" in path]
    assert len(announced) == len(read) == 3
    for number, ((pos, length), (offset, told)) in enumerate(zip(read, announced, strict=True)):
        assert offset <= pos
        assert offset + told >= pos + length
        assert (told > length + 100_000) == (number < 2)  # behind the last there is nothing that anybody asked for
    store.close()
