"""The verbs of ``dledger``, and its help. Imports next to nothing, not even click: help and version come at once."""

from __future__ import annotations

import importlib.util
import textwrap
from collections.abc import Iterable, Sequence
from typing import Final

from dledger.cli.exit_codes import ExitCode

__all__ = ["COMMANDS", "DESCRIPTION", "MAX_WIDTH", "help_text", "installed_verbs", "is_installed"]

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


DESCRIPTION: Final = """A Raft-replicated commit log that survives kill -9.

The nodes are named by --peers and --group, by DLEDGER_PEERS and DLEDGER_GROUP, or by -c FILE. Results go to
standard output, everything else to standard error."""

_OPTIONS: Final = (("--version", "Show the version and exit."), ("-h, --help", "Show this message and exit."))

MAX_WIDTH: Final = 100
"""Columns that help is never wider than."""

_MIN_WIDTH: Final = 50
_INDENT: Final = 2
_GAP: Final = 2


def is_installed(name: str) -> bool:
    """Whether this installation has the command: packages for developers may be left out. Imports no command."""
    return name in COMMANDS and importlib.util.find_spec(COMMANDS[name][0].partition(":")[0]) is not None


def installed_verbs() -> list[str]:
    """Return the names of the commands that are there, in the order in which they are shown."""
    return [name for name in COMMANDS if is_installed(name)]


def help_text(columns: int) -> str:
    """Return what ``dledger --help`` prints on a terminal of so many columns, to the letter as click would write it.

    Loading click takes three times as long as starting Python; a test compares the two.
    """
    width = max(min(columns, MAX_WIDTH) - 2, _MIN_WIDTH)
    indent = " " * _INDENT
    paragraphs = (
        textwrap.fill(" ".join(text.split()), width, initial_indent=indent, subsequent_indent=indent)
        for text in DESCRIPTION.split("\n\n")
    )
    sections = (
        ("Options", _OPTIONS),
        ("Commands", [(name, COMMANDS[name][1]) for name in installed_verbs()]),
        ("Exit codes", [(str(int(code)), code.meaning) for code in ExitCode]),
    )
    return "\n\n".join(
        [
            "Usage: dledger [OPTIONS] COMMAND [ARGS]...",
            *paragraphs,
            *(f"{title}:\n" + "\n".join(_definitions(rows, width)) for title, rows in sections),
        ]
    )


def _definitions(rows: Sequence[tuple[str, str]], width: int) -> Iterable[str]:
    """Yield lines in two columns; what does not fit the second goes on below itself."""
    first = max(len(term) for term, _ in rows) + _GAP
    for term, text in rows:
        lines = textwrap.wrap(text, max(width - first - _INDENT, 10))
        yield f"{'':{_INDENT}}{term:<{first}}{lines[0]}"
        yield from (f"{'':{_INDENT + first}}{line}" for line in lines[1:])
