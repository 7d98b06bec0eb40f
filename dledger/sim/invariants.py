"""What must hold at every step of a run, checked on what has just changed.

The simulator keeps its own copy of the committed log, taken from the first node that calls an entry committed. Every
other node must then agree with it to the byte (one comparison of the chain CRC proves a whole prefix), a new leader
must have all of it, and at the moment of commit a majority of platters must hold it.
"""

from __future__ import annotations

import json
from bisect import bisect_left
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

from dledger.raft.messages import (
    NO_INDEX,
    NO_TERM,
    AppendEntriesResponse,
    EntryType,
    HardState,
    HeartbeatResponse,
    LogId,
    Message,
    NodeId,
    RequestVote,
    RequestVoteResponse,
    Role,
)
from dledger.storage.layout import HEADER, HEADER_BYTES
from dledger.storage.small_files import HARD_STATE_NAME

if TYPE_CHECKING:
    from dledger.sim.cluster import Cluster, SimNode

__all__ = ["InvariantViolation", "Invariants"]

_BODY_END: Final = b"|"

_LOOK_BACK: Final = 64
"""So many entries are looked at where a node acknowledges after a start."""


class InvariantViolation(Exception):
    """The run has shown something that must never happen."""

    def __init__(self, name: str, message: str) -> None:
        super().__init__(f"{name}: {message}")
        self.name = name


