"""The two narrow edges of the network: what the driver needs of it, and what the services need of the driver.

No gRPC here. The simulator implements `Transport` with simulated links; ``dledger.rpc.transport`` with gRPC streams.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from dledger.raft.messages import Message, NodeId
from dledger.storage.entry import RawSlice
from dledger.types import BatchResult, NodeStatus, ReadMode

__all__ = ["Backend", "Transport", "TransportHandler"]


class TransportHandler(Protocol):
    """The driver's side of a transport. All calls come on the event loop; none blocks."""

    def on_message(self, message: Message) -> None:
        """A message of this group, addressed to this node, from a member.

        An ``AppendEntries`` comes with its payload parsed and verified (a ``Slice``), or None for a probe.
        """

    def on_peer_connected(self, peer: NodeId) -> None:
        """The link to ``peer`` works (again): something was received on it after a time without."""

    def on_peer_disconnected(self, peer: NodeId) -> None:
        """A stream to or from ``peer`` broke (closed or reset, as after kill -9). A hint, never a proof."""


class Transport(Protocol):
    """Messages to peers: never blocks, may lose, delays are the network's.

    Messages sent to one peer on one unbroken link arrive in order; the core does not rely on it.
    """

    def send(self, peer: NodeId, message: Message) -> None:
        """Send, or drop it if the link is down or its queue (bounded in messages and bytes) is full."""

    def is_connected(self, peer: NodeId) -> bool: ...

    async def start(self, handler: TransportHandler) -> None: ...

    async def stop(self) -> None: ...


class Backend(Protocol):
    """What the gRPC services call. Implemented by the driver; every failure is a ``DLedgerError``."""

    group: str
    node_id: NodeId
    max_entry_bytes: int
    max_batch_bytes: int
    max_batch_entries: int

    def leader_hint(self) -> tuple[int, NodeId | None, str | None]:
        """(term, leader id, leader address) as known here."""

    def members(self) -> dict[NodeId, str]:
        """Member id → advertised address."""

    def submit(
        self,
        bodies: Sequence[bytes],
        *,
        session_id: int,
        first_sequence: int,
        done: Callable[[BatchResult | None, Exception | None], None],
    ) -> None:
        """Append a batch; ``done(result, None)`` once committed, ``done(None, error)`` on failure.

        ``done`` is called exactly once, never before ``submit`` returns. Batches of one caller are taken in the order
        of the calls. Refusals (not leader, full, transferring, gap) come through ``done`` too.
        """

    def at_turn_end(self, callback: Callable[[], None]) -> None:
        """Call ``callback`` once everything that completes in this turn of the loop has been told."""

    async def open_session(self, client_id: bytes) -> tuple[int, int]:
        """(session id, next sequence). Idempotent by ``client_id``; committed when this returns."""

    async def read_index(self, mode: ReadMode) -> int:
        """The index up to which a read in this mode may look right now (-1: nothing committed)."""

    async def read_slice(self, first_index: int, last_index: int, max_bytes: int) -> RawSlice:
        """Whole verified entries from ``first_index``, at least one, at most to ``last_index`` or ``max_bytes``.

        Raises ``IndexOutOfRangeError`` / ``IndexCompactedError`` outside [first index, commit index].
        """

    async def wait_committed(self, index: int) -> int:
        """Return the commit index as soon as it is at least ``index``."""

    def position_of(self, index: int) -> int:
        """``pos`` of a recent entry, -1 where that would need the disk."""

    def status(self) -> NodeStatus: ...

    async def transfer_leadership(self, target: NodeId | None) -> NodeId:
        """Hand leadership to ``target`` (None: the best follower); returns the new leader's id."""

    async def step_down(self) -> None: ...
