"""Watches the nodes during a run: their own word about themselves ten times a second, and what they log."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Final

from dledger.chaos.load import Clock
from dledger.chaos.record import Election, NodeSample
from dledger.client.grpc_transport import GrpcClientTransport
from dledger.errors import DLedgerError
from dledger.types import NodeStatus

__all__ = ["LogEvent", "Monitor", "NodeView"]

_POLL_S: Final = 0.1
_STATUS_LIMIT_S: Final = 0.4
_ROLE_EVENT: Final = "role_changed"


@dataclass(frozen=True, slots=True)
class LogEvent:
    """One event of a node's log, at a time of the run's clock."""

    at: float
    node: str
    name: str
    role: str
    term: int


@dataclass(slots=True)
class NodeView:
    """What is known of a node now. ``state``: its role; ``silent`` where it does not answer."""

    node_id: str
    state: str = "silent"
    term: int = 0
    commit_index: int = -1
    last_index: int = -1
    pid: int = -1
    note: str = ""


class _LogTail:
    """Reads a node's log file as it grows; only whole lines."""

    def __init__(self, node_id: str, path: Path) -> None:
        self._node_id = node_id
        self._path = path
        self._offset = 0

    def read(self, offset_s: float) -> list[LogEvent]:
        """Return the new role changes; wall-clock times plus ``offset_s`` are the run's."""
        try:
            with open(self._path, "rb") as file:
                file.seek(self._offset)
                data = file.read()
        except OSError:
            return []
        whole = data.rfind(b"\n") + 1
        self._offset += whole
        lines = data[:whole].splitlines()
        return [event for line in lines if _ROLE_EVENT.encode() in line and (event := self._parse(line, offset_s))]

    def _parse(self, line: bytes, offset_s: float) -> LogEvent | None:
        try:
            row = json.loads(line)
            at = datetime.fromisoformat(row["timestamp"]).timestamp() + offset_s
            return LogEvent(at, self._node_id, str(row["event"]), str(row["role"]), int(row["term"]))
        except (ValueError, KeyError, TypeError):
            return None  # a line that was cut by kill -9


class Monitor:
    """Samples every node and follows the logs; ``override`` names a node's state where we know better (down, paused).

    ``samples``, ``log_events`` and ``elections`` grow. ``views`` is the present. Elections come from the logs where
    there are ``log_paths``, else from what the nodes say of themselves. ``on_election`` is told of each.
    ``transport`` opens the connections.
    """

    def __init__(
        self,
        addresses: Mapping[str, str],
        clock: Clock,
        *,
        log_paths: Mapping[str, Path],
        override: Callable[[str], str | None],
        is_cut: Callable[[str], bool],
        on_election: Callable[[Election], None],
        transport: Callable[[], GrpcClientTransport],
    ) -> None:
        self.samples: list[NodeSample] = []
        self.log_events: list[LogEvent] = []
        self.elections: list[Election] = []
        self.views = {node_id: NodeView(node_id) for node_id in addresses}
        self._addresses = dict(addresses)
        self._clock = clock
        self._wall_offset_s = clock() - time.time()
        self._tails = [_LogTail(node_id, path) for node_id, path in log_paths.items()]
        self._override = override
        self.is_cut = is_cut
        self._on_election = on_election
        self._transport = transport()
        self._known: set[tuple[str, int]] = set()
        self._task: asyncio.Task[None] | None = None

    def begin(self) -> None:
        """Start to watch. What the logs hold already is skipped."""
        for tail in self._tails:
            tail.read(self._wall_offset_s)
        self._task = asyncio.ensure_future(self._run())

    async def stop(self) -> None:
        """Look once more, then end."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        self.read_logs()
        await self._transport.close()

    def leader(self) -> str | None:
        """Who leads the highest term, as far as is known."""
        views = [view for view in self.views.values() if view.state == "leader" and not self._override(view.node_id)]
        return max(views, key=lambda view: view.term).node_id if views else None

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            begun = loop.time()
            await asyncio.gather(*(self._look(node_id, address) for node_id, address in self._addresses.items()))
            self.read_logs()
            await asyncio.sleep(max(0.0, _POLL_S - (loop.time() - begun)))

    async def _look(self, node_id: str, address: str) -> None:
        view = self.views[node_id]
        try:
            header, status = await self._transport.status(address, _STATUS_LIMIT_S)
            if not header.ok:
                raise header.error()
        except DLedgerError:
            view.state = "silent"
            view.pid = -1
        else:
            self._take(view, status)
        self.samples.append(
            NodeSample(
                round(self._clock(), 4),
                node_id,
                self._override(node_id) or view.state,
                self.is_cut(node_id),
                view.term,
                view.commit_index,
                view.last_index,
                view.pid,
            )
        )

    def _take(self, view: NodeView, status: NodeStatus) -> None:
        view.state, view.term = status.role, status.term
        view.commit_index, view.last_index = status.commit_index, status.last_index
        view.pid, view.note = status.pid, status.note
        if status.role == "leader" and not self._tails:
            self._elected(Election(self._clock(), view.node_id, status.term))

    def read_logs(self) -> None:
        """Take in what the nodes have logged since the last time."""
        events = [event for tail in self._tails for event in tail.read(self._wall_offset_s)]
        for event in sorted(events, key=lambda event: event.at):
            self.log_events.append(event)
            if event.role == "leader":
                self._elected(Election(event.at, event.node, event.term))

    def _elected(self, election: Election) -> None:
        if (election.node, election.term) not in self._known:
            self._known.add((election.node, election.term))
            self.elections.append(election)
            self._on_election(election)
