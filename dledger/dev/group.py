"""A `ChaosGroup` that other commands can find: pid files, ports that stay the same, leftovers of a crash ended."""

from __future__ import annotations

import asyncio
import os
import select
import shutil
import signal
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from dledger.chaos.group import ChaosGroup
from dledger.config import DLedgerConfig
from dledger.dev.brokers import BrokerPlan
from dledger.dev.ports import require_free
from dledger.dev.state import live_pid, pid_path, process_state, write_pid
from dledger.errors import UnavailableError
from dledger.local_group import LocalNode

__all__ = ["DevGroup", "clear_data", "end_leftovers"]

_HOST: Final = "127.0.0.1"
_END_S: Final = 5.0
_OWN_FILES: Final = ("store", "*.conf", "*.log", "*.pid", "*.html", "dev.json", "broker", "namesrv")


class DevGroup(ChaosGroup):
    """As `ChaosGroup`. ``ports``: those of the last run, taken again where they are free; ``port_base``: n0's port, n1
    has the next one, and so on, and one that is taken is an error. ``brokers``: each node is a broker, too.
    """

    def __init__(
        self,
        directory: Path,
        *,
        nodes: int = 3,
        group: str = "dev",
        settings: Mapping[str, str] | None = None,
        ports: Sequence[int] = (),
        port_base: int | None = None,
        brokers: BrokerPlan | None = None,
    ) -> None:
        super().__init__(directory, nodes=nodes, group=group, settings=settings)
        self._wanted_ports = [] if port_base is not None else list(ports)
        self._port_base = port_base
        self._brokers = brokers

    def _choose_ports(self, count: int) -> list[int]:
        if self._port_base is not None:
            chosen = list(range(self._port_base, self._port_base + count))
            for port in chosen:
                require_free(_HOST, port)
            return chosen
        wanted, self._wanted_ports = self._wanted_ports, []  # only once: a second attempt means that they clash
        if len(wanted) == count and all(_is_free(port) for port in wanted):
            return wanted
        return super()._choose_ports(count)

    def _write_configurations(self) -> None:
        super()._write_configurations()
        if self._brokers is None:
            return
        for number, node in enumerate(self.nodes.values()):
            settings = self._brokers.settings(number, self.directory, self.group)
            kept = [
                line
                for line in node.conf_path.read_text(encoding="utf-8").splitlines()
                if line.partition("=")[0] not in settings
            ]
            lines = [*kept, *(f"{key}={value}" for key, value in settings.items())]
            node.conf_path.write_text("\n".join(lines) + "\n", encoding="utf-8")
            node.config = DLedgerConfig.from_file(node.conf_path, env={})

    def _command(self, node: LocalNode) -> list[str]:
        if self._brokers is None:
            return super()._command(node)
        return ["-m", "broker_adapter.broker.main", "-c", str(node.conf_path)]

    def _spawn(self, node: LocalNode) -> None:
        super()._spawn(node)
        if node.pid is not None:
            write_pid(pid_path(self.directory, node.node_id), node.pid)

    async def stop(self, timeout: float = _END_S) -> None:
        """As the base does; the pid files go with the processes."""
        await super().stop(timeout)
        for node_id in self.nodes:
            pid_path(self.directory, node_id).unlink(missing_ok=True)

    def is_paused(self, node_id: str) -> bool:
        """Whether the process is stopped by a signal, whoever sent it."""
        pid = self.nodes[node_id].pid
        return pid is not None and process_state(pid) == "T"


def _is_free(port: int) -> bool:
    try:
        require_free(_HOST, port)
    except UnavailableError:
        return False
    return True


async def end_leftovers(directory: Path) -> list[str]:
    """End what a supervisor that was killed has left running in ``directory``; returns the names of those."""
    ended = []
    for path in sorted(directory.glob("*.pid")):  # noqa: ASYNC240 - a handful of small files, before anything runs
        pid = live_pid(path)
        if pid is not None:
            await asyncio.to_thread(_end, pid)
            ended.append(path.stem)
        path.unlink(missing_ok=True)
    return ended


def _end(pid: int) -> None:
    """SIGTERM, and after some seconds SIGKILL. Through a descriptor of the process, so that no other is ever meant."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        poller = select.poll()
        poller.register(descriptor, select.POLLIN)
        for number in (signal.SIGCONT, signal.SIGTERM, signal.SIGKILL):
            try:
                signal.pidfd_send_signal(descriptor, number)
            except ProcessLookupError:
                return
            if number != signal.SIGCONT and poller.poll(_END_S * 1000):
                return
    finally:
        os.close(descriptor)


def clear_data(directory: Path) -> None:
    """Remove what dev groups keep in ``directory``, and nothing else that may be there."""
    for pattern in _OWN_FILES:
        for path in directory.glob(pattern):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
