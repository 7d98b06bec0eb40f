"""``dledger sim``: seeds in, violations out."""

from __future__ import annotations

import os
import re
import sys
import time
from dataclasses import dataclass
from typing import Final

import click

from dledger.sim.campaign import run_seeds
from dledger.sim.run import RunResult, run_seed

__all__ = ["sim"]

_VERDICT_FAIL: Final = 6
_DRAW_EVERY_S: Final = 0.5
_SAY_EVERY_S: Final = 15.0


class _SeedRange(click.ParamType):  # type: ignore[type-arg,unused-ignore]
    name = "A..B"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> range:
        if isinstance(value, range):
            return value
        match = re.fullmatch(r"(\d+)\.\.(\d+)", str(value))
        if match is None or int(match[1]) > int(match[2]):
            self.fail(f"{value!r} is not a range of seeds; write 0..199 (both ends count)", param, ctx)
        return range(int(match[1]), int(match[2]) + 1)


@click.command()
@click.option("--seeds", type=_SeedRange(), help="Run these seeds, 0..199 for two hundred of them.")
@click.option("--seed", type=click.IntRange(min=0), help="Run one seed.")
@click.option("--trace", is_flag=True, help="With --seed: print everything that happened.")
@click.option("--jobs", type=click.IntRange(min=1), default=os.cpu_count() or 1, help="Processes. [all cores]")
@click.option(
    "--virtual-seconds",
    type=click.FloatRange(min=1),
    default=58.0,
    show_default=True,
    help="How long everything may break, before the group must recover.",
)
@click.option("--keep-going", is_flag=True, help="Do not stop at the first ten violations.")
def sim(seeds: range | None, seed: int | None, trace: bool, jobs: int, virtual_seconds: float, keep_going: bool) -> int:
    """Run a whole group, its disks, its network and its clients on virtual time, and break everything.

    Each seed is one run: the same seed, the same run, to the last message. A violation prints the command that
    repeats it. Exit code 6 if there was any.
    """
    if (seeds is None) == (seed is None):
        raise click.UsageError("give either --seeds A..B or --seed S")
    if trace and seed is None:
        raise click.UsageError("--trace goes with --seed")
    if seed is not None:
        return _one(seed, trace=trace, virtual_s=virtual_seconds)
    return _many(seeds or range(0), jobs=jobs, virtual_s=virtual_seconds, keep_going=keep_going)


def _one(seed: int, *, trace: bool, virtual_s: float) -> int:
    result = run_seed(seed, duration_s=virtual_s, keep=None if trace else 4000, lines=None if trace else 200)
    for line in result.trace:
        click.echo(line)
    counts = ", ".join(f"{count} {name}" for name, count in result.counts.items())
    faults = ", ".join(f"{count} {name}" for name, count in result.faults.items())
    click.echo(f"{counts}; faults: {faults or 'none'}", err=True)
    if not result.ok:
        click.echo(_failure(result, virtual_s), err=True)
    click.echo(
        f"{'PASS' if result.ok else 'FAIL'}  seed {seed}, trace hash {result.trace_hash}, "
        f"{result.virtual_s:.1f} virtual seconds in {result.real_s:.1f}"
    )
    return 0 if result.ok else _VERDICT_FAIL


def _failure(result: RunResult, virtual_s: float) -> str:
    again = f"dledger sim --seed {result.seed} --virtual-seconds {virtual_s:g} --trace"
    return f"seed {result.seed} at {result.virtual_s:.3f} s: {result.message}\n  replay: {again}"


@dataclass(slots=True)
class _Totals:
    seeds: int = 0
    violations: int = 0
    virtual_s: float = 0.0
    slowest_recovery_s: float = 0.0
    appends: int = 0
    crashes: int = 0

    def add(self, result: RunResult) -> None:
        self.seeds += 1
        self.violations += not result.ok
        self.virtual_s += result.virtual_s
        self.slowest_recovery_s = max(self.slowest_recovery_s, result.recovery_s)
        self.appends += result.counts.get("appends", 0)
        self.crashes += result.counts.get("crashes", 0)


def _many(seeds: range, *, jobs: int, virtual_s: float, keep_going: bool) -> int:
    totals = _Totals()
    started = time.monotonic()
    progress = _Progress(len(seeds), started)
    for result in run_seeds(seeds, jobs=jobs, duration_s=virtual_s):
        totals.add(result)
        if not result.ok:
            progress.clear()
            click.echo(_failure(result, virtual_s), err=True)
        progress.draw(totals)
        if totals.violations >= 10 and not keep_going:
            break
    progress.clear()
    took = max(time.monotonic() - started, 1e-9)
    click.echo(
        f"{'FAIL' if totals.violations else 'PASS'}  {totals.seeds} seeds, {totals.violations} violations; "
        f"{totals.virtual_s:.0f} virtual seconds in {took:.0f} ({totals.virtual_s / took:.0f} x), "
        f"{totals.seeds / took * 60:.0f} seeds/minute; {totals.appends} appends, {totals.crashes} crashes, "
        f"slowest recovery {totals.slowest_recovery_s:.1f} s"
    )
    return _VERDICT_FAIL if totals.violations else 0


class _Progress:
    """A bar on a terminal, a line now and then elsewhere; on standard error."""

    def __init__(self, total: int, started: float) -> None:
        self._total = total
        self._started = started
        self._terminal = sys.stderr.isatty()
        self._next = started + (0 if self._terminal else _SAY_EVERY_S)
        self._drawn = False

    def draw(self, totals: _Totals) -> None:
        now = time.monotonic()
        if now < self._next:
            return
        self._next = now + (_DRAW_EVERY_S if self._terminal else _SAY_EVERY_S)
        rate = totals.seeds / max(now - self._started, 1e-9)
        left = (self._total - totals.seeds) / rate if rate else 0.0
        text = (
            f"{totals.seeds}/{self._total} seeds, {rate * 60:.0f} a minute, {totals.violations} violations, "
            f"{left:.0f} s to go"
        )
        if self._terminal:
            done = 30 * totals.seeds // self._total
            sys.stderr.write(f"\r\x1b[K[{'#' * done}{'.' * (30 - done)}] {text}")
            sys.stderr.flush()
            self._drawn = True
        else:
            click.echo(text, err=True)

    def clear(self) -> None:
        if self._drawn:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()
            self._drawn = False
