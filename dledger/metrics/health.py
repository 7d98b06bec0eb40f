"""Whether a node lives, and whether it is fit for use: two questions, because the answer to a wrong one restarts nodes.

*Live*: the event loop turns and the node has not failed. Only a restart helps one that does not live. *Ready*: a leader
is known, and this node is not far behind. A node without a majority is live and not ready; restarting it helps nobody.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from dledger.raft.messages import NO_INDEX

if TYPE_CHECKING:
    from dledger.driver.driver import Driver

__all__ = ["Readiness", "readiness"]


@dataclass(frozen=True, slots=True)
class Readiness:
    """``reason`` says in words why a node is not ready; empty if it is."""

    live: bool
    reason: str = ""

    @property
    def ready(self) -> bool:
        return self.live and not self.reason


def readiness(driver: Driver) -> Readiness:
    """Return how a started node is. Cheap: no disk, no network.

    Behind means ``maxLeadershipTransferWaitIndex`` entries or more: the same bound beyond which it is not made leader.
    """
    if not driver.running:
        return Readiness(False, "stopped")
    core = driver.core
    limit = driver.config.max_leadership_transfer_wait_index
    if core.leader_id is None:
        return Readiness(True, "no leader is known here")
    if core.is_leader and not core.is_leader_ready:
        return Readiness(True, "elected, waiting for a majority to hold the first entry of the term")
    if core.disk_full:
        return Readiness(True, "the disk is full")
    if core.votes_provisionally and core.last_index != NO_INDEX:
        return Readiness(True, "catching up after lost data")
    if core.commits_behind >= limit:
        return Readiness(True, f"{core.commits_behind} entries behind the leader")
    unapplied = core.commit_index - driver.applied_index
    if unapplied >= limit:
        return Readiness(True, f"the state machine is {unapplied} entries behind")
    return Readiness(True)
