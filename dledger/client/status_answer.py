"""What is in a node's answers, as values of this package. Needs neither gRPC nor protobuf: only objects with the fields
of ``proto/dledger/v1``, whoever has decoded them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dledger.types import LogRun, NodeEvent, NodeStatus, PeerStatus

if TYPE_CHECKING:
    from dledger.v1 import admin_pb2

__all__ = ["STATUS_LIMIT_S", "node_status"]

STATUS_LIMIT_S = 0.8
"""A status is complete within a second, whoever is dead."""


def node_status(answer: admin_pb2.StatusResponse, address: str) -> NodeStatus:
    """Return the status in an answer of the node at ``address``."""
    peers = tuple(
        PeerStatus(
            peer.node_id,
            peer.address,
            peer.connected,
            peer.match_index,
            peer.next_index,
            peer.lag_entries,
            peer.inflight_count,
            peer.state,
            peer.last_contact_ms,
            dict(peer.sent),
        )
        for peer in answer.peers
    )
    return NodeStatus(
        group=answer.group,
        node_id=answer.node_id,
        address=answer.address or address,
        role=answer.role,
        term=answer.term,
        vote=answer.vote,
        leader_id=answer.header.leader_id,
        leader_address=answer.header.leader_address,
        first_index=answer.first_index,
        last_index=answer.last_index,
        stable_index=answer.stable_index,
        commit_index=answer.commit_index,
        applied_index=answer.applied_index,
        peers=peers,
        store_path=answer.store_path,
        store_type=answer.store_type,
        flush_disk_type=answer.flush_disk_type,
        store_bytes=answer.store_bytes,
        disk_free_bytes=answer.disk_free_bytes,
        disk_total_bytes=answer.disk_total_bytes,
        uptime_ms=answer.uptime_ms,
        version=answer.version,
        pid=answer.pid,
        pending_count=answer.pending_count,
        pending_bytes=answer.pending_bytes,
        session_count=answer.session_count,
        role_since_ms=answer.role_since_ms,
        fsync_p99_us=answer.fsync_p99_us,
        note=answer.note,
        append_p50_us=answer.append_p50_us,
        append_p99_us=answer.append_p99_us,
        election_left_ms=answer.election_left_ms,
        election_timeout_ms=answer.election_timeout_ms,
        tail=tuple(LogRun(run.first_index, run.term) for run in answer.tail),
        truncated_count=answer.truncated_count,
        events=tuple(NodeEvent(event.number, event.age_ms, event.name, dict(event.facts)) for event in answer.events),
    )
