"""The tests have teeth: known mistakes are caught. (All of them: ``scripts/mutants.py``.)"""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.simulation.mutants import (
    CAUGHT_BY,
    CONTROL,
    MUTANTS,
    ROOT,
    Mutant,
    Patch,
    StaleMutantError,
    apply,
    patched_source,
)

QUICK = [
    "messages do not wait for term and vote",
    "damage taken for a torn tail",
    "leader counts itself before its fsync",
    "repeated sequences appended again",
    "read joins a round that began before it",
]


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_each_patch_fits_the_source(mutant):
    """The source has not moved away from under a mutant, and the patched module is Python."""
    for patch in mutant.patches:
        source = patched_source(mutant, patch.module)
        assert patch.new in source
        compile(source, patch.module, "exec")


def test_there_are_enough_and_names_are_unique():
    """At least twenty mistakes, and of each is known which seed catches it."""
    names = {mutant.name for mutant in MUTANTS}
    assert len(names) == len(MUTANTS) >= 20
    assert set(CAUGHT_BY) == names
    assert all(0 <= seed < 500 for seed in CAUGHT_BY.values())


def test_a_stale_patch_is_an_error():
    """A patch that does not fit exactly once must not pass for a caught mutant."""
    with pytest.raises(StaleMutantError):
        patched_source(Mutant("x", (Patch("dledger.raft.core", "no such text", ""),), ""), "dledger.raft.core")
    with pytest.raises(StaleMutantError):
        apply(Mutant("x", (Patch("tests.simulation.mutants", "a", "b"),), ""))


@pytest.mark.timeout(600)
def test_quick_mutants_are_caught():
    """Five that the first seeds catch, as a check on the checks in every run."""
    done = _mutants("--seeds", "12", *QUICK)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"PASS  {len(QUICK)} of {len(QUICK)} mutants caught" in done.stdout


@pytest.mark.timeout(300)
def test_what_is_right_survives():
    """The control changes nothing: no seed catches it, the table says so, and the exit code too."""
    done = _mutants("--seeds", "2", "--virtual-seconds", "10", "--full", CONTROL.name)
    assert done.returncode == 6, done.stdout + done.stderr
    assert "NOTHING" in done.stdout and "FAIL  0 of 1 mutants caught" in done.stdout


def _mutants(*arguments):
    """Run the script to its end."""
    return subprocess.run(
        [sys.executable, str(ROOT / "scripts/mutants.py"), *arguments], capture_output=True, text=True, check=False
    )


@pytest.mark.slow
@pytest.mark.timeout(100_000)
def test_all_mutants_are_caught():
    """Each within 500 seeds."""
    done = _mutants()
    assert done.returncode == 0, done.stdout + done.stderr
