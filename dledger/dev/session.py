"""One run of `dledger dev`: the processes, the links between them, the page and the control port."""

from __future__ import annotations

import asyncio
import importlib
import importlib.util
import os
import secrets
import socket
import time
from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from dledger.client import LedgerClient, connect
from dledger.client.grpc_transport import GrpcClientTransport
from dledger.dashboard.watcher import Watcher
from dledger.dev.brokers import BrokerPlan, BrokerView, NameServerProcess, Sender, make_sender, make_view
from dledger.dev.control import ControlServer
from dledger.dev.group import DevGroup, clear_data, end_leftovers
from dledger.dev.keeper import Keeper
from dledger.dev.load import SteadyLoad
from dledger.dev.ports import claim, listener
from dledger.dev.state import DevState, FolderLock
from dledger.errors import DLedgerError, UnavailableError, UnexpectedArgumentError

__all__ = ["PAGE_PORT", "DevOptions", "DevSession", "page_missing", "show_brokers"]

PAGE_PORT: Final = 8911
_HOST: Final = "127.0.0.1"
_START_S: Final = 30.0
_EXTRA_S: Final = 0.5
_BROKER_S: Final = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class DevOptions:
    """What to run. ``page_port`` None: `PAGE_PORT`, or any other where that is taken. ``load``: entries a second."""

    directory: Path
    nodes: int = 3
    fresh: bool = False
    load: float | None = None
    broker: bool = False
    page_port: int | None = None
    port_base: int | None = None
    settings: Mapping[str, str] = field(default_factory=dict)


def page_missing() -> str:
    """Return why there can be no page; empty if there can."""
    absent = [name for name in ("starlette", "uvicorn") if importlib.util.find_spec(name) is None]
    return f"no page: {' and '.join(absent)} missing; pip install 'dledger[ui]'" if absent else ""


