"""AdminService over real gRPC."""

from __future__ import annotations

import pytest
import pytest_asyncio

from dledger.errors import NotLeaderError, ResponseCode, TransferFailedError
from dledger.types import NodeStatus
from dledger.v1 import admin_pb2 as pb
from dledger.v1 import admin_pb2_grpc
from tests.rpc.fakes import GROUP

pytestmark = pytest.mark.asyncio


@pytest_asyncio.fixture
async def stub(channel):
    return admin_pb2_grpc.AdminServiceStub(channel)


@pytest.mark.parametrize("group", [GROUP, ""])
async def test_status_has_every_field_of_the_nodes(stub, node, group):
    """A field added to NodeStatus and forgotten on the way fails here."""
    answer = await stub.Status(pb.StatusRequest(group=group))
    status = node.backend.status()
    assert answer.header.code == 200
    for name in NodeStatus.__slots__:
        if name not in {"leader_id", "leader_address", "peers", "tail", "events"}:
            assert getattr(answer, name) == getattr(status, name), name
    assert (answer.header.leader_id, answer.header.leader_address) == (status.leader_id, status.leader_address)
    for name in ("peers", "tail", "events"):
        parts = getattr(status, name)
        assert len(parts) == len(getattr(answer, name)) > 0
        for part, sent in zip(parts, getattr(answer, name), strict=True):
            for field in type(part).__slots__:
                assert getattr(sent, field) == getattr(part, field), (name, field)


@pytest.mark.parametrize(("target", "expected"), [("n1", "n1"), ("", "n1")])
async def test_transfer(stub, node, target, expected):
    answer = await stub.TransferLeadership(pb.TransferLeadershipRequest(group=GROUP, target=target))
    assert (answer.header.code, answer.new_leader_id) == (200, expected)
    assert answer.took_ms >= 0
    assert node.backend.calls == [("transfer_leadership", target or None)]


async def test_transfer_to_a_stranger_is_refused(stub, node):
    answer = await stub.TransferLeadership(pb.TransferLeadershipRequest(group=GROUP, target="n9"))
    assert answer.header.code == 401
    assert answer.header.message == "'n9' is no member; n0, n1 are"
    assert node.backend.calls == []


async def test_step_down(stub, node):
    assert (await stub.StepDown(pb.StepDownRequest(group=GROUP))).header.code == 200
    assert node.backend.calls == [("step_down",)]


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (NotLeaderError("not here", leader_id="n1", leader_address="x:1"), 404),
        (TransferFailedError("too far behind", code=ResponseCode.FALL_BEHIND_TOO_MUCH), 417),
        (TransferFailedError("it did not take over"), 418),
        (RuntimeError("bug"), 500),
    ],
)
async def test_a_failure_is_an_answer_with_its_code(stub, node, error, code):
    node.backend.fail_with = error
    for answer in (
        await stub.TransferLeadership(pb.TransferLeadershipRequest(group=GROUP)),
        await stub.StepDown(pb.StepDownRequest(group=GROUP)),
        await stub.Status(pb.StatusRequest(group=GROUP)),
    ):
        assert answer.header.code == code
        assert str(error) in answer.header.message


async def test_another_group_is_refused(stub, node):
    for answer in (
        await stub.Status(pb.StatusRequest(group="x")),
        await stub.TransferLeadership(pb.TransferLeadershipRequest(group="x")),
        await stub.StepDown(pb.StepDownRequest(group="")),
    ):
        assert answer.header.code == 400
    assert node.backend.calls == []
