"""Raft messages ↔ protobuf bytes, and the fence that every byte from outside passes.

Whatever arrives is hostile until it has passed here: a message of another group, from a node that is not a member, for
another node, with numbers that no core would send, or with entries that do not verify, raises a typed error and has no
effect. The core and the driver behind this module see well-formed values only.

The entries of an ``AppendEntries`` cross as the bytes that stand in the data files; they are verified once (CRC, chain,
places, terms) and go to the store as they came. Where the leader has read and verified them from its files, it says the
CRC of all of them: then that is verified, and that they go on where the log here ends.

An append of few entries and its answer are written and read by hand (``dledger.protobuf_wire`` says why), where they
are as plain as they mostly are; whatever else comes is for the library.
"""

from __future__ import annotations

from collections.abc import Callable, Container
from functools import lru_cache
from typing import Any, Final

from google.protobuf.message import DecodeError

from dledger.errors import (
    DLedgerError,
    ResponseCode,
    UnexpectedArgumentError,
    UnknownGroupError,
    UnknownMemberError,
    error_for_code,
)
from dledger.protobuf_wire import (
    BYTES,
    FIXED32,
    VARINT,
    bytes_head,
    join_last_bytes,
    kinds,
    put_varint,
    read_message,
    split_last_bytes,
)
from dledger.raft.messages import (
    NO_INDEX,
    NO_TERM,
    AppendEntries,
    AppendEntriesResponse,
    Heartbeat,
    HeartbeatResponse,
    Message,
    NodeId,
    ReadIndexRequest,
    ReadIndexResponse,
    RequestVote,
    RequestVoteResponse,
    TimeoutNow,
    VoteResult,
)
from dledger.storage.entry import CorruptSliceError, RawSlice, Slice, parse_slice
from dledger.v1 import raft_pb2 as pb

__all__ = [
    "STREAM_REQUESTS",
    "STREAM_RESPONSES",
    "decode_stream",
    "decode_vote_request",
    "decode_vote_response",
    "encode_stream",
    "encode_vote_refusal",
    "encode_vote_request",
    "encode_vote_response",
    "payload_data",
]

STREAM_REQUESTS: Final[tuple[type[Message], ...]] = (AppendEntries, Heartbeat, ReadIndexRequest, TimeoutNow)
"""What a node sends on the stream that it opened."""

STREAM_RESPONSES: Final[tuple[type[Message], ...]] = (AppendEntriesResponse, HeartbeatResponse, ReadIndexResponse)
"""What goes back on the stream that the peer opened."""

_MAX_NUMBER: Final = 2**62
"""No term and no index comes near; leaves room for arithmetic in 64 bits."""

_APPEND_FIELD: Final = pb.RaftMessage.APPEND_ENTRIES_FIELD_NUMBER
_DATA_FIELD: Final = pb.AppendEntries.DATA_FIELD_NUMBER
_LARGE_BYTES: Final = 32 * 1024
"""From this size on, copying entries costs more than going around the library's copies."""

_REFUSED_READ: Final = NO_INDEX - 1

_APPEND_KEY: Final = bytes_head(_APPEND_FIELD, 0)[:-1]
_ANSWER_KEY: Final = bytes_head(pb.RaftMessage.APPEND_ENTRIES_RESPONSE_FIELD_NUMBER, 0)[:-1]
_APPEND_KINDS: Final = kinds(
    {1: VARINT, 2: VARINT, 3: FIXED32, 4: VARINT, 5: VARINT, 6: BYTES, 7: BYTES, 8: VARINT, 9: FIXED32}
)
_ANSWER_KINDS: Final = kinds(dict.fromkeys(range(1, 9), VARINT))
_RUN_KINDS: Final = kinds({1: VARINT, 2: VARINT})
_NO_CONFLICT: Final = b"".join(bytes((field << 3,)) + put_varint(-1) for field in (4, 5, 6))
_HEADS: Final = 256
"""Beginnings of messages that are remembered: one for each kind, sender, target and term."""


# -- what is said of every message ------------------------------------------------------------------------------------


