"""What a log must hold after lines were appended to it: nothing acknowledged lost, doubled or out of order. Pure.

A line is told apart by its number, not its text: files have equal lines. An acknowledgement ties a line to an index;
the entry at that index must be that line, and no other entry may be there.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

__all__ = ["Judgement", "judge", "longest_gap"]


@dataclass(slots=True)
class Judgement:
    """Offending lines (``lost``, ``reordered``; from 0) and log indexes (``duplicated``) of one copy of a log."""

    lost: set[int] = field(default_factory=set)
    duplicated: set[int] = field(default_factory=set)
    reordered: set[int] = field(default_factory=set)

    @property
    def clean(self) -> bool:
        return not (self.lost or self.duplicated or self.reordered)

    def merge(self, other: Judgement) -> None:
        """Add what another copy shows."""
        self.lost |= other.lost
        self.duplicated |= other.duplicated
        self.reordered |= other.reordered


def judge(lines: Sequence[bytes], acknowledged: Mapping[int, int], log: Mapping[int, bytes]) -> Judgement:
    """Compare what was acknowledged with one copy of the log.

    ``acknowledged``: line number → index; ``log``: index → body of every normal entry. A line without an
    acknowledgement may stand in the log once, or not at all.
    """
    found = Judgement()
    owner: dict[int, int] = {}
    highest = -1
    for line in sorted(acknowledged):
        index = acknowledged[line]
        if index in owner or log.get(index) != lines[line]:
            found.lost.add(line)
            continue
        owner[index] = line
        if index < highest:
            found.reordered.add(line)
        highest = max(highest, index)
    unknown = Counter(body for line, body in enumerate(lines) if line not in acknowledged)
    for index in sorted(log.keys() - owner.keys()):
        if unknown[log[index]] > 0:
            unknown[log[index]] -= 1
        else:
            found.duplicated.add(index)
    return found


def longest_gap(times: Sequence[float], since: float) -> float | None:
    """Return the longest time between two acknowledgements of which the later came after ``since``; None without one.

    ``times``: ascending, in any unit.
    """
    gaps = [after - before for before, after in pairwise(times) if after >= since]
    return max(gaps, default=None)
