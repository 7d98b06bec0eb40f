"""Real clients in environments of their own, and a real group of processes for them to talk to.

The clients come from PyPI and npm, into ``.venv-interop-*`` folders that stay for the next run. Where a registry does
not answer, the tests that need it are skipped and say so.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.broker.harness import HOST, free_ports

REPOSITORY = Path(__file__).resolve().parents[2]
HERE = Path(__file__).resolve().parent
CPP_PACKAGE = "rocketmq==0.4.4"
NODE_PACKAGE = "ali-ons@3.12.0"
INSTALL_TIMEOUT_S = 240


def _run(*command: str, cwd: Path | None = None) -> None:
    subprocess.run(command, cwd=cwd, check=True, capture_output=True, timeout=INSTALL_TIMEOUT_S)


@pytest.fixture(scope="session")
def cpp_python() -> str:
    """The interpreter of an environment with the C++ client."""
    home = REPOSITORY / ".venv-interop-cpp"
    python = home / "bin" / "python"
    marker = home / f"installed-{CPP_PACKAGE}"
    if not marker.exists():
        try:
            _run(sys.executable, "-m", "venv", "--clear", str(home))
            _run(str(python), "-m", "pip", "install", "--quiet", CPP_PACKAGE)
        except (subprocess.SubprocessError, OSError) as error:
            pytest.skip(f"PyPI's {CPP_PACKAGE} cannot be installed: {error}")
        marker.touch()
    return str(python)


@pytest.fixture(scope="session")
def node_modules() -> str:
    """The folder with the npm client."""
    home = REPOSITORY / ".venv-interop-node"
    marker = home / f"installed-{NODE_PACKAGE}"
    if shutil.which("node") is None or shutil.which("npm") is None:
        pytest.skip("node and npm are not installed")
    if not marker.exists():
        try:
            home.mkdir(exist_ok=True)
            (home / "package.json").write_text("{}", encoding="utf-8")
            _run("npm", "install", "--no-audit", "--no-fund", NODE_PACKAGE, cwd=home)
        except (subprocess.SubprocessError, OSError) as error:
            pytest.skip(f"npm's {NODE_PACKAGE} cannot be installed: {error}")
        marker.touch()
    return str(home / "node_modules")


class Process:
    """A child that talks JSON lines; its lines collect in `lines`."""

    def __init__(self, command: list[str], env: dict[str, str], log: Path) -> None:
        self._log = log.open("ab")
        self.child = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log, env=env, cwd=REPOSITORY
        )
        self.lines: list[dict[str, Any]] = []
        self._fresh: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.child.stdout is not None
        for line in self.child.stdout:
            # The C++ client prints to standard output too.
            with contextlib.suppress(ValueError):
                value = json.loads(line)
                if isinstance(value, dict):
                    if "ready" not in value:
                        self.lines.append(value)
                    self._fresh.put(value)

    def next(self, timeout_s: float = 60) -> dict[str, Any]:
        return self._fresh.get(timeout=timeout_s)

    def ask(self, **wish: Any) -> dict[str, Any]:
        assert self.child.stdin is not None
        self.child.stdin.write(json.dumps(wish).encode() + b"\n")
        self.child.stdin.flush()
        return self.next()

    def end(self, timeout_s: float = 40) -> None:
        """Close its input and wait; a client library that hangs at its end is ended."""
        if self.child.poll() is None:
            with contextlib.suppress(OSError, ValueError):
                assert self.child.stdin is not None
                self.child.stdin.close()
            try:
                self.child.wait(timeout_s)
            except subprocess.TimeoutExpired:
                self.child.kill()
                self.child.wait()
        self._reader.join(10)
        for pipe in (self.child.stdin, self.child.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()
        self._log.close()


class RealGroup:
    """mqnamesrv and three mqbrokers as processes. ``beside``: another group, whose name server is used."""

    def __init__(
        self, root: Path, more_settings: str = "", *, name: str = "RaftNode00", beside: RealGroup | None = None
    ) -> None:
        self.root = root
        self.name = name
        self._more_settings = more_settings
        self._children: dict[str, subprocess.Popen[bytes]] = {}
        if beside is None:
            (port,) = free_ports(1)
            self.namesrv = f"{HOST}:{port}"
            self._spawn("namesrv", "broker_adapter.namesrv.main", "--port", str(port))
        else:
            self.namesrv = beside.namesrv
        peers = free_ports(3)
        self.ports = free_ports(3)
        text = ";".join(f"n{number}-{HOST}:{one}" for number, one in enumerate(peers))
        for number, listen in enumerate(self.ports):
            self._conf(number).write_text(
                f"""brokerClusterName=RaftCluster
