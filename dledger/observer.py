"""What looks at a running node from the side: probes, metrics, the health service, and the crash file at its end."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import structlog

from dledger.driver.driver import Driver
from dledger.metrics.crash import write_crash_file
from dledger.metrics.health import Readiness, readiness
from dledger.metrics.http import HttpAnswer, HttpServer
from dledger.metrics.node import SAMPLE_S, NodeMetrics
from dledger.metrics.peers import MeteredTransport
from dledger.metrics.registry import CONTENT_TYPE, Family, counter, gauge, render
from dledger.rpc.server import GrpcServer
from dledger.security.tokens import TokenInterceptor

__all__ = ["NodeObserver"]


class NodeObserver:
    """Watches one node: `listen` before its driver starts, `start` after, `stop` before it stops."""

    def __init__(
        self, driver: Driver, transport: MeteredTransport, grpc_server: GrpcServer, tokens: TokenInterceptor | None
    ) -> None:
        self._driver = driver
        self._grpc = grpc_server
        self._tokens = tokens
        self.metrics = NodeMetrics(driver, transport)
        self.address: str | None = None
        """``host:port`` of the HTTP server; None while there is none."""
        self._http: HttpServer | None = None
        self._started = False
        self._task: asyncio.Task[None] | None = None
        self._told: Readiness | None = None
        self._log = structlog.get_logger().bind(group_id=driver.group, node_id=driver.node_id)

    async def listen(self) -> None:
        """Serve the probes, if a port is configured.

        Raises:
            UnavailableError: the port cannot be had.
        """
        config = self._driver.config
        if config.metrics_port is None:
            return
        routes = {
            "/metrics": self._metrics,
            "/livez": self._livez,
            "/readyz": self._readyz,
            "/healthz": self._readyz,
        }
        host = config.metrics_host or "0.0.0.0"
        self._http = HttpServer(host, config.metrics_port, routes)
        port = await self._http.start()
        self.address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"

    def start(self) -> None:
        """The driver has started: begin to watch it."""
        self._started = True
        self._driver.failure.add_done_callback(self._failed)
        self._task = asyncio.get_running_loop().create_task(self._watch(), name="observer")

    def stopping(self) -> None:
        """The node hands over and stops: it lives, and nothing new should be sent to it."""
        self._started = False
        self._tell()

    async def stop(self) -> None:
        """Answer no more. Twice is fine."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        if self._http is not None:
            await self._http.stop()

    # ---- health

    def _state(self) -> Readiness:
        return readiness(self._driver) if self._started else Readiness(True, "starting or stopping")

    async def _watch(self) -> None:
        """Keep the health service and the lag samples up to date."""
        loop = asyncio.get_running_loop()
        while True:
            self._tell()
            self.metrics.sample(loop.time())
            await asyncio.sleep(SAMPLE_S)

    def _tell(self) -> None:
        state = self._state()
        told, self._told = self._told, state
        if told is not None and (told.ready, told.live) == (state.ready, state.live):
            return
        self._grpc.set_serving(state.ready, live=state.live)
        if told is not None:
            self._log.info("ready_again" if state.ready else "not_ready", reason=state.reason)

    def _livez(self) -> HttpAnswer:
        state = self._state()
        return HttpAnswer(200, b"ok\n") if state.live else HttpAnswer(503, f"{state.reason}\n".encode())

    def _readyz(self) -> HttpAnswer:
        state = self._state()
        return HttpAnswer(200, b"ok\n") if state.ready else HttpAnswer(503, f"{state.reason}\n".encode())

    def _failed(self, failure: asyncio.Future[BaseException]) -> None:
        """The node stopped by itself: say so to whoever asks, and leave a file behind."""
        if not failure.cancelled():
            self._tell()
            write_crash_file(self._driver, failure.result())

    # ---- metrics

    def _metrics(self) -> HttpAnswer:
        if not self._started:
            return HttpAnswer(503, b"starting or stopping\n")
        now = asyncio.get_running_loop().time()
        return HttpAnswer(200, render([*self.metrics.families(now), *self._access()]), CONTENT_TYPE)

    def _access(self) -> Iterator[Family]:
        labels = {"group": self._driver.group, "node": self._driver.node_id}
        guard = self._grpc.guard
        yield gauge("dledger_client_streams", "Open append and read streams of clients.", labels, guard.open_count)
        yield counter(
            "dledger_client_streams_refused_total",
            "Streams refused for there being too many.",
            labels,
            guard.refused_count,
        )
        yield counter(
            "dledger_slow_readers_total", "Streams ended because nothing was read from them.", labels, guard.slow_count
        )
        if self._tokens is not None:
            denied = Family("dledger_access_denied_total", "counter", "Calls refused for their token.")
            for reason in ("unauthenticated", "permission_denied"):
                denied.add({**labels, "reason": reason}, self._tokens.denied[reason])
            yield denied
