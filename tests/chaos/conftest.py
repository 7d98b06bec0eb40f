"""Groups that can be hurt, a load on them, and what their logs say of leadership."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from dledger import AppendResult, LedgerClient
from dledger.chaos.failover import Load, read_log
from dledger.chaos.group import ChaosGroup
from dledger.checker import check


@pytest.fixture
def chaos_group(tmp_path: Path) -> Callable[..., ChaosGroup]:
    """Make a group, to be used with ``async with``: its processes are ended by their pids at the end."""

    def make(**options: object) -> ChaosGroup:
        return ChaosGroup(tmp_path / "group", **options)  # type: ignore[arg-type]

    return make


class TermLoad(Load):
    """As `Load`; ``terms`` has the term of each acknowledgement in ``times``."""

    def __init__(self, client: LedgerClient, concurrency: int, entry_bytes: int) -> None:
        self.terms: list[int] = []
        super().__init__(client, concurrency, entry_bytes)

    def _acknowledged(self, operation: int, result: AppendResult) -> None:
        self.terms.append(result.term)
        super()._acknowledged(operation, result)


@asynccontextmanager
async def loaded(group: ChaosGroup, concurrency: int = 8, timeout: float = 30.0) -> AsyncIterator[TermLoad]:
    """Appends go on meanwhile; at the end all that was acknowledged must be in the log, at its place, once."""
    async with group.connect_as_client(timeout=timeout) as client:
        load = TermLoad(client, concurrency, entry_bytes=64)
        load.pace_s = 0.005
        await load.wait_acks(50)
        await _can_spare_one(group)
        try:
            yield load
        finally:
            await load.stop()
        async with group.connect(session=False) as reader:
            log, _ = await read_log(reader)
    verdict = check(load.history, log)
    assert verdict.ok, verdict.report()
    assert verdict.acknowledged


async def _can_spare_one(group: ChaosGroup) -> None:
    """Wait until every node has asked a leader what it may have forgotten: before that a new group needs all three."""
    async with asyncio.timeout(30):
        while any(status is None or status.note for status in (await group.status()).values()):  # noqa: ASYNC110
            await asyncio.sleep(0.05)


def leaders_since(group: ChaosGroup, marks: dict[str, int]) -> list[tuple[str, int]]:
    """(node, term) of each leadership that was taken since `log_marks`, from the nodes' own logs."""
    found = []
    for node in group.nodes.values():
        for line in node.log_path.read_bytes()[marks[node.node_id] :].splitlines():
            if b'"role_changed"' in line:
                row = json.loads(line)
                if row["role"] == "leader":
                    found.append((node.node_id, int(row["term"])))
    return sorted(found, key=lambda item: item[1])


def log_marks(group: ChaosGroup) -> dict[str, int]:
    """Where each node's log ends now."""
    return {node.node_id: node.log_path.stat().st_size for node in group.nodes.values()}


async def until(condition: Callable[[], bool], timeout: float, what: str) -> float:
    """Poll a process's outside until ``condition``; return how long it took, in seconds."""
    loop = asyncio.get_running_loop()
    began = loop.time()
    while not condition():
        assert loop.time() - began < timeout, f"{what}: not within {timeout} s"
        await asyncio.sleep(0.005)
    return loop.time() - began
