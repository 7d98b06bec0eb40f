"""Keep processors from falling asleep while entries come in: whoever waits for a message then has it at once.

An append wakes four processes, one after the other, and mostly finds their processors asleep. To wake one up costs tens
of microseconds, most of all on a virtual machine, whose host takes the processor back; so half of what an append waits
for besides the disk is that. Linux takes wishes (PM QoS: a process holds ``/dev/cpu_dma_latency`` open and writes how
many microseconds a wake-up may take) and forgets them when the process ends, however it ends.

The wish is one for the whole machine, and costs power: idle processors run in circles. So it is made only where the
operator asks for it (``keepCpusAwake=busy``), and only while there is something to do.
"""

from __future__ import annotations

import asyncio
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Final, Self

__all__ = ["LATENCY_DEVICE", "KeepAwake", "keep_awake_while_changing"]

LATENCY_DEVICE: Final = Path("/dev/cpu_dma_latency")

_AT_ONCE: Final = struct.pack("=i", 0)
_WHENEVER: Final = struct.pack("=i", 2_000_000_000)
"""What the kernel takes for no wish at all, in microseconds."""

_LOOK_EVERY_S: Final = 0.1


class KeepAwake:
    """The wish of this process. A context manager: in it, processors stay awake unless it is told otherwise.

    Raises:
        OSError: this process may not ask (root may, or whoever the device's rights name), or the kernel takes none.
    """

    def __init__(self, device: Path = LATENCY_DEVICE) -> None:
        self._handle = os.open(device, os.O_WRONLY | os.O_CLOEXEC)
        self._is_on = False

    @property
    def is_on(self) -> bool:
        """Whether processors are to stay awake now."""
        return self._is_on

    def set(self, on: bool) -> None:
        """Ask for it, or take it back."""
        if on is not self._is_on:
            os.write(self._handle, _AT_ONCE if on else _WHENEVER)
            self._is_on = on

    def close(self) -> None:
        """Take it back for good."""
        os.close(self._handle)

    def __enter__(self) -> Self:
        self.set(True)
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


async def keep_awake_while_changing(wish: KeepAwake, progress: Callable[[], int]) -> None:
    """Keep processors awake while ``progress`` goes on, looking at it ten times a second; until cancelled."""
    try:
        seen = progress()
        while True:
            await asyncio.sleep(_LOOK_EVERY_S)
            before, seen = seen, progress()
            wish.set(seen != before)
    finally:
        wish.close()
