"""Successful answers that differ in a few fields only: the JSON header is laid out once, then filled in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from broker_adapter.remoting.codes import ResponseCode
from broker_adapter.remoting.command import FLAG_RESPONSE, RemotingCommand, encode_head, header_frame

__all__ = ["AnswerTemplate"]

_OPAQUE_MARK: Final = 1_987_654_321
_LENGTHS_BYTES: Final = 8


class AnswerTemplate:
    """A SUCCESS answer with JSON header. ``varying``: its ext fields that differ; ``constant``: those behind them.

    It is made by the general encoder from marks, so it says what that would say.
    """

    __slots__ = ("_format",)

    def __init__(self, varying: Sequence[str], constant: Mapping[str, object]) -> None:
        marks = {name: f"<{name}>" for name in varying}
        made = RemotingCommand(
            int(ResponseCode.SUCCESS), {**marks, **constant}, opaque=_OPAQUE_MARK, flag=FLAG_RESPONSE
        )
        text = encode_head(made, 0)[_LENGTHS_BYTES:].decode("ascii").replace("%", "%%")
        text = text.replace(f'"opaque":{_OPAQUE_MARK},', '"opaque":%d,', 1)
        for mark in marks.values():
            text = text.replace(f'"{mark}"', '"%s"', 1)
        self._format = text

    def head(self, opaque: int, values: tuple[int | str, ...], body_bytes: int = 0) -> bytes:
        """Return all of the frame that stands before its body.

        ``values``: of the varying fields, in their order; numbers, or ASCII text that JSON writes as it is (ids).
        """
        return header_frame((self._format % (opaque, *values)).encode("ascii"), body_bytes)
