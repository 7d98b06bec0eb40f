"""Short random lives of a group, each from its seed; every invariant is checked after every step.

A seed that once failed stays in `PINNED` with what it showed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from dledger.raft.messages import InvariantError
from tests.raft.chaos import Chaos, Weather
from tests.raft.harness import Node
from tests.raft.invariants import BrokenError

WEATHERS = {
    "calm": Weather(drop=0, duplicate=0, reorder=0, cut=0),
    "plain": Weather(),
    "storm": Weather(drop=5, duplicate=5, reorder=30, crash=2),
    "quarrel": Weather(reorder=20, crash=3, hint=4, transfer=3, tick=10),
    "pair": Weather(size=2),
    "four": Weather(size=4),
    "five": Weather(size=5),
    "wiped folders": Weather(wipe=True, crash=2),
    "new group, wiped folders": Weather(fresh=True, wipe=True, crash=2),
}

PINNED = [
    # A follower whose folder was deleted was never filled again while the same leader stayed in the same term: its
    # refusals at its old match index looked stale.
    ("wiped folders", 4),
    ("new group, wiped folders", 19),
]


@pytest.mark.parametrize("name", WEATHERS)
def test_random_lives(name: str) -> None:
    """Nothing committed is lost, doubled or changed, no stale read; and the group works again when the storm ends."""
    elections = committed = reads = 0
    for seed in range(25):
        chaos = _run(name, seed)
        elections += chaos.checker.elections
        committed += len(chaos.checker.committed)
        reads += chaos.checker.reads_done
    # A fuzzer that does nothing finds nothing: what the runs reached is part of the test.
    assert elections >= 50
    assert committed >= 200
    assert reads >= 10


@pytest.mark.parametrize(("name", "seed"), PINNED)
def test_pinned_seeds(name: str, seed: int) -> None:
    """What was found once is not lost again."""
    _run(name, seed)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", WEATHERS)
def test_many_random_lives(name: str) -> None:
    """The same for longer."""
    for seed in range(1_000, 5_000):
        _run(name, seed)


def test_same_seed_same_life() -> None:
    """Same inputs, same outputs, to the byte: a failing seed is a test."""
    first, second = (_run("storm", 7).world.transcript() for _ in range(2))
    assert first == second


def loses_its_last_entry(node: Node) -> None:
    """Damage: a restart finds the log without its last entry, which may have been acknowledged."""
    true_restart = node.restart

    def restart(commit_index: int = -1) -> None:
        node.disk_log = node.disk_log[:-1]
        true_restart(min(commit_index, len(node.disk_log) - 1))

    node.restart = restart  # type: ignore[method-assign]


def forgets_its_vote(node: Node) -> None:
    """Damage: a restart forgets for whom it voted."""
    true_restart = node.restart

    def restart(commit_index: int = -1) -> None:
        node.disk_hard_state = replace(node.disk_hard_state, vote=None)
        true_restart(commit_index)

    node.restart = restart  # type: ignore[method-assign]


def acknowledges_at_once(node: Node) -> None:
    """Damage: the disk says that it is done before it is."""
    true_start = node.start_write

    def start_write() -> None:
        true_start()
        if node.log:
            node.core.persisted(len(node.log) - 1, node.log[-1].term, node.world.now)

    node.start_write = start_write  # type: ignore[method-assign]


@pytest.mark.parametrize("damage", [loses_its_last_entry, forgets_its_vote, acknowledges_at_once])
def test_a_broken_driver_is_found(damage: Callable[[Node], None]) -> None:
    """The test of the test: a group that breaks the durability rules does not pass."""
    with pytest.raises((BrokenError, InvariantError)):
        for seed in range(200):
            chaos = Chaos(seed, WEATHERS["quarrel"])
            for node in chaos.world.nodes.values():
                damage(node)
            chaos.run()


def _run(name: str, seed: int) -> Chaos:
    chaos = Chaos(seed, WEATHERS[name])
    try:
        chaos.run()
    except BaseException as error:
        tail = "\n".join(chaos.world.lines[-60:])
        error.add_note(f"weather {name!r}, seed {seed}; the last that happened:\n{tail}")
        raise
    return chaos