def _check(value: int, low: int, name: str) -> int:
    """Return ``value`` if it lies in [low, 2^62].

    Raises:
        UnexpectedArgumentError: it does not; no core sends such a number.
    """
    if not low <= value <= _MAX_NUMBER:
        raise UnexpectedArgumentError(f"malformed message: {name} is {value}")
    return value


def _check_indexes(body: object, *names: str) -> None:
    """Raise unless these fields lie in [-1, 2^62]: what `_check` does, for what is found wrong in all of them at once.

    Raises:
        UnexpectedArgumentError: naming the first that does not.
    """
    for name in names:
        _check(getattr(body, name), NO_INDEX, name)


def _fence(
    group: str, sender: str, target: str, *, own_group: str, node_id: NodeId, members: Container[NodeId]
) -> None:
    """Raise unless the message is of this group, from another member, and for this node (an empty target is for all).

    Raises:
        UnknownGroupError, UnknownMemberError: naming what came and what was expected.
    """
    if group != own_group:
        raise UnknownGroupError(f"message of group {group!r}; this node serves {own_group!r}")
    if sender == node_id or sender not in members:
        raise UnknownMemberError(f"message from {sender!r}, which is no other member of group {own_group!r}")
    if target and target != node_id:
        raise UnknownMemberError(f"message for {target!r}; this node is {node_id!r} (check the peers' addresses)")


# -- the stream, outwards ---------------------------------------------------------------------------------------------


def payload_data(message: AppendEntries) -> bytes:
    """Return the entries' bytes of an append, empty for a probe.

    Raises:
        UnexpectedArgumentError: the payload is neither a slice nor None (the caller's mistake).
    """
    payload = message.payload
    if payload is None:
        return b""
    if isinstance(payload, RawSlice | Slice):
        return payload.data
    raise UnexpectedArgumentError(f"payload of an append is a {type(payload).__name__}, not a slice")


def _append_body(m: AppendEntries, data: bytes) -> pb.AppendEntries:
    payload = m.payload
    return pb.AppendEntries(
        prev_log_index=m.prev_log_index,
        prev_log_term=m.prev_log_term,
        prev_chain_crc=m.prev_chain_crc,
        last_index=m.last_index,
        commit_index=m.commit_index,
        terms=[pb.TermRun(first_index=run.first_index, term=run.term) for run in m.terms],
        data=data,
        epoch=m.epoch,
        data_crc=payload.crc if isinstance(payload, RawSlice) else None,
    )


@lru_cache(_HEADS)
def _head(group: str, sender: NodeId, target: NodeId, term: int) -> bytes:
    """Return how every message begins."""
    return pb.RaftMessage(group=group, sender=sender, target=target, term=term).SerializeToString()


def _encode_small_append(m: AppendEntries, group: str, target: NodeId, data: bytes) -> bytes:
    """An append of entries of one term, written by hand."""
    run = m.terms[0]
    first, term, last = put_varint(run.first_index), put_varint(run.term), put_varint(m.last_index)
    body = b"".join(
        (
            b"\x08", put_varint(m.prev_log_index), b"\x10", put_varint(m.prev_log_term),
            b"\x1d", m.prev_chain_crc.to_bytes(4, "little"), b"\x20", last, b"\x28", put_varint(m.commit_index),
            b"\x32", put_varint(2 + len(first) + len(term)), b"\x08", first, b"\x10", term,
            b"\x40", put_varint(m.epoch), b"\x3a", put_varint(len(data)), data,
        )
    )  # fmt: skip
    return b"".join((_head(group, m.sender, target, m.term), _APPEND_KEY, put_varint(len(body)), body))


def _encode_success(m: AppendEntriesResponse, group: str, target: NodeId) -> bytes:
    """The answer to an append that was taken, written by hand."""
    body = b"".join(
        (
            b"\x08\x01\x10", put_varint(m.match_index), b"\x18", put_varint(m.last_index),
            _NO_CONFLICT, b"\x38", b"\x01" if m.forgetful else b"\x00", b"\x40", put_varint(m.epoch),
        )
    )  # fmt: skip
    return b"".join((_head(group, m.sender, target, m.term), _ANSWER_KEY, put_varint(len(body)), body))


