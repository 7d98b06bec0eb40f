"""What a node remembers of its own doings: events, messages, times of appends."""

from __future__ import annotations

import pytest

from dledger.driver.recent import AppendTimes, Recent
from dledger.raft.messages import Heartbeat, HeartbeatResponse
from dledger.raft.ready import CoreEvent
from tests.driver.harness import Group, append, eventually


def test_times_are_from_proposal_to_commit_and_only_the_last_seconds_count() -> None:
    times = AppendTimes()
    assert times.percentiles_us(0.0) == (-1, -1)
    for number in range(100):
        times.proposed(number, 10.0)
    times.committed(98, 10.002)
    times.committed(99, 10.5)
    assert times.percentiles_us(11.0) == (pytest.approx(2000, abs=1), pytest.approx(500_000, abs=1))
    assert times.percentiles_us(15.1) == (pytest.approx(500_000, abs=1), pytest.approx(500_000, abs=1))
    assert times.percentiles_us(16.0) == (-1, -1)


def test_what_was_under_way_when_leadership_ended_is_not_timed() -> None:
    times = AppendTimes()
    times.proposed(5, 1.0)
    times.leadership_lost()
    times.committed(9, 2.0)
    assert times.percentiles_us(2.0) == (-1, -1)


def test_events_are_numbered_aged_and_bounded() -> None:
    recent = Recent()
    for number in range(70):
        recent.note("voted", (("term", number), ("candidate", None)), number * 10)
    events = recent.events(1000)
    assert (len(events), events[0].number, events[-1].number) == (64, 7, 70)
    assert (events[-1].age_ms, events[-1].facts) == (310, {"term": "69", "candidate": ""})


def test_truncated_entries_and_messages_are_counted() -> None:
    recent = Recent()
    recent.note_core_event(CoreEvent("truncated", (("from_index", 5), ("entries", 3))), 1)
    recent.note_core_event(CoreEvent("truncated", (("from_index", 5), ("entries", 1))), 2)
    assert recent.truncated_count == 4
    heartbeat = Heartbeat.__new__(Heartbeat)
    for peer, message in (("n1", heartbeat), ("n1", heartbeat), ("n2", HeartbeatResponse.__new__(HeartbeatResponse))):
        recent.sent(peer, message)
    assert recent.sent_to("n1") == {"Heartbeat": 2}
    assert recent.sent_to("n2") == {"HeartbeatResponse": 1}
    assert recent.sent_to("n3") == {}


@pytest.mark.asyncio
async def test_the_status_tells_timers_times_the_logs_end_and_what_happened() -> None:
    async with Group(3, election_timeout_ms=800) as group:  # nobody campaigns because the machine is busy
        leader = await group.leader()
        for number in range(70):
            await append(leader, [b"entry %d" % number])
        follower = next(driver for driver in group.drivers.values() if driver is not leader)
        await eventually(lambda: follower.core.commit_index == leader.core.commit_index)
        told, heard = leader.status(), follower.status()
        assert 0 <= told.append_p50_us <= told.append_p99_us
        assert heard.append_p50_us == -1
        assert told.election_left_ms == -1
        assert 0 <= heard.election_left_ms <= 2 * heard.election_timeout_ms == 1600
        assert [(run.first_index, run.term) for run in told.tail] == [(told.last_index - 63, told.term)]
        assert {"elected", "leader_ready", "role_changed"} <= {event.name for event in told.events}
        assert any(event.name in {"voted", "follows"} for event in heard.events)
        for peer in told.peers:
            assert peer.sent["AppendEntries"] > 0
        to_leader = next(peer for peer in heard.peers if peer.node_id == leader.node_id)
        assert to_leader.sent["AppendEntriesResponse"] > 0
