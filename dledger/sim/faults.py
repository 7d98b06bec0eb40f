"""What goes wrong in a run: one task that, until the safety phase ends, does one thing after another to the group.

Faults overlap as chance has it. The one rule that holds them together is the atlas of `Scenario.frail`: damage at rest
(flipped bits, silently wrong writes, a deleted folder) comes to a minority only, always the same nodes, so that every
committed entry keeps a good copy. Everything else may happen to everybody, at once too.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from random import Random
from typing import Final

from dledger.checker.history import History
from dledger.errors import DLedgerError
from dledger.raft.messages import NodeId
from dledger.sim.clients import LooseClient, ReadingClient, Wire
from dledger.sim.cluster import Cluster, SimNode
from dledger.sim.disk import PowerLoss
from dledger.types import ReadMode

__all__ = ["Faults"]

_DOWN_S: Final = (0.02, 3.0)
_HELD_S: Final = (0.05, 6.0)
_HELPER: Final = 1000
_POLL_S: Final = 0.002


class Faults:
    """The faults of one run. `run` until cancelled or `stop`; `end` mends everything."""

    def __init__(self, cluster: Cluster, wire: Wire, history: History) -> None:
        self._cluster = cluster
        self._wire = wire
        # For faults that need an append or a read at the right moment.
        self._appender = LooseClient(cluster, wire, history, _HELPER)
        self._reader = ReadingClient(cluster, wire, history, _HELPER + 1)
        self._rng: Random = cluster.rng("faults")
        self._ended = False
        self.wall_clock_offset_s = 0.0
        self.counts: dict[str, int] = {}

    async def run(self) -> None:
        """Do one thing after another until `end`."""
        scenario = self._cluster.scenario
        kinds, weights = list(scenario.faults), list(scenario.faults.values())
        while kinds and not self._ended:
            await asyncio.sleep(self._rng.expovariate(1 / scenario.fault_interval_s))
            if self._ended:
                return
            kind = self._rng.choices(kinds, weights)[0]
            action: Callable[[], object] = getattr(self, f"_{kind}")
            if action() is not False:
                self.counts[kind] = self.counts.get(kind, 0) + 1

    def end(self) -> None:
        """Mend everything that is not broken for good, and start every node that is down."""
        self._ended = True
        cluster = self._cluster
        self._note("faults_end")
        cluster.network.options = cluster.scenario.calm
        cluster.network.heal()
        self._wire.loss = 0.0
        for node in cluster.nodes.values():
            node.disk.fill(False)
            node.disk.sync_errors = 0
            node.disk.silent = ""
            node.times.stalled_until = 0.0
            node.times.slow_share = min(node.times.slow_share, 0.01)
            if node.filesystem is not None:
                node.filesystem.crash_after = -1
                node.filesystem.crash_at_sync = ""
            if node.process is not None:
                cluster.loop.resume(node.process)
            cluster.start(node)

    # --- choosing ---

    def _any(self) -> SimNode:
        return self._rng.choice(list(self._cluster.nodes.values()))

    def _frail(self) -> SimNode | None:
        frail = self._cluster.scenario.frail
        return self._cluster.nodes[self._rng.choice(frail)] if frail else None

    def _for_a_while(self, undo: Callable[[], object], limits: tuple[float, float] = _HELD_S) -> None:
        low, high = limits
        self._cluster.later(low * (high / low) ** self._rng.random(), self._undo, undo)

    def _undo(self, undo: Callable[[], object]) -> None:
        if not self._ended:
            undo()

    def _note(self, what: str, *facts: object) -> None:
        self._cluster.trace.add("", what, " ".join(str(fact) for fact in facts))

    def _loss(self) -> PowerLoss:
        return PowerLoss(keep=self._rng.choice([0.0, 0.5, 0.9, 1.0]), tear=self._rng.choice([0.0, 0.5]))

    # --- processes ---

    def _crash(self, node: SimNode | None, loss: PowerLoss | None) -> bool:
        if node is None or node.process is None:
            return False
        self._cluster.kill(node, loss=loss, mid_write=self._rng.random() < 0.5)
        self._start_again(node)
        return True

    def _start_again(self, node: SimNode) -> None:
        low, high = _DOWN_S
        self._cluster.restart_later(node, low * (high / low) ** self._rng.random())

    def _kill(self) -> bool:
        return self._crash(self._any(), None)

    def _kill_leader(self) -> bool:
        return self._crash(self._cluster.leader, None)

    def _power_failure(self) -> bool:
        return self._crash(self._any(), self._loss())

    def _crash_in_write(self) -> None:
        loss = self._loss() if self._rng.random() < 0.5 else None
        self._cluster.crash_in_write(self._any(), self._rng.randrange(1, 40), loss)

    def _torn_write(self) -> None:
        """The power fails just before entries are durable; what of them is on the platter is torn."""
        self._cluster.crash_in_sync(self._any(), PowerLoss(keep=1.0, tear=1.0))

    def _all_killed(self) -> None:
        for node in self._cluster.nodes.values():
            self._crash(node, None)

    def _all_power_failure(self) -> None:
        for node in self._cluster.nodes.values():
            self._crash(node, self._loss())

    def _restart(self) -> None:
        self._cluster.stop(self._any())

    def _rolling_restart(self) -> None:
        for number, node in enumerate(self._cluster.nodes.values()):
            self._cluster.later(1.5 * number, self._cluster.stop, node)

    def _hold(self, node: SimNode | None) -> bool:
        if node is None or node.process is None or node.process.paused:
            return False
        process = node.process
        self._note("paused", node.node_id)
        self._cluster.loop.pause(process)
        self._cluster.network.hang(node.node_id, process)
        self._for_a_while(lambda: self._wake(node))
        return True

    def _wake(self, node: SimNode) -> None:
        if node.process is not None and node.process.paused:
            self._note("resumed", node.node_id)
            self._cluster.loop.resume(node.process)

    def _pause(self) -> bool:
        return self._hold(self._any())

    def _pause_leader(self) -> bool:
        return self._hold(self._cluster.leader)

    # --- leaders, in ways that set one log against another ---

    def _usurp(self) -> bool:
        """Cut the leader off until another leads, then kill that one: the old one's longer log meets newer terms."""
        old = self._cluster.leader
        if old is None:
            return False
        links = self._between([old.node_id], list(self._cluster.nodes))
        self._note("usurp", old.node_id)
        reset = self._rng.random() < 0.5
        for source, target in links:
            self._cluster.network.cut(source, target, reset=reset)

        def heal() -> None:
            for source, target in links:
                self._cluster.network.heal(source, target)
            leader = self._cluster.leader
            if leader is not None and leader is not old:
                self._crash(leader, None)

        timeout_s = old.config.election_timeout_ms / 1000
        self._cluster.later(self._rng.uniform(0.5, 3.5) * timeout_s, self._undo, heal)
        return True

    def _orphan(self) -> bool:
        """Let the leader reach one follower only (or none), for a moment, then kill it: entries on few disks."""
        leader = self._cluster.leader
        if leader is None:
            return False
        others = [node for node in self._cluster.nodes if node != leader.node_id]
        kept = self._rng.choice([*others, ""])
        links = [(leader.node_id, other) for other in others if other != kept]
        self._note("orphan", leader.node_id, kept)
        for source, target in links:
            self._cluster.network.cut(source, target)

        def kill() -> None:
            self._crash(leader, None)
            for source, target in links:
                self._cluster.network.heal(source, target)

        self._cluster.later(self._rng.uniform(0.01, 0.4), self._undo, kill)
        return True

    # --- network ---

    def _cut(self, links: list[tuple[NodeId, NodeId]]) -> None:
        self._note("cut", " ".join(f"{source}>{target}" for source, target in links))
        network = self._cluster.network
        reset = self._rng.random() < 0.4
        for source, target in links:
            network.cut(source, target, reset=reset)

        def mend() -> None:
            self._note("healed", " ".join(f"{source}>{target}" for source, target in links))
            for source, target in links:
                network.heal(source, target)

        self._for_a_while(mend)

    def _between(self, left: list[NodeId], right: list[NodeId]) -> list[tuple[NodeId, NodeId]]:
        return [link for a in left for b in right if a != b for link in ((a, b), (b, a))]

    def _isolate(self) -> None:
        self._cut(self._between([self._any().node_id], list(self._cluster.nodes)))

    def _isolate_leader(self) -> bool:
        leader = self._cluster.leader
        if leader is None:
            return False
        self._cut(self._between([leader.node_id], list(self._cluster.nodes)))
        return True

    def _split(self) -> None:
        nodes = self._rng.sample(list(self._cluster.nodes), len(self._cluster.nodes))
        at = self._rng.randrange(len(nodes))
        self._cut(self._between(nodes[:at], nodes[at:]))

    def _one_way(self) -> bool:
        nodes = list(self._cluster.nodes)
        links = [(a, b) for a in nodes for b in nodes if a != b]
        if not links:
            return False
        self._cut(self._rng.sample(links, self._rng.randint(1, max(1, len(links) // 2))))
        return True

    def _bridge(self) -> bool:
        """Two halves that one node can reach both of; with three nodes the triangle with one side cut."""
        nodes = self._rng.sample(list(self._cluster.nodes), len(self._cluster.nodes))
        if len(nodes) < 3:
            return False
        half = (len(nodes) - 1) // 2
        self._cut(self._between(nodes[1 : 1 + half], nodes[1 + half :]))
        return True

    def _clog(self) -> bool:
        nodes = list(self._cluster.nodes)
        if len(nodes) < 2:
            return False
        source, target = self._rng.sample(nodes, 2)
        seconds = self._rng.choice([0.05, 0.5, 3.0])
        self._note("clog", source, target, seconds)
        self._cluster.network.clog(source, target, seconds)
        return True

    def _false_disconnect(self) -> bool:
        nodes = list(self._cluster.nodes)
        if len(nodes) < 2:
            return False
        self._cluster.network.break_connection(*self._rng.sample(nodes, 2))
        return True

    def _rough_network(self) -> None:
        network, scenario = self._cluster.network, self._cluster.scenario
        self._note("rough_network")
        network.options = scenario.rough
        self._wire.loss = self._rng.choice([0.0, 0.02, 0.2])

        def calm() -> None:
            self._note("calm_network")
            network.options = scenario.calm
            self._wire.loss = 0.0

        self._for_a_while(calm)

    def _late_answers(self) -> bool:
        """The followers' answers to a leader hang on the way, and meanwhile another leads and acknowledges.

        What then arrives at the old leader is from before; it must prove nothing for a read that is asked after.
        """
        old = self._cluster.leader
        if old is None or len(self._cluster.nodes) < 3:
            return False
        self._note("late_answers", old.node_id)
        self._cluster.loop.create_task(self._late_answers_to(old))
        return True

    async def _late_answers_to(self, old: SimNode) -> None:
        network, process = self._cluster.network, old.process
        late_s = 0.7 * old.config.election_timeout_ms / 1000
        until = self._cluster.loop.time() + late_s
        others = [node_id for node_id in self._cluster.nodes if node_id != old.node_id]
        for other in others:
            network.clog(other, old.node_id, late_s)
        self._read_at(old, late_s)  # opens a round of heartbeats
        await asyncio.sleep(1.5 * self._cluster.scenario.calm.delay_max_s + 0.002)
        links = [(old.node_id, other) for other in others]
        for source, target in links:
            network.cut(source, target, reset=True)
        leader = await self._another_leader(old, until)
        if leader is not None:
            error = await self._appender.append_at(leader, 1)
            if error is None and old.process is process:
                self._read_at(old, late_s)
        await self._sleep_until(until + 0.1)
        for source, target in links:
            network.heal(source, target)

    def _slow_truncation(self) -> bool:
        """An old leader's slow disk writes what the next one replaces, and that one's term, in one job.

        When that job ends, the term is durable and what has replaced the entries is not.
        """
        old = self._cluster.leader
        if old is None or len(self._cluster.nodes) < 3 or old.times.stalled_until > self._cluster.loop.time():
            return False
        self._note("slow_truncation", old.node_id)
        self._cluster.loop.create_task(self._slow_truncation_at(old))
        return True

    async def _slow_truncation_at(self, old: SimNode) -> None:
        network, timeout_s = self._cluster.network, old.config.election_timeout_ms / 1000
        until = old.times.stalled_until = self._cluster.loop.time() + 2.6 * timeout_s
        links = self._between([old.node_id], list(self._cluster.nodes))
        for source, target in links:
            network.cut(source, target)
        for _ in range(3):  # the first is written until then, the others wait for their turn
            self._appender.process.run(self._cluster.loop.create_task, self._appender.append_at(old, 1))
            await asyncio.sleep(_POLL_S)
        leader = await self._another_leader(old, until - 0.2 * timeout_s)
        if leader is not None:
            network.heal(leader.node_id, old.node_id)  # it hears of the new term, and its own log is heard of by nobody
            await self._sleep_until(until - _POLL_S)
            old.times.stalled_until = until + 0.5 * timeout_s
            await self._sleep_until(until + _POLL_S)
        for source, target in links:
            network.heal(source, target)

    def _amnesia(self) -> bool:
        """A follower is wiped that alone could tell an old leader of its successor, and hears the old one only."""
        old, victim = self._cluster.leader, self._frail()
        if old is None or victim is None or victim in {old, None} or len(self._cluster.nodes) < 3:
            return False
        self._note("amnesia", old.node_id, victim.node_id)
        self._cluster.loop.create_task(self._amnesia_of(victim, old))
        return True

    async def _amnesia_of(self, victim: SimNode, old: SimNode) -> None:
        network, cluster, timeout_s = self._cluster.network, self._cluster, old.config.election_timeout_ms / 1000
        until = cluster.loop.time() + 0.7 * timeout_s  # then the old leader believes no more
        links = self._between([old.node_id], list(cluster.nodes))
        for source, target in links:
            network.cut(source, target, reset=True)
        for _ in range(2):
            self._appender.process.run(cluster.loop.create_task, self._appender.append_at(old, 1))
        leader = await self._another_leader(old, until)
        if leader not in {None, victim} and victim.process is not None and cluster.may_wipe(victim):
            error = await self._appender.append_at(leader, 1)
            if error is None and not self._ended and cluster.loop.time() < until:
                cluster.kill(victim)
                cluster.wipe(victim)
                others = [node_id for node_id in cluster.nodes if node_id not in {old.node_id, victim.node_id}]
                links += self._between([victim.node_id], others)
                for source, target in links:
                    network.cut(source, target)
                for source, target in self._between([victim.node_id], [old.node_id]):
                    network.heal(source, target)
                cluster.start(victim)
                await asyncio.sleep(timeout_s)
        for source, target in links:
            network.heal(source, target)

    async def _another_leader(self, old: SimNode, until: float) -> SimNode | None:
        """Wait for a node other than ``old`` to lead; None if that has not come by ``until``."""
        while not self._ended and self._cluster.loop.time() < until:
            leader = self._cluster.leader
            if leader not in {old, None}:
                return leader
            await asyncio.sleep(_POLL_S)
        return None

    async def _sleep_until(self, when: float) -> None:
        await asyncio.sleep(max(when - self._cluster.loop.time(), 0))

    def _read_at(self, node: SimNode, timeout: float) -> None:
        read = self._reader.read_at(node, ReadMode.LINEARIZABLE, 0, timeout)
        self._reader.process.run(self._cluster.loop.create_task, read)

    # --- operators ---

    def _ask(self, node: SimNode | None, what: str, target: NodeId | None) -> bool:
        if node is None or node.process is None or node.driver is None:
            return False
        driver = node.driver

        async def ask() -> None:
            try:
                if what == "transfer":
                    await driver.transfer_leadership(target)
                else:
                    await driver.step_down()
            except DLedgerError as error:
                self._note(what, "refused", type(error).__name__)
            except Exception as error:
                self._cluster.invariants.report("typed errors", f"{what} at {node.node_id} raised {error!r}")

        self._note(what, node.node_id, target)
        node.process.run(self._cluster.loop.create_task, ask())
        return True

    def _transfer(self) -> bool:
        target = self._rng.choice([None, *self._cluster.nodes])
        return self._ask(self._cluster.leader or self._any(), "transfer", target)

    def _step_down(self) -> bool:
        return self._ask(self._cluster.leader, "step_down", None)

    # --- disks ---

    def _disk_stall(self) -> None:
        node = self._any()
        seconds = self._rng.choice([0.05, 0.5, 3.0])
        self._note("disk_stall", node.node_id, seconds)
        node.times.stalled_until = self._cluster.loop.time() + seconds

    def _disk_full(self) -> None:
        node = self._any()
        self._note("disk_full", node.node_id)
        node.disk.fill(True)
        self._for_a_while(lambda: node.disk.fill(False))

    def _sync_error(self) -> None:
        node = self._any()
        self._note("sync_error", node.node_id)
        node.disk.sync_errors = 1

    def _evict(self) -> None:
        self._any().disk.evict()

    def _bit_flip(self) -> bool:
        node = self._frail()
        return node is not None and self._cluster.may_wipe(node) and node.disk.flip_bit(lambda _path: True)

    def _rotten_tail(self) -> bool:
        """A bit flips among the newest entries, and then the power fails: damage that looks like a torn tail."""
        node = self._frail()
        if node is None or node.process is None or not self._cluster.may_wipe(node):
            return False
        folder = f"{node.directory}/data/"
        newest = max((path for path in node.disk.files if path.startswith(folder)), default="")
        if not node.disk.flip_bit(lambda path: path == newest):
            return False
        return self._crash(node, PowerLoss(keep=0.0, tear=0.0))

    def _silent(self, how: str) -> bool:
        """One data write goes wrong unseen. One only, or no trace of it might be left to tell by."""
        node = self._frail()
        if node is None or node.disk.silent or not self._cluster.may_wipe(node):
            return False
        folder = f"{node.directory}/data/"
        node.disk.silent_file = lambda path: path.startswith(folder)
        node.disk.silent = how
        return True

    def _silent_drop(self) -> bool:
        return self._silent("drop")

    def _misdirect(self) -> bool:
        return self._silent("misdirect")

    def _wipe(self) -> bool:
        node = self._frail()
        if node is None or not self._cluster.may_wipe(node):
            return False
        self._cluster.kill(node)
        self._cluster.wipe(node)
        self._start_again(node)
        return True

    # --- clocks ---

    def _wall_clock(self) -> None:
        self.wall_clock_offset_s = self._rng.choice([-3600.0, 0.0, 86_400.0])
        self._note("wall_clock", self.wall_clock_offset_s)
