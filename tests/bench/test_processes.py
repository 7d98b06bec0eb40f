"""Client processes in one window, the echo, the store benchmark; and the peers' protocols against small servers."""

from __future__ import annotations

import asyncio
import json
import os
import struct
import sys
import time
from pathlib import Path

import pytest

from dledger.bench.drive import drive, drive_group, echo_server, helper_command, own_process
from dledger.bench.load import Load
from dledger.bench.meter import CpuMeter, busy_seconds, cpu_seconds, resident_bytes
from dledger.bench.peer_load import declare_queue, nats_request
from dledger.bench.peers import EtcdPeer, NatsPeer, RabbitPeer
from dledger.bench.store_bench import opening_times
from dledger.bench.worker import Task
from dledger.errors import UnavailableError
from dledger.security.access import ClientTls

BRIEF = {"duration_s": 0.3, "warmup_s": 0.1}

DRIVER = """
import json, sys
first = sys.stdin.readline().strip()
print("WARM", flush=True)
assert sys.stdin.readline() == "BEGIN\\n"
sum(range(3_000_000))
print("END", flush=True)
assert sys.stdin.readline() == "STOP\\n"
counts = {"counts": {"64": 10}, "total_ns": 640, "max_ns": 64}
print(json.dumps({"acknowledged": int(first), "elapsed_s": 2.0, "histogram": counts}), flush=True)
"""


# ---------------------------------------------------------------- windows


@pytest.mark.asyncio
async def test_drivers_share_a_window_and_their_results_add_up() -> None:
    command = [sys.executable, "-c", DRIVER]
    found = await drive([command, command], Load(), {"this": os.getpid()}, inputs=["10\n", "32\n"])
    assert (found.acknowledged, found.latency.count) == (42, 20)
    assert found.throughput == 21.0
    assert set(found.cpu_s) == {"this", "clients", "rest of the machine"}
    assert found.rss_bytes["this"] > 1 << 20


@pytest.mark.asyncio
async def test_a_driver_that_dies_is_reported_with_its_last_words() -> None:
    with pytest.raises(UnavailableError, match="no such cluster"):
        await drive([[sys.executable, "-c", "raise SystemExit('no such cluster')"]], Load(), {})
    with pytest.raises(UnavailableError, match="'HELLO' in place of WARM"):
        await drive([[sys.executable, "-c", "print('HELLO', flush=True); input()"]], Load(), {})


@pytest.mark.asyncio
async def test_an_own_process_ends_with_its_block() -> None:
    async with own_process([sys.executable, "-c", "input()"]) as process:
        pid = process.pid
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_a_task_survives_its_line() -> None:
    task = Task("n0-h:1", "g", Load("append-batch", 3, batch=8, rate=5.0), 2.0, ClientTls("ca", "cert", "key"), "token")
    assert Task.from_line(task.as_line()) == task
    assert "\n" not in task.as_line()[:-1]


# ---------------------------------------------------------------- meter


def test_the_meter_sees_work() -> None:
    meter = CpuMeter({"this": os.getpid(), "nobody": 2**22 + 1})
    ends = time.process_time() + 0.2
    while time.process_time() < ends:
        pass
    used = meter.read()
    assert 0.15 <= used.seconds["this"] <= used.elapsed_s + 0.05
    assert used.seconds["nobody"] == 0.0
    assert cpu_seconds(2**22 + 1) == 0.0
    assert resident_bytes(2**22 + 1) == (0, 0)
    now, highest = resident_bytes(os.getpid())
    assert highest >= now > 1 << 20
    assert busy_seconds() > 0


# ---------------------------------------------------------------- echo


@pytest.mark.asyncio
@pytest.mark.parametrize("operation", ["unary", "unary-get", "unary-read"])
async def test_the_echo_answers_what_a_plain_client_asks(operation: str) -> None:
    async with echo_server(20_000, 256) as (address, pid):
        load = Load(operation, 4, channels=2, **BRIEF)
        found = await drive_group(Task(address, "echo", load), 1, {"echo": pid})
    assert found.acknowledged > 0
    assert (found.failed, found.first_error) == (0, "")
    assert found.byte_count >= found.acknowledged * 256
    assert found.cpu_s["echo"] > 0


# ---------------------------------------------------------------- store


@pytest.mark.asyncio
async def test_a_killed_store_opens_as_often_as_one_likes(tmp_path: Path) -> None:
    found = await opening_times(tmp_path / "store", 3_000_000, 256, 2)
    assert {kind: len(times) for kind, times in found.items()} == {"cold": 2, "warm": 2}
    assert all(0 < seconds < 60 for times in found.values() for seconds in times)
    async with own_process(helper_command("open-store", "--directory", str(tmp_path / "store"))) as process:
        opened = json.loads(await process.readline())
    assert opened["bytes"] >= 3_000_000
    assert opened["last_index"] >= 3_000_000 // 304 - 1


