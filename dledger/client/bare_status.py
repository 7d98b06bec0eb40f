"""The status of a group, asked without loading gRPC or asyncio: what ``dledger status`` does first."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from typing import Final

from dledger.client.bare_call import CallError, unary_call
from dledger.client.bare_wire import STATUS_RESPONSE, decode_message, encode_text
from dledger.client.status_answer import STATUS_LIMIT_S, node_status
from dledger.errors import ResponseCode, error_for_code
from dledger.protobuf_wire import WireError
from dledger.types import DownNode, NodeStatus

__all__ = ["bare_status"]

_METHOD: Final = "/dledger.v1.AdminService/Status"
_GROUP_FIELD: Final = 1


def bare_status(
    nodes: Mapping[str, str], group: str, token: str | None = None, limit_s: float = STATUS_LIMIT_S
) -> list[NodeStatus | DownNode] | None:
    """Ask every node at once, in plaintext; each has a place in the list, in order, a dead one with the reason.

    Args:
        nodes: node id → ``host:port``.
        group: the group's name.
        token: sent with the question.
        limit_s: seconds after which a node counts as down.

    Returns:
        None where only the ordinary client knows what to do: a node speaks TLS or wants a token, is not the one that it
        was taken for, or names members that were not given.
    """
    asks = [_Ask(node_id, address, group, token, limit_s) for node_id, address in nodes.items()]
    for ask in asks:
        ask.start()
    deadline = time.monotonic() + limit_s
    for ask in asks:
        ask.join(max(deadline - time.monotonic(), 0))
    found = [ask.found or DownNode(ask.node_id, ask.address, _too_late(limit_s)) for ask in asks]
    if any(ask.unclear for ask in asks) or not all(_as_expected(node, nodes) for node in found):
        return None
    return found


def _too_late(limit_s: float) -> str:
    return f"no answer within {limit_s:.3g} s"


def _as_expected(node: NodeStatus | DownNode, nodes: Mapping[str, str]) -> bool:
    if isinstance(node, DownNode):
        return node.node_id != node.address  # named by its address alone: others may know its id
    return node.node_id in nodes and all(peer.node_id in nodes for peer in node.peers)


class _Ask(threading.Thread):
    """One question to one node. A daemon, since looking up a host's name cannot be interrupted."""

    def __init__(self, node_id: str, address: str, group: str, token: str | None, limit_s: float) -> None:
        super().__init__(name=f"dledger-status-{node_id}", daemon=True)
        self.node_id = node_id
        self.address = address
        self.found: NodeStatus | DownNode | None = None
        self.unclear = False
        self._request = encode_text(_GROUP_FIELD, group)
        self._token = token
        self._limit_s = limit_s

    def run(self) -> None:
        try:
            self._take(unary_call(self.address, _METHOD, self._request, self._limit_s, self._token))
        except TimeoutError:
            self.found = DownNode(self.node_id, self.address, _too_late(self._limit_s))
        except (CallError, WireError):
            self.unclear = True
        except OSError as error:
            self.unclear = isinstance(error, ConnectionResetError | BrokenPipeError)  # TLS nodes hang up on plaintext
            self.found = DownNode(self.node_id, self.address, (error.strerror or str(error)).lower())

    def _take(self, data: bytes) -> None:
        answer = decode_message(data, STATUS_RESPONSE)
        header = answer.header
        if header.code != ResponseCode.SUCCESS:
            self.found = DownNode(self.node_id, self.address, error_for_code(header.code, header.message).message)
            return
        status = node_status(answer, self.address)
        self.unclear = status.node_id != self.node_id
        self.found = status