def _encode_large_append(m: AppendEntries, group: str, target: NodeId, data: bytes) -> bytes:
    whole = pb.RaftMessage(group=group, sender=m.sender, target=target, term=m.term)
    body = _append_body(m, b"")
    return join_last_bytes(whole.SerializeToString(), _APPEND_FIELD, body.SerializeToString(), _DATA_FIELD, data)


def _put_append_response(m: AppendEntriesResponse) -> dict[str, Any]:
    body = pb.AppendEntriesResponse(
        success=m.success,
        match_index=m.match_index,
        last_index=m.last_index,
        conflict_term=m.conflict_term,
        conflict_index=m.conflict_index,
        rejected_index=m.rejected_index,
        forgetful=m.forgetful,
        epoch=m.epoch,
    )
    return {"append_entries_response": body}


def _put_heartbeat(m: Heartbeat) -> dict[str, Any]:
    body = pb.Heartbeat(commit_index=m.commit_index, round=m.round, sent_index=m.sent_index, epoch=m.epoch)
    return {"heartbeat": body}


def _put_heartbeat_response(m: HeartbeatResponse) -> dict[str, Any]:
    body = pb.HeartbeatResponse(
        round=m.round,
        sent_index=m.sent_index,
        match_index=m.match_index,
        last_index=m.last_index,
        forgetful=m.forgetful,
        epoch=m.epoch,
    )
    return {"heartbeat_response": body}


def _put_read_index_request(m: ReadIndexRequest) -> dict[str, Any]:
    return {"read_index_request": pb.ReadIndexRequest(request_id=m.request_id, recollects=m.recollects)}


def _put_read_index_response(m: ReadIndexResponse) -> dict[str, Any]:
    return {"read_index_response": pb.ReadIndexResponse(request_id=m.request_id, read_index=m.read_index)}


def _put_timeout_now(m: TimeoutNow) -> dict[str, Any]:
    return {"timeout_now": pb.TimeoutNow()}


_PUT: Final[dict[type[Message], Callable[[Any], dict[str, Any]]]] = {
    AppendEntriesResponse: _put_append_response,
    Heartbeat: _put_heartbeat,
    HeartbeatResponse: _put_heartbeat_response,
    ReadIndexRequest: _put_read_index_request,
    ReadIndexResponse: _put_read_index_response,
    TimeoutNow: _put_timeout_now,
}


def encode_stream(message: Message, *, group: str, target: NodeId) -> bytes:
    """Return the bytes of a message for the replication stream.

    ``target`` may be empty where the same bytes go to several peers (appends): the stream itself names its two ends.

    Raises:
        UnexpectedArgumentError: a message that does not travel on a stream (votes), or an append without a slice.
    """
    if isinstance(message, AppendEntries):
        data = payload_data(message)
        if len(data) >= _LARGE_BYTES:
            return _encode_large_append(message, group, target, data)
        payload = message.payload
        if data and len(message.terms) == 1 and not (isinstance(payload, RawSlice) and payload.crc is not None):
            return _encode_small_append(message, group, target, data)
        body: dict[str, Any] = {"append_entries": _append_body(message, data)}
    elif (
        isinstance(message, AppendEntriesResponse)
        and message.success
        and message.rejected_index == message.conflict_index == message.conflict_term == NO_INDEX
    ):
        return _encode_success(message, group, target)
    else:
        put = _PUT.get(type(message))
        if put is None:
            raise UnexpectedArgumentError(f"{type(message).__name__} does not travel on a stream")
        body = put(message)
    whole = pb.RaftMessage(group=group, sender=message.sender, target=target, term=message.term, **body)
    return whole.SerializeToString()


# -- the stream, inwards ----------------------------------------------------------------------------------------------


