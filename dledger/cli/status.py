"""``dledger status``."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Final, NoReturn

import click

from dledger.cli.exit_codes import ExitCode
from dledger.cli.group_view import GroupView
from dledger.cli.options import output_option, resolve_target, seconds, target_options
from dledger.cli.runtime import run, with_client
from dledger.cli.screen import Screen
from dledger.errors import DLedgerError

if TYPE_CHECKING:
    from dledger.client import LedgerClient

__all__ = ["status"]

_POLL_S: Final = 0.05


@click.command()
@target_options
@output_option("table", "json")
@click.option("--wait", type=seconds, metavar="TIME", help="Wait this long for a leader that has committed.")
@click.option(
    "--up", "nodes_up", type=click.IntRange(min=1), help="With --wait: until so many nodes have caught up, too."
)
@click.option("--not", "other_than", metavar="NODE", help="With --wait: for another leader than this one.")
@click.option("-w", "--watch", is_flag=True, help="Show it again and again, until Ctrl-C.")
@click.option("--every", type=seconds, default="1s", show_default=True, metavar="TIME", help="With --watch: how often.")
def status(
    peers: str | None,
    group: str | None,
    config_file: str | None,
    output: str,
    wait: float | None,
    nodes_up: int | None,
    other_than: str | None,
    watch: bool,
    every: float,
) -> int:
    """Show every node: role, term, log and lag. A dead node stays in the table as DOWN.

    Exit code 0: there is a leader and a majority is up; 3: no quorum; 5: nobody reachable.
    """
    target = resolve_target(peers, group, config_file)

    async def body(client: LedgerClient) -> int:
        if wait is not None:
            await _wait_for_leader(client, wait, target.group, nodes_up or 1, other_than)
        if watch:
            await _show_again_and_again(client, target.group, output, max(every, _POLL_S))
        view = GroupView(target.group, await client.status())
        click.echo(_text(view, output))
        if view.exit_code is ExitCode.UNREACHABLE:
            click.echo("dledger: nobody reachable", err=True)
        elif view.exit_code is ExitCode.NO_QUORUM:
            click.echo(f"dledger: no quorum: {view.quorum} nodes and a leader among them are needed", err=True)
        return view.exit_code

    return run(with_client(target, body, timeout=1.0, session=False))


def _text(view: GroupView, output: str) -> str:
    return json.dumps(view.as_json(), ensure_ascii=False) if output == "json" else view.as_table()


async def _show_again_and_again(client: LedgerClient, group: str, output: str, every: float) -> NoReturn:
    """Draw the table in place on a terminal, else one below the other (JSON: a line each). Ends by Ctrl-C."""
    with Screen() as screen:
        while True:
            text = _text(GroupView(group, await client.status()), output)
            if output == "json":
                click.echo(text)
            else:
                screen.draw(text)
            await asyncio.sleep(every)


async def _wait_for_leader(
    client: LedgerClient, seconds_left: float, group: str, nodes_up: int, other_than: str | None
) -> None:
    """Return when a leader has committed in its own term (a linearizable read proves it) or the time is up.

    ``nodes_up``: this many nodes must know of what was committed when the leader was first seen. ``other_than``: the
    leader must be another node.
    """
    wanted: int | None = None
    deadline = asyncio.get_running_loop().time() + seconds_left
    while asyncio.get_running_loop().time() < deadline:
        try:
            committed = await client.commit_index()
        except DLedgerError:
            pass
        else:
            wanted = committed if wanted is None else wanted
            view = GroupView(group, await client.status())
            caught_up = sum(1 for row in view.rows if row.commit_index >= wanted)
            if view.leader_id not in {None, other_than} and caught_up >= nodes_up:
                return
        await asyncio.sleep(_POLL_S)
