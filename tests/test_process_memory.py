"""`dledger.process_memory`: in processes of their own, whose memory it is."""

from __future__ import annotations

import gc
import os
import subprocess
import sys

import pytest

PAGES = 10 * 3 * 256
SCRIPT = """
import gc, resource, sys
from dledger.process_memory import freeze_objects, keep_freed_memory
print(keep_freed_memory() if "keep" in sys.argv else None)

def work(count):
    for _ in range(count):
        blocks = [bytes(3 << 20) + b"x" for _ in range(3)]  # each 3 MiB, filled

work(3)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
work(10)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
freeze_objects()
print(gc.get_freeze_count(), gc.get_threshold()[0])
"""

glibc_only = pytest.mark.skipif("CS_GNU_LIBC_VERSION" not in os.confstr_names, reason="the C library is not glibc")


def outcome(*arguments, **environment):
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        env=environment,
        check=True,
    )
    kept, faults, frozen = done.stdout.splitlines()
    return kept, int(faults), frozen.split()


@glibc_only
def test_blocks_that_are_freed_and_taken_again_cost_no_page_faults():
    kept, faults, _ = outcome("keep")
    assert kept == "True"
    assert faults < PAGES / 100


@glibc_only
def test_by_itself_the_c_library_gives_them_back():
    """Else nothing of this would be needed any more."""
    kept, faults, _ = outcome()
    assert kept == "None"
    assert faults > PAGES / 2


@pytest.mark.parametrize(
    "variables",
    [{"MALLOC_TRIM_THRESHOLD_": "131072"}, {"GLIBC_TUNABLES": "glibc.malloc.trim_threshold=131072"}],
    ids=str,
)
def test_what_the_user_has_set_stands(variables):
    assert outcome("keep", **variables)[0] == "False"


def test_what_is_there_is_frozen_and_the_collector_looks_seldom():
    frozen, threshold = map(int, outcome()[2])
    assert frozen > 1000
    assert threshold > gc.get_threshold()[0]
