#!/usr/bin/env python3
"""Run every mutant in the simulator until it is caught, and print the table: mutant, seeds needed, what caught it.

usage: scripts/mutants.py [--full] [--seeds 500] [--jobs 2] [--virtual-seconds 58] [--markdown] [NAME-PART ...]

First goes the seed that is known to catch the mutant (`CAUGHT_BY`), then all from 0; with --full from 0 only, which
is how the table in docs/simulation.md is made. Exit code 0 if each was caught within the seeds, else 6. The patches
are applied in child processes, at import.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from tests.simulation.mutants import CAUGHT_BY, CONTROL, MUTANTS, Mutant, apply  # noqa: E402


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one mutant. ``violation`` empty: it survived, or did not run (``trouble`` says why)."""

    mutant: Mutant
    seeds: int
    seed: int
    violation: str
    trouble: str
    took_s: float

    def row(self) -> str:
        """The line of the table for a terminal."""
        seeds = str(self.seeds) if self.violation else "-"
        return f"{self.mutant.name:<46} {seeds:>5} {self.seed:>5} {self.took_s:6.1f}  {self._verdict()}"

    def markdown(self) -> str:
        """The line of the table for a document."""
        return f"| {self.mutant.name} | {self.mutant.after} | {self.seeds} | {self._verdict()} |"

    def _verdict(self) -> str:
        return self.violation or self.trouble or "NOTHING"


def _order(name: str, seeds: int, full: bool) -> Iterator[int]:
    known = -1 if full else CAUGHT_BY.get(name, -1)
    if known >= 0:
        yield known
    yield from (seed for seed in range(seeds) if seed != known)


def _child(name: str, seeds: int, virtual_s: float, full: bool) -> int:
    """Run seeds until one fails; prints `how many<TAB>the last<TAB>violation`."""
    apply(next(mutant for mutant in (*MUTANTS, CONTROL) if mutant.name == name))
    from dledger.sim.run import run_seed  # noqa: PLC0415 - only now: the patches must be in place

    count, seed = 0, -1
    for seed in _order(name, seeds, full):
        result = run_seed(seed, duration_s=virtual_s, lines=1)
        count += 1
        if not result.ok:
            print(f"{count}\t{seed}\t{result.violation}")
            return 0
    print(f"{count}\t{seed}\t")
    return 0


def _run(mutant: Mutant, arguments: argparse.Namespace) -> Outcome:
    command = [sys.executable, __file__, "--child", mutant.name, "--seeds", str(arguments.seeds)]
    command += ["--virtual-seconds", str(arguments.virtual_seconds), *(["--full"] if arguments.full else [])]
    started = time.monotonic()
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    took_s = time.monotonic() - started
    count, _, rest = done.stdout.strip().rpartition("\n")[2].partition("\t")
    seed, _, violation = rest.partition("\t")
    if done.returncode or not count.isdigit():
        return Outcome(mutant, 0, -1, "", f"did not run: {done.stderr.strip()[-300:]}", took_s)
    return Outcome(mutant, int(count), int(seed), violation, "", took_s)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Run the mutants in the simulator.")
    parser.add_argument("names", nargs="*", help="parts of names; all mutants without")
    parser.add_argument("--full", action="store_true", help="from seed 0 on, without the known seeds")
    parser.add_argument("--seeds", type=int, default=500)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--virtual-seconds", type=float, default=58.0)
    parser.add_argument("--markdown", action="store_true", help="print the table for a document in the end")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> int:
    """Parse the command line, run, print; returns the exit code."""
    arguments = _parse()
    if arguments.child:
        return _child(arguments.child, arguments.seeds, arguments.virtual_seconds, arguments.full)
    chosen: list[Mutant] = list(MUTANTS)
    if arguments.names:
        chosen = [m for m in (*MUTANTS, CONTROL) if any(part in m.name for part in arguments.names)]
    outcomes: dict[str, Outcome] = {}
    print(f"{'mutant':<46} {'seeds':>5} {'last':>5} {'s':>6}  caught by", flush=True)
    with ThreadPoolExecutor(arguments.jobs) as pool:
        for ended in as_completed([pool.submit(_run, mutant, arguments) for mutant in chosen]):
            outcome = ended.result()
            outcomes[outcome.mutant.name] = outcome
            print(outcome.row(), flush=True)
    if arguments.markdown:
        print("\n| mutant | after | seeds | caught by |\n|---|---|--:|---|")
        for mutant in chosen:
            print(outcomes[mutant.name].markdown())
    caught = sum(bool(outcome.violation) for outcome in outcomes.values())
    print(f"{'PASS' if caught == len(chosen) else 'FAIL'}  {caught} of {len(chosen)} mutants caught")
    return 0 if caught == len(chosen) else 6


if __name__ == "__main__":
    sys.exit(main())
