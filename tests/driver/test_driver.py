"""The driver with real cores and real stores: appends, sessions, reads, roles, refusals, failures."""

from __future__ import annotations

import asyncio

import google_crc32c
import pytest

from dledger.driver.roles import MemberRole
from dledger.errors import (
    EntryTooLargeError,
    IndexOutOfRangeError,
    NotLeaderError,
    Outcome,
    PendingFullError,
    QuorumTimeoutError,
    SequenceGapError,
    SessionExpiredError,
    StorageFailedError,
    TermChangedError,
    UnavailableError,
    UnexpectedArgumentError,
)
from dledger.raft.messages import AppendEntries, EntryType
from dledger.storage.entry import iter_entries
from dledger.types import ReadMode
from tests.driver.harness import Group, append, eventually

pytestmark = pytest.mark.asyncio


async def bodies_of(driver, mode=ReadMode.LINEARIZABLE):
    last = await driver.read_index(mode)
    out = []
    index = 0
    while index <= last:
        raw = await driver.read_slice(index, last, 1 << 20)
        out.extend(e.body for e in iter_entries(raw.data) if e.type is EntryType.NORMAL)
        index = raw.last_index + 1
    return out


async def test_appended_entries_are_read_back_at_every_node():
    async with Group() as group:
        leader = await group.leader()
        result = await append(leader, [b"a", b"b", b"c"])
        assert [run.count for run in result.runs] == [3]
        for driver in group.drivers.values():
            assert await bodies_of(driver) == [b"a", b"b", b"c"]


async def test_a_group_of_one_works_alone():
    async with Group(1) as group:
        leader = await group.leader()
        await append(leader, [b"x"])
        assert await bodies_of(leader) == [b"x"]


async def test_everything_waiting_goes_in_one_proposal():
    """A hundred callers in one loop turn make one slice, not a hundred."""
    async with Group() as group:
        leader = await group.leader()
        before = leader.disk.write_count
        results = await asyncio.gather(*(append(leader, [b"%d" % n]) for n in range(100)))
        assert [r.first_index for r in results] == list(range(results[0].first_index, results[0].first_index + 100))
        assert leader.disk.write_count - before <= 3


async def test_acknowledged_entries_survive_the_loss_of_all_unsynced_data():
    async with Group() as group:
        leader = await group.leader()
        await append(leader, [b"%d" % n for n in range(50)])
        for node in group.ids:
            await group.crash(node)
        for node in group.ids:
            await group.start(node)
        assert await bodies_of(await group.leader()) == [b"%d" % n for n in range(50)]


async def test_a_new_leader_takes_over_and_the_old_one_catches_up():
    async with Group() as group:
        old = await group.leader()
        await append(old, [b"1"])
        await group.crash(old.node_id)
        new = await group.leader()
        await append(new, [b"2"])
        back = await group.start(old.node_id)
        await eventually(lambda: back.core.commit_index >= new.core.commit_index)
        assert await bodies_of(back, ReadMode.LOCAL_COMMITTED) == [b"1", b"2"]


async def test_sessions_make_retries_harmless():
    async with Group() as group:
        leader = await group.leader()
        session, first = await leader.open_session(b"client")
        assert (await leader.open_session(b"client")) == (session, 0)
        assert first == 0
        once = await append(leader, [b"a", b"b"], session, 0)
        again = await append(leader, [b"a", b"b"], session, 0)
        assert once.indexes() == again.indexes()
        longer = await append(leader, [b"b", b"c"], session, 1)
        assert longer.indexes() == [once.last_index, once.last_index + 1]
        with pytest.raises(SequenceGapError):
            await append(leader, [b"z"], session, 9)
        with pytest.raises(SessionExpiredError):
            await append(leader, [b"z"], 77, 0)
        assert await bodies_of(leader) == [b"a", b"b", b"c"]


async def test_sessions_survive_a_change_of_leader():
    async with Group() as group:
        leader = await group.leader()
        session, _ = await leader.open_session(b"client")
        once = await append(leader, [b"a"], session, 0)
        await group.crash(leader.node_id)
        new = await group.leader()
        again = await append(new, [b"a"], session, 0)
        assert again.indexes() == once.indexes()
        assert (await new.open_session(b"client")) == (session, 1)


