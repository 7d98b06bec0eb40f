"""What the core wants done: one bundle of effects, taken by the driver after each input (or after several)."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field

from dledger.raft.messages import AppendEntries, HardState, Message, NodeId, Role

__all__ = [
    "AppendNoop",
    "AppendReceived",
    "CoreEvent",
    "LogOperation",
    "ProposalRefusedError",
    "ReadState",
    "Ready",
    "RefusalReason",
    "RoleChange",
    "SendEntries",
    "Truncate",
]


@dataclass(frozen=True, slots=True)
class Truncate:
    """Drop every entry at or after ``from_index`` (never at or below the commit index)."""

    from_index: int


@dataclass(frozen=True, slots=True)
class AppendReceived:
    """Append the entries of ``message`` from ``first_index`` on."""

    first_index: int
    message: AppendEntries


@dataclass(frozen=True, slots=True)
class AppendNoop:
    """The first entry of a leader's term (thesis §6.4)."""

    index: int
    term: int


LogOperation = Truncate | AppendReceived | AppendNoop


@dataclass(frozen=True, slots=True)
class SendEntries:
    """Fetch entries ``first_index..last_index`` (fewer is fine, up to ``max_bytes``) for ``peer``.

    The driver answers with `RaftCore.entries_fetched` or `RaftCore.fetch_failed`.
    """

    peer: NodeId
    first_index: int
    last_index: int
    max_bytes: int
    term: int


@dataclass(frozen=True, slots=True)
class RoleChange:
    """This node's role or its leader changed. ``leader_id`` is None while none is known."""

    role: Role
    term: int
    leader_id: NodeId | None


@dataclass(frozen=True, slots=True)
class ReadState:
    """A finished read request: read once ``read_index`` is applied. None: could not be confirmed; ask again."""

    request_id: int
    read_index: int | None


@dataclass(frozen=True, slots=True)
class CoreEvent:
    """Something an operator or a trace wants to know: a name and its facts."""

    name: str
    facts: tuple[tuple[str, object], ...] = ()


@dataclass(slots=True)
class Ready:
    """Effects, in the order in which they must be taken.

    1. ``hard_state`` (if not None) and ``log_operations`` are staged to the store, in this order, as one group;
    2. ``messages`` leave now, ``replicate`` is fetched and leaves now, while the disk still writes (thesis §10.2.1);
    3. ``messages_after_persist`` leave only once everything staged up to here is durable.
    """

    hard_state: HardState | None = None
    log_operations: list[LogOperation] = field(default_factory=list)
    messages: list[tuple[NodeId, Message]] = field(default_factory=list)
    replicate: list[SendEntries] = field(default_factory=list)
    messages_after_persist: list[tuple[NodeId, Message]] = field(default_factory=list)
    commit_index: int = -1
    role_change: RoleChange | None = None
    leader_ready: bool = False
    reads: list[ReadState] = field(default_factory=list)
    events: list[CoreEvent] = field(default_factory=list)


class RefusalReason(enum.Enum):
    """Why the core takes no append or transfer now."""

    NOT_LEADER = "not leader"
    TRANSFERRING = "leadership is being transferred"
    NOT_MEMBER = "not a member of the group"
    FALLEN_BEHIND = "too far behind"
    UNREACHABLE = "has not been heard of lately"
    DISK_FULL = "disk full"


class ProposalRefusedError(Exception):
    """The core refuses an append or a transfer; nothing has changed."""

    def __init__(self, reason: RefusalReason, detail: str = "") -> None:
        super().__init__(f"{reason.value}{': ' + detail if detail else ''}")
        self.reason = reason
