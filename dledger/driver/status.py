"""What one node says of itself, put together for operators."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from dledger.raft.messages import NO_INDEX, NodeId
from dledger.rpc.interfaces import Transport
from dledger.types import LogRun, NodeStatus, PeerStatus
from dledger.version import VERSION

if TYPE_CHECKING:
    from dledger.driver.driver import Driver

__all__ = ["node_status"]

_TAIL_COUNT = 64
"""Entries whose terms the status tells."""


def node_status(driver: Driver, transport: Transport, now_ms: int) -> NodeStatus:
    """Return the status of a started node; cheap, no disk but one statvfs."""
    core, config, addresses = driver.core, driver.config, driver.members()
    leader = core.leader_id or ""
    free, total = driver.store.disk_space()
    append_p50_us, append_p99_us = driver.appends.times.percentiles_us(now_ms / 1000)
    return NodeStatus(
        group=driver.group,
        node_id=driver.node_id,
        address=addresses[driver.node_id],
        role=core.role.value,
        term=core.term,
        vote=core.vote or "",
        leader_id=leader,
        leader_address=addresses.get(leader, ""),
        first_index=driver.store.first_index,
        last_index=core.last_index,
        stable_index=core.stable_index,
        commit_index=core.commit_index,
        applied_index=driver.applied_index,
        peers=tuple(
            _peer_status(driver, transport, peer, address, now_ms)
            for peer, address in sorted(addresses.items())
            if peer != driver.node_id
        ),
        store_path=driver.store.directory,
        store_type=config.store_type,
        flush_disk_type=config.flush_disk_type,
        store_bytes=driver.store.end_pos,
        disk_free_bytes=free,
        disk_total_bytes=total,
        uptime_ms=now_ms - driver.started_ms,
        version=VERSION,
        pid=os.getpid(),
        pending_count=driver.appends.pending_count if core.is_leader else 0,
        pending_bytes=driver.appends.pending_bytes,
        session_count=len(driver.store.sessions),
        role_since_ms=now_ms - driver.role_since_ms,
        fsync_p99_us=driver.disk.write_p99_us(),
        note=_note(driver),
        append_p50_us=append_p50_us,
        append_p99_us=append_p99_us,
        election_left_ms=-1 if core.is_leader else max(core.deadline_ms - now_ms, 0),
        election_timeout_ms=config.election_timeout_ms,
        tail=_tail(driver),
        truncated_count=driver.recent.truncated_count,
        events=driver.recent.events(now_ms),
    )


def _peer_status(driver: Driver, transport: Transport, peer: NodeId, address: str, now_ms: int) -> PeerStatus:
    progress = driver.core.progress.get(peer)
    connected = transport.is_connected(peer)
    sent = driver.recent.sent_to(peer)
    if progress is None:
        return PeerStatus(peer, address, connected, sent=sent)
    return PeerStatus(
        peer,
        address,
        connected,
        match_index=progress.match_index,
        next_index=progress.next_index,
        lag_entries=driver.core.last_index - progress.match_index,
        inflight_count=len(progress.inflight),
        state=progress.state.value,
        last_contact_ms=now_ms - progress.last_contact_ms,
        sent=sent,
    )


def _tail(driver: Driver) -> tuple[LogRun, ...]:
    log = driver.core.log
    first = max(log.first_index, log.last_index - _TAIL_COUNT + 1)
    return tuple(LogRun(run.first_index, run.term) for run in log.runs_between(first, log.last_index))


def _note(driver: Driver) -> str:
    """What an operator should know, in words; empty if all is well."""
    core = driver.core
    if not driver.running:
        return "stopped"
    if core.disk_full:
        return "disk full: takes no entries until there is room"
    if core.votes_provisionally and core.last_index != NO_INDEX:
        return "catching up after lost data: its word counts only together with all others'"
    if core.transferee is not None:
        return f"handing leadership to {core.transferee}"
    if core.is_leader and not core.is_leader_ready:
        return "elected, waiting for a majority to hold the first entry of the term"
    if core.is_leader and core.forgetful_peers and core.commit_index < core.last_index:
        names = ", ".join(core.forgetful_peers)
        return f"{names} lost its data and counts only together with all others: one that has not must come back"
    return ""