async def test_pipelined_batches_of_one_session_in_one_turn_keep_their_order():
    async with Group() as group:
        leader = await group.leader()
        session, _ = await leader.open_session(b"client")
        results = await asyncio.gather(*(append(leader, [b"%d" % n], session, n) for n in range(20)))
        assert [r.first_index for r in results] == sorted(r.first_index for r in results)
        assert await bodies_of(leader) == [b"%d" % n for n in range(20)]


async def test_refusals_are_typed_and_change_nothing():
    async with Group() as group:
        leader = await group.leader()
        follower = next(d for d in group.drivers.values() if d is not leader)
        end = leader.core.last_index
        with pytest.raises(NotLeaderError) as refused:
            await append(follower, [b"x"])
        assert refused.value.leader_id == leader.node_id
        with pytest.raises(UnexpectedArgumentError):
            await append(leader, [])
        with pytest.raises(EntryTooLargeError):
            await append(leader, [b"x" * (leader.max_entry_bytes + 1)])
        with pytest.raises(IndexOutOfRangeError):
            await leader.read_slice(end + 1, end + 1, 100)
        assert leader.core.last_index == end


async def test_back_pressure_is_bounded_and_typed():
    async with Group(max_pending_requests_num=100, max_wait_ack_time_ms=2000) as group:
        leader = await group.leader()
        group.hub.cut |= {(leader.node_id, other) for other in group.ids}
        first = asyncio.gather(*(append(leader, [b"x"]) for _ in range(300)), return_exceptions=True)
        results = await first
        refused = [r for r in results if isinstance(r, PendingFullError)]
        assert len(refused) == 200
        assert all(isinstance(r, TermChangedError | QuorumTimeoutError) for r in results if r not in refused)


async def test_without_a_majority_an_append_times_out_with_an_unknown_outcome():
    async with Group(max_wait_ack_time_ms=200, election_timeout_ms=5000, heartbeat_interval_ms=100) as group:
        leader = await group.leader(30)
        for other in group.ids:
            group.hub.cut |= {(leader.node_id, other), (other, leader.node_id)}
        with pytest.raises(QuorumTimeoutError) as error:
            await append(leader, [b"x"])
        assert error.value.outcome.name == "UNKNOWN"


async def test_a_cut_off_leader_serves_no_linearizable_read():
    async with Group(max_wait_ack_time_ms=300) as group:
        old = await group.leader()
        for other in group.ids:
            group.hub.cut |= {(old.node_id, other), (other, old.node_id)}
        with pytest.raises((UnavailableError, NotLeaderError)):
            await old.read_index(ReadMode.LINEARIZABLE)
        assert await old.read_index(ReadMode.LOCAL_COMMITTED) >= 0


async def test_transfer_moves_leadership_and_keeps_the_log():
    async with Group() as group:
        leader = await group.leader()
        await append(leader, [b"1"])
        target = next(node for node in group.ids if node != leader.node_id)
        assert await leader.transfer_leadership(target) == target
        new = await group.leader()
        assert new.node_id == target
        assert await bodies_of(new) == [b"1"]


async def test_roles_are_told_in_order_and_leader_only_when_ready():
    events = []

    class Handler:
        def startup(self):
            events.append("startup")

        async def handle(self, term, role):
            await asyncio.sleep(0)
            events.append((term, role))

        def shutdown(self):
            events.append("shutdown")

    group = Group(1)
    driver = group.make("n0")
    driver.add_role_change_handler(Handler())
    group.drivers["n0"] = driver
    await driver.start()
    await group.leader()
    await eventually(lambda: (1, MemberRole.LEADER) in events)
    await driver.stop()
    assert events == [
        "startup",
        (1, MemberRole.CANDIDATE),
        (1, MemberRole.LEADER),
        "shutdown",
    ]


async def test_a_state_machine_gets_every_entry_once_in_order():
    class Machine:
        def __init__(self):
            self.seen = []

        def apply(self, entries):
            self.seen.extend((e.index, e.body) for e in entries if e.type is EntryType.NORMAL)

    machines = {f"n{n}": Machine() for n in range(3)}
    async with Group(state_machines=machines) as group:
        leader = await group.leader()
        for n in range(10):
            await append(leader, [b"%d" % n])
        await eventually(lambda: all(len(m.seen) == 10 for m in machines.values()))
        assert machines["n0"].seen == machines["n1"].seen == machines["n2"].seen
        assert [body for _, body in machines["n0"].seen] == [b"%d" % n for n in range(10)]


