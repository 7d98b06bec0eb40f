"""Running coroutines from the command line: the loop, the client, and what an error means for the exit code."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Awaitable, Callable, Coroutine
from typing import TYPE_CHECKING, Any, TypeVar

import click

from dledger.cli.exit_codes import ExitCode
from dledger.cli.options import Target
from dledger.cli.words import plain_words
from dledger.errors import (
    ConfigError,
    DLedgerError,
    LeaderNotReadyError,
    NotLeaderError,
    QuorumTimeoutError,
    TermChangedError,
    UnavailableError,
)

if TYPE_CHECKING:
    from dledger.client import LedgerClient

__all__ = ["diagnose", "majority", "on_stop_signals", "report", "run", "until", "with_client"]

_T = TypeVar("_T")

_PERHAPS_NO_QUORUM = (
    UnavailableError,
    QuorumTimeoutError,
    LeaderNotReadyError,
    NotLeaderError,
    TermChangedError,
    TimeoutError,
)


def run(main: Coroutine[Any, Any, _T]) -> _T:
    """Run a coroutine to its end, on uvloop where that is installed. SIGTERM cancels it, so that it tidies up.

    Raises:
        click.Abort: SIGTERM came.
    """
    try:
        from uvloop import new_event_loop
    except ImportError:
        return asyncio.run(_until_terminated(main))
    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        return runner.run(_until_terminated(main))


def on_stop_signals(act: Callable[[], None]) -> None:
    """Call ``act`` on Ctrl-C, SIGTERM and SIGHUP from now on; SIGHUP only if nobody (nohup) has it ignored."""
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if number is not signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN:
            loop.add_signal_handler(number, act)


async def until(ended: asyncio.Event, failed: asyncio.Future[BaseException]) -> None:
    """Return when ``ended`` is set.

    Raises:
        BaseException: what ``failed`` has got before that.
    """
    waiting = asyncio.ensure_future(ended.wait())
    both: set[asyncio.Future[Any]] = {waiting, failed}
    try:
        await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
    finally:
        waiting.cancel()
    if failed.done() and not ended.is_set():
        raise failed.result()


async def _until_terminated(main: Coroutine[Any, Any, _T]) -> _T:
    task = asyncio.ensure_future(main)
    terminated = False

    def terminate() -> None:
        nonlocal terminated
        terminated = True
        task.cancel()

    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, terminate)
    try:
        return await task
    except asyncio.CancelledError:
        # Either way the task has ended by now, its clean-up included.
        if terminated:
            raise click.Abort from None
        raise


def majority(count: int) -> int:
    """Return how many of ``count`` voters make a quorum."""
    return count // 2 + 1


def report(error: BaseException) -> None:
    """Say on standard error what went wrong, with DLedger's name for it."""
    if isinstance(error, DLedgerError):
        click.echo(f"dledger: {error.code.name}: {plain_words(str(error))}", err=True)
    else:
        click.echo(f"dledger: {error or type(error).__name__}", err=True)


async def diagnose(client: LedgerClient, error: BaseException) -> ExitCode:
    """Tell why a call failed: nobody is there, there is no quorum, or something else."""
    if not isinstance(error, _PERHAPS_NO_QUORUM):
        return ExitCode.FAILED
    nodes = await client.status()
    up = [node for node in nodes if hasattr(node, "role")]
    if not up:
        return ExitCode.UNREACHABLE
    if len(up) < majority(len(nodes)) or not any(node.role == "leader" for node in up):
        return ExitCode.NO_QUORUM
    return ExitCode.FAILED


async def with_client(
    target: Target, body: Callable[[LedgerClient], Awaitable[int]], *, timeout: float, session: bool = True
) -> int:
    """Open a client, run ``body`` with it, and turn a typed error into words and an exit code."""
    from dledger.client import connect

    async with connect(
        target.peers, group=target.group, timeout=timeout, session=session, tls=target.tls, token=target.token
    ) as client:
        try:
            return await body(client)
        except ConfigError:
            raise
        except (DLedgerError, TimeoutError) as error:
            report(error)
            return await diagnose(client, error)
