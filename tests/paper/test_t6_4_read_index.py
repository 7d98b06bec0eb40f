"""T§6.4: linearizable reads without the log: note the commit index, confirm leadership by a round begun after, answer."""

from __future__ import annotations

import pytest

from dledger.raft.core import REFUSED_READ
from dledger.raft.messages import Heartbeat, HeartbeatResponse, ReadIndexRequest, ReadIndexResponse
from tests.raft.harness import Node, World, accepted, beat_answer, heartbeat, make_follower, make_leader, pick


def ready_leader(size: int = 3) -> tuple[World, Node]:
    """n0 leads term 1 and has committed its first entry; the others are played by the test."""
    world = World(size)
    node = make_leader(world)
    for number in range(1, size):
        node.step(accepted(f"n{number}", 1, 0))
    world.wire.clear()
    assert node.core.is_leader_ready
    return world, node


def test_no_read_before_an_entry_of_the_own_term_is_committed() -> None:
    """T§6.4, step 1: a new leader does not know what is committed; the read waits, then starts its round."""
    world = World(logs={"n0": [1, 1]})
    node = make_leader(world)
    assert pick(world.sent_by("n0", lambda: node.read(1)), Heartbeat) == []
    node.step(beat_answer("n1", 2, round_=0, match=1))
    node.step(beat_answer("n1", 2, round_=9, match=1))
    assert node.reads == {}
    rounds = pick(world.sent_by("n0", lambda: node.step(accepted("n1", 2, 2))), Heartbeat)
    assert {message.round for message in rounds} == {1}
    assert node.reads == {}
    node.step(beat_answer("n2", 2, round_=1, match=-1))
    assert node.reads == {1: 2}


def test_what_was_committed_in_earlier_terms_is_not_enough() -> None:
    """T§6.4, step 1: a commit index from an earlier life or leader may be behind what was acknowledged."""
    world = World(logs={"n0": [1, 1, 1]})
    world["n0"].restart(commit_index=1)
    node = make_leader(world)
    assert pick(world.sent_by("n0", lambda: node.read(1)), Heartbeat) == []
    assert not node.core.is_leader_ready
    node.step(accepted("n1", 2, 3))
    assert node.core.is_leader_ready
    node.step(beat_answer("n1", 2, round_=1, match=3))
    assert node.reads == {1: 3}


def test_the_read_index_is_the_commit_index_at_the_request() -> None:
    """T§6.4, step 2: what is committed later need not be waited for."""
    _world, node = ready_leader()
    node.read(1)
    node.propose(3)
    node.step(accepted("n1", 1, 3))
    assert node.core.commit_index == 3
    node.step(beat_answer("n1", 1, round_=1, match=3))
    assert node.reads == {1: 0}


@pytest.mark.parametrize(("size", "needed"), [(3, 1), (4, 2), (5, 2)])
def test_a_majority_must_answer_the_round(size: int, needed: int) -> None:
    """T§6.4, step 3: a round of heartbeats, answered by a majority; each follower counts once."""
    _, node = ready_leader(size)
    node.read(1)
    for number in range(1, needed + 1):
        assert node.reads == {}
        for _ in range(3):
            node.step(beat_answer(f"n{number}", 1, round_=1, match=0))
    assert node.reads == {1: 0}


def test_the_round_starts_after_the_request() -> None:
    """A round that is already under way says nothing of the time after the request: the read takes the next."""
    world, node = ready_leader()
    node.read(1)
    beats = pick(world.sent_by("n0", lambda: node.read(2)), Heartbeat)
    assert beats == []
    beats = pick(world.step("n0", beat_answer("n1", 1, round_=1, match=0)), Heartbeat)
    assert node.reads == {1: 0}
    assert {message.round for message in beats} == {2}  # the next round starts at once
    node.step(beat_answer("n1", 1, round_=1, match=0))  # a late answer to the round before
    assert 2 not in node.reads
    node.step(beat_answer("n1", 1, round_=2, match=0))
    assert node.reads == {1: 0, 2: 0}


def test_reads_share_a_round() -> None:
    """However many reads wait, they take one round together."""
    world, node = ready_leader()
    node.read(0)
    for request_id in range(1, 100):
        assert world.sent_by("n0", lambda request_id=request_id: node.read(request_id)) == []  # type: ignore[misc]
    node.step(beat_answer("n2", 1, round_=1, match=0))
    world.wire.clear()
    sent = world.step("n0", beat_answer("n2", 1, round_=2, match=0))
    assert sent == []
    assert node.reads == dict.fromkeys(range(100), 0)


@pytest.mark.parametrize(
    "answer",
    [
        beat_answer("n1", 1, round_=0, match=0),  # an earlier round
        beat_answer("n1", 0, round_=1, match=0),  # an earlier term
        beat_answer("n9", 1, round_=1, match=0),  # a stranger
        beat_answer("n0", 1, round_=1, match=0),  # oneself
        accepted("n1", 1, 0),  # no answer to a round
    ],
    ids=["round", "term", "stranger", "self", "append"],
)
def test_other_answers_do_not_confirm(answer: HeartbeatResponse) -> None:
    """T§6.4: only answers to this round, in this term, from members."""
    _, node = ready_leader()
    node.read(1)
    node.step(answer)
    assert node.reads == {}


