"""Copy the log of a Java DLedger node into a group, in order.

    python examples/import_dledger.py NODE_FOLDER PEERS GROUP [FIRST_INDEX]

NODE_FOLDER is ``<storeBaseDir>/dledger-<selfId>`` of a node that is stopped. Its entries are read as openmessaging's
DLedger writes them (no checksums, so only the shape of the log can be checked: indexes without a gap, terms that never
fall, positions that are where the entries stand). No-op entries are left out, as the new log has its own. Prints how
old indexes map to new ones. After an interruption look at the end of the new log, where part of one more batch than was
printed may stand, and give the old index to go on from.
"""

from __future__ import annotations

import struct
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import IO

from dledger import connect_blocking

HEADER = struct.Struct(">iiqqqiiii")  # magic, size, index, term, position, channel, chain CRC, body CRC, body size
NORMAL, NOOP, CONFIG_CHANGE, BLANK = 1, 2, 3, -1
BATCH = 256


class BadLogError(Exception):
    """The files are not a DLedger log without gaps; says where."""


@dataclass(frozen=True)
class OldEntry:
    """One entry of the old log."""

    magic: int
    index: int
    term: int
    body: bytes


def entries(folder: Path) -> Iterator[OldEntry]:
    """Yield every entry of a node's folder, up to the first place where none has been written yet.

    Raises:
        BadLogError: a gap, or something that is no entry.
    """
    segments = sorted(path for path in (folder / "data").iterdir() if path.name.isdigit())
    if not segments:
        raise BadLogError(f"{folder}/data has no segments")
    before: OldEntry | None = None
    for segment in segments:
        with open(segment, "rb") as file:
            for entry in _segment(file, segment, int(segment.name)):
                if before is not None and (entry.index != before.index + 1 or entry.term < before.term):
                    raise BadLogError(f"{segment}: entry {entry.index} of term {entry.term} follows {before.index}")
                before = entry
                yield entry


def _segment(file: IO[bytes], path: Path, start: int) -> Iterator[OldEntry]:
    """Yield the entries of one segment, which ends with a blank record, with zeros, or with the file."""
    while True:
        at = file.tell()
        head = file.read(HEADER.size)
        if len(head) < 8 or not any(head):
            return
        magic, length = struct.unpack_from(">ii", head)
        if magic == BLANK:
            file.seek(at + length)
            continue
        if magic not in {NORMAL, NOOP, CONFIG_CHANGE} or len(head) < HEADER.size:
            raise BadLogError(f"{path}: no entry at byte {at}")
        _, size, index, term, position, _, _, _, body_size = HEADER.unpack(head)
        body = file.read(body_size)
        if size != HEADER.size + body_size or position != start + at or len(body) != body_size:
            raise BadLogError(f"{path}: entry {index} at byte {at} is cut off, or stands in the wrong place")
        yield OldEntry(magic, index, term, body)


def main(folder: str, peers: str, group: str, first_index: str = "0") -> None:
    wanted = (e for e in entries(Path(folder)) if e.index >= int(first_index) and e.magic == NORMAL)
    copied = 0
    with connect_blocking(peers, group=group, timeout=60) as log:
        while batch := list(islice(wanted, BATCH)):
            found = log.append_many([entry.body for entry in batch])
            copied += len(batch)
            print(f"{batch[0].index}-{batch[-1].index} → {found.first_index}-{found.last_index}", flush=True)
    print(f"{copied} entries copied")


if __name__ == "__main__":
    main(*sys.argv[1:])