# ---------------------------------------------------------------- peers


def test_a_peer_that_is_not_installed_says_what_is_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("ETCD", "ETCD_LOAD", "NATS_SERVER"):
        monkeypatch.setenv(name, str(tmp_path / "absent"))
    assert "ETCD" in (EtcdPeer().missing() or "")
    assert "NATS_SERVER" in (NatsPeer().missing() or "")
    there = tmp_path / "etcd"
    there.write_text("#!/bin/sh\n", encoding="utf-8")
    there.chmod(0o755)
    monkeypatch.setenv("ETCD", str(there))
    assert "etcd_load" in (EtcdPeer().missing() or "")


def test_peers_refuse_loads_that_they_do_not_know() -> None:
    batch = Load("append-batch", 64, batch=64)
    assert EtcdPeer().supports(batch)
    assert not EtcdPeer().supports(Load("append-batch", 64, batch=129))
    assert not NatsPeer().supports(batch)
    assert not RabbitPeer().supports(batch)
    assert all(peer.supports(Load("append")) for peer in (EtcdPeer(), NatsPeer(), RabbitPeer()))
    assert not EtcdPeer().supports(Load("unary"))


class Server:
    """Listens on a free port; each connection is served by ``serve``."""

    def __init__(self, serve) -> None:
        self.serve = serve

    async def __aenter__(self) -> int:
        self.server = await asyncio.start_server(self._safely, "127.0.0.1", 0)
        return self.server.sockets[0].getsockname()[1]

    async def __aexit__(self, *_: object) -> None:
        self.server.close()
        await self.server.wait_closed()

    async def _safely(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await self.serve(reader, writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()


async def serve_nats(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Enough of NATS for one client: every publish is answered to its reply subject."""
    writer.write(b'INFO {"server_id":"x"}\r\nPING\r\n')
    sequence = 0
    while line := (await reader.readline()).strip():
        if line.startswith(b"PUB "):
            _, _, reply, size = line.split()
            await reader.readexactly(int(size) + 2)
            sequence += 1
            answer = b'{"stream":"bench","seq":%d}' % sequence
            writer.write(b"MSG %s 1 %d\r\n%s\r\n" % (reply, len(answer), answer))


@pytest.mark.asyncio
async def test_the_nats_client_counts_what_is_acknowledged() -> None:
    async with Server(serve_nats) as port:
        assert (await nats_request(port, "$JS.API.INFO", {}))["seq"] == 1
        load = Load("append", 16, **BRIEF)
        command = helper_command("peer-load", "--kind", "nats", "--port", str(port))
        found = await drive([command], load, {}, inputs=[Task("", "", load).as_line()])
    assert found.acknowledged == found.latency.count > 16
    assert found.byte_count == found.acknowledged * 256


def amqp(class_id: int, method_id: int, arguments: bytes = b"") -> bytes:
    payload = struct.pack(">HH", class_id, method_id) + arguments
    return struct.pack(">BHI", 1, 1, len(payload)) + payload + b"\xce"


ANSWERS = {
    (10, 11): amqp(10, 30), (10, 40): amqp(10, 41), (20, 10): amqp(20, 11), (85, 10): amqp(85, 11),
    (50, 10): amqp(50, 11), (50, 40): amqp(50, 41),
}  # fmt: skip


async def serve_rabbit(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Enough of AMQP for one publisher: confirms come in threes, the middle one first, then all up to the last."""
    assert await reader.readexactly(8) == b"AMQP\x00\x00\x09\x01"
    writer.write(amqp(10, 10))
    tag = 0
    while True:
        kind, _, size = struct.unpack(">BHI", await reader.readexactly(7))
        payload = (await reader.readexactly(size + 1))[:-1]
        method = struct.unpack_from(">HH", payload) if kind == 1 else None
        if method in ANSWERS:
            writer.write(ANSWERS[method])
        if kind == 3:
            tag += 1
            if tag % 3 == 0:
                writer.write(amqp(60, 80, struct.pack(">QB", tag - 1, 0)))
                writer.write(amqp(60, 80, struct.pack(">QB", tag, 1)))


@pytest.mark.asyncio
async def test_the_rabbitmq_client_counts_each_confirm_once() -> None:
    async with Server(serve_rabbit) as port:
        await declare_queue(port, "bench")
        load = Load("append", 30, **BRIEF)
        command = helper_command("peer-load", "--kind", "rabbitmq", "--port", str(port))
        # A message counted twice has no place in the window left (the driver would fail); one not counted stays in it for
        # good, and thirty of those end the load within 90 messages.
        found = await drive([command], load, {}, inputs=[Task("", "", load).as_line()])
    assert found.acknowledged == found.latency.count > 90
    assert found.slices[-1] > 0