def test_rounds_start_again_with_each_term() -> None:
    """An answer to round 1 of an earlier leadership of the same node does not confirm round 1 of this one."""
    world, node = ready_leader()
    node.read(1)
    node.step(heartbeat("n1", 2))
    assert node.reads == {1: None}
    node.core.peer_unreachable("n1", world.now)
    node = make_leader(world)
    assert node.core.term == 3
    node.step(accepted("n1", 3, 1))
    node.read(2)
    node.step(beat_answer("n1", 1, round_=1, match=0))
    assert 2 not in node.reads
    node.step(beat_answer("n1", 3, round_=1, match=1))
    assert node.reads == {1: None, 2: 1}


def test_heartbeats_repeat_an_unanswered_round() -> None:
    """A lost round costs one heartbeat interval, not the read."""
    world = World()
    world.elect("n0")
    world.advance(10)
    world["n0"].read(1)
    assert len(world.take(Heartbeat)) == 2
    assert world["n0"].reads == {}
    world.advance(100)
    assert world["n0"].reads == {1: 0}


def test_a_deposed_leader_never_confirms() -> None:
    """T§6.4: a leader that was replaced without knowing it answers no read, however long it waits."""
    world = World()
    old = world.elect("n0")
    world.advance(10)
    world.isolate("n0")
    world["n1"].peer_unreachable("n0")
    world["n2"].peer_unreachable("n0")
    world.advance(200)
    new = world.leader
    assert new is not None and new is not old
    new.propose()
    world.deliver()
    assert old.core.is_leader
    old.read(1)
    world.deliver()
    assert old.reads == {}
    world.heal()
    world.advance(200)
    assert old.reads == {1: None}


def test_a_read_at_a_follower_goes_to_the_leader() -> None:
    """T§6.4: a follower asks the leader for the index, and may then read its own state."""
    world = World()
    world.elect("n0")
    world["n0"].propose(2)
    world.deliver()
    (request,) = world.sent_by("n2", lambda: world["n2"].read(77))
    assert request == ReadIndexRequest("n2", 1, 77)
    world["n0"].step(request)
    world.deliver()
    assert world["n2"].reads == {77: 2}


def test_the_same_request_number_of_two_nodes_is_two_requests() -> None:
    """Numbers are the asking node's own."""
    world = World()
    world.elect("n0")
    world.advance(10)
    for name in ("n0", "n1", "n2"):
        world[name].read(5)
    world.deliver()
    assert [node.reads for node in world.nodes.values()] == [{5: 0}] * 3


def test_a_follower_without_a_leader_fails_the_read_at_once() -> None:
    """Nothing to wait for: the caller may ask again."""
    world = World()
    world["n0"].read(1)
    assert world["n0"].reads == {1: None}


@pytest.mark.parametrize("event", ["new term", "link lost", "timeout"])
def test_a_forwarded_read_fails_when_the_leader_is_gone(event: str) -> None:
    """The answer will not come: the follower says so as soon as it knows, once."""
    world = World()
    node = make_follower(world, 1)
    node.read(1)
    assert node.reads == {}
    if event == "new term":
        node.step(heartbeat("n2", 2))
    elif event == "link lost":
        node.peer_unreachable("n1")
    else:
        world.now = node.core.deadline_ms
        node.tick()
    assert node.reads == {1: None}
    node.reads.clear()
    node.step(ReadIndexResponse("n1", node.core.term, 1, 5))  # too late
    assert node.reads == {}


def test_who_does_not_lead_refuses_a_forwarded_read() -> None:
    """A follower, or a candidate, that is taken for the leader says that it is not; the asker learns at once."""
    world = World()
    make_follower(world, 1)
    (answer,) = world.step("n0", ReadIndexRequest("n2", 1, 9))
    assert answer == ReadIndexResponse("n0", 1, 9, REFUSED_READ)
    world = World()
    asker = make_follower(world, 1)
    asker.read(9)
    asker.step(ReadIndexResponse("n1", 1, 9, REFUSED_READ))
    assert asker.reads == {9: None}


def test_a_leader_that_steps_down_answers_who_waits_elsewhere() -> None:
    """The follower that forwarded a read is told, not left to its timeout."""
    world, node = ready_leader()
    node.step(ReadIndexRequest("n2", 1, 4))
    world.wire.clear()
    node.core.step_down(world.now)
    sent = world.sent_by("n0", node.pump)
    assert sent == [ReadIndexResponse("n0", 1, 4, REFUSED_READ)]


def test_a_forgotten_read_is_not_answered() -> None:
    """Whoever gave up waiting is not told, at a leader and at a follower; what others asked goes on."""
    _, node = ready_leader()
    node.read(1)
    node.read(2)
    node.core.forget_read(1)
    node.step(beat_answer("n1", 1, round_=1, match=0))
    node.step(beat_answer("n1", 1, round_=2, match=0))
    assert node.reads == {2: 0}
    world = World()
    asker = make_follower(world, 1)
    asker.read(3)
    asker.core.forget_read(3)
    asker.step(ReadIndexResponse("n1", 1, 3, 0))
    assert asker.reads == {}


def test_an_unasked_answer_is_ignored() -> None:
    """An answer to a request of an earlier life."""
    world = World()
    node = make_follower(world, 1)
    node.step(ReadIndexResponse("n1", 1, 123, 7))
    assert node.reads == {}
