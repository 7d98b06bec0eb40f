"""Stand-ins on both sides of the network: a backend that keeps its log in a list, a handler that remembers."""

from __future__ import annotations

import asyncio
from bisect import bisect_left
from collections import deque

from dledger.errors import IndexCompactedError, IndexOutOfRangeError
from dledger.raft.messages import EntryType, Message
from dledger.rpc.options import NetworkOptions
from dledger.rpc.server import GrpcServer
from dledger.rpc.transport import GrpcTransport
from dledger.storage.entry import EntryGroup, RawSlice, encode_groups, iter_entries
from dledger.types import BatchResult, IndexRun, LogRun, NodeEvent, NodeStatus, PeerStatus

GROUP = "g0"
SEGMENT_BYTES = 2**30
FAST = NetworkOptions(reconnect_min_ms=20, reconnect_max_ms=200, vote_timeout_ms=500)


class FakeBackend:
    """A one-node log. ``hold`` keeps appends waiting until `release`; ``fail_with`` answers everything with an error."""

    def __init__(self, node_id="n0", group=GROUP):
        self.group = group
        self.node_id = node_id
        self.max_entry_bytes = 1000
        self.max_batch_bytes = 3000
        self.max_batch_entries = 8
        self.first_index = 0
        self.term = 3
        self.hint = (3, "n0", "127.0.0.1:1")
        self.slices = []
        self.pos = 0
        self.chain = 0
        self.commit_index = -1
        self.fail_with = None
        self.hold = False
        self.held = deque()
        self.calls = []
        self.sessions = {}
        self.read_waits = 0
        self._changed = asyncio.Event()

    # -- what tests do with it

    def put(self, *bodies, type=EntryType.NORMAL):
        (new,) = encode_groups(
            [EntryGroup(type, 0, bodies)],
            term=self.term,
            first_index=self.commit_index + 1,
            pos=self.pos,
            prev_chain_crc=self.chain,
            segment_bytes=SEGMENT_BYTES,
        )
        self.slices.append(new)
        self.pos, self.chain, self.commit_index = new.end_pos, new.chain_crc, new.last_index
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()
        return new

    def release(self, count=None):
        for _ in range(len(self.held) if count is None else count):
            bodies, done = self.held.popleft()
            self._complete(bodies, done)

    def _complete(self, bodies, done):
        if self.fail_with is not None:
            done(None, self.fail_with)
            return
        new = self.put(*bodies)
        done(BatchResult((IndexRun(new.first_index, len(new), self.term),)), None)

    # -- Backend

    def leader_hint(self):
        return self.hint

    def members(self):
        return {"n0": "127.0.0.1:1", "n1": "127.0.0.1:2"}

    def submit(self, bodies, *, session_id, first_sequence, done):
        self.calls.append(("submit", list(bodies), session_id, first_sequence))
        if self.hold:
            self.held.append((bodies, done))
        else:
            asyncio.get_running_loop().call_soon(self._complete, bodies, done)

    def at_turn_end(self, callback):
        asyncio.get_running_loop().call_soon(callback)

    async def open_session(self, client_id):
        self._call("open_session", client_id)
        return self.sessions.setdefault(client_id, len(self.sessions) + 1), 7

    async def read_index(self, mode):
        self._call("read_index", mode)
        return self.commit_index

    async def read_slice(self, first_index, last_index, max_bytes):
        self._call("read_slice", first_index, last_index, max_bytes)
        if first_index < self.first_index:
            raise IndexCompactedError(f"index {first_index} is below the first, {self.first_index}")
        if first_index > self.commit_index:
            raise IndexOutOfRangeError(f"index {first_index} is beyond {self.commit_index}")
        data, last = b"", first_index - 1
        first_part = bisect_left(self.slices, first_index, key=lambda part: part.last_index)
        for part in self.slices[first_part:]:
            if part.first_index > last_index or len(data) >= max_bytes:
                break
            for entry, at in zip(iter_entries(part.data), part.offsets, strict=True):
                size = 48 + len(entry.body)
                if first_index <= entry.index <= last_index and (not data or len(data) + size <= max_bytes):
                    data += part.data[at : at + size]
                    last = entry.index
        return RawSlice(first_index, last, data, 0)

    async def wait_committed(self, index):
        self.read_waits += 1
        try:
            while self.commit_index < index:
                await self._changed.wait()
        finally:
            self.read_waits -= 1
        return self.commit_index

    def position_of(self, index):
        return index * 1000

    def status(self):
        self._call("status")
        peer = PeerStatus("n1", "127.0.0.1:2", True, 5, 6, 4, 2, "replicate", 12, {"AppendEntries": 9})
        return NodeStatus(
            self.group, self.node_id, "127.0.0.1:1", "leader", 3, "n0", "n0", "127.0.0.1:1",
            0, 9, 9, 8, 7, (peer,), "data", "FILE", "SYNC_FLUSH", 100, 200, 300, 400, "1.2", 55, 6, 66, 5, 77, 88, "fine",
            900, 1900, -1, 600, (LogRun(0, 1), LogRun(5, 3)), 2, (NodeEvent(7, 12, "voted", {"for": "n0"}),),
        )  # fmt: skip

    async def transfer_leadership(self, target):
        self._call("transfer_leadership", target)
        return target or "n1"

    async def step_down(self):
        self._call("step_down")

    def _call(self, *call):
        self.calls.append(call)
        if self.fail_with is not None:
            raise self.fail_with


