"""What the ``dledger`` command's exit codes mean."""

from __future__ import annotations

import enum

__all__ = ["ExitCode"]


class ExitCode(enum.IntEnum):
    """Part of the command's contract; shown by ``dledger --help``."""

    DONE = 0
    FAILED = 1
    USAGE = 2
    NO_QUORUM = 3
    CONFIGURATION = 4
    UNREACHABLE = 5
    VERDICT_FAIL = 6
    TIMED_OUT = 124
    INTERRUPTED = 130

    @property
    def meaning(self) -> str:
        return _MEANINGS[self]


_MEANINGS = {
    ExitCode.DONE: "done",
    ExitCode.FAILED: "failed",
    ExitCode.USAGE: "wrong usage",
    ExitCode.NO_QUORUM: "no leader, or less than a majority is up",
    ExitCode.CONFIGURATION: "wrong configuration",
    ExitCode.UNREACHABLE: "nobody reachable",
    ExitCode.VERDICT_FAIL: "verdict FAIL",
    ExitCode.TIMED_OUT: "timed out waiting",
    ExitCode.INTERRUPTED: "interrupted",
}
