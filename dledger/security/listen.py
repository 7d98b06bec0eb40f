"""The rule that nobody listens in plaintext beyond the machine by mistake."""

from __future__ import annotations

import ipaddress
import socket

from dledger.config import DLedgerConfig
from dledger.errors import ConfigError

__all__ = ["check_listeners", "is_loopback"]


def is_loopback(host: str) -> bool:
    """Whether ``host`` (a name or an address) is this machine's loopback and nothing else; an unknown name is not."""
    host = host.removeprefix("[").removesuffix("]")
    try:
        found = {str(info[4][0]) for info in socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)}
        return bool(found) and all(ipaddress.ip_address(address.split("%")[0]).is_loopback for address in found)
    except (OSError, ValueError):
        return False


def check_listeners(config: DLedgerConfig) -> None:
    """Refuse a node that would listen in plaintext on an address that others can reach.

    Raises:
        ConfigError: names the listener, and says what can be done.
    """
    problems = []
    host = config.peer.host if config.bind_host is None else config.bind_host
    if config.tls_cert_file is None and config.allow_plaintext != "all" and not is_loopback(host):
        problems.append(
            f"{host}: others can reach this address, and whoever does may read and write the log in plaintext. "
            "Set tlsCertFile, tlsKeyFile and tlsCaFile (dledger certs dev makes throw-away ones), listen on 127.0.0.1 "
            "(bindAddress), or say that the network is trusted: --insecure, or allowPlaintext=all"
        )
    exporter = config.metrics_host or ""
    if config.metrics_port is not None and config.allow_plaintext == "none" and not is_loopback(exporter):
        problems.append(
            f"{exporter or 'every interface'}: metrics and probes are served in plaintext (metricsAddress). "
            "Listen on 127.0.0.1, or allow it: allowPlaintext=metrics"
        )
    if problems:
        raise ConfigError(problems)
