"""``dledger chaos``: a group, its clients, its bad luck, and a verdict. ``dledger report``: judge and draw it again."""

from __future__ import annotations

import asyncio
import json
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from dledger.cli.access import access_options
from dledger.cli.exit_codes import ExitCode
from dledger.cli.options import output_option, parse_overrides, resolve_target, seconds
from dledger.cli.runtime import run

if TYPE_CHECKING:
    from dledger.chaos.judge import Judgement
    from dledger.chaos.record import Record
    from dledger.chaos.run import ChaosOptions
    from dledger.chaos.schedule import Fault

__all__ = ["chaos", "report"]

_OWN_FAULTS: Final = "kill,pause,partition"
_FOREIGN_FAULTS: Final = "retry,transfer"


def _parse_faults(text: str) -> tuple[Fault, ...]:
    from dledger.chaos.schedule import parse_faults

    try:
        return tuple(parse_faults(text))
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--faults") from error


@click.command()
@click.option("--for", "duration", default="60s", show_default=True, type=seconds, help="How long faults go on.")
@click.option(
    "--faults",
    show_default=f"{_OWN_FAULTS}; of a running group {_FOREIGN_FAULTS}",
    help="kill pause partition delay slow-disk disk-full fsync-error retry transfer, or all.",
)
@click.option("--clients", default=8, show_default=True, type=click.IntRange(1))
@click.option("--concurrency", default=4, show_default=True, type=click.IntRange(1), help="Append tasks of a client.")
@click.option("--seed", type=click.IntRange(0), help="Of the schedule; drawn and shown if not given.")
@click.option("--nodes", default="3", show_default=True, type=click.Choice(["3", "5"]))
@click.option("-D", "overrides", multiple=True, metavar="KEY=VALUE", help="A configuration key for every node.")
@click.option("-c", "--config", "config_file", metavar="FILE", help="Take a running group (retry, transfer).")
@click.option("--peers", metavar="PEERS", help="The same, by its peers.")
@click.option("--group", metavar="NAME", help="Its name.")
@access_options
@click.option("--html", type=click.Path(path_type=Path), help="Write the report here.")
@click.option("--history", type=click.Path(path_type=Path), help="Write the history here (.gz: compressed).")
@click.option("--data-dir", type=click.Path(path_type=Path), help="Where the run's folder is made.")
@output_option("table", "json")
def chaos(
    duration: float,
    faults: str | None,
    clients: int,
    concurrency: int,
    seed: int | None,
    nodes: str,
    overrides: tuple[str, ...],
    config_file: str | None,
    peers: str | None,
    group: str | None,
    html: Path | None,
    history: Path | None,
    data_dir: Path | None,
    output: str,
) -> int:
    """Hurt a group under load, heal it, and check that the log has kept every promise.

    Starts a group of its own in a temporary folder, which stays if anything was wrong. Exit code 6: verdict FAIL.
    A running group (-c, --peers) keeps its processes: only clients' connections and leadership are played with.
    """
    from dledger.chaos.run import ChaosOptions, random_seed, usable_faults

    foreign = config_file is not None or peers is not None
    target = resolve_target(peers, group, config_file) if foreign else None
    wanted = faults or (_FOREIGN_FAULTS if foreign else _OWN_FAULTS)
    usable, skipped = usable_faults(_parse_faults(wanted), own=not foreign)
    for line in skipped:
        click.echo(line, err=True)
    if data_dir is not None:
        data_dir.mkdir(parents=True, exist_ok=True)
    directory = Path(tempfile.mkdtemp(prefix="dledger-chaos-", dir=data_dir)).absolute()
    options = ChaosOptions(
        duration_s=duration,
        faults=usable,
        seed=random_seed() if seed is None else seed,
        directory=directory,
        clients=clients,
        concurrency=concurrency,
        nodes=int(nodes),
        group=target.group if target else "chaos",
        peers=target.peers if target else None,
        settings=parse_overrides(overrides),
        **(target.access() if target else {}),
    )
    try:
        record, judgement = run(_run(options))
    except BaseException:
        _leave(directory)
        raise
    return _finish(record, judgement, options, html, history, output)


def _leave(directory: Path) -> None:
    """After an interruption or a failed start: say where the data is, if there is any."""
    if any(directory.iterdir()):
        click.echo(f"data kept in {directory}", err=True)
    else:
        directory.rmdir()


async def _run(options: ChaosOptions) -> tuple[Record, Judgement]:
    from dledger.chaos.judge import judge_record
    from dledger.chaos.live import make_view
    from dledger.chaos.run import replay_line, run_chaos

    view = make_view()
    try:
        record = await run_chaos(options, view)
    finally:
        view.close()
    record.meta["replay"] = replay_line(options)
    return record, await asyncio.to_thread(judge_record, record)


def _finish(
    record: Record, judgement: Judgement, options: ChaosOptions, html: Path | None, history: Path | None, output: str
) -> int:
    """Write the files, say the verdict, and keep the data of a run that failed."""
    if not judgement.ok and history is None:
        history = options.directory / "history.jsonl.gz"
    if history is not None:
        record.save(history)
    if html is not None:
        _write_report(record, judgement, html)
    made = [f"{name} {path}" for name, path in (("report", html), ("history", history)) if path is not None]
    last = "   ".join([*made, f"replay: {record.meta['replay']}"])
    if judgement.ok:
        shutil.rmtree(options.directory)
    _say(record, judgement, output, last)
    if judgement.ok:
        return ExitCode.DONE
    click.echo(f"data kept in {options.directory}", err=True)
    return ExitCode.VERDICT_FAIL


def _say(record: Record, judgement: Judgement, output: str, last: str) -> None:
    if output == "json":
        counts: dict[str, Any] = {key: record.meta.get(key) for key in ("seed", "counts", "forced_retries", "replay")}
        click.echo(json.dumps({"schema": "dledger.chaos/v1", **judgement.summary(), **counts}))
        return
    for line in judgement.lines(record):
        click.echo(line)
    if last:
        click.echo(f"      {last}")


def _write_report(record: Record, judgement: Judgement, path: Path) -> None:
    from dledger.chaos.report import render

    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(render(record, judgement), encoding="utf-8")


@click.command()
@click.argument("history", type=click.Path(path_type=Path))
@click.option("--html", type=click.Path(path_type=Path), help="Draw the report again, here.")
@output_option("table", "json")
def report(history: Path, html: Path | None, output: str) -> int:
    """Judge a chaos run again from its HISTORY (or its HTML report), and draw it. Exit code 6: verdict FAIL."""
    from dledger.chaos.judge import judge_record
    from dledger.chaos.record import Record

    record = Record.load(history)
    judgement = judge_record(record)
    if html is not None:
        _write_report(record, judgement, html)
    _say(record, judgement, output, f"report {html}" if html else "")
    return ExitCode.DONE if judgement.ok else ExitCode.VERDICT_FAIL
