"""Which commit log files may go (upstream's CleanCommitLogService)."""

from __future__ import annotations

import time
from typing import Final

from broker_adapter.store.api import StoreConfig
from broker_adapter.store.files import SegmentFiles

__all__ = ["expired_files"]

_MAX_A_PASS: Final = 10
_FORCIBLY_PERCENT: Final = 85
_HOUR_MS: Final = 3_600_000


def expired_files(files: SegmentFiles, config: StoreConfig, *, now_ms: int, used_percent: float, force: bool) -> int:
    """Return how many files at the front to delete.

    They go when they are past ``fileReservedTime`` and either it is the hour (``deleteWhen``), or the disk is fuller
    than ``diskMaxUsedSpaceRatio``, or ``force``. Over 85 % used (and ``cleanFileForciblyEnable``) they go whatever
    their age. At most ten a pass, never the last.
    """
    hours = {part.strip().zfill(2) for part in config.delete_when.split(";") if part.strip()}
    is_time = time.strftime("%H", time.localtime(now_ms / 1000)) in hours
    is_full = used_percent > config.disk_max_used_space_ratio
    forcibly = config.clean_file_forcibly_enable and used_percent > _FORCIBLY_PERCENT
    if not (is_time or is_full or force or forcibly):
        return 0
    reserved_ms = config.file_reserved_time_hours * _HOUR_MS
    count = 0
    for start in files.starts[:-1][:_MAX_A_PASS]:
        if not forcibly and files.modified_ms(start) + reserved_ms > now_ms:
            break
        count += 1
    return count
