"""Random life for a group of cores: one weighted list of things that can happen, used by the fuzzer.

Everything comes from one seeded random source, so a failing seed is a repeatable test.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from dledger.raft.core import CoreOptions
from dledger.raft.messages import UNKNOWN_FLOOR, HardState
from dledger.raft.ready import ProposalRefusedError
from tests.raft.harness import Node, World
from tests.raft.invariants import Checker, check

OPTIONS = CoreOptions(
    election_timeout_ms=300,
    heartbeat_interval_ms=50,
    max_inflight_count=4,
    max_inflight_bytes=1_000,
    max_append_bytes=300,
    max_transfer_lag=50,
)


@dataclass(frozen=True)
class Weather:
    """How often bad things happen, out of a hundred steps; sizes and options of the run."""

    size: int = 3
    drop: float = 2
    duplicate: float = 2
    reorder: float = 8
    crash: float = 1
    cut: float = 0.5
    transfer: float = 1
    hint: float = 1
    tick: float = 6
    wipe: bool = False
    fresh: bool = False
    steps: int = 800


class Chaos:
    """One run."""

    def __init__(self, seed: int, weather: Weather) -> None:
        self.random = random.Random(seed)
        self.weather = weather
        states = {}
        if weather.fresh:  # as a store opens an empty folder
            states = {f"n{at}": HardState(vote_floor=UNKNOWN_FLOOR) for at in range(weather.size)}
        self.world = World(weather.size, OPTIONS, hard_states=states, dice=lambda at: random.Random(seed * 10 + at))
        self.checker = Checker(self.world)
        self.request_id = 0
        for node in self.world.nodes.values():
            node.auto_persist = False
            node.auto_fetch = False

    # ------------------------------------------------------------------ the run

    def run(self) -> None:
        for step in range(self.weather.steps):
            self.once()
            if step % 50 == 49:
                self.checker.check_logs()
        self.recover()

    def once(self) -> None:
        """One thing happens."""
        roll = self.random.random() * 100
        weather = self.weather
        rates = (
            (weather.crash, self.crash),
            (weather.cut, self.cut),
            (6, self.repair),
            (12, self.propose),
            (3, self.read),
            (weather.transfer, self.transfer),
            (weather.hint, self.hint),
            (25, self.disk),
            (8, self.fetch),
            (weather.tick, self.time_passes),
        )
        for rate, action in rates:
            if roll < rate:
                action()
                return
            roll -= rate
        self.network()

    def recover(self) -> None:
        """The storm ends: everybody is back, nothing is lost any more. Then the group must work again, soon."""
        self.world.heal()
        for node in self.world.nodes.values():
            if not node.alive:
                self._restart(node)
            node.auto_persist = node.auto_fetch = True
            if node.writing is not None:
                node.finish_write()
            for _ in range(len(node.fetches)):
                node.answer_fetch()
            node.pump()
        self.world.deliver()
        for _ in range(100):
            self.world.advance(100)
            leader = self.world.leader
            if leader is not None and leader.core.is_leader_ready and leader.core.transferee is None:
                break
        else:
            check(False, "no leader within ten seconds of fair weather")
        assert leader is not None
        leader.propose()
        self.world.deliver()
        for _ in range(100):
            self.world.advance(100)
            if all(node.core.commit_index == leader.core.last_index for node in self.world.nodes.values()):
                break
        else:
            lag = {name: (node.core.commit_index, node.core.last_index) for name, node in self.world.nodes.items()}
            check(False, f"the group does not catch up within ten seconds of fair weather: {lag}")
        self.checker.check_logs()
        check(self.checker.committed == leader.log, "all nodes hold what was committed")

    # ------------------------------------------------------------------ what can happen

    def _some(self, nodes: list[Node]) -> Node | None:
        return self.random.choice(nodes) if nodes else None

    def _alive(self) -> list[Node]:
        return [node for node in self.world.nodes.values() if node.alive]

    def network(self) -> None:
        """Deliver, mostly; lose, double or overtake sometimes."""
        wire = self.world.wire
        if not wire:
            # Nothing on the way: what waits for a disk comes next, else the clock. Else time would outrun the disks.
            if any(node.staged or node.writing for node in self._alive()):
                self.disk()
            elif any(node.fetches for node in self._alive()):
                self.fetch()
            else:
                self.time_passes()
            return
        weather, roll = self.weather, self.random.random() * 100
        if roll < weather.drop:
            del wire[self.random.randrange(len(wire))]
            return
        if roll < weather.drop + weather.duplicate:
            wire.append(wire[self.random.randrange(len(wire))])
            return
        position = 0
        if roll < weather.drop + weather.duplicate + weather.reorder:
            position = self.random.randrange(len(wire))
        envelope = wire[position]
        del wire[position]
        self.world.deliver_one(envelope)

    def time_passes(self) -> None:
        """Up to the next timer, or a little."""
        due = min((node.core.deadline_ms for node in self._alive()), default=self.world.now)
        step = self.random.choice((1, 5, 20))
        far = self.random.random() < 0.05 or not self.world.wire
        self.world.now = max(self.world.now, due if far else min(due, self.world.now + step))
        for node in self._alive():
            if node.core.deadline_ms <= self.world.now:
                node.tick()

    def propose(self) -> None:
        leaders = [node for node in self._alive() if node.core.is_leader]
        node = self._some(leaders)
        if node is not None:
            try:
                node.propose(self.random.choice((1, 1, 2, 7)))
            except ProposalRefusedError:
                check(node.core.transferee is not None, "a leader refuses a proposal without a reason")

    def read(self) -> None:
        node = self._some(self._alive())
        if node is not None:
            self.request_id += 1
            self.checker.read_begins(self.request_id)
            node.read(self.request_id)

    def transfer(self) -> None:
        for node in self._alive():
            if node.core.is_leader:
                target = self.random.choice([None, *self.world.nodes])
                try:
                    node.transfer(target)
                except ProposalRefusedError:
                    continue

    def hint(self) -> None:
        """A connection breaks, or comes back; it may be a lie."""
        node = self._some(self._alive())
        if node is not None:
            peer = self.random.choice([name for name in self.world.nodes if name != node.node_id])
            (node.peer_unreachable if self.random.random() < 0.5 else node.peer_connected)(peer)

    def disk(self) -> None:
        """A disk begins or ends a write."""
        node = self._some([node for node in self._alive() if node.writing is not None or node.staged])
        if node is None:
            self.network()
        elif node.writing is None:
            node.start_write()
        else:
            node.finish_write()
            node.pump()

    def fetch(self) -> None:
        node = self._some([node for node in self._alive() if node.fetches])
        if node is None:
            self.network()
            return
        if self.random.random() < 0.05:
            node.core.fetch_failed(node.fetches.pop(0))
        else:
            node.answer_fetch()
        node.pump()

    def repair(self) -> None:
        """A dead node comes back, or the cuts heal; else nothing is broken, and the network goes on."""
        dead = [node for node in self.world.nodes.values() if not node.alive]
        if dead and self.random.random() < 0.6:
            self._restart(self.random.choice(dead))
        elif self.world.cut:
            self.world.heal()
        else:
            self.network()

    def crash(self) -> None:
        """Kill -9 at any moment, also in the middle of a write; sometimes the folder is lost with it."""
        node = self._some(self._alive())
        if node is None:
            return
        under_way = len(node.writing or ()) + len(node.staged)
        node.crash(self.random.randint(0, under_way))
        for peer in self._alive():  # kill -9 closes sockets: the others see it, mostly
            if self.random.random() < 0.7:
                peer.peer_unreachable(node.node_id)
        if self.weather.wipe and self.random.random() < 0.5 and self._may_wipe(node):
            node.wipe()
            self.checker.wiped(node)
            # A process that starts on an empty folder hears nothing that was sent to, and says nothing of, its former life.
            self.world.take(sender=node.node_id)
            self.world.take(peer=node.node_id)

    def _may_wipe(self, node: Node) -> bool:
        """One good copy of everything must survive: no other node without a good log, and this not the last holder."""
        others = [other for other in self.world.nodes.values() if other is not node]
        if any(other.disk_hard_state.vote_floor is not None or not other.disk_log for other in others):
            return False
        committed = self.checker.committed
        return any(other.disk_log[: len(committed)] == committed for other in others)

    def _restart(self, node: Node) -> None:
        commit = -1
        if self.random.random() < 0.5:  # a checkpoint may remember some of it
            commit = self.random.randint(-1, node.durable_commit)
        node.restart(commit)
        self.checker.restarted(node)
        for peer in self._alive():
            if peer is not node:
                peer.peer_connected(node.node_id)

    def cut(self) -> None:
        """A node is cut off, or one direction of one link."""
        node = self.random.choice(list(self.world.nodes))
        if self.random.random() < 0.5:
            self.world.isolate(node)
        else:
            other = self.random.choice([name for name in self.world.nodes if name != node])
            self.world.cut.add((node, other))
