"""A node's page for Prometheus: what it says of itself in `NodeStatus`, and what was measured beside it.

Names and stems are DLedger's where DLedger has them, with real units; ``docs/metrics.md`` has the list.
"""

from __future__ import annotations

import platform
from bisect import bisect_right
from collections import deque
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Final

from dledger.metrics.health import readiness
from dledger.metrics.peers import MeteredTransport, PeerTimes
from dledger.metrics.registry import Family, counter, gauge, histogram, render
from dledger.raft.messages import Role
from dledger.types import NodeStatus, PeerStatus
from dledger.version import VERSION

if TYPE_CHECKING:
    from dledger.driver.driver import Driver

__all__ = ["SAMPLE_S", "NodeMetrics"]

SAMPLE_S: Final = 0.5
"""How often `NodeMetrics.sample` wants to be called: the resolution of a peer's lag in seconds."""

_SAMPLES_KEPT: Final = 2400


def _installed(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "unknown"


class NodeMetrics:
    """The metrics of one started node. `page` may be called at any time on the node's loop."""

    def __init__(self, driver: Driver, transport: MeteredTransport) -> None:
        self._driver = driver
        self._transport = transport
        self._labels = {"group": driver.group, "node": driver.node_id}
        self._build = {
            **self._labels,
            "version": VERSION,
            "grpc": _installed("grpcio"),
            "protobuf": _installed("protobuf"),
            "python": platform.python_version(),
        }
        self._last_indexes: deque[tuple[int, float]] = deque(maxlen=_SAMPLES_KEPT)

    def sample(self, now_s: float) -> None:
        """Remember how long the log is; see `SAMPLE_S`."""
        core = self._driver.core
        if not core.is_leader:
            self._last_indexes.clear()
        elif not self._last_indexes or self._last_indexes[-1][0] != core.last_index:
            self._last_indexes.append((core.last_index, now_s))

    def lag_seconds(self, match_index: int, now_s: float) -> float:
        """Return for how long this leader has had an entry that a peer at ``match_index`` lacks; 0: it lacks none.

        A lower bound where the peer was behind before this node led or before what is remembered.
        """
        if match_index >= self._driver.core.last_index or not self._last_indexes:
            return 0.0
        known = list(self._last_indexes)
        at = bisect_right(known, match_index, key=lambda item: item[0])
        return max(now_s - known[at][1], 0.0) if at < len(known) else 0.0

    def page(self, now_s: float) -> bytes:
        """Return the page; ``now_s`` is the loop's time."""
        return render(self.families(now_s))

    def families(self, now_s: float) -> Iterator[Family]:
        """Yield every metric of the node."""
        self.sample(now_s)
        status = self._driver.status()
        yield gauge("dledger_build_info", "Always 1; the labels say what runs.", self._build, 1)
        yield from self._roles(status)
        yield from self._log(status)
        yield from self._peers(status, now_s)
        yield from self._appends(status)
        yield from self._disk(status)

    def _gauge(self, name: str, text: str, value: float) -> Family:
        return gauge(name, text, self._labels, value)

    def _roles(self, status: NodeStatus) -> Iterator[Family]:
        counts = self._driver.recent.counts
        roles = Family("dledger_role", "gauge", "1 for the role that the node has, 0 for the others.")
        for role in Role:
            roles.add({**self._labels, "role": role.value}, int(role.value == status.role))
        yield roles
        yield self._gauge("dledger_term", "The node's term.", status.term)
        yield self._gauge("dledger_has_leader", "1 while the node knows a leader.", int(bool(status.leader_id)))
        health = readiness(self._driver)
        yield self._gauge("dledger_ready", "1 while the node is fit for use, as /readyz says.", int(health.ready))
        yield self._gauge("dledger_uptime_seconds", "Time since the node started.", status.uptime_ms / 1000)
        yield counter(
            "dledger_leader_changes_total",
            "How often the node saw a leader appear.",
            self._labels,
            counts["follows"] + counts["elected"],
        )
        won, lost = counts["elected"], counts[f"election_lost:{Role.CANDIDATE.value}"]
        open_now = int(status.role == Role.CANDIDATE.value)
        results = {"won": won, "lost": lost, "undecided": max(counts["campaign_started"] - won - lost - open_now, 0)}
        elections = Family("dledger_elections_total", "counter", "Elections in which the node stood, by their end.")
        for result, number in results.items():
            elections.add({**self._labels, "result": result}, number)
        yield elections

    def _log(self, status: NodeStatus) -> Iterator[Family]:
        yield self._gauge("dledger_first_index", "First entry that is stored.", status.first_index)
        yield self._gauge("dledger_last_index", "Last entry in the log; -1: none.", status.last_index)
        yield self._gauge("dledger_stable_index", "Last entry that is durable here; -1: none.", status.stable_index)
        yield self._gauge("dledger_commit_index", "Last entry known to be committed; -1: none.", status.commit_index)
        yield self._gauge("dledger_applied_index", "Last entry applied here; -1: none.", status.applied_index)
        entries = max(status.last_index - max(status.first_index, 0) + 1, 0)
        yield self._gauge("dledger_entries", "Entries stored.", entries)
        yield counter(
            "dledger_truncated_entries_total",
            "Uncommitted entries cut because a leader's log has others there.",
            self._labels,
            status.truncated_count,
        )

    def _peers(self, status: NodeStatus, now_s: float) -> Iterator[Family]:
        leads = status.role == Role.LEADER.value
        rows = [({**self._labels, "peer": peer.node_id}, peer) for peer in status.peers]
        connected = Family("dledger_peer_connected", "gauge", "1 while the link to the peer works.")
        match = Family("dledger_peer_match_index", "gauge", "Last entry durable at the peer; -1: not leading.")
        lag = Family("dledger_peer_lag_entries", "gauge", "Entries that the peer lacks; 0 unless this node leads.")
        lag_s = Family(
            "dledger_peer_lag_seconds", "gauge", "For how long the peer has lacked one; 0 unless this node leads."
        )
        messages = Family("dledger_peer_messages_total", "counter", "Messages sent to the peer, by kind.")
        for labels, peer in rows:
            connected.add(labels, int(peer.connected))
            match.add(labels, peer.match_index if leads else -1)
            lag.add(labels, max(peer.lag_entries, 0) if leads else 0)
            lag_s.add(labels, self._peer_lag_seconds(peer, now_s) if leads else 0)
            for kind, number in sorted(peer.sent.items()):
                messages.add({**labels, "kind": kind}, number)
        yield from (connected, match, lag, lag_s, messages)
        times = [(labels, self._transport.times.get(peer.node_id) or PeerTimes()) for labels, peer in rows]
        yield histogram(
            "dledger_peer_round_trip_seconds",
            "Heartbeat to answer, one at a time.",
            [(labels, measured.round_trip) for labels, measured in times],
        )
        yield histogram(
            "dledger_replicate_entry_latency_seconds",
            "Entries sent to entries durable at the peer, one message at a time.",
            [(labels, measured.replicate) for labels, measured in times],
        )

    def _peer_lag_seconds(self, peer: PeerStatus, now_s: float) -> float:
        return self.lag_seconds(peer.match_index, now_s)

    def _appends(self, status: NodeStatus) -> Iterator[Family]:
        appends = self._driver.appends
        metrics = appends.metrics
        yield histogram(
            "dledger_append_entry_latency_seconds",
            "Proposal to commit, at the leader; one observation for all entries of a proposal.",
            [(self._labels, appends.times.latency)],
        )
        yield histogram(
            "dledger_append_entry_batch_bytes", "Bytes of a proposal, headers included.",
            [(self._labels, metrics.batch_bytes)],
        )  # fmt: skip
        yield histogram(
            "dledger_append_entry_batch_count", "Entries of a proposal.", [(self._labels, metrics.batch_entries)]
        )
        yield self._gauge("dledger_proposals_pending", "Entries taken and not committed.", status.pending_count)
        yield self._gauge("dledger_proposals_pending_bytes", "Bytes of the same.", status.pending_bytes)
        failed = Family("dledger_proposals_failed_total", "counter", "Batches refused or given up, by reason.")
        for reason in sorted({"not_leader", "leader_pending_full", *metrics.failed}):
            failed.add({**self._labels, "reason": reason}, metrics.failed[reason])
        yield failed
        yield self._gauge("dledger_sessions", "Producer sessions in the table.", status.session_count)

    def _disk(self, status: NodeStatus) -> Iterator[Family]:
        metrics = self._driver.appends.metrics
        yield histogram(
            "dledger_wal_fsync_duration_seconds",
            "A group commit, from its hand-over to the disk until it is durable (ASYNC_FLUSH: written).",
            [(self._labels, metrics.fsync)],
        )
        yield counter(
            "dledger_wal_bytes_written_total", "Bytes of entries written.", self._labels, metrics.written_bytes
        )
        yield self._gauge("dledger_entry_store_size_bytes", "Bytes of the log.", status.store_bytes)
        full = int(self._driver.core.disk_full)
        yield self._gauge("dledger_disk_full", "1 while the node takes nothing for want of room.", full)
        if status.disk_total_bytes > 0:
            ratio = status.disk_free_bytes / status.disk_total_bytes
            yield self._gauge("dledger_disk_free_ratio", "Free part of the disk, 0 to 1.", ratio)
