"""``dledger get`` and ``dledger tail``."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Final

import click

from dledger.cli.entries import as_json_line, as_row
from dledger.cli.exit_codes import ExitCode
from dledger.cli.options import output_option, resolve_target, seconds, target_options
from dledger.cli.runtime import run, with_client
from dledger.types import Entry, ReadMode

if TYPE_CHECKING:
    from dledger.client import LedgerClient

__all__ = ["get", "tail"]

_HEADER: Final = f"{'INDEX':>10}  {'TERM':>6}  {'TYPE':<8}  BODY\n".encode()


def _mode(local: bool) -> ReadMode:
    return ReadMode.LOCAL_COMMITTED if local else ReadMode.LINEARIZABLE


def _encode(entry: Entry, output: str) -> bytes:
    if output == "json":
        return as_json_line(entry)
    return as_row(entry) if output == "table" else entry.body + b"\n"


@click.command(context_settings={"ignore_unknown_options": True})  # so that "get -1" reaches the group and is refused
@click.argument("index", type=int)
@target_options
@output_option("plain", "table", "json", default="plain")
@click.option("-J", "json_lines", is_flag=True, help="The same as -o json.")
@click.option("--local", is_flag=True, help="What the node asked knows is committed; may be behind.")
@click.option("--timeout", type=seconds, default="5s", show_default=True)
def get(
    index: int,
    peers: str | None,
    group: str | None,
    config_file: str | None,
    output: str,
    json_lines: bool,
    local: bool,
    timeout: float,
) -> int:
    """Print the body of entry INDEX and a line feed; -o json prints all of it."""
    target = resolve_target(peers, group, config_file)

    async def body(client: LedgerClient) -> int:
        entry = await client.get(index, mode=_mode(local))
        sys.stdout.buffer.write(_encode(entry, "json" if json_lines else output))
        return ExitCode.DONE

    return run(with_client(target, body, timeout=timeout, session=False))


@click.command()
@target_options
@output_option("plain", "table", "json", default="plain")
@click.option("-J", "json_lines", is_flag=True, help="One JSON line for each entry (the same as -o json).")
@click.option("--from", "first", type=click.IntRange(min=0), default=0, show_default=True, metavar="N")
@click.option("-f", "--follow", is_flag=True, help="Go on with new entries as they are committed.")
@click.option("--all-types", is_flag=True, help="No-op and session entries too.")
@click.option("--local", is_flag=True, help="What the node asked knows is committed; may be behind.")
@click.option("--timeout", type=seconds, default="30s", show_default=True, help="Give up when nobody answers so long.")
def tail(
    peers: str | None,
    group: str | None,
    config_file: str | None,
    output: str,
    json_lines: bool,
    first: int,
    follow: bool,
    all_types: bool,
    local: bool,
    timeout: float,
) -> int:
    """Print entries from index N to the commit index, one body per line; -f goes on.

    -J prints {"index": i, "term": t, "type": "normal", "body": "…"}, with body_base64 where it is not UTF-8.
    """
    target = resolve_target(peers, group, config_file)
    wanted = "json" if json_lines else output

    async def body(client: LedgerClient) -> int:
        out = sys.stdout.buffer
        if wanted == "table":
            out.write(_HEADER)
        async for entry in client.read(first, follow=follow, mode=_mode(local), all_types=all_types):
            out.write(_encode(entry, wanted))
            if follow:
                # A reader at the other end of a pipe wants each entry now.
                out.flush()
        return ExitCode.DONE

    return run(with_client(target, body, timeout=timeout, session=False))
