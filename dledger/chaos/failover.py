"""A campaign against the leader: hurt it under load, round after round, measure the pause, judge the log at the end.

Real processes, fsync on, one client with many appends in flight. In each round the leader is killed (``kill -9``), hung
(SIGSTOP) or asked to end (SIGTERM) while the appends go on; the write gap is the longest time between two
acknowledgements of that round. Then the node comes back and catches up, under a lighter load. At the end everything
that was acknowledged is compared with a linearizable read, and the nodes' files with each other, byte for byte.

``scripts/failover.py --rounds 20`` runs it and prints a table, or JSON with ``-o json``.
"""

from __future__ import annotations

import asyncio
import enum
import hashlib
import signal
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

from dledger.checker import FinalLog, History, Verdict, check
from dledger.errors import DLedgerError, Outcome, UnavailableError
from dledger.local_group import LocalGroup
from dledger.types import AppendResult
from dledger.verdict import longest_gap

if TYPE_CHECKING:
    from dledger.client import LedgerClient

__all__ = ["Campaign", "Harm", "Load", "Round", "log_digest", "read_log", "run_campaign"]

_HEADER_BYTES: Final = 48
_SETTLE_ACKS: Final = 200
"""Acknowledgements of the new leader that end the measured stretch: the pause is over when appends flow again."""

_CALM_PACE_S: Final = 0.02
"""Each task's pause between appends while the hurt node comes back: it catches up under load, but not a full one."""

_CHUNK_BYTES: Final = 1 << 20


class Harm(enum.Enum):
    """What is done to the leader."""

    KILL = "kill"
    """SIGKILL: the process is gone, its sockets are closed by the kernel."""
    HANG = "hang"
    """SIGSTOP: its connections stay and answer nothing; woken (SIGCONT) once another leads."""
    TERM = "term"
    """SIGTERM: a graceful end, leadership is handed over first."""


@dataclass(frozen=True, slots=True)
class Round:
    """One round: who was hurt, who took over, and for how many milliseconds nothing was acknowledged."""

    number: int
    hurt: str
    elected: str
    term: int
    gap_ms: float


@dataclass(slots=True)
class Campaign:
    """What a campaign found. ``verdict`` judges the history of all appends against the final log."""

    rounds: list[Round]
    verdict: Verdict
    failures: list[str]
    identical: int
    nodes: int

    @property
    def median_ms(self) -> float:
        return statistics.median(found.gap_ms for found in self.rounds)

    @property
    def worst_ms(self) -> float:
        return max(found.gap_ms for found in self.rounds)

    @property
    def ok(self) -> bool:
        """Nothing lost, doubled or out of order, no append failed, all logs identical."""
        return self.verdict.ok and not self.failures and self.identical == self.nodes

    def summary(self) -> dict[str, object]:
        """Return everything as JSON has it; times in milliseconds."""
        return {
            "ok": self.ok,
            "rounds": [asdict(found) for found in self.rounds],
            "gap_median_ms": round(self.median_ms, 1),
            "gap_worst_ms": round(self.worst_ms, 1),
            "appends": self.verdict.appends,
            "acknowledged": self.verdict.acknowledged,
            "violations": {kind.value: count for kind, count in self.verdict.counts.items()},
            "failed_appends": len(self.failures),
            "identical_logs": self.identical,
            "nodes": self.nodes,
        }


class Load:
    """``concurrency`` tasks that append one after another through one client; each task's entries are one stream.

    ``history`` has what they did, ``times`` when acknowledgements came (seconds, ascending), ``failures`` what the
    client library could not ride out.
    """

    def __init__(self, client: LedgerClient, concurrency: int, entry_bytes: int = 256) -> None:
        self.history = History()
        self.times: list[float] = []
        self.failures: list[str] = []
        self.term = -1
        self.pace_s = 0.0
        """Pause of each task between two appends, in seconds."""
        self._client = client
        self._padding = b"." * entry_bytes
        self._entry_bytes = entry_bytes
        self._stopping = False
        self._waiters: list[tuple[Callable[[], bool], asyncio.Future[None]]] = []
        self._tasks = [asyncio.ensure_future(self._work(number)) for number in range(concurrency)]

    async def stop(self) -> None:
        """Let every append under way end, and begin no other."""
        self._stopping = True
        await asyncio.gather(*self._tasks)

    async def wait(self, condition: Callable[[], bool], timeout: float, what: str) -> None:
        """Wait until ``condition`` holds; it is looked at after each acknowledgement and failure.

        Raises:
            UnavailableError: not within ``timeout`` seconds; names ``what`` was waited for.
        """
        if condition():
            return
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        waiter = (condition, future)
        self._waiters.append(waiter)
        try:
            async with asyncio.timeout(timeout):
                await future
        except TimeoutError:
            raise UnavailableError(f"{what}: not after {timeout:g} s; {len(self.times)} acknowledged") from None
        finally:
            self._waiters.remove(waiter)

    async def wait_acks(self, count: int, timeout: float = 30.0) -> None:
        """Wait for ``count`` more acknowledgements."""
        goal = len(self.times) + count
        await self.wait(lambda: len(self.times) >= goal, timeout, f"{count} acknowledgements")

    async def _work(self, worker: int) -> None:
        history, append = self.history, self._client.append
        number = 0
        while not self._stopping:
            value = f"{worker}:{number}"
            number += 1
            body = (value.encode() + self._padding)[: max(self._entry_bytes, len(value))]
            operation = history.invoke(worker, value, time.monotonic(), stream=worker)
            try:
                result = await append(body)
            except DLedgerError as error:
                history.fail(operation, time.monotonic(), definite=error.outcome is Outcome.DEFINITE)
                self.failures.append(f"{value}: {error.code.name}: {error}")
                self._look()
            else:
                self._acknowledged(operation, result)
            if self.pace_s:
                await asyncio.sleep(self.pace_s)

    def _acknowledged(self, operation: int, result: AppendResult) -> None:
        now = time.monotonic()
        self.history.acknowledge(operation, result.index, now)
        self.times.append(now)
        self.term = max(self.term, result.term)
        if self._waiters:
            self._look()

    def _look(self) -> None:
        for condition, future in self._waiters:
            if not future.done() and condition():
                future.set_result(None)


