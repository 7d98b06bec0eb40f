"""The store of a simulated node: the real one, and a look at every byte that it serves."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from dledger.errors import CorruptLogError, DLedgerError
from dledger.storage.entry import CorruptSliceError, RawSlice, parse_slice
from dledger.storage.log_store import LogStore

__all__ = ["VerifiedLogStore"]

_LOOKED_AT: Final = 256
"""Entries of a damaged range that are read one by one."""


class VerifiedLogStore(LogStore):
    """Verifies entry by entry what `LogStore.read` may have known by less: the sums of its blocks, or the way for one.

    Clients of the simulator mostly read ranges. So where one of these turns out to be damaged, each of its entries is
    read alone, too: it must be refused or good.
    """

    report: Callable[[str, str], None]
    """Called with the invariant's name and what happened; set behind `open`."""

    def read(self, first_index: int, last_index: int, max_bytes: int, *, with_crc: bool = False) -> RawSlice:
        """See ``LogStore.read``."""
        try:
            raw = super().read(first_index, last_index, max_bytes, with_crc=with_crc)
        except CorruptLogError:
            self._read_each(first_index, min(last_index, first_index + _LOOKED_AT - 1), max_bytes)
            raise
        self._verify(raw, first_index)
        return raw

    def _read_each(self, first_index: int, last_index: int, max_bytes: int) -> None:
        for index in range(first_index, last_index + 1):
            try:
                one = super().read(index, index, max_bytes)
            except DLedgerError:
                continue
            self._verify(one, index)

    def _verify(self, raw: RawSlice, first_index: int) -> None:
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
