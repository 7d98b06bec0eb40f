"""Histories of what clients saw, and the judges that say whether a log could have shown it."""

from dledger.checker.check import Kind, Verdict, Violation, check
from dledger.checker.history import ACKNOWLEDGED, FAILED, UNKNOWN, FinalLog, History, Read

__all__ = [
    "ACKNOWLEDGED",
    "FAILED",
    "UNKNOWN",
    "FinalLog",
    "History",
    "Kind",
    "Read",
    "Verdict",
    "Violation",
    "check",
]
