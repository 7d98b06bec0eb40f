"""A scripted life of a store, ended at every single operation on its files, in every way that a machine can end it.

What must hold afterwards: everything whose write had returned is there; nothing else than what was staged is; term and
vote never weaken; an honest crash never looks like damage; and a vote floor, once due, is never forgotten.
"""

from __future__ import annotations

import contextlib
from dataclasses import replace
from random import Random

import pytest

from dledger.raft.messages import EntryType, HardState, LogId
from dledger.storage.entry import EntryGroup, iter_entries
from dledger.storage.memory_filesystem import MemoryFileSystem
from dledger.storage.verify import iter_directory, verify_directory
from tests.storage.helpers import OPTIONS, append, flush, open_store

CHECKPOINTING = replace(OPTIONS, data_segment_bytes=1024, checkpoint_bytes=700, prepare_bytes=256, cache_bytes=0)
READS = {"pread", "open"}


class Dying(MemoryFileSystem):
    """Ends the process at the n-th operation that changes anything; a write is then cut short anywhere."""

    class Crash(BaseException):
        pass

    def __init__(self) -> None:
        super().__init__()
        self.countdown = -1
        self.rng = Random(0)

    def before(self, operation, path):
        if operation in READS or self.countdown < 0:
            return
        if self.countdown == 0 and operation != "pwrite":
            raise self.Crash
        self.countdown -= operation != "pwrite"

    def pwrite(self, handle, data, offset):
        if self.countdown == 0:
            super().pwrite(handle, data[: self.rng.randrange(len(data) + 1)], offset)
            raise self.Crash
        if self.countdown > 0:
            self.countdown -= 1
        super().pwrite(handle, data, offset)


class Life:
    """Runs the script and writes down what was promised, and what was ever staged."""

    def __init__(self, fs, options) -> None:
        self.fs, self.options = fs, options
        self.truncating = False
        """A truncation that is half done leaves bytes that look like lost entries."""
        self.log: list[bytes] = []
        """Durable for sure."""
        self.staged: set[bytes] = set()
        self.hard_state: HardState | None = None
        self.next_hard_state: HardState | None = None

    def save(self, term: int, vote: str) -> None:
        self.next_hard_state = HardState(term, vote, None)
        self.store.save_hard_state(self.next_hard_state)

    def stage(self, bodies, term: int, channel: int = 0, kind: EntryType = EntryType.NORMAL) -> list[bytes]:
        append(self.store, bodies, term, channel, kind)
        self.staged.update(bodies)
        return bodies

    def write(self, log: list[bytes]) -> None:
        self.pending_log = log
        flush(self.store)
        if not self.options.sync_flush:
            self.store.flush()
        self.log = log
        self.hard_state = self.next_hard_state

    def run(self) -> None:
        self.store = open_store(self.fs, "/d", self.options)
        for term in range(1, 4):
            self.save(term, f"n{term % 3}")
            self.write(self.log)
            number = self.store.sessions.next_session_id()
            log = self.log + self.stage([b"client-%d" % term], term, number, EntryType.SESSION)
            log = log + self.stage([b"%d-a-%d" % (term, n) * 9 for n in range(9)], term, number)
            self.write(log)
            self.store.commit(len(log) - 3)
            # A conflicting tail, partly on the disk, partly only staged, goes in the same batch as what replaces it.
            staged = self.stage([b"%d-b-%d" % (term, n) * 5 for n in range(3)], term)
            kept = self.log[:-2] if term % 2 else self.log + staged[:2]
            self.log = self.log[: len(kept)]  # the rest is given up from here on
            self.truncating = True
            self.store.truncate(len(kept))
            log = kept + self.stage([b"%d-c-%d" % (term, n) * 7 for n in range(4)], term)
            self.save(term, f"n{term % 3}")
            self.write(log)
            self.truncating = False
            self.store.commit(len(log) - 1)
            if self.store.wants_preparation:
                self.store.prepare()
            if term == 2:
                self.store.close()
                self.store = open_store(self.fs, "/d", self.options)
        self.store.close()

    def check(self, store) -> None:
        found = []
        while len(found) <= store.last_index:
            found.extend(entry.body for entry in iter_entries(store.read(len(found), store.last_index, 600).data))
        assert found[: len(self.log)] == self.log
        assert set(found) <= self.staged
        if self.hard_state is not None:
            now, before = store.hard_state, self.hard_state
            assert now.term >= before.term
            assert now.term > before.term or now.vote == before.vote


