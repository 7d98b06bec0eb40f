"""Memory of a process that serves: what the C library keeps, what the collector looks through, large pages.

glibc gives a freed block of a megabyte back to the kernel, and the kernel hands out every page of the next one zeroed,
by a page fault: on a virtual machine that costs several times what copying the block does (docs/performance.md). A
node takes, joins and frees such blocks for each chunk of a read and each window of entries. Told to keep a few of them,
it works in the same pages again.

Between two messages a node's memory has left the processor's caches, the list of its pages included. The objects that
live as long as the process go into pages of two megabytes, of which that list needs a few (`use_large_pages`).

All of it concerns the whole process; so the processes that dledger itself starts do it, and a program that embeds
dledger may (`keep_freed_memory`).
"""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

__all__ = ["freeze_objects", "keep_freed_memory", "use_large_pages"]

_M_TRIM_THRESHOLD: Final = -1  # malloc.h of glibc
_M_MMAP_THRESHOLD: Final = -3

_KEPT_BYTES: Final = 32 * 1024 * 1024
"""Free memory at the end of a heap that is not given back: the chunks and windows of some readers and peers."""

_OWN_MAPPING_BYTES: Final = 16 * 1024 * 1024
"""Larger blocks come from the kernel and go back to it: no message is as large."""

_VARIABLES: Final = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TOP_PAD_", "MALLOC_MMAP_MAX_")

_GC_THRESHOLD: Final = 50_000

_MADV_COLLAPSE: Final = 25  # Linux 6.1
_LARGE_PAGES: Final = Path("/sys/kernel/mm/transparent_hugepage")
_SPARSE: Final = 8
"""Where one in so many pages of a large page's range is not there, the large page would cost memory."""


def keep_freed_memory() -> bool:
    """Have the process keep up to 32 MiB of freed memory. Returns whether it will.

    Does nothing where the user has set what glibc does (``MALLOC_TRIM_THRESHOLD_`` and its like), and where the C
    library is another.
    """
    if any(name in os.environ for name in _VARIABLES) or "glibc.malloc" in os.environ.get("GLIBC_TUNABLES", ""):
        return False
    import ctypes  # noqa: PLC0415 - only nodes pay for it

    library = ctypes.CDLL(None)
    if not hasattr(library, "gnu_get_libc_version"):  # the numbers above are glibc's
        return False
    mallopt = library.mallopt
    mallopt.argtypes, mallopt.restype = (ctypes.c_int, ctypes.c_int), ctypes.c_int
    return bool(mallopt(_M_MMAP_THRESHOLD, _OWN_MAPPING_BYTES) and mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES))


def freeze_objects() -> None:
    """Spare the collector what is there now, once all is set up: it lives as long as the process.

    What lives for a batch dies by its reference count, so that the collector has little to find, and looks seldom.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(_GC_THRESHOLD)


def use_large_pages() -> int:
    """Move what the process has in memory into large pages; return how many. For when all is set up, and lasts.

    0 where the operator has switched them off (``transparent_hugepage/enabled`` is ``never``), before Linux 6.1, and
    on other systems.
    """
    try:
        if "[never]" in (_LARGE_PAGES / "enabled").read_text(encoding="ascii"):
            return 0
        size = int((_LARGE_PAGES / "hpage_pmd_size").read_text(encoding="ascii"))
        ranges = list(_own_ranges(size))
    except (OSError, ValueError):
        return 0
    import ctypes  # noqa: PLC0415 - only nodes pay for it

    library = ctypes.CDLL(None)
    library.madvise.argtypes = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int
    library.mincore.argtypes = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_char_p
    pages = ctypes.create_string_buffer(size // os.sysconf("SC_PAGE_SIZE"))
    count = 0
    for begin in ranges:
        if library.mincore(begin, size, pages) == 0 and pages.raw.count(b"\0") * _SPARSE <= len(pages.raw):
            count += library.madvise(begin, size, _MADV_COLLAPSE) == 0
    return count


def _own_ranges(size: int) -> Iterator[int]:
    """Yield where ranges of ``size`` begin that lie as a large page must, in memory that is of no file."""
    for line in Path("/proc/self/maps").read_text(encoding="utf-8", errors="replace").splitlines():
        place, rights, _, _, inode, *name = line.split(maxsplit=5)
        if not rights.startswith("rw-p") or inode != "0" or name not in ([], ["[heap]"]):
            continue
        begin, end = (int(number, 16) for number in place.split("-"))
        yield from range(-(-begin // size) * size, end - size + 1, size)
