"""``dledger completion``: the script that teaches a shell to complete commands, options, files, node ids and keys.

The shell runs the command itself on every Tab, so nothing here may import gRPC.
"""

from __future__ import annotations

from typing import Final

import click
from click.shell_completion import CompletionItem, get_completion_class

from dledger.errors import ConfigError

__all__ = ["SHELLS", "complete_keys", "complete_nodes", "completion"]

SHELLS: Final = ("bash", "zsh", "fish")

_VARIABLE: Final = "_DLEDGER_COMPLETE"


@click.command()
@click.argument("shell", type=click.Choice(SHELLS))
def completion(shell: str) -> None:
    """Print the completion script for SHELL.

    \b
    bash:  eval "$(dledger completion bash)"          in ~/.bashrc
    zsh:   eval "$(dledger completion zsh)"           in ~/.zshrc, after compinit
    fish:  dledger completion fish > ~/.config/fish/completions/dledger.fish
    """
    from dledger.cli.root import cli

    kind = get_completion_class(shell)
    if kind is None:
        raise click.ClickException(f"this version of click has no completion for {shell}")
    click.echo(kind(cli, {}, "dledger", _VARIABLE).source())


def complete_nodes(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem[str]]:
    """Return the ids of the nodes that the options, the environment or the file on the command line name."""
    from dledger.cli.options import resolve_target
    from dledger.config.peers import parse_peers

    try:
        target = resolve_target(ctx.params.get("peers"), ctx.params.get("group"), ctx.params.get("config_file"))
        peers = parse_peers(target.peers)
    except (ConfigError, ValueError, OSError, click.ClickException):
        return []  # a half-written command line names no group yet; Tab has nowhere to say so
    return [CompletionItem(p.node_id, help=p.address) for p in peers if p.node_id.startswith(incomplete)]


def complete_keys(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem[str]]:
    """Return the configuration keys that begin with what stands there, in any case."""
    from dledger.config import SETTINGS

    return [
        CompletionItem(setting.key, help=setting.doc.split(". ")[0])
        for setting in SETTINGS
        if setting.key.lower().startswith(incomplete.lower())
    ]
