"""Memory of a process that serves: which freed blocks the C library keeps, what the collector looks through.

glibc gives a freed block of a megabyte back to the kernel, and the kernel hands out every page of the next one zeroed,
by a page fault: on a virtual machine that costs several times what copying the block does (docs/performance.md). A
node takes, joins and frees such blocks for each chunk of a read and each window of entries. Told to keep a few of them,
it works in the same pages again. Both settings are of the whole process; so the processes that dledger itself starts
make them, and a program that embeds dledger may (`keep_freed_memory`).
"""

from __future__ import annotations

import gc
import os
from typing import Final

__all__ = ["freeze_objects", "keep_freed_memory"]

_M_TRIM_THRESHOLD: Final = -1  # malloc.h of glibc
_M_MMAP_THRESHOLD: Final = -3

_KEPT_BYTES: Final = 32 * 1024 * 1024
"""Free memory at the end of a heap that is not given back: the chunks and windows of some readers and peers."""

_OWN_MAPPING_BYTES: Final = 16 * 1024 * 1024
"""Larger blocks come from the kernel and go back to it: no message is as large."""

_VARIABLES: Final = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TOP_PAD_", "MALLOC_MMAP_MAX_")

_GC_THRESHOLD: Final = 50_000


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
