"""The peers: three nodes each on this machine, with the settings they come with, and a client that is fair to them.

============  ==================================  =================================================
name          programs, or where they are         client
============  ==================================  =================================================
``etcd``      ``etcd`` (``ETCD``)                 ``etcd_load`` (``ETCD_LOAD``), Go, etcd's own library
``rabbitmq``  ``rabbitmq-server``, ``…ctl``       raw AMQP 0-9-1 with confirms; a quorum queue
              (``RABBITMQ_BIN``: their folder)
``nats``      ``nats-server`` (``NATS_SERVER``)   raw NATS; a JetStream of three replicas in files
============  ==================================  =================================================

etcd and RabbitMQ sync a write to the disk of a majority before they acknowledge it. NATS does not at its defaults.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import subprocess
import tempfile
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

from dledger.bench.drive import drive, helper_command
from dledger.bench.load import Load, Measurement
from dledger.bench.peer_load import RABBIT_QUEUE, declare_queue, nats_request
from dledger.bench.worker import Task
from dledger.errors import DLedgerError, UnavailableError
from dledger.local_group import free_ports

__all__ = ["EtcdPeer", "NatsPeer", "Peer", "RabbitPeer", "all_peers"]

_HOST: Final = "127.0.0.1"
_START_S: Final = 90.0
_POLL_S: Final = 0.1
_NODES: Final = 3
_TAIL_BYTES: Final = 2000
_SCRIPT_END_S: Final = 5.0
_CONNECTIONS_FROM: Final = 1000
"""Callers from which etcd gets 16 connections in place of one: more with fewer callers makes it slower."""


class _Processes:
    """Started here, and ended here by their process ids."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._running: list[tuple[str, subprocess.Popen[bytes]]] = []

    def start(self, name: str, command: list[str], env: Mapping[str, str] | None = None) -> int:
        """Start one in a group of its own; its output goes to ``<name>.log``. Returns its pid."""
        with open(self.directory / f"{name}.log", "ab") as log:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=env, start_new_session=True,
                cwd=self.directory,
            )  # fmt: skip
        self._running.append((command[0], process))
        return process.pid

    def check(self) -> None:
        """Raise if one has ended: waiting on would be in vain."""
        for program, process in self._running:
            if process.poll() is not None:
                raise UnavailableError(f"{program} ended with exit code {process.returncode}: {self.tail()}")

    def tail(self) -> str:
        """Return the end of what they have written."""
        logs = sorted(self.directory.glob("*.log"))
        return "\n".join(log.read_text("utf-8", "replace")[-_TAIL_BYTES:] for log in logs)

    async def wait_for_scripts(self) -> None:
        """Give those whose work has been ended a moment to notice; all but the first, epmd, which goes on."""
        for _, process in self._running[1:]:
            with contextlib.suppress(subprocess.TimeoutExpired):
                await asyncio.to_thread(process.wait, _SCRIPT_END_S)

    def kill(self) -> None:
        """End all of them with their children: each has a process group of its own."""
        for _, process in self._running:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, 9)
            process.wait()
        self._running.clear()


class Peer(ABC):
    """Another system of three nodes. `missing` says why it cannot be measured here; `open` starts it."""

    name: str
    title: str
    syncs: bool
    """Whether a write is on the disk of a majority before it is acknowledged."""
    is_slow_to_start: bool = False
    """One cluster for all rows of a round, because starting it takes long."""

    @abstractmethod
    def missing(self) -> str | None:
        """Return what is not installed, None if nothing."""

    @abstractmethod
    def version(self) -> str:
        """Return the version that will be measured."""

    @abstractmethod
    def supports(self, load: Load) -> bool:
        """Whether it knows such a load."""

    @abstractmethod
    def open(self, directory: Path) -> contextlib.AbstractAsyncContextManager[Any]:
        """Start the cluster below ``directory``; yields what `measure` needs."""

    @abstractmethod
    async def measure(self, cluster: Any, load: Load) -> Measurement:  # noqa: ANN401 - each peer's own
        """Put the load on it."""


def _program(variable: str, name: str) -> str | None:
    """Return a program's path: named by the environment, or on the PATH."""
    given = os.environ.get(variable)
    if given:
        return given if os.access(given, os.X_OK) else None
    return shutil.which(name) or shutil.which(name, path="/usr/sbin:/usr/local/sbin")


