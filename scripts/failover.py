#!/usr/bin/env python3
"""Hurt the leader of a real group again and again under load; print how long writes stood still and what was lost.

python scripts/failover.py [--rounds 20] [--harm kill|hang|term] [-o table|json]

The group is three processes with fsync on, in a folder of its own below --data-dir that is removed if all went well.
Exit code 6 if anything acknowledged was lost, doubled or out of order, if an append failed, or if the logs differ.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import click

from dledger.chaos.failover import Campaign, Harm, Round, run_campaign
from dledger.cli.exit_codes import ExitCode
from dledger.errors import DLedgerError
from dledger.local_group import LocalGroup


def show(found: Round) -> None:
    click.echo(f"{found.number:5}  {found.hurt:5} {found.elected:7} {found.term:4} {found.gap_ms:9.1f}")


async def campaign(
    directory: Path, rounds: int, harm: Harm, nodes: int, concurrency: int, size: int, table: bool
) -> Campaign:
    """Start a group, run the campaign, end the group."""
    async with LocalGroup(directory, nodes=nodes, group="failover") as group:
        if table:
            click.echo(f"ROUND  {harm.value.upper():5} ELECTED TERM    GAP ms")
        return await run_campaign(
            group,
            rounds=rounds,
            harm=harm,
            concurrency=concurrency,
            entry_bytes=size,
            on_round=show if table else lambda _: None,
        )


@click.command()
@click.option("--rounds", default=20, show_default=True, type=click.IntRange(1))
@click.option("--harm", default="kill", show_default=True, type=click.Choice([harm.value for harm in Harm]))
@click.option("--nodes", default=3, show_default=True, type=click.IntRange(3))
@click.option("--concurrency", default=64, show_default=True, type=click.IntRange(1), help="Appends in flight.")
@click.option("--size", default=256, show_default=True, type=click.IntRange(16), help="Bytes an entry.")
@click.option("--data-dir", type=click.Path(path_type=Path), default=Path(), help="Where the run's folder is made.")
@click.option("-o", "--output", type=click.Choice(["table", "json"]), default="table", show_default=True)
def main(rounds: int, harm: str, nodes: int, concurrency: int, size: int, data_dir: Path, output: str) -> None:
    """Hurt the leader again and again under load, and judge the log."""
    data_dir.mkdir(parents=True, exist_ok=True)
    directory = Path(tempfile.mkdtemp(prefix="dledger-failover-", suffix="-data", dir=data_dir)).absolute()
    try:
        found = asyncio.run(campaign(directory, rounds, Harm(harm), nodes, concurrency, size, output == "table"))
    except DLedgerError as error:
        click.echo(f"FAIL  {error}\ndata kept in {directory}", err=True)
        sys.exit(ExitCode.VERDICT_FAIL)
    if output == "json":
        click.echo(json.dumps(found.summary()))
    else:
        click.echo(f"gap median {found.median_ms:.0f} ms, worst {found.worst_ms:.0f} ms")
        click.echo(found.verdict.report())
        click.echo(
            f"{'PASS' if found.ok else 'FAIL'}  {found.verdict.acknowledged} acknowledged, "
            f"{len(found.failures)} failed; {found.identical} of {found.nodes} logs identical"
        )
    if not found.ok:
        click.echo(f"data kept in {directory}", err=True)
        sys.exit(ExitCode.VERDICT_FAIL)
    shutil.rmtree(directory)


if __name__ == "__main__":
    main()
