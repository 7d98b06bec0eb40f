"""The simulated network: loses, delays, doubles and reorders messages, and lies about connections.

Each ordered pair of nodes has a link. A message waits for a random time and may be lost or doubled; a link may be cut
(everything lost), clogged (everything late, then all at once), and either keeps the order of what is sent on it, as a
stream does, or not. Connections are modelled apart from links, because that is what a node hears of: they break a
moment after the other end is killed, seconds after a link is cut or its other end hangs (keepalive), sometimes for no
reason; and they are made again when they can be.

In a share of the seeds every message passes through the real codec as bytes; otherwise the objects are handed over,
with the entries parsed as the codec would. Where a bit of an entry is turned on the way, the receiver has to refuse
the message, and the connection is made anew, as a real node does.
"""

from __future__ import annotations

import contextvars
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from random import Random
from typing import Final

from dledger.raft.messages import (
    AppendEntries,
    AppendEntriesResponse,
    Heartbeat,
    HeartbeatResponse,
    Message,
    NodeId,
    RequestVote,
    RequestVoteResponse,
)
from dledger.rpc import codec
from dledger.rpc.interfaces import TransportHandler
from dledger.sim.loop import Process, SimLoop
from dledger.sim.trace import Fact, Trace
from dledger.storage.entry import CorruptSliceError, RawSlice, Slice, parse_slice

__all__ = ["LinkOptions", "Network", "SimTransport"]

_KEEPALIVE_S: Final = (3.0, 5.0)
_RECONNECT_S: Final = (0.005, 0.5)
_RESET_S: Final = (0.0002, 0.006)
"""How long after kill -9 the other end hears of the closed connection."""


@dataclass(slots=True)
class LinkOptions:
    """How the links of a run behave; probabilities in [0, 1], times in seconds."""

    delay_min_s: float = 0.0002
    delay_max_s: float = 0.002
    slow_share: float = 0.0
    """Share of messages that take up to `slow_max_s`."""
    slow_max_s: float = 0.1
    loss: float = 0.0
    duplicate: float = 0.0
    damage: float = 0.0
    """Share of the messages with entries in which a bit of these is turned on the way."""
    ordered: bool = True
    codec: bool = False
    survive_restart: bool = False
    """Late messages reach even a process that was started after they were sent."""


@dataclass(frozen=True, slots=True)
class _Damaged:
    """What is on its way, and no longer what was sent."""

    wire: Message | bytes


_Wire = Message | bytes | _Damaged


class SimTransport:
    """One process's end of the network; implements ``dledger.rpc.interfaces.Transport``."""

    def __init__(self, network: Network, node_id: NodeId, process: Process) -> None:
        self._network = network
        self.node_id = node_id
        self.process = process
        self.handler: TransportHandler | None = None
        self.connected: set[NodeId] = set()

    @property
    def usable(self) -> bool:
        """Whether the process lives and has started its transport."""
        return self.handler is not None and self.process.alive

    def send(self, peer: NodeId, message: Message) -> None:
        """See ``Transport.send``."""
        if self.usable:
            self._network.send(self, peer, message)

    def is_connected(self, peer: NodeId) -> bool:
        return peer in self.connected

    async def start(self, handler: TransportHandler) -> None:
        self.handler = handler
        self._network.attach(self)

    async def stop(self) -> None:
        if self.handler is not None:
            self.handler = None
            self._network.detach(self)

    def receive(self, wire: _Wire, sender: NodeId) -> None:
        """A message has arrived (called in this process)."""
        if self.handler is None:
            return
        message = self._network.unwrap(self.node_id, sender, wire)
        if message is not None:
            self._network.note_arrival(self.node_id, message)
            self.handler.on_message(message)

    def tell_connected(self, peer: NodeId) -> None:
        if self.handler is not None and peer not in self.connected:
            self.connected.add(peer)
            self.handler.on_peer_connected(peer)

    def tell_disconnected(self, peer: NodeId) -> None:
        if self.handler is not None and peer in self.connected:
            self.connected.discard(peer)
            self._network.connect_later(self.node_id, peer)
            self.handler.on_peer_disconnected(peer)


