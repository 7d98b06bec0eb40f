#!/usr/bin/env python3
"""Measure how long commands take to start, as multiples of `python -c pass`, and print them beside their targets.

python scripts/startup.py [--rounds 15] [-o table|json]

Compiled modules are there, as for a user. `python -c pass` and the commands take turns, so that a busy machine slows
both. CPU is user and system time of the whole process: the figure to trust where others use the machine. `status` asks
a group of three processes that runs meanwhile.
"""

from __future__ import annotations

import asyncio
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Final, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import click

from dledger.cli.table import render_table
from dledger.local_group import LocalGroup

REPOSITORY: Final = Path(__file__).resolve().parents[1]

TARGETS: Final = {"--version": 4.0, "--help": 4.0, "status": 9.0}
"""Command → how many times `python -c pass` it may take."""

_ENTRY: Final = "import sys; from dledger.cli.main import main; sys.exit(main())"  # what the installed script does


class Cost(NamedTuple):
    """Seconds of one run."""

    cpu_s: float
    wall_s: float


def run_once(arguments: list[str], environment: dict[str, str], directory: Path) -> Cost:
    """Run a process to its end and return what it took. Raises CalledProcessError if it fails."""
    before, begun = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run(
        [sys.executable, *arguments], env=environment, cwd=directory, stdout=subprocess.DEVNULL, check=True, timeout=60
    )
    wall = time.perf_counter() - begun
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return Cost(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, wall)


def measure(rounds: int, environment: dict[str, str], directory: Path) -> dict[str, list[Cost]]:
    """Run everything in turn, one round more than is counted: the first writes the compiled modules."""
    commands = {"pass": ["-c", "pass"]} | {name: ["-c", _ENTRY, name] for name in TARGETS}
    found: dict[str, list[Cost]] = {name: [] for name in commands}
    for number in range(rounds + 1):
        for name, arguments in commands.items():
            cost = run_once(arguments, environment, directory)
            if number:
                found[name].append(cost)
    return found


def summary(found: dict[str, list[Cost]]) -> list[dict[str, object]]:
    """Return a row for each command: least and median milliseconds, and how many times `pass` that is."""
    rows: list[dict[str, object]] = []
    for name, costs in found.items():
        row: dict[str, object] = {"command": name, "target": TARGETS.get(name)}
        for kind in Cost._fields:
            own, base = ([getattr(cost, kind) for cost in part] for part in (costs, found["pass"]))
            short = kind.removesuffix("_s")
            row[f"{short}_min_ms"] = round(min(own) * 1000, 1)
            row[f"{short}_median_ms"] = round(statistics.median(own) * 1000, 1)
            row[f"{short}_ratio_min"] = round(min(own) / min(base), 2)
            row[f"{short}_ratio"] = round(statistics.median(own) / statistics.median(base), 2)
        rows.append(row)
    return rows


async def measure_beside_group(rounds: int, directory: Path) -> dict[str, list[Cost]]:
    """Start a group of three, measure, end the group."""
    environment = {
        name: value
        for name, value in os.environ.items()
        if name != "PYTHONDONTWRITEBYTECODE" and not name.startswith(("DLEDGER_", "GRPC_"))
    }
    environment |= {"PYTHONPYCACHEPREFIX": str(directory / "compiled"), "PYTHONPATH": str(REPOSITORY)}
    async with LocalGroup(directory / "group", group="startup") as group:
        environment |= {"DLEDGER_PEERS": group.peers, "DLEDGER_GROUP": group.group}
        return await asyncio.to_thread(measure, rounds, environment, directory)


@click.command()
@click.option("--rounds", type=click.IntRange(min=1), default=15, show_default=True)
@click.option("-o", "--output", type=click.Choice(["table", "json"]), default="table", show_default=True)
def main(rounds: int, output: str) -> None:
    """Print how long `dledger --version`, `--help` and `status` take."""
    with tempfile.TemporaryDirectory(prefix="dledger-startup-") as directory:
        rows = summary(asyncio.run(measure_beside_group(rounds, Path(directory))))
    if output == "json":
        click.echo(json.dumps(rows))
        return
    header = ("COMMAND", "CPU ms", "least", "x pass", "WALL ms", "least", "x pass", "TARGET")
    keys = ("cpu_median_ms", "cpu_min_ms", "cpu_ratio", "wall_median_ms", "wall_min_ms", "wall_ratio")
    cells = [[str(row["command"]), *(str(row[key]) for key in keys), str(row["target"] or "-")] for row in rows]
    click.echo(render_table(header, cells, frozenset(range(1, len(header)))))


if __name__ == "__main__":
    main()
