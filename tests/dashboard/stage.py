"""Nodes that say what a test tells them to: a transport for the watcher, without processes and without gRPC."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from collections.abc import AsyncIterator
from typing import Any

from dledger.client.transport import Header
from dledger.dashboard.watcher import Condition, Watcher
from dledger.errors import UnavailableError
from dledger.types import LogRun, NodeEvent, NodeStatus, PeerStatus

HOST = "127.0.0.1"


def status(node_id: str, nodes: int = 3, **changes: Any) -> NodeStatus:
    """A follower of n0 in term 3, with 100 entries of which all are committed."""
    peers = tuple(
        PeerStatus(f"n{i}", f"{HOST}:{7000 + i}", True) for i in range(nodes) if f"n{i}" != node_id
    )  # fmt: skip
    base = NodeStatus(
        group="stage",
        node_id=node_id,
        address=f"{HOST}:{7000 + int(node_id[1:])}",
        role="follower",
        term=3,
        vote="n0",
        leader_id="n0",
        leader_address=f"{HOST}:7000",
        first_index=0,
        last_index=99,
        stable_index=99,
        commit_index=99,
        applied_index=99,
        peers=peers,
        store_bytes=5000,
        uptime_ms=60_000,
        pid=100 + int(node_id[1:]),
        role_since_ms=30_000,
        fsync_p99_us=2500,
        election_left_ms=700,
        election_timeout_ms=600,
        tail=(LogRun(36, 2), LogRun(80, 3)),
    )
    return dataclasses.replace(base, **changes)


def leading(node_id: str = "n0", nodes: int = 3, **changes: Any) -> NodeStatus:
    """The leader of term 3, which has heard of everybody."""
    found = status(node_id, nodes, role="leader", election_left_ms=-1, append_p50_us=2000, append_p99_us=9000)
    peers = tuple(
        dataclasses.replace(peer, match_index=99, next_index=100, lag_entries=0, last_contact_ms=20)
        for peer in found.peers
    )
    return dataclasses.replace(found, **({"peers": peers} | changes))


def event(number: int, name: str, age_ms: int = 10, **facts: str) -> NodeEvent:
    return NodeEvent(number, age_ms, name, facts)


class Stage:
    """``nodes``: id → what it says, or an error's words where it does not answer."""

    def __init__(self, nodes: int = 3) -> None:
        self.nodes: dict[str, NodeStatus | str] = {f"n{i}": status(f"n{i}", nodes) for i in range(nodes)}
        self.nodes["n0"] = leading(nodes=nodes)
        self.conditions: dict[str, Condition] = {}
        self.asked: set[str] = set()
        self.asks = 0
        self.closed = False

    def change(self, node_id: str, **changes: Any) -> None:
        found = self.nodes[node_id]
        assert isinstance(found, NodeStatus)
        self.nodes[node_id] = dataclasses.replace(found, **changes)

    async def status(self, address: str, timeout: float) -> tuple[Header, NodeStatus]:
        self.asked.add(address)
        self.asks += 1
        found = self.nodes[f"n{int(address.rpartition(':')[2]) - 7000}"]
        if isinstance(found, str):
            raise UnavailableError(f"{address}: {found}")
        return Header(node_id=found.node_id, term=found.term), found

    async def close(self) -> None:
        self.closed = True

    def watcher(self, named: bool = True) -> Watcher:
        addresses = {node_id: f"{HOST}:{7000 + int(node_id[1:])}" for node_id in self.nodes}
        given = addresses if named else {addresses["n0"]: addresses["n0"]}
        return Watcher("stage", given, lambda: self, conditions=lambda: self.conditions)  # type: ignore[arg-type, return-value]


@contextlib.asynccontextmanager
async def watching(stage: Stage, *, named: bool = True) -> AsyncIterator[Watcher]:
    watcher = stage.watcher(named)
    await watcher.start()
    try:
        await looked(watcher, lambda now: bool(now.get("nodes")))
        yield watcher
    finally:
        await watcher.stop()


async def looked(watcher: Watcher, enough: Any) -> dict[str, Any]:
    """Follow the watcher until the present satisfies; returns it."""
    async with asyncio.timeout(30):
        if enough(watcher.full()):
            return watcher.full()
        async for now in watcher.updates():
            if enough(now):
                return now
    raise AssertionError("the watcher ended")
