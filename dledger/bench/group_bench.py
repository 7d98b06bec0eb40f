"""What is measured of a whole group beside throughput: catching up, memory, idling."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

from dledger.bench.drive import drive_group
from dledger.bench.load import Load
from dledger.bench.meter import CpuMeter, resident_bytes
from dledger.bench.work import fill
from dledger.bench.worker import Task
from dledger.errors import DLedgerError, UnavailableError
from dledger.local_group import LocalGroup
from dledger.types import NodeStatus

if TYPE_CHECKING:
    from dledger.client import LedgerClient

__all__ = ["catch_up", "idle_cpu", "memory", "named_pids"]

_HEADER_BYTES: Final = 48
_CALLERS: Final = 64
_CATCH_UP_S: Final = 900.0
_SAMPLE_S: Final = 0.1
_MIB: Final = 1024 * 1024


def named_pids(group: LocalGroup, leader: str) -> dict[str, int]:
    """Return the process ids of a group by role, leader first."""
    followers = [node for node in group.nodes.values() if node.node_id != leader]
    pids = {"leader": group.nodes[leader].pid or 0}
    return pids | {f"follower {number}": node.pid or 0 for number, node in enumerate(followers, 1)}


class _Appends:
    """Callers that append for as long as the block lasts; `count` is what was acknowledged."""

    def __init__(self, client: LedgerClient, size_bytes: int) -> None:
        self._client = client
        self._body = os.urandom(size_bytes)
        self.count = 0
        self.failed = 0

    async def _caller(self) -> None:
        while True:
            try:
                await self._client.append(self._body)
            except DLedgerError:
                self.failed += 1
                await asyncio.sleep(_SAMPLE_S)
            else:
                self.count += 1

    async def rate(self, seconds: float) -> float:
        """Return the appends a second over so many seconds from now."""
        before, began = self.count, time.perf_counter()
        await asyncio.sleep(seconds)
        return (self.count - before) / (time.perf_counter() - began)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        tasks = [asyncio.ensure_future(self._caller()) for _ in range(_CALLERS)]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.gather(*tasks)


async def catch_up(directory: Path, log_bytes: int, size_bytes: int, window_s: float) -> dict[str, float]:
    """Let an empty follower catch up with a log of ``log_bytes`` while 64 callers append.

    Returns ``megabytes_per_s`` (of the log that was there when it started, from its first answer until it had
    committed that), ``seconds``, and the appends a second with three good nodes (``before``), with two (``without``)
    and meanwhile (``during``).

    Raises:
        UnavailableError: it did not catch up within a quarter of an hour.
    """
    async with LocalGroup(directory, group="bench") as group, group.connect() as client:
        leader = await group.wait_leader()
        victim = next(node for node in group.nodes if node != leader)
        appends = _Appends(client, size_bytes)
        async with appends.running():
            await appends.rate(1.0)
            before = await appends.rate(window_s)
        await group.kill(victim)
        shutil.rmtree(group.nodes[victim].data_dir)
        await fill(client, log_bytes // (size_bytes + _HEADER_BYTES), size_bytes)
        async with appends.running():
            await appends.rate(1.0)
            without = await appends.rate(window_s)
            count, wanted = appends.count, await client.commit_index()
            began = time.perf_counter()
            await group.restart(victim)
            answered, done = await _wait_for(client, victim, wanted)
            during = (appends.count - count) / (done - began)
        return {
            "megabytes_per_s": round(wanted * (size_bytes + _HEADER_BYTES) / (done - answered) / 1e6, 1),
            "seconds": round(done - answered, 3),
            "seconds_with_start": round(done - began, 3),
            "before": round(before, 1),
            "without": round(without, 1),
            "during": round(during, 1),
            "lost": round(1 - during / before, 3) if before else 0.0,
            "failed": float(appends.failed),
        }


async def _wait_for(client: LedgerClient, node_id: str, index: int) -> tuple[float, float]:
    """Return when a node first answered, and when it had committed ``index``."""
    answered = 0.0
    deadline = time.perf_counter() + _CATCH_UP_S
    while (now := time.perf_counter()) < deadline:
        for node in await client.status():
            if isinstance(node, NodeStatus) and node.node_id == node_id:
                answered = answered or now
                if node.commit_index >= index:
                    return answered, time.perf_counter()
        await asyncio.sleep(_SAMPLE_S)
    raise UnavailableError(f"{node_id} has not caught up after {_CATCH_UP_S:g} s")


async def memory(
    directory: Path, log_bytes: int, size_bytes: int, overload_s: float, overload_clients: int
) -> dict[str, float]:
    """Return the resident MiB of the largest node: new, after ``log_bytes``, and under overload.

    The overload are ``overload_clients`` processes, each with what saturates the group alone (64 batches of 64 in
    flight). ``overload_early`` is the highest of its first third, ``overload_late`` that of its last.

    Raises:
        UnavailableError: the group or a client failed.
    """
    async with LocalGroup(directory, group="bench") as group:
        pids = named_pids(group, await group.wait_leader())

        def largest() -> float:
            return round(max(resident_bytes(pid)[0] for pid in pids.values()) / _MIB, 1)

        fresh = largest()
        async with group.connect() as client:
            await fill(client, log_bytes // (size_bytes + _HEADER_BYTES), size_bytes)
        filled = largest()
        load = Load("append-batch", 64 * overload_clients, size_bytes, 64, overload_s, warmup_s=1.0)
        task = asyncio.ensure_future(drive_group(Task(group.peers, group.group, load), overload_clients, pids))
        taken: list[tuple[float, float]] = []
        while not task.done():
            taken.append((time.perf_counter(), largest()))
            await asyncio.wait([task], timeout=_SAMPLE_S)
        measured = await task
        # Before the window the clients start and warm up: what grows then is not yet overload.
        window_start = time.perf_counter() - overload_s
        samples = [size for at, size in taken if at >= window_start]
        third = max(len(samples) // 3, 1)
        return {
            "fresh": fresh,
            "filled": filled,
            "overload_early": max(samples[:third]),
            "overload_late": max(samples[-third:]),
            "highest": round(max(resident_bytes(pid)[1] for pid in pids.values()) / _MIB, 1),
            "overload_entries_per_s": round(measured.throughput, 1),
            "overload_failed": float(measured.failed),
        }


async def idle_cpu(directory: Path, seconds: float) -> dict[str, float]:
    """Return the share of a core (0.01: one per cent) that each node uses while nothing happens."""
    async with LocalGroup(directory, group="bench") as group:
        pids = named_pids(group, await group.wait_leader())
        await asyncio.sleep(2.0)  # imports and the first checks of health are over
        meter = CpuMeter(pids)
        await asyncio.sleep(seconds)
        used = meter.read()
        return {name: round(used.seconds[name] / used.elapsed_s, 4) for name in pids}
