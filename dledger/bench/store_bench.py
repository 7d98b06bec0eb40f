"""How long a store takes to open after ``kill -9``, whatever its size.

One process fills a store through the store's own API, as fast as the disk takes it, and says so; whoever started it
kills it with signal 9. Then a fresh process opens what is left.
"""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path
from typing import Any, Final

from dledger.bench.drive import expect_line, helper_command, own_process
from dledger.raft.messages import EntryType, HardState
from dledger.storage.entry import EntryGroup
from dledger.storage.filesystem import RealFileSystem
from dledger.storage.log_store import LogStore

__all__ = ["drop_from_cache", "make_store", "open_store", "opening_times"]

_GROUP: Final = "bench"
_NODE: Final = "n0"
_ENTRIES_A_BATCH: Final = 4096
_MAKE_S: Final = 1800.0
_OPEN_S: Final = 300.0


def make_store(directory: Path, wanted_bytes: int, size_bytes: int) -> None:
    """Fill a new store with so many bytes of committed entries, say ``MADE``, append on, and wait to be killed.

    Raises:
        StorageError: the disk did not take it.
    """
    store = LogStore.open(RealFileSystem(), str(directory), group=_GROUP, node_id=_NODE)
    store.save_hard_state(HardState(1))
    body = os.urandom(size_bytes)
    group = (EntryGroup(EntryType.NORMAL, 0, [body] * _ENTRIES_A_BATCH),)
    while store.end_pos < wanted_bytes:
        _append(store, group)
        store.commit(store.last_index)
    # An uncommitted tail, as a killed node has one.
    _append(store, group)
    print("MADE", flush=True)
    signal.pause()


def _append(store: LogStore, group: tuple[EntryGroup, ...]) -> None:
    store.append(store.encode(1, group))
    batch = store.take_batch()
    if batch is not None:
        store.write(batch)
        store.complete(batch)


def open_store(directory: Path) -> dict[str, Any]:
    """Open it and say how long that took; the process ends without closing it, so that the next finds the same."""
    began = time.perf_counter()
    store = LogStore.open(RealFileSystem(), str(directory), group=_GROUP, node_id=_NODE)
    took = time.perf_counter() - began
    return {"seconds": round(took, 4), "last_index": store.last_index, "bytes": store.end_pos}


def drop_from_cache(directory: Path) -> None:
    """Ask the kernel to forget the files below a folder, so that reading them means reading the disk."""
    for path in directory.rglob("*"):
        if path.is_file():
            handle = os.open(path, os.O_RDONLY)
            try:
                os.fsync(handle)
                os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
            finally:
                os.close(handle)


async def opening_times(directory: Path, wanted_bytes: int, size_bytes: int, repeats: int) -> dict[str, list[float]]:
    """Make a store in ``directory`` (which must not exist), kill its process, and return the seconds of each opening.

    ``cold``: the kernel had forgotten the files; ``warm``: it had just been opened.

    Raises:
        UnavailableError: a process failed; with what it wrote.
    """
    folder = ["--directory", str(directory)]
    command = helper_command("make-store", *folder, "--bytes", str(wanted_bytes), "--size", str(size_bytes))
    async with own_process(command) as process:
        await expect_line(process, "MADE", _MAKE_S)
        await process.end()
    found: dict[str, list[float]] = {"cold": [], "warm": []}
    for _ in range(repeats):
        for kind in ("cold", "warm"):
            if kind == "cold":
                drop_from_cache(directory)
            async with own_process(helper_command("open-store", *folder)) as process:
                found[kind].append(float(json.loads(await expect_line(process, None, _OPEN_S))["seconds"]))
    return found