async def test_a_failed_fsync_stops_the_node_and_acknowledges_nothing():
    group = Group(1)
    async with group:
        leader = await group.leader()

        def broken(*_):
            raise StorageFailedError("fdatasync: EIO")

        leader.store.write = broken
        with pytest.raises(TermChangedError) as error:
            await append(leader, [b"x"])
        assert error.value.outcome.name == "UNKNOWN"
        assert isinstance(await leader.failure, StorageFailedError)
        with pytest.raises(Exception, match="stopping"):
            await append(leader, [b"y"])


async def test_a_follower_far_behind_is_fed_from_the_disk():
    async with Group(tail_cache_bytes=64 * 1024, max_append_bytes=64 * 1024) as group:
        leader = await group.leader()
        away = next(node for node in group.ids if node != leader.node_id)
        await group.crash(away)
        bodies = [bytes([n % 256]) * 1000 for n in range(2000)]
        for start in range(0, 2000, 100):
            await append(leader, bodies[start : start + 100])
        leader._transport.sent.clear()
        back = await group.start(away)
        await eventually(lambda: back.core.commit_index == leader.core.commit_index)
        assert await bodies_of(back, ReadMode.LOCAL_COMMITTED) == bodies
        pieces = [each for each in leader._transport.sent if isinstance(each, AppendEntries) and each.payload]
        assert len(pieces) >= 2000 * 1048 // (64 * 1024)
        assert all(
            each.payload.crc == google_crc32c.value(each.payload.data) for each in pieces[:-4]
        )  # (the end is cached)
        firsts = [each.prev_log_index for each in pieces]
        assert len(set(firsts)) == len(firsts), "nothing is read and sent twice"


@pytest.mark.asyncio
async def test_history_waits_for_its_turn_while_clients_append():
    """At 1 MiB a second: what has no credit waits, and appends do not; without appends nothing waits."""
    limits = {"tail_cache_bytes": 64 * 1024, "max_append_bytes": 64 * 1024, "max_catch_up_bytes": 1024 * 1024}
    async with Group(**limits) as group:
        leader = await group.leader()
        away = next(node for node in group.ids if node != leader.node_id)
        await group.crash(away)
        for _ in range(8):
            await append(leader, [bytes(1000)] * 100)
        back = await group.start(away)
        goal = leader.core.last_index
        before = 0
        while leader._pace.delay_s(leader.store.last_index, leader._loop.time()) == 0.0:
            await append(leader, [b"x"])
            before += 1
        assert back.core.commit_index < goal
        await append(leader, [b"y"])
        assert back.core.commit_index < goal
        await eventually(lambda: back.core.commit_index == leader.core.commit_index)


@pytest.mark.asyncio
async def test_small_batches_wait_for_one_of_two_proposals_under_way_and_go_together():
    async with Group(1) as group:
        driver = await group.leader()
        gate = driver.disk._executor.gate
        gate.clear()  # nothing becomes durable, so nothing is committed
        answers = []
        for body in (b"a", b"b"):
            before = driver.core.last_index
            answers.append(asyncio.ensure_future(append(driver, [body])))
            await eventually(lambda before=before: driver.core.last_index > before)
        now = driver._now_ms()
        driver.submit([b"c"], done=lambda *_: None)
        assert not driver.appends.is_due(now)
        assert now < driver.appends.deadline_ms <= now + 50  # (the timer brings it up again)
        assert driver.appends.is_due(driver.appends.deadline_ms)
        driver.submit([b"d"] * 512, done=lambda *_: None)
        assert driver.appends.is_due(now)
        gate.set()
        assert [(await answer).runs[0].count for answer in answers] == [1, 1]
        await eventually(lambda: driver.core.commit_index == driver.core.last_index)
        assert not driver.appends.is_due(driver._now_ms() + 1000)


@pytest.mark.asyncio
async def test_what_waits_for_a_proposal_definitely_did_not_happen_when_leadership_is_lost():
    async with Group(1) as group:
        driver = await group.leader()
        driver.disk._executor.gate.clear()
        ends = []
        for body in (b"a", b"b"):
            before = driver.core.last_index
            driver.submit([body], done=lambda result, error: ends.append(error.outcome))
            await eventually(lambda before=before: driver.core.last_index > before)
        driver.submit([b"c"], done=lambda result, error: ends.append(error.outcome))
        driver.appends.leadership_lost()
        driver.disk._executor.gate.set()
        assert ends == [Outcome.DEFINITE, Outcome.UNKNOWN, Outcome.UNKNOWN]