class Handler:
    """Remembers messages and events; `until` waits for a condition over them."""

    def __init__(self):
        self.messages: list[Message] = []
        self.events = []
        self.on_receive = None
        self._changed = asyncio.Event()

    def on_message(self, message):
        self.messages.append(message)
        self._changed.set()
        if self.on_receive is not None:
            self.on_receive(message)

    def on_peer_connected(self, peer):
        self.events.append(("up", peer))
        self._changed.set()

    def on_peer_disconnected(self, peer):
        self.events.append(("down", peer))
        self._changed.set()

    async def until(self, condition, timeout=30.0):
        async with asyncio.timeout(timeout):
            while not condition():
                self._changed.clear()
                await self._changed.wait()


async def eventually(condition, timeout=30.0):
    """Return once ``condition()`` holds: for what happens inside gRPC, which tells nobody."""
    async with asyncio.timeout(timeout):
        while not condition():  # noqa: ASYNC110 - there is no event to wait for
            await asyncio.sleep(0.001)


async def settled(value):
    """Return once ``value()`` has been the same for a tenth of a second: for what must *not* happen any more."""
    async with asyncio.timeout(30):
        before = object()
        while value() != before:
            before = value()
            await asyncio.sleep(0.1)


class Node:
    """A transport with its own server, at a free port or at a given one."""

    def __init__(self, node_id, *, group=GROUP, options=FAST, framed=False):
        self.framed = framed
        self.node_id = node_id
        self.group = group
        self.options = options
        self.handler = Handler()
        self.port = 0

    async def listen(self, members, port=0):
        """``members`` is filled in by reference, as addresses become known."""
        self.transport = GrpcTransport(self.group, self.node_id, members, self.options)
        self.backend = FakeBackend(self.node_id, self.group)
        self.server = GrpcServer(self.backend, self.transport, f"127.0.0.1:{port}", self.options)
        self.port = await self.server.start()
        if self.framed:
            await self.transport.listen("127.0.0.1", 0)
        return self.port

    async def start(self, members):
        # The addresses were not known when the transport was made: ports are taken as they come.
        self.transport._members.update(members)
        await self.transport.start(self.handler)

    async def stop(self):
        await self.transport.stop()
        await self.server.stop(0)


async def started(*node_ids, options=FAST, framed=False):
    """Return connected nodes, each of which knows that it is connected to all others. ``framed``: not by gRPC."""
    nodes = [Node(node_id, options=options, framed=framed) for node_id in node_ids]
    members = {}
    for node in nodes:
        members[node.node_id] = f"127.0.0.1:{await node.listen({})}"
    for node in nodes:
        await node.start(members)
    for node in nodes:
        others = [n.node_id for n in nodes if n is not node]
        await node.handler.until(lambda t=node.transport, o=others: all(t.is_connected(p) for p in o))
        assert {node.transport._links[other].is_framed for other in others} <= {framed}
    return nodes
