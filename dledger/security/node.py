"""What of a node's configuration is about who may connect."""

from __future__ import annotations

from dledger.config import DLedgerConfig
from dledger.security.files import CertificateFiles
from dledger.security.tls import ServerTls
from dledger.security.tokens import TokenInterceptor, TokenStore

__all__ = ["node_security"]


def node_security(config: DLedgerConfig) -> tuple[ServerTls | None, TokenInterceptor | None]:
    """Return certificates and token guard of a node; None each where they are not configured.

    Raises:
        ConfigError: the files cannot be used; says which and why.
    """
    tls = tokens = None
    if config.tls_ca_file is not None:
        files = CertificateFiles(config.tls_ca_file, config.tls_cert_file, config.tls_key_file)
        tls = ServerTls(files, config.self_id)
    if config.tokens_file is not None:
        tokens = TokenInterceptor(TokenStore(config.tokens_file))
    return tls, tokens
