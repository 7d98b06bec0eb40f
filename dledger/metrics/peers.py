"""Round trips to the peers, measured on the way between driver and transport.

A leader's messages to one peer answer each other in order, so one of each kind is timed at a time: the heartbeat that
is echoed, and the entries that are reported durable. That is one comparison a message and no allocation.
"""

from __future__ import annotations

from time import monotonic
from typing import TYPE_CHECKING

from dledger.metrics.registry import Histogram
from dledger.raft.messages import (
    AppendEntries,
    AppendEntriesResponse,
    Heartbeat,
    HeartbeatResponse,
    Message,
    NodeId,
)

if TYPE_CHECKING:
    from dledger.rpc.interfaces import Transport, TransportHandler

__all__ = ["MeteredTransport", "PeerTimes"]

_GIVE_UP_S = 10.0
"""A heartbeat without an answer for so long was lost; another is timed."""


class PeerTimes:
    """One peer's round trips (seconds)."""

    __slots__ = ("entries", "heartbeat", "replicate", "round_trip")

    def __init__(self) -> None:
        self.round_trip = Histogram()
        """Heartbeat to answer. A follower that writes answers when what it had staged before is durable."""
        self.replicate = Histogram()
        """Entries sent to entries durable there."""
        self.heartbeat: tuple[int, int, float] | None = None
        self.entries: tuple[int, int, float] | None = None

    def sent_heartbeat(self, message: Heartbeat, now_s: float) -> None:
        if self.heartbeat is None or now_s - self.heartbeat[2] > _GIVE_UP_S:
            self.heartbeat = (message.round, message.sent_index, now_s)

    def sent_entries(self, message: AppendEntries, now_s: float) -> None:
        timed = self.entries
        if message.last_index > message.prev_log_index and (timed is None or timed[0] != message.term):
            self.entries = (message.term, message.last_index, now_s)

    def heartbeat_answered(self, message: HeartbeatResponse, now_s: float) -> None:
        timed = self.heartbeat
        if timed is not None and timed[:2] == (message.round, message.sent_index):
            self.round_trip.observe(now_s - timed[2])
            self.heartbeat = None

    def entries_answered(self, message: AppendEntriesResponse, now_s: float) -> None:
        timed = self.entries
        if timed is None or (timed[0] == message.term and message.success and message.match_index < timed[1]):
            return
        if timed[0] == message.term and message.success:
            self.replicate.observe(now_s - timed[2])
        self.entries = None


class MeteredTransport:
    """A `Transport` that hands everything on, in both directions, and times what is answered."""

    def __init__(self, inner: Transport) -> None:
        self._inner = inner
        self._handler: TransportHandler | None = None
        self.times: dict[NodeId, PeerTimes] = {}

    def send(self, peer: NodeId, message: Message) -> None:
        """See `Transport.send`."""
        kind = type(message)
        if kind is AppendEntries:
            self._of(peer).sent_entries(message, monotonic())  # type: ignore[arg-type]
        elif kind is Heartbeat:
            self._of(peer).sent_heartbeat(message, monotonic())  # type: ignore[arg-type]
        self._inner.send(peer, message)

    def _of(self, peer: NodeId) -> PeerTimes:
        times = self.times.get(peer)
        if times is None:
            times = self.times[peer] = PeerTimes()
        return times

    def is_connected(self, peer: NodeId) -> bool:
        """See `Transport.is_connected`."""
        return self._inner.is_connected(peer)

    async def start(self, handler: TransportHandler) -> None:
        """See `Transport.start`."""
        self._handler = handler
        await self._inner.start(self)

    async def stop(self) -> None:
        """See `Transport.stop`."""
        await self._inner.stop()

    # ---- TransportHandler

    def on_message(self, message: Message) -> None:
        """See `TransportHandler.on_message`."""
        kind = type(message)
        if kind is AppendEntriesResponse:
            self._of(message.sender).entries_answered(message, monotonic())  # type: ignore[arg-type]
        elif kind is HeartbeatResponse:
            self._of(message.sender).heartbeat_answered(message, monotonic())  # type: ignore[arg-type]
        if self._handler is not None:
            self._handler.on_message(message)

    def on_peer_connected(self, peer: NodeId) -> None:
        """See `TransportHandler.on_peer_connected`."""
        if self._handler is not None:
            self._handler.on_peer_connected(peer)

    def on_peer_disconnected(self, peer: NodeId) -> None:
        """See `TransportHandler.on_peer_disconnected`."""
        if self._handler is not None:
            self._handler.on_peer_disconnected(peer)
