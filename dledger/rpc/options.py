"""The limits and times of the network, and what they are called in gRPC."""

from __future__ import annotations

from dataclasses import dataclass

from dledger.errors import UnexpectedArgumentError

__all__ = ["ChannelArguments", "NetworkOptions"]

ChannelArguments = list[tuple[str, str | int]]
"""gRPC's name for options of a channel or a server."""


@dataclass(frozen=True, slots=True)
class NetworkOptions:
    """Times in milliseconds, sizes in bytes. `validate` names every one that cannot work."""

    max_message_bytes: int = 8 * 1024 * 1024
    """One gRPC message. Must exceed the largest batch with its headers, or that batch never gets through."""

    max_queue_count: int = 4096
    """Messages waiting for one peer; further ones are dropped (the core sends again). Too low: drops under load."""

    max_queue_bytes: int = 32 * 1024 * 1024
    """Bytes waiting for one peer: the memory that a slow follower can cost."""

    vote_timeout_ms: int = 600
    """Deadline of a vote round trip; the election timeout, since a later answer is of no use."""

    connect_timeout_ms: int = 400
    """One attempt to connect, handshake included. Too low: never connects over a long line. Too high: a link that heals
    while an attempt hangs is back only after that."""

    reconnect_min_ms: int = 50
    reconnect_max_ms: int = 500
    """Pause between attempts, growing from the first to the second with jitter (gRPC's default: up to two minutes)."""

    keepalive_time_ms: int = 2000
    keepalive_timeout_ms: int = 1500
    """A link that stays silent for the first is pinged, and reset if the ping is not answered within the second. Only a
    half-open link needs this: a killed process closes its sockets at once."""

    max_connections: int = 1000
    """Connections at one listener; further ones are closed. What a flood of connections can cost."""

    max_concurrent_streams: int = 16_384
    """Calls under way on one connection (HTTP/2's own limit); a client that wants more waits."""

    max_client_streams: int = 1000
    """Append and read streams of clients; further ones are refused."""

    slow_reader_timeout_ms: int = 30_000
    """A stream whose client takes nothing for so long is ended."""

    def validate(self) -> None:
        """Check every value.

        Raises:
            UnexpectedArgumentError: names the values that cannot work, all at once.
        """
        names = self.__slots__
        bad = [f"{name} = {getattr(self, name)}, must be positive" for name in names if getattr(self, name) <= 0]
        if self.reconnect_max_ms < self.reconnect_min_ms:
            bad.append(
                f"reconnect_max_ms = {self.reconnect_max_ms} is below reconnect_min_ms = {self.reconnect_min_ms}"
            )
        if self.max_queue_bytes < self.max_message_bytes:
            bad.append(f"max_queue_bytes = {self.max_queue_bytes} holds no message of {self.max_message_bytes} bytes")
        if bad:
            raise UnexpectedArgumentError("; ".join(bad))

    def channel_arguments(self) -> ChannelArguments:
        """Return the options of a channel to a node."""
        return [
            *self._common_arguments(),
            ("grpc.initial_reconnect_backoff_ms", self.reconnect_min_ms),
            ("grpc.max_reconnect_backoff_ms", self.reconnect_max_ms),
            # In spite of its name, the least time that an attempt to connect is given.
            ("grpc.min_reconnect_backoff_ms", self.connect_timeout_ms),
            ("grpc.dns_min_time_between_resolutions_ms", 1000),
            # Nodes are neighbours: a proxy meant for the way out must not come between.
            ("grpc.enable_http_proxy", 0),
            # Else two channels of one process share a connection and its back-off.
            ("grpc.use_local_subchannel_pool", 1),
            ("grpc.enable_retries", 0),
            ("grpc.service_config_disable_resolution", 1),
        ]

    def server_arguments(self) -> ChannelArguments:
        """Return the options of a node's server."""
        return [
            *self._common_arguments(),
            # Else a second server binds the same port and takes half of the connections.
            ("grpc.so_reuseport", 0),
            # Pings of peers and clients are wanted: they must not count as an attack and close the connection.
            ("grpc.http2.max_ping_strikes", 0),
            ("grpc.max_allowed_incoming_connections", self.max_connections),
            ("grpc.max_concurrent_streams", self.max_concurrent_streams),
        ]

    def _common_arguments(self) -> ChannelArguments:
        return [
            ("grpc.max_receive_message_length", self.max_message_bytes),
            ("grpc.max_send_message_length", self.max_message_bytes),
            ("grpc.keepalive_time_ms", self.keepalive_time_ms),
            ("grpc.keepalive_timeout_ms", self.keepalive_timeout_ms),
            # Without this one gRPC waits a minute for a ping's answer, whatever the keepalive time-out says.
            ("grpc.http2.ping_timeout_ms", self.keepalive_timeout_ms),
            ("grpc.keepalive_permit_without_calls", 1),
            ("grpc.http2.max_pings_without_data", 0),
        ]
