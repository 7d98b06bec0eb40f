"""What the client's logic needs of a network, and no more.

gRPC implements it in ``dledger.client.grpc_transport``; the simulator with links on virtual time. The answers here
carry DLedger's response codes as they came: what to do about one is decided by the caller.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from dledger.errors import DLedgerError, ResponseCode, StoppedError, error_for_code
from dledger.types import IndexRun

__all__ = [
    "AppendAnswer",
    "AppendBatch",
    "AppendStream",
    "ClientTransport",
    "Header",
    "Metadata",
    "ReadChunk",
    "SessionAnswer",
    "StreamHandler",
    "closed_error",
]


@dataclass(frozen=True, slots=True)
class Header:
    """What every answer says: a response code, who answers, and what that node knows of the leader."""

    code: int = int(ResponseCode.SUCCESS)
    message: str = ""
    node_id: str = ""
    term: int = 0
    leader_id: str = ""
    leader_address: str = ""

    @property
    def ok(self) -> bool:
        return self.code == ResponseCode.SUCCESS

    @property
    def claims_leadership(self) -> bool:
        """Whether the node that answers says that it leads its term itself."""
        return self.ok and bool(self.node_id) and self.leader_id == self.node_id

    def error(self) -> DLedgerError:
        """Return the typed error of a refusal."""
        return error_for_code(
            self.code,
            self.message,
            leader_id=self.leader_id or None,
            leader_address=self.leader_address or None,
        )


def closed_error() -> StoppedError:
    """Return the error of a call on a closed client; trying again is of no use."""
    error = StoppedError("the client is closed")
    error.retriable = False
    return error


class AppendBatch(NamedTuple):
    """Bodies to append in order. ``session_id`` 0: no session, and ``first_sequence`` means nothing."""

    request_id: int
    session_id: int
    first_sequence: int
    bodies: Sequence[bytes]


class AppendAnswer(NamedTuple):
    """What became of one `AppendBatch`."""

    request_id: int
    header: Header
    runs: tuple[IndexRun, ...] = ()


@dataclass(frozen=True, slots=True)
class SessionAnswer:
    """An open session: its number and the next sequence the log expects of it."""

    header: Header
    session_id: int = 0
    next_sequence: int = 0


@dataclass(frozen=True, slots=True)
class Metadata:
    """A group as one node sees it: members (id → address), limits in bytes and entries, and the leader it knows."""

    header: Header
    group: str = ""
    members: dict[str, str] = field(default_factory=dict)
    max_entry_bytes: int = 0
    max_batch_bytes: int = 0
    max_batch_entries: int = 0

    @property
    def term(self) -> int:
        return self.header.term

    @property
    def leader_id(self) -> str:
        """The leader as known to the node that answered; empty: none known."""
        return self.header.leader_id

    @property
    def leader_address(self) -> str:
        return self.header.leader_address


class ReadChunk(NamedTuple):
    """Some of a range: ``data`` is whole entries of every type in the log's own format; go on at ``next_index``."""

    header: Header
    data: bytes
    commit_index: int
    next_index: int
    end: bool


class StreamHandler(Protocol):
    """The pipeline's side of one append stream. Calls come on the loop, and none is made from within `send`."""

    def on_answer(self, answer: AppendAnswer) -> None: ...

    def on_broken(self, reason: str) -> None:
        """The stream is gone: no answer comes any more. Called at most once, and not after `AppendStream.close`."""


class AppendStream(Protocol):
    """One append stream to one node.

    Batches arrive in the order of `send`, each at most once, and a prefix of them where the stream breaks. Each that
    arrives is answered at most once, answers in any order.
    """

    def send(self, batch: AppendBatch) -> None:
        """Queue a batch for the wire. Never blocks and never raises: failures come through ``on_broken``."""

    def close(self) -> None:
        """Forget the stream; what is under way may still arrive. Twice is fine."""


class ClientTransport(Protocol):
    """Calls to nodes by address. Raises ``UnavailableError`` where no answer came within the timeout (seconds)."""

    def open_stream(self, address: str, handler: StreamHandler) -> AppendStream:
        """Begin a stream, at once and without waiting for the connection."""

    async def open_session(self, address: str, client_id: bytes, timeout: float) -> SessionAnswer: ...

    async def metadata(self, address: str, timeout: float) -> Metadata: ...