def _check_entries(sender: NodeId, term: int, previous_term: int, last: int, runs: object, parsed: Slice) -> None:
    """Compare verified entries with what the message says of them.

    Raises:
        CorruptSliceError: they are not those that it announces.
    """
    if parsed.last_index != last or list(parsed.terms) != runs:
        raise CorruptSliceError(
            f"append from {sender}: entries up to {parsed.last_index} in terms {list(parsed.terms)},"
            f" announced up to {last} in {runs}"
        )
    if parsed.terms[0].term < previous_term or parsed.terms[-1].term > term:
        raise CorruptSliceError(
            f"append from {sender} in term {term} after term {previous_term}: entries of terms"
            f" {parsed.terms[0].term} to {parsed.terms[-1].term}"
        )


def _get_append(sender: NodeId, term: int, body: pb.AppendEntries, data: bytes | None = None) -> AppendEntries:
    _check_indexes(body, "prev_log_index", "prev_log_term", "last_index", "commit_index")
    previous, previous_term, last, commit = body.prev_log_index, body.prev_log_term, body.last_index, body.commit_index
    runs = [(run.first_index, run.term) for run in body.terms]
    data = body.data if data is None else data
    if not data:
        if last != previous or runs:
            raise CorruptSliceError(f"append from {sender}: no entries, yet last_index {last} after {previous}")
        return AppendEntries(
            sender, term, previous, previous_term, last, (), commit, body.prev_chain_crc, None, body.epoch
        )
    crc = body.data_crc if body.HasField("data_crc") else None
    parsed = parse_slice(data, previous + 1, body.prev_chain_crc, crc)
    _check_entries(sender, term, previous_term, last, runs, parsed)
    return AppendEntries(
        sender, term, previous, previous_term, last, parsed.terms, commit, body.prev_chain_crc, parsed, body.epoch
    )


def _get_append_response(sender: NodeId, term: int, body: pb.AppendEntriesResponse) -> AppendEntriesResponse:
    _check_indexes(body, "match_index", "last_index", "rejected_index", "conflict_term", "conflict_index")
    return AppendEntriesResponse(
        sender,
        term,
        body.success,
        body.match_index,
        body.last_index,
        body.rejected_index,
        body.conflict_term,
        body.conflict_index,
        body.forgetful,
        body.epoch,
    )


@lru_cache(_HEADS)
def _sender_of(head: bytes, group: str, node_id: NodeId, members: frozenset[NodeId]) -> tuple[NodeId, int]:
    """Return who sends messages that begin so, and in which term.

    Raises:
        UnknownGroupError, UnknownMemberError, UnexpectedArgumentError: as `decode_stream`; such are not remembered.
    """
    try:
        whole = pb.RaftMessage.FromString(head)
    except DecodeError as error:
        raise UnexpectedArgumentError(f"malformed message: {error}") from error
    _fence(whole.group, whole.sender, whole.target, own_group=group, node_id=node_id, members=members)
    return whole.sender, _check(whole.term, 0, "term")


def _decode_by_hand(data: bytes, group: str, node_id: NodeId, members: frozenset[NodeId]) -> Message | None:
    """Return a small append or its answer; None for what is not as plain as that, or no message.

    Raises:
        as `decode_stream`.
    """
    try:
        at = 0
        for key in b"\x0a\x12\x1a":  # group, sender, target
            if data[at] == key:
                if data[at + 1] > 0x7F:
                    return None
                at += 2 + data[at + 1]
        if data[at] != 0x20:  # term
            return None
        at += 1
        while data[at] > 0x7F:
            at += 1
        at += 1
        key, length, begin = data[at], data[at + 1], at + 2
        if length > 0x7F:
            length, begin = length & 0x7F | data[begin] << 7, begin + 1
    except IndexError:
        return None
    if begin + length != len(data) or key not in (_APPEND_KEY[0], _ANSWER_KEY[0]):
        return None
    values = read_message(data, begin, _APPEND_KINDS if key == _APPEND_KEY[0] else _ANSWER_KINDS)
    if values is None:
        return None
    sender, term = _sender_of(data[:at], group, node_id, members)
    if key == _ANSWER_KEY[0]:
        return _answer_of(sender, term, values)
    return _append_of(sender, term, values)


