"""``dledger bench``."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from dledger.bench.compare import Change, changes, load_runs, verdict
from dledger.bench.load import OPERATIONS, Load, Measurement, measure
from dledger.bench.meter import CpuMeter, resident_bytes
from dledger.cli.exit_codes import ExitCode
from dledger.cli.options import (
    Target,
    output_option,
    parse_overrides,
    per_second,
    resolve_target,
    seconds,
    target_options,
)
from dledger.cli.progress import Progress
from dledger.cli.runtime import run, with_client
from dledger.cli.table import render_table
from dledger.cli.words import plain_words
from dledger.local_group import LocalGroup
from dledger.types import NodeStatus

if TYPE_CHECKING:
    from dledger.client import LedgerClient

__all__ = ["bench"]

_FSYNC = {"SYNC_FLUSH": "on (SYNC_FLUSH)", "ASYNC_FLUSH": "off (ASYNC_FLUSH, background)"}
_LEAST_TO_READ: Final = 20_000
_ECHO: Final = "echo, nothing behind it"


@dataclass(frozen=True, slots=True)
class _Plan:
    """What was asked for."""

    loads: list[Load]
    clients: int
    timeout_s: float
    output: str
    baseline: list[dict[str, Any]] | None
    tolerance: float


@dataclass(slots=True)
class _Found:
    """What was measured, and where: at the group or at the echo."""

    where: str
    measurement: Measurement

    def as_json(self) -> dict[str, Any]:
        return {"where": self.where, **self.measurement.as_json()}


class _OwnWindow:
    """`Control` for a load in this process: accounts for this process and the nodes."""

    def __init__(self, pids: dict[str, int]) -> None:
        self._pids = pids
        self._meter: CpuMeter | None = None
        self.cpu_s: dict[str, float] = {}
        self.rss_bytes: dict[str, int] = {}

    async def begin(self) -> None:
        self._meter = CpuMeter(self._pids | {"clients": os.getpid()})

    async def end(self) -> None:
        if self._meter is not None:
            used = self._meter.read()
            self.cpu_s = used.seconds | {"rest of the machine": used.other_s}
            self.rss_bytes = {name: resident_bytes(pid)[0] for name, pid in self._pids.items()}


def _concurrencies(_ctx: click.Context, _parameter: click.Parameter, text: str) -> tuple[int, ...]:
    try:
        values = tuple(int(part) for part in text.split(","))
    except ValueError:
        values = (0,)
    if min(values) < 1:
        raise click.BadParameter(f'"{text}" is not a number of callers, or several like 1,64,1000')
    return values


@click.command()
@target_options
@click.option("--op", "operation", type=click.Choice(OPERATIONS), help="What each call does.  [default: append]")
@click.option("--concurrency", default="64", show_default=True, callback=_concurrencies, help="Callers; or 1,64,1000.")
@click.option("--rate", type=per_second, metavar="N/s", help="Offer this load instead of running callers.")
@click.option("--size", type=click.IntRange(min=0), default=256, show_default=True, help="Bytes of an entry.")
@click.option("--batch", type=click.IntRange(min=1), help="Entries of an append-batch.  [default: 64]")
@click.option("--clients", type=click.IntRange(1, 64), default=1, show_default=True, help="Processes that share it.")
@click.option("--channels", type=click.IntRange(1, 1000), default=1, show_default=True, help="Connections of unary….")
@click.option("--for", "duration", type=seconds, default="5s", show_default=True, help="How long.")
@click.option("--count", type=click.IntRange(min=1), help="Entries in all, instead of a time.")
@click.option("--warmup", type=seconds, default="1s", show_default=True, help="At least; until the rate has settled.")
@click.option("--nodes", type=click.IntRange(1, 9), default=3, show_default=True, help="Of the temporary group.")
@click.option("-D", "overrides", multiple=True, metavar="KEY=VALUE", help="Set a key of the temporary group.")
@click.option("--data-dir", type=click.Path(path_type=Path), default=Path(), help="Where the temporary group lives.")
@click.option("--timeout", type=seconds, default="30s", show_default=True, help="Deadline of one call.")
@click.option("--compare", type=click.Path(path_type=Path), metavar="FILE", help="An earlier run's JSON; 6 if slower.")
@click.option(
    "--tolerance", type=click.FloatRange(0, 0.9), default=0.15, show_default=True, help="Noise of a comparison."
)
@output_option("table", "json")
def bench(
    peers: str | None,
    group: str | None,
    config_file: str | None,
    operation: str | None,
    concurrency: tuple[int, ...],
    rate: float | None,
    size: int,
    batch: int | None,
    clients: int,
    channels: int,
    duration: float,
    count: int | None,
    warmup: float,
    nodes: int,
    overrides: tuple[str, ...],
    data_dir: Path,
    timeout: float,
    compare: Path | None,
    tolerance: float,
    output: str,
) -> int:
    """Measure throughput, latency and CPU, and say whether fsync was on.

    Without --peers (or DLEDGER_PEERS, or -c) three processes are started for it and ended afterwards. A closed
    loop runs --concurrency callers that wait for each answer; --rate offers calls on a schedule and counts latency
    from when each was due. unary, unary-get and unary-read use a plain gRPC client that knows only the proto, and
    measure a gRPC echo of the same messages beside it.
    """
    operation = operation or ("append" if batch in {None, 1} else "append-batch")
    if batch is not None and operation != "append-batch" and batch > 1:
        raise click.UsageError(f"--batch is for append-batch, not for {operation}")
    entries = (batch or 64) if operation == "append-batch" else 1
    callers = concurrency if rate is None else concurrency[:1]
    loads = [Load(operation, number, size, entries, duration, count, rate, warmup, channels) for number in callers]
    if clients > min(callers):
        raise click.UsageError(f"--clients {clients} need at least one caller each; --concurrency is {min(callers)}")
    plan = _Plan(loads, clients, timeout, output, load_runs(compare) if compare else None, tolerance)
    try:
        target = resolve_target(peers, group, config_file)
    except click.UsageError:
        if config_file is not None:
            raise
        return run(_on_temporary_group(nodes, parse_overrides(overrides), data_dir.absolute(), plan))
    return run(with_client(target, lambda client: _run_all(client, target, plan), timeout=timeout))


@asynccontextmanager
async def _temporary_group(nodes: int, settings: dict[str, str], parent: Path) -> AsyncIterator[LocalGroup]:
    """A group below ``parent`` (a real disk, unlike many a /tmp), gone at the end."""
    directory = Path(tempfile.mkdtemp(prefix="dledger-bench-", suffix="-data", dir=parent))
    try:
        async with LocalGroup(directory, nodes=nodes, group="bench", settings=settings) as group:
            yield group
    finally:
        shutil.rmtree(directory, ignore_errors=True)


async def _on_temporary_group(nodes: int, settings: dict[str, str], parent: Path, plan: _Plan) -> int:
    click.echo(f"starting {nodes} node{'s' if nodes > 1 else ''} for the benchmark", err=True)
    async with _temporary_group(nodes, settings, parent) as group:
        target = Target(group.peers, group.group)

        async def body(client: LedgerClient) -> int:
            load = plan.loads[0]
            if load.operation.endswith(("get", "read")):
                from dledger.bench.work import fill

                await fill(client, _LEAST_TO_READ, load.size_bytes)
            return await _run_all(client, target, plan)

        return await with_client(target, body, timeout=plan.timeout_s)


async def _run_all(client: LedgerClient, target: Target, plan: _Plan) -> int:
    up = [node for node in await client.status() if isinstance(node, NodeStatus)]
    modes = sorted({_FSYNC.get(node.flush_disk_type, node.flush_disk_type or "unknown") for node in up})
    if any(node.store_type == "MEMORY" for node in up):
        modes = ["none (storeType=MEMORY)"]
    found: list[_Found] = []
    for load in plan.loads:
        found.append(_Found("group", await _run_one(client, target, load, plan, _local_pids(up))))
        if load.operation.startswith("unary"):
            found.append(_Found("echo", await _run_echo(load, plan)))
    compared = None if plan.baseline is None else changes(plan.baseline, [one.as_json() for one in found])
    head = f"fsync {', '.join(modes)}, {len(up)} nodes, {plan.loads[0].size_bytes} B an entry"
    if plan.output == "json":
        report: dict[str, Any] = {"fsync": ", ".join(modes), "nodes_up": len(up)}
        report["runs"] = [one.as_json() for one in found]
        if compared is not None:
            report["verdict"] = verdict(compared, plan.tolerance)
        click.echo(json.dumps(report))
    else:
        click.echo("\n".join([head, _table(found), *_comparison(compared, plan.tolerance)]))
    _complain(found)
    if any(one.measurement.failed or not one.measurement.acknowledged for one in found):
        return ExitCode.FAILED
    if compared is not None and (not compared or any(change.is_slower(plan.tolerance) for change in compared)):
        return ExitCode.VERDICT_FAIL
    return ExitCode.DONE


def _complain(found: Sequence[_Found]) -> None:
    """Say on standard error what makes figures doubtful."""
    for one in found:
        measured = one.measurement
        if measured.failed:
            click.echo(f"dledger: {measured.failed} failed: {plain_words(measured.first_error)}", err=True)
        if measured.refused:
            click.echo(
                f"dledger: {measured.refused} entries were due but never tried: the group cannot keep up with it",
                err=True,
            )
        if not measured.is_steady:
            click.echo(
                f"dledger: {measured.load.name}: not steady, the second half was {measured.drift:+.0%}; "
                "try a longer --warmup or --for, or a quieter machine",
                err=True,
            )


def _local_pids(nodes: Sequence[NodeStatus]) -> dict[str, int]:
    """Return the processes of nodes that run here, leader first, for their CPU time."""
    pids = {}
    for node in sorted(nodes, key=lambda node: (node.role != "leader", node.node_id)):
        host = node.address.rpartition(":")[0]
        if (host == "localhost" or host.startswith("127.")) and _is_ours(node.pid):
            pids[f"{node.node_id} ({node.role})"] = node.pid
    return pids


def _is_ours(pid: int) -> bool:
    """Whether that process id means a node here, and not something else in another container."""
    try:
        return b"dledger" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False


async def _run_one(client: LedgerClient, target: Target, load: Load, plan: _Plan, pids: dict[str, int]) -> Measurement:
    from dledger.bench.drive import drive_group
    from dledger.bench.work import open_work
    from dledger.bench.worker import Task
    from dledger.client.peers import parse_peers

    if plan.clients > 1:
        task = Task(target.peers, target.group, load, plan.timeout_s, target.tls, target.token)
        return await drive_group(task, plan.clients, pids)
    expected = load.count
    if expected is None and load.rate is not None:
        expected = int(load.rate * load.duration_s)
    window = _OwnWindow(pids)
    address = next(iter(parse_peers(target.peers).values()))
    async with open_work(client, address, load) as work:
        with Progress(load.operation, expected) as progress:
            found = await measure(work, load, progress.advance, window)
    found.cpu_s, found.rss_bytes = window.cpu_s, window.rss_bytes
    return found


async def _run_echo(load: Load, plan: _Plan) -> Measurement:
    from dledger.bench.drive import drive_group, echo_server
    from dledger.bench.worker import Task

    async with echo_server(_LEAST_TO_READ, load.size_bytes) as (address, pid):
        task = Task(address, "echo", load, plan.timeout_s)
        return await drive_group(task, plan.clients, {"echo": pid})


def _table(found: Sequence[_Found]) -> str:
    header = ("LOAD", "ENTRIES/S", "MB/S", "DONE", "FAILED", "P50 ms", "P99 ms", "P99.9 ms", "MAX ms", "CPU µs/ENTRY")
    rows = []
    for one in found:
        measured = one.measurement
        name = _ECHO if one.where == "echo" else measured.load.name
        times = [measured.latency.percentile(p) for p in (50, 99, 99.9)] + [measured.latency.maximum]
        counts = [f"{measured.throughput:,.0f}".replace(",", " "), f"{measured.megabytes_per_s:.1f}"]
        counts += [str(measured.acknowledged), str(measured.failed)]
        costs = measured.cpu_us_per_entry()
        costs.pop("rest of the machine", None)
        rows.append([name, *counts, *[f"{ns / 1e6:.2f}" for ns in times], _costs(costs)])
    return render_table(header, rows, frozenset(range(1, len(header) - 1)))


def _costs(costs: dict[str, float]) -> str:
    return "  ".join(f"{name} {cost:.3g}" for name, cost in costs.items())


def _comparison(compared: Sequence[Change] | None, tolerance: float) -> list[str]:
    if compared is None:
        return []
    header = ("NOW / BEFORE", "ENTRIES/S", "P50", "P99", "NODES' CPU")
    rows = [
        [one.name, f"{one.throughput:.2f}", f"{one.p50:.2f}", f"{one.p99:.2f}", f"{one.cpu:.2f}" if one.cpu else "-"]
        for one in compared
    ]
    return ["", render_table(header, rows, frozenset(range(1, 5))), verdict(compared, tolerance)]
