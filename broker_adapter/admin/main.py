"""``mqadmin COMMAND``: upstream's command names, options and columns, ``-o json``, and exit codes that mean something.

0 done, 1 refused or failed, 2 wrong usage, 5 nobody reachable, 6 not found.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Awaitable, Callable
from functools import wraps
from itertools import pairwise
from typing import Any, Final, ParamSpec

import click

from broker_adapter.admin.client import AdminClient, NotFoundError
from broker_adapter.process import run_command
from broker_adapter.remoting.errors import CommandError, RemotingError

__all__ = ["cli", "main", "output_option", "runs"]

EXIT_REFUSED: Final = 1
EXIT_UNREACHABLE: Final = 5
EXIT_NOT_FOUND: Final = 6

P = ParamSpec("P")

output_option = click.option(
    "-o", "--output", type=click.Choice(["table", "json"]), default="table", show_default=True, help="How to print."
)


def _servers(text: str | None) -> tuple[str, ...]:
    given = text or os.environ.get("NAMESRV_ADDR", "")
    return tuple(part.strip() for part in given.replace(",", ";").split(";") if part.strip())


async def _run(namesrv: str | None, body: Callable[[AdminClient], Awaitable[int | None]]) -> int:
    client = AdminClient(_servers(namesrv))
    try:
        return await body(client) or 0
    except NotFoundError as error:
        click.echo(f"mqadmin: {error}", err=True)
        return EXIT_NOT_FOUND
    except CommandError as error:
        click.echo(f"mqadmin: {error}", err=True)
        return EXIT_REFUSED
    except RemotingError as error:
        click.echo(f"mqadmin: {error}", err=True)
        return EXIT_UNREACHABLE
    finally:
        await client.close()


def runs(function: Callable[..., Awaitable[int | None]]) -> Callable[..., int]:
    """Make a command of ``async def f(client, …)``: adds ``-n``, opens the client, turns errors into exit codes."""

    @click.option("-n", "--namesrvAddr", "namesrv", metavar="ADDRESS", help="Name servers; default: NAMESRV_ADDR.")
    @wraps(function)
    def command(*args: Any, namesrv: str | None, **kwargs: Any) -> int:  # noqa: ANN401 - click's own arguments
        return asyncio.run(_run(namesrv, lambda client: function(client, *args, **kwargs)))

    return command


class _Command(click.Command):
    """A command. ``-o json`` and ``-o table`` say how to print even where ``-o`` is something else with upstream."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        for number, (option, value) in enumerate(pairwise(args)):
            if option == "-o" and value in {"json", "table"}:
                args = [*args[:number], "--output", *args[number + 1 :]]
        return super().parse_args(ctx, args)


class _Group(click.Group):
    command_class = _Command


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
def cli() -> None:
    """Operate name servers and brokers. Results go to standard output, everything else to standard error."""


def main() -> None:
    """Entry point."""
    # Registers its commands with `cli`.
    import broker_adapter.admin.commands  # noqa: F401, PLC0415 - they need this module first

    if len(sys.argv) > 2 and sys.argv[1] == "help":
        sys.argv[1:] = [sys.argv[2], "--help"]
    run_command(cli, "mqadmin")


if __name__ == "__main__":
    main()