def _answer_of(sender: NodeId, term: int, values: list[Any]) -> AppendEntriesResponse | None:
    _, success, match, last, conflict_term, conflict, rejected, forgetful, epoch = [value or 0 for value in values]
    if max(match, last, conflict_term, conflict, rejected) > _MAX_NUMBER:
        return None
    return AppendEntriesResponse(
        sender, term, bool(success), match, last, rejected, conflict_term, conflict, bool(forgetful), epoch
    )


def _append_of(sender: NodeId, term: int, values: list[Any]) -> AppendEntries | None:
    _, previous, previous_term, chain_crc, last, commit, run, data, epoch, crc = values
    if not run or not data or crc is not None:
        return None
    run = read_message(run, 0, _RUN_KINDS)
    previous, previous_term, chain_crc = previous or 0, previous_term or 0, chain_crc or 0
    last, commit, epoch = last or 0, commit or 0, epoch or 0
    if run is None or max(previous, previous_term, last, commit) > _MAX_NUMBER:
        return None
    parsed = parse_slice(data, previous + 1, chain_crc)
    _check_entries(sender, term, previous_term, last, [(run[1] or 0, run[2] or 0)], parsed)
    return AppendEntries(sender, term, previous, previous_term, last, parsed.terms, commit, chain_crc, parsed, epoch)


def _get_heartbeat(sender: NodeId, term: int, body: pb.Heartbeat) -> Heartbeat:
    return Heartbeat(
        sender,
        term,
        _check(body.commit_index, NO_INDEX, "commit_index"),
        body.round,
        _check(body.sent_index, NO_INDEX, "sent_index"),
        body.epoch,
    )


def _get_heartbeat_response(sender: NodeId, term: int, body: pb.HeartbeatResponse) -> HeartbeatResponse:
    return HeartbeatResponse(
        sender,
        term,
        body.round,
        _check(body.sent_index, NO_INDEX, "sent_index"),
        _check(body.match_index, NO_INDEX, "match_index"),
        _check(body.last_index, NO_INDEX, "last_index"),
        body.forgetful,
        body.epoch,
    )


def _get_read_index_request(sender: NodeId, term: int, body: pb.ReadIndexRequest) -> ReadIndexRequest:
    return ReadIndexRequest(sender, term, body.request_id, body.recollects)


def _get_read_index_response(sender: NodeId, term: int, body: pb.ReadIndexResponse) -> ReadIndexResponse:
    return ReadIndexResponse(sender, term, body.request_id, _check(body.read_index, _REFUSED_READ, "read_index"))


def _get_timeout_now(sender: NodeId, term: int, body: pb.TimeoutNow) -> TimeoutNow:
    return TimeoutNow(sender, term)


_GET: Final[dict[str, Callable[[NodeId, int, Any], Message]]] = {
    "append_entries": _get_append,
    "append_entries_response": _get_append_response,
    "heartbeat": _get_heartbeat,
    "heartbeat_response": _get_heartbeat_response,
    "read_index_request": _get_read_index_request,
    "read_index_response": _get_read_index_response,
    "timeout_now": _get_timeout_now,
}


def decode_stream(data: bytes, *, group: str, node_id: NodeId, members: frozenset[NodeId]) -> Message:
    """Return the message in ``data``; an append comes with its entries parsed (a ``Slice``), or None for a probe.

    Raises:
        UnknownGroupError: another group's message.
        UnknownMemberError: from no other member, or meant for another node.
        CorruptSliceError: the entries do not verify, or are not those announced.
        UnexpectedArgumentError: anything else that is not a message.
    """
    split = None
    if len(data) >= _LARGE_BYTES:
        split = split_last_bytes(data, _APPEND_FIELD, _DATA_FIELD)
    elif (message := _decode_by_hand(data, group, node_id, members)) is not None:
        return message
    try:
        whole = pb.RaftMessage.FromString(data if split is None else split[0])
        append = None if split is None else pb.AppendEntries.FromString(split[1])
        if append is not None and (append.data or whole.WhichOneof("body") is not None):
            raise UnexpectedArgumentError("malformed message: more than one body")
    except DecodeError as error:
        raise UnexpectedArgumentError(f"malformed message: {error}") from error
    sender = whole.sender
    target, term = whole.target, whole.term
    if whole.group != group or sender == node_id or sender not in members or (target and target != node_id):
        _fence(whole.group, sender, target, own_group=group, node_id=node_id, members=members)
    if not 0 <= term <= _MAX_NUMBER:
        _check(term, 0, "term")
    if split is not None and append is not None:
        return _get_append(sender, term, append, split[2])
    kind = whole.WhichOneof("body")
    if kind is None:
        raise UnexpectedArgumentError("malformed message: no body")
    return _GET[kind](sender, term, getattr(whole, kind))


