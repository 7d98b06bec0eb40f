"""Response codes and the exception tree.

DLedgerError                      code, retriable, outcome
├── ConfigError                   every problem at once, file:line:column each
├── NotLeaderError                404: leader_id and leader_address where known
├── LeaderNotReadyError           505: elected, own-term no-op not yet committed
├── LeaderTransferringError       506
├── PendingFullError              503: back off
├── QuorumTimeoutError            502: outcome UNKNOWN
├── TermChangedError              403/501: leadership lost while waiting; outcome UNKNOWN
├── UnknownGroupError             400
├── UnknownMemberError            401
├── UnexpectedArgumentError       411 (also 420 for an empty batch)
├── EntryTooLargeError            411
├── IndexOutOfRangeError          410
├── IndexCompactedError           419
├── TransferFailedError           417/418
├── SessionExpiredError           600: the session is not in the table (evicted or never opened)
├── SequenceGapError              601: an earlier sequence has not arrived; send that first
├── SequenceForgottenError        602: appended long ago, its index is no longer remembered
├── AccessDeniedError             603: no token, an unknown one, or one without the right
├── UnavailableError              302: nobody could be reached, or no leader within the deadline
├── StorageError                  414
│   ├── StorageFailedError        write or fsync failed; the store is latched shut
│   ├── DiskFullError             415
│   ├── CorruptLogError           damage in the middle of the log: file, position, index, what to do
│   └── StoreLockedError          another process has the folder
└── StoppedError                  the node is stopping
"""

from __future__ import annotations

import enum
from typing import ClassVar

__all__ = [
    "AccessDeniedError",
    "ConfigError",
    "CorruptLogError",
    "DLedgerError",
    "DiskFullError",
    "EntryTooLargeError",
    "IndexCompactedError",
    "IndexOutOfRangeError",
    "LeaderNotReadyError",
    "LeaderTransferringError",
    "NotLeaderError",
    "Outcome",
    "PendingFullError",
    "QuorumTimeoutError",
    "ResponseCode",
    "SequenceForgottenError",
    "SequenceGapError",
    "SessionExpiredError",
    "StoppedError",
    "StorageError",
    "StorageFailedError",
    "StoreLockedError",
    "TermChangedError",
    "TransferFailedError",
    "UnavailableError",
    "UnexpectedArgumentError",
    "UnknownGroupError",
    "UnknownMemberError",
    "error_for_code",
]


class ResponseCode(enum.IntEnum):
    """DLedger's response codes with DLedger's numbers; 6xx are ours (producer sessions, access)."""

    UNKNOWN = -1
    SUCCESS = 200
    TIMEOUT = 300
    METADATA_ERROR = 301
    NETWORK_ERROR = 302
    UNSUPPORTED = 303
    UNKNOWN_GROUP = 400
    UNKNOWN_MEMBER = 401
    UNEXPECTED_MEMBER = 402
    EXPIRED_TERM = 403
    NOT_LEADER = 404
    NOT_FOLLOWER = 405
    INCONSISTENT_STATE = 406
    INCONSISTENT_TERM = 407
    INCONSISTENT_INDEX = 408
    INCONSISTENT_LEADER = 409
    INDEX_OUT_OF_RANGE = 410
    UNEXPECTED_ARGUMENT = 411
    REPEATED_REQUEST = 412
    REPEATED_PUSH = 413
    DISK_ERROR = 414
    DISK_FULL = 415
    TERM_NOT_READY = 416
    FALL_BEHIND_TOO_MUCH = 417
    TAKE_LEADERSHIP_FAILED = 418
    INDEX_LESS_THAN_LOCAL_BEGIN = 419
    REQUEST_WITH_EMPTY_BODYS = 420
    PUSH_REQUEST_IS_FULL = 421
    NEWER_INSTALL_SNAPSHOT_REQUEST_EXIST = 422
    INTERNAL_ERROR = 500
    TERM_CHANGED = 501
    WAIT_QUORUM_ACK_TIMEOUT = 502
    LEADER_PENDING_FULL = 503
    ILLEGAL_MEMBER_STATE = 504
    LEADER_NOT_READY = 505
    LEADER_TRANSFERRING = 506
    LOAD_SNAPSHOT_ERROR = 507
    INSTALL_SNAPSHOT_ERROR = 508
    UNKNOWN_SESSION = 600
    SEQUENCE_GAP = 601
    SEQUENCE_FORGOTTEN = 602
    ACCESS_DENIED = 603


class Outcome(enum.Enum):
    """What a failed append did: DEFINITE, it is not in the log and never will be; UNKNOWN, it may be or become so."""

    DEFINITE = "DEFINITE"
    UNKNOWN = "UNKNOWN"


