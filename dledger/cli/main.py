"""Entry point: the lazy group of verbs, and how every ending becomes an exit code."""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

import click

from dledger.cli.exit_codes import ExitCode
from dledger.errors import ConfigError, DLedgerError
from dledger.grpc_engine import prefer_polling

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

__all__ = ["COMMANDS", "cli", "main"]

COMMANDS: Final[dict[str, tuple[str, str]]] = {
    "start": ("dledger.cli.start:start", "Run one node until SIGTERM or Ctrl-C."),
    "status": ("dledger.cli.status:status", "Show every node: role, term, log, lag. Dead ones too."),
    "health": ("dledger.cli.health:health", "Say in one line whether the group works; exit code 0 or 3."),
    "append": ("dledger.cli.append:append", "Append TEXT, or standard input line by line."),
    "get": ("dledger.cli.read:get", "Print one entry."),
    "tail": ("dledger.cli.read:tail", "Print entries in order; -f goes on with new ones."),
    "transfer": ("dledger.cli.leadership:transfer", "Hand leadership to another node."),
    "step-down": ("dledger.cli.leadership:step_down", "Make the leader give up leadership."),
    "dev": ("dledger.cli.dev:dev", "A group on this machine to try things on, with a page."),
    "kill": ("dledger.cli.dev:kill", "Kill -9 a node of the dev group."),
    "pause": ("dledger.cli.dev:pause", "Stop a node of the dev group without ending it (SIGSTOP)."),
    "resume": ("dledger.cli.dev:resume", "Let a paused node go on, or start a killed one again."),
    "cut": ("dledger.cli.dev:cut", "Cut a node of the dev group off from the others."),
    "heal": ("dledger.cli.dev:heal", "Undo kills, pauses and cuts in the dev group."),
    "dashboard": ("dledger.cli.dashboard:dashboard", "Serve the live page of any group."),
    "top": ("dledger.cli.top:top", "Watch a group in the terminal: roles, rates, lag, events."),
    "bench": ("dledger.cli.bench:bench", "Measure throughput and latency of appends."),
    "config": ("dledger.cli.config_command:config", "Check, show, explain or make configuration files."),
    "certs": ("dledger.cli.certs:certs", "Make throw-away certificates for TLS."),
    "log": ("dledger.cli.log_command:log", "Verify or dump a data folder, offline."),
    "unsafe-new-group": ("dledger.cli.unsafe:new_group", "Give a survivor's log to a new group. May lose entries."),
    "sim": ("dledger.sim.command:sim", "Run seeded simulations of a whole group."),
    "chaos": ("dledger.cli.chaos:chaos", "Hurt a group under load and say whether the log kept its promises."),
    "report": ("dledger.cli.chaos:report", "Judge a chaos run again from its history, and draw it."),
    "completion": ("dledger.cli.completion:completion", "Print a completion script for bash, zsh or fish."),
    "version": ("dledger.cli.version:version", "Print versions."),
}
"""Verb → (where it is, one line of help). The help stands here so that ``dledger --help`` imports none of them."""


def _is_there(name: str) -> bool:
    """Whether this installation has the command: packages for developers may be left out. Imports no command."""
    return name in COMMANDS and importlib.util.find_spec(COMMANDS[name][0].partition(":")[0]) is not None


class _LazyGroup(click.Group):
    """A group whose commands are imported when they are run."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [name for name in COMMANDS if _is_there(name)]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if not _is_there(cmd_name):
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


@click.group(cls=_LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
def cli() -> None:
    """A Raft-replicated commit log that survives kill -9.

    The nodes are named by --peers and --group, by DLEDGER_PEERS and DLEDGER_GROUP, or by -c FILE. Results go to
    standard output, everything else to standard error.
    """


def _say(text: str) -> None:
    click.echo(text, err=True)


def _run(arguments: Sequence[str] | None) -> int:
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


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the ``dledger`` command and leave the process with its exit code."""
    prefer_polling()
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")  # else gRPC reports every peer that stops on standard error
    try:
        code = _run(arguments)
        sys.stdout.flush()
    except BrokenPipeError:
        # The reader has had enough (``| head``). Nothing may be written at shutdown either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = ExitCode.FAILED
    sys.exit(int(code))


if __name__ == "__main__":
    main()
