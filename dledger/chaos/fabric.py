"""The network between the nodes, in user space: one TCP proxy for each directed link, and rules for what flows.

Node ``a`` reaches node ``b`` through the proxy of the link (a, b). Rules are about *flow*, not about connections: the
rule for (a, b) governs every byte that travels from a to b, whoever opened the connection. So a cut in one direction
does what it does on a real wire: requests get through and answers do not.

A node may be reached for two things, by its gRPC port and by its port for frames (of peers, and of clients). Both go
through the same link: the first bytes of a connection tell which of the two is meant.

A silent cut is silent: neither bytes nor the end of a connection pass (a node killed behind it does not look dead), and
a new connection hangs as one whose first packet is lost does.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import socket
import struct
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, cast

from dledger.errors import UnavailableError
from dledger.rpc.frames import PREFACES

__all__ = ["OPEN", "Fabric", "Flow", "Link", "Rule"]

_HOST: Final = "127.0.0.1"
_HELD_BYTES: Final = 256 * 1024
"""What a silent link takes from a sender before it stops reading: a stand-in for the kernel's buffers."""

_RESET: Final = struct.pack("ii", 1, 0)
"""SO_LINGER with no time: closing sends RST, as a killed host or a firewall does."""


class Flow(enum.Enum):
    """What happens to bytes."""

    OPEN = "open"
    HELD = "held"
    """Nothing passes and nobody is told; delivered late once open again, as TCP resends."""
    LOST = "lost"
    """Nothing passes and nobody is told; swallowed, and the connections that lost something are reset at the end."""
    REFUSED = "refused"
    """Connections are reset at once, new ones too."""


@dataclass(frozen=True, slots=True)
class Rule:
    """How bytes travel in one direction between two nodes; ``delay_s`` only where the flow is open."""

    flow: Flow = Flow.OPEN
    delay_s: float = 0.0


OPEN: Final = Rule()

_SILENT: Final = frozenset({Flow.HELD, Flow.LOST})


class _End(asyncio.Protocol):
    """One socket of a connection: hands what comes to the half that leads away from it."""

    def __init__(self, connection: _Connection, *, near: bool) -> None:
        self.transport: asyncio.Transport | None = None
        self.gone = False
        self._connection = connection
        self._near = near

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        self._connection.made(near=self._near)

    def data_received(self, data: bytes) -> None:
        if self._near:
            self._connection.heard(data)
        self._connection.half_from(near=self._near).take(data)

    def eof_received(self) -> bool:
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self.gone = True
        self._connection.lost(near=self._near)

    def pause_writing(self) -> None:
        self._connection.half_from(near=not self._near).block(True)

    def resume_writing(self) -> None:
        self._connection.half_from(near=not self._near).block(False)

    def pause_reading(self, paused: bool) -> None:
        transport = self.transport
        if transport is None or self.gone or transport.is_closing():
            return
        if paused:
            transport.pause_reading()
        else:
            transport.resume_reading()

    def write(self, data: bytes) -> None:
        if self.transport is not None and not self.transport.is_closing():
            self.transport.write(data)

    def reset(self) -> None:
        """Close with RST."""
        transport = self.transport
        if transport is None or self.gone:
            return
        raw = transport.get_extra_info("socket")
        if raw is not None:
            with contextlib.suppress(OSError):  # closed by the other side in this moment
                raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        transport.abort()


class _Half:
    """The bytes of one connection in one direction."""

    def __init__(self, source: _End, sink: _End) -> None:
        self._source = source
        self._sink = sink
        self._rule = OPEN
        self._queue: deque[tuple[float, bytes]] = deque()
        self._queued_bytes = 0  # Invariant: the sum of the lengths in _queue.
        self._blocked = False
        self._timer: asyncio.TimerHandle | None = None
        self.damaged = False
        """Whether bytes were swallowed: what follows them would be garbage."""

    @property
    def silent(self) -> bool:
        return self._rule.flow in _SILENT

    def set_rule(self, rule: Rule) -> None:
        self._rule = rule
        self._deliver()

    def take(self, data: bytes) -> None:
        """Bytes came from the source."""
        if self._rule.flow is Flow.LOST:
            self.damaged = True
            return
        if self._rule == OPEN and not self._queue and not self._blocked:
            self._sink.write(data)
            return
        self._queue.append((asyncio.get_running_loop().time() + self._rule.delay_s, data))
        self._queued_bytes += len(data)
        self._deliver()

    def block(self, blocked: bool) -> None:
        """The sink cannot take more (or can again)."""
        self._blocked = blocked
        self._deliver()

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._queue.clear()
        self._queued_bytes = 0

    def _deliver(self) -> None:
        """Write what is due, come again for what is not, and hold the source back where much is waiting."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if not self.silent and not self._blocked:
            loop = asyncio.get_running_loop()
            now = loop.time()
            while self._queue and self._queue[0][0] <= now and not self._blocked:
                _, data = self._queue.popleft()
                self._queued_bytes -= len(data)
                self._sink.write(data)
            if self._queue and not self._blocked:
                self._timer = loop.call_at(self._queue[0][0], self._deliver)
        self._source.pause_reading(self._blocked or self._queued_bytes > _HELD_BYTES)


class _Connection:
    """One TCP connection through a link: the near socket was opened by the link's source, the far one by us."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self._near = _End(self, near=True)
        self._far = _End(self, near=False)
        self._there = _Half(self._near, self._far)
        self._back = _Half(self._far, self._near)
        self._dialling: asyncio.Task[None] | None = None
        self._dead_side: _End | None = None
        self._target: tuple[str, int] | None = None if link.peer_target is not None else link.target

    @property
    def near_end(self) -> _End:
        return self._near

    def half_from(self, *, near: bool) -> _Half:
        return self._there if near else self._back

    def made(self, *, near: bool) -> None:
        """A socket is open. The near one waits until the far one is, too."""
        if near:
            self._link.connections[self] = None
            self._there.block(self._target is not None)
            self.apply()
        else:
            self._there.block(False)

    def heard(self, data: bytes) -> None:
        """The near side speaks; its first bytes tell whom it wants."""
        if self._target is None:
            link = self._link
            wants_frames = any(data.startswith(preface[: len(data)]) for preface in PREFACES)
            self._target = link.peer_target if wants_frames and link.peer_target is not None else link.target
            self._there.block(True)
            self.apply()

    def lost(self, *, near: bool) -> None:
        """A socket is closed: so is the other, unless the news cannot travel now."""
        lost, other = (self._near, self._far) if near else (self._far, self._near)
        if self.half_from(near=near).silent and not other.gone and other.transport is not None:
            self._dead_side = lost
            return
        self.end()

    def apply(self) -> None:
        """The rules may have changed."""
        there, back = self._link.rules()
        self._there.set_rule(there)
        self._back.set_rule(back)
        if Flow.REFUSED in {there.flow, back.flow}:
            self.end()
        elif there.flow in _SILENT or back.flow in _SILENT:
            self._judge_the_dead()
        elif self._dead_side is not None or self._there.damaged or self._back.damaged:
            self.end()
        elif self._far.transport is None and self._dialling is None and self._target is not None:
            self._dialling = asyncio.ensure_future(self._dial(*self._target))

    def _judge_the_dead(self) -> None:
        """A socket that died behind a silent link is told as soon as that direction is open."""
        if self._dead_side is not None and not self.half_from(near=self._dead_side is self._near).silent:
            self.end()

    async def _dial(self, host: str, port: int) -> None:
        try:
            await asyncio.get_running_loop().create_connection(lambda: self._far, host, port)
        except OSError:
            self.end()  # nobody listens: the node is down, and whoever dialled learns it at once
            return
        if self._near.gone:
            self.end()

    def end(self) -> None:
        """Reset both sockets. Twice is fine."""
        self._link.connections.pop(self, None)
        self._there.close()
        self._back.close()
        self._near.reset()
        self._far.reset()

    async def close(self) -> None:
        task = self._dialling
        if task is not None and not task.done():
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        self.end()


