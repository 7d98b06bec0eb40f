"""The simulated disk betrays exactly as told: what was synced stays, what was not may go, in every way it can."""

from __future__ import annotations

import random

import pytest

from dledger.errors import DiskFullError, StorageFailedError, StoreLockedError
from dledger.sim.disk import (
    DiskTimes,
    FaultyFileSystem,
    PowerLoss,
    SimDisk,
    SimDiskExecutor,
    SimulatedCrash,
)
from dledger.sim.loop import new_loop
from dledger.sim.trace import Trace


@pytest.fixture
def loop():
    loop = new_loop(random.Random(1))
    yield loop
    loop.close()


@pytest.fixture
def disk(loop):
    disk = SimDisk("n0", random.Random(2), Trace(loop))
    disk.folders.add("/d")
    return disk


@pytest.fixture
def fs(disk, loop):
    return FaultyFileSystem(disk, loop.process("n0#1"))


def synced_file(fs, data=b"old!", path="/d/f"):
    handle = fs.open(path, create=True)
    fs.pwrite(handle, data, 0)
    fs.sync(handle)
    fs.sync_dir("/d")
    return handle


def contents(disk, path="/d/f"):
    return bytes(disk.files[path].data)


def test_a_power_failure_keeps_what_was_synced_and_drops_the_rest(fs, disk):
    """keep 0: only the synced bytes and names are left; the boot id changes."""
    handle = synced_file(fs)
    fs.pwrite(handle, b"new!", 0)
    fs.open("/d/unsynced", create=True)
    boot = fs.boot_id()
    disk.power_failure(PowerLoss(keep=0, tear=0))
    assert contents(disk) == b"old!"
    assert "/d/unsynced" not in disk.files
    assert fs.boot_id() != boot


def test_a_power_failure_may_keep_everything(fs, disk):
    """keep 1: the cache happened to be written in time."""
    handle = synced_file(fs)
    fs.pwrite(handle, b"new!", 0)
    disk.power_failure(PowerLoss(keep=1, tear=0))
    assert contents(disk) == b"new!"


def test_any_subset_and_torn_writes_happen(loop):
    """Over many seeds every combination of two unsynced writes survives, and some are torn."""
    seen = set()
    for seed in range(300):
        disk = SimDisk("n0", random.Random(seed), Trace(loop))
        fs = FaultyFileSystem(disk, loop.process("p"))
        handle = synced_file(fs, b"........")
        fs.pwrite(handle, b"AAAA", 0)
        fs.pwrite(handle, b"BBBB", 4)
        disk.power_failure(PowerLoss(keep=0.5, tear=0.5))
        seen.add(contents(disk))
    assert {b"........", b"AAAA....", b"....BBBB", b"AAAABBBB"} <= seen
    assert any(0 < data.count(b"A") < 4 for data in seen), "torn anywhere"


def test_kill_keeps_the_cache(fs, disk):
    """kill -9 is no power failure: written is written."""
    handle = synced_file(fs)
    fs.pwrite(handle, b"new!", 0)
    disk.release_locks(fs.process)
    assert contents(disk) == b"new!"
    assert bytes(disk.durable_bytes("/d/f")) == b"old!"


def test_a_failed_sync_leaves_clean_pages_that_a_later_sync_does_not_write(loop):
    """fsyncgate: the next sync succeeds and saves nothing."""
    kept = set()
    for seed in range(40):
        disk = SimDisk("n0", random.Random(seed), Trace(loop))
        fs = FaultyFileSystem(disk, loop.process("p"))
        handle = synced_file(fs)
        fs.pwrite(handle, b"new!", 0)
        disk.sync_errors = 1
        with pytest.raises(StorageFailedError):
            fs.sync(handle)
        assert disk.betrayed
        assert fs.pread(handle, 4, 0) == b"new!", "the cache shows it all the same"
        fs.sync(handle)
        disk.power_failure(PowerLoss(keep=1, tear=0))
        kept.add(contents(disk))
    assert kept == {b"old!", b"new!"}


def test_a_full_disk_takes_overwrites_and_refuses_growth(fs, disk):
    """ENOSPC for new blocks only, after a short write at times; room comes back."""
    handle = synced_file(fs)
    disk.fill(True)
    fs.pwrite(handle, b"same", 0)
    with pytest.raises(DiskFullError):
        fs.pwrite(handle, b"x" * 1000, 4)
    disk.fill(False)
    fs.pwrite(handle, b"x" * 1000, 4)
    assert fs.size(handle) == 1004 and disk.was_full


