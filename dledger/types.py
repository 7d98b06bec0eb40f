"""The values that programs get back: entries, results of appends, status."""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from dledger.raft.messages import EntryType

__all__ = [
    "AppendHook",
    "AppendResult",
    "BatchResult",
    "DownNode",
    "Entry",
    "IndexRun",
    "LogRun",
    "NodeEvent",
    "NodeStatus",
    "PeerStatus",
    "ReadMode",
]


AppendHook = Callable[[Sequence[int], Sequence[bytes]], Sequence[bytes]]
"""``hook(positions, bodies)``: the last touch to bodies that have got their byte positions in the log; returns as many,
of the same lengths. (DLedger's AppendHook, for an append instead of an entry.)"""


class ReadMode(enum.Enum):
    """How fresh a read is. Both show committed entries only."""

    LINEARIZABLE = "linearizable"
    """Sees everything acknowledged before the call, at any node (ReadIndex, thesis §6.4)."""

    LOCAL_COMMITTED = "local"
    """What this node knows is committed; may be behind, needs no leader."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One committed entry. ``pos``: byte position of its header over all data segments."""

    index: int
    term: int
    pos: int
    type: EntryType
    session_id: int
    body: bytes


@dataclass(frozen=True, slots=True)
class IndexRun:
    """``count`` entries at consecutive indexes, all of one term."""

    first_index: int
    count: int
    term: int


class AppendResult(NamedTuple):  # made for each append: three times as fast as a frozen dataclass
    """Where an append stands: on a majority's disk, for good. ``pos`` is -1 where it was not asked of the store."""

    index: int  # type: ignore[assignment]  # in place of tuple.index, which nobody misses
    term: int
    pos: int = -1


@dataclass(frozen=True, slots=True)
class BatchResult:
    """Where a batch stands; one run unless a retry completed what a dead leader had begun."""

    runs: tuple[IndexRun, ...]

    @property
    def first_index(self) -> int:
        return self.runs[0].first_index

    @property
    def last_index(self) -> int:
        last = self.runs[-1]
        return last.first_index + last.count - 1

    def indexes(self) -> list[int]:
        """The index of each entry, in order of the batch."""
        out: list[int] = []
        for run in self.runs:
            out.extend(range(run.first_index, run.first_index + run.count))
        return out


@dataclass(frozen=True, slots=True)
class DownNode:
    """A node that gave no status, and why."""

    node_id: str
    address: str
    reason: str


@dataclass(frozen=True, slots=True)
class PeerStatus:
    """A peer as this node sees it; log positions are -1 unless this node leads."""

    node_id: str
    address: str
    connected: bool
    match_index: int = -1
    next_index: int = -1
    lag_entries: int = -1
    inflight_count: int = 0
    state: str = ""
    last_contact_ms: int = -1
    sent: Mapping[str, int] = field(default_factory=dict)
    """Messages to this peer by kind (``AppendEntries``, ``Heartbeat``, …) since the node started."""


@dataclass(frozen=True, slots=True)
class LogRun:
    """Entries of one term: from ``first_index`` to where the next run begins."""

    first_index: int
    term: int


@dataclass(frozen=True, slots=True)
class NodeEvent:
    """Something that happened at a node. ``number`` counts from 1 since it started; names as in its log."""

    number: int
    age_ms: int
    name: str
    facts: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class NodeStatus:
    """What one node says of itself. Fields as in ``proto/dledger/v1/admin.proto``."""

    group: str
    node_id: str
    address: str
    role: str
    term: int
    vote: str
    leader_id: str
    leader_address: str
    first_index: int
    last_index: int
    stable_index: int
    commit_index: int
    applied_index: int
    peers: tuple[PeerStatus, ...] = field(default=())
    store_path: str = ""
    store_type: str = ""
    flush_disk_type: str = ""
    store_bytes: int = 0
    disk_free_bytes: int = -1
    disk_total_bytes: int = -1
    uptime_ms: int = 0
    version: str = ""
    pid: int = 0
    pending_count: int = 0
    pending_bytes: int = 0
    session_count: int = 0
    role_since_ms: int = 0
    fsync_p99_us: int = -1
    note: str = ""
    append_p50_us: int = -1
    append_p99_us: int = -1
    election_left_ms: int = -1
    election_timeout_ms: int = -1
    tail: tuple[LogRun, ...] = field(default=())
    truncated_count: int = 0
    events: tuple[NodeEvent, ...] = field(default=())
