"""The commands of ``python -m dledger.bench``."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import click

from dledger.bench.rows import ROWS
from dledger.cli.options import seconds
from dledger.cli.runtime import run

__all__ = ["main"]


@click.group()
def main() -> None:
    """Measure this project beside its peers, and report it."""


@main.command(hidden=True)
def load() -> None:
    """A client process: see `dledger.bench.worker`."""
    from dledger.bench.worker import read_task, run_worker  # noqa: PLC0415

    run(run_worker(read_task()))


@main.command(hidden=True)
@click.option("--entries", type=int, required=True)
@click.option("--size", type=int, required=True)
def echo(entries: int, size: int) -> None:
    """The echo server: see `dledger.bench.echo`."""
    from dledger.bench.echo import serve_echo  # noqa: PLC0415

    run(serve_echo(entries, size))


@main.command("peer-load", hidden=True)
@click.option("--kind", type=click.Choice(("nats", "rabbitmq")), required=True)
@click.option("--port", type=int, required=True)
def peer_load(kind: str, port: int) -> None:
    """A client process of a peer: see `dledger.bench.peer_load`."""
    from dledger.bench.peer_load import nats_load, rabbit_load  # noqa: PLC0415
    from dledger.bench.worker import LineControl, read_task  # noqa: PLC0415

    put = nats_load if kind == "nats" else rabbit_load
    run(put(port, read_task().load, LineControl()))


@main.command("make-store", hidden=True)
@click.option("--directory", type=click.Path(path_type=Path), required=True)
@click.option("--bytes", "wanted", type=int, required=True)
@click.option("--size", type=int, required=True)
def make_store_command(directory: Path, wanted: int, size: int) -> None:
    """Fill a store and wait to be killed: see `dledger.bench.store_bench`."""
    from dledger.bench.store_bench import make_store  # noqa: PLC0415

    make_store(directory, wanted, size)


@main.command("open-store", hidden=True)
@click.option("--directory", type=click.Path(path_type=Path), required=True)
def open_store_command(directory: Path) -> None:
    """Open a store and say how long that took."""
    from dledger.bench.store_bench import open_store  # noqa: PLC0415

    print(json.dumps(open_store(directory)), flush=True)


def _sizes(text: str) -> int:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMG]?)(?:i?B)?", text.strip(), re.ASCII)
    if match is None:
        raise click.BadParameter(f'"{text}" is not a size; write 64M or 10G')
    return int(float(match[1]) * 1024 ** " KMG".index(match[2] or " "))


def _row_keys(_context: click.Context, _parameter: click.Parameter, text: str | None) -> tuple[str, ...]:
    keys = tuple(filter(None, (text or "").split(",")))
    known = [row.key for row in ROWS]
    for key in keys:
        if key not in known:
            raise click.BadParameter(f'"{key}" is none of {", ".join(known)}')
    return keys


@main.command()
@click.option("--rounds", type=click.IntRange(min=1), default=5, show_default=True, help="A figure is their median.")
@click.option("--for", "duration", type=seconds, default="4s", show_default=True, help="Each load is measured so long.")
@click.option("--warmup", type=seconds, default="1s", show_default=True, help="At least; until the rate has settled.")
@click.option("--rest", type=seconds, default="0s", help="Before each, for hosts that slow down who is busy for long.")
@click.option("--only", callback=_row_keys, metavar="KEY,…", help="Only these rows.")
@click.option("--peers", metavar="NAME,…", help="Only these peers; none for ours alone.  [default: all installed]")
@click.option("--full", is_flag=True, help="Sizes of the targets: 10 GiB stores. Needs 45 GB of disk and 20 minutes.")
@click.option("--log-size", type=_sizes, help="The log that is read and caught up with, in place of the default.")
@click.option("--store-size", type=_sizes, help="The large store that is opened; the small one is a tenth.")
@click.option("--memory-size", type=_sizes, help="What is appended before memory is looked at.")
@click.option("--data-dir", type=click.Path(path_type=Path), default=Path(), help="On the disk that is meant.")
@click.option(
    "--output", type=click.Path(path_type=Path), default=Path("dledger-bench-data/bench.json"), show_default=True
)
def suite(
    rounds: int,
    duration: float,
    warmup: float,
    rest: float,
    only: tuple[str, ...],
    peers: str | None,
    full: bool,
    log_size: int | None,
    store_size: int | None,
    memory_size: int | None,
    data_dir: Path,
    output: Path,
) -> None:
    """Measure every row, this project and its peers in turn; write the figures as JSON and print the table."""
    from dledger.bench.report import table  # noqa: PLC0415
    from dledger.bench.suite import Suite, SuiteOptions, save  # noqa: PLC0415

    names = None if peers is None else tuple(name for name in peers.split(",") if name not in {"", "none"})
    options = SuiteOptions(rounds, duration, warmup, rest, only, names)
    if full:
        options = options.full()
    if log_size is not None:
        options = replace(options, read_bytes=log_size, catch_up_bytes=log_size)
    if store_size is not None:
        options = replace(options, open_large_bytes=store_size, open_small_bytes=max(store_size // 10, 1))
    if memory_size is not None:
        options = replace(options, memory_bytes=memory_size)
    output.parent.mkdir(parents=True, exist_ok=True)
    measured = Suite(options, data_dir.absolute(), lambda line: click.echo(line, err=True))
    measured.on_round = lambda: save(measured.results(), output)
    try:
        run(measured.run())
    finally:
        save(measured.results(), output)
    click.echo(table(measured.results()))


@main.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--notes", type=click.Path(path_type=Path), help="JSON: why a row misses its target, by key.")
@click.option("--into", type=click.Path(path_type=Path), multiple=True, help="Pages whose marked parts to replace.")
@click.option("--plot", type=click.Path(path_type=Path), help="Draw the appends here, as SVG.")
def report(file: Path, notes: Path | None, into: tuple[Path, ...], plot: Path | None) -> None:
    """Print the table of a suite's JSON, or put it into pages between <!-- bench:NAME --> and <!-- /bench -->."""
    from dledger.bench.plot import draw  # noqa: PLC0415
    from dledger.bench.report import load_json, parts, replace_parts, table  # noqa: PLC0415

    results = load_json(file)
    reasons = load_json(notes) if notes else {}
    made = parts(results, reasons)
    for page in into:
        page.write_text(replace_parts(page.read_text(encoding="utf-8"), made, page), encoding="utf-8")
    if plot is not None:
        plot.write_text(draw(results), encoding="utf-8")
    if not into and plot is None:
        click.echo(table(results, reasons))
