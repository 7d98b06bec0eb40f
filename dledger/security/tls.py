"""TLS for gRPC: a server whose certificates change without a restart, links to peers, channels of clients.

One CA signs for one group. A node's certificate names the node's id among its DNS names, and both ends of a link
insist on it: the caller because the handshake is made with the peer's id as the expected name, the callee by comparing
the id that a stream claims with the names in the caller's certificate. A client's certificate names no node, so its
holder cannot speak Raft.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import grpc
from grpc import aio

from dledger.security.access import ClientTls
from dledger.security.files import CertificateFiles, PemData, Reloaded, check_node_certificate

__all__ = ["ChannelMaker", "ServerTls", "peer_names"]

_Options = Sequence[tuple[str, str | int]]


def peer_names(context: aio.ServicerContext[Any, Any]) -> frozenset[str]:
    """Return the names in the caller's verified certificate; empty without one."""
    return frozenset(name.decode("utf-8", "replace") for name in context.peer_identities() or ())


class ServerTls:
    """A node's certificates, as a server shows them and as a caller uses them.

    Raises:
        ConfigError: the files cannot be used, see `check_node_certificate`.
    """

    def __init__(self, files: CertificateFiles, node_id: str) -> None:
        self._files = files
        self._node_id = node_id
        self._pem = Reloaded(files.paths(), self._read)

    def _read(self) -> PemData:
        check_node_certificate(self._files, self._node_id)
        return self._files.read()

    def server_credentials(self, *, mutual: bool) -> grpc.ServerCredentials:
        """Return credentials for one port. ``mutual``: the caller must show a certificate of the CA."""
        told = self._pem.generation

        def configuration() -> grpc.ServerCertificateConfiguration:
            pem = self._pem.get()
            return grpc.ssl_server_certificate_configuration(
                [(pem.key or b"", pem.cert or b"")], root_certificates=pem.ca
            )

        def fetch() -> grpc.ServerCertificateConfiguration | None:
            # Asked before every handshake, on a thread of gRPC's. None: as before.
            nonlocal told
            self._pem.get()
            if self._pem.generation == told:
                return None
            told = self._pem.generation
            return configuration()

        # The stubs do not know that None means "as before", which the library's documentation says.
        return grpc.dynamic_ssl_server_credentials(configuration(), fetch, mutual)  # type: ignore[arg-type]

    def channels(self) -> ChannelMaker:
        """Return a maker of channels to peers, with this node's certificate."""
        return ChannelMaker(self._pem)


class ChannelMaker:
    """Makes channels; `generation` tells when those made before show an old certificate."""

    def __init__(self, pem: Reloaded[PemData] | None) -> None:
        self._pem = pem

    @classmethod
    def of_client(cls, tls: ClientTls | None) -> ChannelMaker:
        """Return a maker for a client; without ``tls`` its channels are plaintext.

        Raises:
            ConfigError: the files cannot be used.
        """
        if tls is None:
            return cls(None)
        files = CertificateFiles.of_client(tls)
        return cls(Reloaded(files.paths(), files.read))

    @property
    def generation(self) -> int:
        """Changes when the files have changed; looks at them once a second at most."""
        if self._pem is None:
            return 0
        self._pem.get()
        return self._pem.generation

    def channel(self, address: str, options: _Options, *, node_id: str | None = None) -> aio.Channel:
        """Return a channel to ``address``; ``node_id``: the certificate there must name it, whatever the address."""
        if self._pem is None:
            return aio.insecure_channel(address, options=options)
        pem = self._pem.get()
        credentials = grpc.ssl_channel_credentials(pem.ca, pem.key, pem.cert)
        if node_id is not None:
            options = [*options, ("grpc.ssl_target_name_override", node_id)]
        return aio.secure_channel(address, credentials, options=options)
