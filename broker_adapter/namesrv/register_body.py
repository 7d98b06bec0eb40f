"""The body of REGISTER_BROKER: JSON, or upstream's deflated form of it."""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Mapping
from typing import Any, Final

from broker_adapter.namesrv.route import DataVersion
from broker_adapter.remoting.codes import ResponseCode
from broker_adapter.remoting.errors import CommandError

__all__ = ["decode_register_body", "encode_register_body"]

_MAX_INFLATED_BYTES: Final = 64 * 1024 * 1024
_INT: Final = struct.Struct(">i")

Topics = dict[str, dict[str, Any]]


def encode_register_body(topics: Mapping[str, Mapping[str, Any]], version: DataVersion) -> bytes:
    """Return the JSON form."""
    wrapper = {"dataVersion": version.to_json(), "topicConfigTable": topics}
    return json.dumps(
        {"filterServerList": [], "topicConfigSerializeWrapper": wrapper}, ensure_ascii=False, separators=(",", ":")
    ).encode()


def decode_register_body(body: bytes, compressed: bool) -> tuple[Topics, DataVersion]:
    """Return (topic configs by topic, data version); an empty body has neither.

    Raises:
        CommandError: a body that is not what its sender said it is.
    """
    if not body:
        return {}, DataVersion()
    try:
        return _deflated(body) if compressed else _plain(body)
    except (ValueError, KeyError, TypeError, AttributeError, struct.error, zlib.error, RecursionError) as error:
        raise CommandError(ResponseCode.SYSTEM_ERROR, f"decode of the register body failed: {error!r}") from None


def _plain(body: bytes) -> tuple[Topics, DataVersion]:
    value = json.loads(body)
    # Brokers before 3.0.11 send the wrapper bare.
    wrapper = value.get("topicConfigSerializeWrapper", value)
    topics = wrapper.get("topicConfigTable") or {}
    if not all(isinstance(config, dict) for config in topics.values()):
        raise ValueError("a topic config that is no object")
    return dict(topics), DataVersion.from_json(wrapper.get("dataVersion"))


def _deflated(body: bytes) -> tuple[Topics, DataVersion]:
    inflater = zlib.decompressobj()
    data = inflater.decompress(body, _MAX_INFLATED_BYTES)
    if inflater.unconsumed_tail:
        raise ValueError(f"more than {_MAX_INFLATED_BYTES} bytes")
    at = 0

    def take() -> bytes:
        nonlocal at
        (length,) = _INT.unpack_from(data, at)
        start, at = at + 4, at + 4 + length
        if length < 0 or at > len(data):
            raise ValueError(f"a field of {length} bytes")
        return data[start:at]

    version = DataVersion.from_json(json.loads(take()))
    (count,) = _INT.unpack_from(data, at)
    at += 4
    if not 0 <= count <= len(data):
        raise ValueError(f"{count} topics")
    topics: Topics = {}
    for _ in range(count):
        # TopicConfig.encode(): name, read queues, write queues, permission, filter type, separated by spaces.
        name, read, write, perm, filter_type = take().decode().split(" ")[:5]
        topics[name] = {
            "topicName": name,
            "readQueueNums": int(read),
            "writeQueueNums": int(write),
            "perm": int(perm),
            "topicFilterType": filter_type,
        }
    return topics, version