class DLedgerError(Exception):
    """Base of every operating error.

    Attributes:
        code: the DLedger response code that goes with it.
        retriable: whether the same call may succeed later, at this or another node.
        outcome: whether a failed append may still be in the log.
    """

    default_code: ClassVar[ResponseCode] = ResponseCode.UNKNOWN
    default_retriable: ClassVar[bool] = False
    default_outcome: ClassVar[Outcome] = Outcome.DEFINITE

    def __init__(
        self,
        message: str,
        *,
        code: ResponseCode | None = None,
        outcome: Outcome | None = None,
        leader_id: str | None = None,
        leader_address: str | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.code = self.default_code if code is None else code
        self.retriable = self.default_retriable
        self.outcome = self.default_outcome if outcome is None else outcome
        self.leader_id = leader_id
        self.leader_address = leader_address


class ConfigError(DLedgerError):
    """The configuration is wrong. ``problems`` has one line each, ``file:line:column: what; what next``."""

    default_code = ResponseCode.UNEXPECTED_ARGUMENT

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


class NotLeaderError(DLedgerError):
    default_code = ResponseCode.NOT_LEADER
    default_retriable = True


class LeaderNotReadyError(DLedgerError):
    default_code = ResponseCode.LEADER_NOT_READY
    default_retriable = True


class LeaderTransferringError(DLedgerError):
    default_code = ResponseCode.LEADER_TRANSFERRING
    default_retriable = True


class PendingFullError(DLedgerError):
    default_code = ResponseCode.LEADER_PENDING_FULL
    default_retriable = True


class QuorumTimeoutError(DLedgerError):
    default_code = ResponseCode.WAIT_QUORUM_ACK_TIMEOUT
    default_retriable = True
    default_outcome = Outcome.UNKNOWN


class TermChangedError(DLedgerError):
    default_code = ResponseCode.TERM_CHANGED
    default_retriable = True
    default_outcome = Outcome.UNKNOWN


class UnknownGroupError(DLedgerError):
    default_code = ResponseCode.UNKNOWN_GROUP


class UnknownMemberError(DLedgerError):
    default_code = ResponseCode.UNKNOWN_MEMBER


class UnexpectedArgumentError(DLedgerError):
    default_code = ResponseCode.UNEXPECTED_ARGUMENT


class EntryTooLargeError(UnexpectedArgumentError):
    pass


class IndexOutOfRangeError(DLedgerError):
    default_code = ResponseCode.INDEX_OUT_OF_RANGE


class IndexCompactedError(DLedgerError):
    default_code = ResponseCode.INDEX_LESS_THAN_LOCAL_BEGIN


class TransferFailedError(DLedgerError):
    default_code = ResponseCode.TAKE_LEADERSHIP_FAILED
    default_retriable = True


class SessionExpiredError(DLedgerError):
    default_code = ResponseCode.UNKNOWN_SESSION


class SequenceGapError(DLedgerError):
    default_code = ResponseCode.SEQUENCE_GAP
    default_retriable = True


class SequenceForgottenError(DLedgerError):
    default_code = ResponseCode.SEQUENCE_FORGOTTEN
    default_outcome = Outcome.UNKNOWN


class AccessDeniedError(DLedgerError):
    default_code = ResponseCode.ACCESS_DENIED


class UnavailableError(DLedgerError):
    default_code = ResponseCode.NETWORK_ERROR
    default_retriable = True


class StorageError(DLedgerError):
    default_code = ResponseCode.DISK_ERROR


class StorageFailedError(StorageError):
    """A write or an fsync failed. Final: the kernel may have dropped the pages, so the store is latched shut."""

    default_outcome = Outcome.UNKNOWN


class DiskFullError(StorageError):
    default_code = ResponseCode.DISK_FULL
    default_retriable = True


class CorruptLogError(StorageError):
    """Damage in the middle of the log: the message names file, position and index, and says what to do."""


class StoreLockedError(StorageError):
    pass


class StoppedError(DLedgerError):
    default_code = ResponseCode.ILLEGAL_MEMBER_STATE
    default_retriable = True


_BY_CODE: dict[ResponseCode, type[DLedgerError]] = {
    ResponseCode.NOT_LEADER: NotLeaderError,
    ResponseCode.LEADER_NOT_READY: LeaderNotReadyError,
    ResponseCode.LEADER_TRANSFERRING: LeaderTransferringError,
    ResponseCode.LEADER_PENDING_FULL: PendingFullError,
    ResponseCode.WAIT_QUORUM_ACK_TIMEOUT: QuorumTimeoutError,
    ResponseCode.TERM_CHANGED: TermChangedError,
    ResponseCode.EXPIRED_TERM: TermChangedError,
    ResponseCode.UNKNOWN_GROUP: UnknownGroupError,
    ResponseCode.UNKNOWN_MEMBER: UnknownMemberError,
    ResponseCode.UNEXPECTED_ARGUMENT: UnexpectedArgumentError,
    ResponseCode.REQUEST_WITH_EMPTY_BODYS: UnexpectedArgumentError,
    ResponseCode.INDEX_OUT_OF_RANGE: IndexOutOfRangeError,
    ResponseCode.INDEX_LESS_THAN_LOCAL_BEGIN: IndexCompactedError,
    ResponseCode.FALL_BEHIND_TOO_MUCH: TransferFailedError,
    ResponseCode.TAKE_LEADERSHIP_FAILED: TransferFailedError,
    ResponseCode.UNKNOWN_SESSION: SessionExpiredError,
    ResponseCode.SEQUENCE_GAP: SequenceGapError,
    ResponseCode.SEQUENCE_FORGOTTEN: SequenceForgottenError,
    ResponseCode.ACCESS_DENIED: AccessDeniedError,
    ResponseCode.NETWORK_ERROR: UnavailableError,
    ResponseCode.DISK_ERROR: StorageFailedError,
    ResponseCode.DISK_FULL: DiskFullError,
    ResponseCode.ILLEGAL_MEMBER_STATE: StoppedError,
}


def error_for_code(
    code: int, message: str, *, leader_id: str | None = None, leader_address: str | None = None
) -> DLedgerError:
    """Return the exception that goes with a response code (an unknown code: a plain `DLedgerError`)."""
    try:
        known = ResponseCode(code)
    except ValueError:
        return DLedgerError(f"code {code}: {message}", outcome=Outcome.UNKNOWN)
    kind = _BY_CODE.get(known, DLedgerError)
    return kind(message, code=known, leader_id=leader_id, leader_address=leader_address)
