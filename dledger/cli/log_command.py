"""``dledger log verify | dump``: a node's folder from outside, read only, while the node runs or after it died."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from dledger.cli.entries import as_json_line, as_row
from dledger.cli.exit_codes import ExitCode
from dledger.cli.options import output_option
from dledger.cli.table import format_count, format_size

if TYPE_CHECKING:
    from dledger.storage.filesystem import FileSystem
    from dledger.storage.verify import Damage, VerifyReport
    from dledger.types import Entry

__all__ = ["log", "node_folder"]


@click.group()
def log() -> None:
    """Verify or dump a data folder, offline: read only, without the node's lock."""


def _filesystem() -> FileSystem:
    """The operating system's files, opened for reading only: a copy on a read-only disk can be looked at too."""
    from dledger.storage.filesystem import RealFileSystem

    class ReadOnlyFiles(RealFileSystem):
        def open(self, path: str, *, create: bool = False) -> int:
            return os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    return ReadOnlyFiles()


def node_folder(directory: str) -> str:
    """Return the node's folder: ``directory`` itself, or the only ``dledger-*`` in it."""
    path = Path(directory)
    if (path / "data").is_dir():
        return str(path)
    found = sorted(child for child in path.glob("dledger-*") if (child / "data").is_dir())
    if len(found) == 1:
        return str(found[0])
    if found:
        names = ", ".join(child.name for child in found)
        raise click.ClickException(f"{directory} holds several nodes; name one of {names}")
    raise click.ClickException(f"{directory} is not a node's folder: it has no data folder in it")


def _damage_json(damage: Damage) -> dict[str, object]:
    return {"path": damage.path, "offset": damage.offset, "index": damage.index, "problem": damage.problem}


def _damage_text(damage: Damage) -> str:
    return f"{damage.path}: byte {damage.offset}, entry {damage.index}: {damage.problem}"


def _as_json(report: VerifyReport) -> dict[str, object]:
    return {
        "directory": report.directory,
        "ok": report.ok,
        "segments": report.segment_count,
        "entries": report.entry_count,
        "bytes": report.byte_count,
        "first_index": report.first_index,
        "last_index": report.last_index,
        "last_term": report.last_term,
        "chain_crc": f"{report.chain_crc:08x}",
        "damage": [_damage_json(damage) for damage in report.damage],
        "torn_tail": _damage_json(report.torn_tail) if report.torn_tail else None,
    }


def _s(count: int) -> str:
    return "" if count == 1 else "s"


def _print_report(report: VerifyReport) -> None:
    for damage in report.damage:
        click.echo(f"damage: {_damage_text(damage)}")
    if report.torn_tail is not None:
        click.echo(f"torn tail (cut at the next start): {_damage_text(report.torn_tail)}")
    span = f", {report.first_index} to {report.last_index}" if report.entry_count else ""
    segments = f"{report.segment_count} segment{_s(report.segment_count)}"
    what = (
        f"{format_count(report.entry_count)} entries{span}, last term {format_count(report.last_term)}, "
        f"{format_size(report.byte_count)} in {segments}, chain CRC {report.chain_crc:08x}"
    )
    if report.ok:
        click.echo(f"PASS  {what}")
        return
    click.echo(
        "Restore the folder from a copy, or delete it and let the node catch up from its peers "
        "(never on all nodes at once).",
        err=True,
    )
    click.echo(f"FAIL  {len(report.damage)} damaged place{_s(len(report.damage))}; {what}")


@log.command()
@click.argument("directory", metavar="DIR", type=click.Path(exists=True, file_okay=False))
@output_option("table", "json")
def verify(directory: str, output: str) -> int:
    """Read every byte of the log in DIR and check CRCs, chain, positions and index. Exit code 6: damage.

    DIR is a node's folder (…/dledger-n0). A torn tail, what an interrupted write leaves, is no damage.
    """
    from dledger.storage.verify import verify_directory

    report = verify_directory(_filesystem(), node_folder(directory))
    if output == "json":
        click.echo(json.dumps(_as_json(report)))
    else:
        _print_report(report)
    return ExitCode.DONE if report.ok else ExitCode.VERDICT_FAIL


def _dump_line(entry: Entry, output: str) -> bytes:
    if output == "plain":
        return entry.body + b"\n"
    if output == "table":
        return f"{entry.pos:>14}  ".encode() + as_row(entry)
    return as_json_line(entry)


@log.command()
@click.argument("directory", metavar="DIR", type=click.Path(exists=True, file_okay=False))
@output_option("table", "plain", "json")
@click.option("-J", "json_lines", is_flag=True, help="One JSON line for each entry (the same as -o json).")
@click.option("--from", "first", type=click.IntRange(min=0), default=0, show_default=True, metavar="N")
@click.option("--to", "last", type=click.IntRange(min=0), metavar="N", help="Last index; default: the end.")
def dump(directory: str, output: str, json_lines: bool, first: int, last: int | None) -> int:
    """Print every valid entry of the log in DIR, committed or not, no-op and session entries too."""
    from dledger.storage.verify import iter_directory

    out = sys.stdout.buffer
    wanted = "json" if json_lines else output
    if wanted == "table":
        out.write(f"{'POS':>14}  {'INDEX':>10}  {'TERM':>6}  {'TYPE':<8}  BODY\n".encode())
    for entry in iter_directory(_filesystem(), node_folder(directory)):
        if last is not None and entry.index > last:
            break
        if entry.index >= first:
            out.write(_dump_line(entry, wanted))
    return ExitCode.DONE
