"""A group of real processes on this machine: started on free ports, killed, paused, restarted and ended by pid.

For the quick start, benchmarks, chaos runs and tests. Each node is a ``dledger start`` of its own with its own
configuration file, data folder and log file, all below one folder. Only processes started here are ever signalled.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Final, Self

from dledger.config import DLedgerConfig, Peer, format_peers
from dledger.errors import DLedgerError, UnavailableError
from dledger.types import NodeStatus

if TYPE_CHECKING:
    from dledger.client import LedgerClient

__all__ = ["LocalGroup", "LocalNode", "free_ports"]

_HOST: Final = "127.0.0.1"
_POLL_S: Final = 0.02
_STOP_S: Final = 10.0
_START_ATTEMPTS: Final = 3
_PORT_RANGE_FILE: Final = "/proc/sys/net/ipv4/ip_local_port_range"
_LOWEST_PORT: Final = 10_000
_LOG_TAIL_BYTES: Final = 8192
_LOG_TAIL_LINES: Final = 12


def _port_ceiling() -> int:
    """Return the first port that the kernel gives to connections: none may sit on a dead node's port by chance."""
    try:
        return int(Path(_PORT_RANGE_FILE).read_text(encoding="ascii").split()[0])
    except (OSError, ValueError, IndexError):
        return 32_768


def _is_free(port: int) -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((_HOST, port))
        except OSError:
            return False
    return True


def free_ports(count: int) -> list[int]:
    """Return ``count`` different ports that nobody listens on right now, below the kernel's own range.

    Raises:
        UnavailableError: there are not that many.
    """
    ceiling = max(_port_ceiling(), _LOWEST_PORT + 1000)
    candidates = random.SystemRandom().sample(range(_LOWEST_PORT, ceiling), min(1000, ceiling - _LOWEST_PORT))
    found = [port for port in candidates if _is_free(port)][:count]
    if len(found) < count:
        raise UnavailableError(f"no {count} free ports between {_LOWEST_PORT} and {ceiling} on {_HOST}")
    return found


@dataclass(slots=True)
class LocalNode:
    """One process, running or not. ``exit_code`` is that of the last run; a negative one names a signal."""

    peer: Peer
    conf_path: Path
    log_path: Path
    config: DLedgerConfig
    process: subprocess.Popen[bytes] | None = None
    paused: bool = False
    exit_code: int | None = field(default=None)
    end_asked: bool = False
    """Whether the process was sent a signal that ends it."""

    @property
    def node_id(self) -> str:
        return self.peer.node_id

    @property
    def address(self) -> str:
        return self.peer.address

    @property
    def data_dir(self) -> Path:
        return self.config.node_dir

    @property
    def pid(self) -> int | None:
        """The process id while it runs (also while paused), else None."""
        return self.process.pid if self.process is not None and self.process.poll() is None else None

    def log_tail(self) -> str:
        """Return the last lines that the node has logged."""
        try:
            with open(self.log_path, "rb") as log:
                log.seek(max(log.seek(0, os.SEEK_END) - _LOG_TAIL_BYTES, 0))
                lines = log.read().decode("utf-8", "replace").strip().splitlines()
        except OSError as error:
            return f"(no log: {error.strerror})"
        return "\n".join(lines[-_LOG_TAIL_LINES:])


