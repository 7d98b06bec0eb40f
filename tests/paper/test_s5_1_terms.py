"""§5.1, terms: a logical clock that every message carries. See also the hard-state rule in test_t10_2_1."""

from __future__ import annotations

import pytest

from dledger.raft.messages import (
    AppendEntriesResponse,
    HardState,
    Message,
    ReadIndexRequest,
    ReadIndexResponse,
    RequestVoteResponse,
    Role,
    TimeoutNow,
)
from dledger.raft.ready import RoleChange
from tests.raft.harness import (
    Node,
    World,
    accepted,
    append,
    beat_answer,
    heartbeat,
    make_candidate,
    make_follower,
    make_leader,
    make_pre_candidate,
    vote,
    vote_request,
)

LOG = [1, 2, 2]


def in_role(role: Role) -> tuple[World, Node]:
    """n0 of three, in a role, in term 5 (leader, candidate) or 4 (the others), with an old log."""
    world = World(logs={"n0": LOG}, hard_states={"n0": HardState(4)})
    if role is Role.FOLLOWER:
        return world, make_follower(world, 4)
    make = {Role.PRE_CANDIDATE: make_pre_candidate, Role.CANDIDATE: make_candidate, Role.LEADER: make_leader}[role]
    return world, make(world)


ROLES = [Role.FOLLOWER, Role.PRE_CANDIDATE, Role.CANDIDATE, Role.LEADER]

HIGHER: list[tuple[str, Message, str | None]] = [
    ("append", append("n1", 9, (-1, -1), [1]), "n1"),
    ("heartbeat", heartbeat("n1", 9), "n1"),
    ("append refused", AppendEntriesResponse("n1", 9, False, -1, 4), None),
    ("append accepted", accepted("n1", 9, 2), None),
    ("heartbeat answered", beat_answer("n1", 9), None),
    ("vote granted", vote("n1", 9), None),
    ("vote refused", vote("n1", 9, granted=False), None),
    ("poll refused", vote("n1", 9, granted=False, pre_vote=True), None),
    ("read asked", ReadIndexRequest("n1", 9, 1), None),
    ("read answered", ReadIndexResponse("n1", 9, 1, 1), None),
]


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize(("name", "message", "leader"), HIGHER, ids=[row[0] for row in HIGHER])
def test_a_higher_term_makes_a_follower(role: Role, name: str, message: Message, leader: str | None) -> None:
    """§5.1: a server that sees a larger term takes it over; a candidate or leader falls back to follower."""
    world, node = in_role(role)
    world.step("n0", message)
    assert (node.core.term, node.core.role, node.core.leader_id) == (9, Role.FOLLOWER, leader)
    assert node.core.vote is None
    assert node.disk_hard_state == HardState(9)


STALE_ASKED: list[tuple[str, Message]] = [
    ("append", append("n1", 1, (-1, -1), [1, 1, 1, 1])),
    ("append that conflicts", append("n1", 3, (0, 1), [3, 3])),
    ("heartbeat", heartbeat("n1", 3, commit=2)),
    ("vote", vote_request("n1", 3, (99, 99))),
    ("poll", vote_request("n1", 3, (99, 99), pre_vote=True)),
]

STALE_IGNORED: list[tuple[str, Message]] = [
    ("append accepted", accepted("n1", 3, 2)),
    ("append refused", AppendEntriesResponse("n1", 3, False, -1, 4, 2, 1, 0)),
    ("heartbeat answered", beat_answer("n1", 3, round_=99)),
    ("vote granted", vote("n1", 3)),
    ("poll granted", vote("n1", 3, pre_vote=True)),
    ("read asked", ReadIndexRequest("n1", 3, 1)),
    ("read answered", ReadIndexResponse("n1", 3, 1, 1)),
    ("timeout now", TimeoutNow("n1", 3)),
]


