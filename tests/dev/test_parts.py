"""The parts of a dev group that need no nodes: state file, pid files, lock, ports, control port, load."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest

from dledger.cli.options import per_second, resolve_target
from dledger.dev.control import ControlServer, ask
from dledger.dev.group import clear_data, end_leftovers
from dledger.dev.load import SteadyLoad
from dledger.dev.ports import claim, listener, require_free
from dledger.dev.state import (
    DATA_VARIABLE,
    DevState,
    FolderLock,
    data_directory,
    live_pid,
    process_state,
    signal_process,
    write_pid,
)
from dledger.errors import DLedgerError, StoppedError, UnavailableError

HOST = "127.0.0.1"


def state(**changes: Any) -> DevState:
    values = {
        "pid": os.getpid(),
        "group": "dev",
        "peers": f"n0-{HOST}:1",
        "node_ids": ("n0",),
        "ports": (1,),
        "control_port": 2,
        "token": "secret",
        "page": f"http://{HOST}:3/",
    }
    return DevState(**(values | changes))


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    child = subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE)
    try:
        yield child
    finally:
        child.kill()
        child.communicate()


# ---------------------------------------------------------------- state and pid files


def test_the_state_comes_back_and_is_for_its_owner_alone(tmp_path: Path) -> None:
    assert DevState.load(tmp_path) is None
    state().save(tmp_path)
    found = DevState.load(tmp_path)
    assert found is not None and found.running
    assert found.node_ids == ("n0",) and found.page_url == f"http://{HOST}:3/#token=secret"
    assert stat.S_IMODE((tmp_path / "dev.json").stat().st_mode) == 0o600


def test_a_state_of_a_process_that_is_gone_does_not_run(tmp_path: Path) -> None:
    state().save(tmp_path)
    row = json.loads((tmp_path / "dev.json").read_text())
    (tmp_path / "dev.json").write_text(json.dumps(row | {"started": "1"}))  # its pid is another's now
    found = DevState.load(tmp_path)
    assert found is not None and not found.running


def test_a_damaged_state_is_said(tmp_path: Path) -> None:
    (tmp_path / "dev.json").write_text("{")
    with pytest.raises(DLedgerError, match="--fresh"):
        DevState.load(tmp_path)


def test_pid_files_name_one_process_and_no_other(tmp_path: Path, sleeper: subprocess.Popen[bytes]) -> None:
    path = tmp_path / "n0.pid"
    assert live_pid(path) is None
    write_pid(path, sleeper.pid)
    assert live_pid(path) == sleeper.pid
    path.write_text(f"{sleeper.pid} 12345\n")  # the kernel gave the number to somebody else
    assert live_pid(path) is None
    with pytest.raises(UnavailableError, match="n0 does not run"):
        signal_process(path, signal.SIGKILL)
    assert sleeper.poll() is None
    write_pid(path, sleeper.pid)
    assert signal_process(path, signal.SIGSTOP) == sleeper.pid
    os.waitid(os.P_PID, sleeper.pid, os.WSTOPPED | os.WNOWAIT)
    assert process_state(sleeper.pid) == "T"
    signal_process(path, signal.SIGKILL)
    os.waitid(os.P_PID, sleeper.pid, os.WEXITED | os.WNOWAIT)
    assert live_pid(path) is None, "a zombie has ended"


@pytest.mark.asyncio
async def test_leftovers_are_ended_even_when_they_hang(tmp_path: Path, sleeper: subprocess.Popen[bytes]) -> None:
    write_pid(tmp_path / "n1.pid", sleeper.pid)
    (tmp_path / "n2.pid").write_text("1 1\n")
    sleeper.send_signal(signal.SIGSTOP)
    assert await end_leftovers(tmp_path) == ["n1"]
    assert sleeper.wait(10) == -signal.SIGTERM
    assert list(tmp_path.glob("*.pid")) == []  # noqa: ASYNC240


def test_only_one_has_a_folder(tmp_path: Path) -> None:
    first, second = FolderLock(tmp_path), FolderLock(tmp_path)
    assert first.take()
    assert not second.take()
    first.release()
    assert second.take()
    second.release()
    with pytest.raises(DLedgerError, match=r"dev\.lock"):
        FolderLock(tmp_path / "missing").take()


def test_clearing_leaves_what_is_not_ours(tmp_path: Path) -> None:
    for name in ("n0.conf", "n0.log", "dev.json", "mine.txt"):
        (tmp_path / name).write_text("x")
    (tmp_path / "store" / "dledger-n0").mkdir(parents=True)
    clear_data(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_the_folder_is_named_by_option_environment_or_habit(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(DATA_VARIABLE, raising=False)
    assert data_directory(None) == tmp_path / "dledger-dev"
    monkeypatch.setenv(DATA_VARIABLE, str(tmp_path / "env"))
    assert data_directory(None) == tmp_path / "env"
    assert data_directory("given") == tmp_path / "given"


def test_other_commands_find_the_dev_group_of_the_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("DLEDGER_PEERS", "DLEDGER_GROUP", DATA_VARIABLE):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(click.UsageError, match="dledger dev"):
        resolve_target(None, None, None)
    (tmp_path / "dledger-dev").mkdir()
    state().save(tmp_path / "dledger-dev")
    target = resolve_target(None, None, None)
    assert (target.peers, target.group) == (f"n0-{HOST}:1", "dev")
    assert resolve_target("n0-h:9", None, None).peers == "n0-h:9", "what is named wins"


def test_rates() -> None:
    assert (per_second("200/s"), per_second("0.5")) == (200.0, 0.5)
    for wrong in ("0", "-1/s", "fast", "inf"):
        with pytest.raises(click.BadParameter):
            per_second(wrong)


# ---------------------------------------------------------------- ports


def test_a_taken_port_is_told_with_who_has_it() -> None:
    with claim(HOST, 0) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UnavailableError, match=rf"port {port} on {HOST} is taken by pid {os.getpid()} \(.*py"):
            require_free(HOST, port)
        assert listener(port).startswith(f"pid {os.getpid()} ")
    require_free(HOST, port)
    assert listener(port) == ""


# ---------------------------------------------------------------- control port


class Actor:
    token = "right"

    async def act(self, action: str, node: str, text: str) -> str:
        if action == "cut":
            raise UnavailableError("nobody leads at the moment")
        return f"{action} {node} {text}".strip()

    def report(self) -> bytes | None:
        return None


@pytest.mark.asyncio
async def test_the_control_port() -> None:
    server = ControlServer(Actor())
    await server.start()
    try:
        good = state(control_port=server.port, token="right")
        assert await asyncio.to_thread(ask, good, "heal", "n1") == "heal n1"
        with pytest.raises(DLedgerError, match="nobody leads"):
            await asyncio.to_thread(ask, good, "cut", "leader")
        with pytest.raises(DLedgerError, match="token is wrong"):
            await asyncio.to_thread(ask, state(control_port=server.port, token="wrong"), "heal")
        for garbage in (b"x\n", b"[]\n", b"{}\n"):
            reader, writer = await asyncio.open_connection(HOST, server.port)
            writer.write(garbage)
            assert b"error" in await reader.readline()
            writer.close()
        reader, writer = await asyncio.open_connection(HOST, server.port)
        writer.write(b"y" * 100_000)
        assert await reader.read() == b"", "a line without end is no request"
        writer.close()
    finally:
        await server.stop()


def test_a_supervisor_that_is_not_there_is_said() -> None:
    with socket.socket() as unused:
        unused.bind((HOST, 0))
        port = unused.getsockname()[1]
    with pytest.raises(UnavailableError, match="does not answer"):
        ask(state(control_port=port), "heal", timeout=2)


# ---------------------------------------------------------------- load


@pytest.mark.asyncio
async def test_the_load_keeps_its_rate_counts_and_stops() -> None:
    loop = asyncio.get_running_loop()
    enough = asyncio.Event()
    times: list[float] = []

    def append(body: bytes) -> asyncio.Future[Any]:
        times.append(loop.time())
        if len(times) == 300:
            enough.set()
        if len(times) % 10 == 0:
            raise StoppedError("no")
        future: asyncio.Future[Any] = loop.create_future()
        if len(times) % 10 == 5:
            future.set_exception(UnavailableError("no"))
        else:
            future.set_result(None)
        return future

    load = SteadyLoad(append, 1000)
    load.start()
    async with asyncio.timeout(30):
        await enough.wait()
    await load.stop()
    await asyncio.sleep(0)
    assert times[299] - times[0] >= 0.25, "not faster than asked"
    count = len(times)
    assert load.failed == count // 10 + (count + 5) // 10
    assert load.acknowledged == count - load.failed
    assert load.inflight == 0


@pytest.mark.asyncio
async def test_the_load_does_not_pile_up() -> None:
    loop = asyncio.get_running_loop()
    load = SteadyLoad(lambda body: loop.create_future(), 100_000)
    load.start()
    async with asyncio.timeout(30):
        while not load.held_back:  # noqa: ASYNC110 - the load tells nobody
            await asyncio.sleep(0.001)
    assert load.inflight == 2000
    await load.stop()
