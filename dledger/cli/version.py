"""``dledger version``."""

from __future__ import annotations

import json
import platform
from importlib import metadata

import click

__all__ = ["version"]

_PARTS = ("dledger", "grpcio", "protobuf", "structlog", "tenacity", "click", "google-crc32c", "uvloop", "rich")


def _version_of(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


@click.command()
@click.option("-o", "--output", type=click.Choice(["table", "json"]), default="table", show_default=True)
def version(output: str) -> None:
    """Print the version of dledger, and of what it stands on."""
    found = {name: _version_of(name) for name in _PARTS}
    found["python"] = platform.python_version()
    if output == "json":
        click.echo(json.dumps(found))
        return
    for name, text in found.items():
        click.echo(f"{name:15} {text or '-'}")