class Link:
    """The proxy of one directed link: listens on a port of its own, dials the node behind it."""

    def __init__(self, fabric: Fabric, source: str, target_id: str) -> None:
        self.connections: dict[_Connection, None] = {}
        self.target = (_HOST, 0)
        self.peer_target: tuple[str, int] | None = None
        self.port = 0
        self._fabric = fabric
        self._source = source
        self._target_id = target_id
        self._server: asyncio.Server | None = None

    async def open(self) -> None:
        """Take a port.

        Raises:
            UnavailableError: there is none.
        """
        try:
            self._server = await asyncio.get_running_loop().create_server(
                lambda: _Connection(self).near_end, _HOST, 0, backlog=128
            )
        except OSError as error:
            raise UnavailableError(f"no port for a link: {error.strerror}") from error
        self.port = int(self._server.sockets[0].getsockname()[1])

    async def close(self) -> None:
        if self._server is not None:
            self._server.close()
        for connection in list(self.connections):
            await connection.close()

    def rules(self) -> tuple[Rule, Rule]:
        """The rules for what goes there and for what comes back."""
        return self._fabric.rule(self._source, self._target_id), self._fabric.rule(self._target_id, self._source)

    def apply(self) -> None:
        for connection in list(self.connections):
            connection.apply()


class Fabric:
    """All links between ``node_ids``, and from ``outsiders`` (clients) to each of them. Belongs to one loop.

    ``between`` False: only the outsiders' links.
    """

    def __init__(self, node_ids: Iterable[str], outsiders: Iterable[str] = (), *, between: bool = True) -> None:
        nodes = list(node_ids)
        sources = [*(nodes if between else []), *outsiders]
        self.links = {(a, b): Link(self, a, b) for a in sources for b in nodes if a != b}
        self._rules: dict[tuple[str, str], Rule] = {}

    async def open(self) -> None:
        """Listen on every link."""
        for link in self.links.values():
            await link.open()

    async def close(self) -> None:
        """Close every port and connection."""
        for link in self.links.values():
            await link.close()

    def set_target(self, node_id: str, host: str, port: int, peer_port: int | None = None) -> None:
        """Say where a node listens, ``peer_port`` for peers."""
        for (_, target), link in self.links.items():
            if target == node_id:
                link.target = (host, port)
                link.peer_target = None if peer_port is None else (host, peer_port)

    def port(self, source: str, target: str) -> int:
        """The port at which ``source`` reaches ``target``."""
        return self.links[source, target].port

    def rule(self, source: str, target: str) -> Rule:
        return self._rules.get((source, target), OPEN)

    def set_rules(self, flows: Iterable[tuple[str, str]], rule: Rule) -> None:
        """Let bytes from a to b, for each (a, b), travel by ``rule`` from now on."""
        pairs = list(flows)
        for pair in pairs:
            if rule == OPEN:
                self._rules.pop(pair, None)
            else:
                self._rules[pair] = rule
        for source, target in {*pairs, *((b, a) for a, b in pairs)}:
            link = self.links.get((source, target))
            if link is not None:
                link.apply()

    def heal(self) -> None:
        """Open everything."""
        self.set_rules(list(self._rules), OPEN)

    def cut_flows(self) -> set[tuple[str, str]]:
        """The directed pairs between which nothing passes now."""
        return {pair for pair, rule in self._rules.items() if rule.flow is not Flow.OPEN}
