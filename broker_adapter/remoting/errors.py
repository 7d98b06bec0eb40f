"""What goes wrong on a remoting connection.

RemotingError                      base
├── FrameError                     the byte stream cannot be a remoting stream: the connection is closed
├── CommandError                   a request is answered with this code and remark
├── RemotingConnectError           nobody listens at the address
├── RemotingTimeoutError           no answer in time: the outcome is unknown
└── RemotingClosedError            the connection broke while an answer was awaited: the outcome is unknown
"""

from __future__ import annotations

__all__ = [
    "CommandError",
    "FrameError",
    "RemotingClosedError",
    "RemotingConnectError",
    "RemotingError",
    "RemotingTimeoutError",
]


class RemotingError(Exception):
    """Base of all errors of this package."""


class FrameError(RemotingError):
    """A frame that cannot be one. There is no way to find the next frame, so the connection ends."""


class CommandError(RemotingError):
    """A handler's refusal: it becomes the answer, with this code and remark."""

    def __init__(self, code: int, remark: str) -> None:
        super().__init__(f"CODE: {int(code)}  DESC: {remark}")
        self.code = int(code)
        self.remark = remark


class RemotingConnectError(RemotingError):
    """No connection could be made. The request was certainly not sent."""


class RemotingTimeoutError(RemotingError):
    """No answer came in time. Whether the request took effect is unknown."""


class RemotingClosedError(RemotingError):
    """The connection closed before the answer. Whether the request took effect is unknown."""
