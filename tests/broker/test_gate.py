"""The gate: requests for the master wait for one, go to it in order, and are answered within their time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest

from broker_adapter.broker.gate import FORWARDED_FIELD, FORWARDED_HOST_FIELD, MasterGate
from broker_adapter.broker.roles import MasterRecord, RoleState
from broker_adapter.remoting.client import RemotingClient
from broker_adapter.remoting.codes import ResponseCode
from broker_adapter.remoting.command import RemotingCommand
from broker_adapter.remoting.connection import RemotingConnection
from broker_adapter.remoting.server import RemotingServer
from dledger.local_group import free_ports
from tests.broker.harness import HOST, eventually


class FakeMaster:
    """A remoting server that answers as it is told."""

    def __init__(self) -> None:
        self.server = RemotingServer()
        self.seen: list[RemotingCommand] = []
        self.answer: Callable[[RemotingCommand], RemotingCommand | None] = lambda request: request.response()
        self.server.register(310, self._handle)
        self.address = ""

    async def start(self) -> FakeMaster:
        self.address = f"{HOST}:{await self.server.listen(HOST, 0)}"
        return self

    def _handle(self, request: RemotingCommand, connection: RemotingConnection) -> RemotingCommand | None:
        self.seen.append(request)
        response = self.answer(request)
        if response is not None:
            return response
        connection.abort()
        return None

    def numbers(self) -> list[int]:
        return [request.integer("n") for request in self.seen]


class Rig:
    def __init__(self, timeout_ms: int, max_pending: int) -> None:
        self.roles = RoleState(is_dledger=True, is_master=False, broker_id=1)
        self.client = RemotingClient()
        self.gate = MasterGate(
            self.roles, self.client, own_address=lambda: "own:1", timeout_ms=timeout_ms, max_pending=max_pending
        )
        self.here: list[int] = []
        self.masters: list[FakeMaster] = []

    async def master(self) -> FakeMaster:
        master = await FakeMaster().start()
        self.masters.append(master)
        return master

    async def serve_here(self, request: RemotingCommand) -> RemotingCommand:
        self.here.append(request.integer("n"))
        return request.response(remark="here")

    def submit(self, number: int, idempotent: bool = False) -> asyncio.Future[RemotingCommand]:
        request = RemotingCommand(310, {"n": number}, b"body")
        answer = self.gate.submit(request, "client:9", self.serve_here, idempotent=idempotent)
        return asyncio.ensure_future(answer)


@asynccontextmanager
async def rig(timeout_ms: int = 5000, max_pending: int = 100) -> AsyncIterator[Rig]:
    one = Rig(timeout_ms, max_pending)
    try:
        yield one
    finally:
        await one.gate.stop()
        await one.client.close()
        for master in one.masters:
            await master.server.stop(0)


def known(one: Rig, master: FakeMaster, term: int) -> None:
    one.roles.master_known(MasterRecord(master.address, f"n{term}", term))


@pytest.mark.asyncio
async def test_to_the_master_in_order_with_the_clients_address() -> None:
    async with rig() as one:
        master = await one.master()
        known(one, master, 1)
        answers = await asyncio.gather(*(one.submit(n) for n in range(50)))
        assert {answer.code for answer in answers} == {0}
        assert master.numbers() == list(range(50))
        assert master.seen[0].ext[FORWARDED_FIELD] == "own:1"
        assert master.seen[0].ext[FORWARDED_HOST_FIELD] == "client:9"
        assert bytes(master.seen[0].body) == b"body"
        assert one.gate.forwarded_count == 50
        await eventually(lambda: one.gate.is_idle)


@pytest.mark.asyncio
async def test_held_until_a_master_is_known() -> None:
    async with rig() as one:
        waiting = [one.submit(n) for n in range(5)]
        assert one.gate.pending_count == 5
        master = await one.master()
        known(one, master, 2)
        assert [answer.code for answer in await asyncio.gather(*waiting)] == [0] * 5
        assert master.numbers() == [0, 1, 2, 3, 4]


@pytest.mark.asyncio
async def test_served_here_where_this_broker_becomes_the_master() -> None:
    async with rig() as one:
        waiting = [one.submit(n) for n in range(5)]
        one.roles.change(is_master=True, broker_id=0, term=2)
        assert {answer.remark for answer in await asyncio.gather(*waiting)} == {"here"}
        assert one.here == [0, 1, 2, 3, 4]


@pytest.mark.asyncio
async def test_no_master_in_time_is_a_definite_refusal() -> None:
    async with rig(timeout_ms=80) as one:
        answer = await one.submit(1)
        assert answer.code == ResponseCode.SERVICE_NOT_AVAILABLE
        assert one.gate.failed_count == 1


@pytest.mark.asyncio
async def test_refused_ones_go_to_the_next_master_before_the_later_ones() -> None:
    async with rig() as one:
        old, new = await one.master(), await one.master()
        known(one, old, 1)
        old.answer = lambda request: request.response(ResponseCode.SERVICE_NOT_AVAILABLE, "not the master")
        waiting = [one.submit(n) for n in range(10)]
        await eventually(lambda: old.seen)
        waiting += [one.submit(n) for n in range(10, 20)]
        known(one, new, 2)
        assert {answer.code for answer in await asyncio.gather(*waiting)} == {0}
        assert new.numbers() == list(range(20))


@pytest.mark.asyncio
async def test_a_dead_master_was_certainly_not_reached() -> None:
    async with rig() as one:
        one.roles.master_known(MasterRecord(f"{HOST}:{free_ports(1)[0]}", "n1", 1))
        waiting = one.submit(7)
        master = await one.master()
        known(one, master, 2)
        assert (await waiting).code == 0
        assert master.numbers() == [7]


@pytest.mark.asyncio
async def test_a_broken_connection_leaves_a_send_unknown_and_repeats_what_may_be_repeated() -> None:
    async with rig() as one:
        old, new = await one.master(), await one.master()
        known(one, old, 1)
        old.answer = lambda request: None
        answer = await one.submit(1)
        assert answer.code == ResponseCode.SYSTEM_ERROR
        assert "unknown" in (answer.remark or "")
        again = one.submit(2, idempotent=True)
        await eventually(lambda: 2 in old.numbers())
        known(one, new, 2)
        assert (await again).code == 0
        assert new.numbers() == [2]


@pytest.mark.asyncio
async def test_other_answers_of_the_master_pass_as_they_are() -> None:
    async with rig() as one:
        master = await one.master()
        known(one, master, 1)
        master.answer = lambda request: request.response(ResponseCode.MESSAGE_ILLEGAL, "no", {"x": "1"}, b"b")
        answer = await one.submit(1)
        assert (answer.code, answer.remark, answer.ext, bytes(answer.body)) == (13, "no", {"x": "1"}, b"b")


@pytest.mark.asyncio
async def test_the_number_is_bounded() -> None:
    async with rig(max_pending=3) as one:
        waiting = [one.submit(n) for n in range(5)]
        assert [(await one_of).code for one_of in waiting[3:]] == [ResponseCode.SYSTEM_BUSY] * 2
        await one.gate.stop()
        assert {(await one_of).code for one_of in waiting[:3]} == {ResponseCode.SERVICE_NOT_AVAILABLE}


@pytest.mark.asyncio
async def test_a_master_that_never_answers_leaves_the_outcome_unknown() -> None:
    async with rig(timeout_ms=100) as one:
        master = await one.master()
        known(one, master, 1)
        gate = asyncio.Event()

        async def never(request: RemotingCommand, _connection: RemotingConnection) -> RemotingCommand:
            await gate.wait()
            return request.response()

        master.server.register(310, never)
        answer = await one.submit(1)
        assert answer.code == ResponseCode.SYSTEM_ERROR
        assert "unknown" in (answer.remark or "")
        gate.set()
