"""What processes of this machine cost: CPU seconds and resident memory, from /proc."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

__all__ = ["CpuMeter", "CpuUse", "busy_seconds", "cpu_seconds", "resident_bytes"]

_TICKS: Final = os.sysconf("SC_CLK_TCK")


def cpu_seconds(pid: int) -> float:
    """Return user and system time of a process, all threads, in steps of 10 ms; 0 where it has ended."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return 0.0
    fields = stat.rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS


def resident_bytes(pid: int) -> tuple[int, int]:
    """Return a process's resident memory now and at its highest (VmRSS, VmHWM); zeros where it has ended."""
    found = {}
    try:
        for line in Path(f"/proc/{pid}/status").read_text(encoding="utf-8", errors="replace").splitlines():
            name, _, value = line.partition(":")
            if name in {"VmRSS", "VmHWM"}:
                found[name] = int(value.split()[0]) * 1024
    except OSError:
        return 0, 0
    return found.get("VmRSS", 0), found.get("VmHWM", 0)


def busy_seconds() -> float:
    """Return the time that all CPUs of the machine together have worked since it started; 0 where nobody says."""
    try:
        with open("/proc/stat", encoding="ascii") as stat:
            fields = [int(text) for text in stat.readline().split()[1:]]
    except OSError:
        return 0.0
    idle = fields[3] + fields[4]
    # The guests' times (8, 9) are contained in those of user and nice.
    return (sum(fields[:8]) - idle) / _TICKS


@dataclass(frozen=True, slots=True)
class CpuUse:
    """CPU seconds by name, over ``elapsed_s`` seconds; ``other_s``: what the rest of the machine used."""

    seconds: dict[str, float]
    elapsed_s: float
    other_s: float


class CpuMeter:
    """Measures named processes from its creation on."""

    def __init__(self, pids: Mapping[str, int]) -> None:
        self._pids = dict(pids)
        self._before = {name: cpu_seconds(pid) for name, pid in self._pids.items()}
        self._busy = busy_seconds()
        self._began = time.perf_counter()

    def read(self) -> CpuUse:
        """Return what was used since."""
        elapsed = time.perf_counter() - self._began
        used = {name: round(cpu_seconds(pid) - self._before[name], 3) for name, pid in self._pids.items()}
        other = busy_seconds() - self._busy - sum(used.values())
        return CpuUse(used, elapsed, round(max(other, 0.0), 3))