def _output(command: list[str]) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=30).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""


@asynccontextmanager
async def _folder(parent: Path, name: str) -> AsyncIterator[_Processes]:
    directory = Path(tempfile.mkdtemp(prefix=f"dledger-bench-{name}-", suffix="-data", dir=parent))
    processes = _Processes(directory)
    try:
        yield processes
    finally:
        processes.kill()
        shutil.rmtree(directory, ignore_errors=True)


async def _until(processes: _Processes, what: str, ask: Any) -> Any:  # noqa: ANN401
    """Call ``ask`` until it returns something; it may fail meanwhile.

    Raises:
        UnavailableError: not in time, or a process ended.
    """
    deadline = asyncio.get_running_loop().time() + _START_S
    error: BaseException | None = None
    while asyncio.get_running_loop().time() < deadline:
        processes.check()
        try:
            found = await ask()
            if found:
                return found
        except (DLedgerError, OSError, subprocess.SubprocessError, KeyError, ValueError) as problem:
            error = problem
        await asyncio.sleep(_POLL_S)
    raise UnavailableError(f"{what}: not after {_START_S:g} s: {error}; {processes.tail()}")


async def _listens(port: int) -> bool:
    _, writer = await asyncio.open_connection(_HOST, port)
    writer.close()
    return True


def _named(pids: list[int], leader: int) -> dict[str, int]:
    """Return process ids by role, leader first."""
    followers = [pid for number, pid in enumerate(pids) if number != leader]
    return {"leader": pids[leader]} | {f"follower {number}": pid for number, pid in enumerate(followers, 1)}


# ---------------------------------------------------------------- etcd


class EtcdPeer(Peer):
    """Puts of new keys; a batch is a transaction of so many puts."""

    name = "etcd"
    title = "etcd"
    syncs = True

    def missing(self) -> str | None:
        if _program("ETCD", "etcd") is None:
            return "no etcd on the PATH (ETCD names another)"
        if _program("ETCD_LOAD", "etcd_load") is None:
            return "no etcd_load: build benchmarks/peers/etcd_load with Go, and let ETCD_LOAD name it"
        return None

    def version(self) -> str:
        return _output([_program("ETCD", "etcd") or "etcd", "--version"]).partition("\n")[0].rpartition(" ")[2]

    def supports(self, load: Load) -> bool:
        # A transaction has at most 128 operations at the defaults.
        return load.operation == "append" or (load.operation == "append-batch" and load.batch <= 128)

    @asynccontextmanager
    async def open(self, directory: Path) -> AsyncIterator[tuple[str, dict[str, int]]]:
        """Yield the leader's endpoint and the process ids."""
        ports = free_ports(2 * _NODES)
        clients, peers = ports[:_NODES], ports[_NODES:]
        members = ",".join(f"n{number}=http://{_HOST}:{port}" for number, port in enumerate(peers))
        async with _folder(directory, self.name) as processes:
            pids = []
            for number in range(_NODES):
                client, peer = f"http://{_HOST}:{clients[number]}", f"http://{_HOST}:{peers[number]}"
                command = [
                    _program("ETCD", "etcd") or "etcd", "--name", f"n{number}", "--data-dir", f"n{number}.etcd",
                    "--listen-client-urls", client, "--advertise-client-urls", client,
                    "--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer,
                    "--initial-cluster", members, "--initial-cluster-state", "new",
                    "--log-level", "warn", "--quota-backend-bytes", str(8 << 30),
                ]  # fmt: skip
                pids.append(processes.start(f"n{number}", command))
            endpoints = [f"{_HOST}:{port}" for port in clients]

            async def leader() -> str:
                command = [_program("ETCD_LOAD", "etcd_load") or "", "-endpoints", ",".join(endpoints), "-leader"]
                return await asyncio.to_thread(_output, command)

            found: str = await _until(processes, "an etcd leader", leader)
            yield found, _named(pids, endpoints.index(found))

    async def measure(self, cluster: tuple[str, dict[str, int]], load: Load) -> Measurement:
        endpoint, pids = cluster
        connections = 4 if load.batch > 1 else 16 if load.concurrency >= _CONNECTIONS_FROM else 1
        command = [
            _program("ETCD_LOAD", "etcd_load") or "", "-endpoints", endpoint, "-conns", str(connections),
            "-inflight", str(load.concurrency), "-size", str(load.size_bytes), "-txn", str(load.batch),
            "-warm", str(load.warmup_s), "-seconds", str(load.duration_s),
        ]  # fmt: skip
        return await drive([command], load, pids, env=dict(os.environ))


