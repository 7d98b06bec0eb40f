"""The queue before a stream, and the options of the network."""

from __future__ import annotations

import asyncio

import pytest

from dledger.errors import UnexpectedArgumentError
from dledger.rpc.links import Outbox
from dledger.rpc.options import NetworkOptions


def test_a_full_queue_drops_by_number():
    outbox = Outbox(2, 1000)
    assert [outbox.put(b"x") for _ in range(3)] == [True, True, False]
    assert (len(outbox), outbox.queued_bytes, outbox.dropped_count) == (2, 2, 1)


def test_a_full_queue_drops_by_bytes():
    outbox = Outbox(100, 10)
    assert outbox.put(b"123456")
    assert not outbox.put(b"12345")
    assert outbox.put(b"1234")
    assert outbox.queued_bytes == 10


@pytest.mark.asyncio
async def test_messages_leave_in_order_and_make_room():
    outbox = Outbox(3, 1000)
    written = []
    third = asyncio.Event()

    async def write(data):
        written.append(data)
        if len(written) == 3:
            third.set()

    task = asyncio.get_running_loop().create_task(outbox.drain_to(write))
    for data in (b"1", b"2", b"3"):
        assert outbox.put(data)
    await third.wait()
    assert written == [b"1", b"2", b"3"]
    assert (len(outbox), outbox.queued_bytes) == (0, 0)
    outbox.close()
    await asyncio.wait_for(task, 30)


@pytest.mark.asyncio
async def test_closing_drops_what_waits_and_ends_the_writer():
    outbox = Outbox(10, 1000)
    gate = asyncio.Event()
    written = []

    async def write(data):
        written.append(data)
        await gate.wait()

    task = asyncio.get_running_loop().create_task(outbox.drain_to(write))
    outbox.put(b"1")
    outbox.put(b"2")
    await asyncio.sleep(0)
    outbox.close()
    gate.set()
    await asyncio.wait_for(task, 30)
    assert written == [b"1"]
    assert not outbox.put(b"3")


@pytest.mark.asyncio
async def test_a_failing_write_ends_the_writer_with_its_error():
    outbox = Outbox(10, 1000)
    outbox.put(b"1")

    async def write(_):
        raise ConnectionResetError

    with pytest.raises(ConnectionResetError):
        await outbox.drain_to(write)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"vote_timeout_ms": 0}, "vote_timeout_ms = 0, must be positive"),
        ({"reconnect_max_ms": 10}, "reconnect_max_ms = 10 is below reconnect_min_ms = 50"),
        ({"max_queue_bytes": 5}, "max_queue_bytes = 5 holds no message"),
    ],
)
def test_options_that_cannot_work_are_named(changes, words):
    with pytest.raises(UnexpectedArgumentError, match=words):
        NetworkOptions(**changes).validate()


def test_all_wrong_options_are_named_at_once():
    with pytest.raises(UnexpectedArgumentError) as caught:
        NetworkOptions(max_queue_count=0, keepalive_time_ms=-1).validate()
    assert "max_queue_count" in caught.value.message
    assert "keepalive_time_ms" in caught.value.message
