"""The tests have teeth: known mistakes are caught. (All of them: ``scripts/mutants.py``.)"""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.simulation.mutants import MUTANTS, ROOT, Mutant, Patch, StaleMutantError, apply, patched_source

QUICK = ["vote not synced", "leader counts itself before its fsync", "repeated sequences appended again"]


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_each_patch_fits_the_source(mutant):
    """The source has not moved away from under a mutant, and the patched module is Python."""
    for patch in mutant.patches:
        source = patched_source(mutant, patch.module)
        assert patch.new in source
        compile(source, patch.module, "exec")


def test_there_are_enough_and_names_are_unique():
    """At least twenty mistakes."""
    assert len({mutant.name for mutant in MUTANTS}) == len(MUTANTS) >= 20


def test_a_stale_patch_is_an_error():
    """A patch that does not fit exactly once must not pass for a caught mutant."""
    with pytest.raises(StaleMutantError):
        patched_source(Mutant("x", (Patch("dledger.raft.core", "no such text", ""),), ""), "dledger.raft.core")
    with pytest.raises(StaleMutantError):
        apply(Mutant("x", (Patch("tests.simulation.mutants", "a", "b"),), ""))


@pytest.mark.parametrize("name", QUICK)
def test_quick_mutants_are_caught(name):
    """Three that a few seeds must catch, as a check on the checks in every run."""
    done = subprocess.run(
        [
            sys.executable,
            str(ROOT / "scripts/mutants.py"),
            "--seeds",
            "12",
            "--virtual-seconds",
            "20",
            "--jobs",
            "1",
            name,
        ],
        capture_output=True,
        text=True,
        check=False,
        timeout=110,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
@pytest.mark.timeout(100_000)
def test_all_mutants_are_caught():
    """Each within 500 seeds."""
    done = subprocess.run(
        [sys.executable, str(ROOT / "scripts/mutants.py")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
