"""Hypothesis plays fate for three to five cores, and shortens what it finds to the fewest steps that show it."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test

from dledger.raft.core import CoreOptions
from dledger.raft.ready import ProposalRefusedError
from tests.raft.harness import Dice, Node, World
from tests.raft.invariants import BrokenError, Checker

OPTIONS = CoreOptions(
    election_timeout_ms=300,
    heartbeat_interval_ms=50,
    max_inflight_count=3,
    max_inflight_bytes=1_000,
    max_append_bytes=300,
)

QUICK = settings(
    derandomize=True,
    database=None,
    deadline=None,
    max_examples=50,
    stateful_step_count=60,
    suppress_health_check=list(HealthCheck),
)
LONG = settings(QUICK, derandomize=False, print_blob=True, max_examples=3000, stateful_step_count=120)

number = st.integers(0, 10_000)


class Group(RuleBasedStateMachine):
    """Rules are what can happen; `Checker` looks at every node after every step of it."""

    @initialize(size=st.integers(3, 5), shares=st.lists(st.floats(0, 1), min_size=5, max_size=5))
    def start(self, size: int, shares: list[float]) -> None:
        self.world = World(size, OPTIONS, dice=lambda at: Dice(shares[at]))
        self.checker = Checker(self.world)
        self.request_id = 0
        for node in self.world.nodes.values():
            node.auto_persist = False

    def node(self, choice: int, nodes: list[Node] | None = None) -> Node:
        among = list(self.world.nodes.values()) if nodes is None else nodes
        return among[choice % len(among)]

    @property
    def alive(self) -> list[Node]:
        return [node for node in self.world.nodes.values() if node.alive]

    # ------------------------------------------------------------------ time

    @rule()
    def tick(self) -> None:
        """The next timer of the group fires."""
        due = [node.core.deadline_ms for node in self.alive]
        if due:
            self.world.now = max(self.world.now, min(due))
        for node in self.alive:
            if node.core.deadline_ms <= self.world.now:
                node.tick()

    @rule(which=number, late=st.integers(0, 400))
    def tick_one(self, which: int, late: int) -> None:
        """One node's clock is all that runs."""
        node = self.node(which)
        if node.alive:
            self.world.now = max(self.world.now, node.core.deadline_ms) + late
            node.tick()

    # ------------------------------------------------------------------ the network

    @precondition(lambda self: self.world.wire)
    @rule(count=st.integers(1, 30))
    def deliver(self, count: int) -> None:
        for _ in range(min(count, len(self.world.wire))):
            self.world.deliver_one(self.world.wire.popleft())

    @precondition(lambda self: self.world.wire)
    @rule(which=number)
    def overtake(self, which: int) -> None:
        envelope = self.world.wire[which % len(self.world.wire)]
        del self.world.wire[which % len(self.world.wire)]
        self.world.deliver_one(envelope)

    @precondition(lambda self: self.world.wire)
    @rule(which=number)
    def drop(self, which: int) -> None:
        del self.world.wire[which % len(self.world.wire)]

    @precondition(lambda self: self.world.wire)
    @rule(which=number)
    def duplicate(self, which: int) -> None:
        self.world.wire.append(self.world.wire[which % len(self.world.wire)])

    @rule(which=number)
    def isolate(self, which: int) -> None:
        self.world.isolate(self.node(which).node_id)

    @precondition(lambda self: self.world.cut)
    @rule()
    def heal(self) -> None:
        self.world.heal()

    @rule(which=number, other=number, broken=st.booleans())
    def hint(self, which: int, other: int, broken: bool) -> None:
        node, peer = self.node(which), self.node(other)
        if node.alive and peer is not node:
            (node.peer_unreachable if broken else node.peer_connected)(peer.node_id)

    # ------------------------------------------------------------------ disks and lives

    @rule(which=number)
    def disk(self, which: int) -> None:
        """A write begins or ends."""
        busy = [node for node in self.alive if node.writing is not None or node.staged]
        if busy:
            node = self.node(which, busy)
            if node.writing is None:
                node.start_write()
            else:
                node.finish_write()
                node.pump()

    @rule()
    def all_disks(self) -> None:
        for node in self.alive:
            node.settle()

    @rule(which=number, keep=st.integers(0, 6))
    def crash(self, which: int, keep: int) -> None:
        node = self.node(which)
        if node.alive:
            node.crash(keep)
            for peer in self.alive:
                peer.peer_unreachable(node.node_id)

    @rule(which=number)
    def restart(self, which: int) -> None:
        dead = [node for node in self.world.nodes.values() if not node.alive]
        if dead:
            node = self.node(which, dead)
            node.restart()
            self.checker.restarted(node)

    # ------------------------------------------------------------------ what clients and operators do

    @rule(count=st.integers(1, 8))
    def propose(self, count: int) -> None:
        for node in self.alive:
            if node.core.is_leader and node.core.transferee is None:
                node.propose(count)

    @rule(which=number)
    def read(self, which: int) -> None:
        node = self.node(which)
        if node.alive:
            self.request_id += 1
            self.checker.read_begins(self.request_id)
            node.read(self.request_id)

    @rule(which=number)
    def transfer(self, which: int) -> None:
        for node in self.alive:
            if node.core.is_leader:
                try:
                    node.transfer(self.node(which).node_id)
                except ProposalRefusedError:
                    continue

    @rule(which=number)
    def step_down(self, which: int) -> None:
        node = self.node(which)
        if node.alive:
            node.core.step_down(self.world.now)
            node.pump()

    # ------------------------------------------------------------------ a quiet moment, so that runs get somewhere

    @rule(ms=st.integers(50, 900))
    def fair_weather(self, ms: int) -> None:
        """Disks and links work for a while."""
        for node in self.alive:
            node.auto_persist = True
            node.settle()
        self.world.deliver()
        self.world.advance(ms)
        for node in self.alive:
            node.auto_persist = False

    def teardown(self) -> None:
        if hasattr(self, "checker"):
            self.checker.check_logs()


def test_group() -> None:
    """Election safety, log matching, leader completeness, state machine safety, no stale read, durable promises."""
    run_state_machine_as_test(Group, settings=QUICK)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_group_for_long() -> None:
    """The same with other dice, and for longer."""
    run_state_machine_as_test(Group, settings=LONG)


def forgets_to_wait_for_the_disk(node: Node) -> None:
    """Damage: tells the core that everything is durable as soon as it is staged."""
    true_pump = node.pump

    def pump() -> None:
        true_pump()
        if node.log:
            node.core.persisted(len(node.log) - 1, node.log[-1].term, node.world.now)
        if node.core.hard_state != node.disk_hard_state:
            node.core.hard_state_persisted(node.core.hard_state, node.world.now)
        true_pump()

    node.pump = pump  # type: ignore[method-assign]


def test_a_broken_driver_is_found() -> None:
    """The test of the test: a group that breaks the durability rules does not pass."""

    class Broken(Group):
        @initialize(size=st.integers(3, 3), shares=st.lists(st.floats(0, 1), min_size=5, max_size=5))
        def start(self, size: int, shares: list[float]) -> None:
            super().start(size, shares)
            for node in self.world.nodes.values():
                forgets_to_wait_for_the_disk(node)

    quick = settings(QUICK, max_examples=200, phases=(Phase.generate,), report_multiple_bugs=False)
    with pytest.raises(BrokenError):
        run_state_machine_as_test(Broken, settings=quick)
