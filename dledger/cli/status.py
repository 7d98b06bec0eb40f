"""``dledger status``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from dledger.cli.exit_codes import ExitCode
from dledger.cli.group_view import GroupView
from dledger.cli.options import Target, output_option, resolve_target, seconds, target_options

if TYPE_CHECKING:
    from dledger.client import LedgerClient

__all__ = ["status"]


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
    if wait is None and not watch:
        view = _at_once(target)
        if view is not None:
            return _show(view, output)
    from dledger.cli.runtime import run, with_client
    from dledger.cli.status_watch import show_again_and_again, wait_for_leader

    async def body(client: LedgerClient) -> int:
        if wait is not None:
            await wait_for_leader(client, wait, target.group, nodes_up or 1, other_than)
        if watch:
            await show_again_and_again(client, target.group, lambda view: _text(view, output), output == "json", every)
        return _show(GroupView(target.group, await client.status()), output)

    return run(with_client(target, body, timeout=1.0, session=False))


def _at_once(target: Target) -> GroupView | None:
    """Ask without loading gRPC, in a fifth of the time; None where that does not do (TLS, no token, other nodes)."""
    if target.tls is not None:
        return None
    from dledger.client.bare_status import bare_status
    from dledger.client.peers import parse_peers

    nodes = bare_status(parse_peers(target.peers), target.group, target.token)
    return None if nodes is None else GroupView(target.group, nodes)


def _show(view: GroupView, output: str) -> ExitCode:
    """Print the group, and on standard error what is wrong with it; returns the exit code."""
    click.echo(_text(view, output))
    if view.exit_code is ExitCode.UNREACHABLE:
        click.echo("dledger: nobody reachable", err=True)
    elif view.exit_code is ExitCode.NO_QUORUM:
        click.echo(f"dledger: no quorum: {view.quorum} nodes and a leader among them are needed", err=True)
    return view.exit_code


def _text(view: GroupView, output: str) -> str:
    if output != "json":
        return view.as_table()
    import json

    return json.dumps(view.as_json(), ensure_ascii=False)