class Network:
    """All links of a group. Faults are set from outside: `cut`, `heal`, `clog`, `break_connection`, `options`."""

    def __init__(
        self,
        loop: SimLoop,
        rng: Random,
        trace: Trace,
        group: str,
        members: Mapping[NodeId, str],
        options: LinkOptions,
        *,
        damage_rng: Random,
    ) -> None:
        """``damage_rng`` draws what is damaged: a source of its own, so that a run without is what it was."""
        self._loop = loop
        self._rng = rng
        self._damage_rng = damage_rng
        self._trace = trace
        self._group = group
        self._members = dict(members)
        self._member_ids = frozenset(members)
        self.options = options
        self._ends: dict[NodeId, SimTransport] = {}
        self._cuts: dict[tuple[NodeId, NodeId], int] = {}
        self._cut_number = 0
        self._clogged_until: dict[tuple[NodeId, NodeId], float] = {}
        self._last_arrival: dict[tuple[NodeId, NodeId], float] = {}
        self.on_send: Callable[[SimTransport, NodeId, Message], None] = lambda _end, _peer, _message: None
        """Sees every message before the network does anything to it."""
        self.on_damage_taken: Callable[[NodeId, Message], None] = lambda _node, _message: None
        """Sees a message that was taken for good though its entries are not those that were sent."""
        self.sent = self.lost = self.duplicated = self.damaged = 0

    # --- ends ---

    def attach(self, end: SimTransport) -> None:
        """A transport has started: connections to and from it are made soon."""
        self._ends[end.node_id] = end
        for peer in self._members:
            if peer != end.node_id:
                self.connect_later(end.node_id, peer)

    def detach(self, end: SimTransport) -> None:
        """A transport has stopped or its process was killed: the others hear of it within milliseconds."""
        if self._ends.get(end.node_id) is not end:
            return
        del self._ends[end.node_id]
        for peer in self._members:
            other = self._ends.get(peer)
            if other is None or end.node_id not in other.connected:
                continue
            low, high = _KEEPALIVE_S if self.is_cut(end.node_id, peer) else _RESET_S
            delay = self._rng.uniform(low, high)
            self._tell(other, delay, other.tell_disconnected, end.node_id)

    def _tell(self, end: SimTransport, delay: float, method: object, peer: NodeId) -> None:
        self._loop.call_later(delay, method, peer, context=end.process.context)  # type: ignore[arg-type]

    def connect_later(self, one: NodeId, other: NodeId) -> None:
        """Make the connection of two nodes (again) in a moment, if it is not there."""
        delay = self._rng.uniform(*_RECONNECT_S)
        self._loop.call_later(delay, self._connect, one, other, context=contextvars.Context())

    def _connect(self, one: NodeId, other: NodeId) -> None:
        left, right = self._ends.get(one), self._ends.get(other)
        if left is None or right is None:
            return  # whoever starts next tries again
        if self.is_cut(one, other) or self.is_cut(other, one) or left.process.paused or right.process.paused:
            self.connect_later(one, other)
            return
        for end, peer in ((left, other), (right, one)):
            if peer not in end.connected:
                self._trace.add(end.node_id, "connected", peer)
                self._tell(end, 0.0, end.tell_connected, peer)

    def break_connection(self, one: NodeId, other: NodeId) -> None:
        """Reset the connection between two nodes, for no reason; it is made again soon."""
        for node, peer in ((one, other), (other, one)):
            end = self._ends.get(node)
            if end is not None and peer in end.connected:
                self._trace.add(node, "disconnected", peer)
                self._tell(end, self._rng.uniform(0, 0.002), end.tell_disconnected, peer)

    # --- faults ---

    def is_cut(self, source: NodeId, target: NodeId) -> bool:
        return (source, target) in self._cuts

    def cut(self, source: NodeId, target: NodeId, *, reset: bool = False) -> None:
        """Lose everything that ``source`` sends to ``target``.

        The connection breaks after some seconds (keepalive), or (``reset``) at once, as where a router says so.
        """
        if (source, target) in self._cuts:
            return
        self._cut_number += 1
        self._cuts[source, target] = self._cut_number
        delay = self._rng.uniform(*(_RESET_S if reset else _KEEPALIVE_S))
        self._loop.call_later(delay, self._keepalive, source, target, self._cut_number, context=contextvars.Context())

    def _keepalive(self, source: NodeId, target: NodeId, number: int) -> None:
        if self._cuts.get((source, target)) == number:
            self.break_connection(source, target)

    def hang(self, node: NodeId, process: Process) -> None:
        """A process was stopped: some seconds later keepalive breaks its connections, if it still is."""
        self._loop.call_later(
            self._rng.uniform(*_KEEPALIVE_S), self._hung, node, process, context=contextvars.Context()
        )

    def _hung(self, node: NodeId, process: Process) -> None:
        if process.alive and process.paused:
            for peer in self._members:
                if peer != node:
                    self.break_connection(node, peer)

    def heal(self, source: NodeId | None = None, target: NodeId | None = None) -> None:
        """Mend one link, or all."""
        if source is None or target is None:
            self._cuts.clear()
            self._clogged_until.clear()
        else:
            self._cuts.pop((source, target), None)

    @property
    def cuts(self) -> list[tuple[NodeId, NodeId]]:
        """The links that are cut now."""
        return list(self._cuts)

    def clog(self, source: NodeId, target: NodeId, seconds: float) -> None:
        """Hold everything on this link back for so long; then it comes all at once."""
        self._clogged_until[source, target] = self._loop.time() + seconds

    # --- messages ---

    def send(self, end: SimTransport, peer: NodeId, message: Message) -> None:
        """Put a message on the way, or lose it."""
        self.sent += 1
        self.on_send(end, peer, message)
        options, rng = self.options, self._rng
        source = end.node_id
        vote = isinstance(message, RequestVote | RequestVoteResponse)  # these have a call of their own
        lost = (
            (source, peer) in self._cuts
            or (peer not in end.connected and not vote)
            or (options.loss > 0 and rng.random() < options.loss)
        )
        self._trace.add(source, "lost" if lost else "send", peer, *_facts(message))
        if lost:
            self.lost += 1
            return
        turned = self._turn_a_bit(message) if options.damage > 0 else None
        carried = message if turned is None else turned
        whole = self._wrap(source, peer, carried) if options.codec else carried
        wire: _Wire = whole if turned is None else _Damaged(whole)
        self.damaged += turned is not None
        self._schedule(source, peer, wire)
        if options.duplicate > 0 and rng.random() < options.duplicate:
            self.duplicated += 1
            self._schedule(source, peer, wire)

    def _turn_a_bit(self, message: Message) -> Message | None:
        """Return the message with one bit of its entries turned; mostly None: it is spared, or has no entries."""
        rng = self._damage_rng
        if not isinstance(message, AppendEntries) or not isinstance(message.payload, RawSlice):
            return None
        if rng.random() >= self.options.damage:
            return None
        payload = message.payload
        data = bytearray(payload.data)
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        return replace(message, payload=replace(payload, data=bytes(data)))

    def _schedule(self, source: NodeId, peer: NodeId, wire: _Wire) -> None:
        options, rng = self.options, self._rng
        if options.slow_share > 0 and rng.random() < options.slow_share:
            delay = rng.uniform(options.delay_max_s, options.slow_max_s)
        else:
            delay = rng.uniform(options.delay_min_s, options.delay_max_s)
        now = self._loop.time()
        link = (source, peer)
        when = max(now, self._clogged_until.get(link, now)) + delay
        if options.ordered:
            when = max(when, self._last_arrival.get(link, when))
            self._last_arrival[link] = when
        target = self._ends.get(peer)
        if options.survive_restart:
            self._loop.call_at(when, self._arrive_late, peer, wire, source, context=contextvars.Context())
        elif target is not None:
            self._loop.call_at(when, target.receive, wire, source, context=target.process.context)

    def _arrive_late(self, peer: NodeId, wire: _Wire, source: NodeId) -> None:
        target = self._ends.get(peer)
        if target is not None:
            self._loop.call_soon(target.receive, wire, source, context=target.process.context)

    def _wrap(self, source: NodeId, peer: NodeId, message: Message) -> bytes:
        if isinstance(message, RequestVote):
            return b"V" + codec.encode_vote_request(message, group=self._group, target=peer)
        if isinstance(message, RequestVoteResponse):
            return b"W" + codec.encode_vote_response(message, group=self._group)
        return b"S" + codec.encode_stream(message, group=self._group, target=peer)

    def unwrap(self, node: NodeId, sender: NodeId, wire: _Wire) -> Message | None:
        """Turn what has arrived at ``node`` into what its handler gets: entries parsed and verified.

        None where they are damaged: the connection is broken, and it is for the nodes to begin again.
        """
        if not isinstance(wire, _Damaged):
            return self._decode(node, sender, wire)
        try:
            message = self._decode(node, sender, wire.wire)
        except CorruptSliceError:
            self._trace.add(node, "damaged", sender)
            self.break_connection(sender, node)
            return None
        self.on_damage_taken(node, message)
        return message

    def _decode(self, node: NodeId, sender: NodeId, wire: Message | bytes) -> Message:
        if isinstance(wire, bytes):
            kind, data = wire[:1], wire[1:]
            if kind == b"V":
                return codec.decode_vote_request(data, group=self._group, node_id=node, members=self._members)
            if kind == b"W":
                return codec.decode_vote_response(data, group=self._group, peer=sender)
            return codec.decode_stream(data, group=self._group, node_id=node, members=self._member_ids)
        if isinstance(wire, AppendEntries) and isinstance(wire.payload, RawSlice | Slice):
            parsed = parse_slice(
                wire.payload.data,
                wire.prev_log_index + 1,
                wire.prev_chain_crc,
                wire.payload.crc if isinstance(wire.payload, RawSlice) else None,
            )
            return replace(wire, payload=parsed)
        return wire

    def note_arrival(self, node: NodeId, message: Message) -> None:
        self._trace.add(node, "got", message.sender, *_facts(message))


def _facts(message: Message) -> tuple[Fact, ...]:
    """The numbers of a message that tell runs apart and people what is going on."""
    if isinstance(message, Heartbeat):
        return ("heartbeat", message.term, message.commit_index, message.round)
    if isinstance(message, HeartbeatResponse):
        return ("heartbeat_ok", message.term, message.match_index, message.round)
    if isinstance(message, AppendEntries):
        return ("append", message.term, message.prev_log_index, message.last_index, message.commit_index)
    if isinstance(message, AppendEntriesResponse):
        return ("append_ok" if message.success else "append_no", message.term, message.match_index)
    if isinstance(message, RequestVote):
        kind = "ask_pre_vote" if message.pre_vote else "ask_vote"
        return (kind, message.term, message.last_log_term, message.last_log_index)
    if isinstance(message, RequestVoteResponse):
        kind = "pre_vote" if message.pre_vote else "vote"
        return (kind, message.request_term, "granted" if message.granted else "refused", message.result.value)
    return (type(message).__name__, message.term)
