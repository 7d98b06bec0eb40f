"""What the nodes of a group say of themselves, put side by side: who leads, who is behind, who is gone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dledger.cli.exit_codes import ExitCode
from dledger.cli.table import format_count, format_duration, format_size, render_table
from dledger.cli.words import plain_words
from dledger.types import DownNode, NodeStatus

__all__ = ["GroupView", "NodeRow"]

_NUMERIC_COLUMNS = frozenset({3, 4, 5, 6, 7})


@dataclass(frozen=True, slots=True)
class NodeRow:
    """One node. Numbers are -1 where they are not known; ``status`` is None for a node that does not answer."""

    node_id: str
    address: str
    up: bool
    role: str
    term: int
    first_index: int
    last_index: int
    commit_index: int
    applied_index: int
    lag_entries: int
    note: str
    status: NodeStatus | None = None

    def as_json(self) -> dict[str, object]:
        """Return the fields that ``status -o json`` promises."""
        return {name: getattr(self, name) for name in self.__slots__ if name != "status"}


class GroupView:
    """The group as its nodes' answers show it."""

    def __init__(self, group: str, nodes: Sequence[NodeStatus | DownNode]) -> None:
        self._up = [node for node in nodes if isinstance(node, NodeStatus)]
        self.group = self._up[0].group if self._up else group
        leaders = [node for node in self._up if node.role == "leader"]
        # A leader that has been replaced and does not know it yet has the lower term.
        self._leader = max(leaders, key=lambda node: node.term, default=None)
        self.rows = [self._row(node) for node in nodes]

    @property
    def leader_id(self) -> str | None:
        return self._leader.node_id if self._leader else None

    @property
    def leader(self) -> NodeStatus | None:
        return self._leader

    @property
    def term(self) -> int:
        """The highest term that any node knows, -1 if none answers."""
        return max((node.term for node in self._up), default=-1)

    @property
    def up_count(self) -> int:
        return len(self._up)

    @property
    def quorum(self) -> int:
        return len(self.rows) // 2 + 1

    @property
    def exit_code(self) -> ExitCode:
        """DONE with a leader and a majority up; else UNREACHABLE (nobody) or NO_QUORUM."""
        if not self._up:
            return ExitCode.UNREACHABLE
        return ExitCode.DONE if self._leader and self.up_count >= self.quorum else ExitCode.NO_QUORUM

    def _row(self, node: NodeStatus | DownNode) -> NodeRow:
        if not isinstance(node, NodeStatus):
            return NodeRow(node.node_id, node.address, False, "down", -1, -1, -1, -1, -1, -1, _reason(node))
        return NodeRow(
            node.node_id, node.address, True, node.role, node.term, node.first_index, node.last_index,
            node.commit_index, node.applied_index, self._lag(node), self._note(node), node,
        )  # fmt: skip

    def _lag(self, node: NodeStatus) -> int:
        """Entries that the leader has and this node has not (as durable, where the leader knows it)."""
        if self._leader is None:
            return max(other.last_index for other in self._up) - node.last_index
        if node.node_id == self._leader.node_id:
            return 0
        # A leader that has not heard of a peer since its election knows nothing of the peer's log.
        known = {peer.node_id: peer.lag_entries for peer in self._leader.peers if peer.match_index >= 0}
        return known.get(node.node_id, max(self._leader.last_index - node.last_index, 0))

    def _note(self, node: NodeStatus) -> str:
        notes = [node.note] if node.note else []
        if self._leader is not None and node.role == "leader" and node.node_id != self._leader.node_id:
            notes.append(f"deposed: {self._leader.node_id} leads term {self._leader.term}")
        return "; ".join(notes)

    def as_json(self) -> dict[str, object]:
        """Return what ``status -o json`` prints."""
        nodes = [row.as_json() for row in self.rows]
        return {"group": self.group, "leader": self.leader_id, "term": self.term, "nodes": nodes}

    def headline(self) -> str:
        """Return the group in one line."""
        spare = self.up_count - self.quorum
        health = f"tolerates {spare} failure{'' if spare == 1 else 's'}" if spare >= 0 else "NO QUORUM"
        committed = max((node.commit_index for node in self._up), default=-1)
        return (
            f"GROUP {self.group}   leader {self.leader_id or 'NONE'}   term {format_count(self.term)}   "
            f"committed {format_count(committed)}   {self.up_count} of {len(self.rows)} up, {health}"
        )

    def as_table(self) -> str:
        """Return the headline and one line for each node."""
        header = (
            "NODE",
            "ADDRESS",
            "ROLE",
            "TERM",
            "FIRST",
            "LAST",
            "COMMIT",
            "LAG",
            "FSYNC P99",
            "DISK",
            "UP",
            "NOTE",
        )
        return f"{self.headline()}\n{render_table(header, [_cells(row) for row in self.rows], _NUMERIC_COLUMNS)}"


def _reason(node: DownNode) -> str:
    return plain_words(node.reason).removeprefix(f"{node.address}: ")


def _cells(row: NodeRow) -> list[str]:
    numbers = [row.term, row.first_index, row.last_index, row.commit_index, row.lag_entries]
    role = row.role.upper() if row.role in {"leader", "down"} else row.role
    fsync = disk = up = "-"
    if row.status is not None:
        fsync = f"{row.status.fsync_p99_us / 1000:.1f} ms" if row.status.fsync_p99_us >= 0 else "-"
        disk = format_size(row.status.store_bytes)
        up = format_duration(row.status.uptime_ms)
    lag = "-" if row.role == "leader" else format_count(numbers[-1])
    return [row.node_id, row.address, role, *[format_count(n) for n in numbers[:-1]], lag, fsync, disk, up, row.note]
