"""``dledger bench``."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from dledger.cli.exit_codes import ExitCode
from dledger.cli.load import Load, Measurement, measure
from dledger.cli.options import Target, output_option, parse_overrides, resolve_target, seconds, target_options
from dledger.cli.progress import Progress
from dledger.cli.runtime import plain_words, run, with_client
from dledger.cli.table import render_table
from dledger.local_group import LocalGroup
from dledger.types import NodeStatus

if TYPE_CHECKING:
    from dledger.client import LedgerClient

__all__ = ["bench"]

_FSYNC = {"SYNC_FLUSH": "on (SYNC_FLUSH)", "ASYNC_FLUSH": "off (ASYNC_FLUSH, background)"}


def _concurrencies(_ctx: click.Context, _parameter: click.Parameter, text: str) -> tuple[int, ...]:
    try:
        values = tuple(int(part) for part in text.split(","))
    except ValueError:
        values = (0,)
    if min(values) < 1:
        raise click.BadParameter(f'"{text}" is not a number of callers, or several like 1,64,1000')
    return values


def _rate(_ctx: click.Context, _parameter: click.Parameter, text: str | None) -> float | None:
    if text is None:
        return None
    try:
        value = float(text.removesuffix("/s"))
    except ValueError:
        value = 0.0
    if value <= 0:
        raise click.BadParameter(f'"{text}" is not a rate; write 2000 or 2000/s')
    return value


@click.command()
@target_options
@click.option("--concurrency", default="64", show_default=True, callback=_concurrencies, help="Callers; or 1,64,1000.")
@click.option("--rate", callback=_rate, metavar="N/s", help="Offer this load instead of running callers.")
@click.option("--size", type=click.IntRange(min=0), default=256, show_default=True, help="Bytes of an entry.")
@click.option("--batch", type=click.IntRange(min=1), default=1, show_default=True, help="Entries per append_many.")
@click.option("--for", "duration", type=seconds, default="5s", show_default=True, help="How long.")
@click.option("--count", type=click.IntRange(min=1), help="Entries in all, instead of a time.")
@click.option("--warmup", type=seconds, default="0.5s", show_default=True, help="Not counted.")
@click.option("--nodes", type=click.IntRange(1, 9), default=3, show_default=True, help="Of the temporary group.")
@click.option("-D", "overrides", multiple=True, metavar="KEY=VALUE", help="Set a key of the temporary group.")
@click.option("--data-dir", type=click.Path(path_type=Path), default=Path(), help="Where the temporary group lives.")
@click.option("--timeout", type=seconds, default="30s", show_default=True, help="Deadline of one append.")
@output_option("table", "json")
def bench(
    peers: str | None,
    group: str | None,
    config_file: str | None,
    concurrency: tuple[int, ...],
    rate: float | None,
    size: int,
    batch: int,
    duration: float,
    count: int | None,
    warmup: float,
    nodes: int,
    overrides: tuple[str, ...],
    data_dir: Path,
    timeout: float,
    output: str,
) -> int:
    """Measure appends: throughput, p50, p99, p99.9, and whether fsync was on.

    Without --peers (or DLEDGER_PEERS, or -c) three processes are started for it and ended afterwards. A closed
    loop runs --concurrency callers that wait for each answer; --rate offers entries on a schedule and counts
    latency from when each was due.
    """
    if rate is not None and batch > 1:
        raise click.UsageError("--rate sends single entries; leave out --batch")
    callers = concurrency if rate is None else concurrency[:1]
    loads = [Load(number, size, batch, duration, count, rate, warmup) for number in callers]

    async def body(client: LedgerClient) -> int:
        return await _run_all(client, loads, output)

    try:
        target = resolve_target(peers, group, config_file)
    except click.UsageError:
        if config_file is not None:
            raise
        return run(_on_temporary_group(nodes, parse_overrides(overrides), data_dir.absolute(), timeout, loads, output))
    return run(with_client(target, body, timeout=timeout))


@asynccontextmanager
async def _temporary_group(nodes: int, settings: dict[str, str], parent: Path) -> AsyncIterator[LocalGroup]:
    """A group below ``parent`` (a real disk, unlike many a /tmp), gone at the end."""
    directory = Path(tempfile.mkdtemp(prefix="dledger-bench-", suffix="-data", dir=parent))
    try:
        async with LocalGroup(directory, nodes=nodes, group="bench", settings=settings) as group:
            yield group
    finally:
        shutil.rmtree(directory, ignore_errors=True)


async def _on_temporary_group(
    nodes: int, settings: dict[str, str], parent: Path, timeout: float, loads: list[Load], output: str
) -> int:
    click.echo(f"starting {nodes} node{'s' if nodes > 1 else ''} for the benchmark", err=True)
    async with _temporary_group(nodes, settings, parent) as group:
        target = Target(group.peers, group.group)
        return await with_client(target, lambda client: _run_all(client, loads, output), timeout=timeout)


async def _run_all(client: LedgerClient, loads: list[Load], output: str) -> int:
    up = [node for node in await client.status() if isinstance(node, NodeStatus)]
    modes = sorted({_FSYNC.get(node.flush_disk_type, node.flush_disk_type or "unknown") for node in up})
    if any(node.store_type == "MEMORY" for node in up):
        modes = ["none (storeType=MEMORY)"]
    measurements = [await _run_one(client, load) for load in loads]
    if output == "json":
        runs = [measurement.as_json() for measurement in measurements]
        click.echo(json.dumps({"fsync": ", ".join(modes), "nodes_up": len(up), "runs": runs}))
    else:
        click.echo(f"fsync {', '.join(modes)}, {len(up)} nodes, {loads[0].size_bytes} B an entry")
        click.echo(_table(measurements))
    for measurement in measurements:
        if measurement.failed:
            click.echo(
                f"dledger: {measurement.failed} appends failed: {plain_words(measurement.first_error)}", err=True
            )
    return ExitCode.FAILED if any(m.failed or not m.acknowledged for m in measurements) else ExitCode.DONE


async def _run_one(client: LedgerClient, load: Load) -> Measurement:
    expected = load.count
    if expected is None and load.rate is not None:
        expected = int(load.rate * load.duration_s)
    with Progress("appending", expected) as progress:
        return await measure(client, load, progress.advance)


def _table(measurements: list[Measurement]) -> str:
    header = ("LOAD", "ENTRIES/S", "ACKNOWLEDGED", "FAILED", "P50 ms", "P99 ms", "P99.9 ms", "MAX ms")
    rows = []
    for found in measurements:
        load = found.load
        name = f"{load.rate:g}/s offered" if load.rate else f"{load.concurrency} in flight"
        if load.batch > 1:
            name += f" × {load.batch}"
        times = [found.latency.percentile(p) for p in (50, 99, 99.9)] + [found.latency.maximum]
        counts = [f"{found.throughput:,.0f}".replace(",", " "), str(found.acknowledged), str(found.failed)]
        rows.append([name, *counts, *[f"{ns / 1e6:.2f}" for ns in times]])
    return render_table(header, rows, frozenset(range(1, len(header))))
