"""The present of a group as the page is told it: words, and each node's state, log end and messages. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from dledger.types import NodeStatus

if TYPE_CHECKING:
    from dledger.cli.group_view import GroupView, NodeRow
    from dledger.dashboard.watcher import Condition, NodeView

__all__ = ["group_json", "health_words"]

STRIP_COUNT: Final = 60
"""Entries that the log strip shows."""


def health_words(view: GroupView) -> tuple[str, str]:
    """Return (``ok``, ``degraded``, ``leaderless`` or ``lost``; the same as a sentence)."""
    up, total = view.up_count, len(view.rows)
    count = f"{up} of {total} up"
    if up < view.quorum:
        return "lost", f"{count}: no majority, nothing can be committed until {view.quorum - up} more come back"
    if view.leader is None:
        return "leaderless", f"{count}, nobody leads: an election is under way"
    apart = _out_of_touch(view)
    spare = max(up - len(apart) - view.quorum, 0)
    failures = {0: "no more failures", 1: "1 failure"}.get(spare, f"{spare} failures")
    if apart:
        return "degraded", f"{count}, but {' and '.join(apart)} out of touch with the leader: tolerates {failures}"
    return ("ok" if up == total else "degraded"), f"{count}, tolerates {failures}"


def _out_of_touch(view: GroupView) -> list[str]:
    """Return the nodes that answer us and of which the leader has not heard for two election timeouts."""
    leader = view.leader
    if leader is None or leader.election_timeout_ms <= 0 or leader.role_since_ms < 2 * leader.election_timeout_ms:
        return []
    up = {row.node_id for row in view.rows if row.up}
    silent = [peer for peer in leader.peers if not 0 <= peer.last_contact_ms <= 2 * leader.election_timeout_ms]
    return [peer.node_id for peer in silent if peer.node_id in up]


def group_json(
    group: GroupView, views: Sequence[NodeView], conditions: Mapping[str, Condition], leader_since: float | None
) -> dict[str, Any]:
    """Return what the page shows of the present. ``leader_since``: seconds since the epoch."""
    health, words = health_words(group)
    end = max((view.status.last_index for view in views if view.status), default=-1)
    rows = {row.node_id: row for row in group.rows}
    return {
        "group": group.group,
        "health": health,
        "words": words,
        "leader": group.leader_id,
        "term": group.term,
        "since": round(leader_since, 1) if leader_since is not None else None,
        "committed": max((view.status.commit_index for view in views if view.status), default=-1),
        "strip": {"first": max(end - STRIP_COUNT + 1, 0), "last": end},
        "nodes": [_node_json(view, rows.get(view.node_id), conditions.get(view.node_id)) for view in views],
    }


def _node_json(view: NodeView, row: NodeRow | None, condition: Condition | None) -> dict[str, Any]:
    status = view.status
    state = "down" if status is None else status.role
    if condition is not None and condition.state:
        state = condition.state
    out: dict[str, Any] = {
        "id": view.node_id,
        "address": view.address,
        "state": state,
        "cut": condition is not None and condition.cut,
        "up": status is not None,
        "note": row.note if row else view.reason,
        "flash": list(view.flashed) if view.flashed else None,
    }
    known = status or view.last
    if known is not None:
        # Of a node that does not answer the log is shown as it last was: that is what it will come back with.
        out |= {"term": known.term, "last": known.last_index, "commit": known.commit_index, "tail": _tail(known)}
    if status is not None:
        out |= _live(status, row) | {"sent": view.sent_rates}
    return out


def _tail(status: NodeStatus) -> list[list[int]]:
    return [[run.first_index, run.term] for run in status.tail]


def _live(status: NodeStatus, row: NodeRow | None) -> dict[str, Any]:
    return {
        "vote": status.vote,
        "first": status.first_index,
        "stable": status.stable_index,
        "applied": status.applied_index,
        "lag": row.lag_entries if row else -1,
        "fsync_ms": round(status.fsync_p99_us / 1000, 2) if status.fsync_p99_us >= 0 else None,
        "flush": status.flush_disk_type,
        "disk": status.store_bytes,
        "uptime_s": status.uptime_ms // 1000,
        "pid": status.pid,
        "pending": status.pending_count,
        "election_left_ms": status.election_left_ms,
        "election_timeout_ms": status.election_timeout_ms,
    }
