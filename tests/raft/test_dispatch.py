"""The table (role, message) → handler: complete, without dead rows, and printable as the state diagram it is."""

from __future__ import annotations

from dledger.raft import core as core_module
from dledger.raft import messages
from dledger.raft.messages import Message, Role

HANDLERS = core_module._HANDLERS

KINDS: list[type[Message]] = sorted(
    (
        kind
        for kind in (getattr(messages, name) for name in messages.__all__)
        if isinstance(kind, type) and issubclass(kind, Message) and kind is not Message
    ),
    key=lambda kind: kind.__name__,
)

DIAGRAM = """\
message               follower            pre_candidate       candidate           leader              learner
AppendEntries         append_entries      append_entries      append_entries      second_leader       append_entries
AppendEntriesResponse -                   -                   -                   append_response     -
Heartbeat             heartbeat           heartbeat           heartbeat           second_leader       heartbeat
HeartbeatResponse     -                   -                   -                   heartbeat_response  -
ReadIndexRequest      refuse_read_request refuse_read_request refuse_read_request read_request        refuse_read_request
ReadIndexResponse     read_response       read_response       read_response       read_response       read_response
RequestVote           request_vote        request_vote        request_vote        request_vote        request_vote
RequestVoteResponse   -                   vote_response       vote_response       -                   -
TimeoutNow            timeout_now         -                   -                   -                   -
"""


def handler_name(role: Role, kind: type[Message]) -> str:
    handler = HANDLERS.get((role, kind)) or HANDLERS.get((None, kind))
    return handler.__name__.removeprefix("_").removeprefix("on_") if handler else "-"


def state_diagram() -> str:
    """The table as text: one row for each message, one column for each role."""
    rows = [["message", *(role.value for role in Role)]]
    for kind in KINDS:
        rows.append([kind.__name__, *(handler_name(role, kind) for role in Role)])
    return "".join(f"{row[0]:<22}" + " ".join(f"{cell:<19}" for cell in row[1:]).rstrip() + "\n" for row in rows)


def test_state_diagram() -> None:
    """What each role does with each message, in one picture. A change here is a change of the protocol."""
    assert state_diagram() == DIAGRAM


def test_every_message_is_handled_somewhere() -> None:
    """A new kind of message needs a row."""
    assert {kind for _, kind in HANDLERS} == set(KINDS)


def test_no_row_is_shadowed() -> None:
    """Every handler in the table is reachable from some role."""
    reachable = {handler_name(role, kind) for role in Role for kind in KINDS} - {"-"}
    assert reachable == {handler.__name__.removeprefix("_").removeprefix("on_") for handler in HANDLERS.values()}
