"""What ``dledger status`` does over time: wait for a leader, and show the group again and again."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final, NoReturn

import click

from dledger.cli.group_view import GroupView
from dledger.cli.screen import Screen
from dledger.errors import DLedgerError

if TYPE_CHECKING:
    from collections.abc import Callable

    from dledger.client import LedgerClient

__all__ = ["show_again_and_again", "wait_for_leader"]

_POLL_S: Final = 0.05


async def show_again_and_again(
    client: LedgerClient, group: str, text_of: Callable[[GroupView], str], lines: bool, every_s: float
) -> NoReturn:
    """Draw the group in place on a terminal, else one below the other (``lines``: a line each), until Ctrl-C."""
    with Screen() as screen:
        while True:
            text = text_of(GroupView(group, await client.status()))
            if lines:
                click.echo(text)
            else:
                screen.draw(text)
            await asyncio.sleep(max(every_s, _POLL_S))


async def wait_for_leader(
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
