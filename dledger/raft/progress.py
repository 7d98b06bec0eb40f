"""What a leader knows of one peer: how far its log matches, what is on the way, how to go on."""

from __future__ import annotations

import enum
from collections import deque

from dledger.raft.messages import NO_INDEX
from dledger.raft.ready import SendEntries

__all__ = ["PeerProgress", "ReplicationState"]


class ReplicationState(enum.Enum):
    """How a leader sends to one peer."""

    PROBE = "probe"
    """Where the logs part is not known yet: one message at a time."""

    REPLICATE = "replicate"
    """The logs match: a window of messages is on the way."""


class PeerProgress:
    """Invariant: match_index < next_index. match_index falls within a term only by `forget`.

    ``sworn_index`` and ``sworn_round`` are what the peer has said of itself while it remembered all that it had ever
    promised (`HardState.vote_floor`); ``match_index`` and ``acked_round`` also what it says without.
    """

    __slots__ = (
        "acked_round",
        "broken",
        "epoch",
        "fetching",
        "inflight",
        "inflight_bytes",
        "last_contact_ms",
        "last_sent_ms",
        "match_index",
        "next_index",
        "optimistic",
        "probe_precedes_heartbeat",
        "probe_sent",
        "sent_commit",
        "state",
        "sworn_index",
        "sworn_round",
    )

    def __init__(self, next_index: int, now_ms: int) -> None:
        self.state = ReplicationState.PROBE
        self.match_index = NO_INDEX
        self.sworn_index = NO_INDEX
        self.next_index = next_index
        self.inflight: deque[tuple[int, int]] = deque()  # (last_index, bytes), ascending
        self.inflight_bytes = 0
        self.broken = False  # its connection broke and nothing was heard since
        self.fetching: SendEntries | None = None  # what the driver is asked to fetch for this peer
        self.probe_sent = False
        self.probe_precedes_heartbeat = False  # the last heartbeat left after the probe that is out
        self.optimistic = True  # the first probe carries entries: after most elections the logs match
        self.last_contact_ms = now_ms
        self.last_sent_ms = now_ms
        self.sent_commit = NO_INDEX
        self.acked_round = 0
        self.sworn_round = 0
        self.epoch = 0  # answers of an older one were given before the peer lost something

    def heard(self, now_ms: int) -> None:
        """Something came from the peer."""
        self.last_contact_ms = now_ms
        self.broken = False

    def become_probe(self) -> None:
        """Start over from what is certain; where nothing is yet, from where the search had come to."""
        self.state = ReplicationState.PROBE
        if self.match_index != NO_INDEX:
            self.next_index = self.match_index + 1
        self._clear()

    def back_up(self, next_index: int) -> None:
        """The peer refused: try at ``next_index`` (never at or below what is known to match)."""
        self.state = ReplicationState.PROBE
        self.next_index = max(next_index, self.match_index + 1)
        self.optimistic = False
        self._clear()

    def pause(self) -> None:
        """Send nothing more until the peer answers a heartbeat or reconnects."""
        self.probe_sent = True
        self.probe_precedes_heartbeat = True

    def _clear(self) -> None:
        self.inflight.clear()
        self.inflight_bytes = 0
        self.probe_sent = False
        self.probe_precedes_heartbeat = False
        self.fetching = None

    def acknowledge(self, match_index: int, *, forgetful: bool = False) -> bool:
        """Raise match_index, and sworn_index unless the peer is forgetful; returns whether one rose.

        A stale acknowledgement changes nothing.
        """
        rose = not forgetful and match_index > self.sworn_index
        if rose:
            self.sworn_index = match_index
        while self.inflight and self.inflight[0][0] <= match_index:
            self.inflight_bytes -= self.inflight.popleft()[1]
        if match_index <= self.match_index:
            return rose
        self.match_index = match_index
        self.next_index = max(self.next_index, match_index + 1)
        return True

    def acknowledge_round(self, number: int, *, forgetful: bool) -> bool:
        """Note that the peer has heard of a read-index round; returns whether that is new."""
        rose = number > self.acked_round or (not forgetful and number > self.sworn_round)
        self.acked_round = max(self.acked_round, number)
        if not forgetful:
            self.sworn_round = max(self.sworn_round, number)
        return rose

    def forget(self, match_index: int) -> None:
        """The peer has lost what it acknowledged after ``match_index``: count that no longer, nor any older answer."""
        self.match_index = min(self.match_index, match_index)
        self.sworn_index = min(self.sworn_index, match_index)
        self.epoch += 1

    def distrust(self) -> None:
        """The peer may have lost anything that it acknowledged: ask it again."""
        self.sworn_index = NO_INDEX
        self.epoch += 1
        self.become_probe()

    def become_replicate(self) -> None:
        self.state = ReplicationState.REPLICATE
        self.probe_sent = False

    def sent(self, last_index: int, byte_count: int, now_ms: int) -> None:
        """Note entries on the way."""
        self.fetching = None
        self.last_sent_ms = now_ms
        if self.state is ReplicationState.PROBE:
            self.probe_sent = True
            return
        self.next_index = last_index + 1
        self.inflight.append((last_index, byte_count))
        self.inflight_bytes += byte_count
