"""The lazy group of verbs, and how every ending becomes an exit code."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from dledger.cli.exit_codes import ExitCode
from dledger.cli.verbs import COMMANDS, DESCRIPTION, MAX_WIDTH, installed_verbs, is_installed
from dledger.errors import ConfigError, DLedgerError
from dledger.version import VERSION

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

__all__ = ["cli", "run_command"]


class _LazyGroup(click.Group):
    """A group whose commands are imported when they are run."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return installed_verbs()

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if not is_installed(cmd_name):
            return None
        module_name, _, attribute = COMMANDS[cmd_name][0].partition(":")
        command = getattr(importlib.import_module(module_name), attribute)
        return command if isinstance(command, click.Command) else None

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem[str]]:
        """Names and help from the table: click's own way would import every command on each Tab."""
        from click.shell_completion import CompletionItem

        return [
            *(
                CompletionItem(name, help=COMMANDS[name][1])
                for name in self.list_commands(ctx)
                if name.startswith(incomplete)
            ),
            *click.Command.shell_complete(self, ctx, incomplete),
        ]

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, COMMANDS[name][1]) for name in self.list_commands(ctx)])

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Exit codes"):
            formatter.write_dl([(str(int(code)), code.meaning) for code in ExitCode])


@click.group(
    cls=_LazyGroup,
    help=DESCRIPTION,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": MAX_WIDTH},
)
@click.version_option(VERSION, message="dledger %(version)s")
def cli() -> None:
    """The group itself does nothing."""


def _say(text: str) -> None:
    click.echo(text, err=True)


def run_command(arguments: Sequence[str] | None) -> int:
    """Run a command line; returns the exit code of every ending that has one."""
    try:
        result = cli.main(
            args=None if arguments is None else list(arguments), prog_name="dledger", standalone_mode=False
        )
    except click.exceptions.NoArgsIsHelpError as error:
        _say(error.format_message())
        return ExitCode.USAGE
    except click.UsageError as error:
        error.show()
        return ExitCode.USAGE
    except click.ClickException as error:
        error.show()
        return ExitCode.FAILED
    except (click.Abort, KeyboardInterrupt):
        _say("interrupted")
        return ExitCode.INTERRUPTED
    except ConfigError as error:
        for problem in error.problems:
            _say(problem)
        _say(f"{len(error.problems)} error{'s' if len(error.problems) > 1 else ''}")
        return ExitCode.CONFIGURATION
    except DLedgerError as error:
        _say(f"dledger: {error.code.name}: {error}")
        return ExitCode.FAILED
    return result if isinstance(result, int) else ExitCode.DONE
