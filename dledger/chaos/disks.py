"""Slow, full and failing disks for real processes: a small C library, compiled here and preloaded into each node.

No kernel module, no privilege and no tracer. Each node has a control file that its library keeps mapped; a change takes
effect at the node's next write or sync.
"""

from __future__ import annotations

import errno
import mmap
import os
import shutil
import struct
import subprocess
from importlib import resources
from pathlib import Path
from typing import Final

from dledger.errors import StorageError

__all__ = ["Disk", "build_shim", "why_no_shim"]

_COMPILERS: Final = ("cc", "gcc", "clang")
_BUILD_S: Final = 60.0
_FIELDS: Final = ("sync_delay_us", "sync_errno", "full", "room", "failed_syncs", "refused_writes")
"""``struct control`` of disk_shim.c, each an int64."""


def _compiler() -> str | None:
    return next((found for name in _COMPILERS if (found := shutil.which(name))), None)


def why_no_shim() -> str | None:
    """Return what is missing for disk faults on this machine; None: nothing."""
    if os.name != "posix" or os.uname().sysname != "Linux":
        return "not Linux"
    return None if _compiler() else "no C compiler"


def build_shim(directory: Path) -> Path:
    """Compile the library into ``directory`` and return its path.

    Raises:
        StorageError: there is no compiler, or it failed; says what it wrote.
    """
    compiler = _compiler()
    if compiler is None:
        raise StorageError("no C compiler")
    directory.mkdir(parents=True, exist_ok=True)
    source, library = directory / "disk_shim.c", directory / "disk_shim.so"
    source.write_bytes((resources.files("dledger.chaos") / "disk_shim.c").read_bytes())
    command = [compiler, "-O2", "-Wall", "-shared", "-fPIC", "-o", str(library), str(source), "-ldl"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=_BUILD_S)
    if done.returncode:
        raise StorageError(f"{compiler} failed: {done.stderr.strip()}")
    return library


class Disk:
    """The control file of one node. ``folder``: the files that are concerned."""

    def __init__(self, library: Path, control_path: Path, folder: Path) -> None:
        self._library = library
        self._control_path = control_path
        self._folder = folder
        control_path.write_bytes(bytes(8 * len(_FIELDS)))
        with open(control_path, "r+b") as file:
            self._map = mmap.mmap(file.fileno(), 8 * len(_FIELDS))

    def environment(self) -> dict[str, str]:
        """What the node's process needs in its environment."""
        return {
            "LD_PRELOAD": str(self._library),
            "CHAOS_DISK_CONTROL": str(self._control_path),
            "CHAOS_DISK_FOLDER": str(self._folder),
        }

    def _set(self, name: str, value: int) -> None:
        struct.pack_into("=q", self._map, 8 * _FIELDS.index(name), value)

    def _get(self, name: str) -> int:
        return int(struct.unpack_from("=q", self._map, 8 * _FIELDS.index(name))[0])

    def slow(self, delay_s: float) -> None:
        """Each sync takes ``delay_s`` longer."""
        self._set("sync_delay_us", int(delay_s * 1e6))

    def fail_syncs(self, number: int = errno.EIO) -> None:
        """Each sync fails with this error."""
        self._set("sync_errno", number)

    def fill(self, room_bytes: int = 0) -> None:
        """The disk takes ``room_bytes`` more, cutting the write that crosses them short, and then none."""
        self._set("room", room_bytes)
        self._set("full", 1)

    def heal(self) -> None:
        """The disk is quick, sound and has space."""
        for name in ("sync_delay_us", "sync_errno", "full"):
            self._set(name, 0)

    @property
    def failed_syncs(self) -> int:
        return self._get("failed_syncs")

    @property
    def refused_writes(self) -> int:
        return self._get("refused_writes")

    def close(self) -> None:
        self._map.close()
