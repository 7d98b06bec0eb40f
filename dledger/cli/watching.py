"""What ``dashboard`` and ``top`` share: a watcher of the group that the options name."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dledger.cli.options import Target

if TYPE_CHECKING:
    from dledger.dashboard.watcher import Watcher

__all__ = ["make_watcher"]


def make_watcher(target: Target) -> Watcher:
    """Return a watcher, not started.

    Raises:
        ConfigError: the peers are not peers.
    """
    from dledger.client.grpc_transport import GrpcClientTransport
    from dledger.client.peers import parse_peers
    from dledger.dashboard.watcher import Watcher

    return Watcher(
        target.group,
        parse_peers(target.peers),
        lambda: GrpcClientTransport(target.group, tls=target.tls, token=target.token),
    )
