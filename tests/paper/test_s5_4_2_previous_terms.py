"""§5.4.2, committing entries from previous terms: only an entry of the own term is committed by counting copies."""

from __future__ import annotations

import pytest

from dledger.raft.messages import HardState
from tests.raft.harness import World, accepted, make_leader, vote


@pytest.mark.parametrize(("acked", "commit"), [(0, -1), (1, -1), (2, 2)])
def test_old_terms_are_not_committed_by_counting(acked: int, commit: int) -> None:
    """§5.4.2: entries of terms 1 and 2 on a majority are not committed; the leader's own entry commits all three."""
    world = World(logs={"n0": [1, 2]})
    node = make_leader(world)
    assert node.terms == [1, 2, 3]
    node.step(accepted("n1", 3, acked))
    assert node.core.commit_index == commit


def test_a_leader_appends_an_entry_of_its_own_term_at_once() -> None:
    """§8: a no-op at the start of the term, so that what earlier leaders left is committed without waiting."""
    world = World(logs={f"n{at}": [1, 1, 1] for at in range(3)})
    leader = world.elect("n0")
    assert leader.terms == [1, 1, 1, 2]
    assert leader.core.commit_index == 3
    assert leader.leader_ready


def test_figure_8() -> None:
    """§5.4.2, figure 8: an entry of term 2 on a majority may still be overwritten, as long as nobody called it committed.

    Five servers. (a) S1 leads term 2 and puts index 1 on S2 only. (b) S5 leads term 3 by S3 and S4 and writes another
    index 1. (c) S1 leads term 4 and replicates its old entry to S3. (d) S5 overwrites it with its own; (e) had S1
    replicated an entry of term 4 first, S5 could not have won.
    """
    s1, s2, s3, s4, s5 = names = [f"n{at}" for at in range(5)]
    logs = {s1: [1, 2], s2: [1, 2], s3: [1], s4: [1], s5: [1, 3]}
    terms = {s1: 3, s2: 2, s3: 3, s4: 3, s5: 3}

    # (c): S1 leads term 4; its entry of term 2 comes to stand on S1, S2, S3.
    world = World(5, logs=logs, hard_states={name: HardState(terms[name]) for name in names})
    leader = make_leader(world, s1)
    assert leader.core.term == 4
    leader.step(accepted(s2, 4, 1))
    leader.step(accepted(s3, 4, 1))
    assert leader.core.commit_index == -1  # a majority has it, and it is not committed

    # (e): an entry of term 4 on a majority commits both.
    leader.step(accepted(s2, 4, 2))
    assert leader.core.commit_index == -1
    leader.step(accepted(s3, 4, 2))
    assert leader.core.commit_index == 2

    # (d): without that, S5 wins term 5 by S2, S3, S4, and its entry of term 3 replaces the one of term 2 everywhere.
    logs[s3] = [1, 2]
    world = World(5, logs=logs, hard_states={name: HardState(4) for name in names})
    world[s1].crash()
    world.elect(s5)
    world.advance(300)
    assert all(world[name].terms == [1, 3, 5] for name in (s2, s3, s4, s5))
    assert world[s5].core.commit_index == 2
    world[s1].restart()
    world.advance(300)
    assert world[s1].terms == [1, 3, 5]

    # (e) again: with an entry of term 4 on S1, S2, S3 nobody of them votes for S5.
    for name in (s1, s2, s3):
        logs[name] = [1, 2, 4]
    world = World(5, logs=logs, hard_states={name: HardState(4) for name in names})
    world[s1].crash()
    world.now = world[s5].core.deadline_ms
    world[s5].tick()
    world.deliver()
    assert not world[s5].core.is_leader
    world.advance(5000)
    assert world.leader in {world[s2], world[s3]}
    assert world[s5].terms[:3] == [1, 2, 4]


def test_an_uncommitted_entry_of_an_old_term_may_vanish() -> None:
    """What no leader called committed may be overwritten; what one did, never (see the random tests)."""
    world = World(logs={"n0": [1, 1]}, hard_states={f"n{at}": HardState(1) for at in range(3)})
    world["n0"].crash()
    world.elect("n1")
    world["n0"].restart()
    world.advance(300)
    assert world["n0"].terms == [2]


def test_a_vote_from_the_test_is_a_vote() -> None:
    """The helper's sanity: a leader made by hand-played votes leads the term after its log's."""
    world = World(logs={"n0": [1, 2]})
    node = make_leader(world)
    assert node.core.term == 3
    node.step(vote("n2", 3))  # a late vote changes nothing
    assert node.core.is_leader
