"""The disk loop: what is written at once, what is left for its task, and what each group covers."""

from __future__ import annotations

import asyncio

import pytest
import pytest_asyncio
import structlog

from dledger.driver.disk import DiskLoop
from dledger.errors import DiskFullError, StorageFailedError
from dledger.raft.messages import EntryType, HardState
from dledger.storage.entry import EntryGroup
from dledger.storage.log_store import LogStore, StoreOptions
from dledger.storage.memory_filesystem import MemoryFileSystem


class Executor:
    """Does work here and now while ``quick``; hands all other work to a later turn."""

    def __init__(self):
        self.quick = True
        self.later = []

    async def run(self, function, *args):
        await asyncio.sleep(0)
        self.later.append(function.__name__)
        return function(*args)

    run_quick = run

    def try_now(self, function, *args):
        if self.quick:
            function(*args)
        return self.quick

    def shutdown(self):
        pass


class Owner:
    def __init__(self, store):
        self.store = store
        self.heard = []
        self.failure = None
        self.full = []

    def persisted(self, batch, covered):
        self.heard.append((batch.last.index, covered))

    def disk_full(self, full):
        self.full.append(full)

    def disk_failed(self, error):
        self.failure = error


class Bench:
    """A store with a disk loop that runs and has nothing to do."""

    def __init__(self):
        options = StoreOptions(data_segment_bytes=65536, index_segment_bytes=3200, prepare_bytes=0)
        self.fs = MemoryFileSystem()
        self.store = LogStore.open(self.fs, "/n0", group="g", node_id="n0", options=options)
        self.executor = Executor()
        self.owner = Owner(self.store)
        self.disk = DiskLoop(self.store, self.executor, self.owner, structlog.get_logger())
        self.task = asyncio.get_running_loop().create_task(self.disk.run())

    def stage(self):
        self.store.append(self.store.encode(1, [EntryGroup(EntryType.NORMAL, 0, (b"x",))]))
        self.disk.stage()

    def is_written(self, index):
        return self.store.read(index, index, 1000).last_index == index

    async def settle(self):
        for _ in range(10):
            await asyncio.sleep(0)

    async def stop(self):
        self.disk.stop()
        await asyncio.wait_for(self.task, 5)


@pytest_asyncio.fixture
async def bench():
    bench = Bench()
    await bench.settle()
    yield bench
    await bench.stop()


@pytest.mark.asyncio
async def test_a_small_group_is_written_at_once_where_the_disk_is_quick(bench):
    for index in range(3):
        bench.stage()
        bench.disk.wake(at_once=True)
        assert bench.owner.heard[-1] == (index, index + 1)
        assert bench.is_written(index)
    assert bench.executor.later == []


@pytest.mark.asyncio
async def test_without_at_once_it_is_written_in_a_later_turn(bench):
    bench.stage()
    bench.disk.wake()
    assert bench.owner.heard == []
    await bench.settle()
    assert bench.owner.heard == [(0, 1)]
    assert bench.executor.later == ["write"]


@pytest.mark.asyncio
async def test_what_is_left_for_later_does_not_cover_what_was_staged_since(bench):
    """Else messages that rest on the second group would leave with the first."""
    bench.executor.quick = False
    bench.stage()
    bench.disk.wake(at_once=True)
    bench.stage()
    bench.disk.wake(at_once=True)
    await bench.settle()
    assert bench.owner.heard == [(0, 1), (1, 2)]


@pytest.mark.asyncio
async def test_terms_and_votes_are_left_for_later(bench):
    bench.store.save_hard_state(HardState(3, "n1"))
    bench.stage()
    bench.disk.wake(at_once=True)
    assert bench.owner.heard == []
    await bench.settle()
    assert bench.owner.heard == [(0, 1)]
    assert bench.executor.later == ["write"]


@pytest.mark.asyncio
async def test_the_answer_leaves_before_the_index_record_is_written(bench, monkeypatch):
    order = []
    monkeypatch.setattr(bench.owner, "persisted", lambda batch, covered: order.append("persisted"))
    write_index = bench.store.write_index
    monkeypatch.setattr(bench.store, "write_index", lambda batch: (order.append("index"), write_index(batch)))
    bench.stage()
    bench.disk.wake(at_once=True)
    assert order == ["persisted", "index"]


@pytest.mark.asyncio
async def test_what_is_staged_by_the_answer_is_written_too(bench, monkeypatch):
    heard = bench.owner.persisted

    def persisted(batch, covered):
        heard(batch, covered)
        if batch.last.index == 0:
            bench.stage()
            bench.disk.wake(at_once=True)

    monkeypatch.setattr(bench.owner, "persisted", persisted)
    bench.stage()
    bench.disk.wake(at_once=True)
    assert bench.owner.heard == [(0, 1)]
    await bench.settle()
    assert bench.owner.heard == [(0, 1), (1, 2)]
    assert bench.is_written(1)


@pytest.mark.asyncio
@pytest.mark.parametrize("part", ["write_entries", "write_index"])
async def test_a_failure_is_final_wherever_it_comes(bench, monkeypatch, part):
    def fail(batch):
        raise StorageFailedError("no")

    monkeypatch.setattr(bench.store, part, fail)
    bench.stage()
    bench.disk.wake(at_once=True)
    assert isinstance(bench.owner.failure, StorageFailedError)
    assert bench.owner.heard == ([] if part == "write_entries" else [(0, 1)])


@pytest.mark.asyncio
@pytest.mark.parametrize("part", ["write_entries", "write_index"])
async def test_a_full_disk_is_waited_out_wherever_it_is_met(bench, monkeypatch, part):
    monkeypatch.setattr("dledger.driver.disk._DISK_FULL_RETRY_S", 0)
    good = getattr(bench.store, part)
    times = iter([True, True, False])

    def full(batch):
        if next(times, False):
            raise DiskFullError("full")
        good(batch)

    monkeypatch.setattr(bench.store, part, full)
    bench.stage()
    bench.disk.wake(at_once=True)
    await bench.settle()
    assert bench.owner.full == [True, False]
    assert bench.owner.heard[-1] == (0, 1)
    assert bench.is_written(0)
