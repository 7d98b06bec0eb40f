"""``dledger transfer`` and ``dledger step-down``."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import click

from dledger.cli.completion import complete_nodes
from dledger.cli.exit_codes import ExitCode
from dledger.cli.group_view import GroupView
from dledger.cli.options import resolve_target, seconds, target_options
from dledger.cli.runtime import run, with_client

if TYPE_CHECKING:
    from dledger.client import LedgerClient

__all__ = ["step_down", "transfer"]


@click.command()
@click.argument("node", required=False, shell_complete=complete_nodes)
@target_options
@click.option(
    "--from",
    "giver",
    metavar="NODE",
    shell_complete=complete_nodes,
    help="Only if NODE leads; else there is nothing to do.",
)
@click.option("--timeout", type=seconds, default="5s", show_default=True)
def transfer(
    node: str | None, peers: str | None, group: str | None, config_file: str | None, giver: str | None, timeout: float
) -> int:
    """Hand leadership to NODE (without one: the follower that is furthest), and wait until it has it."""
    target = resolve_target(peers, group, config_file)

    async def body(client: LedgerClient) -> int:
        before = GroupView(target.group, await client.status())
        if giver is not None and giver != before.leader_id:
            click.echo(f"{giver} does not lead; {before.leader_id or 'nobody'} does")
            return ExitCode.DONE
        if node is not None and node == before.leader_id:
            click.echo(f"{node} leads already (term {before.term})")
            return ExitCode.DONE
        started = time.monotonic()
        new_leader = await client.transfer_leadership(node)
        took_ms = (time.monotonic() - started) * 1000
        after = GroupView(target.group, await client.status())
        click.echo(f"leadership {before.leader_id or '-'} → {new_leader} in {took_ms:.0f} ms (term {after.term})")
        return ExitCode.DONE

    return run(with_client(target, body, timeout=timeout, session=False))


@click.command("step-down")
@target_options
@click.option("--timeout", type=seconds, default="5s", show_default=True)
def step_down(peers: str | None, group: str | None, config_file: str | None, timeout: float) -> int:
    """Make the leader give up leadership; the others elect, and it does not stand for one election timeout."""
    target = resolve_target(peers, group, config_file)

    async def body(client: LedgerClient) -> int:
        before = GroupView(target.group, await client.status())
        await client.step_down()
        click.echo(f"{before.leader_id or 'the leader'} stepped down (term {before.term})")
        return ExitCode.DONE

    return run(with_client(target, body, timeout=timeout, session=False))
