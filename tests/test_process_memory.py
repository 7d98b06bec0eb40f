"""`dledger.process_memory`: in processes of their own, whose memory it is."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
from pathlib import Path

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


LARGE = Path("/sys/kernel/mm/transparent_hugepage")
COLLAPSE = """
import ctypes, mmap, re, sys
from pathlib import Path
import dledger.process_memory as memory

if "never" in sys.argv:
    memory._LARGE_PAGES = Path(sys.argv[2])
size = int(Path("/sys/kernel/mm/transparent_hugepage/hpage_pmd_size").read_text())
full, sparse = mmap.mmap(-1, 4 * size, flags=mmap.MAP_PRIVATE), mmap.mmap(-1, 4 * size, flags=mmap.MAP_PRIVATE)
for page in range(0, 4 * size, mmap.PAGESIZE):
    full[page] = page // mmap.PAGESIZE % 251
    if page % (8 * mmap.PAGESIZE) == 0:
        sparse[page] = 1

def held():
    status = Path("/proc/self/smaps_rollup").read_text()
    return [int(re.search(name + r": *(\\d+)", status)[1]) * 1024 for name in ("Rss", "AnonHugePages")]

before, _ = held()
count = memory.use_large_pages()
after, large = held()
whole = all(full[page] == page // mmap.PAGESIZE % 251 for page in range(0, 4 * size, mmap.PAGESIZE))
print(count, large // size, after - before, size, whole)
"""


def collapse(*arguments):
    done = subprocess.run(
        [sys.executable, "-c", COLLAPSE, *arguments], capture_output=True, text=True, timeout=60, check=True
    )
    count, large, grown, size, whole = done.stdout.split()
    assert whole == "True"
    return int(count), int(large), int(grown) / int(size)


@pytest.mark.skipif(
    not (LARGE / "enabled").exists() or tuple(map(int, os.uname().release.split(".")[:2])) < (6, 1),
    reason="large pages on demand are of Linux 6.1",
)
def test_what_is_full_goes_into_large_pages_and_what_is_not_costs_no_memory():
    """Of four ranges three at least lie as they must. A mapping of which an eighth is used is left alone."""
    count, large, grown = collapse()
    assert large >= count >= 3
    assert grown < 1 + count / 8


def test_whoever_has_switched_them_off_is_obeyed(tmp_path):
    (tmp_path / "enabled").write_text("always madvise [never]\n")
    (tmp_path / "hpage_pmd_size").write_text(f"{2 << 20}\n")
    if not (LARGE / "hpage_pmd_size").exists():
        pytest.skip("the kernel has no large pages")
    assert collapse("never", str(tmp_path))[0] == 0
