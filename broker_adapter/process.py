"""What `mqnamesrv` and `mqbroker` share: the loop, signals, the pid file, the last words."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import threading
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, Protocol

import click

from dledger.errors import ConfigError, DLedgerError
from dledger.process_memory import freeze_objects, keep_freed_memory, use_large_pages

__all__ = ["EXIT_CONFIGURATION", "EXIT_FAILED", "Service", "pid_file", "run_command", "run_loop", "serve"]

EXIT_FAILED: Final = 1
EXIT_USAGE: Final = 2
EXIT_CONFIGURATION: Final = 4
EXIT_INTERRUPTED: Final = 130
_STOP_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT)
_LAST_WORDS_S: Final = 5.0
"""How long a process whose store has failed may take to end."""


class Service(Protocol):
    """Something that runs until it is stopped."""

    async def start(self) -> None: ...

    async def stop(self) -> None: ...


def run_loop(main: Coroutine[Any, Any, int]) -> int:
    """Run a coroutine to its end, on uvloop where that is installed."""
    keep_freed_memory()
    try:
        from uvloop import new_event_loop  # noqa: PLC0415 - optional
    except ImportError:
        return asyncio.run(main)
    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        return runner.run(main)


async def serve(service: Service, failed: asyncio.Future[BaseException] | None = None) -> int:
    """Start ``service``, run until SIGTERM or SIGINT (or until ``failed``), stop it; returns the exit code."""
    loop = asyncio.get_running_loop()
    asked = asyncio.Event()
    for number in _STOP_SIGNALS:
        loop.add_signal_handler(number, asked.set)
    try:
        await service.start()
    except DLedgerError:
        await service.stop()
        raise
    freeze_objects()
    use_large_pages()
    waiting: set[asyncio.Future[Any]] = {asyncio.ensure_future(asked.wait())}
    failure = failed if failed is not None else getattr(service, "failure", None)
    if failure is not None:
        waiting.add(failure)
    await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
    if not asked.is_set():
        # A store that has failed may hang in its clean-up: no process stays half alive.
        timer = threading.Timer(_LAST_WORDS_S, os._exit, (EXIT_FAILED,))
        timer.daemon = True
        timer.start()
    # A second signal ends the process the hard way.
    for number in _STOP_SIGNALS:
        loop.remove_signal_handler(number)
        signal.signal(number, signal.SIG_DFL)
    await service.stop()
    if asked.is_set():
        return 0
    for task in waiting:
        if task is not failure:
            task.cancel()
    return EXIT_FAILED


@contextmanager
def pid_file(path: Path | None) -> Iterator[None]:
    """Keep this process's id in ``path`` while it runs; the file goes only if it is still ours."""
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


def run_command(command: click.Command, name: str) -> None:
    """Run a click command and leave the process with its exit code: the entry points' body."""
    try:
        result = command.main(prog_name=name, standalone_mode=False)
        code = result if isinstance(result, int) else 0
        sys.stdout.flush()
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message(), err=True)
        code = EXIT_USAGE
    except click.UsageError as error:
        error.show()
        code = EXIT_USAGE
    except click.ClickException as error:
        error.show()
        code = EXIT_FAILED
    except (click.Abort, KeyboardInterrupt):
        click.echo("interrupted", err=True)
        code = EXIT_INTERRUPTED
    except ConfigError as error:
        for problem in error.problems:
            click.echo(problem, err=True)
        code = EXIT_CONFIGURATION
    except DLedgerError as error:
        click.echo(f"{name}: {error.code.name}: {error}", err=True)
        code = EXIT_FAILED
    except BrokenPipeError:
        # The reader has had enough (``| head``). Nothing may be written at shutdown either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = EXIT_FAILED
    sys.exit(code)
