"""A node's gRPC server: the three services, health and reflection on one port."""

from __future__ import annotations

import asyncio
import socket

from grpc import aio
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from dledger.errors import UnavailableError, UnexpectedArgumentError
from dledger.rpc.interfaces import Backend
from dledger.rpc.links import RAFT_SERVICE
from dledger.rpc.options import NetworkOptions
from dledger.rpc.services import ADMIN_SERVICE, LEDGER_SERVICE, AdminService, LedgerService
from dledger.rpc.transport import GrpcTransport

__all__ = ["AddressInUseError", "GrpcServer"]

_MAX_PORT = 65535


class AddressInUseError(UnavailableError):
    """The address cannot be listened on: the message names it and says why."""


class GrpcServer:
    """Serves a backend and a transport at ``bind_address`` ("host:port"; port 0 takes a free one).

    The health service answers NOT_SERVING until `set_serving` says otherwise. It owns neither the backend nor the
    transport: stop the transport first, then this.
    """

    def __init__(
        self,
        backend: Backend,
        transport: GrpcTransport,
        bind_address: str,
        options: NetworkOptions | None = None,
    ) -> None:
        self._backend = backend
        self._transport = transport
        self._bind_address = bind_address
        self._options = options or NetworkOptions()
        self._ledger = LedgerService(backend)
        self._server: aio.Server | None = None
        self._health: health.aio.HealthServicer | None = None
        self._health_updates: set[asyncio.Task[None]] = set()

    async def start(self) -> int:
        """Listen and serve; return the port.

        Raises:
            UnexpectedArgumentError: the address has no "host:port" form.
            AddressInUseError: somebody else listens there, or it is not an address of this machine.
        """
        self._check_address()
        server = aio.server(options=self._options.server_arguments())
        try:
            await self._register(server)
            port = self._listen(server)
            await server.start()
        except BaseException:
            await server.stop(None)
            raise
        self._server = server
        return port

    async def _register(self, server: aio.Server) -> None:
        self._transport.add_to_server(server)
        self._ledger.add_to_server(server)
        AdminService(self._backend).add_to_server(server)
        self._health = health.aio.HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        await self._set_health(False)
        # Reflection answers from the descriptor pool, which importing the generated modules has filled.
        names = (LEDGER_SERVICE, ADMIN_SERVICE, RAFT_SERVICE, health.SERVICE_NAME, reflection.SERVICE_NAME)
        reflection.enable_server_reflection(names, server)

    def _listen(self, server: aio.Server) -> int:
        try:
            port = server.add_insecure_port(self._bind_address)
        except RuntimeError as error:
            raise AddressInUseError(f"cannot listen on {self._bind_address}: {error}") from error
        if port == 0:
            raise AddressInUseError(f"cannot listen on {self._bind_address}")
        return port

    def set_serving(self, serving: bool) -> None:
        """Say through the health service whether this node is fit for use (services "" and the ledger's)."""
        task = asyncio.get_running_loop().create_task(self._set_health(serving))
        self._health_updates.add(task)
        task.add_done_callback(self._health_updates.discard)

    async def stop(self, grace: float | None = None) -> None:
        """Take no new calls, give those under way ``grace`` seconds, end the streams. Repeating it does nothing."""
        server, self._server = self._server, None
        if server is None:
            return
        await self._set_health(False)
        self._ledger.close()
        await server.stop(grace)

    async def _set_health(self, serving: bool) -> None:
        status = health_pb2.HealthCheckResponse.SERVING if serving else health_pb2.HealthCheckResponse.NOT_SERVING
        if self._health is not None:
            for service in ("", LEDGER_SERVICE):
                await self._health.set(service, status)

    def _check_address(self) -> None:
        """Find out by a plain socket why an address cannot be had: gRPC says it on standard error only."""
        host, _, port_text = self._bind_address.rpartition(":")
        if not host or not port_text.isdecimal() or int(port_text) > _MAX_PORT:
            raise UnexpectedArgumentError(f"bind address {self._bind_address!r} is not host:port")
        host = host.removeprefix("[").removesuffix("]")
        try:
            family, kind, protocol, _, address = socket.getaddrinfo(
                host, int(port_text), type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
            )[0]
            with socket.socket(family, kind, protocol) as probe:
                # As gRPC does: a port whose last connections are in TIME_WAIT is free.
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind(address)
        except OSError as error:
            reason = error.strerror or str(error)
            raise AddressInUseError(f"cannot listen on {self._bind_address}: {reason}") from error
