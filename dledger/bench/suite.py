"""The whole measurement: every row, this project and its peers in turn, in one go.

Rounds alternate: in each, every contender of a row comes once, in an order that turns from round to round, with a
fresh cluster each time; those that take long to start follow with one cluster for all their rows. A figure is the
median of the rounds, and what the table shows beside each other was measured within minutes.
"""

from __future__ import annotations

import asyncio
import json
import os
import platform
import shutil
import statistics
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, nullcontext
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any, Final, TypeVar

from dledger.bench.drive import drive_group, echo_server
from dledger.bench.group_bench import catch_up, idle_cpu, memory, named_pids
from dledger.bench.load import Load, Measurement
from dledger.bench.peers import Peer, all_peers
from dledger.bench.rows import ASYNC, ECHO, OURS, ROWS, Row
from dledger.bench.store_bench import drop_from_cache, opening_times
from dledger.bench.work import fill
from dledger.bench.worker import Task
from dledger.errors import DLedgerError
from dledger.keep_awake import LATENCY_DEVICE, KeepAwake
from dledger.local_group import LocalGroup

__all__ = ["Suite", "SuiteOptions", "machine_facts", "save"]

_T = TypeVar("_T")

_GIB: Final = 1 << 30
_MIB: Final = 1 << 20
_HEADER_BYTES: Final = 48
_CHUNK_BYTES: Final = 1 << 20
_BODY_BYTES: Final = 256
_FAILURES: Final = (DLedgerError, OSError, ValueError, KeyError, TimeoutError)
"""What a contender's failure looks like: noted, and the suite goes on."""


@dataclass(frozen=True, slots=True)
class SuiteOptions:
    """What to measure and for how long. Sizes in bytes; `full` has those of the targets."""

    rounds: int = 5
    duration_s: float = 4.0
    warmup_s: float = 1.0
    rest_s: float = 0.0
    """Pause before each measurement: some hosts slow down whoever has been busy for long."""
    only: tuple[str, ...] = ()
    """Keys of rows; none: all."""
    peers: tuple[str, ...] | None = None
    """Names of peers; None: all that are installed."""
    read_bytes: int = 128 * _MIB
    catch_up_bytes: int = 128 * _MIB
    open_large_bytes: int = 512 * _MIB
    open_small_bytes: int = 128 * _MIB
    open_repeats: int = 5
    memory_bytes: int = 256 * _MIB
    overload_s: float = 10.0
    overload_clients: int = 10
    idle_s: float = 10.0

    def full(self) -> SuiteOptions:
        """Return the same with the sizes of the targets; the stores need 25 GB of room."""
        return replace(
            self,
            read_bytes=512 * _MIB,
            catch_up_bytes=_GIB,
            open_large_bytes=10 * _GIB,
            open_small_bytes=_GIB,
            memory_bytes=10 * _GIB,
            overload_s=30.0,
            idle_s=30.0,
        )


@dataclass(slots=True)
class _Result:
    """The rounds of one contender in one row."""

    values: list[float] = field(default_factory=list)
    runs: list[Any] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        out: dict[str, Any] = {"values": self.values, "runs": self.runs}
        if self.values:
            out["median"] = statistics.median(self.values)
        if self.errors:
            out["errors"] = self.errors
        return out