# -- votes ------------------------------------------------------------------------------------------------------------


def encode_vote_request(message: RequestVote, *, group: str, target: NodeId) -> bytes:
    """Return the bytes of the unary RequestVote request (Raft §5.2; a poll before it: thesis §9.6)."""
    return pb.RequestVoteRequest(
        group=group,
        sender=message.sender,
        target=target,
        term=message.term,
        last_log_index=message.last_log_index,
        last_log_term=message.last_log_term,
        pre_vote=message.pre_vote,
        leadership_transfer=message.leadership_transfer,
    ).SerializeToString()


def decode_vote_request(data: bytes, *, group: str, node_id: NodeId, members: Container[NodeId]) -> RequestVote:
    """Return the vote request in ``data``.

    Raises:
        UnknownGroupError, UnknownMemberError, UnexpectedArgumentError: as `decode_stream`.
    """
    try:
        request = pb.RequestVoteRequest.FromString(data)
    except DecodeError as error:
        raise UnexpectedArgumentError(f"malformed vote request: {error}") from error
    _fence(request.group, request.sender, request.target, own_group=group, node_id=node_id, members=members)
    return RequestVote(
        request.sender,
        _check(request.term, 0, "term"),
        _check(request.last_log_index, NO_INDEX, "last_log_index"),
        _check(request.last_log_term, NO_TERM, "last_log_term"),
        request.pre_vote,
        request.leadership_transfer,
    )


def encode_vote_response(message: RequestVoteResponse, *, group: str) -> bytes:
    """Return the bytes of the answer to a vote request; the reason travels by DLedger's name for it."""
    return pb.RequestVoteResponse(
        code=ResponseCode.SUCCESS,
        group=group,
        sender=message.sender,
        term=message.term,
        granted=message.granted,
        pre_vote=message.pre_vote,
        provisional=message.provisional,
        reason=message.result.name,
        request_term=message.request_term,
    ).SerializeToString()


def encode_vote_refusal(error: DLedgerError, *, group: str, node_id: NodeId) -> bytes:
    """Return the answer to a vote request that was refused as a whole, before the core saw it."""
    return pb.RequestVoteResponse(
        code=error.code, group=group, sender=node_id, reason=error.message
    ).SerializeToString()


def decode_vote_response(data: bytes, *, group: str, peer: NodeId) -> RequestVoteResponse:
    """Return the answer that ``peer`` gave to a vote request.

    Raises:
        DLedgerError: the peer refused the request as a whole; the error has the peer's code and words.
        UnknownGroupError, UnknownMemberError, UnexpectedArgumentError: the answer is not ``peer``'s, or no answer.
    """
    try:
        response = pb.RequestVoteResponse.FromString(data)
    except DecodeError as error:
        raise UnexpectedArgumentError(f"malformed vote response: {error}") from error
    if response.code != ResponseCode.SUCCESS:
        raise error_for_code(response.code, f"{peer} refused the vote request: {response.reason}")
    if response.group != group:
        raise UnknownGroupError(f"vote of group {response.group!r}; this node serves {group!r}")
    if response.sender != peer:
        raise UnknownMemberError(f"vote of {response.sender!r} at the address of {peer!r}")
    try:
        result = VoteResult[response.reason]
    except KeyError:
        raise UnexpectedArgumentError(f"malformed vote response: reason {response.reason!r}") from None
    return RequestVoteResponse(
        response.sender,
        _check(response.term, 0, "term"),
        _check(response.request_term, 0, "request_term"),
        response.granted,
        response.pre_vote,
        response.provisional,
        result,
    )