class DevSession:
    """Use as an async context manager: on entry the group is ready, on exit nothing of it runs any more.

    ``warn(text)`` is told what is odd and no error. ``ready_s``: how long it took until a leader had committed.
    """

    def __init__(self, options: DevOptions, warn: Callable[[str], None]) -> None:
        self.options = options
        self.leader = ""
        self.ready_s = 0.0
        self.group: DevGroup
        self.keeper: Keeper
        self.state: DevState
        self.watcher: Watcher
        self.load: SteadyLoad | None = None
        self.brokers: BrokerPlan | None = None
        self._sender: Sender | None = None
        self._warn = warn
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> DevSession:
        try:
            await self._start()
        except BaseException:
            await self._stack.aclose()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    @property
    def broker_ports(self) -> tuple[int, ...]:
        return self.brokers.ports if self.brokers is not None else ()

    # ---------------------------------------------------------------- start

    async def _start(self) -> None:
        began = time.monotonic()
        before = await self._take_folder()
        self.group = group = self._make_group(before)
        sock = self._page_socket()
        if sock is not None:
            self._stack.callback(sock.close)
        token = secrets.token_urlsafe(18)
        await group.fabric.open()
        self._stack.push_async_callback(group.fabric.close)
        self._stack.push_async_callback(group.stop)
        names = self._start_namesrv()
        importing = asyncio.ensure_future(asyncio.to_thread(_import_page, sock is not None))
        try:
            self.leader = await group.start(_START_S)
        finally:
            await importing
        if names is not None and self.brokers is not None:
            await self._wait_master(names, self.brokers)
        self.ready_s = time.monotonic() - began
        client = await self._client(group)
        self.keeper = Keeper(group, client, token, group.directory / "report.html", self._sender)
        page = await self._start_watcher(sock)
        control = ControlServer(self.keeper)
        await control.start()
        self._stack.push_async_callback(control.stop)
        self.keeper.watch(self.watcher)
        self._stack.push_async_callback(self.keeper.stop)
        self._start_load(client)
        self.state = DevState(
            pid=os.getpid(),
            group=group.group,
            peers=group.peers,
            node_ids=tuple(group.nodes),
            ports=tuple(node.peer.port for node in group.nodes.values()),
            control_port=control.port,
            token=token,
            page=page,
            namesrv=self.brokers.namesrv if self.brokers else "",
        )
        self.state.save(group.directory)

    async def _take_folder(self) -> DevState | None:
        """Lock the folder, end what a crash has left there, clear it if that is wanted; returns the last run's state.

        Raises:
            DLedgerError: it is in use, or holds a group of another size.
        """
        directory = self.options.directory
        try:
            directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise DLedgerError(f"{directory}: {error.strerror}") from error
        lock = FolderLock(directory)
        if not lock.take():
            raise DLedgerError(f"a dev group runs in {directory} already{_who(directory)}; give another --data")
        self._stack.callback(lock.release)
        left = await end_leftovers(directory)
        if left:
            self._warn(f"ended what a crashed run had left: {', '.join(left)}")
        if self.options.fresh:
            await asyncio.to_thread(clear_data, directory)
            return None
        before = DevState.load(directory)
        if before is not None and len(before.node_ids) != self.options.nodes:
            raise UnexpectedArgumentError(
                f"{directory} holds a group of {len(before.node_ids)}: --nodes {len(before.node_ids)} goes on with it, "
                "--fresh clears it, --data names another folder"
            )
        return before

    def _make_group(self, before: DevState | None) -> DevGroup:
        options = self.options
        self.brokers = BrokerPlan.choose(options.nodes) if options.broker else None
        return DevGroup(
            options.directory,
            nodes=options.nodes,
            settings=options.settings,
            ports=before.ports if before else (),
            port_base=options.port_base,
            brokers=self.brokers,
        )

    def _start_namesrv(self) -> NameServerProcess | None:
        if self.brokers is None:
            return None
        names = NameServerProcess(self.brokers, self.options.directory)
        names.start()
        self._stack.push_async_callback(names.stop)
        return names

    async def _wait_master(self, names: NameServerProcess, plan: BrokerPlan) -> None:
        """Wait until a broker has registered as master: only then can messages be sent."""
        names.check()
        self._sender = make_sender(plan.namesrv)
        self._stack.push_async_callback(self._sender.close)
        await self._sender.wait_master(_START_S)

    def _page_socket(self) -> socket.socket | None:
        """Listen for the page; None where its libraries are not installed.

        Raises:
            UnavailableError: the port that was asked for is taken.
        """
        missing = page_missing()
        if missing:
            self._warn(missing)
            return None
        if self.options.page_port is not None:
            return claim(_HOST, self.options.page_port)
        try:
            return claim(_HOST, PAGE_PORT)
        except UnavailableError:
            self._warn(f"port {PAGE_PORT} is taken by {listener(PAGE_PORT) or 'another'}; the page has another one")
            return claim(_HOST, 0)

    async def _client(self, group: DevGroup) -> LedgerClient:
        """Return a client for load and page."""
        client = connect(group.peers, group=group.group, timeout=10.0)
        await client.__aenter__()
        self._stack.push_async_callback(client.close)
        return client

    async def _start_watcher(self, sock: socket.socket | None) -> str:
        """Watch the nodes and serve the page; returns its address, empty if there is none."""
        group = self.group
        addresses = {node_id: node.address for node_id, node in group.nodes.items()}
        self.watcher = Watcher(
            group.group, addresses, lambda: GrpcClientTransport(group.group), conditions=self.keeper.conditions
        )
        server = None
        if sock is not None:
            from dledger.dashboard.server import PageServer  # noqa: PLC0415 - of the extra `ui`

            server = PageServer(self.watcher, sock, self.keeper)
            self._stack.push_async_callback(server.stop)
        await self.watcher.start()
        self._stack.push_async_callback(self.watcher.stop)
        if server is None:
            return ""
        server.start()
        return server.url

    def _start_load(self, client: LedgerClient) -> None:
        if self.options.load is not None:
            sender = self._sender
            call = client.append_nowait if sender is None else lambda body: asyncio.ensure_future(sender.send(body))
            self.load = SteadyLoad(call, self.options.load)
            self.load.start()
            self._stack.push_async_callback(self.load.stop)
        tasks = [self._tell_extra()]
        if self.brokers is not None:
            tasks.append(show_brokers(self.watcher, make_view(self.brokers.namesrv)))
        for task in tasks:
            self._stack.push_async_callback(_cancel, asyncio.ensure_future(task))

    async def _tell_extra(self) -> None:
        """Keep what the page shows beside the nodes up to date."""
        while True:
            extra: dict[str, Any] = {
                "chaos": self.keeper.chaos_running,
                "chaos_left_s": self.keeper.chaos_left_s,
                "verdict": self.keeper.verdict,
                "report": self.keeper.has_report,
            }
            if self.load is not None:
                extra["load"] = self.load.as_json()
            self.watcher.extra.update(extra)
            await asyncio.sleep(_EXTRA_S)


async def show_brokers(watcher: Watcher, view: BrokerView) -> None:
    """Keep the broker tab up to date until cancelled."""
    try:
        while True:
            watcher.extra["broker"] = await view.look()
            await asyncio.sleep(_BROKER_S)
    finally:
        await view.close()


def _import_page(wanted: bool) -> None:
    """Import what the page needs while the nodes start."""
    if wanted:
        importlib.import_module("dledger.dashboard.server")


async def _cancel(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


def _who(directory: Path) -> str:
    """Return who has the folder, as far as its state tells."""
    try:
        state = DevState.load(directory)
    except DLedgerError:
        return ""
    if state is None or not state.running:
        return ""
    return f" (pid {state.pid}" + (f", page {state.page})" if state.page else ")")
