"""Options that several verbs share, and what they mean."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar

import click

from dledger.cli.access import access_options, resolve_tls, resolve_token
from dledger.errors import ConfigError, DLedgerError
from dledger.security.access import ClientTls

__all__ = [
    "GROUP_VARIABLES",
    "PEERS_VARIABLES",
    "Target",
    "output_option",
    "parse_overrides",
    "per_second",
    "resolve_target",
    "seconds",
    "target_options",
]

_F = TypeVar("_F", bound=Callable[..., Any])

_DURATION: Final = re.compile(r"(\d+(?:\.\d+)?)\s*(|ms|s|m|min|h)", re.ASCII)
_UNITS_S: Final = {"": 1.0, "ms": 0.001, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0}
PEERS_VARIABLES: Final = ("DLEDGER_PEERS", "DLEDGER_DLEGER_PEERS")
GROUP_VARIABLES: Final = ("DLEDGER_GROUP", "DLEDGER_DLEGER_GROUP")
"""As a node's configuration knows them; that is imported where a file has to be read."""


@dataclass(frozen=True, slots=True)
class Target:
    """The group of nodes that a command talks to; ``peers`` in any form that ``dledger.connect`` takes."""

    peers: str
    group: str
    tls: ClientTls | None = None
    token: str | None = field(default=None, repr=False)

    def access(self) -> dict[str, Any]:
        """Return what ``dledger.connect`` needs beside the peers to be let in."""
        return {"tls": self.tls, "token": self.token}


def seconds(text: str) -> float:
    """Read a duration as a click type: ``5``, ``0.5s``, ``200ms``, ``2min``. A plain number is seconds."""
    match = _DURATION.fullmatch(text.strip())
    if match is None:
        raise click.BadParameter(f'"{text}" is not a duration; write 5s, 200ms or 2min')
    return float(match[1]) * _UNITS_S[match[2]]


def per_second(text: str) -> float:
    """Read a rate as a click type: ``2000`` or ``2000/s``."""
    try:
        value = float(text.strip().removesuffix("/s"))
    except ValueError:
        value = 0.0
    if not 0 < value < math.inf:
        raise click.BadParameter(f'"{text}" is not a rate; write 2000 or 2000/s')
    return value


def target_options(command: _F) -> _F:
    """Add ``--peers``, ``--group``, ``-c`` and the access options to a command that talks to nodes."""
    command = access_options(command)
    for option in (
        click.option(
            "-c",
            "--config",
            "config_file",
            type=click.Path(),
            metavar="FILE",
            help="Take peers and group from a node's file.",
        ),
        click.option("--group", metavar="NAME", help="The Raft group.  [env DLEDGER_GROUP; default: default]"),
        click.option("--peers", metavar="PEERS", help="n0-host:port;n1-host:port;…  [env DLEDGER_PEERS]"),
    ):
        command = option(command)
    return command


def output_option(*choices: str, default: str = "table") -> Callable[[_F], _F]:
    """Add ``-o`` with these formats."""
    return click.option(
        "-o", "--output", type=click.Choice(choices), default=default, show_default=True, help="Output format."
    )


def _from_environment(variables: Iterable[str]) -> str | None:
    return next((os.environ[name].strip() for name in variables if os.environ.get(name, "").strip()), None)


def resolve_target(peers: str | None, group: str | None, config_file: str | None) -> Target:
    """Flag over environment over file; where nothing is named, the dev group that runs in ``./dledger-dev``.

    Raises:
        click.UsageError: no peers from anywhere.
        ConfigError: the file is wrong.
    """
    peers = peers or _from_environment(PEERS_VARIABLES)
    group = group or _from_environment(GROUP_VARIABLES)
    file_values = _values_of_file(config_file) if config_file is not None else {}
    if config_file is not None:
        peers = peers or str(file_values["peers"])
        group = group or str(file_values["group"])
    elif not peers:
        peers, found = _dev_group()
        group = group or found
    if not peers:
        raise click.UsageError(
            "name the nodes: --peers n0-host:port;n1-host:port, DLEDGER_PEERS, or -c FILE; or start some: dledger dev"
        )
    return Target(peers, group or "default", resolve_tls(file_values), resolve_token())


def _values_of_file(path: str) -> dict[str, object]:
    """Return a node's settings by name; ``peers`` as text, empty if it has none.

    Raises:
        ConfigError: the file is wrong.
    """
    from dledger.config import SETTINGS, format_peers
    from dledger.config.loader import load_values, sort_problems

    loaded = load_values(SETTINGS, path, {}, {}, required=lambda _: False)
    if loaded.problems:
        raise ConfigError(sort_problems(loaded.problems))
    members = loaded.values.get("peers")
    peers = format_peers(members) if isinstance(members, tuple) else ""
    return {"group": "default", **loaded.values, "peers": peers}


def _dev_group() -> tuple[str, str]:
    """Return peers and name of the dev group that runs in the usual folder; empty if none does."""
    from dledger.dev.state import DevState, data_directory

    try:
        dev = DevState.load(data_directory(None))
    except DLedgerError:
        return "", ""  # damaged: `dledger dev` says so and what to do
    return (dev.peers, dev.group) if dev is not None and dev.running else ("", "")


def parse_overrides(items: Iterable[str]) -> dict[str, str]:
    """Split ``-D key=value`` items; the last of a key wins."""
    out: dict[str, str] = {}
    for item in items:
        key, equals, value = item.partition("=")
        if not equals or not key.strip():
            raise click.UsageError(f'-D "{item}" is not KEY=VALUE')
        out[key.strip()] = value.strip()
    return out
