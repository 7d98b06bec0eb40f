"""``dledger dashboard``: the live page of any group, from a process that only watches."""

from __future__ import annotations

import asyncio
import ipaddress
from contextlib import AsyncExitStack
from typing import Final

import click

from dledger.cli.exit_codes import ExitCode
from dledger.cli.options import Target, resolve_target, target_options
from dledger.cli.runtime import on_stop_signals, run, until
from dledger.cli.watching import make_watcher
from dledger.errors import DLedgerError

__all__ = ["dashboard"]

_PORT: Final = 8911


@click.command()
@target_options
@click.option("--bind", default="127.0.0.1", show_default=True, metavar="ADDRESS", help="Where to serve.")
@click.option("--port", type=click.IntRange(0, 65535), default=_PORT, show_default=True, help="0: any free one.")
@click.option("--namesrv", metavar="HOST:PORT", help="Name servers (;-separated) of brokers on the log, for a tab.")
@click.option("--insecure", is_flag=True, help="Serve without TLS on an address that others can reach.")
def dashboard(
    peers: str | None,
    group: str | None,
    config_file: str | None,
    bind: str,
    port: int,
    namesrv: str | None,
    insecure: bool,
) -> int:
    """Serve the live page until Ctrl-C: roles, log, rates, lag, events. It only reads.

    Whoever reaches the port sees what ``dledger status`` shows. It has no TLS and no login of its own: put a proxy
    before it where that matters.
    """
    from dledger.dev.session import page_missing

    missing = page_missing()
    if missing:
        raise click.ClickException(missing)
    if not _is_loopback(bind) and not insecure:
        raise click.UsageError(f"{bind} can be reached by others, without TLS; --insecure if that is what you want")
    return run(_serve(resolve_target(peers, group, config_file), bind, port, namesrv))


def _is_loopback(bind: str) -> bool:
    try:
        return ipaddress.ip_address(bind).is_loopback
    except ValueError:
        return bind == "localhost"


async def _serve(target: Target, bind: str, port: int, namesrv: str | None) -> int:
    from dledger.dashboard.server import PageServer
    from dledger.dev.brokers import make_view
    from dledger.dev.ports import claim
    from dledger.dev.session import show_brokers

    ended = asyncio.Event()
    on_stop_signals(ended.set)
    async with AsyncExitStack() as stack:
        try:
            sock = claim(bind, port)
        except DLedgerError as error:
            click.echo(f"dledger: {error}; give another --port", err=True)
            return ExitCode.FAILED
        watcher = make_watcher(target)
        server = PageServer(watcher, sock)
        stack.push_async_callback(server.stop)
        await watcher.start()
        stack.push_async_callback(watcher.stop)
        if namesrv:
            task = asyncio.ensure_future(show_brokers(watcher, make_view(namesrv)))
            stack.callback(task.cancel)
        server.start()
        click.echo(f"page  {server.url}")
        await until(ended, watcher.failed)
    return ExitCode.DONE
