"""``dledger config check | show | explain | init | docs``."""

from __future__ import annotations

import json
import os
from pathlib import Path

import click

from dledger.cli.completion import complete_keys
from dledger.cli.exit_codes import ExitCode
from dledger.cli.options import parse_overrides
from dledger.config import SETTINGS, DLedgerConfig, Setting
from dledger.config.render import explain as explain_setting
from dledger.config.render import markdown_page, sample_file
from dledger.errors import ConfigError

__all__ = ["config"]

_OVERRIDES = click.option(
    "-D", "overrides", multiple=True, metavar="KEY=VALUE", help="Set a key; beats environment and file."
)


@click.group()
def config() -> None:
    """Check, show, explain or make configuration files."""


@config.command()
@click.argument("files", nargs=-1, required=True, type=click.Path())
@_OVERRIDES
def check(files: tuple[str, ...], overrides: tuple[str, ...]) -> int:
    """Check FILES and print every problem as file:line:column. Exit code 4 if there is one.

    The environment counts, as it does for start.
    """
    count = 0
    for file in files:
        try:
            found = DLedgerConfig.from_file(file, parse_overrides(overrides))
        except ConfigError as error:
            count += len(error.problems)
            for problem in error.problems:
                click.echo(problem)
            continue
        for note in found.notes:
            click.echo(f"note: {note}", err=True)
        click.echo(f"{file}: ok ({found.group} {found.self_id} of {len(found.peers)}, {found.bind_address})")
    if count:
        click.echo(f"{count} error{'s' if count > 1 else ''}", err=True)
    return ExitCode.CONFIGURATION if count else ExitCode.DONE


@config.command()
@click.option("-c", "--config", "file", type=click.Path(), help="The node's file.")
@click.option("--origin", is_flag=True, help="Say where each value came from, and what it overrode.")
@click.option("-o", "--output", type=click.Choice(["table", "json"]), default="table", show_default=True)
@_OVERRIDES
def show(file: str | None, origin: bool, output: str, overrides: tuple[str, ...]) -> None:
    """Print every setting as a node started this way would have it."""
    found = DLedgerConfig.from_file(file, parse_overrides(overrides))
    if output == "json":
        rows = [{"key": s.key, "value": text, "origin": source.describe()} for s, text, source in found.lines()]
        click.echo(json.dumps(rows, ensure_ascii=False))
        return
    lines = found.lines()
    key_width = max(len(setting.key) for setting, _, _ in lines)
    value_width = min(44, max(len(text) for _, text, _ in lines))
    for setting, text, source in lines:
        if not origin:
            click.echo(f"{setting.key}={text}")
            continue
        allowed = f" (range {setting.range_text()})" if setting.range_text() and not source.name else ""
        click.echo(f"{setting.key:{key_width}}  {text or '-':{value_width}}  {source.describe()}{allowed}")


@config.command()
@click.argument("keys", nargs=-1, shell_complete=complete_keys)
def explain(keys: tuple[str, ...]) -> None:
    """Explain KEYS; without one, list all keys."""
    by_name: dict[str, Setting] = {name.lower(): setting for setting in SETTINGS for name in setting.names}
    if not keys:
        for setting in SETTINGS:
            click.echo(f"{setting.key:32} {setting.doc.split('. ')[0].rstrip('.')}")
        return
    for key in keys:
        found = by_name.get(key.lower())
        if found is None:
            raise click.UsageError(f'no setting "{key}"; "dledger config explain" lists them')
        click.echo(explain_setting(found))


@config.command()
@click.argument("file", required=False, type=click.Path())
@click.option("--group", default="default", show_default=True)
@click.option("--self-id", default="n0", show_default=True)
@click.option(
    "--peers", default="n0-127.0.0.1:40911;n1-127.0.0.1:40912;n2-127.0.0.1:40913", show_default=True, metavar="PEERS"
)
@click.option("--root", metavar="DIR", help="storePathRootDir.")
def init(file: str | None, group: str, self_id: str, peers: str, root: str | None) -> None:
    """Write a commented sample to FILE (never over an existing one), or to standard output."""
    text = sample_file(group, self_id, peers, root)
    values = {"group": group, "selfId": self_id, "peers": peers}
    DLedgerConfig.from_mapping(values if root is None else values | {"storePathRootDir": root})
    if file is None:
        click.echo(text, nl=False)
        return
    try:
        with open(file, "x", encoding="utf-8") as out:
            out.write(text)
    except FileExistsError as error:
        raise click.ClickException(f"{file} exists; remove it or choose another name") from error
    except OSError as error:
        raise click.ClickException(f"{file}: {error.strerror}") from error
    click.echo(f"wrote {os.fspath(Path(file))}; try: dledger config check {file}", err=True)


@config.command(hidden=True)
def docs() -> None:
    """Print docs/configuration.md."""
    click.echo(markdown_page(), nl=False)
