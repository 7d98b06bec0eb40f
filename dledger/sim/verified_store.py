"""The store of a simulated node: the real one, and a look at every byte that it serves."""

from __future__ import annotations

from collections.abc import Callable

from dledger.storage.entry import CorruptSliceError, RawSlice, parse_slice
from dledger.storage.log_store import LogStore

__all__ = ["VerifiedLogStore"]


class VerifiedLogStore(LogStore):
    """Verifies entry by entry what `LogStore.read` may have known by the sums of its blocks alone."""

    report: Callable[[str, str], None]
    """Called with the invariant's name and what happened; set behind `open`."""

    def read(self, first_index: int, last_index: int, max_bytes: int, *, with_crc: bool = False) -> RawSlice:
        """See ``LogStore.read``."""
        raw = super().read(first_index, last_index, max_bytes, with_crc=with_crc)
        try:
            parsed = parse_slice(raw.data, first_index, raw.prev_chain_crc)
        except CorruptSliceError as error:
            self.report("served bytes are verified", f"{self.directory}: {error.message}")
        else:
            if parsed.last_index != raw.last_index:
                self.report(
                    "served bytes are verified",
                    f"{self.directory}: entries {first_index} to {parsed.last_index} for those to {raw.last_index}",
                )
        return raw
