"""The verdict over a `Record`: the checker's, and what only a group of real nodes can show."""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from dledger.chaos.record import Record
from dledger.checker import Kind, Verdict, check

__all__ = ["Judgement", "judge_record", "percentile"]

_NAMED_TIMES: Final = re.compile(r"(?:called|failed|answered|acknowledged[^;]*?) at (\d+\.\d+)")
_SHOWN: Final = 3


def percentile(values: Sequence[float], percent: float) -> float:
    """Return the smallest value that ``percent`` of ``values`` do not exceed.

    Raises:
        ValueError: there are no values.
    """
    if not values:
        raise ValueError("no values")
    ordered = sorted(values)
    return ordered[max(0, math.ceil(len(ordered) * percent / 100) - 1)]


@dataclass(slots=True)
class Judgement:
    """What is wrong, if anything. ``problems`` are sentences about the group, beside the checker's ``verdict``."""

    verdict: Verdict
    problems: list[str] = field(default_factory=list)
    identical: int = 0
    nodes: int = 0
    gaps_ms: list[float] = field(default_factory=list)
    leader_losses: int = 0
    fsync: str = ""

    @property
    def ok(self) -> bool:
        return self.verdict.ok and not self.problems

    @property
    def lost(self) -> int:
        """Acknowledged, and not where the acknowledgement said."""
        return self.verdict.count(Kind.LOST, Kind.MOVED)

    def lines(self, record: Record) -> list[str]:
        """The verdict for people: one line that says it, one or two with the figures, then what offends."""
        verdict = self.verdict
        order = verdict.count(Kind.STALE_READ, Kind.FUTURE_READ, Kind.WRONG_READ, Kind.REORDERED)
        copies = f"{self.identical} of {self.nodes} logs identical" if self.nodes else "logs of others not compared"
        out = [
            f"{'PASS' if self.ok else 'FAIL'}  {verdict.acknowledged} acknowledged, {self.lost} lost, "
            f"{verdict.count(Kind.DUPLICATED)} duplicated, {verdict.count(Kind.REORDERED)} reordered; "
            f"{'not ' if order else ''}linearizable (append log, real-time order), {copies}",
            f"      {verdict.unknown} unknown: {verdict.unknown_found} found in the log, "
            f"{verdict.unknown - verdict.unknown_found} absent, both allowed; {verdict.failed} refused, "
            f"{verdict.count(Kind.FAILED_APPEARED)} of them found; {verdict.reads} reads, "
            f"{verdict.count(Kind.STALE_READ)} stale",
            f"      write gap: {self._gaps()}   {self.fsync}",
        ]
        if not self.ok:
            out.extend(self._offending(record))
        return out

    def _gaps(self) -> str:
        if not self.gaps_ms:
            return f"- ({self.leader_losses} leader losses, none that the group could repair alone)"
        return (
            f"median {statistics.median(self.gaps_ms) / 1000:.2f} s, p99 {percentile(self.gaps_ms, 99) / 1000:.2f} s, "
            f"worst {max(self.gaps_ms) / 1000:.2f} s over {len(self.gaps_ms)} leader losses"
        )

    def _offending(self, record: Record) -> list[str]:
        """The first of what is wrong, with the faults that were active when it happened."""
        out = [f"  {problem}" for problem in self.problems]
        total = sum(self.verdict.counts.values())
        for violation in self.verdict.violations[:_SHOWN]:
            out.append(f"  {violation}")
            active: dict[str, None] = {}
            for match in _NAMED_TIMES.finditer(violation.message):
                active.update(dict.fromkeys(span.words for span in record.faults_at(float(match[1]))))
            out.append(f"    fault active then: {', '.join(active) or 'none'}")
        if total > _SHOWN:
            out.append(f"  ... {total} violations in all")
        return out

    def summary(self) -> dict[str, Any]:
        """Return the figures as JSON has them; times in milliseconds."""
        verdict = self.verdict
        gaps = self.gaps_ms
        return {
            "ok": self.ok,
            "appends": verdict.appends,
            "acknowledged": verdict.acknowledged,
            "refused": verdict.failed,
            "unknown": verdict.unknown,
            "unknown_found": verdict.unknown_found,
            "reads": verdict.reads,
            "violations": {kind.value: count for kind, count in verdict.counts.items()},
            "problems": list(self.problems),
            "identical_logs": self.identical,
            "nodes": self.nodes,
            "leader_losses": self.leader_losses,
            "gap_median_ms": round(statistics.median(gaps), 1) if gaps else None,
            "gap_p99_ms": round(percentile(gaps, 99), 1) if gaps else None,
            "gap_worst_ms": round(max(gaps), 1) if gaps else None,
        }


def judge_record(record: Record) -> Judgement:
    """Judge a run: linear-time check of the history, then the group's own duties."""
    error = record.meta.get("error")
    found = Judgement(
        # Without a final read there is nothing to compare with, and the run has failed for that reason alone.
        Verdict(appends=len(record.history.values)) if error else check(record.history, record.log),
        gaps_ms=[loss.gap_ms for loss in record.losses if loss.failover and loss.gap_ms is not None],
        leader_losses=len(record.losses),
        fsync=str(record.meta.get("fsync", "")),
    )
    found.nodes = len(record.digests)
    digests = list(record.digests.values())
    found.identical = max((digests.count(digest) for digest in digests), default=0)
    if found.identical != found.nodes:
        found.problems.append(f"only {found.identical} of {found.nodes} logs are identical: {record.digests}")
    if error:
        found.problems.append(str(error))
    elif not found.verdict.acknowledged:
        found.problems.append("nothing was acknowledged, so nothing was shown")
    found.problems.extend(_two_leaders(record))
    found.problems.extend(_commit_went_back(record))
    found.problems.extend(record.meta.get("problems", []))
    return found


def _two_leaders(record: Record) -> list[str]:
    """Election safety: at most one leader in a term (Raft §5.2)."""
    leaders: dict[int, set[str]] = {}
    for election in record.elections:
        leaders.setdefault(election.term, set()).add(election.node)
    for sample in record.samples:
        if sample.state == "leader":
            leaders.setdefault(sample.term, set()).add(sample.node)
    return [
        f"term {term} had {len(nodes)} leaders: {', '.join(sorted(nodes))}"
        for term, nodes in leaders.items()
        if len(nodes) > 1
    ]


def _commit_went_back(record: Record) -> list[str]:
    """A process takes neither its commit index nor its term back. (Over a restart it may: what was seen need not have
    been durable.)"""
    highest: dict[tuple[str, int], int] = {}
    terms: dict[tuple[str, int], int] = {}
    out = []
    for sample in record.samples:
        if sample.pid <= 0:
            continue
        key = (sample.node, sample.pid)
        if sample.commit_index < highest.get(key, -1):
            out.append(f"{sample.node}'s commit index went back from {highest[key]} to {sample.commit_index}")
        highest[key] = max(highest.get(key, -1), sample.commit_index)
        if sample.term < terms.get(key, 0):
            out.append(f"{sample.node}'s term went back from {terms[key]} to {sample.term}")
        terms[key] = max(terms.get(key, 0), sample.term)
    return out
