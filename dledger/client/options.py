"""The limits of a client, and what each refusal of a batch means to it."""

from __future__ import annotations

import enum
from dataclasses import dataclass

from dledger.errors import ConfigError, ResponseCode

__all__ = ["ACTIONS", "MAX_ENTRY_BYTES", "Action", "PipelineOptions"]

MAX_ENTRY_BYTES = 8 * 1024 * 1024 - 64 * 1024
"""What fits one message of the transport; the bound for an entry until the group's own limits are known."""


@dataclass(frozen=True, slots=True)
class PipelineOptions:
    """Limits of one client. `validate` names every one that cannot work."""

    session: bool = True
    """Exactly once by a producer session. False: an unknown outcome is reported, never sent again."""

    batch_entries: int = 4096
    """Entries of one batch. More: fewer messages; fewer: the first of a burst commits earlier."""

    batch_bytes: int = 1024 * 1024
    """Bytes of one batch, 48 an entry included; a single larger entry travels alone. The group's own limit caps it."""

    max_inflight_batches: int = 2
    """While fewer batches are on the wire, the open batch leaves at once. 1: the group idles between two; many: they
    are small, and what costs is the batch, not the entry."""

    max_wire_batches: int = 16
    """Full batches on the wire. Bounds what is sent again after a fail-over."""

    max_wire_bytes: int = 16 * 1024 * 1024
    """Bytes on the wire, one batch at least."""

    max_pending_count: int = 131072
    """Unresolved entries. Past it `append` waits and `append_nowait` raises ``PendingFullError``."""

    max_pending_bytes: int = 64 * 1024 * 1024
    """Bytes of the same: what the client may cost in memory while the group is away."""

    stall_s: float = 0.2
    """Silence (seconds) with batches on the wire before other nodes are asked whether they lead."""

    def validate(self) -> None:
        """Check every value.

        Raises:
            ConfigError: one line for each value that cannot work.
        """
        bad = [
            f"{name}: {getattr(self, name)} must be positive; leave it out for the default"
            for name in self.__slots__
            if name != "session" and not getattr(self, name) > 0
        ]
        if bad:
            raise ConfigError(bad)


class Action(enum.Enum):
    """What a refusal means for the stream it came on."""

    RETRY = "wait a little and send again on this stream"
    MOVE = "find the leader and send again there"
    REJECT = "these bytes will never be taken"
    EXPIRED = "the session is gone"
    FORGOTTEN = "appended, place no longer known"


ACTIONS: dict[int, tuple[Action, bool]] = {
    ResponseCode.LEADER_PENDING_FULL: (Action.RETRY, True),
    ResponseCode.LEADER_NOT_READY: (Action.RETRY, True),
    ResponseCode.LEADER_TRANSFERRING: (Action.RETRY, True),
    ResponseCode.SEQUENCE_GAP: (Action.RETRY, True),
    ResponseCode.DISK_FULL: (Action.RETRY, True),
    ResponseCode.NOT_LEADER: (Action.MOVE, True),
    ResponseCode.ILLEGAL_MEMBER_STATE: (Action.MOVE, True),
    ResponseCode.UNEXPECTED_ARGUMENT: (Action.REJECT, True),
    ResponseCode.REQUEST_WITH_EMPTY_BODYS: (Action.REJECT, True),
    ResponseCode.UNKNOWN_GROUP: (Action.REJECT, True),
    ResponseCode.UNSUPPORTED: (Action.REJECT, True),
    ResponseCode.UNKNOWN_SESSION: (Action.EXPIRED, True),
    ResponseCode.SEQUENCE_FORGOTTEN: (Action.FORGOTTEN, False),
}
"""Code of a refused batch → what to do, and whether this send surely left nothing in the log. Others: MOVE, unsure."""