class Suite:
    """Measures below ``directory`` (on the disk that is meant); `results` may be read and saved at any time."""

    def __init__(self, options: SuiteOptions, directory: Path, say: Callable[[str], None]) -> None:
        self.options = options
        self._directory = directory
        self._say = say
        self._rows = [row for row in ROWS if not options.only or row.key in options.only]
        self._results: dict[str, dict[str, _Result]] = {}
        self._peers: list[Peer] = []
        self.skipped: dict[str, str] = {}
        self._versions: dict[str, str] = {}
        self._round = 0
        self._began = time.time()
        self.on_round: Callable[[], None] = lambda: None
        """Called after each round and each long measurement, to save what is there."""

    def results(self) -> dict[str, Any]:
        """Return everything measured so far, for `dledger.bench.report`."""
        rows = {
            key: {name: result.as_json() for name, result in contenders.items()}
            for key, contenders in self._results.items()
        }
        return {
            "format": 1,
            "taken": time.strftime("%Y-%m-%d %H:%M", time.gmtime(self._began)) + " UTC",
            "minutes": round((time.time() - self._began) / 60, 1),
            "machine": machine_facts(self._directory),
            "versions": self._versions,
            "settings": asdict(self.options),
            "skipped": self.skipped,
            "rows": rows,
        }

    async def run(self) -> None:
        """Measure every row that is wanted. A contender that fails is noted, and the suite goes on."""
        self._find_peers()
        for number in range(self.options.rounds):
            self._round = number
            self._say(f"round {number + 1} of {self.options.rounds}")
            await self._append_rows()
            await self._plain_rows()
            self.on_round()
        self._derive_follower_cpu()
        for kind, measure in (
            ("catch-up", self._catch_up), ("opening", self._opening), ("memory", self._memory), ("idle", self._idle),
        ):  # fmt: skip
            if any(row.kind == kind for row in self._rows):
                await self._attempt([row.key for row in self._rows if row.kind == kind], OURS, measure)
                self.on_round()

    def _find_peers(self) -> None:
        for peer in all_peers():
            if self.options.peers is not None and peer.name not in self.options.peers:
                self.skipped[peer.name] = "not asked for"
            elif (reason := peer.missing()) is not None:
                self.skipped[peer.name] = reason
            else:
                self._peers.append(peer)
                self._versions[peer.name] = peer.version()
        for name, reason in self.skipped.items():
            self._say(f"without {name}: {reason}")

    # ---------------------------------------------------------------- bookkeeping

    def _note(self, key: str, contender: str, value: float, run: object) -> None:
        result = self._results.setdefault(key, {}).setdefault(contender, _Result())
        result.values.append(value)
        result.runs.append(run)
        self._say(f"  {key:14} {contender:9} {value:12,.2f}")

    async def _attempt(self, keys: Sequence[str], contender: str, measure: Callable[[], Awaitable[None]]) -> None:
        await asyncio.sleep(self.options.rest_s)
        try:
            await measure()
        except _FAILURES as error:
            for key in keys:
                result = self._results.setdefault(key, {}).setdefault(contender, _Result())
                result.errors.append(f"{type(error).__name__}: {error}"[:500])
            self._say(f"  {', '.join(keys)} {contender} FAILED: {str(error)[-300:]}")

    def _note_load(self, row: Row, contender: str, found: Measurement) -> None:
        if row.unit == "ms":
            value = found.latency.percentile(50) / 1e6
        elif row.unit == "MB/s":
            value = found.megabytes_per_s
        else:
            value = found.throughput
        self._note(row.key, contender, round(value, 3), found.as_json())

    def _load(self, row: Row, contender: str = OURS) -> Load:
        load = row.echo_load if contender == ECHO and row.echo_load is not None else row.load
        if load is None:
            raise ValueError(f"row {row.key} has no load")
        return replace(load, duration_s=self.options.duration_s, warmup_s=self.options.warmup_s)

    def _turned(self, items: list[_T]) -> list[_T]:
        turn = self._round % max(len(items), 1)
        return items[turn:] + items[:turn]

    # ---------------------------------------------------------------- our groups

    @asynccontextmanager
    async def _folder(self) -> AsyncIterator[Path]:
        directory = Path(tempfile.mkdtemp(prefix="dledger-bench-", suffix="-data", dir=self._directory))
        try:
            yield directory
        finally:
            shutil.rmtree(directory, ignore_errors=True)

    @asynccontextmanager
    async def _group(self, flush: str = "SYNC_FLUSH", *, awake: bool = False) -> AsyncIterator[tuple[LocalGroup, str]]:
        settings = {"flushDiskType": flush, "keepCpusAwake": "busy" if awake else "never"}
        async with self._folder() as directory, LocalGroup(directory, group="bench", settings=settings) as group:
            yield group, await group.wait_leader()

    async def _append_rows(self) -> None:
        rows = [row for row in self._rows if row.kind == "appends" and not (row.awake and self._cannot_keep_awake())]
        if any(row.key == "follower-cpu" for row in self._rows) and not any(row.key == "batch" for row in rows):
            rows.append(next(row for row in ROWS if row.key == "batch"))
        for row in rows:
            load = self._load(row)
            contenders: list[tuple[str, Callable[[], Awaitable[None]]]] = [
                (OURS, partial(self._ours, row, load, OURS, "SYNC_FLUSH")),
                (ASYNC, partial(self._ours, row, load, ASYNC, "ASYNC_FLUSH")),
            ]
            for peer in self._peers:
                if not peer.is_slow_to_start and peer.supports(load):
                    contenders.append((peer.name, partial(self._peer, peer, row, load)))
            for name, measure in self._turned(contenders):
                await self._attempt([row.key], name, measure)
        for peer in self._peers:
            known = [row for row in rows if peer.supports(self._load(row))]
            if peer.is_slow_to_start and known:
                await self._attempt([row.key for row in known], peer.name, partial(self._slow, peer, known))

    def _cannot_keep_awake(self) -> bool:
        try:
            KeepAwake().close()
        except OSError as error:
            self.skipped["rows with processors kept awake"] = f"{LATENCY_DEVICE}: {error.strerror or error}"
            return True
        return False

    async def _ours(self, row: Row, load: Load, contender: str, flush: str) -> None:
        async with self._group(flush, awake=row.awake) as (group, leader):
            found = await drive_group(Task(group.peers, group.group, load), 1, named_pids(group, leader))
        self._note_load(row, contender, found)

    async def _peer(self, peer: Peer, row: Row, load: Load) -> None:
        async with peer.open(self._directory) as cluster:
            with KeepAwake() if row.awake else nullcontext():
                found = await peer.measure(cluster, load)
        self._note_load(row, peer.name, found)

    async def _slow(self, peer: Peer, rows: Sequence[Row]) -> None:
        async with peer.open(self._directory) as cluster:
            for row in rows:
                await asyncio.sleep(self.options.rest_s)
                with KeepAwake() if row.awake else nullcontext():
                    found = await peer.measure(cluster, self._load(row))
                self._note_load(row, peer.name, found)

    def _derive_follower_cpu(self) -> None:
        if not any(row.key == "follower-cpu" for row in self._rows):
            return
        for contender, result in self._results.get("batch", {}).items():
            for run in result.runs:
                costs = [cost for name, cost in run["cpu_us_per_entry"].items() if name.startswith("follower")]
                if costs:
                    self._note("follower-cpu", contender, max(costs), None)

    # ---------------------------------------------------------------- plain clients, and the echo

    async def _plain_rows(self) -> None:
        rows = [row for row in self._rows if row.kind == "plain"]
        if rows:
            await self._attempt([row.key for row in rows], OURS, lambda: self._plain_rows_of_a_group(rows))

    async def _plain_rows_of_a_group(self, rows: Sequence[Row]) -> None:
        entries = self.options.read_bytes // (_BODY_BYTES + _HEADER_BYTES)
        async with self._group() as (group, leader), echo_server(entries, _BODY_BYTES) as (echo, echo_pid):
            ours = Task(group.peers, group.group, Load())
            if any(not row.key.startswith("unary") for row in rows):
                async with group.connect() as client:
                    await fill(client, entries, _BODY_BYTES)

            def load_of(row: Row, contender: str) -> Load:
                load = self._load(row, contender)
                if row.key == "read-cold":
                    # One pass and no more: the second would find it all in the page cache.
                    load = replace(load, count=max(self.options.read_bytes // _CHUNK_BYTES - 1, 1), warmup_s=0.0)
                return load

            for row in rows:

                async def at_the_group(row: Row = row) -> None:
                    if row.key == "read-cold":
                        drop_from_cache(group.nodes[leader].data_dir)
                    task = replace(ours, load=load_of(row, OURS))
                    self._note_load(row, OURS, await drive_group(task, 1, named_pids(group, leader)))

                async def at_the_echo(row: Row = row) -> None:
                    found = await drive_group(Task(echo, "echo", load_of(row, ECHO)), 1, {"echo": echo_pid})
                    self._note_load(row, ECHO, found)

                for name, measure in self._turned([(OURS, at_the_group), (ECHO, at_the_echo)]):
                    await self._attempt([row.key], name, measure)

    # ---------------------------------------------------------------- long ones, once

    async def _catch_up(self) -> None:
        async with self._folder() as directory:
            found = await catch_up(directory, self.options.catch_up_bytes, _BODY_BYTES, self.options.duration_s)
        self._note("catch-up", OURS, found["megabytes_per_s"], found)
        self._note("catch-up-loss", OURS, round(found["lost"] * 100, 1), None)

    async def _opening(self) -> None:
        sizes = {"open-large": self.options.open_large_bytes, "open-small": self.options.open_small_bytes}
        for key, wanted in sizes.items():
            if not any(row.key == key for row in self._rows):
                continue
            async with self._folder() as directory:
                found = await opening_times(directory / "store", wanted, _BODY_BYTES, self.options.open_repeats)
            for seconds in found["cold"]:
                self._note(key, OURS, seconds, None)
            for seconds in found["warm"]:
                self._note(key, "page cache", seconds, None)

    async def _memory(self) -> None:
        async with self._folder() as directory:
            options = self.options
            found = await memory(
                directory, options.memory_bytes, _BODY_BYTES, options.overload_s, options.overload_clients
            )
        self._note("rss", OURS, found["filled"], found)
        self._note("rss-overload", OURS, round(found["overload_late"] - found["overload_early"], 1), None)

    async def _idle(self) -> None:
        async with self._folder() as directory:
            found = await idle_cpu(directory, self.options.idle_s)
        self._note("idle", OURS, round(max(found.values()) * 100, 2), found)


def machine_facts(directory: Path) -> dict[str, str]:
    """Return what the figures depend on: processors, memory, kernel, disk, versions. No names of the machine."""
    facts = {"cpus": str(os.cpu_count()), "kernel": platform.release(), "python": platform.python_version()}
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        facts["cpu"] = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
        memory_kb = Path("/proc/meminfo").read_text(encoding="utf-8").split()[1]
        facts["memory"] = f"{int(memory_kb) / _MIB:.0f} GiB"
    except (OSError, ValueError, IndexError):
        facts["cpu"] = platform.machine()
    facts["file system"] = _file_system(directory)
    for name in ("grpcio", "protobuf", "uvloop", "dledger"):
        try:
            facts[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            facts[name] = "not installed"
    return facts


def _file_system(directory: Path) -> str:
    """Return the kind of file system that a folder is on."""
    best = ("", "unknown")
    try:
        for line in Path("/proc/mounts").read_text(encoding="utf-8").splitlines():
            _, point, kind, *_ = line.split()
            if directory.absolute().is_relative_to(point) and len(point) > len(best[0]):
                best = (point, kind)
    except (OSError, ValueError):
        return "unknown"
    return best[1]


def save(results: dict[str, Any], path: Path) -> None:
    """Write results as JSON, whole or not at all."""
    temporary = path.with_name(path.name + ".new")
    temporary.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    temporary.replace(path)
