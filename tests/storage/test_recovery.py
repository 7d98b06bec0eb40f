"""Opening after accidents: every cut, every bit, every crash point."""

from __future__ import annotations

import random

import pytest

from dledger.errors import CorruptLogError
from dledger.raft.messages import HardState, LogId
from dledger.storage.filesystem import RealFileSystem
from dledger.storage.log_store import StoreOptions
from dledger.storage.memory_filesystem import MemoryFileSystem
from tests.storage.helpers import OPTIONS, append, bodies_of, fill, flush, open_store

DATA = "/data/00000000000000000000"


def copy_of(files: dict) -> MemoryFileSystem:
    fs = MemoryFileSystem()
    for path, data in files.items():
        fs.makedirs(path.rsplit("/", 1)[0])
        handle = fs.open(path, create=True)
        fs.pwrite(handle, data, 0)
        fs.resize(handle, len(data))
        fs.sync(handle)
        fs.sync_dir(path.rsplit("/", 1)[0])
        fs.close(handle)
    return fs


def contents(fs: MemoryFileSystem) -> dict:
    return {path: file.read(0, file.length) for path, file in fs.files.items()}


def made(count=12, *, watermark=True, close=False) -> tuple[dict, list[bytes]]:
    """The files of a small log after kill -9 (or a clean end), and its bodies."""
    fs = MemoryFileSystem()
    store = open_store(fs, "/d")
    bodies = fill(store, count, per_write=4)
    if close:
        store.close()
    files = contents(fs)
    if not watermark:
        files["/d/watermark"] = b""
        files = {path: data for path, data in files.items() if not path.startswith("/d/index/")}
    return files, bodies


