"""The commands as processes: settings printed, mistakes said with their exit codes, SIGTERM ends cleanly."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from broker_adapter.remoting.codes import RequestCode
from broker_adapter.remoting.errors import RemotingError
from dledger.local_group import free_ports
from tests.broker.harness import HOST, Client

REPOSITORY = Path(__file__).resolve().parents[2]
BROKER = "broker_adapter.broker.main"
NAMESRV = "broker_adapter.namesrv.main"
ENV = {**os.environ, "PYTHONPATH": str(REPOSITORY), "NAMESRV_ADDR": ""}


def run(module: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", module, *arguments], env=ENV, capture_output=True, text=True, timeout=60, check=False
    )


@contextmanager
def running(log: Path, module: str, *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    with log.open("wb") as file:
        child = subprocess.Popen([sys.executable, "-m", module, *arguments], env=ENV, stdout=file, stderr=file)
        try:
            yield child
        finally:
            if child.poll() is None:
                child.kill()
            child.wait()


def answers(address: str, code: int, timeout_s: float = 40) -> None:
    """Return once a server answers ``code`` with success."""

    async def ask() -> bool:
        async with Client(address) as client:
            try:
                return (await client.ask(code)).code == 0
            except RemotingError:
                return False

    deadline = time.monotonic() + timeout_s
    while not asyncio.run(ask()):
        assert time.monotonic() < deadline, f"{address} does not answer"


def conf(tmp_path: Path, *lines: str) -> str:
    path = tmp_path / "broker.conf"
    path.write_text("\n".join([f"storePathRootDir={tmp_path / 'store'}", *lines]) + "\n", encoding="utf-8")
    return str(path)


def test_a_name_server_and_a_broker_live_and_end(tmp_path: Path) -> None:
    namesrv, port = free_ports(2)
    file = conf(tmp_path, f"listenPort={port}", f"brokerIP1={HOST}", f"namesrvAddr={HOST}:{namesrv}")
    pid_file = tmp_path / "pids" / "broker.pid"
    arguments = ["--port", str(namesrv), "--pid-file", str(tmp_path / "ns.pid")]
    with running(tmp_path / "ns.log", NAMESRV, *arguments) as server:
        answers(f"{HOST}:{namesrv}", RequestCode.GET_BROKER_CLUSTER_INFO)
        with running(tmp_path / "broker.log", BROKER, "-c", file, "--pid-file", str(pid_file)) as broker:
            answers(f"{HOST}:{port}", RequestCode.GET_BROKER_RUNTIME_INFO)
            assert pid_file.read_text(encoding="ascii") == f"{broker.pid}\n"
            again = run(BROKER, "-c", file)
            assert again.returncode == 1
            assert "in use" in again.stderr or "locked" in again.stderr.lower()
            broker.send_signal(signal.SIGTERM)
            assert broker.wait(30) == 0
            assert not pid_file.exists()
        second = run(NAMESRV, "--port", str(namesrv))
        assert second.returncode == 1
        assert "in use" in second.stderr
        server.send_signal(signal.SIGTERM)
        assert server.wait(30) == 0


def test_settings_are_printed_and_overridden(tmp_path: Path) -> None:
    file = conf(tmp_path, "brokerName=printed", "listenPort=12345")
    everything = run(BROKER, "-c", file, "-n", "10.0.0.1:9876", "-p")
    assert everything.returncode == 0
    lines = everything.stdout.splitlines()
    assert {
        "brokerName=printed",
        "listenPort=12345",
        "namesrvAddr=10.0.0.1:9876",
        "haSlaveFallbehindMax=268435456",
    } <= {*lines}
    important = run(BROKER, "-c", file, "-D", "brokerName=other", "-m").stdout.splitlines()
    assert "brokerName=other" in important
    assert len(important) < len(lines)
    assert "listenPort=9876" in run(NAMESRV, "-p").stdout


@pytest.mark.parametrize("module", [BROKER, NAMESRV])
def test_mistakes_in_the_file_are_exit_code_4(module: str, tmp_path: Path) -> None:
    file = conf(tmp_path, "listenPrt=1")
    wrong = run(module, "-c", file)
    assert wrong.returncode == 4
    assert "broker.conf:2:1" in wrong.stderr
    assert run(module, "-c", str(tmp_path / "missing.conf")).returncode == 4
    assert run(module, "--nonsense").returncode == 2


def test_a_log_port_in_use_is_said_and_leaves_nothing_behind(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind((HOST, 0))
        taken.listen()
        raft = taken.getsockname()[1]
        file = conf(
            tmp_path,
            "listenPort=0",
            f"brokerIP1={HOST}",
            "enableDLegerCommitLog=true",
            "dLegerGroup=g",
            f"dLegerPeers=n0-{HOST}:{raft}",
            "dLegerSelfId=n0",
        )
        wrong = run(BROKER, "-c", file)
    assert wrong.returncode == 1
    assert "mqbroker:" in wrong.stderr
    assert "Traceback" not in wrong.stderr