# ---------------------------------------------------------------- NATS


class NatsPeer(Peer):
    """Publishes that JetStream acknowledges. It knows no batches."""

    name = "nats"
    title = "NATS JetStream R3"
    syncs = False
    is_slow_to_start = True

    def missing(self) -> str | None:
        return None if _program("NATS_SERVER", "nats-server") else "no nats-server on the PATH (NATS_SERVER names one)"

    def version(self) -> str:
        return _output([_program("NATS_SERVER", "nats-server") or "", "--version"]).rpartition(" ")[2]

    def supports(self, load: Load) -> bool:
        return load.operation == "append"

    @asynccontextmanager
    async def open(self, directory: Path) -> AsyncIterator[tuple[int, dict[str, int]]]:
        """Yield the port of the stream's leader and the process ids."""
        ports = free_ports(2 * _NODES)
        clients, routes = ports[:_NODES], ports[_NODES:]
        urls = ", ".join(f"nats-route://{_HOST}:{port}" for port in routes)
        async with _folder(directory, self.name) as processes:
            pids = []
            for number in range(_NODES):
                (processes.directory / f"n{number}.conf").write_text(
                    f"listen: {_HOST}:{clients[number]}\nserver_name: n{number}\n"
                    f'jetstream {{ store_dir: "n{number}" }}\n'
                    f"cluster {{ name: bench, listen: {_HOST}:{routes[number]}, routes: [{urls}] }}\n",
                    encoding="utf-8",
                )
                command = [_program("NATS_SERVER", "nats-server") or "", "-c", f"n{number}.conf"]
                pids.append(processes.start(f"n{number}", command))
            stream = {
                "name": "bench", "subjects": ["bench.*"], "num_replicas": _NODES, "storage": "file",
                "retention": "limits", "discard": "old", "max_consumers": -1, "max_msgs": -1, "max_bytes": -1,
                "max_age": 0, "max_msg_size": -1, "duplicate_window": 120_000_000_000,
            }  # fmt: skip

            async def create() -> bool:
                answer = await nats_request(clients[0], "$JS.API.STREAM.CREATE.bench", stream)
                return "error" not in answer or answer["error"].get("err_code") == 10058

            async def leader() -> str:
                answer = await nats_request(clients[0], "$JS.API.STREAM.INFO.bench", {})
                replicas = answer["cluster"].get("replicas") or []
                ready = len(replicas) == _NODES - 1 and all(replica.get("current") for replica in replicas)
                return str(answer["cluster"]["leader"]) if ready else ""

            await _until(processes, "a JetStream stream", create)
            found = int((await _until(processes, "a leader of the stream", leader))[1:])
            yield clients[found], _named(pids, found)

    async def measure(self, cluster: tuple[int, dict[str, int]], load: Load) -> Measurement:
        port, pids = cluster
        command = helper_command("peer-load", "--kind", "nats", "--port", str(port))
        return await drive([command], load, pids, inputs=[Task("", "", load).as_line()])


# ---------------------------------------------------------------- RabbitMQ


