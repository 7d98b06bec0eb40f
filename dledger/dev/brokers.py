"""A dev group whose nodes are RocketMQ-compatible brokers on the same log, and the name server beside them.

The brokers are a package of their own on top of this one; here they are processes, a configuration, and an object
that is loaded by name.
"""

from __future__ import annotations

import asyncio
import importlib
import importlib.util
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

from dledger.dev.ports import listener, require_free
from dledger.dev.state import pid_path, write_pid
from dledger.errors import UnavailableError
from dledger.local_group import free_ports

__all__ = ["BrokerPlan", "BrokerView", "NameServerProcess", "Sender", "make_sender", "make_view"]

_HOST: Final = "127.0.0.1"
_NAMESRV_PORT: Final = 9876
_WATCH: Final = "broker_adapter.admin.watch"
_END_S: Final = 5.0
_TOPIC: Final = "DevTopic"


class BrokerView(Protocol):
    """What the broker tab is fed by."""

    async def look(self) -> dict[str, Any]: ...

    async def close(self) -> None: ...


class Sender(Protocol):
    """Sends messages through the brokers."""

    async def send(self, body: bytes) -> str: ...

    async def wait_master(self, timeout: float) -> str: ...

    async def close(self) -> None: ...


def _watch_module() -> Any:  # noqa: ANN401 - a package above this one
    if importlib.util.find_spec("broker_adapter") is None:
        raise UnavailableError("the package broker_adapter is not installed, so there are no brokers")
    return importlib.import_module(_WATCH)


def make_view(namesrv: str) -> BrokerView:
    """Return the broker tab's source for ``host:port;host:port``.

    Raises:
        UnavailableError: the brokers are not installed.
    """
    view: BrokerView = _watch_module().BrokerWatch(address for address in namesrv.split(";") if address)
    return view


def make_sender(namesrv: str) -> Sender:
    """Return a producer of the topic ``DevTopic``.

    Raises:
        UnavailableError: the brokers are not installed.
    """
    sender: Sender = _watch_module().MessageSender((namesrv,), _TOPIC)
    return sender


@dataclass(frozen=True, slots=True)
class BrokerPlan:
    """Where name server and brokers listen; ``ports`` in the order of the nodes."""

    namesrv: str
    ports: tuple[int, ...]

    @classmethod
    def choose(cls, nodes: int) -> BrokerPlan:
        """Take RocketMQ's usual port for the name server if it is free, and free ones for the brokers."""
        ports = free_ports(nodes + 1)
        try:
            require_free(_HOST, _NAMESRV_PORT)
            ports[nodes] = _NAMESRV_PORT
        except UnavailableError:
            pass
        return cls(f"{_HOST}:{ports[nodes]}", tuple(ports[:nodes]))

    def settings(self, number: int, directory: Path, group: str) -> dict[str, str]:
        """Return what a node's file says beside the log's keys."""
        return {
            "storePathRootDir": str(directory / "broker" / f"n{number}"),
            "enableDLegerCommitLog": "true",
            "brokerClusterName": "DevCluster",
            "brokerName": group,
            "brokerIP1": _HOST,
            "bindAddress": _HOST,
            "listenPort": str(self.ports[number]),
            "namesrvAddr": self.namesrv,
        }


class NameServerProcess:
    """The name server, with log and pid file in ``directory``."""

    def __init__(self, plan: BrokerPlan, directory: Path) -> None:
        self._plan = plan
        self._directory = directory
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it; it answers some moments later."""
        conf = self._directory / "namesrv.conf"
        port = self._plan.namesrv.rpartition(":")[2]
        store = self._directory / "namesrv" / "kvConfig.json"
        conf.write_text(f"bindAddress={_HOST}\nlistenPort={port}\nkvConfigPath={store}\n", encoding="utf-8")
        root = str(Path(__file__).resolve().parents[2])
        env = {**os.environ, "PYTHONPATH": os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])}
        with open(self._directory / "namesrv.log", "ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "broker_adapter.namesrv.main", "-c", str(conf)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=env,
                start_new_session=True,
            )
        write_pid(pid_path(self._directory, "namesrv"), self._process.pid)

    def check(self) -> None:
        """Do nothing while it runs.

        Raises:
            UnavailableError: it has ended.
        """
        if self._process is not None and self._process.poll() is not None:
            port = int(self._plan.namesrv.rpartition(":")[2])
            who = listener(port)
            raise UnavailableError(
                f"the name server ended (log {self._directory / 'namesrv.log'})"
                + (f"; port {port} is taken by {who}" if who else "")
            )

    async def stop(self) -> None:
        """End it."""
        if self._process is None:
            return
        self._process.terminate()
        try:
            await asyncio.to_thread(self._process.wait, _END_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            await asyncio.to_thread(self._process.wait)
        pid_path(self._directory, "namesrv").unlink(missing_ok=True)
