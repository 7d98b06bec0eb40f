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
from dledger.security.streams import StreamGuard
from dledger.security.tls import ServerTls
from dledger.security.tokens import TokenInterceptor

__all__ = ["AddressInUseError", "GrpcServer"]

_MAX_PORT = 65535


class AddressInUseError(UnavailableError):
    """The address cannot be listened on: the message names it and says why."""


class GrpcServer:
    """Serves a backend and a transport at ``bind_address`` ("host:port"; port 0 takes a free one).

    With ``tls`` the port is for callers with a certificate of the CA; ``client_port`` adds one at the same host for
    callers without. ``tokens`` guards both. The health service answers NOT_SERVING until `set_serving` says otherwise.
    It owns neither the backend nor the transport: stop the transport first, then this.
    """

    def __init__(
        self,
        backend: Backend,
        transport: GrpcTransport,
        bind_address: str,
        options: NetworkOptions | None = None,
        *,
        tls: ServerTls | None = None,
        client_port: int | None = None,
        tokens: TokenInterceptor | None = None,
    ) -> None:
        self._backend = backend
        self._transport = transport
        self._bind_address = bind_address
        self._options = limits = options or NetworkOptions()
        self._tls = tls
        self._client_port = client_port
        self._tokens = tokens
        self.guard = StreamGuard(limits.max_client_streams, limits.slow_reader_timeout_ms / 1000)
        self._ledger = LedgerService(backend, self.guard, transport.clients)
        self.client_port: int | None = None
        """The second port, once it is listened on."""
        self._server: aio.Server | None = None
        self._health: health.aio.HealthServicer | None = None
        self._health_updates: set[asyncio.Task[None]] = set()

    async def start(self) -> int:
        """Listen and serve; return the port.

        Raises:
            UnexpectedArgumentError: the address has no "host:port" form.
            AddressInUseError: somebody else listens there, or it is not an address of this machine.
        """
        self._check_address(self._bind_address)
        interceptors = () if self._tokens is None else (self._tokens,)
        server = aio.server(interceptors=interceptors, options=self._options.server_arguments())
        try:
            await self._register(server)
            port = self._listen(server, self._bind_address, mutual=True)
            if self._tls is not None and self._client_port is not None:
                self.client_port = self._listen_for_clients(server, self._client_port)
            self._tell_ports(port)
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
        await self._set_health(False, False)
        # Reflection answers from the descriptor pool, which importing the generated modules has filled.
        names = (LEDGER_SERVICE, ADMIN_SERVICE, RAFT_SERVICE, health.SERVICE_NAME, reflection.SERVICE_NAME)
        reflection.enable_server_reflection(names, server)

    def _tell_ports(self, bound: int) -> None:
        """Say where clients reach this server when nothing stands between: here, and at the address they are told."""
        advertised = self._backend.members().get(self._backend.node_id, "").rpartition(":")[2]
        self._transport.clients.is_reached_at({bound, int(advertised)} if advertised.isdecimal() else {bound})

    def _listen_for_clients(self, server: aio.Server, port: int) -> int:
        address = f"{self._bind_address.rpartition(':')[0]}:{port}"
        self._check_address(address)
        return self._listen(server, address, mutual=False)

    def _listen(self, server: aio.Server, address: str, *, mutual: bool) -> int:
        try:
            if self._tls is None:
                port = server.add_insecure_port(address)
            else:
                port = server.add_secure_port(address, self._tls.server_credentials(mutual=mutual))
        except RuntimeError as error:
            raise AddressInUseError(f"cannot listen on {address}: {error}") from error
        if port == 0:
            raise AddressInUseError(f"cannot listen on {address}")
        return port

    def set_serving(self, serving: bool, *, live: bool | None = None) -> None:
        """Say through the health service whether this node is fit for use (the ledger's service), and whether it lives
        (service ""; the same unless ``live`` says otherwise)."""
        task = asyncio.get_running_loop().create_task(self._set_health(serving, serving if live is None else live))
        self._health_updates.add(task)
        task.add_done_callback(self._health_updates.discard)

    async def stop(self, grace: float | None = None) -> None:
        """Take no new calls, give those under way ``grace`` seconds, end the streams. Repeating it does nothing."""
        server, self._server = self._server, None
        if server is None:
            return
        await self._set_health(False, False)
        self._ledger.close()
        await server.stop(grace)

    async def _set_health(self, serving: bool, live: bool) -> None:
        if self._health is not None:
            for service, is_well in (("", live), (LEDGER_SERVICE, serving)):
                response = health_pb2.HealthCheckResponse
                await self._health.set(service, response.SERVING if is_well else response.NOT_SERVING)

    @staticmethod
    def _check_address(bind_address: str) -> None:
        """Find out by a plain socket why an address cannot be had: gRPC says it on standard error only."""
        host, _, port_text = bind_address.rpartition(":")
        if not host or not port_text.isdecimal() or int(port_text) > _MAX_PORT:
            raise UnexpectedArgumentError(f"bind address {bind_address!r} is not host:port")
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
            raise AddressInUseError(f"cannot listen on {bind_address}: {reason}") from error
