"""How an append stream of a client comes from gRPC to frames: the node offers a port and a ticket.

The gRPC call is where tokens and limits are looked at, and it stays open for as long as the frames are used. A ticket
stands for one such call: it is good once, for a few seconds, and only while that call lasts. So a connection needs no
rights of its own: it has those of the call that it belongs to, and ends with it.

On the wire. The client's call metadata says ``dledger-frames: PORT``, the port that it has dialled. A node that listens
for frames answers in the initial metadata ``dledger-frames: PORT`` (0: the same port) and ``dledger-ticket: HEX``. The
client dials, says the preface and sends the ticket's bytes as first frame; the answer is a PeerWelcome. What it has
sent on the call until then stays there; its second frame says how many batches those are (8 bytes, big endian), and the
node takes the frames after it behind these. From then on batches and answers go as frames, and nothing more by the call
but its end. A client that does not come, or says nothing more, just goes on by gRPC.
"""

from __future__ import annotations

import asyncio
import hmac
import secrets
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final, TypeAlias

from dledger.errors import AccessDeniedError
from dledger.raft.messages import NodeId
from dledger.rpc.frames import FrameConnection

__all__ = ["FRAMES_KEY", "START_BYTES", "TICKET_KEY", "ClientDoor", "Offer"]

FRAMES_KEY: Final = "dledger-frames"
"""Metadata of a client: the port that it has dialled. Of the node: the port for frames, 0 being that very port."""

TICKET_KEY: Final = "dledger-ticket"
"""Metadata of the node: what the client has to show there, in hexadecimal."""

START_BYTES: Final = 8
"""The client's second frame: how many batches it has sent by gRPC, big endian."""

_TICKET_S: Final = 5.0
_NUMBER_BYTES: Final = 8
_SECRET_BYTES: Final = 16

_Adopt: TypeAlias = Callable[[FrameConnection], None]


@dataclass(frozen=True, slots=True)
class Offer:
    """What a client is told: ``metadata`` is for its call; ``number`` names the ticket."""

    number: int
    metadata: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class _Ticket:
    secret: bytes
    until_s: float
    adopt: _Adopt


class ClientDoor:
    """Tickets of one node: `offer` makes them, `redeem` takes them, `withdraw` ends them with their call."""

    def __init__(self, node_id: NodeId) -> None:
        self._node_id = node_id
        self._open: dict[int, _Ticket] = {}
        self._next_number = 1
        self._bound: int | None = None
        self._announced: int | None = None
        self._own_ports: set[int] = set()

    def listens(self, bound: int, announced: int | None) -> None:
        """There is a port for frames from now on; ``announced``: what is told instead (0: the one that was dialled)."""
        self._bound = bound
        self._announced = announced

    def is_reached_at(self, ports: Iterable[int]) -> None:
        """Say at which ports clients reach the gRPC server when nothing stands between."""
        self._own_ports.update(ports)

    def close(self) -> None:
        """Make no more offers, and take no ticket."""
        self._bound = None
        self._open.clear()

    def offer(self, dialled: str | None, adopt: _Adopt) -> Offer | None:
        """Return an offer to a client that has dialled this port (as it says), None where there is none to make.

        ``adopt`` gets the connection of whoever comes with the ticket, welcomed already.
        """
        port = self._port_for(dialled or "")
        if port is None:
            return None
        number = self._next_number
        self._next_number += 1
        secret = secrets.token_bytes(_SECRET_BYTES)
        self._open[number] = _Ticket(secret, asyncio.get_running_loop().time() + _TICKET_S, adopt)
        ticket = number.to_bytes(_NUMBER_BYTES, "big") + secret
        return Offer(number, ((FRAMES_KEY, str(port)), (TICKET_KEY, ticket.hex())))

    def _port_for(self, dialled: str) -> int | None:
        if self._bound is None or not dialled.isdecimal():
            return None
        if self._announced is not None:
            return self._announced
        # Whoever has dialled another port came through something that does not know this one: no way around it.
        return self._bound if int(dialled) in self._own_ports else None

    def withdraw(self, offer: Offer) -> None:
        """The call is over: its ticket is good for nothing. Twice is fine."""
        self._open.pop(offer.number, None)

    def redeem(self, data: bytes) -> _Adopt:
        """Return who adopts the connection that came with the ticket ``data``; it is used up.

        Raises:
            AccessDeniedError: there is no such ticket, or not any more.
        """
        number = int.from_bytes(data[:_NUMBER_BYTES], "big")
        ticket = self._open.get(number)
        secret = bytes(_SECRET_BYTES) if ticket is None else ticket.secret
        # In constant time: how much of it was right is nobody's business.
        is_right = hmac.compare_digest(secret, data[_NUMBER_BYTES:])
        if ticket is None or not is_right or asyncio.get_running_loop().time() > ticket.until_s:
            raise AccessDeniedError(
                f"{self._node_id} knows no such ticket: it is good once, for {_TICKET_S:g} s, while its call is open"
            )
        del self._open[number]
        return ticket.adopt