class LocalGroup:
    """``nodes`` processes n0, n1, … in ``directory``, which is made if need be.

    ``settings`` are configuration keys for every node (``{"flushDiskType": "ASYNC_FLUSH"}``). Use as an async context
    manager, or pair `start` with `stop`. Methods belong to one event loop.
    """

    def __init__(
        self,
        directory: str | os.PathLike[str],
        *,
        nodes: int = 3,
        group: str = "local",
        settings: Mapping[str, str] | None = None,
        python: str = sys.executable,
    ) -> None:
        self.directory = Path(directory).absolute()
        self.group = group
        self.nodes: dict[str, LocalNode] = {}
        self._count = nodes
        self._settings = dict(settings or {})
        self._python = python

    async def __aenter__(self) -> Self:
        try:
            await self.start()
        except BaseException:
            await self.stop()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    @property
    def peers(self) -> str:
        """The group's peers as ``--peers`` and ``connect`` take them."""
        return format_peers(node.peer for node in self.nodes.values())

    def node(self, node_id: str) -> LocalNode:
        """Return a node by its id.

        Raises:
            KeyError: there is none of that id.
        """
        return self.nodes[node_id]

    # ---------------------------------------------------------------- start and stop

    async def start(self, timeout: float = 30.0) -> str:
        """Start every node and wait until a leader has committed, and all others know it and can vote for another.

        A node that has never held an entry cannot be told from one that was wiped, and its vote does not count in
        full: a group may be hurt only when all its nodes have caught up and asked a leader what they may have
        forgotten. Ports are chosen now; where another process takes one in between, others are chosen. Returns the
        leader's id.

        Raises:
            UnavailableError: a node ended, or there is no leader after ``timeout`` seconds; says what it logged.
        """
        for attempt in range(_START_ATTEMPTS):
            self._write_configurations()
            for node in self.nodes.values():
                self._spawn(node)
            try:
                await self.wait_leader(timeout)
                for node_id in self.nodes:
                    await self.wait_caught_up(node_id, timeout)
                await self._wait_sound(timeout)
                return await self.wait_leader(timeout)
            except UnavailableError:
                ended = [node for node in self.nodes.values() if node.pid is None]
                clash = any("in use" in node.log_tail() for node in ended)
                await self.stop()
                if not clash or attempt == _START_ATTEMPTS - 1:
                    raise
        raise UnavailableError("no leader")

    def _write_configurations(self) -> None:
        """Choose ports and write one file for each node."""
        self.directory.mkdir(parents=True, exist_ok=True)
        ports = self._choose_ports(self._count)
        peers = [Peer(f"n{number}", _HOST, port) for number, port in enumerate(ports)]
        for peer in peers:
            values = {
                "dLegerGroup": self.group,
                "dLegerSelfId": peer.node_id,
                "dLegerPeers": format_peers(peers),
                "storePathRootDir": str(self.directory / "store"),
                **self._settings,
            }
            path = self.directory / f"{peer.node_id}.conf"
            text = "".join(f"{key}={value}\n" for key, value in values.items())
            path.write_text(text.replace("\\", "\\\\"), encoding="utf-8")
            config = DLedgerConfig.from_file(path, env={})
            self.nodes[peer.node_id] = LocalNode(peer, path, self.directory / f"{peer.node_id}.log", config)

    def _choose_ports(self, count: int) -> list[int]:
        """Return a port for each node; asked again where one was taken in between."""
        return free_ports(count)

    def _command(self, node: LocalNode) -> list[str]:
        """Return the arguments of the interpreter that runs a node."""
        return ["-m", "dledger", "start", "-c", str(node.conf_path)]

    def _spawn(self, node: LocalNode) -> None:
        """Start one process. It has a session of its own, so that Ctrl-C on the terminal reaches only us."""
        package_root = str(Path(__file__).resolve().parents[1])
        paths = [package_root, *filter(None, [os.environ.get("PYTHONPATH")])]
        # The nodes take their settings from their files alone, whatever a user has exported for clients.
        env = {key: value for key, value in os.environ.items() if not key.startswith("DLEDGER_")}
        env |= {"PYTHONPATH": os.pathsep.join(paths), "PYTHONUNBUFFERED": "1"}
        with open(node.log_path, "ab") as log:
            node.process = subprocess.Popen(
                [self._python, *self._command(node)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=env,
                start_new_session=True,
            )
        node.paused = node.end_asked = False
        node.exit_code = None

    async def stop(self, timeout: float = _STOP_S) -> None:
        """End every node that still runs: SIGTERM, and after ``timeout`` seconds SIGKILL. Twice is fine."""
        running = [node for node in self.nodes.values() if node.pid is not None]
        for node in running:
            self._signal(node, signal.SIGCONT)
            self._signal(node, signal.SIGTERM)
        await asyncio.gather(*(self._reap(node, timeout) for node in running))

    async def stop_node(self, node_id: str, timeout: float = _STOP_S) -> None:
        """End one node gracefully (leadership is handed over first)."""
        node = self.nodes[node_id]
        self._signal(node, signal.SIGTERM)
        await self._reap(node, timeout)

    async def kill(self, node_id: str, number: signal.Signals = signal.SIGKILL) -> None:
        """Send a signal, and wait for the end where the signal is deadly (SIGKILL)."""
        self.send_signal(node_id, number)
        if number == signal.SIGKILL:
            await self._reap(self.nodes[node_id], _STOP_S)

    def send_signal(self, node_id: str, number: signal.Signals) -> None:
        """Send a signal at once and wait for nothing."""
        self._signal(self.nodes[node_id], number)

    def pause(self, node_id: str) -> None:
        """SIGSTOP: the node hangs, its connections stay."""
        self.nodes[node_id].paused = True
        self.send_signal(node_id, signal.SIGSTOP)

    def resume(self, node_id: str) -> None:
        """SIGCONT after `pause`."""
        self.nodes[node_id].paused = False
        self.send_signal(node_id, signal.SIGCONT)

    async def restart(self, node_id: str) -> None:
        """Start a node again on its old folder and port; one that still runs is ended first."""
        node = self.nodes[node_id]
        if node.pid is not None:
            await self.stop_node(node_id)
        await self._reap(node, _STOP_S)
        self._spawn(node)

    def _signal(self, node: LocalNode, number: signal.Signals) -> None:
        if node.process is not None and node.process.poll() is None:
            node.end_asked |= number in {signal.SIGTERM, signal.SIGINT, signal.SIGKILL}
            node.process.send_signal(number)

    async def _reap(self, node: LocalNode, timeout: float) -> None:
        """Wait for a process's end, so that no zombie and no half-dead listener is left."""
        if node.process is None:
            return
        try:
            node.exit_code = await asyncio.to_thread(node.process.wait, timeout)
        except subprocess.TimeoutExpired:
            node.process.kill()
            node.exit_code = await asyncio.to_thread(node.process.wait)
        node.paused = False

    # ---------------------------------------------------------------- questions

    def connect(self, *, timeout: float = 30.0, session: bool = True) -> LedgerClient:
        """Return a client of the group; ``timeout`` in seconds is each call's."""
        from dledger.client import connect  # noqa: PLC0415 - a group is described without importing gRPC

        return connect(self.peers, group=self.group, timeout=timeout, session=session)

    async def status(self) -> dict[str, NodeStatus | None]:
        """Ask every node; None for one that does not answer within a second."""
        async with self.connect(timeout=1.0, session=False) as client:
            return await _statuses(client)

    async def leader(self) -> str | None:
        """Return the id of the leader of the highest term, None where nobody leads."""
        found = _leader_of(await self.status())
        return found.node_id if found else None

    async def wait_leader(self, timeout: float = 30.0, *, other_than: str | None = None) -> str:
        """Wait until a leader (``other_than`` this node) has committed in its own term; returns its id.

        Raises:
            UnavailableError: no such leader after ``timeout`` seconds, or a node that should run has ended.
        """
        deadline = asyncio.get_running_loop().time() + timeout
        async with self.connect(timeout=1.0, session=False) as client:
            while asyncio.get_running_loop().time() < deadline:
                self._check_alive()
                try:
                    # Linearizable: answered only once the leader has committed an entry of its own term.
                    await client.commit_index()
                except DLedgerError:
                    pass
                else:
                    leader = _leader_of(await _statuses(client))
                    if leader is not None and leader.node_id != other_than:
                        return leader.node_id
                await asyncio.sleep(_POLL_S)
        raise UnavailableError(f"no leader after {timeout:g} s\n{self.describe()}")

    async def wait_caught_up(self, node_id: str, timeout: float = 30.0) -> NodeStatus:
        """Wait until a node has committed all that the leader had committed at the call; returns its status.

        Raises:
            UnavailableError: not after ``timeout`` seconds.
        """
        wanted: int | None = None
        deadline = asyncio.get_running_loop().time() + timeout
        async with self.connect(timeout=1.0, session=False) as client:
            while asyncio.get_running_loop().time() < deadline:
                found = await _statuses(client)
                leader = _leader_of(found)
                if wanted is None and leader is not None:
                    wanted = leader.commit_index
                own = found.get(node_id)
                if wanted is not None and own is not None and own.commit_index >= wanted:
                    return own
                self._check_alive()
                await asyncio.sleep(_POLL_S)
        raise UnavailableError(f"{node_id} has not caught up after {timeout:g} s\n{self.describe()}")

    async def _wait_sound(self, timeout: float) -> None:
        """Wait until no node has anything to note of itself.

        Raises:
            UnavailableError: one still has after ``timeout`` seconds; says what.
        """
        deadline = asyncio.get_running_loop().time() + timeout
        notes: dict[str, str] = {}
        async with self.connect(timeout=1.0, session=False) as client:
            while asyncio.get_running_loop().time() < deadline:
                found = await _statuses(client)
                notes = {node_id: "no answer" if each is None else each.note for node_id, each in found.items()}
                if not any(notes.values()):
                    return
                self._check_alive()
                await asyncio.sleep(_POLL_S)
        details = "; ".join(f"{node_id}: {note}" for node_id, note in notes.items() if note)
        raise UnavailableError(f"not ready after {timeout:g} s: {details}\n{self.describe()}")

    def _check_alive(self) -> None:
        """Raise if a node has ended by itself: waiting on would be in vain."""
        for node in self.nodes.values():
            if node.process is not None and node.pid is None and node.exit_code is None:
                node.exit_code = node.process.poll()
                if not node.end_asked and node.exit_code != -signal.SIGKILL:
                    tail = node.log_tail()
                    last_line = tail.rpartition("\n")[2]
                    raise UnavailableError(f"{node.node_id} ended with exit code {node.exit_code}: {last_line}\n{tail}")

    def describe(self) -> str:
        """Return what each process does, for error messages."""
        lines = []
        for node in self.nodes.values():
            state = f"pid {node.pid}" if node.pid is not None else f"not running (exit code {node.exit_code})"
            lines.append(f"{node.node_id} {node.address}: {state}, log {node.log_path}")
        return "\n".join(lines)


async def _statuses(client: LedgerClient) -> dict[str, NodeStatus | None]:
    return {node.node_id: node if isinstance(node, NodeStatus) else None for node in await client.status()}


def _leader_of(found: Mapping[str, NodeStatus | None]) -> NodeStatus | None:
    leaders = [status for status in found.values() if status is not None and status.role == "leader"]
    return max(leaders, key=lambda status: status.term, default=None)
