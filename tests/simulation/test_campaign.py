"""Many seeds on all cores: nothing wrong is seen, and every seed is the same run each time."""

from __future__ import annotations

import os

import pytest
from click.testing import CliRunner

from dledger.sim.campaign import run_seeds
from dledger.sim.command import sim

JOBS = os.cpu_count() or 1


@pytest.mark.timeout(1500)
def test_two_hundred_seeds_show_nothing_wrong():
    """A minute of virtual time with everything broken, then recovery, two hundred times. (More: ``dledger sim``.)"""
    results = list(run_seeds(range(200), jobs=JOBS, duration_s=60))
    wrong = [
        f"{result.message}\nreplay: dledger sim --seed {result.seed} --virtual-seconds 60 --trace"
        for result in results
        if not result.ok
    ]
    assert not wrong, "\n".join(wrong)
    assert sorted(result.seed for result in results) == list(range(200))
    assert min(result.virtual_s for result in results) >= 60
    assert sum(result.counts["entries"] for result in results) > 10_000
    assert sum(result.counts["crashes"] for result in results) > 1_000


@pytest.mark.slow
@pytest.mark.timeout(100_000)
def test_ten_thousand_seeds_show_nothing_wrong():
    """The campaign."""
    outcome = CliRunner().invoke(sim, ["--seeds", "0..9999"], standalone_mode=False)
    assert outcome.return_value == 0, outcome.output


def _replays(virtual_s):
    """Each of a hundred seeds → what it was, run in other processes with other hashes of strings each time."""
    return {
        result.seed: (result.trace_hash, result.callbacks, result.virtual_s, result.counts, result.faults)
        for result in run_seeds(range(100), jobs=JOBS, duration_s=virtual_s)
    }


@pytest.mark.timeout(600)
def test_a_hundred_seeds_are_the_same_run_twice():
    """Same seed, same trace hash: 100 of 100, eight virtual seconds each."""
    first, second = _replays(8), _replays(8)
    assert [seed for seed in range(100) if first[seed] != second[seed]] == []
    assert len({trace_hash for trace_hash, *_ in first.values()}) == 100, "the hash tells runs apart"


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_hundred_long_seeds_are_the_same_run_twice():
    """The same with a minute each."""
    first, second = _replays(60), _replays(60)
    assert [seed for seed in range(100) if first[seed] != second[seed]] == []