@pytest.mark.parametrize("how", ["drop", "misdirect"])
def test_silent_faults_show_only_when_the_cache_is_gone(fs, disk, how):
    """Sync says yes, reads say yes; the platter has something else."""
    handle = synced_file(fs, bytes(5000))
    disk.silent = how
    fs.pwrite(handle, b"precious", 100)
    fs.sync(handle)
    assert fs.pread(handle, 8, 100) == b"precious"
    disk.evict()
    assert fs.pread(handle, 8, 100) != b"precious"
    assert disk.damage and not disk.silent, "once only"
    assert (b"precious" in contents(disk)) == (how == "misdirect")


def test_a_flipped_bit_is_one_bit(fs, disk):
    """Exactly one bit differs, in cache and platter alike, and it is noted."""
    synced_file(fs, b"\x01" * 64)
    assert disk.flip_bit(lambda path: path == "/d/f")
    flipped = int.from_bytes(contents(disk), "big") ^ int.from_bytes(b"\x01" * 64, "big")
    assert flipped.bit_count() == 1
    assert disk.damage
    assert not disk.flip_bit(lambda path: False)


def test_names_survive_as_a_journal_has_them(loop):
    """Renames not synced are there or not, in order: never the second without the first."""
    seen = set()
    for seed in range(100):
        disk = SimDisk("n0", random.Random(seed), Trace(loop))
        fs = FaultyFileSystem(disk, loop.process("p"))
        synced_file(fs, b"1", "/d/a")
        fs.rename("/d/a", "/d/b")
        fs.rename("/d/b", "/d/c")
        disk.power_failure(PowerLoss(keep=0.5, tear=0))
        seen.add(tuple(disk.files))
    assert seen == {("/d/a",), ("/d/b",), ("/d/c",)}


def test_a_crash_comes_before_the_chosen_operation(fs, disk):
    """`crash_after` n: n operations happen, the next does not."""
    handle = synced_file(fs)
    fs.crash_after = 1
    fs.pwrite(handle, b"once", 0)
    with pytest.raises(SimulatedCrash):
        fs.pwrite(handle, b"more", 0)
    assert contents(disk) == b"once"
    fs.quiet = True
    assert fs.pread(handle, 4, 0) == b"once"


def test_locks_end_with_their_process(fs, disk, loop):
    """Two processes cannot hold one lock; a dead one holds none."""
    fs.lock("/d/lock")
    other = FaultyFileSystem(disk, loop.process("n0#2"))
    with pytest.raises(StoreLockedError):
        other.lock("/d/lock")
    loop.kill(fs.process)
    other.lock("/d/lock")


def test_missing_files_are_typed_errors(fs):
    """As the real file system: `StorageFailedError`."""
    for attempt in (
        lambda: fs.open("/d/none"),
        lambda: fs.unlink("/d/none"),
        lambda: fs.rename("/d/none", "/d/x"),
    ):
        with pytest.raises(StorageFailedError):
            attempt()


def test_the_executor_takes_virtual_time_in_order(loop):
    """One worker: jobs one by one, each with its result or its error, each some time later."""
    process = loop.process("p")
    executor = SimDiskExecutor(loop, random.Random(3), process, DiskTimes())
    seen = []

    def fail():
        raise StorageFailedError("no")

    async def main():
        start = loop.time()
        jobs = [asyncio.ensure_future(executor.run(seen.append, i)) for i in range(5)]
        await asyncio.gather(*jobs)
        with pytest.raises(StorageFailedError):
            await executor.run(fail)
        assert loop.time() > start
        executor.shutdown()
        with pytest.raises(RuntimeError):
            await executor.run(seen.append, 9)

    import asyncio

    loop.run_until_complete(process.run(loop.create_task, main()))
    assert seen == [0, 1, 2, 3, 4]


def test_a_job_that_crashes_is_never_answered(loop, fs):
    """The process is told to be dead; whoever waited waits for ever."""
    crashes = []
    process = fs.process
    executor = SimDiskExecutor(loop, random.Random(3), process, DiskTimes())
    fs.on_crash = lambda: crashes.append(loop.kill(process))
    fs.crash_after = 0
    process.run(loop.create_task, executor.run(fs.listdir, "/d"))

    async def wait():
        import asyncio

        await asyncio.sleep(1)

    loop.run_until_complete(wait())
    assert len(crashes) == 1 and not loop.unhandled


def test_the_power_fails_before_what_is_written_is_durable(fs, disk):
    """`crash_at_sync`: not at a sync of another file, nor of one that has nothing to sync; the write may be torn."""
    other, handle = fs.open("/d/other", create=True), synced_file(fs)
    fs.crash_at_sync = "/d/f"
    fs.sync(handle)
    fs.pwrite(other, b"other", 0)
    fs.sync(other)
    fs.pwrite(handle, b"x" * 3000, 0)
    with pytest.raises(SimulatedCrash):
        fs.sync(handle)
    disk.power_failure(PowerLoss(keep=1.0, tear=1.0))
    left = bytes(disk.files["/d/f"].data)
    assert 0 < left.count(b"x") < 3000
