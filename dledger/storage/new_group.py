"""Giving a stopped node's log to a new group: the way back when a majority of the old one is lost for good.

Only the folder's identity changes, in one atomic step. Term, vote and log stay: what the node has promised in any term
still binds it, and the new group's name keeps the old group's nodes, should they ever come back, from talking to it.
"""

from __future__ import annotations

from dataclasses import dataclass

from dledger.errors import CorruptLogError, StorageError
from dledger.storage.filesystem import FileSystem
from dledger.storage.small_files import load_identity, save_identity
from dledger.storage.verify import VerifyReport, verify_directory

__all__ = ["Handover", "give_to_group"]


@dataclass(frozen=True, slots=True)
class Handover:
    """What was found in a folder, and whose it was."""

    old_group: str
    node_id: str
    report: VerifyReport


def give_to_group(fs: FileSystem, directory: str, group: str, *, change: bool) -> Handover:
    """Verify the whole log of a stopped node, and make it one of ``group``'s; only look unless ``change``.

    Raises:
        StoreLockedError: the node runs.
        CorruptLogError: the log or the identity is damaged; nothing was changed.
        StorageError: the folder has no identity, or is ``group``'s already.
    """
    lock = fs.lock(f"{directory}/lock")
    try:
        identity = load_identity(fs, directory)
        old_group, node_id = str(identity["group"]), str(identity["node_id"])
        if old_group == group:
            raise StorageError(
                f"{directory} is group {group}'s already: give it a name that no node of the old group has ever had"
            )
        report = verify_directory(fs, directory)
        if report.damage:
            first = report.damage[0]
            raise CorruptLogError(
                f"{first.path}: byte {first.offset}, entry {first.index}: {first.problem}. Take the folder of another "
                "survivor, or restore this one from a copy"
            )
        if change:
            save_identity(fs, directory, identity | {"group": group})
        return Handover(old_group, node_id, report)
    finally:
        fs.close(lock)
