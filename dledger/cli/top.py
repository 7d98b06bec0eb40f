"""``dledger top``: a group in the terminal, redrawn as it goes."""

from __future__ import annotations

import asyncio

import click

from dledger.cli.exit_codes import ExitCode
from dledger.cli.options import Target, resolve_target, seconds, target_options
from dledger.cli.runtime import run
from dledger.cli.screen import Screen
from dledger.cli.watching import make_watcher

__all__ = ["top"]


@click.command()
@target_options
@click.option("--every", type=seconds, default="1s", show_default=True, metavar="TIME", help="Between two pictures.")
@click.option("--count", type=click.IntRange(min=1), metavar="N", help="End after N pictures.  [default: Ctrl-C]")
def top(peers: str | None, group: str | None, config_file: str | None, every: float, count: int | None) -> int:
    """Watch a group: roles, rates, latency, lag, what happens. Off a terminal one picture is printed after another."""
    return run(_watch(resolve_target(peers, group, config_file), max(every, 0.1), count))


async def _watch(target: Target, every: float, count: int | None) -> int:
    from dledger.dashboard.terminal import frame

    watcher = make_watcher(target)
    await watcher.start()
    left = count
    try:
        with Screen() as screen:
            while left is None or left > 0:
                await asyncio.sleep(every)
                screen.draw("\n".join(frame(watcher)))
                left = None if left is None else left - 1
    finally:
        await watcher.stop()
    return ExitCode(watcher.group_view().exit_code)
