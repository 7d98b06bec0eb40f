"""Reads the answer of ``AdminService.Status`` without protobuf, whose loading takes four times that of Python itself.

The tables say of ``proto/dledger/v1/admin.proto`` what is needed to read it; a test holds them against the descriptors.
Fields that are not in them (a newer node's) are passed over, as protobuf does.
"""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, Final, NamedTuple

from dledger.protobuf_wire import VARINT, WireError, bytes_head, read_field, read_varint

__all__ = ["STATUS_RESPONSE", "Field", "Schema", "decode_message", "encode_text"]


class Field(NamedTuple):
    """One field of a message. ``kind``: "int", "bool", "text", or the schema of a message.

    ``many``: "list" for repeated, "map" for a map (whose ``kind`` is the schema of its entries); empty otherwise.
    """

    name: str
    kind: str | Schema
    many: str = ""


Schema = dict[int, Field]
"""Number of a field → the field."""


def _map_of(kind: str) -> Schema:
    return {1: Field("key", "text"), 2: Field("value", kind)}


_HEADER: Final[Schema] = {
    1: Field("code", "int"),
    2: Field("message", "text"),
    3: Field("group", "text"),
    4: Field("node_id", "text"),
    5: Field("term", "int"),
    6: Field("leader_id", "text"),
    7: Field("leader_address", "text"),
}
_PEER: Final[Schema] = {
    1: Field("node_id", "text"),
    2: Field("address", "text"),
    3: Field("connected", "bool"),
    4: Field("match_index", "int"),
    5: Field("next_index", "int"),
    6: Field("lag_entries", "int"),
    7: Field("inflight_count", "int"),
    8: Field("state", "text"),
    9: Field("last_contact_ms", "int"),
    10: Field("sent", _map_of("int"), "map"),
}
_LOG_RUN: Final[Schema] = {1: Field("first_index", "int"), 2: Field("term", "int")}
_EVENT: Final[Schema] = {
    1: Field("number", "int"),
    2: Field("age_ms", "int"),
    3: Field("name", "text"),
    4: Field("facts", _map_of("text"), "map"),
}
STATUS_RESPONSE: Final[Schema] = {
    1: Field("header", _HEADER),
    2: Field("role", "text"),
    3: Field("term", "int"),
    4: Field("vote", "text"),
    5: Field("first_index", "int"),
    6: Field("last_index", "int"),
    7: Field("stable_index", "int"),
    8: Field("commit_index", "int"),
    9: Field("applied_index", "int"),
    10: Field("peers", _PEER, "list"),
    11: Field("store_path", "text"),
    12: Field("store_type", "text"),
    13: Field("flush_disk_type", "text"),
    14: Field("store_bytes", "int"),
    15: Field("disk_free_bytes", "int"),
    16: Field("disk_total_bytes", "int"),
    17: Field("uptime_ms", "int"),
    18: Field("version", "text"),
    19: Field("node_id", "text"),
    20: Field("group", "text"),
    21: Field("address", "text"),
    22: Field("pid", "int"),
    23: Field("pending_count", "int"),
    24: Field("pending_bytes", "int"),
    25: Field("session_count", "int"),
    26: Field("role_since_ms", "int"),
    27: Field("fsync_p99_us", "int"),
    28: Field("note", "text"),
    29: Field("append_p50_us", "int"),
    30: Field("append_p99_us", "int"),
    31: Field("election_left_ms", "int"),
    32: Field("election_timeout_ms", "int"),
    33: Field("tail", _LOG_RUN, "list"),
    34: Field("truncated_count", "int"),
    35: Field("events", _EVENT, "list"),
}

_EMPTY: Final[dict[str, Callable[[], object]]] = {"int": int, "bool": bool, "text": str, "list": list, "map": dict}


def encode_text(number: int, text: str) -> bytes:
    """Return a message whose only field, ``number``, is ``text``; empty text is no field at all."""
    data = text.encode()
    if not data:
        return b""
    return bytes_head(number, len(data)) + data


def decode_message(data: bytes, schema: Schema) -> Any:  # noqa: ANN401 - an object with the schema's fields
    """Return an object with an attribute for each field, of protobuf's default where the message has none.

    Raises:
        WireError: ``data`` is broken, or no message of this kind.
    """
    found: dict[str, Any] = {
        field.name: decode_message(b"", field.kind)
        if isinstance(field.kind, dict) and not field.many
        else _EMPTY[field.many or str(field.kind)]()
        for field in schema.values()
    }
    at = 0
    while at < len(data):
        number, wire_type, begin, at = read_field(data, at)
        field = schema.get(number)
        if field is None:
            continue
        read = _read(field.kind, read_varint(data, begin)[0] if wire_type == VARINT else data[begin:at])
        if field.many == "list":
            found[field.name].append(read)
        elif field.many == "map":
            found[field.name][read.key] = read.value
        else:
            found[field.name] = read
    return SimpleNamespace(**found)


def _read(kind: str | Schema, value: int | bytes) -> Any:  # noqa: ANN401 - as the kind says
    if isinstance(value, bytes):
        if isinstance(kind, dict):
            return decode_message(value, kind)
        if kind == "text":
            return value.decode("utf-8", "replace")
    elif kind == "bool":
        return value != 0
    elif kind == "int":
        return value - (1 << 64) if value >> 63 else value
    raise WireError(f"a field of another kind than {kind if isinstance(kind, str) else 'message'}")
