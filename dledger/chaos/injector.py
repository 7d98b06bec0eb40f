"""Does to the group what the schedule says, and undoes it."""

from __future__ import annotations

import asyncio
import random
import signal
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Final

from dledger.chaos.fabric import OPEN, Fabric, Flow, Rule
from dledger.chaos.group import CLIENTS, ChaosGroup
from dledger.chaos.load import ClientLoad, Clock
from dledger.chaos.monitor import Monitor
from dledger.chaos.record import Event, FaultSpan, LeaderLoss, Record
from dledger.chaos.schedule import Action, Fault, Way
from dledger.errors import DLedgerError

if TYPE_CHECKING:
    from dledger.client import LedgerClient

__all__ = ["Injector"]

_FLOWS: Final = {Way.HELD: Flow.HELD, Way.LOST: Flow.LOST, Way.REFUSED: Flow.REFUSED}
_BACK_S: Final = 20.0
"""A restarted node that does not answer after so long is a finding."""

_STOP_S: Final = 5.0
"""A node that still runs so long after a failed sync is a finding (a loaded machine is given time)."""

_LEADER_WAIT_S: Final = 1.5
_POLL_S: Final = 0.02
_SHORT_WRITE_BYTES: Final = 4096


class Injector:
    """Faults on one group. ``group`` is None for one that somebody else started.

    ``states``: node → down, paused or stopping, where a node is kept from working by us. ``counts``: kind → how often.
    """

    def __init__(
        self,
        record: Record,
        clock: Clock,
        monitor: Monitor,
        load: ClientLoad,
        *,
        node_ids: Iterable[str],
        group: ChaosGroup | None,
        fabric: Fabric | None,
        admin: LedgerClient,
        states: dict[str, str],
        say: Callable[[Event], None],
    ) -> None:
        self.states = states
        self.counts: dict[str, int] = {}
        self.forced_retries = 0
        self._record = record
        self._clock = clock
        self._monitor = monitor
        self._load = load
        self._node_ids = list(node_ids)
        self._group = group
        self._fabric = fabric
        self._admin = admin
        self._say = say
        self._do: Mapping[Fault, Callable[[Action, random.Random], Awaitable[None]]] = {
            Fault.KILL: self._kill,
            Fault.PAUSE: self._pause,
            Fault.PARTITION: self._partition,
            Fault.DELAY: self._delay,
            Fault.SLOW_DISK: self._slow_disk,
            Fault.DISK_FULL: self._disk_full,
            Fault.FSYNC_ERROR: self._fsync_error,
            Fault.RETRY: self._retry,
            Fault.TRANSFER: self._transfer,
        }

    async def inject(self, action: Action) -> None:
        """Do one fault, keep it up for its time, undo it."""
        await self._do[action.fault](action, random.Random(action.draw))

    def say(self, words: str) -> None:
        event = Event(round(self._clock(), 3), words)
        self._record.events.append(event)
        self._say(event)

    # ---------------------------------------------------------------- who

    def _available(self) -> list[str]:
        return [node_id for node_id in self._node_ids if node_id not in self.states]

    async def _leader(self) -> str | None:
        """Who leads now; waits a moment where nobody does, for a fault without a leader shows little."""
        deadline = self._clock() + _LEADER_WAIT_S
        while (leader := self._monitor.leader()) is None and self._clock() < deadline:  # noqa: ASYNC110 - polled views
            await asyncio.sleep(_POLL_S)
        return leader

    async def _targets(self, action: Action, rng: random.Random) -> tuple[list[str], str | None]:
        """Return the nodes that ``leader``, ``follower``, ``majority`` or ``all`` mean now, and the leader."""
        leader = await self._leader()
        free = self._available()
        if action.variant == "all":
            return free, leader
        followers = [node_id for node_id in free if node_id != leader]
        if action.variant == "majority":
            count = len(self._node_ids) // 2 + 1
            first = [leader] if leader in free and leader else []
            return [*first, *rng.sample(followers, len(followers))][:count], leader
        if action.variant == "leader" and leader in free and leader:
            return [leader], leader
        return ([rng.choice(followers)] if followers else []), leader

    # ---------------------------------------------------------------- bookkeeping

    def _begin(
        self, kind: Fault, words: str, nodes: Iterable[str], *, takes: Iterable[str] = (), leader: str | None = None
    ) -> FaultSpan:
        """Note that a fault begins; where it takes the leader, that is a loss."""
        now = round(self._clock(), 4)
        span = FaultSpan(kind.value, words, list(nodes), now, None, list(takes))
        self._record.faults.append(span)
        self.counts[kind.value] = self.counts.get(kind.value, 0) + 1
        if leader is not None and leader in span.takes:
            self._record.losses.append(LeaderLoss(leader, kind.value, now, True))
        self.say(words)
        return span

    def _end(self, span: FaultSpan) -> None:
        span.ended = round(self._clock(), 4)

    def _named(self, nodes: Iterable[str], leader: str | None) -> str:
        return ", ".join(f"{node_id} (leader)" if node_id == leader else node_id for node_id in nodes)

    # ---------------------------------------------------------------- processes

    def _own(self) -> ChaosGroup:
        if self._group is None:
            raise DLedgerError("this fault needs a group of our own")
        return self._group

    async def _kill(self, action: Action, rng: random.Random) -> None:
        group = self._own()
        nodes, leader = await self._targets(action, rng)
        if not nodes:
            return
        for node_id in nodes:
            self.states[node_id] = "down"
            group.send_signal(node_id, signal.SIGKILL)
        span = self._begin(Fault.KILL, f"kill -9 {self._named(nodes, leader)}", nodes, takes=nodes, leader=leader)
        self.counts["kills"] = self.counts.get("kills", 0) + len(nodes)
        await asyncio.gather(*(group.kill(node_id) for node_id in nodes))
        await asyncio.sleep(action.hold_s)
        await asyncio.gather(*(self.bring_back(node_id) for node_id in nodes))
        self._end(span)

    async def bring_back(self, node_id: str) -> None:
        """Start a node again and wait until it answers; not coming back is a problem that fails the run."""
        self._load.calm += 1
        try:
            if not await self._serves_again(node_id):
                tail = self._own().node(node_id).log_tail().rpartition("\n")[2]
                self._record.meta.setdefault("problems", []).append(f"{node_id} did not come back: {tail}")
                self.say(f"{node_id} did NOT come back: {tail}")
        finally:
            self._load.calm -= 1
            self.states.pop(node_id, None)

    async def _serves_again(self, node_id: str) -> bool:
        group = self._own()
        await group.restart(node_id)
        deadline = self._clock() + _BACK_S
        pid = group.node(node_id).pid
        while self._monitor.views[node_id].pid != pid:
            if self._clock() > deadline or group.node(node_id).pid is None:
                return False
            await asyncio.sleep(_POLL_S)
        return True

    async def _pause(self, action: Action, rng: random.Random) -> None:
        group = self._own()
        nodes, leader = await self._targets(action, rng)
        for node_id in nodes:
            self.states[node_id] = "paused"
            group.pause(node_id)
            words = f"pause {self._named([node_id], leader)} for {action.hold_s:.1f} s"
            span = self._begin(Fault.PAUSE, words, [node_id], takes=[node_id], leader=leader)
            await asyncio.sleep(action.hold_s)
            group.resume(node_id)
            del self.states[node_id]
            self._end(span)

    # ---------------------------------------------------------------- network

    def _cut_set(
        self, action: Action, rng: random.Random, leader: str | None
    ) -> tuple[str, list[tuple[str, str]], list[str]]:
        """Return what the cut is called, the flows that it stops, and the nodes that it takes out."""
        nodes = self._node_ids
        centre = leader if leader in nodes and leader else rng.choice(nodes)
        rest = [node_id for node_id in nodes if node_id != centre]
        if action.variant in {"triangle with the leader", "triangle of followers"}:
            with_leader = action.variant == "triangle with the leader" or len(rest) < 2
            pair = [centre, rng.choice(rest)] if with_leader else rng.sample(rest, 2)
            return f"{' and '.join(self._mark(pair, leader))} cut, all others see both", _both(pair[:1], pair[1:]), []
        if action.variant == "leader hears nothing":
            return f"{self._mark([centre], leader)[0]} hears nothing", [(a, centre) for a in rest], [centre]
        if action.variant == "nobody hears the leader":
            return f"nobody hears {self._mark([centre], leader)[0]}", [(centre, a) for a in rest], [centre]
        if action.variant == "leader in the minority":
            few = [centre, *rng.sample(rest, (len(nodes) - 1) // 2 - 1)]
        else:
            few = [centre if action.variant == "leader cut off" else rng.choice(rest)]
        many = [node_id for node_id in nodes if node_id not in few]
        return f"{', '.join(self._mark(few, leader))} cut off from {', '.join(many)}", _both(few, many), few

    def _mark(self, nodes: Iterable[str], leader: str | None) -> list[str]:
        return [f"{node_id} (leader)" if node_id == leader else node_id for node_id in nodes]

    async def _partition(self, action: Action, rng: random.Random) -> None:
        fabric = self._own().fabric
        leader = await self._leader()
        words, flows, takes = self._cut_set(action, rng, leader)
        # One way, a reset would be heard in both: such cuts are silent.
        one_way = not {(b, a) for a, b in flows} <= set(flows)
        flow = Flow.LOST if one_way and action.way is Way.REFUSED else _FLOWS[action.way]
        fabric.set_rules(flows, Rule(flow))
        hit = takes or sorted({node_id for pair in flows for node_id in pair})
        how = next(way.value for way, known in _FLOWS.items() if known is flow)
        span = self._begin(
            Fault.PARTITION, f"{words} for {action.hold_s:.1f} s ({how})", hit, takes=takes, leader=leader
        )
        await asyncio.sleep(action.hold_s)
        fabric.set_rules(flows, OPEN)
        self._end(span)

    async def _delay(self, action: Action, rng: random.Random) -> None:
        fabric = self._own().fabric
        leader = await self._leader()
        nodes = self._node_ids
        every = [(a, b) for a in nodes for b in nodes if a != b]
        if action.variant == "one link":
            flows = [rng.choice(every)]
            what = "from {} to {}".format(*flows[0])
        elif action.variant == "leader" and leader:
            flows = [pair for pair in every if leader in pair]
            what = f"of {leader} (leader)"
        else:
            flows, what = every, "of all links"
        fabric.set_rules(flows, Rule(delay_s=action.amount_s))
        hit = sorted({node_id for pair in flows for node_id in pair})
        words = f"delay {what} {action.amount_s * 1000:.0f} ms each way for {action.hold_s:.1f} s"
        span = self._begin(Fault.DELAY, words, hit)
        await asyncio.sleep(action.hold_s)
        fabric.set_rules(flows, OPEN)
        self._end(span)

    # ---------------------------------------------------------------- disks

    async def _slow_disk(self, action: Action, rng: random.Random) -> None:
        disks = self._own().disks
        nodes, leader = await self._targets(action, rng)
        for node_id in nodes:
            disks[node_id].slow(action.amount_s)
        words = f"disk of {self._named(nodes, leader)} {action.amount_s * 1000:.0f} ms slower for {action.hold_s:.1f} s"
        span = self._begin(Fault.SLOW_DISK, words, nodes)
        await asyncio.sleep(action.hold_s)
        for node_id in nodes:
            disks[node_id].heal()
        self._end(span)

    async def _disk_full(self, action: Action, rng: random.Random) -> None:
        disks = self._own().disks
        nodes, leader = await self._targets(action, rng)
        for node_id in nodes:
            disks[node_id].fill(rng.randrange(_SHORT_WRITE_BYTES))
            words = f"disk of {self._named([node_id], leader)} full for {action.hold_s:.1f} s"
            span = self._begin(Fault.DISK_FULL, words, [node_id], takes=[node_id], leader=leader)
            await asyncio.sleep(action.hold_s)
            disks[node_id].heal()
            self._end(span)

    async def _fsync_error(self, action: Action, rng: random.Random) -> None:
        group = self._own()
        nodes, leader = await self._targets(action, rng)
        for node_id in nodes:
            self.states[node_id] = "stopping"
            group.disks[node_id].fail_syncs()
            words = f"fsync fails on {self._named([node_id], leader)}"
            span = self._begin(Fault.FSYNC_ERROR, words, [node_id], takes=[node_id], leader=leader)
            await self._wait_end(node_id, action.hold_s)
            self.states[node_id] = "down"
            # A node that wrote nothing meanwhile has noticed nothing, and may run on; a kill makes both alike.
            await group.kill(node_id)
            group.disks[node_id].heal()
            await self.bring_back(node_id)
            self._end(span)

    async def _wait_end(self, node_id: str, limit_s: float) -> None:
        """Wait until the node has met the failure and stopped; one that goes on with a failed disk is a problem."""
        group, began = self._own(), self._clock()
        disk, node = group.disks[node_id], group.node(node_id)
        before = disk.failed_syncs
        while disk.failed_syncs == before and self._clock() - began < limit_s:  # noqa: ASYNC110 - a process
            await asyncio.sleep(_POLL_S)
        if disk.failed_syncs == before:
            self.say(f"{node_id} synced nothing in {limit_s:.1f} s, so its disk's failure was not met")
            return
        failed = self._clock()
        while node.pid is not None and self._clock() - failed < _STOP_S:  # noqa: ASYNC110 - a process
            await asyncio.sleep(_POLL_S)
        if node.pid is None:
            self.say(f"{node_id} stopped by itself {(self._clock() - failed) * 1000:.0f} ms after its failed sync")
        else:
            self._record.meta.setdefault("problems", []).append(f"{node_id} runs on {_STOP_S:g} s after a failed sync")

    # ---------------------------------------------------------------- clients

    async def _retry(self, action: Action, rng: random.Random) -> None:
        if self._fabric is None:
            raise DLedgerError("this fault needs links for clients")
        flows = [(node_id, CLIENTS) for node_id in self._node_ids]
        self._fabric.set_rules(flows, Rule(Flow.LOST))
        words = f"answers to clients lost for {action.hold_s * 1000:.0f} ms, then connections reset"
        span = self._begin(Fault.RETRY, words, [])
        await asyncio.sleep(action.hold_s)
        self.forced_retries += self._load.pending
        self._fabric.set_rules(flows, OPEN)
        self._end(span)

    async def _transfer(self, action: Action, rng: random.Random) -> None:
        leader = await self._leader()
        choice = [node_id for node_id in self._available() if node_id != leader]
        if leader is None or not choice:
            return
        target = rng.choice(choice)
        span = self._begin(Fault.TRANSFER, f"leadership of {leader} to {target}", [leader, target])
        try:
            await self._admin.transfer_leadership(target, timeout=2.0)
        except DLedgerError as error:
            self.say(f"the transfer to {target} was refused: {error.code.name}")
        self._end(span)

    # ---------------------------------------------------------------- the end

    async def heal(self) -> None:
        """Undo everything that an interrupted fault may have left."""
        if self._fabric is not None:
            self._fabric.heal()
        if self._group is None:
            return
        for disk in self._group.disks.values():
            disk.heal()
        for node_id, node in self._group.nodes.items():
            if node.paused:
                self._group.resume(node_id)
            if self.states.get(node_id) == "paused":
                del self.states[node_id]


def _both(some: Iterable[str], others: Iterable[str]) -> list[tuple[str, str]]:
    """Every flow between two sets of nodes, in both directions."""
    right = list(others)
    return [pair for a in some for b in right for pair in ((a, b), (b, a))]
