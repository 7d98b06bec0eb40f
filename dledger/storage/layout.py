"""How an entry and its index record lie in the files and on the wire: DLedger's own layout, big-endian.

An entry is a header of 48 bytes and a body:

    at  size field
     0   4   magic      EntryType; -1 = blank filler up to the segment's end
     4   4   size       48 + body
     8   8   index      from 0
    16   8   term
    24   8   pos        absolute byte position of this header over all segments
    32   4   channel    producer session number, 0 = none
    36   4   chain_crc  CRC-32C of these 48 bytes with this field zero, continued from the previous chain_crc
    40   4   body_crc   CRC-32C of the body
    44   4   body size
    48   n   body

An index record is 32 bytes (magic 4, pos 8, size 4, index 8, term 8) at file position ``index * 32``; a blank is
int32 -1 and its int32 length.
"""

from __future__ import annotations

from struct import Struct
from typing import Final

__all__ = ["BLANK", "BLANK_MAGIC", "HEADER", "HEADER_BYTES", "INDEX_RECORD", "INDEX_RECORD_BYTES", "MIN_BLANK_BYTES"]

HEADER: Final = Struct(">iiqqqIIII")
HEADER_BYTES: Final = 48
INDEX_RECORD: Final = Struct(">iqiqq")
INDEX_RECORD_BYTES: Final = 32
BLANK: Final = Struct(">ii")
BLANK_MAGIC: Final = -1
MIN_BLANK_BYTES: Final = 8
