"""HAService's wire format (RocketMQ 4.x).

Slave → master: int64, the end of the slave's log: request, acknowledgement and heartbeat in one. Master → slave: int64
physical offset, int32 size, then that many bytes of the commit log; size 0 is a heartbeat.
"""

from __future__ import annotations

from struct import Struct
from typing import Final

__all__ = ["MAX_FRAME_BYTES", "OFFSET", "OFFSET_BYTES", "TRANSFER_HEADER", "TRANSFER_HEADER_BYTES"]

OFFSET: Final = Struct(">q")
OFFSET_BYTES: Final = 8
TRANSFER_HEADER: Final = Struct(">qi")
TRANSFER_HEADER_BYTES: Final = 12
MAX_FRAME_BYTES: Final = 16 * 1024 * 1024
"""More than any master sends (32 KiB by default); a longer one is no HA stream."""