class Invariants:
    """All checks of one run. The first violation is kept in `violation` and ends the run."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self.violation: InvariantViolation | None = None
        self.chains: list[int] = []
        self.terms: list[int] = []
        self.values: list[str | None] = []
        """The committed log: chain CRC, term and client's value (None: not a client's) by index."""
        self._commit_terms: list[int] = []  # the term in which each was first seen committed, or a later one
        self._leaders: dict[int, NodeId] = {}
        self._seen: dict[tuple[int, int], int] = {}
        self._votes: dict[tuple[NodeId, int], NodeId] = {}
        self._bodies: dict[str, bytes] = {}
        self._standing: dict[str, int] = {}

    def report(self, name: str, message: str) -> None:
        """Note a violation; the run ends before the next callback."""
        if self.violation is None:
            self.violation = InvariantViolation(name, message)
            self._cluster.trace.add("", "VIOLATION", name, message)

    def expect_body(self, value: str, body: bytes) -> None:
        """A client is about to append ``body``, known as ``value``."""
        self._bodies[value] = body

    # --- one node, after each of its callbacks ---

    def observe(self, node: SimNode) -> None:
        """Look at what has changed in ``node`` since the last look."""
        if self.violation is not None:
            raise self.violation
        driver = node.driver
        if driver is None or not driver.running:
            return
        core, store = driver.core, driver.store
        if core.hard_state is not node.hard_state:
            self._hard_state_changed(node, core.hard_state)
        if core.role is not node.role:
            node.role = core.role
            if core.role is Role.LEADER:
                self._elected(node)
        if store.last_index != node.last_index or store.last_term != node.last_term:
            self._log_changed(node)
        if store.committed_index != node.commit_index:
            self._commit_changed(node, store.committed_index)
        if self.violation is not None:
            raise self.violation

    def _hard_state_changed(self, node: SimNode, state: HardState) -> None:
        before = node.hard_state
        if before is not None:
            if state.term < before.term:
                self.report("monotonic term", f"{node.node_id} went from term {before.term} to {state.term}")
            elif state.term == before.term and before.vote is not None and state.vote != before.vote:
                self.report(
                    "one vote a term", f"{node.node_id} voted {before.vote}, then {state.vote} in term {state.term}"
                )
            if before.vote_floor is not None and state.vote_floor is None:
                node.promised = LogId(NO_TERM, NO_INDEX)  # whoever counted on it has dropped that
        else:
            self._check_memory(node, state)
        node.has_log |= state.vote_floor is None
        node.hard_state = state

    def _check_memory(self, node: SimNode, state: HardState) -> None:
        """A node that starts has what it promised to have, or knows that it may have lost it."""
        last = node.live_driver.core.log.last_id
        if last < node.promised and (state.vote_floor is None or state.vote_floor < node.promised):
            self.report(
                "what is lost is known",
                f"{node.node_id} starts with a log up to {last} and the vote floor {state.vote_floor}; it had promised "
                f"to have {node.promised}",
            )

    def _promises(self, node: SimNode, index: int) -> None:
        """Others may count on ``node`` to have its log durably up to ``index``."""
        term = node.live_driver.core.log.term_at(index)
        if term is not None:
            node.promised = max(node.promised, LogId(term, index))

    def _elected(self, node: SimNode) -> None:
        driver = node.live_driver
        term = driver.core.term
        other = self._leaders.setdefault(term, node.node_id)
        if other != node.node_id:
            self.report("election safety", f"{other} and {node.node_id} both lead term {term}")
        self._cluster.elections += 1
        node.commit_when_elected = driver.core.commit_index
        # §5.4: what was committed in a term is in the leaders of all *later* terms. A node may well win an old term
        # late, when its votes were long on the way and others have gone on.
        last, core = bisect_left(self._commit_terms, term) - 1, driver.core
        if last >= 0 and core.log.term_at(last) != self.terms[last]:
            self.report(
                "leader completeness",
                f"{node.node_id} leads term {term} with a log up to {core.last_index}; entry {last} of term "
                f"{self.terms[last]} was committed before, it has there {core.log.term_at(last)}",
            )

    def _same_prefix(self, node: SimNode, index: int) -> None:
        chain = node.quiet_chain_crc(index)
        if chain is not None and chain != self.chains[index]:
            self.report("state machine safety", f"the log of {node.node_id} up to {index} is not the committed one")

    def _log_changed(self, node: SimNode) -> None:
        """Log matching (§5.3): one (index, term), one prefix."""
        store = node.live_driver.store
        if store.last_index < node.last_index or store.last_term != node.last_term:
            node.acked_index = min(node.acked_index, store.committed_index)  # some may have been replaced
            node.promised = LogId(NO_TERM, NO_INDEX)
            self._promises(node, min(store.committed_index, node.live_driver.core.stable_index))
        node.last_index, node.last_term = store.last_index, store.last_term
        if store.last_index >= 0:
            chain = store.chain_crc_at(store.last_index)  # at the end of the log it needs no disk
            if self._seen.setdefault((store.last_index, store.last_term), chain) != chain:
                self.report(
                    "log matching",
                    f"{node.node_id}: entry {store.last_index} of term {store.last_term} ends two different logs",
                )

    def _commit_changed(self, node: SimNode, commit_index: int) -> None:
        if commit_index < node.commit_index:
            self.report("monotonic commit", f"{node.node_id}: from {node.commit_index} to {commit_index}")
            return
        node.commit_index = commit_index
        core = node.live_driver.core
        if core.role is Role.LEADER and commit_index > node.commit_when_elected:
            self._check_commit_rule(node, commit_index)
            self._promises(node, min(commit_index, core.stable_index))
        if commit_index >= len(self.chains):
            self._take_committed(node, commit_index)
        if self.violation is None and 0 <= commit_index < len(self.chains):
            self._same_prefix(node, commit_index)

    def _check_commit_rule(self, node: SimNode, commit_index: int) -> None:
        """§5.4.2: a leader counts copies of entries of its own term only (figure 8: an older one may yet be lost)."""
        core = node.live_driver.core
        term = core.log.term_at(commit_index)
        if term != core.term:
            self.report(
                "commit rests on the own term",
                f"{node.node_id} leads term {core.term} and commits up to {commit_index}, an entry of term {term}",
            )

    def _take_committed(self, node: SimNode, commit_index: int) -> None:
        """Entries are committed that nobody has called so before."""
        before = node.quiet_chain_crc(len(self.chains) - 1) if self.chains else None
        if before is not None and before != self.chains[-1]:
            self.report("state machine safety", f"{node.node_id} commits on top of another log")
            return
        # Where a damaged disk cannot show what it has committed, one that acknowledged it can.
        term = node.live_driver.core.log.term_at(commit_index)
        others = [
            other
            for other in self._cluster.nodes.values()
            if other is not node and other.up and other.live_driver.core.log.term_at(commit_index) == term
        ]
        for source in [node, *others]:
            for pos, data in source.quiet_read(len(self.chains), commit_index):
                self._check_durable(pos, data)
                self._take_entries(data)
            known = max(self._commit_terms[-1] if self._commit_terms else 0, node.live_driver.core.term)
            self._commit_terms.extend([known] * (len(self.chains) - len(self._commit_terms)))
            if len(self.chains) > commit_index or not node.disk.damage:
                return

    def _check_durable(self, pos: int, data: bytes) -> None:
        """A majority of platters hold these bytes now (a damaged one may have lost what it held)."""
        cluster = self._cluster
        have = sum(bool(node.disk.damage) or node.holds(pos, data) for node in cluster.nodes.values())
        if have * 2 <= len(cluster.nodes):
            self.report(
                "committed is durable on a majority",
                f"entries from {len(self.chains)} on are committed, {have} of {len(cluster.nodes)} disks have them",
            )

    def _take_entries(self, data: bytes) -> None:
        at = 0
        while at < len(data):
            magic, size, index, term, _, _, chain, _, _ = HEADER.unpack_from(data, at)
            if index != len(self.chains):
                self.report("log order", f"entry {index} stands at {len(self.chains)}")
                return
            if self.terms and term < self.terms[-1]:
                self.report("log order", f"entry {index} has term {term} after {self.terms[-1]}")
            self.chains.append(chain)
            self.terms.append(term)
            body = data[at + HEADER_BYTES : at + size]
            self.values.append(self._value(body, index) if magic == EntryType.NORMAL else None)
            at += size

    def _value(self, body: bytes, index: int) -> str:
        value = body.split(_BODY_END, 1)[0].decode("ascii", "replace")
        if self._bodies.get(value) != body:
            self.report("phantom", f"entry {index} holds {body[:40]!r}, which nobody wrote")
        before = self._standing.setdefault(value, index)
        if before != index:
            self.report("at most once", f"{value} stands at {before} and at {index}")
        return value

    # --- what clients are told ---

    def acknowledged(self, value: str, index: int, who: str) -> None:
        """A node says that ``value`` is committed at ``index``."""
        if index >= len(self.values):
            if any(node.disk.damage for node in self._cluster.nodes.values()):
                return  # perhaps no disk could show it yet; the history is judged at the end
            self.report("acknowledged is committed", f"{who} acknowledged {value} at {index}, which nobody committed")
        elif self.values[index] != value:
            self.report("acknowledged is committed", f"{who} acknowledged {value} at {index}: {self.values[index]}")

    # --- what nodes say to each other ---

    def sent(self, node: SimNode, peer: NodeId, message: Message) -> None:
        """Term and vote are durable before a message says them (§5.1, thesis §3.8)."""
        prospective = isinstance(message, RequestVote | RequestVoteResponse) and message.pre_vote
        granted = isinstance(message, RequestVoteResponse) and message.granted and not prospective
        if isinstance(message, AppendEntriesResponse | HeartbeatResponse):
            self._promises(node, min(message.match_index, node.live_driver.core.stable_index))
        if node.disk.damage:
            return  # entries and vote may be lost or unreadable behind its back; it must get by on its vote floor
        if isinstance(message, AppendEntriesResponse | HeartbeatResponse) and message.match_index > node.acked_index:
            self._acknowledges(node, message.match_index)
        if prospective or (message.term == node.durable_term and not granted):
            return
        state = _durable_hard_state(node)
        if state is None or state.term < message.term:
            self.report(
                "term durable before it is said",
                f"{node.node_id} sends {type(message).__name__} of term {message.term}; on disk is {state}",
            )
            return
        node.durable_term = state.term
        if granted:
            if state.term == message.term and state.vote != peer:
                self.report("vote durable before it is said", f"{node.node_id} for {peer}; on disk is {state}")
            other = self._votes.setdefault((node.node_id, message.term), peer)
            if other != peer:
                self.report("one vote a term", f"{node.node_id}: {other} and {peer} in term {message.term}")

    def _acknowledges(self, node: SimNode, match_index: int) -> None:
        """A follower says that it has the log durably up to ``match_index``."""
        first = max(node.acked_index + 1, match_index - _LOOK_BACK, 0)
        node.acked_index = match_index
        for pos, data in node.quiet_read(first, match_index):
            if not node.holds(pos, data):
                self.report(
                    "acknowledged is durable",
                    f"{node.node_id} acknowledges {match_index}; its disk does not have the entries from {first} on",
                )

    # --- at the end ---

    def check_equal_disks(self) -> None:
        """Replicas are byte-identical: every data file, up to the end of the committed log.

        Disks with damage at rest are left out: what nobody has read since may still be wrong there, unseen.
        """
        nodes = [node for node in self._cluster.nodes.values() if node.driver is not None and not node.disk.damage]
        if not nodes:
            return
        images = {node.node_id: list(_committed_bytes(node, len(self.chains) - 1)) for node in nodes}
        first = next(iter(images.values()))
        for node_id, image in images.items():
            if image != first:
                self.report("byte-identical replicas", f"the files of {node_id} differ from {nodes[0].node_id}'s")


def _durable_hard_state(node: SimNode) -> HardState | None:
    data = node.disk.durable_bytes(f"{node.directory}/{HARD_STATE_NAME}")
    if not data:
        return None
    value = json.loads(data[9:])  # behind the CRC
    return HardState(value["term"], value["vote"])


def _committed_bytes(node: SimNode, last_index: int) -> Iterator[bytes]:
    store = node.live_driver.store
    if last_index < 0:
        return
    (pos, data), *_ = node.quiet_read(last_index, last_index)
    end = pos + len(data)
    size = store.options.data_segment_bytes
    for start in range(0, end, size):
        file = node.disk.files[f"{node.directory}/data/{start:020d}"]
        yield bytes(file.data[: min(size, end - start)])