def snapshot(node: Node) -> tuple[object, ...]:
    core = node.core
    return (core.hard_state, core.role, core.leader_id, core.commit_index, core.deadline_ms, tuple(node.log))


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize(("name", "message"), STALE_ASKED, ids=[row[0] for row in STALE_ASKED])
def test_a_stale_request_is_refused_and_told_the_term(role: Role, name: str, message: Message) -> None:
    """§5.1: a request with a stale term is rejected; the answer carries the current one, so that its sender steps down."""
    world, node = in_role(role)
    before = snapshot(node)
    sent = world.step("n0", message)
    assert snapshot(node) == before
    assert len(sent) == 1
    assert sent[0].term == node.core.term
    answer = sent[0]
    assert isinstance(answer, AppendEntriesResponse | RequestVoteResponse)
    assert not (answer.success if isinstance(answer, AppendEntriesResponse) else answer.granted)


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize(("name", "message"), STALE_IGNORED, ids=[row[0] for row in STALE_IGNORED])
def test_a_stale_answer_is_ignored(role: Role, name: str, message: Message) -> None:
    """§5.1: what belongs to an older term changes nothing, and nobody answers an answer."""
    world, node = in_role(role)
    before = snapshot(node)
    assert world.step("n0", message) == []
    assert snapshot(node) == before


def test_terms_start_at_zero_and_rise_with_each_campaign() -> None:
    """§5.1: terms are consecutive integers, each begins with an election; without conflicts none is skipped."""
    world = World()
    assert [node.core.term for node in world.nodes.values()] == [0, 0, 0]
    for expected in (1, 2, 3, 4):
        world.advance(1300)
        leader = world.leader
        assert leader is not None
        assert leader.core.term == expected
        leader.crash()
        for other in world.nodes.values():
            if other.alive:
                other.peer_unreachable(leader.node_id)
        world.advance(1300)
        leader.restart()


def test_a_leader_of_an_old_term_steps_down_when_told() -> None:
    """§5.1: the old leader that comes back learns of the new term by the answer to its own message."""
    world = World()
    old = world.elect("n0")
    world.isolate("n0")
    world["n1"].peer_unreachable("n0")
    world["n2"].peer_unreachable("n0")
    world.advance(150)
    new = world.leader
    assert new is not None and new is not old
    assert old.core.is_leader  # it does not know yet
    world.heal()
    sent = world.sent_by("n0", old.propose)
    world[new.node_id].step(sent[0])
    world.deliver()
    assert old.core.role is Role.FOLLOWER
    assert old.core.term == new.core.term


def test_each_change_of_role_leader_or_term_is_told_once() -> None:
    """What the driver tells its handlers: role, term and leader, each time one of them changes, and only then."""
    world = World(hard_states={"n0": HardState(4)})
    node = world["n0"]
    for message in (
        heartbeat("n1", 4),
        heartbeat("n1", 4),
        vote_request("n2", 4),
        append("n1", 4, (-1, -1), [4]),
        accepted("n2", 6, 0),
        ReadIndexResponse("n2", 7, 1, 1),
        heartbeat("n2", 7),
    ):
        node.step(message)
    world.wire.clear()
    make_leader(world)
    node.step(heartbeat("n1", 9))
    assert node.role_changes == [
        RoleChange(Role.FOLLOWER, 4, "n1"),
        RoleChange(Role.FOLLOWER, 6, None),
        RoleChange(Role.FOLLOWER, 7, None),
        RoleChange(Role.FOLLOWER, 7, "n2"),
        RoleChange(Role.PRE_CANDIDATE, 7, None),
        RoleChange(Role.CANDIDATE, 8, None),
        RoleChange(Role.LEADER, 8, "n0"),
        RoleChange(Role.FOLLOWER, 9, "n1"),
    ]


def test_strangers_are_ignored() -> None:
    """A sender that is no member, or that claims to be this node, changes nothing, whatever its term."""
    for sender in ("n9", "n0"):
        for message in (
            append(sender, 99, (-1, -1), [1]),
            heartbeat(sender, 99),
            vote_request(sender, 99, (99, 99)),
            vote_request(sender, 99, (99, 99), pre_vote=True),
            vote(sender, 5),
            TimeoutNow(sender, 5),
        ):
            for role in ROLES:
                world, node = in_role(role)
                before = snapshot(node)
                assert world.step("n0", message) == []
                assert snapshot(node) == before