def test_cut_at_every_byte_of_the_log():
    """Exhaustive: the valid prefix is found, exactly, wherever the file ends; without a bound that says otherwise."""
    files, bodies = made(watermark=False)
    size = 88
    whole = files["/d" + DATA]
    for cut in range(len(bodies) * size + 1):
        data = whole[:cut] + bytes(len(whole) - cut)
        fs = copy_of({**files, "/d" + DATA: data})
        store = open_store(fs, "/d")
        assert bodies_of(store) == bodies[: cut // size], cut
        append(store, [b"goes on"], term=2)
        flush(store)
        store.close()
        again = open_store(fs, "/d")
        assert bodies_of(again) == [*bodies[: cut // size], b"goes on"]
        again.close()


def test_a_torn_tail_beyond_the_watermark_is_cut_without_suspicion():
    """The machine did not reboot: what lies beyond the watermark was never acknowledged."""
    fs = MemoryFileSystem()
    store = open_store(fs, "/d")
    vote_state = HardState(1, "n0", None)
    store.save_hard_state(vote_state)
    bodies = fill(store, 8)
    append(store, [b"half written entry"])
    (part,) = store.take_batch().operations
    fs.kill()
    handle = fs.open("/d" + DATA)
    for cut in range(1, len(part.data)):
        fs.pwrite(handle, part.data[:cut], part.first_pos)
        again = open_store(fs, "/d")
        assert bodies_of(again) == bodies
        assert again.hard_state == vote_state
        again.close()


def test_a_torn_tail_after_a_reboot_leaves_a_vote_floor():
    """The watermark is only a lower bound now: the lost entries may have been acknowledged."""
    fs = MemoryFileSystem()
    store = open_store(fs, "/d")
    store.save_hard_state(HardState(1, "n0", None))
    bodies = fill(store, 8)
    append(store, [b"torn"])
    (part,) = store.take_batch().operations
    fs.kill()
    handle = fs.open("/d" + DATA)
    fs.pwrite(handle, part.data[:20], part.first_pos)
    fs.sync(handle)
    fs.crash()
    again = open_store(fs, "/d")
    assert bodies_of(again) == bodies
    assert again.hard_state.vote_floor is not None
    assert again.hard_state.vote_floor > LogId(1, 7)
    again.close()
    third = open_store(fs, "/d")
    assert third.hard_state == again.hard_state  # durable before open returned
    third.close()


def test_flip_every_bit_of_durable_entries_is_damage():
    """Exhaustive over two entries in the middle: never served, never cut; the message says where."""
    files, _ = made(close=True)
    whole = files["/d" + DATA]
    for bit in range(4 * 88 * 8, 6 * 88 * 8):
        data = bytearray(whole)
        data[bit // 8] ^= 1 << bit % 8
        fs = copy_of({**files, "/d" + DATA: bytes(data)})
        with pytest.raises(CorruptLogError) as error:
            open_store(fs, "/d")
        assert DATA in str(error.value)
        assert f"entry {bit // 8 // 88}" in str(error.value)
        assert "catch up" in str(error.value)


def test_flip_every_bit_without_bounds_never_serves_damage():
    """No watermark, no index: what comes before the damage is served, nothing else, and votes become provisional."""
    files, bodies = made(watermark=False)
    whole = files["/d" + DATA]
    for bit in range(4 * 88 * 8, 5 * 88 * 8):
        data = bytearray(whole)
        data[bit // 8] ^= 1 << bit % 8
        fs = copy_of({**files, "/d" + DATA: bytes(data)})
        store = open_store(fs, "/d")
        assert bodies_of(store) == bodies[:4]
        assert store.hard_state.vote_floor is not None
        store.close()


def test_every_byte_of_the_hard_state_file_is_guarded():
    files, _ = made()
    name = "/d/hard_state"
    for at in range(len(files[name]) - 1):
        data = bytearray(files[name])
        data[at] ^= 0x41
        with pytest.raises(CorruptLogError):
            open_store(copy_of({**files, name: bytes(data)}), "/d")


def test_a_damaged_checkpoint_costs_time_not_data():
    fs = MemoryFileSystem()
    store = open_store(fs, "/d")
    bodies = fill(store, 50)
    store.commit(49)
    store.close()
    files = contents(fs)
    assert open_store(copy_of(files), "/d").recovery.from_index == 50
    files["/d/checkpoint"] = b"rubbish"
    again = open_store(copy_of(files), "/d")
    assert bodies_of(again) == bodies
    assert "checkpoint is damaged" in str(again.recovery)


def test_a_lost_or_wrong_index_is_rebuilt():
    files, bodies = made()
    fs = copy_of({path: data for path, data in files.items() if not path.startswith("/d/index/")})
    store = open_store(fs, "/d")
    assert bodies_of(store) == bodies
    assert store.recovery.index_records_rewritten == len(bodies)
    store.close()
    broken = {path: bytes(len(data)) if path.startswith("/d/index/") else data for path, data in files.items()}
    store = open_store(copy_of(broken), "/d")
    assert bodies_of(store) == bodies
    store.close()


def test_opening_costs_the_same_for_a_small_and_a_big_log():
    """Bytes read, not seconds: verification starts at the checkpoint."""

    class Counting(MemoryFileSystem):
        read = 0

        def pread(self, handle, length, offset):
            data = super().pread(handle, length, offset)
            self.read += len(data)
            return data

    costs = []
    for size in (2_000, 40_000):
        fs = Counting(track=False)
        options = StoreOptions(
            data_segment_bytes=1 << 20, index_segment_bytes=1 << 16, checkpoint_bytes=1 << 16, prepare_bytes=1 << 14
        )
        store = open_store(fs, "/d", options)
        for at in range(0, size, 100):
            append(store, [b"x" * 100] * 100)
            flush(store)
            store.commit(at + 99)
        fs.kill()
        fs.read = 0
        again = open_store(fs, "/d", options)
        assert again.last_index == size - 1
        costs.append(fs.read)
    assert costs[1] < 2 * costs[0] + (1 << 18)


class _CrashAt(MemoryFileSystem):
    """Dies at the n-th operation that changes anything."""

    countdown = -1

    class Crash(BaseException):
        pass

    def before(self, operation, path):
        if operation in {"pread", "makedirs", "open"}:
            return
        if self.countdown == 0:
            raise self.Crash
        self.countdown -= 1


def _script(fs, promise):
    """A life: every line of ``promise`` was durable when it was written down."""
    store = open_store(fs, "/d")
    promise["open"] = True
    for round_number in range(4):
        term = round_number + 1
        store.save_hard_state(HardState(term, f"n{round_number % 3}", None))
        flush(store)
        promise["hard_state"] = store.hard_state
        for part in range(3):
            new = [b"%d-%d-%d" % (round_number, part, n) * 6 for n in range(6)]
            append(store, new, term=term)
            flush(store)
            promise["log"] = [*promise["log"], *new]
        store.commit(len(promise["log"]) - 4)
        cut = len(promise["log"]) - 3
        promise["log_if_cut"] = promise["log"][:cut]
        store.truncate(cut)
        append(store, [b"replaced %d" % round_number], term=term)
        flush(store)
        promise["log"] = [*promise["log_if_cut"], b"replaced %d" % round_number]
        promise["log_if_cut"] = None
    store.close()


def keep_policy(policy, rng):
    """What of the unsynced writes reaches the disk."""
    return {
        "nothing": None,
        "everything": lambda _, write: write.data or b"",
        "random": lambda _, write: (write.data or b"") if rng.random() < 0.5 else None,
        "torn": lambda _, write: (write.data or b"")[: rng.randrange(len(write.data or b"") + 1)],
    }[policy]


@pytest.mark.parametrize("policy", ["nothing", "everything", "random", "torn", "killed"])
def test_crash_at_every_file_operation(policy):
    """Whatever was promised is there; no crash looks like damage; the hard state never weakens."""
    options = OPTIONS
    assert options.data_segment_bytes == 4096
    step = 0
    while True:
        fs = _CrashAt()
        fs.countdown = step
        promise: dict = {"open": False, "hard_state": None, "log": [], "log_if_cut": None}
        try:
            _script(fs, promise)
            finished = True
        except _CrashAt.Crash:
            finished = False
        fs.countdown = -1
        if policy == "killed":
            fs.kill()
        else:
            fs.crash(keep_policy(policy, random.Random(step)))
        store = open_store(fs, "/d")
        if promise["hard_state"] is not None:
            assert store.hard_state.term >= promise["hard_state"].term
            if store.hard_state.term == promise["hard_state"].term:
                assert store.hard_state.vote == promise["hard_state"].vote
        found = bodies_of(store)
        sure = promise["log"] if promise["log_if_cut"] is None else promise["log_if_cut"]
        assert found[: len(sure)] == sure, step
        append(store, [b"life goes on"], term=9)
        flush(store)
        store.close()
        if finished:
            break
        step += 1
    assert step > 100


def test_real_files_after_a_real_kill(tmp_path):
    """The same on a real disk: a log whose last write is cut short opens with the rest."""
    fs, folder = RealFileSystem(), str(tmp_path / "d")
    store = open_store(fs, folder)
    bodies = fill(store, 20)
    store.close()
    path = tmp_path / "d" / "data" / "00000000000000000000"
    data = path.read_bytes()
    (tmp_path / "d" / "watermark").unlink()
    path.write_bytes(data[: 19 * 88 + 50] + bytes(4096 - 19 * 88 - 50))
    again = open_store(fs, folder)
    assert bodies_of(again) == bodies[:19]
    assert again.recovery.cut_at == 19 * 88
    again.close()
