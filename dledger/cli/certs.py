"""``dledger certs``: throw-away certificates."""

from __future__ import annotations

from pathlib import Path

import click

from dledger.cli.exit_codes import ExitCode
from dledger.config.peers import NODE_ID

__all__ = ["certs"]


@click.group()
def certs() -> None:
    """Make certificates for development."""


def _nodes(_context: click.Context, _parameter: click.Parameter, value: str) -> list[str]:
    nodes = [item.strip() for item in value.replace(";", ",").split(",") if item.strip()]
    bad = [node for node in nodes if not NODE_ID.fullmatch(node)]
    if bad or not nodes:
        raise click.BadParameter(f'"{", ".join(bad) or value}" is no list of node ids, like n0,n1,n2')
    return nodes


@certs.command()
@click.argument("directory", type=click.Path(file_okay=False, path_type=Path))
@click.option("--nodes", default="n0,n1,n2", show_default=True, callback=_nodes, help="Node ids, comma separated.")
@click.option("--host", "hosts", multiple=True, metavar="HOST", help="Name or address of the nodes; may be repeated.")
@click.option("--days", type=click.IntRange(1, 825), default=30, show_default=True, help="How long they are valid.")
def dev(directory: Path, nodes: list[str], hosts: tuple[str, ...], days: int) -> int:
    """Write a throw-away CA and certificates for nodes and a client to DIRECTORY.

    The nodes' certificates name the node, localhost, 127.0.0.1, ::1 and every --host. What is there is replaced; nodes
    that use the files take the new ones without a restart. The CA's key is not kept. Not for production.
    """
    try:
        from dledger.security.dev_certs import write_dev_certificates
    except ImportError as error:
        raise click.ClickException(
            f"certificates need the cryptography package ({error}); install the extra: pip install 'dledger[tls]'"
        ) from error
    try:
        made = write_dev_certificates(directory, nodes, ("localhost", "127.0.0.1", "::1", *hosts), days=days)
    except OSError as error:
        raise click.ClickException(f"{directory}: {error.strerror or error}") from error
    for cert, key in made.values():
        click.echo(f"{cert}  {key}")
    name = nodes[0]
    click.echo(
        f"\nnode    -D tlsCaFile={directory}/ca.pem -D tlsCertFile={directory}/{name}.pem "
        f"-D tlsKeyFile={directory}/{name}.key\n"
        f"client  --ca {directory}/ca.pem --cert {directory}/client.pem --key {directory}/client.key",
        err=True,
    )
    return ExitCode.DONE
