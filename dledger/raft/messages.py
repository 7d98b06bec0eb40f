"""What the cores of a group say to each other, and the values they are made of.

Plain frozen values: no bytes on the wire are decided here (``dledger.rpc.codec``
does that) and entries never pass through the core. ``AppendEntries.payload`` is
carried past the core untouched, so that a leader's cost is per slice.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import NamedTuple

__all__ = [
    "NO_INDEX",
    "NO_TERM",
    "UNKNOWN_FLOOR",
    "AppendEntries",
    "AppendEntriesResponse",
    "EntryType",
    "HardState",
    "Heartbeat",
    "HeartbeatResponse",
    "InvariantError",
    "LogId",
    "Message",
    "NodeId",
    "ReadIndexRequest",
    "ReadIndexResponse",
    "RequestVote",
    "RequestVoteResponse",
    "Role",
    "TermRun",
    "TimeoutNow",
    "VoteResult",
    "invariant",
]

NodeId = str

NO_INDEX = -1
"""The index before the first entry (indexes start at 0, as in DLedger)."""

NO_TERM = -1
"""The term of the position before the first entry."""


class InvariantError(Exception):
    """Something that must never be false was false. The node stops; it does not repair."""


def invariant(condition: bool, message: str) -> None:
    """Raise `InvariantError` unless ``condition``. Unlike ``assert`` it survives ``python -O``."""
    if not condition:
        raise InvariantError(message)


class Role(enum.Enum):
    """What a node is in its term (Raft §5.1; pre-candidate: thesis §9.6)."""

    __hash__ = object.__hash__  # in C; `enum.Enum` has one in Python, which every message would pay for

    FOLLOWER = "follower"
    PRE_CANDIDATE = "pre_candidate"
    CANDIDATE = "candidate"
    LEADER = "leader"
    LEARNER = "learner"


class EntryType(enum.IntEnum):
    """The ``magic`` of an entry. 1-3 are DLedger's; 4 opens a producer session."""

    NORMAL = 1
    NOOP = 2
    CONFIG_CHANGE = 3
    SESSION = 4


@dataclass(frozen=True, slots=True, order=True)
class LogId:
    """Term and index of an entry; compares as Raft §5.4.1 compares logs: term first, then index."""

    term: int
    index: int


class TermRun(NamedTuple):
    """From ``first_index`` up to the next run, all entries have ``term``."""

    first_index: int
    term: int


@dataclass(frozen=True, slots=True)
class HardState:
    """What must be durable, as one value and in one write, before any message that rests on it leaves (Raft §5.1).

    ``vote_floor``: the furthest entry that this node may once have acknowledged though its log no longer has it (a
    wiped folder, a tail damaged by a power failure). While the log is behind it, the node's votes are provisional, its
    own included: it can win only with the votes of all. None: the log is known to hold everything that this node ever
    promised.
    """

    term: int = 0
    vote: NodeId | None = None
    vote_floor: LogId | None = None


UNKNOWN_FLOOR = LogId(2**62, 2**62)
"""A floor that no log reaches: nothing is known of what was promised. Cleared by catching up with a live leader."""


class VoteResult(enum.Enum):
    """Why a vote was given or refused; DLedger's names where DLedger has the case."""

    ACCEPT = "ACCEPT"
    REJECT_UNKNOWN_LEADER = "REJECT_UNKNOWN_LEADER"
    REJECT_EXPIRED_VOTE_TERM = "REJECT_EXPIRED_VOTE_TERM"
    REJECT_ALREADY_HAS_LEADER = "REJECT_ALREADY_HAS_LEADER"
    REJECT_ALREADY_VOTED = "REJECT_ALREADY_VOTED"
    REJECT_EXPIRED_LEDGER_TERM = "REJECT_EXPIRED_LEDGER_TERM"
    REJECT_SMALL_LEDGER_END_INDEX = "REJECT_SMALL_LEDGER_END_INDEX"


@dataclass(frozen=True, slots=True)
class Message:
    """Every message carries its sender and the sender's term; the group is checked where it comes in."""

    sender: NodeId
    term: int


@dataclass(frozen=True, slots=True)
class RequestVote(Message):
    """Ask for a vote (§5.2), or poll for one (``pre_vote``: ``term`` is the term that would be campaigned in)."""

    last_log_index: int
    last_log_term: int
    pre_vote: bool = False
    leadership_transfer: bool = False


@dataclass(frozen=True, slots=True)
class RequestVoteResponse(Message):
    """``request_term`` is the term asked for; ``provisional``: see `HardState.vote_floor`."""

    request_term: int
    granted: bool
    pre_vote: bool
    provisional: bool = False
    result: VoteResult = VoteResult.ACCEPT


@dataclass(frozen=True, slots=True)
class AppendEntries(Message):
    """Entries after ``prev_log_index`` (§5.3). ``last_index == prev_log_index``: no entries, a probe.

    ``terms`` are the runs of terms of the entries carried, the first run starting at ``prev_log_index + 1``.
    ``epoch``: how often the receiver has lost what it had acknowledged in this term. Echoed: no older answer counts.
    """

    prev_log_index: int
    prev_log_term: int
    last_index: int
    terms: tuple[TermRun, ...]
    commit_index: int
    prev_chain_crc: int = 0
    payload: object = field(default=None, compare=False, repr=False)
    epoch: int = 0


@dataclass(frozen=True, slots=True)
class AppendEntriesResponse(Message):
    """Success: durable and equal to the leader's log up to ``match_index``. Refusal: where to go on (§5.3, end).

    ``forgetful``: the sender may have voted in a later term, or acknowledged its entries, and know nothing of it.
    ``epoch``: the highest that it has heard of its leader.
    """

    success: bool
    match_index: int
    last_index: int
    rejected_index: int = NO_INDEX
    conflict_term: int = NO_TERM
    conflict_index: int = NO_INDEX
    forgetful: bool = False
    epoch: int = 0


@dataclass(frozen=True, slots=True)
class Heartbeat(Message):
    """Leadership goes on; ``commit_index`` is the leader's: the receiver follows it as far as it has verified its log.

    ``round`` numbers read-index rounds (thesis §6.4); ``sent_index`` is the last index sent on this link, so that the
    answer shows whether something was lost on the way. ``epoch``: as in `AppendEntries`.
    """

    commit_index: int
    round: int
    sent_index: int
    epoch: int = 0


@dataclass(frozen=True, slots=True)
class HeartbeatResponse(Message):
    """What came of a heartbeat: both its numbers echoed, and how far the follower's log is known to match.

    ``match_index``: durably; ``last_index``: durable or not. What the follower has beyond is not this leader's yet.
    ``forgetful``, ``epoch``: as in `AppendEntriesResponse`.
    """

    round: int
    sent_index: int
    match_index: int
    last_index: int
    forgetful: bool = False
    epoch: int = 0


@dataclass(frozen=True, slots=True)
class ReadIndexRequest(Message):
    """A follower asks for an index to read at (thesis §6.4).

    ``recollects``: it may have lost what it acknowledged; nothing of that counts from now on, and the index is what it
    must hold to count in full again.
    """

    request_id: int
    recollects: bool = False


@dataclass(frozen=True, slots=True)
class ReadIndexResponse(Message):
    """``read_index`` is `NO_INDEX` - 1 (-2) where the leader cannot say; ask again."""

    request_id: int
    read_index: int


@dataclass(frozen=True, slots=True)
class TimeoutNow(Message):
    """The leader asks this follower to campaign at once (thesis §3.10)."""
