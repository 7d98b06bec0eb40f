"""Many seeds, several processes: results as they come."""

from __future__ import annotations

import gc
import itertools
import multiprocessing
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from functools import partial

from dledger.sim.run import RunResult, run_seed

__all__ = ["run_seeds"]

_COLLECT_EVERY = 50
"""What a run leaves behind is a few megabytes of cycles; to look for them after each costs a twentieth of the time."""

_runs = itertools.count(1)


def run_seeds(seeds: Sequence[int], *, jobs: int, duration_s: float) -> Iterator[RunResult]:
    """Yield the result of each seed as it ends (with one job in order). ``duration_s``: of the safety phase, virtual.

    A process that dies raises ``BrokenProcessPool``; an error of the simulator itself is raised as it is.
    """
    one = partial(_run, duration_s=duration_s)
    if jobs <= 1:
        yield from map(one, seeds)
        return
    # Spawned, not forked: a fork of a process that has threads may hang.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, mp_context=context, initializer=gc.disable) as pool:
        waiting = iter(seeds)
        running: set[Future[RunResult]] = {pool.submit(one, seed) for seed in itertools.islice(waiting, 2 * jobs)}
        try:
            while running:
                done, running = wait(running, return_when=FIRST_COMPLETED)
                for future in sorted(done, key=lambda ended: ended.result().seed):
                    yield future.result()
                running |= {pool.submit(one, seed) for seed in itertools.islice(waiting, len(done))}
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _run(seed: int, *, duration_s: float) -> RunResult:
    if next(_runs) % _COLLECT_EVERY == 0:
        gc.collect()
    return run_seed(seed, duration_s=duration_s)
