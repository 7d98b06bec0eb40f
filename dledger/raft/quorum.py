"""Quorum arithmetic: the one place that knows what a majority is.

A `Configuration` may be joint (thesis §4.3): then both halves must agree. Only the simple form is used today; the
arithmetic is complete, so that membership changes need no change here.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping, Set
from dataclasses import dataclass, field

from dledger.raft.messages import NO_INDEX, NodeId

__all__ = ["MAX_INDEX", "Configuration", "VoteOutcome", "committed_index", "has_quorum", "vote_outcome"]

MAX_INDEX = 2**62


class VoteOutcome(enum.Enum):
    """Where a count of votes stands."""

    WON = "won"
    LOST = "lost"
    PENDING = "pending"


@dataclass(frozen=True, slots=True)
class Configuration:
    """Who votes. ``outgoing`` is empty unless a joint change is under way; learners replicate and never vote."""

    voters: frozenset[NodeId]
    outgoing: frozenset[NodeId] = field(default_factory=frozenset)
    learners: frozenset[NodeId] = field(default_factory=frozenset)
    all_voters: frozenset[NodeId] = field(init=False, compare=False, repr=False)
    members: frozenset[NodeId] = field(init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "all_voters", self.voters | self.outgoing)
        object.__setattr__(self, "members", self.all_voters | self.learners)


def _half_committed(voters: frozenset[NodeId], match_indexes: Mapping[NodeId, int]) -> int:
    if not voters:
        return MAX_INDEX
    ordered = sorted([match_indexes.get(voter, NO_INDEX) for voter in voters], reverse=True)
    return ordered[len(voters) // 2]


def committed_index(configuration: Configuration, match_indexes: Mapping[NodeId, int]) -> int:
    """Return the highest index stored durably by a majority of voters (of both halves, if joint).

    Absent voters count as -1 (nothing stored). An empty half returns `MAX_INDEX`, so that the other half's answer
    is taken. The caller must still refuse an entry of an older term (Raft §5.4.2, figure 8). O(n log n) in voters.
    """
    index = _half_committed(configuration.voters, match_indexes)
    if configuration.outgoing:
        index = min(index, _half_committed(configuration.outgoing, match_indexes))
    return index


def _half_has_quorum(voters: frozenset[NodeId], present: Set[NodeId]) -> bool:
    return not voters or len(voters & present) > len(voters) // 2


def has_quorum(configuration: Configuration, present: Set[NodeId]) -> bool:
    """Whether ``present`` holds a majority (of both halves, if joint)."""
    return _half_has_quorum(configuration.voters, present) and _half_has_quorum(configuration.outgoing, present)


def vote_outcome(
    configuration: Configuration,
    granted: Set[NodeId],
    provisional: Set[NodeId],
    rejected: Set[NodeId],
) -> VoteOutcome:
    """Count votes, each voter once (Raft §5.2).

    ``granted`` are full votes, ``provisional`` those of voters that may have lost entries they acknowledged (see
    `HardState.vote_floor`): they count only where *every* voter has voted yes, because then the candidate's log is at
    least as up-to-date as every copy that survived.
    """
    if has_quorum(configuration, granted):
        return VoteOutcome.WON
    everyone = configuration.all_voters
    if everyone <= granted | provisional:
        return VoteOutcome.WON
    undecided = everyone - granted - provisional - rejected
    if has_quorum(configuration, granted | undecided):
        return VoteOutcome.PENDING
    if not rejected and undecided:
        return VoteOutcome.PENDING
    return VoteOutcome.LOST