async def read_log(client: LedgerClient) -> tuple[FinalLog, int]:
    """Return the committed log as the checker takes it, by a linearizable read, and its end as a byte position."""
    commit_index = await client.commit_index()
    values: list[str | None] = [None] * (commit_index + 1)
    async for entry in client.read(0):
        if entry.index <= commit_index:
            values[entry.index] = entry.body.rstrip(b".").decode()
    last = await client.get(commit_index)
    return values, last.pos + _HEADER_BYTES + len(last.body)


def log_digest(node_dir: Path, end_pos: int) -> str:
    """Return a hash of a node's data files up to the byte ``end_pos``: headers, CRCs, bodies and fillers.

    Replicas are byte-identical, so equal logs have equal digests.
    """
    digest = hashlib.sha256()
    for path in sorted((node_dir / "data").iterdir()):
        left = end_pos - int(path.name)
        with open(path, "rb") as file:
            while left > 0 and (chunk := file.read(min(left, _CHUNK_BYTES))):
                digest.update(chunk)
                left -= len(chunk)
    return digest.hexdigest()


@dataclass(slots=True)
class _Run:
    group: LocalGroup
    load: Load
    harm: Harm
    warm_acks: int
    timeout: float
    on_round: Callable[[Round], None]
    rounds: list[Round] = field(default_factory=list)

    async def round(self, number: int) -> None:
        """Hurt the leader, measure, bring it back."""
        load, group = self.load, self.group
        await load.wait_acks(self.warm_acks, self.timeout)
        hurt = await group.wait_leader(self.timeout)
        term = load.term
        began = len(load.times)
        hurt_at = time.monotonic()
        ending = self._hurt(hurt)
        await load.wait(lambda: load.term > term, self.timeout, f"an acknowledgement of a leader after {hurt}")
        await load.wait_acks(_SETTLE_ACKS, self.timeout)
        gap = longest_gap(load.times[max(began - 1, 0) :], hurt_at)
        elected = await group.wait_leader(self.timeout, other_than=hurt)
        found = Round(number, hurt, elected, load.term, round((gap or 0.0) * 1000, 1))
        self.rounds.append(found)
        self.on_round(found)
        load.pace_s = _CALM_PACE_S  # a full load and a starting interpreter share the machine badly
        await ending
        if self.harm is Harm.HANG:
            group.resume(hurt)
        else:
            await group.restart(hurt)
        await group.wait_caught_up(hurt, self.timeout)
        load.pace_s = 0.0

    def _hurt(self, node_id: str) -> asyncio.Future[None]:
        """Signal at once; the future is done when the process has ended (a hung one: at once)."""
        group = self.group
        if self.harm is Harm.KILL:
            group.send_signal(node_id, signal.SIGKILL)
            return asyncio.ensure_future(group.kill(node_id))
        if self.harm is Harm.TERM:
            return asyncio.ensure_future(group.stop_node(node_id))
        group.pause(node_id)
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        done.set_result(None)
        return done


async def run_campaign(
    group: LocalGroup,
    *,
    rounds: int,
    harm: Harm = Harm.KILL,
    concurrency: int = 64,
    entry_bytes: int = 256,
    warm_acks: int = 1000,
    timeout: float = 30.0,
    on_round: Callable[[Round], None] = lambda _: None,
) -> Campaign:
    """Run a campaign on a started group, and end the group's processes.

    ``warm_acks`` acknowledgements precede each harm; ``timeout`` (seconds) bounds each append and each wait.

    Raises:
        UnavailableError: no other leader, or the hurt node did not come back, within ``timeout``.
    """
    async with group.connect(timeout=timeout) as client:
        load = Load(client, concurrency, entry_bytes)
        run = _Run(group, load, harm, warm_acks, timeout, on_round)
        try:
            for number in range(1, rounds + 1):
                await run.round(number)
        finally:
            await load.stop()
        log, end_pos = await read_log(client)
    for node_id in group.nodes:
        await group.wait_caught_up(node_id, timeout)
    await group.stop()
    digests = [await asyncio.to_thread(log_digest, node.data_dir, end_pos) for node in group.nodes.values()]
    identical = max(digests.count(digest) for digest in digests)
    verdict = await asyncio.to_thread(check, load.history, log)
    return Campaign(run.rounds, verdict, load.failures, identical, len(digests))
