#!/usr/bin/env python3
"""Run every mutant in the simulator until it is caught, and print the table: mutant, seeds needed, what caught it.

usage: scripts/mutants.py [--seeds 500] [--jobs 2] [--virtual-seconds 58] [NAME-PART ...]

Exit code 0 if each was caught within the seeds, else 6. The patches are applied in child processes, at import.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from tests.simulation.mutants import MUTANTS, Mutant, apply  # noqa: E402


def _child(name: str, seeds: int, virtual_s: float) -> int:
    """Run seeds until one fails; prints `seed<TAB>violation`."""
    apply(next(mutant for mutant in MUTANTS if mutant.name == name))
    from dledger.sim.run import run_seed  # noqa: PLC0415 - only now: the patches must be in place

    for seed in range(seeds):
        try:
            result = run_seed(seed, duration_s=virtual_s, lines=1)
        except Exception as error:
            print(f"{seed}\terror of the simulator: {error!r}")
            return 1
        if not result.ok:
            print(f"{seed}\t{result.violation}")
            return 0
    print(f"{seeds}\t")
    return 0


def _run(mutant: Mutant, seeds: int, virtual_s: float) -> tuple[Mutant, int, str, float]:
    started = time.monotonic()
    command = [sys.executable, __file__, "--child", mutant.name, "--seeds", str(seeds)]
    done = subprocess.run(
        [*command, "--virtual-seconds", str(virtual_s)], capture_output=True, text=True, check=False, cwd=ROOT
    )
    took = time.monotonic() - started
    seed, _, caught = done.stdout.strip().rpartition("\n")[2].partition("\t")
    if not seed.isdigit():
        return mutant, -1, f"did not run: {done.stderr.strip()[-300:]}", took
    return mutant, int(seed) + 1, caught, took


def main() -> int:
    """Parse the command line, run, print; returns the exit code."""
    parser = argparse.ArgumentParser(description="Run the mutants in the simulator.")
    parser.add_argument("names", nargs="*", help="parts of names; all mutants without")
    parser.add_argument("--seeds", type=int, default=500)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--virtual-seconds", type=float, default=58.0)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        return _child(arguments.child, arguments.seeds, arguments.virtual_seconds)
    chosen = [m for m in MUTANTS if not arguments.names or any(part in m.name for part in arguments.names)]
    survivors = 0
    print(f"{'mutant':<46} {'seeds':>5} {'s':>6}  caught by")
    with ThreadPoolExecutor(arguments.jobs) as pool:
        for mutant, needed, caught, took in pool.map(
            lambda mutant: _run(mutant, arguments.seeds, arguments.virtual_seconds), chosen
        ):
            if not caught or needed < 0:
                survivors += 1
            seeds = str(needed) if caught else "-"
            print(f"{mutant.name:<46} {seeds:>5} {took:6.1f}  {caught or 'NOTHING'}", flush=True)
    print(f"{'FAIL' if survivors else 'PASS'}  {len(chosen) - survivors} of {len(chosen)} mutants caught")
    return 6 if survivors else 0


if __name__ == "__main__":
    sys.exit(main())
