"""``dledger health``: one line and an exit code, for people, scripts and monitoring."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import click

from dledger.cli.exit_codes import ExitCode
from dledger.cli.group_view import GroupView, NodeRow
from dledger.cli.options import resolve_target, seconds, target_options
from dledger.cli.runtime import run, with_client
from dledger.errors import AccessDeniedError, DLedgerError

if TYPE_CHECKING:
    from dledger.client import LedgerClient

__all__ = ["Health", "health", "judge"]

_POLL_S: Final = 0.1
_READ_S: Final = 1.0
_MAX_LAG_ENTRIES: Final = 1000
"""A node further behind is a warning: the default of maxLeadershipTransferWaitIndex."""
_LOW_DISK: Final = 0.05

_NAGIOS: Final = ("OK", "WARNING", "CRITICAL")
_WORDS: Final = ("HEALTHY", "DEGRADED", "UNHEALTHY")


@dataclass(frozen=True, slots=True)
class Health:
    """``severity`` 0: all is well; 1: it works, something is wrong; 2: it does not work. ``reasons`` in words."""

    severity: int
    view: GroupView
    reasons: tuple[str, ...]

    @property
    def exit_code(self) -> ExitCode:
        """DONE while the group works, else NO_QUORUM or UNREACHABLE."""
        if self.severity < 2:
            return ExitCode.DONE
        return ExitCode.UNREACHABLE if not self.view.up_count else ExitCode.NO_QUORUM

    def sentence(self) -> str:
        """Return the group in one line."""
        view = self.view
        facts = f"{view.up_count} of {len(view.rows)} up, leader {view.leader_id or 'none'}, term {view.term}"
        return f"group {view.group}: {'; '.join([facts, *self.reasons])}"

    def as_text(self) -> str:
        return f"{_WORDS[self.severity]}  {self.sentence()}"

    def as_nagios(self) -> str:
        """Return the line of a Nagios plug-in, with performance data behind the bar."""
        view = self.view
        lag = max((row.lag_entries for row in view.rows if row.up), default=0)
        data = f"up={view.up_count};;{view.quorum}:;0;{len(view.rows)} lag_entries={lag};{_MAX_LAG_ENTRIES};;0"
        return f"DLEDGER {_NAGIOS[self.severity]} - {self.sentence()} | {data}"

    def as_json(self) -> str:
        view = self.view
        return json.dumps(
            {
                "schema": "dledger.health/v1",
                "status": _WORDS[self.severity].lower(),
                "group": view.group,
                "leader": view.leader_id,
                "term": view.term,
                "up_count": view.up_count,
                "node_count": len(view.rows),
                "quorum": view.quorum,
                "reasons": list(self.reasons),
            },
            ensure_ascii=False,
        )


def _node_reasons(row: NodeRow) -> list[str]:
    if not row.up:
        return [f"{row.node_id} is down ({row.note})"]
    reasons = [f"{row.node_id}: {row.note}"] if row.note else []
    if row.lag_entries > _MAX_LAG_ENTRIES:
        reasons.append(f"{row.node_id} is {row.lag_entries} entries behind")
    status = row.status
    if status is not None and 0 <= status.disk_free_bytes < _LOW_DISK * status.disk_total_bytes:
        reasons.append(
            f"{row.node_id} has {100 * status.disk_free_bytes // status.disk_total_bytes} % of its disk free"
        )
    return reasons


def judge(view: GroupView, read_error: str | None) -> Health:
    """Return a group's health. ``read_error``: why a linearizable read failed just now; None: it worked, so a majority
    with a leader has just been seen at work, which no list of nodes can prove."""
    reasons = [reason for row in view.rows for reason in _node_reasons(row)]
    if not view.up_count:
        return Health(2, view, ("nobody reachable", *reasons))
    if view.up_count < view.quorum:
        return Health(2, view, (f"no quorum: {view.quorum} nodes are needed", *reasons))
    if view.leader_id is None:
        return Health(2, view, ("no leader", *reasons))
    if read_error is not None:
        return Health(2, view, (f"a linearizable read fails: {read_error}", *reasons))
    return Health(1 if reasons else 0, view, tuple(reasons))


async def _look(client: LedgerClient, group: str) -> Health:
    read, nodes = await asyncio.gather(client.commit_index(timeout=_READ_S), client.status(), return_exceptions=True)
    if isinstance(nodes, BaseException):
        raise nodes
    if isinstance(read, BaseException) and not isinstance(read, DLedgerError):
        raise read
    # A token without the right to read proves nothing either way: what the nodes say has to do.
    failed = isinstance(read, DLedgerError) and not isinstance(read, AccessDeniedError)
    return judge(GroupView(group, nodes), str(read) if failed else None)


async def _wait_healthy(client: LedgerClient, group: str, wait_s: float) -> Health:
    """Return the first answer without a complaint, or the last one within ``wait_s``."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + wait_s
    while True:
        found = await _look(client, group)
        if found.severity == 0 or loop.time() + _POLL_S >= deadline:
            return found
        await asyncio.sleep(_POLL_S)


_FORMATS: Final[Sequence[str]] = ("text", "nagios", "json")


@click.command()
@target_options
@click.option("--wait", type=seconds, metavar="TIME", default="0", help="Wait this long for all to be well.")
@click.option(
    "--format", "format_", type=click.Choice(_FORMATS), default="text", show_default=True, help="Output format."
)
def health(peers: str | None, group: str | None, config_file: str | None, wait: float, format_: str) -> int:
    """Say in one line whether the group works: a leader, a majority, and a linearizable read just now.

    Exit code 0: it works (DEGRADED says what is wrong all the same); 3: no leader or no quorum; 5: nobody reachable.
    With --format nagios: 0 OK, 1 WARNING, 2 CRITICAL.
    """
    target = resolve_target(peers, group, config_file)

    async def body(client: LedgerClient) -> int:
        found = await _wait_healthy(client, target.group, wait)
        text = {"text": found.as_text, "nagios": found.as_nagios, "json": found.as_json}[format_]()
        click.echo(text)
        return found.severity if format_ == "nagios" else found.exit_code

    return run(with_client(target, body, timeout=_READ_S, session=False))
