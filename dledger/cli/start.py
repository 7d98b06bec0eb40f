"""``dledger start``: one node in the foreground."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import click
import structlog

from dledger.cli.exit_codes import ExitCode
from dledger.cli.options import parse_overrides
from dledger.cli.runtime import report, run
from dledger.config import DLedgerConfig
from dledger.errors import ConfigError, DLedgerError
from dledger.log import configure_logging
from dledger.process_memory import freeze_objects, keep_freed_memory, use_large_pages

__all__ = ["start"]

_STOP_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT)
_LAST_WORDS_S: Final = 5.0
"""How long a node that has failed may take to write its crash file, answer its clients and end."""


@click.command()
@click.option("-c", "--config", "file", type=click.Path(), metavar="FILE", help="The node's key=value file.")
@click.option("-D", "overrides", multiple=True, metavar="KEY=VALUE", help="Set a key; beats environment and file.")
@click.option("--pid-file", type=click.Path(path_type=Path), help="Write the process id here; removed at the end.")
@click.option("--check", is_flag=True, help="Check the configuration and stop.")
@click.option(
    "--insecure", is_flag=True, help="Allow plaintext on addresses that others can reach (allowPlaintext=all)."
)
def start(file: str | None, overrides: tuple[str, ...], pid_file: Path | None, check: bool, insecure: bool) -> int:
    """Run one node until SIGTERM or Ctrl-C, which hand leadership over first.

    Logs one "ready" event to standard error when the node serves.
    """
    values = parse_overrides(overrides)
    config = DLedgerConfig.from_file(file, {**values, "allowPlaintext": "all"} if insecure else values)
    for note in config.notes:
        click.echo(f"note: {note}", err=True)
    if check:
        click.echo(f"ok ({config.group} {config.self_id} of {len(config.peers)}, {config.bind_address})")
        return ExitCode.DONE
    configure_logging(config.log_level, config.log_format)
    keep_freed_memory()
    with _pid_file(pid_file):
        return run(_serve(config))


@contextmanager
def _pid_file(path: Path | None) -> Iterator[None]:
    """Keep this process's id in a file while it runs; the file goes only if it is still ours."""
    if path is None:
        yield
        return
    own = f"{os.getpid()}\n"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f"{path.name}.{os.getpid()}")
        temporary.write_text(own, encoding="ascii")
        temporary.replace(path)
    except OSError as error:
        raise click.ClickException(f"pid file {path}: {error.strerror}") from error
    try:
        yield
    finally:
        try:
            if path.read_text(encoding="ascii") == own:
                path.unlink()
        except OSError:
            # Someone removed it before us, which is all that was wanted.
            pass


async def _serve(config: DLedgerConfig) -> int:
    """Run the node until a signal, or until it stops by itself."""
    from dledger.server import DLedgerServer

    log = structlog.get_logger().bind(group_id=config.group, node_id=config.self_id)
    stop_asked = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in _STOP_SIGNALS:
        loop.add_signal_handler(number, stop_asked.set)
    server = DLedgerServer(config)
    try:
        await server.start()
    except ConfigError:
        raise
    except DLedgerError as error:
        await server.stop()
        report(error)
        return ExitCode.FAILED
    log.info(
        "ready",
        address=config.peer.address,
        bind=config.bind_address,
        pid=os.getpid(),
        flush=config.flush_disk_type,
        metrics=server.metrics_address,
        tls=config.tls_cert_file is not None,
        tokens=config.tokens_file is not None,
    )
    freeze_objects()
    use_large_pages()
    stopped = asyncio.ensure_future(server.wait_stopped())
    asked = asyncio.ensure_future(stop_asked.wait())
    await asyncio.wait({stopped, asked}, return_when=asyncio.FIRST_COMPLETED)
    asked.cancel()
    if stopped.done():
        _end_in_any_case(ExitCode.FAILED)
    # From here on a second signal ends the process the hard way: nothing acknowledged can be lost by it.
    for number in _STOP_SIGNALS:
        loop.remove_signal_handler(number)
        signal.signal(number, signal.SIG_DFL)
    await server.stop()
    return await _verdict(stopped, asked_to=stop_asked.is_set())


def _end_in_any_case(code: int) -> None:
    """End the process in a few seconds if its own clean-up does not: a disk that hangs must not keep a node half alive.

    What is acknowledged is on disks already; nothing can be lost by it.
    """
    timer = threading.Timer(_LAST_WORDS_S, os._exit, (code,))
    timer.daemon = True
    timer.start()


async def _verdict(stopped: asyncio.Future[None], *, asked_to: bool) -> int:
    """Return the exit code: a node that stopped by itself has failed, and says why."""
    try:
        await stopped
    except Exception as error:  # whatever ended the node is reported, and ends the process
        structlog.get_logger().error("node_failed", error=str(error), kind=type(error).__name__)
        report(error)
        return ExitCode.FAILED
    return ExitCode.DONE if asked_to else ExitCode.FAILED
