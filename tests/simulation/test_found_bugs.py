"""What the simulator has found, each as small as it can be told."""

from __future__ import annotations

import asyncio
import contextlib
import random

import pytest

from dledger.errors import CorruptLogError, StorageFailedError
from dledger.raft.messages import EntryType, HardState, LogId
from dledger.raft.ready import SendEntries
from dledger.sim.clients import submit
from dledger.sim.cluster import Cluster
from dledger.sim.disk import FaultyFileSystem, PowerLoss, SimDisk, SimulatedCrash
from dledger.sim.loop import new_loop
from dledger.sim.scenario import draw_scenario
from dledger.sim.trace import Trace
from dledger.storage.entry import EntryGroup
from dledger.storage.log_store import LogStore, StoreOptions

OPTIONS = StoreOptions(data_segment_bytes=4096, index_segment_bytes=1024, prepare_bytes=512)


class Machine:
    """A disk and the store on it, opened again and again."""

    def __init__(self, seed=0):
        self.loop = new_loop(random.Random(seed))
        self.disk = SimDisk("n0", random.Random(seed), Trace(self.loop))
        self.fs = None

    def open(self):
        if self.fs is not None:
            self.loop.kill(self.fs.process)
        self.fs = FaultyFileSystem(self.disk, self.loop.process("n0"))
        return LogStore.open(self.fs, "/sim/n0", group="g", node_id="n0", options=OPTIONS)


def append(store, term, *bodies):
    store.append(store.encode(term, [EntryGroup(EntryType.NORMAL, 0, bodies)]))


def write(store):
    batch = store.take_batch()
    store.write(batch)
    store.complete(batch)
    return batch


def lone_leader(scenario_of):
    """Run ``scenario_of(cluster, driver)`` beside a single node that leads; returns its result."""
    scenario = draw_scenario(1)
    scenario.node_ids, scenario.frail, scenario.faults = ("n0",), (), {}
    scenario.settings.pop("preferred_leader_ids", None)
    scenario.members = {"n0": "n0.sim:1"}
    loop = new_loop(random.Random(1))
    cluster = Cluster(loop, scenario, Trace(loop))
    node = cluster.nodes["n0"]

    async def main():
        cluster.start(node)
        while not (node.leads and node.live_driver.core.is_leader_ready):  # noqa: ASYNC110 - virtual time
            await asyncio.sleep(0.01)
        return await scenario_of(cluster, node.live_driver)

    try:
        return loop.run_until_complete(main())
    finally:
        loop.close()


def test_retries_in_one_proposal_are_not_appended_again():
    """Seed 6 of the first campaign: two batches of a session sent again, taken in one proposal.

    The second one's sequence followed the first one's, so it was taken for new, though both stood in the log.
    """

    async def scenario(cluster, driver):
        for value in ("a", "b", "c", "d"):
            cluster.invariants.expect_body(value, value.encode() + b"|")
        session_id, _ = await driver.open_session(b"client")
        batches = [(0, [b"a|", b"b|"]), (2, [b"c|", b"d|"])]
        answers = []
        for _ in range(2):
            waiting = [submit(cluster, driver, bodies, session_id, first) for first, bodies in batches]
            answers.append([(await answer).indexes() for answer in waiting])
        assert answers[0] == answers[1]
        assert driver.core.last_index == answers[0][1][-1]

    lone_leader(scenario)


def test_a_read_for_a_peer_that_truncation_overtook_does_not_stop_the_node():
    """Seed 140: leadership was lost and the entries were truncated while their read waited for the disk.

    The typed error of the read ended the node as if something had broken.
    """

    async def scenario(_cluster, driver):
        gone = driver.store.last_index + 5
        await driver._read_and_send(SendEntries("n1", gone, gone, 1000, driver.core.term))
        await asyncio.sleep(1)
        assert driver.running and not driver.failure.done()

    lone_leader(scenario)


@pytest.mark.parametrize("seed", range(10))
def test_what_a_failed_sync_left_in_the_cache_is_written_again_at_the_next_start(seed):
    """Seed 14: after a failed fsync the pages are clean and may not be on the disk; the process starts again, finds
    the entries in the cache, and acknowledges them. A power failure later they were gone.
    """
    machine = Machine(seed)
    store = machine.open()
    append(store, 1, b"one")
    write(store)
    append(store, 1, b"two", b"three")
    machine.disk.sync_errors = 1
    with pytest.raises(StorageFailedError):
        store.write(store.take_batch())
    again = machine.open()
    promised = again.last_index
    machine.disk.power_failure(PowerLoss(keep=0, tear=0))
    assert machine.open().last_index >= promised >= 0


def test_names_that_a_killed_process_left_unsynced_are_synced_at_the_next_start():
    """Killed between the rename and the folder's sync: the next process reads the new vote, and must not lose it."""
    for after in range(12):
        machine = Machine()
        store = machine.open()
        store.save_hard_state(HardState(5, "n1"))
        machine.fs.crash_after = after
        with contextlib.suppress(SimulatedCrash):
            write(store)
        read_back = machine.open().hard_state
        machine.disk.power_failure(PowerLoss(keep=0, tear=0))
        assert machine.open().hard_state == read_back, f"crash before operation {after}"


def test_a_completion_does_not_vouch_for_entries_that_were_truncated_meanwhile():
    """The same entry (index and term), truncated and appended again while its first write was under way.

    The disk has still to take it off and put it back; until then it is not durable, though it once was.
    """
    store = Machine().open()
    append(store, 1, b"old")
    first = store.take_batch()
    old = store.cached(0, 0, 1000)
    store.truncate(0)
    append(store, 2, b"new")
    store.truncate(0)
    append(store, 1, b"old")
    assert store.cached(0, 0, 1000) == old
    store.write(first)
    store.complete(first)
    assert first.last == LogId(-1, -1)
    second = write(store)
    assert second.last == LogId(1, 0)


@pytest.mark.parametrize("byte", [36, 39, 41, 5, 20, 33])
def test_a_damaged_header_is_not_what_the_next_entry_is_chained_to(byte):
    """Seed 9665: a bit of a chain_crc flipped on the leader's disk, and the header was believed when it was read again.

    A node that truncated down to it would have chained what follows to garbage: its followers, as good as they are, would
    have stopped at the first entry.
    """
    machine = Machine()
    store = machine.open()
    for number in range(3):
        append(store, 1, b"%d" % number)
        write(store)
    store.commit(0)
    good = store.chain_crc_at(0)
    store = machine.open()  # with nothing in memory
    assert store.chain_crc_at(0) == good
    data = bytearray(1)
    handle = machine.fs.open("/sim/n0/data/" + "0" * 20)
    data[0] = machine.fs.pread(handle, 1, byte)[0] ^ 4
    machine.fs.pwrite(handle, bytes(data), byte)
    machine.fs.close(handle)
    with pytest.raises(CorruptLogError, match="damaged"):
        store.chain_crc_at(0)
    with pytest.raises(CorruptLogError, match="damaged"):
        store.truncate(1)