class RabbitPeer(Peer):
    """Persistent messages to a quorum queue, each confirmed. It knows no batches."""

    name = "rabbitmq"
    title = "RabbitMQ quorum queue"
    syncs = True
    is_slow_to_start = True

    @staticmethod
    def _tool(name: str) -> str | None:
        # Debian's wrapper in /usr/sbin changes to a user of its own, which owns none of our folders.
        for folder in (os.environ.get("RABBITMQ_BIN"), "/usr/lib/rabbitmq/bin"):
            if folder and os.access(Path(folder) / name, os.X_OK):
                return str(Path(folder) / name)
        return shutil.which(name)

    def missing(self) -> str | None:
        if self._tool("rabbitmq-server") is None or self._tool("rabbitmqctl") is None:
            return "no rabbitmq-server and rabbitmqctl on the PATH (RABBITMQ_BIN names their folder)"
        return None if shutil.which("epmd") else "no epmd (Erlang) on the PATH"

    def version(self) -> str:
        return _output([self._tool("rabbitmqctl") or "", "version"]).strip()

    def supports(self, load: Load) -> bool:
        return load.operation == "append"

    @asynccontextmanager
    async def open(self, directory: Path) -> AsyncIterator[tuple[int, dict[str, int]]]:
        """Yield a node's port and the process ids; that node will lead the queue."""
        ports = free_ports(2 * _NODES + 1)
        async with _folder(directory, self.name) as processes:
            home = processes.directory
            cookie = home / ".erlang.cookie"
            cookie.write_text(os.urandom(12).hex().upper(), encoding="ascii")
            cookie.chmod(0o400)
            # On its own port, and started by us: RabbitMQ would leave it running.
            epmd_port = str(ports[-1])
            processes.start("epmd", [shutil.which("epmd") or "epmd", "-port", epmd_port, "-address", _HOST])
            await _until(processes, "epmd", lambda: _listens(ports[-1]))
            environments = [self._environment(home, number, ports, epmd_port) for number in range(_NODES)]
            for number, env in enumerate(environments):
                processes.start(f"r{number}", [self._tool("rabbitmq-server") or ""], env)
            for env in environments:
                await self._ctl(processes, env, "await_startup")
            for env in environments[1:]:
                for words in (["stop_app"], ["join_cluster", "r0@localhost"], ["start_app"]):
                    await self._ctl(processes, env, *words)
            await self._ctl(processes, environments[0], "await_online_nodes", str(_NODES))
            pids = [int((home / f"r{number}.pid").read_text(encoding="ascii")) for number in range(_NODES)]
            try:
                yield ports[0], _named(pids, 0)
            finally:
                # First the Erlang machines, so that the scripts that started them collect them.
                for pid in pids:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, 9)
                await processes.wait_for_scripts()

    @staticmethod
    def _environment(home: Path, number: int, ports: list[int], epmd_port: str) -> dict[str, str]:
        node = home / f"r{number}"
        node.mkdir()
        (node / "rabbitmq.conf").write_text(f"listeners.tcp.1 = {_HOST}:{ports[number]}\n", encoding="utf-8")
        (node / "plugins").write_text("[].", encoding="utf-8")
        return os.environ | {
            "HOME": str(home), "RABBITMQ_NODENAME": f"r{number}@localhost", "RABBITMQ_MNESIA_BASE": str(node / "db"),
            "RABBITMQ_LOG_BASE": str(node / "log"), "RABBITMQ_CONFIG_FILE": str(node / "rabbitmq.conf"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(node / "plugins"), "RABBITMQ_PID_FILE": str(home / f"r{number}.pid"),
            "RABBITMQ_DIST_PORT": str(ports[_NODES + number]), "ERL_EPMD_PORT": epmd_port, "ERL_EPMD_ADDRESS": _HOST,
        }  # fmt: skip

    async def _ctl(self, processes: _Processes, env: dict[str, str], *words: str) -> None:
        """Run ``rabbitmqctl`` until it succeeds: a node that starts is not reachable at first."""
        command = [self._tool("rabbitmqctl") or "", *words]

        async def attempt() -> bool:
            done = await asyncio.to_thread(
                subprocess.run, command, env=env, capture_output=True, text=True, check=False, timeout=_START_S
            )
            if done.returncode:
                raise UnavailableError(f"rabbitmqctl {' '.join(words)}: {done.stderr.strip()[-300:]}")
            return True

        await _until(processes, f"rabbitmqctl {' '.join(words)}", attempt)

    async def measure(self, cluster: tuple[int, dict[str, int]], load: Load) -> Measurement:
        port, pids = cluster
        await declare_queue(port, RABBIT_QUEUE)
        command = helper_command("peer-load", "--kind", "rabbitmq", "--port", str(port))
        return await drive([command], load, pids, inputs=[Task("", "", load).as_line()])


def all_peers() -> list[Peer]:
    """Return every peer that is known, installed or not."""
    return [EtcdPeer(), RabbitPeer(), NatsPeer()]