brokerName={name}
brokerIP1={HOST}
listenPort={listen}
namesrvAddr={self.namesrv}
storePathRootDir={root / f"node{number}"}
enableDLegerCommitLog=true
dLegerGroup={name}
dLegerPeers={text}
dLegerSelfId=n{number}
mappedFileSizeCommitLog=64MiB
mappedFileSizeConsumeQueue=20000
maxHashSlotNum=10000
maxIndexNum=40000
messageDelayLevel=1s 1s 1s 2s 2s 2s
{self._more_settings}
""",
                encoding="utf-8",
            )
            self.start(number)
        self.master()

    def _conf(self, number: int) -> Path:
        return self.root / f"n{number}.conf"

    def _spawn(self, name: str, *arguments: str) -> None:
        with (self.root / f"{name}.log").open("ab") as log:
            env = {**os.environ, "PYTHONPATH": str(REPOSITORY), "HOME": str(self.root)}
            self._children[name] = subprocess.Popen(
                [sys.executable, "-m", *arguments], stdout=log, stderr=log, stdin=subprocess.DEVNULL, env=env
            )

    def start(self, number: int) -> None:
        self._spawn(f"n{number}", "broker_adapter.broker.main", "-c", str(self._conf(number)))

    def admin(self, *arguments: str) -> str:
        """Run mqadmin; its standard output."""
        done = subprocess.run(
            [sys.executable, "-m", "broker_adapter.admin", *arguments, "-n", self.namesrv],
            cwd=REPOSITORY, capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        return done.stdout

    def admin_until(self, word: str, *arguments: str, timeout_s: float = 60) -> str:
        """Run mqadmin until it says ``word``: while there is no master, or on a busy machine, it may not at once."""
        deadline = time.monotonic() + timeout_s
        while word not in (said := self.admin(*arguments)):
            assert time.monotonic() < deadline, f"mqadmin {' '.join(arguments)} said {said!r}; logs in {self.root}"
        return said

    def master(self, *, other_than: int | None = None, timeout_s: float = 60) -> int:
        """Number of the node that is registered as master."""
        deadline = time.monotonic() + timeout_s
        while True:
            rows = json.loads(self.admin("clusterList", "-o", "json") or "[]")
            for row in rows:
                if row["brokerName"] == self.name and row["brokerId"] == 0 and row["up"]:
                    number = self.ports.index(int(row["address"].rpartition(":")[2]))
                    if number != other_than:
                        return number
            assert time.monotonic() < deadline, f"no master: {rows}; logs in {self.root}"

    def kill(self, number: int) -> None:
        """kill -9, by the pid of our own child."""
        child = self._children[f"n{number}"]
        child.send_signal(signal.SIGKILL)
        child.wait()

    def create_topic(self, topic: str, queues: int = 4) -> None:
        size = ("-r", str(queues), "-w", str(queues))
        self.admin_until("success", "updateTopic", "-c", "RaftCluster", "-t", topic, *size)
        deadline = time.monotonic() + 20
        while topic not in self.admin("topicList").split():
            assert time.monotonic() < deadline, "the topic was not registered"

    def stop(self) -> None:
        for child in self._children.values():
            if child.poll() is None:
                child.terminate()
        for child in self._children.values():
            try:
                child.wait(20)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()


class Clients:
    """Starts client processes of one kind and ends what it started."""

    def __init__(self, kind: str, command: list[str], env: dict[str, str], group: RealGroup) -> None:
        self.kind = kind
        self._command = command
        self._env = env
        self._group = group
        self._running: list[Process] = []

    def run(self, mode: str, group: str, topic: str, *arguments: str, wait: bool = True) -> Process:
        command = [*self._command, mode, self._group.namesrv, group, topic, *arguments]
        process = Process(command, self._env, self._group.root / f"client-{self.kind}.log")
        self._running.append(process)
        if wait:
            assert process.next() == {"ready": True}
        return process

    def end(self) -> None:
        for process in self._running:
            process.end()
        self._running.clear()


@pytest.fixture(scope="module")
def real_group(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealGroup]:
    group = RealGroup(tmp_path_factory.mktemp("interop"))
    yield group
    group.stop()


def cpp_clients(python: str, group: RealGroup) -> Clients:
    # It writes logs below HOME.
    env = {"HOME": str(group.root), "PATH": os.environ.get("PATH", "")}
    return Clients("cpp", [python, str(HERE / "clients" / "cpp_client.py")], env, group)


def ali_clients(modules: str, group: RealGroup) -> Clients:
    env = {"HOME": str(group.root), "PATH": os.environ.get("PATH", ""), "NODE_PATH": modules}
    return Clients("ali", ["node", str(HERE / "clients" / "ali_client.js")], env, group)


@pytest.fixture
def cpp(cpp_python: str, real_group: RealGroup) -> Iterator[Clients]:
    clients = cpp_clients(cpp_python, real_group)
    yield clients
    clients.end()


@pytest.fixture
def ali(node_modules: str, real_group: RealGroup) -> Iterator[Clients]:
    clients = ali_clients(node_modules, real_group)
    yield clients
    clients.end()


@pytest.fixture(params=["cpp", "ali"])
def clients(request: pytest.FixtureRequest) -> Clients:
    """Each kind in turn."""
    found = request.getfixturevalue(request.param)
    assert isinstance(found, Clients)
    return found