def end(fs: Dying, how: str, rng: Random) -> None:
    """Let the process or the machine die."""

    def some(_path, write):
        if write.data is None:
            return b"" if rng.random() < 0.7 else None
        kind = rng.randrange(3)
        return None if kind == 0 else write.data if kind == 1 else write.data[: rng.randrange(len(write.data) + 1)]

    fs.countdown = -1
    if how == "killed":
        fs.kill()
    elif how == "all unsynced lost":
        fs.crash()
    elif how == "names lost":
        fs.crash(lambda _path, write: write.data or b"")
    elif how == "only index kept":
        fs.crash(lambda path, write: (write.data or b"") if "/index/" in path else None, lambda _path: True)
    elif how == "writes lost":
        fs.crash(None, lambda _path: True)
    else:
        fs.crash(some, lambda _path: rng.random() < 0.5)


ENDS = ["killed", "all unsynced lost", "names lost", "writes lost", "only index kept", "some lost", "some torn"]

TRACELESS = {"all unsynced lost", "only index kept"}
"""Of an unsynced entry nothing is left, nor an index record: those are written behind the sync."""


@pytest.mark.parametrize("sync_flush", [True, False], ids=["sync", "async"])
@pytest.mark.parametrize("how", ENDS)
def test_a_crash_at_every_operation(how, sync_flush):
    """Every operation is a crash point; a third of the reopenings crash too, somewhere, before one gets through."""
    options = replace(CHECKPOINTING, sync_flush=sync_flush)
    step = 0
    while True:
        rng = Random(f"{how}-{step}")
        fs = Dying()
        fs.rng = rng
        fs.countdown = step
        life = Life(fs, options)
        try:
            life.run()
            finished = True
        except Dying.Crash:
            finished = False
        end(fs, how, rng)
        if step % 3 == 0:
            fs.countdown = rng.randrange(20)
            with contextlib.suppress(Dying.Crash):
                open_store(fs, "/d", options)
            end(fs, how, rng)
        if sync_flush and fs.exists("/d/data"):
            assert verify_directory(fs, "/d").damage == []  # nor does it look so from outside
        store = open_store(fs, "/d", options)
        life.check(store)
        if step % 2:  # what opening has shown once is durable: a peer may have heard of it
            life.log = [entry.body for entry in iter_directory(fs, "/d")]
            fs.crash()
            store = open_store(fs, "/d", options)
            life.check(store)
        exact = how == "killed" and not step % 2
        if sync_flush and life.hard_state is not None and (exact or (how in TRACELESS and not life.truncating)):
            assert store.hard_state.vote_floor is None
        before = store.last_index
        store.save_hard_state(HardState(9, "n9", None))
        append(store, [b"life goes on"], 9)
        flush(store)
        store.close()
        assert verify_directory(fs, "/d").ok
        again = open_store(fs, "/d", options)
        assert (again.last_index, again.last_term, again.recovery.cut_bytes) == (before + 1, 9, 0)
        again.close()
        if finished:
            break
        step += 1
    assert step > 120


def test_a_vote_floor_survives_a_crash_while_opening():
    """What may have been acknowledged is written down before its remains are erased: else a crash forgets it for good."""
    points = 0
    for step in range(200):
        fs = Dying()
        store = open_store(fs, "/d")
        store.save_hard_state(HardState(3, "n1", None))
        append(store, [b"good"] * 5, 2)
        flush(store)
        part = store.encode(3, [EntryGroup(EntryType.NORMAL, 0, [b"lost" * 30])])[0]
        fs.kill()
        handle = fs.open("/d/data/" + "0" * 20)
        fs.pwrite(handle, part.data[:-1], part.first_pos)  # its end is damaged; whether it was acknowledged, who knows
        fs.sync(handle)
        fs.crash()
        fs.countdown = step
        try:
            open_store(fs, "/d").close()
            finished = True
        except Dying.Crash:
            finished = False
        end(fs, "all unsynced lost", Random(step))
        again = open_store(fs, "/d")
        assert again.last_index == 4
        assert again.hard_state.term == 3
        assert again.hard_state.vote == "n1"
        floor = again.hard_state.vote_floor
        assert floor is not None
        assert floor >= LogId(3, 5)  # the lost entry's term is the node's, not that of the entry before it
        again.close()
        points += 1
        if finished:
            break
    assert points > 10
