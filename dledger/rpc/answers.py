"""What every answer of the services carries: a header with a DLedger code and what this node knows of the leader."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeVar

import structlog
from google.protobuf.message import DecodeError, Message

from dledger.errors import (
    DLedgerError,
    EntryTooLargeError,
    ResponseCode,
    UnexpectedArgumentError,
    UnknownGroupError,
)
from dledger.protobuf_wire import bytes_head, put_varint
from dledger.rpc.interfaces import Backend
from dledger.storage.layout import HEADER, HEADER_BYTES
from dledger.types import BatchResult, Entry, ReadMode
from dledger.v1 import ledger_pb2 as pb

__all__ = [
    "Answers",
    "check_batch",
    "entry_message",
    "first_message",
    "parse",
    "read_mode",
]

_M = TypeVar("_M", bound=Message)

_MODES = {
    pb.READ_MODE_UNSPECIFIED: ReadMode.LINEARIZABLE,
    pb.READ_MODE_LINEARIZABLE: ReadMode.LINEARIZABLE,
    pb.READ_MODE_LOCAL_COMMITTED: ReadMode.LOCAL_COMMITTED,
}

_MAX_SEQUENCE = 2**62


class Answers:
    """Makes headers for one backend's answers and checks the group of its requests."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._group = backend.group
        self._node_id = backend.node_id
        self._ok_key: tuple[int, str | None, str | None] | None = None
        self._ok = pb.ResponseHeader()
        self._ok_field = b""
        self._log = structlog.get_logger().bind(group_id=self._group, node_id=self._node_id)

    def check_group(self, group: str, *, may_be_empty: bool = False) -> None:
        """Raise unless the request is for this node's group.

        Raises:
            UnknownGroupError: names both groups.
        """
        if group != self._group and not (may_be_empty and not group):
            raise UnknownGroupError(f"group {group!r} is not here; {self._node_id} serves {self._group!r}")

    def success(self) -> pb.ResponseHeader:
        """Return the header of success. The same object while the leader is the same: do not change it."""
        key = self._backend.leader_hint()
        if key != self._ok_key:
            term, leader_id, leader_address = key
            self._ok = self._header(ResponseCode.SUCCESS, "", term, leader_id, leader_address)
            self._ok_key = key
            header = self._ok.SerializeToString()
            self._ok_field = bytes_head(1, len(header)) + header
        return self._ok

    def appended(self, index: int, term: int, pos: int) -> bytes:
        """Return the AppendResponse of an entry that was taken, written by hand (`dledger.protobuf_wire`)."""
        self.success()
        return b"".join(
            (self._ok_field, b"\x10", put_varint(index), b"\x18", put_varint(term), b"\x20", put_varint(pos))
        )

    def taken(self, result: BatchResult, request_id: int) -> bytes:
        """Return the AppendBatchResponse of a batch that was taken, written by hand (`dledger.protobuf_wire`)."""
        self.success()
        parts = [self._ok_field]
        for run in result.runs:
            body = b"".join(
                (b"\x08", put_varint(run.first_index), b"\x10", put_varint(run.count), b"\x18", put_varint(run.term))
            )
            parts += (b"\x12", put_varint(len(body)), body)
        parts += (b"\x18", put_varint(request_id))
        return b"".join(parts)

    def failure(self, error: Exception, where: str) -> pb.ResponseHeader:
        """Return the header of a failure; one that is no operating error is logged and answered as INTERNAL_ERROR."""
        term, leader_id, leader_address = self._backend.leader_hint()
        if not isinstance(error, DLedgerError):
            self._log.error("internal_error", where=where, exc_info=error)
            message = f"{type(error).__name__}: {error}"
            return self._header(ResponseCode.INTERNAL_ERROR, message, term, leader_id, leader_address)
        if error.leader_id is not None:
            leader_id, leader_address = error.leader_id, error.leader_address
        return self._header(error.code, error.message, term, leader_id, leader_address)

    def _header(
        self, code: ResponseCode, message: str, term: int, leader_id: str | None, leader_address: str | None
    ) -> pb.ResponseHeader:
        return pb.ResponseHeader(
            code=code,
            message=message,
            group=self._group,
            node_id=self._node_id,
            term=term,
            leader_id=leader_id or "",
            leader_address=leader_address or "",
        )


def parse(kind: type[_M], data: bytes) -> _M:
    """Return the request in ``data``.

    Raises:
        UnexpectedArgumentError: the bytes are no such message.
    """
    try:
        return kind.FromString(data)
    except DecodeError as error:
        raise UnexpectedArgumentError(f"malformed {kind.__name__}: {error}") from error


def read_mode(value: int) -> ReadMode:
    """Return the read mode of a request.

    Raises:
        UnexpectedArgumentError: there is no such mode.
    """
    mode = _MODES.get(pb.ReadMode.ValueType(value))
    if mode is None:
        raise UnexpectedArgumentError(f"read mode {value} does not exist; {sorted(_MODES)} do")
    return mode


def check_batch(bodies: Iterable[bytes], count: int, sequence: int, backend: Backend) -> int:
    """Check a batch against the limits and return the bytes of its bodies.

    Raises:
        UnexpectedArgumentError: 420 for an empty batch, 411 for more than the limit, which the message states.
    """
    if count == 0:
        raise UnexpectedArgumentError(
            "the batch has no bodies; send at least one", code=ResponseCode.REQUEST_WITH_EMPTY_BODYS
        )
    if count > backend.max_batch_entries:
        raise UnexpectedArgumentError(f"{count} entries in a batch; the limit is {backend.max_batch_entries}")
    if not 0 <= sequence <= _MAX_SEQUENCE:
        raise UnexpectedArgumentError(f"sequence {sequence}; sequences count from 0")
    lengths = [len(body) for body in bodies]
    if max(lengths) > backend.max_entry_bytes:
        raise EntryTooLargeError(f"an entry of {max(lengths)} bytes; the limit is {backend.max_entry_bytes}")
    total = sum(lengths)
    if total > backend.max_batch_bytes:
        raise UnexpectedArgumentError(f"a batch of {total} bytes; the limit is {backend.max_batch_bytes}")
    return total


def entry_message(entry: Entry) -> pb.Entry:
    """Return an entry as a message."""
    return pb.Entry(
        index=entry.index,
        term=entry.term,
        pos=entry.pos,
        type=pb.EntryType.ValueType(entry.type),
        session_id=entry.session_id,
        body=entry.body,
    )


def first_message(data: bytes) -> pb.Entry:
    """Return the first entry of a verified slice (which has one) as a message."""
    magic, size, index, term, pos, channel, _, _, _ = HEADER.unpack_from(data)
    kind = pb.EntryType.ValueType(magic)
    return pb.Entry(index=index, term=term, pos=pos, type=kind, session_id=channel, body=data[HEADER_BYTES:size])
